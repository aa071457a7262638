"""Memory of `calift serve` under thousands of hostile uploads: how large it gets, what it answers.

    python -m research.measurements.hostile MODEL             # an exported folder or a finished run
    python -m research.measurements.hostile MODEL --uploads 2000 --clients 8

`calift serve MODEL` is started with its defaults. Clients send damaged and truncated PNG, JPEG and
TIFF files, files with something in front or behind, and PNGs of a few kilobytes that claim 10,000 ×
10,000 and 50,000 × 50,000 pixels. Meanwhile the proportional set size of all its processes together
is read ten times a second, and each process's own peak at the end. Linux alone.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import numpy as np
from PIL import Image


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that claims to be so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(kind: str, side: int) -> bytes:
    """An image of noise."""
    out = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def hostile(n: int) -> list[bytes]:
    """A few of each known kind, then n good files that were damaged."""
    rng, sources = np.random.default_rng(0), [saved(k, 64) for k in ("PNG", "JPEG", "TIFF")]
    good = sources[0]
    # As many pixels as are taken, all of them real: what memory a good picture may need.
    largest = io.BytesIO()
    Image.new("RGB", (10_000, 5_000), (9, 20, 30)).save(largest, "PNG")
    found = [
        bomb(10_000, 10_000), bomb(50_000, 50_000), bomb(1, 4_000_000), bomb(7_000, 7_000),
        largest.getvalue(), good + b"<html><script>alert(1)</script>", b"<?php ?>" + good,
        b"\x1f\x8b" + good, b"%PDF-1.7 " + good, bytes(2_000_000), b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    ]  # fmt: skip
    for index in range(n):
        content = bytearray(sources[index % 3])
        for at in rng.integers(len(content), size=rng.integers(1, 12)):
            content[at] = rng.integers(256)
        cut = rng.integers(1, len(content) + 1)
        found.append(bytes(content[:cut] if index % 2 else content))
    return found


def tree(pid: int) -> list[int]:
    """A process and all below it: those that any of its threads started."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            found += tree(int(child))
    return found


def number(pid: int, file: str, name: str) -> int:
    """A figure of a process in kB; 0 of one that is gone."""
    try:
        found = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/{file}").read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def held(pid: int) -> int:
    """What all processes hold together, shared pages counted once, in kB."""
    try:
        return sum(number(one, "smaps_rollup", "Pss") for one in tree(pid))
    except OSError:
        return 0


def main() -> int:
    """Serve, send, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--uploads", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--port", type=int, default=8431)
    options = parser.parse_args()
    uploads = hostile(options.uploads)
    url = f"http://127.0.0.1:{options.port}"
    argv = [sys.executable, "-m", "calift", "serve", str(options.model),
            "--port", str(options.port), "--device", "cpu"]  # fmt: skip
    serving = subprocess.Popen(argv)
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            peak[0] = max(peak[0], held(serving.pid))

    try:
        began = time.monotonic()
        with httpx.Client(base_url=url, timeout=300) as client:
            while True:
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx.TransportError:
                    if serving.poll() is not None or time.monotonic() - began > 300:
                        raise
                time.sleep(0.2)

            def send(content: bytes) -> int:
                kind = {"content-type": "application/octet-stream"}
                return client.post("/predict", content=content, headers=kind).status_code

            assert send(saved("PNG", 64)) == 200
            before, known = held(serving.pid), set(tree(serving.pid))
            watching = threading.Thread(target=look)
            watching.start()
            began = time.monotonic()
            with ThreadPoolExecutor(options.clients) as threads:
                statuses = Counter(threads.map(send, uploads))
            took = time.monotonic() - began
            over.set()
            watching.join()
            assert send(saved("PNG", 64)) == 200
        each = sorted((number(p, "status", "VmHWM") for p in tree(serving.pid)), reverse=True)
        found = {
            "uploads": len(uploads),
            "statuses": {str(k): v for k, v in sorted(statuses.items())},
            "seconds": round(took, 1),
            "mib_before": before // 1024,
            "mib_peak": peak[0] // 1024,
            "mib_after": held(serving.pid) // 1024,
            "mib_peak_of_each_process": [kb // 1024 for kb in each],
            "processes_that_ended": len(known - set(tree(serving.pid))),
        }
        print(json.dumps(found, indent=1))
    finally:
        over.set()
        serving.terminate()
        serving.wait(60)
    return 1 if set(statuses) - {200, 422} else 0


if __name__ == "__main__":
    sys.exit(main())
