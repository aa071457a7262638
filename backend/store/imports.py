"""Finished runs of predictions that were made elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from sqlalchemy import Connection, Engine, insert, select, update

from backend.store.engine import NOW, reading, writing
from backend.store.errors import ConflictError
from backend.store.models import ArtifactRow, EvaluationRow, Run
from backend.store.rows import Batch, flush, store_report, summary_values
from backend.store.states import add_state_event
from backend.store.submitting import JobRequest, at_most_once, insert_row, next_color
from calift_core.errors import NotFoundError
from calift_core.schema.imported import ImportedSpec
from calift_core.schema.records import EvaluationRecord, LogRecord
from calift_core.schema.report import EvaluationReport, Report


@dataclass(frozen=True)
class ImportedPredictions:
    """A stored predictions file that becomes part of a run; calibration parts are not judged."""

    dataset: str
    name: str
    sha256: str
    size_bytes: int
    evaluation: EvaluationReport | None


#: Run id, spec and evaluations → the run's report.
MakeReport = Callable[[str, ImportedSpec, Sequence[EvaluationReport]], Report]


class ImportedRuns:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def check(self, run_id: str) -> None:
        """Raise unless a run takes further imported predictions.

        Raises:
            NotFoundError: no such run.
            ConflictError: the run was not imported.
        """
        with reading(self._engine) as connection:
            _must_be_imported(connection, run_id)

    def add_run(
        self,
        spec: ImportedSpec,
        predictions: ImportedPredictions,
        *,
        report: MakeReport,
        **request: Unpack[JobRequest],
    ) -> str:
        """Make a finished run of predictions that were made elsewhere, and return its id.

        Args:
            predictions: the stored file and what was measured of it.
            report: makes the `report.json` of a run from its id, spec and evaluations.
            **request: who asks.

        Raises:
            IdempotencyError: the key came with another body before.
        """
        values: dict[str, Any] = {"token_id": ""} | dict(request)

        def make(connection: Connection) -> str:
            color_index, now = next_color(connection, spec.suite.id)
            run_id = insert_row(
                connection,
                spec,
                now,
                color_index=color_index,
                model=spec.model.name,
                seed=0,
                queue="cpu",
                phase="SUCCEEDED",
                attempt=1,
                started_at=now,
                finished_at=now,
                **values,
            )
            add_state_event(connection, run_id, 1, 1, "SUCCEEDED", now)
            _add_import(connection, run_id, predictions, report)
            return run_id

        return at_most_once(self._engine, make, request)

    def extend(self, run_id: str, predictions: ImportedPredictions, *, report: MakeReport) -> None:
        """Add a data set to an imported run. The same file once more changes nothing.

        Raises:
            NotFoundError: no such run.
            ConflictError: the run was not imported, or has other predictions of this data set.
        """
        with writing(self._engine) as connection:
            _must_be_imported(connection, run_id)
            there = connection.execute(
                select(ArtifactRow.sha256).where(
                    ArtifactRow.run_id == run_id, ArtifactRow.name == predictions.name
                )
            ).scalar()
            if there == predictions.sha256:
                return
            if there is not None:
                raise ConflictError(
                    f"run {run_id} has other predictions of {predictions.dataset!r} already.",
                    hint="Name the data set otherwise, or import them as a run of their own.",
                )
            _add_import(connection, run_id, predictions, report)


def _must_be_imported(connection: Connection, run_id: str) -> None:
    method = connection.execute(
        select(Run.method).where(Run.id == run_id).with_for_update()
    ).scalar()
    if method is None:
        raise NotFoundError(f"there is no run {run_id!r}.")
    if method != "imported":
        raise ConflictError(
            f"run {run_id} must be an imported one, its method is {method}.",
            hint="Import without naming a run; the new one is compared with any other.",
        )


def _add_import(
    connection: Connection, run_id: str, predictions: ImportedPredictions, report: MakeReport
) -> None:
    row = connection.execute(
        select(Run.spec, Run.event_seq, Run.log_bytes, NOW.label("now")).where(Run.id == run_id)
    ).one()
    connection.execute(
        insert(ArtifactRow).values(
            run_id=run_id,
            name=predictions.name,
            kind="predictions",
            sha256=predictions.sha256,
            size_bytes=predictions.size_bytes,
            attempt=1,
            created_at=row.now,
        )
    )
    batch = Batch(run_id, 1, row.now)
    batch.take(LogRecord(level="info", message=f"imported predictions of {predictions.dataset}"))
    if predictions.evaluation is not None:
        batch.take(
            EvaluationRecord(evaluation=predictions.evaluation, predictions=predictions.name)
        )
    flush(connection, batch, row.event_seq, row.log_bytes)
    bodies = connection.execute(
        select(EvaluationRow.report)
        .where(EvaluationRow.run_id == run_id)
        .order_by(EvaluationRow.position)
    ).scalars()
    made = report(
        run_id,
        ImportedSpec.model_validate(row.spec),
        [EvaluationReport.model_validate(body) for body in bodies],
    ).model_dump(mode="json")
    connection.execute(
        update(Run).where(Run.id == run_id).values(**summary_values(made["summary"]))
    )
    store_report(connection, run_id, 1, made)
