"""How much of a plain open_clip loop `calift serve` keeps.

    python benchmarks/serve.py [--config ViT-B-32] [--images 256] [--rounds 5]

A plain loop decodes and encodes one batch after the other in one process; the server gets the same
files from several clients, one or 64 a request. In each round both sides take turns on the same
cores; told are medians over rounds of images a second, of their ratio to the loop of the same
round, and of processor time an image against the loop's. The latter depends little on
what else the machine does: it is what the server would keep where one core does everything. The
model is a randomly initialised one of open_clip with a zero-shot run's head.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import numpy as np
import torch
from api import processor_s
from PIL import Image

from calift_core.jobs.folder import run_in_folder
from calift_core.schema.spec import parse_spec
from calift_core.shipping.classifier import CalibratedClassifier

#: Clients, and the images of a request.
ASKED = ((1, 1), (8, 1), (64, 1), (1, 64), (4, 64))


def write_images(folder: Path, n: int, side: int = 320) -> list[Path]:
    """JPEGs of random textures in three class folders."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(n):
        path = folder / f"class{i % 3}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(path)
    return paths


def plain_loop(model: CalibratedClassifier, paths: list[Path], batch: int) -> float:
    """Images a second of one process that does nothing else."""
    began = time.perf_counter()
    for start in range(0, len(paths), batch):
        model.answer(np.stack([model.fit(path) for path in paths[start : start + batch]]))
    return len(paths) / (time.perf_counter() - began)


def bodies(url: str, paths: list[Path], together: int) -> list[tuple[bytes, dict[str, str]]]:
    """What the requests send; a client's own work is not the server's."""
    if together == 1:
        return [(path.read_bytes(), {}) for path in paths]
    made = []
    for start in range(0, len(paths), together):
        files = [("images", path.read_bytes()) for path in paths[start : start + together]]
        request = httpx.Request("POST", url, files=files)
        made.append((request.read(), {"content-type": request.headers["content-type"]}))
    return made


async def ask(url: str, paths: list[Path], clients: int, together: int) -> tuple[float, float]:
    """Images a second, and the 95th percentile of a request in seconds."""
    seconds: list[float] = []
    waiting = iter(bodies(url, paths, together))
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:

        async def one() -> None:
            for body, headers in waiting:
                began = time.perf_counter()
                said = await client.post(f"{url}/predict", content=body, headers=headers)
                seconds.append(time.perf_counter() - began)
                assert said.status_code == 200, said.text

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        took = time.perf_counter() - began
    return len(paths) / took, float(np.quantile(seconds, 0.95))


def tree_s(pid: int) -> float:
    """Processor time of a process and its descendants so far."""
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for child in task.read_text().split()
    ]
    return processor_s(pid) + sum(tree_s(child) for child in children)


@contextmanager
def served(model: Path, port: int) -> Iterator[tuple[str, int]]:
    """`calift serve` as it is started by hand: its address and process id."""
    argv = [sys.executable, "-m", "calift", "serve", str(model), "--port", str(port)]
    process = subprocess.Popen([*argv, "--device", "cpu"], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ViT-S-32", help="an open_clip name or config JSON")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=8099)
    options = parser.parse_args()
    rows: dict[tuple[int, int], list[tuple[float, ...]]] = {how: [] for how in ASKED}
    loops = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = write_images(root / "images", options.images)
        spec = parse_spec(
            {
                "name": "served",
                "model": {"name": options.config, "pretrained": None},
                "method": {"kind": "zero_shot"},
                "suite": {"id": f"folder:{root / 'images'}", "templates": "plain"},
                "train": {"device": "cpu"},
                "evaluation": {"n_resamples": 20},
            }
        )
        list(run_in_folder(spec, root / "run"))
        model = CalibratedClassifier.load(root / "run", device="cpu")
        plain_loop(model, paths[:64], options.batch)
        with served(root / "run", options.port) as (url, pid):
            asyncio.run(ask(url, paths[:64], 8, 1))
            for _ in range(options.rounds):
                began = processor_s(os.getpid())
                plain = plain_loop(model, paths, options.batch)
                loop_s = processor_s(os.getpid()) - began
                loops.append(plain)
                for clients, together in ASKED:
                    began = tree_s(pid)
                    speed, p95 = asyncio.run(ask(url, paths, clients, together))
                    took = tree_s(pid) - began
                    rows[clients, together].append((speed, speed / plain, loop_s / took, p95))
    load = os.getloadavg()[0]
    print(f"{options.config}, {options.images} JPEGs, {torch.get_num_threads()} threads, "
          f"{options.rounds} rounds, load {load:.1f}")  # fmt: skip
    print(f"plain loop, batches of {options.batch}: {np.median(loops):.1f} images/s")
    print("clients  a request  images/s  of the loop  by processor time  p95 ms")
    said = []
    for (clients, together), found in rows.items():
        speed, ratio, processor, p95 = np.median(found, axis=0)
        print(
            f"{clients:7}{together:11}{speed:10.1f}{ratio:13.2f}{processor:19.2f}{1e3 * p95:8.0f}"
        )
        said.append({"clients": clients, "together": together, "images_per_s": speed,
                     "of_plain": ratio, "of_processor": processor, "p95_s": p95})  # fmt: skip
    print(json.dumps({"plain_images_per_s": float(np.median(loops)), "served": said}))


if __name__ == "__main__":
    main()
