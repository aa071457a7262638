"""How much of a plain open_clip loop `calift serve` keeps.

    python benchmarks/serve.py [--config ViT-B-32] [--images 512]

A plain loop decodes and encodes one batch after the other in one process; the server gets the same
files from 1, 8 and 64 clients. Both sides run in one call, on the same cores. The model is a
randomly initialised one of open_clip (no weights are needed) with a zero-shot run's head.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

import httpx2 as httpx
import numpy as np
import torch
import uvicorn
from PIL import Image

from calift.serving.app import Server, make_app
from calift_core.jobs.folder import run_in_folder
from calift_core.schema.spec import parse_spec
from calift_core.shipping.classifier import CalibratedClassifier

CLIENTS = (1, 8, 64)


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


async def ask(url: str, paths: list[Path], clients: int) -> tuple[float, float, set[int]]:
    """Images a second, the 95th percentile of a request in seconds, and the statuses."""
    seconds: list[float] = []
    statuses: set[int] = set()
    waiting = iter(paths)
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def one() -> None:
            for path in waiting:
                began = time.perf_counter()
                said = await client.post("/predict", content=path.read_bytes())
                seconds.append(time.perf_counter() - began)
                statuses.add(said.status_code)

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        took = time.perf_counter() - began
    return len(seconds) / took, float(np.quantile(seconds, 0.95)), statuses


async def measure(server: Server, paths: list[Path], port: int) -> list[dict[str, float]]:
    """Every number of clients, the server warm."""
    web = uvicorn.Server(uvicorn.Config(make_app(server), port=port, log_level="error"))
    serving = asyncio.create_task(web.serve())
    while not web.started:
        await asyncio.sleep(0.05)
    url = f"http://127.0.0.1:{port}"
    await ask(url, paths[:64], 8)
    rows = []
    for clients in CLIENTS:
        speed, p95, statuses = await ask(url, paths, clients)
        assert statuses == {200}, statuses
        rows.append({"clients": clients, "images_per_s": speed, "p95_s": p95})
    web.should_exit = True
    await serving
    return rows


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ViT-S-32", help="an open_clip name or config JSON")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--port", type=int, default=8099)
    options = parser.parse_args()
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
        before = plain_loop(model, paths, options.batch)
        rows = asyncio.run(measure(Server(root / "run", device="cpu"), paths, options.port))
        after = plain_loop(model, paths, options.batch)
    plain = (before + after) / 2
    print(f"{options.config}, {options.images} JPEGs, {torch.get_num_threads()} threads")
    print(f"plain loop, batches of {options.batch}: {before:.1f} and {after:.1f} images/s")
    for row in rows:
        row["of_plain"] = row["images_per_s"] / plain
        print(
            f"{row['clients']:3} clients: {row['images_per_s']:.1f} images/s "
            f"({row['of_plain']:.2f} of the loop), p95 {1000 * row['p95_s']:.0f} ms"
        )
    print(json.dumps({"plain_images_per_s": plain, "served": rows}))


if __name__ == "__main__":
    main()
