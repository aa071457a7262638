"""What `train.adapt` saves: memory and time of a step with `full`, `lora` and `head`, side by side.

    python benchmarks/adapt.py                                # ViT-B/32 on this machine
    python benchmarks/adapt.py --model RN50 --batch 32 --json

Each contender is a process of its own, which makes the method around random weights, takes a few
steps of `calift_core.training` on random pixels and says the fastest one's time (on a CPU, of the
processor) and the most memory that it held over what the model alone took; on a CUDA device, what
torch allocated. The contenders take turns, round after round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CONTENDERS = [
    (kind, adapt) for kind in ("flyp", "carot", "finetune") for adapt in ("full", "lora", "head")
]


def resident_mib() -> float:
    """Memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def peak_mib() -> float:
    """The most that it has held since it last wrote 5 to `clear_refs`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One contender, in this process."""
    import torch

    from calift_core.methods import Batch, RunLength, make_method
    from calift_core.models.captions import Captions
    from calift_core.models.loading import load_clip
    from calift_core.models.precision import resolve_device
    from calift_core.schema.methods import METHOD_SPECS
    from calift_core.schema.spec import parse_spec
    from calift_core.training.plan import make_plan
    from calift_core.training.step import make_optimizer, optimiser_step, parameters_of

    device = resolve_device("auto")
    spec = parse_spec(
        {
            "name": "adapt",
            "model": {"name": options.model, "pretrained": None},
            "method": {"kind": options.kind},
            "train": {
                "adapt": options.adapt,
                "batch_size": options.batch,
                "precision": "fp32",
                "batch_norm": "frozen",
            },
        }
    )
    torch.manual_seed(0)
    clip = load_clip(options.model, None, generator=torch.Generator().manual_seed(0)).to(device)
    names = [f"class {number}" for number in range(100)]
    captions = Captions.make(names, ("a photo of a {}.", "a drawing of a {}."), clip.tokenizer)
    plan = make_plan(spec, 1000 * options.batch, device, clip)
    method = make_method(
        METHOD_SPECS[options.kind](),
        clip,
        captions,
        length=RunLength(plan.total_steps),
        train=spec.train,
    )
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        before = resident_mib()
        Path("/proc/self/clear_refs").write_text("5")
    optimizer = make_optimizer(method, plan)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    side, times = clip.image_size, []
    # On a CPU others take their share of it: processor time is this process's own.
    clock = time.perf_counter if cuda else time.process_time
    generator = torch.Generator().manual_seed(1)
    clip.train()
    for _ in range(options.steps):
        ids = torch.randint(200, (options.batch,), generator=generator)
        images = torch.randn(options.batch, 3, side, side, generator=generator).to(device)
        batch = Batch(images, (ids // 2).to(device), ids)
        began = clock()
        optimiser_step(method, batch, optimizer, scaler, plan, device)
        if cuda:
            torch.cuda.synchronize()
        times.append(clock() - began)
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else peak_mib()
    return {"seconds": min(times), "mib": peak - before, "trained": parameters_of(method)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--adapt", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measure(options)))
        return
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {one: [] for one in CONTENDERS}
    for _ in range(options.rounds):
        for kind, adapt in CONTENDERS:
            command = [sys.executable, __file__, "--kind", kind, "--adapt", adapt]
            command += ["--model", options.model, "--batch", str(options.batch)]
            command += ["--steps", str(options.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seen[kind, adapt].append(json.loads(done.stdout.splitlines()[-1]))
    rows = {}
    for (kind, adapt), results in seen.items():
        rows[f"{kind}/{adapt}"] = {
            "seconds": min(r["seconds"] for r in results),
            "mib": statistics.median(r["mib"] for r in results),
            "trained": results[0]["trained"],
        }
    print(f"{options.model}, batch {options.batch}, fp32\n")
    print("| method | trained | numbers | memory over the weights | of full | step | of full |")
    print("|---|---|---|---|---|---|---|")
    for kind, adapt in CONTENDERS:
        row, full = rows[f"{kind}/{adapt}"], rows[f"{kind}/full"]
        print(
            f"| `{kind}` | {adapt} | {row['trained']:,} | {row['mib']:,.0f} MiB "
            f"| {row['mib'] / full['mib']:.2f} | {row['seconds']:.2f} s "
            f"| {row['seconds'] / full['seconds']:.2f} |"
        )
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
