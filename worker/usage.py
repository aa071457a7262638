"""How a worker's GPU is used, as the driver says. Torch-free; nothing where there is none."""

import csv
import logging
import shutil
import subprocess
from collections.abc import Mapping

from calift_core.schema.wire.service import GpuUse

log = logging.getLogger(__name__)

_QUERY = (
    "--query-gpu=uuid,name,memory.used,memory.total,utilization.gpu",
    "--format=csv,noheader,nounits",
)
#: A driver that takes longer is one that hangs; the worker reports in without it.
_LONGEST_S = 5.0


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
    program = shutil.which("nvidia-smi")
    if not uuids or program is None:
        return []
    try:
        done = subprocess.run(
            [program, *_QUERY], capture_output=True, text=True, timeout=_LONGEST_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("nvidia-smi does not answer: %s", error)
        return []
    return parse_usage(done.stdout, uuids)
