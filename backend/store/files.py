"""The names of a run's files. Their bytes lie in the `ArtifactStore`, by their SHA-256."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Connection, CursorResult, Engine, Row, delete, insert, select

from backend.store.engine import NOW, reading, upsert, writing
from backend.store.models import ArtifactRow, Run
from backend.store.states import fenced, must_exist
from calift_core.errors import NotFoundError
from calift_core.schema.wire.runs import TERMINAL_PHASES, Artifact


def name_file(connection: Connection, **values: Any) -> None:
    """Name a stored file as a run's; `values` are the columns of its row, the name may be known."""
    replaced = ("kind", "sha256", "size_bytes", "attempt", "created_at")
    connection.execute(upsert(connection, ArtifactRow, ("run_id", "name"), replaced), values)


class Files:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(
        self, run_id: str, attempt: int, *, name: str, kind: str, sha256: str, size_bytes: int
    ) -> bool:
        """Name a stored file as the run's; the same name is replaced. False: fenced off."""
        with writing(self._engine) as connection:
            row = fenced(connection, run_id, attempt, attempt=attempt)
            if row is None:
                return False
            name_file(
                connection,
                run_id=run_id,
                name=name,
                kind=kind,
                sha256=sha256,
                size_bytes=size_bytes,
                attempt=attempt,
                created_at=row.now,
            )
            return True

    def put_state(
        self,
        run_id: str,
        attempt: int,
        step: int,
        files: Mapping[str, tuple[str, int]],
        *,
        keep: int = 2,
    ) -> list[str] | None:
        """Name a checkpoint as what a later attempt goes on from, whole; older ones are forgotten.

        Args:
            step: of the checkpoint.
            files: name → SHA-256 and size of the stored content.
            keep: how many are kept, this one included.

        Returns:
            The SHA-256s of what is forgotten; None: fenced off.
        """
        with writing(self._engine) as connection:
            row = fenced(connection, run_id, attempt, attempt=attempt)
            if row is None:
                return None
            mine = f"states/{step:08d}/"
            stored = connection.execute(
                select(ArtifactRow.name, ArtifactRow.sha256, ArtifactRow.created_at)
                .where(ArtifactRow.run_id == run_id, ArtifactRow.kind == "state")
                .order_by(ArtifactRow.created_at.desc(), ArtifactRow.name.desc())
            ).all()
            steps = dict.fromkeys([mine, *(r.name[: r.name.rindex("/") + 1] for r in stored)])
            kept = tuple(steps)[:keep]
            old = [r for r in stored if not r.name.startswith(kept) or r.name.startswith(mine)]
            connection.execute(
                delete(ArtifactRow).where(
                    ArtifactRow.run_id == run_id, ArtifactRow.name.in_([r.name for r in old])
                )
            )
            connection.execute(
                insert(ArtifactRow),
                [
                    {
                        "run_id": run_id,
                        "name": mine + name,
                        "kind": "state",
                        "sha256": sha256,
                        "size_bytes": size_bytes,
                        "attempt": attempt,
                        "created_at": row.now,
                    }
                    for name, (sha256, size_bytes) in files.items()
                ],
            )
            return [r.sha256 for r in old]

    def drop_old_states(self, *, age_s: float) -> int:
        """Forget the checkpoints of runs that ended so long ago; how many files that were."""
        ended = select(Run.id).where(
            Run.phase.in_(tuple(TERMINAL_PHASES)), Run.finished_at < NOW - age_s
        )
        with writing(self._engine) as connection:
            result = connection.execute(
                delete(ArtifactRow).where(
                    ArtifactRow.kind == "state", ArtifactRow.run_id.in_(ended)
                )
            )
            return int(cast("CursorResult[Any]", result).rowcount)

    def of_run(self, run_id: str, *, kind: str | None = None) -> list[Artifact]:
        """A run's files by name, of one kind or of all but `state`: those are no result.

        Raises:
            NotFoundError: no such run.
        """
        query = select(*ArtifactRow.__table__.columns).where(ArtifactRow.run_id == run_id)
        query = query.where(
            ArtifactRow.kind != "state" if kind is None else ArtifactRow.kind == kind
        )
        with reading(self._engine) as connection:
            must_exist(connection, run_id)
            rows = connection.execute(query.order_by(ArtifactRow.name)).all()
        return [_artifact(row) for row in rows]

    def get(self, run_id: str, name: str) -> Artifact:
        """One file of a run.

        Raises:
            NotFoundError: no such run or file.
        """
        with reading(self._engine) as connection:
            must_exist(connection, run_id)
            row = connection.execute(
                select(*ArtifactRow.__table__.columns).where(
                    ArtifactRow.run_id == run_id, ArtifactRow.name == name
                )
            ).first()
        if row is None:
            raise NotFoundError(f"run {run_id} has no file {name!r}.")
        return _artifact(row)

    def referenced(self, digests: Sequence[str]) -> set[str]:
        """Which of these SHA-256s a run still names."""
        found: set[str] = set()
        with reading(self._engine) as connection:
            for at in range(0, len(digests), 500):
                piece = list(digests[at : at + 500])
                found.update(
                    connection.execute(
                        select(ArtifactRow.sha256).where(ArtifactRow.sha256.in_(piece))
                    ).scalars()
                )
        return found


def _artifact(row: Row[*tuple[Any, ...]]) -> Artifact:
    return Artifact.model_validate(row, from_attributes=True)
