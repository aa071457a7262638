"""What a runner says, stored in its order and behind the fence."""

from collections.abc import Sequence

from sqlalchemy import Engine, update

from backend.store.engine import NOW, writing
from backend.store.models import Run
from backend.store.rows import Batch, flush, put_points, write_log
from backend.store.states import add_state_event, fenced
from calift_core.schema.records import Record
from calift_core.schema.wire.runs import Progress

#: Points of curves that are put back in one transaction: other writers wait meanwhile.
_RESTORED_AT_ONCE = 1000


class Records:
    """Takes the records and the log of a run from its worker."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(
        self,
        run_id: str,
        attempt: int,
        records: Sequence[Record],
        progress: Progress | None = None,
    ) -> bool:
        """Store what the runner said, all or nothing, in its order. False: fenced off.

        Args:
            progress: what it comes to, if more is known than the records say.

        A `resumed` record deletes the metrics and spectra after its step in the same transaction.
        """
        with writing(self._engine) as connection:
            started = connection.execute(
                update(Run)
                .where(Run.id == run_id, Run.attempt == attempt, Run.phase == "STARTING")
                .values(phase="RUNNING", event_seq=Run.event_seq + 1)
                .returning(Run.event_seq, NOW.label("now"))
            ).first()
            if started is not None:
                add_state_event(
                    connection, run_id, started.event_seq, attempt, "RUNNING", started.now
                )
            # The row is locked from here on. The counters are advanced once, when the number of
            # events is known.
            row = fenced(connection, run_id, attempt, attempt=attempt)
            if row is None:
                return False
            batch = Batch(run_id, attempt, row.now)
            for item in records:
                batch.take(item)
            batch.progress = progress or batch.progress
            flush(connection, batch, row.event_seq, row.log_bytes)
            return True

    def restore(self, run_id: str, attempt: int, points: Sequence[Record]) -> bool:
        """Store points of curves that earlier attempts measured. False: fenced off.

        Idempotent by (name, step), and by step for spectra. Nothing is deleted, and nobody is told:
        it happened before.
        """
        for at in range(0, max(1, len(points)), _RESTORED_AT_ONCE):
            with writing(self._engine) as connection:
                row = fenced(connection, run_id, attempt, attempt=attempt)
                if row is None:
                    return False
                batch = Batch(run_id, attempt, row.now)
                for item in points[at : at + _RESTORED_AT_ONCE]:
                    batch.take(item)
                put_points(connection, batch)
        return True

    def append_log(self, run_id: str, attempt: int, text: str | bytes) -> bool:
        """Add to the run's log. False: fenced off. Beyond the cap the rest is dropped."""
        raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
        with writing(self._engine) as connection:
            row = fenced(connection, run_id, attempt, attempt=attempt)
            if row is None:
                return False
            end = write_log(connection, run_id, attempt, row.log_bytes, raw)
            connection.execute(update(Run).where(Run.id == run_id).values(log_bytes=end))
            return True
