"""Which workers are there, and what a waiting run waits for."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    Text,
    and_,
    case,
    cast,
    delete,
    exists,
    func,
    select,
    update,
)

from backend.store.engine import NOW, plain, reading, upsert, writing
from backend.store.fairness import Quotas
from backend.store.models import Run, Worker
from backend.store.queues import Live, queue_of, queue_of_device, why_waits
from calift_core.errors import NotFoundError
from calift_core.schema.spec import RunSpec
from calift_core.schema.wire.service import GpuUse, WorkerInfo

#: A worker that was silent for this many seconds is shown as gone.
WORKER_ALIVE_S = 60.0
#: One that left without a word is forgotten after a day.
WORKER_KEPT_S = 86_400.0


class Workers:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def seen(
        self,
        worker_id: str,
        *,
        host: str,
        queues: Sequence[str],
        device: str,
        run_id: str | None = None,
        trouble: str = "",
        gpus: Sequence[GpuUse] = (),
    ) -> None:
        """A worker reports in; call it at start, when it takes or leaves a run, and in between.

        Args:
            trouble: why it takes no run for the time being.
        """
        with writing(self._engine) as connection:
            now = connection.execute(select(NOW)).scalar_one()
            connection.execute(
                upsert(
                    connection,
                    Worker,
                    ("id",),
                    ("host", "queues", "device", "run_id", "trouble", "gpus", "seen_at"),
                ),
                {
                    "id": worker_id,
                    "host": host,
                    "queues": list(queues),
                    "device": device,
                    "run_id": run_id,
                    "trouble": plain(trouble),
                    "gpus": [gpu.model_dump(mode="json") for gpu in gpus],
                    "started_at": now,
                    "seen_at": now,
                },
            )

    def mark_gone(self, worker_id: str) -> None:
        with writing(self._engine) as connection:
            connection.execute(delete(Worker).where(Worker.id == worker_id))

    def drain(self, worker_id: str, *, by: str | None) -> WorkerInfo:
        """Ask a worker to take no run after the one that it works on, or to take runs again.

        Args:
            by: who asks it to stop; None: it takes runs again.

        Raises:
            NotFoundError: no worker of this id has reported in lately.
        """
        with writing(self._engine) as connection:
            connection.execute(update(Worker).where(Worker.id == worker_id).values(drained_by=by))
        found = next((w for w in self.recent() if w.id == worker_id), None)
        if found is None:
            raise NotFoundError(f"no worker {worker_id!r} has reported in during the last day.")
        return found

    def drained_by(self, worker_id: str) -> str | None:
        """Who asked the worker to take no run; None: nobody."""
        with reading(self._engine) as connection:
            return connection.execute(
                select(Worker.drained_by).where(Worker.id == worker_id)
            ).scalar()

    def why_waits(self, spec: RunSpec) -> str:
        """What a run of this spec would wait for; empty when a worker would take it at once."""
        with reading(self._engine) as connection:
            return why_waits(queue_of(spec), live_workers(connection))

    def why_device_waits(self, device: str) -> str:
        with reading(self._engine) as connection:
            return why_waits(queue_of_device(device), live_workers(connection))

    def recent(self) -> list[WorkerInfo]:
        """The workers that have reported in during the last day, the newest first."""
        alive = (Worker.seen_at > NOW - WORKER_ALIVE_S).label("alive")
        run_name = func.coalesce(Run.name, "").label("run_name")
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(*Worker.__table__.columns, alive, run_name, Run.progress)
                .outerjoin(Run, Run.id == Worker.run_id)
                .where(Worker.seen_at >= NOW - WORKER_KEPT_S)
                .order_by(Worker.seen_at.desc(), Worker.id)
            ).all()
        return [WorkerInfo.model_validate(row, from_attributes=True) for row in rows]


def why_jobs_wait(
    connection: Connection, quotas: Quotas, rows: Sequence[Row[*tuple[Any, ...]]]
) -> dict[str, str]:
    """Why each of these jobs waits, by its id; those that do not wait are absent.

    Args:
        quotas: what each owner may have at work.
        rows: of `Run`.
    """
    waiting = [row for row in rows if row.phase == "QUEUED"]
    live = live_workers(connection) if waiting else []
    own = {
        owner: quotas.waits_for_own(connection, owner)
        for owner in {row.submitted_by for row in waiting}
    }
    return {row.id: own[row.submitted_by] or why_waits(row.queue, live) for row in waiting}


_WELL = and_(Worker.trouble == "", Worker.drained_by.is_(None))
_LIVE = (
    select(
        case((_WELL, ""), else_=Worker.host).label("place"),
        cast(Worker.queues, Text).label("served"),
        Worker.run_id.is_not(None).label("busy"),
        Worker.trouble,
        Worker.drained_by,
        func.count().label("n"),
    )
    .where(Worker.seen_at > NOW - WORKER_ALIVE_S)
    .group_by("place", "served", "busy", Worker.trouble, Worker.drained_by)
)


def live_workers(connection: Connection) -> list[Live]:
    """The workers that are there, in trouble or not; of those that are well without their host.

    Many are alike, and are counted in the database.
    """
    rows = connection.execute(_LIVE).all()
    return [
        live
        for r in rows
        for live in r.n
        * [
            Live(
                r.place,
                tuple(json.loads(r.served)),
                bool(r.busy),
                r.trouble or drained_words(r.drained_by),
            )
        ]
    ]


def auto_queue(connection: Connection) -> str:
    """The queue that a run of `auto` is in now, as `backend.store.queues.queue_for` says."""
    serves = cast(Worker.queues, Text).contains('"gpu"')
    there = exists().where(Worker.seen_at > NOW - WORKER_ALIVE_S, _WELL, serves)
    return "gpu" if connection.execute(select(there)).scalar_one() else "cpu"


def drained_words(by: str | None) -> str:
    """Why a drained worker takes no run; empty for one that is not."""
    return "" if by is None else f"{by} asked it to take no run for now."
