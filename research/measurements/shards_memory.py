"""Memory of a process that reads every image of a large set of shards, listed and listed before.

`python -m research.measurements.shards_memory [--images 100000] [--folder FOLDER]` writes shards of
small JPEGs (1,000 in each), then reads the set in fresh processes: at a tenth of the images and at
all
of them. Flat memory means that the last is no larger than the first but for the columns that say
where each image lies.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

_IN_A_SHARD = 1_000
_CLASSES = 10


def write_shards(folder: Path, n: int) -> None:
    """Shards as clip-benchmark's exporter lays them out, with a few pictures again and again."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(64):
        file = io.BytesIO()
        small = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64)).save(file, "JPEG")
        pictures.append(file.getvalue())
    (folder / "train").mkdir(parents=True)
    names = "".join(f"class {i}\n" for i in range(_CLASSES))
    (folder / "classnames.txt").write_text(names)
    for shard in range(-(-n // _IN_A_SHARD)):
        with tarfile.open(folder / "train" / f"{shard}.tar", "w") as tar:
            for i in range(shard * _IN_A_SHARD, min(n, (shard + 1) * _IN_A_SHARD)):
                label = str(i % _CLASSES).encode()
                for name, data in ((f"s{i:07d}.cls", label), (f"s{i:07d}.jpg", pictures[i % 64])):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def anonymous_mib() -> float:
    """Memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def read_all(folder: str) -> None:
    """Load the set and decode every image; prints what that took."""
    from calift_core.data.suites import named_suite
    from calift_core.schema.suite import SuiteSpec

    before, start = anonymous_mib(), time.monotonic()
    family, wanted = named_suite(SuiteSpec(id=f"wds:{folder}"))
    found = family.load(wanted)
    listed, listing = anonymous_mib(), time.monotonic() - start
    n, most = 0, 0.0
    for images in found.parts.values():
        for position in range(len(images)):
            images.image(position)
            n += 1
            if n % 1_000 == 0:
                most = max(most, anonymous_mib())
    took = time.monotonic() - start
    print(
        json.dumps(
            {
                "images": n, "start_mib": round(before, 1), "listed_mib": round(listed, 1),
                "most_mib": round(most, 1), "listing_s": round(listing, 1), "all_s": round(took, 1),
            }
        )
    )  # fmt: skip


def main() -> None:
    """Write the shards and read them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.read:
        read_all(asked.read)
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        for n in (asked.images // 10, asked.images):
            folder = Path(temporary) / f"{n}"
            write_shards(folder, n)
            for home in ("listed for the first time", "from the list that was kept"):
                environment = {**os.environ, "CALIFT_HOME": f"{temporary}/home"}
                argv = [sys.executable, __file__, "--read", str(folder)]
                done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, text=True)
                if done.returncode:
                    sys.exit(f"{home}: it ended with status {done.returncode}")
                print(f"{home}: {done.stdout.strip()}")


if __name__ == "__main__":
    main()
