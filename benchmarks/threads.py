"""What OpenMP's waiting costs a training on a CPU, alone and beside busy neighbours.

    python benchmarks/threads.py                   # a table
    python benchmarks/threads.py --json            # its last line holds the numbers
    python benchmarks/threads.py --spins 1000 9000 # more spin counts of GNU's OpenMP
    python benchmarks/threads.py --model ViT-B-32 --batch-size 8
    python benchmarks/threads.py --raised          # as root, on a machine that others use

A thread that has done its share of a loop waits for the others at a barrier. It may spin there,
which is quickest while every thread has a core of its own, or sleep. Beside a busy neighbour the
last thread is the one that shares its core, and spinning threads take even more from it.

Each setting is an environment that torch is loaded in: a process of its own that trains a model of
random weights with FLYP on random images for a fixed time. In every round each setting runs once,
in random order, alone and beside one and two processes that do nothing but count; ratios are taken
within a round and are medians over rounds.

A machine that does other work meanwhile is busier than a column says, so the load found at the
start is printed. `--raised` helps there: while it is timed, what runs alone has real-time priority,
and what runs beside others, these included, the highest common one. Nobody else gets much done in
those seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from calift_core.threads import SETTINGS, openmp_environment, usable_cores

NEIGHBOURS = (0, 1, 2)
Level = Literal["common", "raised", "real-time"]


def settings(spins: Sequence[int]) -> dict[str, dict[str, str]]:
    """Name → variables. The first one is what the others are compared with."""
    found: dict[str, dict[str, str]] = {"as torch comes": {}}
    found["passive"] = {"OMP_WAIT_POLICY": "PASSIVE"}
    found["calift's"] = openmp_environment({})
    cores = usable_cores()
    for threads in sorted({1, cores - 1} - {0, cores}, reverse=True):
        found[f"{threads} thread" + "s" * (threads > 1)] = {"OMP_NUM_THREADS": str(threads)}
    return found | {f"spin {count:,}": {"GOMP_SPINCOUNT": str(count)} for count in spins}


# -------------------------------------------------------------------------- what is measured


def prioritise(level: Level) -> None:
    """Give every thread of this process a priority, beyond its session too."""
    with suppress(OSError):  # kernels without automatic groups
        Path("/proc/self/autogroup").write_text("0" if level == "common" else "-20")
    policy = os.SCHED_FIFO if level == "real-time" else os.SCHED_OTHER
    for thread in map(int, os.listdir("/proc/self/task")):
        os.sched_setscheduler(thread, policy, os.sched_param(int(policy == os.SCHED_FIFO)))
        os.setpriority(os.PRIO_PROCESS, thread, 0 if level == "common" else -20)


def child(model: str, batch_size: int) -> None:
    """Train for as many seconds as each line of standard input says, and tell what that came to.

    A line may hold a priority too.

    Runs in the environment that is measured.
    """
    import torch

    from calift_core.methods import Batch, RunLength, make_method
    from calift_core.models.captions import Captions
    from calift_core.models.loading import TINY_CONFIG, load_clip
    from calift_core.schema.methods import Flyp

    clip = load_clip(model or str(TINY_CONFIG), None, generator=torch.Generator().manual_seed(0))
    names = [f"thing {i}" for i in range(10)]
    captions = Captions.make(names, ("a photo of a {}.",), clip.tokenizer)
    method = make_method(Flyp(), clip, captions, length=RunLength(total_steps=1000))
    labels = torch.arange(batch_size) % 10
    generator = torch.Generator().manual_seed(0)
    side = clip.image_size
    batch = Batch(torch.randn(batch_size, 3, side, side, generator=generator), labels, labels)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-4, fused=True)
    clip.train()

    def step() -> None:
        terms = method.terms(batch)
        terms["contrastive"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    for line in sys.stdin:  # until the parent has had enough, or is gone
        said, _, level = line.strip().partition(" ")
        seconds = float(said)
        if level:
            prioritise(level)  # type: ignore[arg-type]
        step()
        began, worked, steps = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < seconds:
            step()
            steps += 1
        elapsed = time.perf_counter() - began
        found = {
            "step_s": elapsed / steps,
            "processor_s": (time.process_time() - worked) / steps,
            "threads": torch.get_num_threads(),
        }
        if level:
            prioritise("common")
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


def neighbour(raised: bool) -> None:
    """Count until the parent says that it is enough."""
    import threading

    if raised:
        prioritise("raised")
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    sys.stdout.write("busy\n")
    sys.stdout.flush()
    while True:
        pass


# ------------------------------------------------------------------------------ how it is measured


def _start(arguments: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[str]:
    plain = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.Popen(
        [sys.executable, __file__, *arguments],
        env=plain | dict(variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def neighbours(n: int, raised: bool) -> Iterator[None]:
    """So many busy processes beside."""
    started = [_start(["--neighbour", *(["--raised"] if raised else [])], {}) for _ in range(n)]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()  # closes its pipes


@contextmanager
def trainers(
    tried: Mapping[str, Mapping[str, str]], options: argparse.Namespace
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """A process for each setting, which sleeps until it is asked."""
    asked = ["--child", "--model", options.model, "--batch-size", str(options.batch_size)]
    started = {name: _start(asked, variables) for name, variables in tried.items()}
    try:
        for process in started.values():
            ask(process, "0.1")  # loaded, and warm
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.communicate()  # closes its pipes


def ask(process: subprocess.Popen[str], line: str) -> dict[str, float]:
    """Let a trainer work for some seconds, at a priority perhaps."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a measured process ended with status {process.wait()}")
    found: dict[str, float] = json.loads(answer)
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every round of every setting."""
    tried = settings(options.spins)
    if unknown := set(options.settings or ()) - set(tried):
        raise SystemExit(f"--settings are of {', '.join(tried)}, got {', '.join(unknown)}")
    tried = {name: tried[name] for name in options.settings or tried}
    order = random.Random(options.seed)
    rounds: list[dict[str, dict[str, dict[str, float]]]] = []
    load = os.getloadavg()[0]
    with trainers(tried, options) as started:
        for number in range(options.rounds):
            found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in tried}
            for busy in options.neighbours:
                level = ("raised" if busy else "real-time") if options.raised else ""
                with neighbours(busy, options.raised):
                    for name in order.sample(list(tried), len(tried)):
                        found[name][str(busy)] = ask(started[name], f"{options.seconds} {level}")
            rounds.append(found)
            sys.stderr.write(f"round {number + 1} of {options.rounds}\n")
    first = next(iter(tried))
    summary = {}
    for name in tried:
        summary[name] = {
            busy: {
                "step_s": statistics.median(r[name][busy]["step_s"] for r in rounds),
                "processor_s": statistics.median(r[name][busy]["processor_s"] for r in rounds),
                "ratio": statistics.median(
                    r[name][busy]["step_s"] / r[first][busy]["step_s"] for r in rounds
                ),
            }
            for busy in map(str, options.neighbours)
        } | {"threads": rounds[0][name][str(options.neighbours[0])]["threads"]}
    return {
        "cores": usable_cores(),
        "load_before": load,
        "raised": options.raised,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "model": options.model or "calift-tiny",
        "batch_size": options.batch_size,
        "settings": tried,
        "summary": summary,
        "all": rounds,
    }


def table(result: dict[str, Any], busy: Sequence[int]) -> str:
    """Milliseconds a step, and how that compares with the first row."""
    lines = [
        f"{result['cores']} cores, load {result['load_before']:.1f} before; {result['rounds']} "
        f"rounds of {result['seconds']:g} s, {result['model']}, batch {result['batch_size']}"
        + (", raised priority" if result["raised"] else ""),
        "",
        "| setting | threads | "
        + " | ".join("alone" if n == 0 else f"beside {n}" for n in busy)
        + " |",
        "|---|---|" + "---|" * len(busy),
    ]
    for name, found in result["summary"].items():
        cells = [
            f"{1000 * found[str(n)]['step_s']:.0f} ms ({found[str(n)]['ratio']:.2f})" for n in busy
        ]
        lines.append(f"| {name} | {found['threads']:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or be what is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of training, each time")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--neighbours", type=int, nargs="+", default=NEIGHBOURS)
    parser.add_argument("--settings", nargs="+", help="of these rows of the table alone")
    parser.add_argument("--spins", type=int, nargs="+", default=(), help="GOMP_SPINCOUNT to try")
    parser.add_argument("--model", default="", help="an open_clip name; random weights")
    parser.add_argument("--raised", action="store_true", help="raise priorities (root)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--neighbour", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.model, options.batch_size)
    elif options.neighbour:
        neighbour(options.raised)
    else:
        result = run(options)
        sys.stdout.write(table(result, options.neighbours) + "\n")
        if options.json:
            sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
