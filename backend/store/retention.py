"""What may leave after a while: shown first, then removed.

Rows alone are removed here; the collector then finds that nobody names their contents.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, select
from sqlalchemy.sql.elements import ColumnElement

from backend.store.engine import NOW, reading, writing
from backend.store.models import ArtifactRow, Run
from calift_core.schema.wire.operations import Prunable, Pruned
from calift_core.schema.wire.runs import TERMINAL_PHASES

#: Contents that are looked at in one statement.
_AT_ONCE = 500


class Retention:
    """Finds and removes what is old."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def preview(self, kinds: Sequence[Prunable], *, age_s: float) -> Pruned:
        """What `prune` would remove now.

        Args:
            age_s: how long ago the run must have ended.
        """
        with reading(self._engine) as connection:
            return _found(connection, kinds, age_s, done=False)[0]

    def prune(self, kinds: Sequence[Prunable], *, age_s: float) -> tuple[Pruned, list[str]]:
        """Remove it; what was removed, and the SHA-256s that may be unreferenced now.

        Args:
            age_s: how long ago the run must have ended.
        """
        with writing(self._engine) as connection:
            found, digests = _found(connection, kinds, age_s, done=True)
            if "archived_runs" in kinds:
                connection.execute(delete(Run).where(*_runs(age_s, archived=True)))
            for kind in kinds:
                if kind != "archived_runs":
                    connection.execute(delete(ArtifactRow).where(*_files(kind, age_s)))
            return found, digests


def _runs(age_s: float, *, archived: bool = False) -> list[ColumnElement[bool]]:
    ended = [Run.phase.in_(tuple(TERMINAL_PHASES)), Run.finished_at < NOW - age_s]
    return [*ended, Run.archived.is_(True)] if archived else ended


def _files(kind: Prunable, age_s: float) -> list[ColumnElement[bool]]:
    if kind == "checkpoints":
        runs = select(Run.id).where(*_runs(age_s))
        return [ArtifactRow.kind.in_(("checkpoint", "state")), ArtifactRow.run_id.in_(runs)]
    runs = select(Run.id).where(*_runs(age_s, archived=True))
    if kind == "archived_predictions":
        return [ArtifactRow.kind == "predictions", ArtifactRow.run_id.in_(runs)]
    return [ArtifactRow.run_id.in_(runs)]


def _found(
    connection: Connection, kinds: Sequence[Prunable], age_s: float, *, done: bool
) -> tuple[Pruned, list[str]]:
    """What kinds of thing amount to; a content that others name as well frees nothing."""
    rows: dict[tuple[str, str], Any] = {}
    for kind in kinds:
        query = select(ArtifactRow.run_id, ArtifactRow.name, ArtifactRow.sha256)
        query = query.add_columns(ArtifactRow.size_bytes).where(*_files(kind, age_s))
        rows |= {(r.run_id, r.name): r for r in connection.execute(query).all()}
    runs = 0
    if "archived_runs" in kinds:
        where = _runs(age_s, archived=True)
        runs = connection.execute(select(func.count()).select_from(Run).where(*where)).scalar_one()
    named: dict[str, int] = {}
    sizes = {row.sha256: row.size_bytes for row in rows.values()}
    for row in rows.values():
        named[row.sha256] = named.get(row.sha256, 0) + 1
    freed = 0
    digests = list(named)
    for at in range(0, len(digests), _AT_ONCE):
        piece = digests[at : at + _AT_ONCE]
        counted = select(ArtifactRow.sha256, func.count()).where(ArtifactRow.sha256.in_(piece))
        for sha256, count in connection.execute(counted.group_by(ArtifactRow.sha256)).all():
            freed += sizes[sha256] if count == named[sha256] else 0
    shown = sorted({row.run_id for row in rows.values()})
    return (
        Pruned(
            done=done,
            kinds=list(kinds),
            older_than_days=age_s / 86_400.0,
            runs=int(runs),
            files=len(rows),
            freed_bytes=freed,
            run_ids=shown[:200],
        ),
        digests,
    )
