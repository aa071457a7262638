"""What runs found out: evaluations, their predictions, reports, and how fast it went."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Engine, Row, Select, and_, func, select
from sqlalchemy.sql.elements import ColumnElement

from backend.store.cursors import Cursors, how_many, scope_of
from backend.store.engine import moment, reading
from backend.store.models import ArtifactRow, EvaluationRow, ReportRow, Run
from backend.store.pace import stored_pace
from backend.store.states import must_exist
from calift_core.data.workload import Pace, Workload
from calift_core.errors import NotFoundError
from calift_core.schema.spec import RunSpec
from calift_core.schema.wire.results import Evaluation, Frontier

#: Zero-shot runs of a suite that are looked at for those that hold a run's initial model.
_ZERO_SHOT_RUNS = 50
#: Finished runs whose files tell how much a run keeps.
_DISK_RUNS = 10


@dataclass(frozen=True)
class StoredPredictions:
    """Where an evaluation's predictions lie in the content-addressed store."""

    sha256: str
    name: str


class Results:
    def __init__(self, engine: Engine, cursors: Cursors) -> None:
        self._engine = engine
        self._cursors = cursors

    def run_evaluations(self, run_id: str) -> list[Evaluation]:
        """A run's evaluations in the order they were made.

        Raises:
            NotFoundError: no such run.
        """
        with reading(self._engine) as connection:
            must_exist(connection, run_id)
            rows = connection.execute(
                _query()
                .where(EvaluationRow.run_id == run_id)
                .order_by(EvaluationRow.position, EvaluationRow.id)
            ).all()
        return [_evaluation(row) for row in rows]

    def get_evaluation(self, evaluation_id: str) -> Evaluation:
        """One evaluation.

        Raises:
            NotFoundError: no such evaluation.
        """
        with reading(self._engine) as connection:
            row = connection.execute(_query().where(EvaluationRow.id == evaluation_id)).first()
        if row is None:
            raise NotFoundError(f"there is no evaluation {evaluation_id!r}.")
        return _evaluation(row)

    def list_evaluations(
        self,
        *,
        run_ids: Sequence[str] = (),
        datasets: Sequence[str] = (),
        roles: Sequence[str] = (),
        job_id: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> tuple[list[Evaluation], str | None, int]:
        """A page of evaluations, newest first, the next cursor, and `how_many` match.

        Raises:
            CursorError: the cursor is of another list.
        """
        where: list[ColumnElement[bool]] = []
        for column, values in (
            (EvaluationRow.run_id, run_ids),
            (EvaluationRow.dataset, datasets),
            (EvaluationRow.role, roles),
        ):
            if values:
                where.append(column.in_(list(values)))
        if job_id is not None:
            where.append(EvaluationRow.job_id == job_id)
        scope = scope_of(sorted(run_ids), sorted(datasets), sorted(roles), job_id)
        with reading(self._engine) as connection:
            rows, next_cursor = self._cursors.newest(
                connection, _query().where(*where), EvaluationRow, scope, cursor, limit
            )
            # One that ends here needs no count.
            ends = cursor is None and next_cursor is None
            first_page = len(rows) if ends else None
            total = how_many(connection, EvaluationRow, where, first_page=first_page, limit=limit)
        return [_evaluation(row) for row in rows], next_cursor, total

    def predictions_of(self, evaluation_id: str) -> StoredPredictions:
        """Where an evaluation's predictions are.

        Raises:
            NotFoundError: no such evaluation, or its predictions were not stored.
        """
        with reading(self._engine) as connection:
            row = connection.execute(
                select(
                    EvaluationRow.predictions, EvaluationRow.predictions_sha256, ArtifactRow.sha256
                )
                .outerjoin(
                    ArtifactRow,
                    and_(
                        ArtifactRow.run_id == EvaluationRow.run_id,
                        ArtifactRow.name == EvaluationRow.predictions,
                    ),
                )
                .where(EvaluationRow.id == evaluation_id)
            ).first()
        if row is None:
            raise NotFoundError(f"there is no evaluation {evaluation_id!r}.")
        digest = row.sha256 or row.predictions_sha256
        if not digest:
            raise NotFoundError(
                f"the predictions of evaluation {evaluation_id} are not stored yet.",
                hint="They arrive with the end of the evaluation.",
            )
        return StoredPredictions(sha256=digest, name=row.predictions)

    def report(self, run_id: str) -> dict[str, Any]:
        """The run's `report.json`.

        Raises:
            NotFoundError: no such run, or it has no report yet.
        """
        with reading(self._engine) as connection:
            phase = must_exist(connection, run_id).phase
            body = connection.execute(
                select(ReportRow.body).where(ReportRow.run_id == run_id)
            ).scalar()
        if body is None:
            raise NotFoundError(
                f"run {run_id} has no report; it is {phase}.", hint="A report comes with success."
            )
        return cast("dict[str, Any]", body)

    def frontier(self, run_id: str) -> Frontier:
        """The path between zero-shot and fine-tuned that a run measured.

        Raises:
            NotFoundError: no such run, it has no report yet, or it measured no path.
        """
        body = self.report(run_id)
        method = body["spec"]["method"]
        points = body.get("frontier")
        if points is None:
            raise NotFoundError(
                f"run {run_id} has no frontier; its method is {method['kind']}.",
                hint="A run of the method wise_ft measures one.",
            )
        return Frontier(
            run_id=run_id,
            run_name=body["name"],
            input_run=method["run"],
            # Of a run that chose its α itself, the spec's is not on the path.
            alpha=body["resolved"]["alpha"],
            points=points,
        )

    def initial_runs(self, run_id: str) -> list[str]:
        """Ids of the finished zero-shot runs that hold the model which a run started from.

        They are of its suite, with its classes and its test images, and have the very weights that
        it started from; the newest first. A run that changed no weight has none.

        Raises:
            NotFoundError: no such run, or it has no report yet.
        """
        own = self.report(run_id)
        start = own["model"].get("start_sha256")
        if not start or start == own["model"].get("sha256"):
            return []
        data = ReportRow.body["data"]
        suite = select(Run.suite).where(Run.id == run_id).scalar_subquery()
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(Run.id, data.label("data"))
                .join(ReportRow, Run.id == ReportRow.run_id)
                .where(Run.method == "zero_shot", Run.phase == "SUCCEEDED", Run.suite == suite)
                .where(ReportRow.body["model"]["sha256"].as_string() == start)
                .order_by(Run.finished_at.desc(), Run.id)
                .limit(_ZERO_SHOT_RUNS)
            ).all()
        same = ("classes", "test_sha256")
        return [row.id for row in rows if all(row.data.get(k) == own["data"].get(k) for k in same)]

    def pace(self, spec: RunSpec, work: Workload) -> Pace | None:
        """As `stored_pace`."""
        return stored_pace(self._engine, spec, work)

    def disk_of(self, model: str) -> int | None:
        """Bytes that a finished run of a model keeps: the mean of the newest; None: there is none.

        Args:
            model: its label, `name/weights`.
        """
        newest = (
            select(Run.id)
            .where(Run.model == model, Run.phase == "SUCCEEDED", Run.method != "imported")
            .order_by(Run.finished_at.desc())
            .limit(_DISK_RUNS)
            .subquery()
        )
        with reading(self._engine) as connection:
            total, runs = connection.execute(
                select(
                    func.sum(ArtifactRow.size_bytes), func.count(ArtifactRow.run_id.distinct())
                ).where(ArtifactRow.run_id.in_(select(newest.c.id)))
            ).one()
        return None if not runs else int(total / runs)


_EVALUATION_COLUMNS = (
    EvaluationRow.id,
    EvaluationRow.run_id,
    EvaluationRow.created_at,
    EvaluationRow.report,
    EvaluationRow.position,
    EvaluationRow.job_id,
    Run.name.label("run_name"),
    Run.method,
)


def _query() -> Select[Any]:
    return select(*_EVALUATION_COLUMNS).join(Run, Run.id == EvaluationRow.run_id)


def _evaluation(row: Row[*tuple[Any, ...]]) -> Evaluation:
    return Evaluation(
        **row.report,
        id=row.id,
        run_id=row.run_id,
        run_name=row.run_name,
        method=row.method,
        created_at=moment(row.created_at),
        job_id=row.job_id,
    )
