"""Whose turn it is among the owners of waiting runs, and how much each may have.

Within a priority the next run is of the owner who has the fewest runs at work; among those with as
many, of the one who was served longest ago. So one who queues a thousand runs delays nobody else by
more than one run a worker. Runs from before owners were kept count as one owner's.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, select
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Subquery

from backend.store.engine import upsert
from backend.store.errors import ArtifactQuotaError, QueueFullError
from backend.store.models import ArtifactRow, Run, Turn
from backend.store.states import waiting, working


def _owner(column: Any) -> ColumnElement[str]:
    return func.coalesce(column, "")


def _is_of(owner: str | None) -> ColumnElement[bool]:
    """Whether a run is of this owner, in a form that an index answers."""
    return Run.submitted_by == owner if owner else Run.submitted_by.is_(None)


@dataclass(frozen=True)
class Fairness:
    """The part of a claim's statement that keeps owners apart.

    Attributes:
        working: owner → runs at work.
    """

    working: Subquery

    def joined(self, query: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
        """A query of runs that may be ordered by turns."""
        owner = _owner(Run.submitted_by)
        return query.outerjoin(self.working, self.working.c.owner == owner).outerjoin(
            Turn, Turn.owner == owner
        )

    @property
    def at_work(self) -> ColumnElement[int]:
        """How many runs of the run's owner are at work."""
        return func.coalesce(self.working.c.n, 0)

    @property
    def order(self) -> tuple[ColumnElement[Any], ...]:
        """Who has least first, then who waited longest for a turn."""
        return self.at_work, func.coalesce(Turn.at, 0.0)


def fairness() -> Fairness:
    counted = (
        select(_owner(Run.submitted_by).label("owner"), func.count().label("n"))
        .where(working(Run))
        .group_by(Run.submitted_by)
    )
    return Fairness(counted.subquery("working"))


def take_turn(connection: Connection, owner: str | None, now: float) -> None:
    connection.execute(
        upsert(connection, Turn, ("owner",), ("at",)), {"owner": owner or "", "at": now}
    )


@dataclass(frozen=True)
class Quotas:
    """What an owner may have; 0 sets no limit.

    Attributes:
        artifact_bytes: of stored files; one who has more submits nothing.
    """

    queued: int = 0
    running: int = 0
    artifact_bytes: int = 0

    def check(self, connection: Connection, owner: str | None) -> None:
        """Raise unless an owner may queue one more run.

        Raises:
            QueueFullError: too many wait.
            ArtifactQuotaError: the stored files take up too much.
        """
        if self.queued:
            queued = connection.execute(
                select(func.count()).where(waiting(Run), _is_of(owner))
            ).scalar_one()
            if queued >= self.queued:
                raise QueueFullError(
                    f"{queued} runs of {owner or 'nobody'} are waiting, and {self.queued} may.",
                    hint="Wait for some to start, or cancel some.",
                )
        if self.artifact_bytes:
            used = stored_bytes(connection, owner)
            if used >= self.artifact_bytes:
                raise ArtifactQuotaError(
                    f"the files of {owner or 'nobody'}'s runs take up {used:,} bytes, and "
                    f"{self.artifact_bytes:,} may.",
                    hint="Delete runs, or have old checkpoints removed with `calift prune`.",
                )

    def waits_for_own(self, connection: Connection, owner: str | None) -> str:
        """Why a run of an owner waits although a worker is free; empty where it does not."""
        if not self.running:
            return ""
        at_work = connection.execute(
            select(func.count()).where(working(Run), _is_of(owner))
        ).scalar_one()
        if at_work < self.running:
            return ""
        return f"{at_work} runs of {owner or 'nobody'} are at work, and {self.running} may be."


def stored_bytes(connection: Connection, owner: str | None) -> int:
    """What an owner's files take up; a content that several name counts once."""
    contents = (
        select(ArtifactRow.sha256, func.max(ArtifactRow.size_bytes).label("size"))
        .join(Run, Run.id == ArtifactRow.run_id)
        .where(_is_of(owner))
        .group_by(ArtifactRow.sha256)
        .subquery()
    )
    return int(connection.execute(select(func.coalesce(func.sum(contents.c.size), 0))).scalar_one())
