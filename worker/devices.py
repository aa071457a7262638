"""Which GPUs this worker's runners get, held by locks, and how they are used. Torch-free."""

import csv
import logging
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import BaseFileLock

from backend.store.queues import multi_queues
from calift_core.files import try_lock
from calift_core.schema.wire.service import GpuUse

log = logging.getLogger(__name__)

#: A driver that takes longer is one that hangs; the worker reports in without it.
_LONGEST_S = 5.0


@dataclass(frozen=True)
class Gpu:
    index: str
    uuid: str
    name: str
    memory_mib: str


@dataclass(frozen=True)
class Device:
    """What a worker computes on.

    Attributes:
        environment: what its runners get on top, `CUDA_VISIBLE_DEVICES` above all.
        lock: keeps other workers of this machine off the GPU while it is held.
    """

    label: str
    queues: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    lock: BaseFileLock | None = None
    more_locks: tuple[BaseFileLock, ...] = ()


def parse_gpus(text: str) -> list[Gpu]:
    """GPUs from `nvidia-smi --query-gpu=index,uuid,name,memory.total --format=csv,noheader`."""
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return [Gpu(*row) for row in rows if len(row) == 4 and row[1].startswith("GPU-")]


def visible_gpus(gpus: list[Gpu], visible: str | None) -> list[Gpu]:
    """Those that `CUDA_VISIBLE_DEVICES` leaves; None leaves all, and an unknown entry ends it."""
    if visible is None:
        return gpus
    found: list[Gpu] = []
    for entry in (part.strip() for part in visible.split(",")):
        match = next(
            (g for g in gpus if g.index == entry or (entry and g.uuid.startswith(entry))), None
        )
        if match is None:
            break
        found.append(match)
    return found


def take_device(locks: Path, environment: Mapping[str, str], *, count: int = 1) -> Device:
    """Take the first free GPUs, else an Apple GPU, else the CPU.

    Args:
        locks: folder of the lock files, shared by the workers of this machine.
        environment: `PATH` finds `nvidia-smi`, `CUDA_VISIBLE_DEVICES` narrows the choice.
        count: GPUs that are wanted; fewer are taken where fewer are free.
    """
    gpus = visible_gpus(_gpus(environment), environment.get("CUDA_VISIBLE_DEVICES"))
    locks.mkdir(parents=True, exist_ok=True, mode=0o700)
    taken: list[tuple[Gpu, BaseFileLock]] = []
    for gpu in gpus:
        lock = try_lock(locks / f"{gpu.uuid}.lock") if len(taken) < count else None
        if lock is not None:
            taken.append((gpu, lock))
    if taken:
        if len(taken) < count:
            log.warning("%d GPUs are wanted (CALIFT_WORKER_GPUS), %d are free", count, len(taken))
        first, n = taken[0][0], len(taken)
        return Device(
            label=f"cuda: {f'{n} × ' if n > 1 else ''}{first.name} ({first.memory_mib} MiB)",
            queues=(*multi_queues(n), "gpu", "cpu"),
            environment={"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu, _ in taken)},
            lock=taken[0][1],
            more_locks=tuple(lock for _, lock in taken[1:]),
        )
    if not gpus:
        if sys.platform == "darwin" and platform.machine() == "arm64":
            return Device(label="mps: Apple GPU", queues=("mps", "cpu"))
        return Device(label="cpu", queues=("cpu",))
    log.warning("other workers hold all %d GPUs; this one computes on the CPU", len(gpus))
    return Device(label="cpu", queues=("cpu",), environment={"CUDA_VISIBLE_DEVICES": ""})


def _gpus(environment: Mapping[str, str]) -> list[Gpu]:
    try:
        path = environment.get("PATH")
        return parse_gpus(_nvidia_smi("index,uuid,name,memory.total", path=path, timeout_s=30))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("nvidia-smi does not answer, so no GPU is used: %s", error)
        return []


def _nvidia_smi(fields: str, *, timeout_s: float, path: str | None = None) -> str:
    """What the driver says of each GPU; nothing where there is none."""
    program = shutil.which("nvidia-smi", path=path)
    if program is None:
        return ""
    argv = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout_s, check=True
    ).stdout


def parse_usage(text: str, uuids: frozenset[str] | None = None) -> list[GpuUse]:
    """GPUs from what `nvidia-smi` prints; `[N/A]`, as of a slice of a GPU, becomes null.

    Args:
        text: of `nvidia-smi --query-gpu=uuid,name,memory.used,memory.total,utilization.gpu
            --format=csv,noheader,nounits`.
        uuids: these alone; None: all.
    """
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return [
        GpuUse(
            name=row[1],
            memory_used_mib=_number(row[2]),
            memory_total_mib=_number(row[3]),
            utilisation=None if _number(row[4]) is None else (_number(row[4]) or 0) / 100,
        )
        for row in rows
        if len(row) == 5 and row[0].startswith("GPU-") and (uuids is None or row[0] in uuids)
    ]


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None


def gpu_usage(environment: Mapping[str, str]) -> list[GpuUse]:
    """How the GPUs of a worker's runners are used right now.

    Args:
        environment: that its runners get; `CUDA_VISIBLE_DEVICES` names them by their UUID.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    uuids = frozenset(part.strip() for part in visible.split(",") if part.startswith("GPU-"))
    if not uuids:
        return []
    try:
        fields = "uuid,name,memory.used,memory.total,utilization.gpu"
        return parse_usage(_nvidia_smi(fields, timeout_s=_LONGEST_S), uuids)
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("nvidia-smi does not answer: %s", error)
        return []
