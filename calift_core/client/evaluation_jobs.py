"""Calls that judge finished runs on more data."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from calift_core.client.connection import Connection, url_path
from calift_core.client.operations import Operation
from calift_core.errors import SpecError
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.spec import problems_of
from calift_core.schema.unlabelled import UnlabelledRecord
from calift_core.schema.wire.evaluation_jobs import (
    EvaluationJob,
    EvaluationJobPage,
    EvaluationSubmit,
)
from calift_core.schema.wire.queries import EvaluationJobsQuery
from calift_core.schema.wire.results import EvaluationPage
from calift_core.schema.wire.runs import LogPage, RunEvent, Validation


class EvaluationJobCalls(Connection):
    """Evaluation jobs."""

    def evaluate(
        self,
        runs: Sequence[str],
        *,
        suites: Sequence[str] = (),
        shifts: Mapping[str, str] | None = None,
        folders: Sequence[str] = (),
        corruptions: Mapping[str, Any] | None = None,
        unlabelled: Sequence[str] = (),
        name: str = "",
        batch_size: int | None = None,
        device: str = "auto",
        priority: int = 0,
        max_attempts: int = 3,
        idempotency_key: str | None = None,
    ) -> EvaluationJob:
        """Queue finished runs to be judged on more data; the results appear under each of them.

        Args:
            runs: ids; those whose models are alike share one pass over the data.
            suites: named suites of the runs' classes, such as `imagenet-c`.
            shifts: name → folder:PATH.
            folders: folder:PATH, each a shift that is called as its folder.
            corruptions: of the runs' own test images, as in a RunSpec: names, severities.
            unlabelled: folder:PATH or manifest:FILE of images without labels; what is found stands
                in `unlabelled` of the job.
            name: of the job; none: what it is on.
            batch_size: None: that of each run.
            device: where they are judged.
            priority: a higher one starts earlier.
            max_attempts: attempts that may be lost (worker gone) before the job fails.
            idempotency_key: the same key and request give the same job.
        """
        body = _evaluation_body(
            runs=tuple(runs),
            suites=tuple(suites),
            shifts=dict(shifts or {}),
            folders=tuple(folders),
            corruptions=corruptions or {},
            unlabelled=tuple(unlabelled),
            name=name,
            batch_size=batch_size,
            device=device,
            priority=priority,
            max_attempts=max_attempts,
        )
        return self._read(self._send_once("/evaluations", body, idempotency_key), EvaluationJob)

    def validate_evaluation(self, spec: EvaluationJobSpec | Mapping[str, Any]) -> Validation:
        """A dry run of `evaluate`: what stands in the way, what it will cost."""
        given = spec.model_dump() if isinstance(spec, EvaluationJobSpec) else spec
        response = self._send("POST", "/evaluations/validate", body=_evaluation_body(**given))
        return self._read(response, Validation)

    evaluation_jobs = Operation("/evaluation-jobs", EvaluationJobsQuery, EvaluationJobPage)
    """A page of evaluation jobs, newest first: of any of the runs, in any of the phases."""

    def evaluation_job(self, job_id: str) -> EvaluationJob:
        """One evaluation job."""
        return self._get(url_path("/evaluation-jobs", job_id), EvaluationJob)

    def cancel_evaluation(self, job_id: str) -> EvaluationJob:
        """Ask a job to stop; repeatable. What it has finished stays."""
        path = url_path("/evaluation-jobs", job_id, "cancel")
        return self._read(self._send("POST", path), EvaluationJob)

    def retry_evaluation(self, job_id: str) -> EvaluationJob:
        """Queue a failed or cancelled job again; it goes on where it was."""
        path = url_path("/evaluation-jobs", job_id, "retry")
        return self._read(self._send("POST", path), EvaluationJob)

    def delete_evaluation(self, job_id: str) -> None:
        """Delete a job that does not work; its results stay."""
        self._send("DELETE", url_path("/evaluation-jobs", job_id))

    def wait_for_evaluation(
        self, job_id: str, poll_s: float = 1.0, *, timeout_s: float | None = None
    ) -> EvaluationJob:
        """Wait until a job has ended, and return it, whatever its end, as `wait` does for runs.

        Raises:
            TimeoutError: `timeout_s` seconds went by.
        """
        what = f"evaluation job {job_id}"
        return self._wait(lambda: self.evaluation_job(job_id), what, poll_s, timeout_s)

    def job_evaluations(
        self, job_id: str, *, cursor: str | None = None, limit: int = 200
    ) -> EvaluationPage:
        """The results of a job so far, newest first."""
        path = url_path("/evaluation-jobs", job_id, "evaluations")
        return self._get(path, EvaluationPage, cursor=cursor, limit=limit)

    def unlabelled(self, job_id: str) -> list[UnlabelledRecord]:
        """What a job has found on images without labels, a record for each run and source."""
        path = url_path("/evaluation-jobs", job_id, "events", "history")
        events: list[RunEvent] = []
        while page := self._get(
            path, list[RunEvent], after=events[-1].id if events else 0, limit=200
        ):
            events += page
        found = [one.data for one in events if one.kind == "unlabelled"]
        return [UnlabelledRecord.model_validate(data) for data in found]

    def evaluation_events(self, job_id: str, *, after: int = 0) -> Iterator[RunEvent]:
        """Events of a job as they happen, until it ends."""
        return self._events(url_path("/evaluation-jobs", job_id, "events"), after)

    def evaluation_logs(
        self, job_id: str, *, offset: int = 0, limit: int = 65_536, tail: int | None = None
    ) -> LogPage:
        """A piece of a job's log, as `logs`."""
        path = url_path("/evaluation-jobs", job_id, "logs")
        return self._get(path, LogPage, offset=offset, limit=limit, tail=tail)


def _evaluation_body(**given: Any) -> EvaluationSubmit:
    """The request, checked here first.

    Raises:
        SpecError: it cannot be one.
    """
    try:
        return EvaluationSubmit.model_validate(given)
    except ValidationError as error:
        lines = "; ".join(p["pointer"] + ": " + p["message"] for p in problems_of(error))
        raise SpecError(f"the runs cannot be judged so: {lines}") from error
