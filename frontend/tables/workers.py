"""Workers as a list shows them, on the page and by the command."""

from collections.abc import Sequence

from calift_core.schema.wire.service import WorkerInfo
from frontend import text
from frontend.tables import Column, Table


def workers(found: Sequence[WorkerInfo]) -> Table:
    rows = [
        {
            "id": w.id,
            "host": w.host,
            "state": state(w),
            "device": w.device,
            "gpu": _gpu(w),
            "queues": ", ".join(w.queues),
            "run": w.run_name or w.run_id,
            "progress": _progress(w),
            "seen": text.age(w.seen_at),
            "seen_by": -w.seen_at.timestamp(),
        }
        for w in found
    ]
    columns = [
        Column("host", "Host"),
        Column("state", "State", "mark"),
        Column("device", "Device"),
        *([Column("gpu", "GPU")] if any(w.gpus for w in found) else []),
        Column("queues", "Queues"),
        Column("run", "Works on", "open"),
        Column("progress", "Progress"),
        Column("seen", "Last heartbeat"),
    ]
    return Table(columns, rows)


def state(worker: WorkerInfo) -> text.Mark:
    if not worker.alive:
        return text.Mark("silent", "○", "gray")
    if worker.drained_by is not None:
        later = ", after this run" if worker.run_id else ""
        return text.Mark(f"drained by {worker.drained_by}{later}", "◌", "gray")
    if worker.trouble:
        return text.Mark(f"out: {worker.trouble}", "▲", "orange")
    return text.Mark("busy" if worker.run_id else "idle", "✓", "green")


def _gpu(worker: WorkerInfo) -> str:
    words = []
    for gpu in worker.gpus:
        used, total = gpu.memory_used_mib, gpu.memory_total_mib
        parts = [] if gpu.utilisation is None else [text.percent(gpu.utilisation)]
        if used is not None and total is not None:
            parts.append(f"{text.size(used * 2**20)} of {text.size(total * 2**20)}")
        words.append(", ".join(parts))
    return "; ".join(words)


def _progress(worker: WorkerInfo) -> str:
    p = worker.progress
    if worker.run_id is None or p is None:
        return ""
    return f"{p.phase} {p.step:,} of {p.total_steps:,}" if p.total_steps else p.phase
