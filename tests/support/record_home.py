"""Record a home as this revision leaves it, for the test that later ones must read it alike.

::

    python -m tests.support.record_home

Packs into `tests/data/home-1.0.tar.xz`: a CALIFT_HOME with two finished runs, imported predictions,
an evaluation job and a sweep, a run of `calift train` that was stopped after a checkpoint, and
`recorded.json`: what the API answered, and a RunSpec of every method with its hash.

Rows of the token embedding that no caption uses are zero, and stay so in training: it packs small.
"""

import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from backend.stack import EmbeddedStack
from calift_core.client import Client
from calift_core.errors import InterruptedRunError
from calift_core.jobs.folder import run_in_folder
from calift_core.schema.methods import METHOD_SPECS
from calift_core.schema.spec import RunSpec, parse_spec
from tests.core.conftest import CLASSES, PHOTO, write_classes

PACKED = Path(__file__).parents[1] / "data" / "home-1.0.tar.xz"
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
#: Of a run, what the API answers.
OF_RUN = ("", "/evaluations", "/report", "/metrics", "/spectra", "/artifacts", "/events/history")
_NEEDED = {
    "wise_ft": {"run": "one"},
    "model_stock": {"runs": ["one", "other"]},
    "vrf": {"run": "one"},
    "dawin": {"run": "one"},
}


def write_data(root: Path) -> dict[str, Any]:
    """Pictures of three classes, darker ones, a small ViT; a RunSpec on them."""
    write_classes(root / "photos", n=24)
    write_classes(root / "dark", n=4, seed=1, gain=0.5)
    (root / "vit.json").write_text(json.dumps(MODEL))
    torch.manual_seed(0)
    weights = open_clip.CLIP(**MODEL).state_dict()
    captions = [text.format(name.replace("_", " ")) for text in PHOTO for name in CLASSES]
    used = open_clip.SimpleTokenizer(context_length=16)(captions).unique()
    kept = torch.zeros(len(weights["token_embedding.weight"]), 1)
    kept[used] = 1
    weights["token_embedding.weight"] *= kept
    save_file(weights, root / "vit.safetensors")
    return {
        "model": {"name": f"{root}/vit.json", "pretrained": f"{root}/vit.safetensors"},
        "suite": {
            "id": f"folder:{root}/photos",
            "templates": list(PHOTO),
            "shifts": {"dark": f"folder:{root}/dark"},
        },
        "train": {
            "epochs": 2,
            "batch_size": 16,
            "lr": 1e-3,
            "device": "cpu",
            "log_every_steps": 1,
            "checkpoint_every_steps": 2,
            "keep_checkpoints": 1,
        },
        "evaluation": {"n_resamples": 20, "batch_size": 64},
    }


def fill(client: Client, root: Path, spec: dict[str, Any]) -> list[str]:
    """Have everything made; the paths whose answers are recorded."""
    runs = [
        client.submit(spec | {"name": kind, "method": {"kind": kind}, "tags": ["recorded"]}).id
        for kind in ("zero_shot", "carot")
    ]
    for run_id in runs:
        assert client.wait(run_id, timeout_s=300).phase == "SUCCEEDED"
    job = client.evaluate(runs, folders=[f"folder:{root}/dark"], device="cpu")
    sweep = client.sweep(
        {
            "name": "which",
            "base": spec,
            "methods": ["zero_shot", "flyp"],
            "seeds": [0, 1],
            "rate": {"ladder": [1e-3], "extend": 0},
        }
    )
    assert client.wait_for_evaluation(job.id, timeout_s=300).phase == "SUCCEEDED"
    assert client.wait_sweep(sweep.id, timeout_s=600).phase == "SUCCEEDED"
    rng = np.random.default_rng(0)
    np.savez(root / "mine.npz", labels=rng.integers(3, size=60), logits=rng.normal(size=(60, 3)))
    client.import_predictions(root / "mine.npz", name="imported", dataset="mine")
    every = [run.id for run in client.all_runs()]
    return [
        *(f"runs/{run_id}{part}" for run_id in every for part in OF_RUN),
        *(f"evaluations/{e.id}/reliability" for run in every for e in client.run_evaluations(run)),
        *(f"evaluation-jobs/{job.id}{part}" for part in ("", "/evaluations")),
        *(f"sweeps/{sweep.id}{part}" for part in ("", "/runs", "/verdict")),
    ]


def stop_after_a_checkpoint(spec: RunSpec, folder: Path) -> None:
    """A run of `calift train`, stopped."""
    seen: list[int] = []
    try:
        for record in run_in_folder(spec, folder, stop=lambda: len(seen) > 3):
            if record.kind == "metrics":
                seen.append(record.step)
    except InterruptedRunError:
        return
    raise AssertionError("the run ended before it was stopped")


def main() -> None:
    """Make the home and pack it."""
    root = Path(tempfile.mkdtemp(prefix="calift-record-"))
    home = root / "home"
    for name in [name for name in os.environ if name.startswith("CALIFT_")]:
        del os.environ[name]
    os.environ |= {
        "CALIFT_HOME": str(home),
        "CALIFT_FREE_SPACE_FLOOR_BYTES": "0",
        "OMP_NUM_THREADS": "1",
    }
    try:
        (root / "data").mkdir()
        spec = write_data(root / "data")
        with EmbeddedStack(home, api_port=0, dashboard=False) as stack:
            stack.wait_ready()
            token = (home / "token").read_text().strip()
            with Client(stack.urls["api"], token) as client:
                paths = fill(client, root / "data", spec)
                answers = {path: client._send("GET", f"/{path}").json() for path in paths}
        carot = parse_spec(spec | {"name": "stopped", "method": {"kind": "carot"}})
        stop_after_a_checkpoint(carot, root / "local")
        specs = [
            parse_spec({"name": kind, "method": {"kind": kind} | _NEEDED.get(kind, {})})
            for kind in METHOD_SPECS
        ]
        hashes = [(one.model_dump(mode="json"), one.content_hash()) for one in (*specs, carot)]
        (root / "recorded.json").write_text(json.dumps({"answers": answers, "specs": hashes}))
        pack(root)
    finally:
        shutil.rmtree(root)
    sys.stdout.write(f"{PACKED}: {PACKED.stat().st_size:,} bytes\n")


def pack(root: Path) -> None:
    """Pack what a later version reads: no sockets, logs of processes or caches."""

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return None if member.issym() else member

    with tarfile.open(PACKED, "w:xz", preset=9) as archive:
        for name in ("home/calift.db", "home/token", "home/artifacts", "local", "recorded.json"):
            archive.add(root / name, name, filter=kept)


if __name__ == "__main__":
    main()
