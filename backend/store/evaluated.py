"""What an evaluation job finds out about a finished run, put under that run.

A data set is published whole or not at all: its numbers, the name of its predictions, the run's
report and headline change in one transaction, which the attempt of the *job* fences.
"""

from collections.abc import Callable
from typing import Any, Literal

from sqlalchemy import Connection, Engine, select, update

from backend.store.engine import NOW, writing
from backend.store.errors import ConflictError
from backend.store.files import name_file
from backend.store.models import EvaluationRow, ReportRow, Run
from backend.store.rows import Batch, evaluation_id, flush, summary_values
from backend.store.states import fenced
from calift_core.analysis.report import ood_groups, summarise
from calift_core.files import json_bytes
from calift_core.schema.records import EvaluationRecord
from calift_core.schema.report import EvaluationReport

#: Stores bytes: gives their SHA-256 and size.
Put = Callable[[bytes], tuple[str, int]]


class EvaluatedRuns:
    """Takes results for finished runs from the workers of evaluation jobs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def publish(
        self,
        job_id: str,
        attempt: int,
        run_id: str,
        record: EvaluationRecord,
        *,
        sha256: str,
        size_bytes: int,
        put: Put,
    ) -> Literal["published", "gone", "fenced"]:
        """Put one result under a run; the same once more changes nothing.

        Args:
            record: the result; its `predictions` is the name that the file has among the run's.
            put: stores the run's new report.

        Returns:
            `gone`: the run was deleted meanwhile. `fenced`: the job is somebody else's by now, and
            nothing has changed.

        Raises:
            ConflictError: other predictions got the data set's name since the job looked.
            StorageError: the report cannot be stored; nothing has changed.
        """
        dataset = record.evaluation.dataset
        with writing(self._engine) as connection:
            if fenced(connection, job_id, attempt, attempt=attempt) is None:
                return "fenced"
            run = connection.execute(
                select(Run.phase, Run.attempt, Run.event_seq, Run.log_bytes, NOW.label("now"))
                .where(Run.id == run_id)
                .with_for_update()
            ).first()
            if run is None or run.phase != "SUCCEEDED":
                return "gone"
            identity = evaluation_id(run_id, dataset)
            there = connection.execute(
                select(EvaluationRow.predictions_sha256).where(EvaluationRow.id == identity)
            ).scalar()
            if there == sha256:
                return "published"
            if there is not None:
                raise ConflictError(
                    f"run {run_id} was judged on other images called {dataset!r} meanwhile.",
                    hint="Retry the job: its own will stand beside them under another name.",
                )
            batch = Batch(run_id, run.attempt, run.now)
            batch.take(record.model_copy(update={"run": None}))
            flush(connection, batch, run.event_seq, run.log_bytes)
            connection.execute(
                update(EvaluationRow).where(EvaluationRow.id == identity).values(job_id=job_id)
            )
            files = [(record.predictions, "predictions", sha256, size_bytes)]
            body = _extend_report(connection, run_id, record.evaluation)
            if body is not None:
                files.append(("report.json", "report", *put(json_bytes(body))))
            for name, kind, digest, size in files:
                name_file(
                    connection,
                    run_id=run_id,
                    name=name,
                    kind=kind,
                    sha256=digest,
                    size_bytes=size,
                    attempt=run.attempt,
                    created_at=run.now,
                )
            return "published"


def _extend_report(
    connection: Connection, run_id: str, evaluation: EvaluationReport
) -> dict[str, Any] | None:
    """Add an evaluation to a run's report; the new report, if there is one.

    The headline stays a mean over the data that the run's own spec names, so that runs of one spec
    stay comparable. A run without shifts and corruptions of its own takes what comes later.
    """
    body = connection.execute(select(ReportRow.body).where(ReportRow.run_id == run_id)).scalar()
    if body is None:
        return None
    evaluations = [EvaluationReport.model_validate(e) for e in body["evaluations"]]
    evaluations.append(evaluation)
    sigma_min = (body.get("spectrum") or {}).get("sigma_min")
    added = set(
        connection.execute(
            select(EvaluationRow.dataset).where(
                EvaluationRow.run_id == run_id, EvaluationRow.job_id.is_not(None)
            )
        ).scalars()
    )
    own = [e for e in evaluations if e.dataset not in added]
    summary = summarise(own if ood_groups(own) else evaluations, sigma_min).model_dump(mode="json")
    data = dict(body["data"])
    if evaluation.role == "shift":
        data["shifts"] = {**data.get("shifts", {}), evaluation.dataset: evaluation.n}
    body = {
        **body,
        "summary": summary,
        "evaluations": [e.model_dump(mode="json") for e in evaluations],
        "data": data,
    }
    connection.execute(update(ReportRow).where(ReportRow.run_id == run_id).values(body=body))
    connection.execute(update(Run).where(Run.id == run_id).values(**summary_values(summary)))
    return body
