"""What a result was made with: versions, hardware, source revision."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from calift_core import __version__
from calift_core.threads import SETTINGS, usable_cores

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "scipy", "pillow", "safetensors")


def environment(device: torch.device, precision: str) -> dict[str, object]:
    """A description that a reader of a report needs to make the run again."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "calift": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "usable_cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "openmp": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "precision": precision,
        "packages": packages,
        "git": _git_revision(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_revision() -> dict[str, object] | None:
    """Revision of calift's own checkout, and whether it has local changes; None outside one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()

    try:
        return {
            "revision": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
