"""The service in numbers, for monitoring: a handful of statements, each a count."""

from dataclasses import dataclass, field

from sqlalchemy import Engine, case, func, select

from backend.store.engine import NOW, reading
from backend.store.models import ArtifactRow, Outbox, Run
from backend.store.states import waiting, working


@dataclass(frozen=True)
class Numbers:
    """What is counted at one moment.

    Attributes:
        runs: phase → runs.
        queued: queue → runs that wait.
        oldest_queued_s: queue → seconds that the longest has waited.
        owners_waiting: owners who have a run that waits.
        leases_expired: those that are over and not swept yet.
        shortest_lease_s: seconds until the next one is over; None: there is none.
        oldest_unsent_s: seconds that the oldest of them has waited.
    """

    runs: dict[str, int] = field(default_factory=dict)
    queued: dict[str, int] = field(default_factory=dict)
    oldest_queued_s: dict[str, float] = field(default_factory=dict)
    owners_waiting: int = 0
    leases: int = 0
    leases_expired: int = 0
    shortest_lease_s: float | None = None
    unsent: int = 0
    oldest_unsent_s: float = 0.0
    files: int = 0
    file_bytes: int = 0


class Gauges:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> Numbers:
        """Everything, now."""
        queued = (
            select(Run.queue, func.count(), NOW - func.min(Run.queued_at))
            .where(waiting(Run))
            .group_by(Run.queue)
        )
        over = case((Run.lease_expires < NOW, 1), else_=0)
        leases = select(func.count(), func.sum(over), func.min(Run.lease_expires) - NOW).where(
            working(Run)
        )
        unsent = (
            select(func.count(), NOW - func.min(Outbox.created_at))
            .join(Run, Run.id == Outbox.run_id)
            .where(Outbox.sent_at.is_(None), Run.phase == "QUEUED")
        )
        contents = (
            select(func.count().label("n"), func.max(ArtifactRow.size_bytes).label("size"))
            .group_by(ArtifactRow.sha256)
            .subquery()
        )
        with reading(self._engine) as connection:
            runs = connection.execute(select(Run.phase, func.count()).group_by(Run.phase)).all()
            queues = connection.execute(queued).all()
            owners = connection.execute(
                select(func.count(func.distinct(func.coalesce(Run.submitted_by, "")))).where(
                    waiting(Run)
                )
            ).scalar_one()
            held, expired, left = connection.execute(leases).one()
            messages, oldest = connection.execute(unsent).one()
            files, size = connection.execute(
                select(func.sum(contents.c.n), func.sum(contents.c.size))
            ).one()
        return Numbers(
            runs={phase: int(n) for phase, n in runs},
            queued={queue: int(n) for queue, n, _ in queues},
            oldest_queued_s={queue: max(0.0, float(age)) for queue, _, age in queues},
            owners_waiting=int(owners),
            leases=int(held),
            leases_expired=int(expired or 0),
            shortest_lease_s=None if left is None else float(left),
            unsent=int(messages),
            oldest_unsent_s=max(0.0, float(oldest or 0.0)),
            files=int(files or 0),
            file_bytes=int(size or 0),
        )
