"""A disk that is soon full."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A real file system of its own of so many MiB; the test is skipped where none can be had."""
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "calift-test", str(folder)],
        check=False,
        capture_output=True,
    )
    if not mounted or mounted.returncode != 0:
        pytest.skip("a small file system of its own needs root and the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
