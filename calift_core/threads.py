"""How many threads torch gets on a CPU, and how they wait. To be set before torch is loaded.

GNU's OpenMP, which torch comes with on Linux, lets a thread that waits for the others spin about
300,000 times before it sleeps. Beside a busy process the others are late, since one of them shares
its core, and the spinning ones take even more from it: a step can take thirty times as long. A
thousand times, some tens of microseconds, are enough while every thread has a core of its own, and
little is lost when it has not. `benchmarks/threads.py` measures that; docs/deploy.md has its table.

The number of threads is left to torch, which takes a thread for each core that it may run on,
unless a control group allows less processor time than that (as containers do), which it does not
see. What a person has set stays.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

#: Variables that decide about threads or their waiting.
SETTINGS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "KMP_BLOCKTIME",
    "KMP_LIBRARY",
)
#: Of these, how many threads there are.
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

#: Turns of the waiting loop of GNU's OpenMP. Those of LLVM and Intel let others in while they spin,
#: and less of it did not help them.
SPIN_COUNT = 1000

_ROOT = Path("/")


def settle() -> None:
    """Set what is chosen in this process's environment."""
    os.environ.update(openmp_environment(os.environ))


def openmp_environment(
    environ: Mapping[str, str], *, root: Path = _ROOT, allowed: set[int] | None = None
) -> dict[str, str]:
    """The variables to add to an environment that torch is to be loaded in.

    Args:
        environ: what a person has set there stays; empty values count as not set.
        allowed: processors that may be run on; None asks the operating system.
    """
    chosen = {}
    if not any(environ.get(name) for name in _POLICIES):
        chosen["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    if not any(environ.get(name) for name in COUNTS):
        cores = usable_cores(root=root, allowed=allowed)
        if cores < _cores(root, allowed):
            chosen["OMP_NUM_THREADS"] = str(cores)
    return chosen


def usable_cores(*, root: Path = _ROOT, allowed: set[int] | None = None) -> int:
    """Whole cores that this process can keep busy, at least 1.

    Those of its affinity, two hardware threads of a core counted once, within the processor time
    that its control groups (either version) allow.
    """
    cores = _cores(root, allowed)
    return max(1, min(cores, math.floor(min(_limits(root), default=cores))))


#: More workers than these wait for each other's memory and disk.
MOST_WORKERS = 8


def loader_workers(requested: int | None, device: str, *, processes: int = 1) -> int:
    """Processes that decode images beside a model.

    Args:
        requested: what a spec says; None leaves it open.
        device: kind of the model's device. One on the CPU leaves no core to others.
        processes: models on this host, which share its cores.
    """
    if requested is not None:
        return requested
    return 0 if device == "cpu" else max(0, min(MOST_WORKERS, usable_cores() // processes - 1))


def _cores(root: Path, allowed: set[int] | None) -> int:
    if allowed is None:
        if not hasattr(os, "sched_getaffinity"):
            return os.cpu_count() or 1
        allowed = os.sched_getaffinity(0)
    topology = root / "sys/devices/system/cpu"
    # A processor whose siblings cannot be read stands for itself.
    return len(
        {_text(topology / f"cpu{n}/topology/thread_siblings_list") or str(n) for n in allowed}
    )


def _limits(root: Path) -> Iterator[float]:
    """Cores that each control group around this process allows, where it allows less than all."""
    mounts = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if not controllers:
            bases = [mounts, mounts / "unified"]
        elif "cpu" in controllers.split(","):
            bases = [mounts / controllers, mounts / "cpu"]
        else:
            continue
        inner = Path(path.lstrip("/"))
        # A container may be told the path outside of it: what is not there is passed over.
        for base in bases:
            for group in (inner, *inner.parents):
                with suppress(ValueError, ZeroDivisionError):
                    yield _quota(base / group, version=1 if controllers else 2)


def _quota(group: Path, *, version: int) -> float:
    """Cores that a group allows.

    Raises:
        ValueError: it says nothing, or sets no limit.
    """
    if version == 1:
        quota = _text(group / "cpu.cfs_quota_us")
        period = _text(group / "cpu.cfs_period_us")
    else:
        quota, period = _text(group / "cpu.max").split()
    if int(quota) <= 0:  # -1 in the first version
        raise ValueError("no limit")
    return int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
