"""Calls about runs and evaluation jobs."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from calift_core.client.connection import Connection, url_path
from calift_core.client.operations import Operation, OperationOf
from calift_core.errors import SpecError, StorageError
from calift_core.files import sha256_file
from calift_core.schema.evaluation_job import (
    EvaluationJob,
    EvaluationJobPage,
    EvaluationJobSpec,
    EvaluationJobsQuery,
    EvaluationSubmit,
    is_job_id,
)
from calift_core.schema.report import Report
from calift_core.schema.spec import RunSpec, problems_of
from calift_core.schema.unlabelled import UnlabelledRecord
from calift_core.schema.wire.operations import Bulk, BulkAction, BulkDone
from calift_core.schema.wire.queries import CurvesQuery, ModelQuery, RunFilter, RunsQuery
from calift_core.schema.wire.results import Evaluation, EvaluationPage, Frontier, Spectrum
from calift_core.schema.wire.runs import (
    Artifact,
    JobSummary,
    LogPage,
    Metrics,
    RunClone,
    RunContinue,
    RunDetail,
    RunEvent,
    RunGroup,
    RunPage,
    RunPatch,
    RunSubmit,
    RunSummary,
    Validation,
)

Spec = RunSpec | Mapping[str, Any]
#: Kinds of files that a folder of `calift train` has and that others work on.
_OF_A_FOLDER = ("report", "predictions", "checkpoint")


def _spec_body(spec: Spec) -> dict[str, Any]:
    return spec.model_dump(mode="json") if isinstance(spec, RunSpec) else dict(spec)


#: A model may take minutes to be exported.
_MAKING_S = 600.0


def _job_path(job_id: str, *rest: str) -> str:
    return url_path("/evaluation-jobs" if is_job_id(job_id) else "/runs", job_id, *rest)


class RunCalls(Connection):
    """Runs and evaluation jobs, and what they say.

    A `job_id` is the id of either.
    """

    def submit(
        self,
        spec: Spec,
        *,
        priority: int = 0,
        max_attempts: int = 3,
        idempotency_key: str | None = None,
    ) -> RunDetail:
        """Queue a run. With an own key, the same request gives the same run however often sent."""
        body = RunSubmit(spec=_spec_body(spec), priority=priority, max_attempts=max_attempts)
        return self._post_once("/runs", RunDetail, body, idempotency_key)

    def validate(self, spec: Spec) -> Validation:
        """A dry run: faults, what is missing on the service's machine, what it will cost."""
        body = RunSubmit(spec=_spec_body(spec))
        return self._post("/runs/validate", Validation, body)

    runs = Operation("/runs", RunsQuery, RunPage)
    """A page of runs. Lists filter by any of their values, `tag` by all, `q` by words."""

    run_groups = Operation("/runs/groups", RunFilter, list[RunGroup])
    """Runs in groups that differ in their seed alone, with means and standard errors."""

    def all_runs(self, **filters: Any) -> Iterator[RunSummary]:
        """Every run that matches, page by page; the filters are those of `runs`."""
        filters.setdefault("limit", 200)
        cursor = None
        while True:
            page = self.runs(**{**filters, "cursor": cursor})
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def run(self, run_id: str) -> RunDetail:
        """One run."""
        return self._get(url_path("/runs", run_id), RunDetail)

    def patch(
        self,
        run_id: str,
        *,
        name: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] | None = None,
        archived: bool | None = None,
    ) -> RunDetail:
        """Change what people may change; None leaves a field as it is."""
        body = RunPatch(
            name=name, notes=notes, tags=None if tags is None else list(tags), archived=archived
        )
        return self._read(self._send("PATCH", url_path("/runs", run_id), body=body), RunDetail)

    def cancel(self, job_id: str) -> JobSummary:
        """Ask a run or an evaluation job to stop; repeatable. What it has finished stays."""
        return self._change_job(job_id, "cancel")

    def retry(self, job_id: str) -> JobSummary:
        """Queue a failed or cancelled run or job again; it goes on where it was."""
        return self._change_job(job_id, "retry")

    def _change_job(self, job_id: str, step: str) -> JobSummary:
        return self._post(
            _job_path(job_id, step), EvaluationJob if is_job_id(job_id) else RunDetail
        )

    def clone(
        self,
        run_id: str,
        changes: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> RunDetail:
        """Queue a new run with this one's spec and some changes (RFC 7396 merge patch)."""
        body = RunClone(name=name, changes=dict(changes or {}))
        return self._post_once(url_path("/runs", run_id, "clone"), RunDetail, body, idempotency_key)

    def continue_run(
        self,
        run_id: str,
        epochs: int = 2,
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> RunDetail:
        """Queue a new run that trains a finished one's model for more epochs."""
        body = RunContinue(epochs=epochs, name=name)
        return self._post_once(
            url_path("/runs", run_id, "continue"), RunDetail, body, idempotency_key
        )

    def delete(self, job_id: str) -> None:
        """Delete a run that does not work, with its files; or a job, whose results stay."""
        self._send("DELETE", _job_path(job_id))

    def wait(
        self, run_id: str, poll_s: float = 1.0, *, timeout_s: float | None = None
    ) -> RunDetail:
        """Wait until a run has ended, and return it, whatever its end.

        A service that is away for less than a minute is waited for.

        Raises:
            TimeoutError: `timeout_s` seconds went by.
        """
        return self._wait(lambda: self.run(run_id), f"run {run_id}", poll_s, timeout_s)

    metrics = OperationOf("/runs/{}/metrics", CurvesQuery, Metrics)
    """Curves after a step, thinned to `max_points` with their extremes kept."""

    def events(self, job_id: str, *, after: int = 0) -> Iterator[RunEvent]:
        """Events as they happen, until it ends. A dropped connection is taken up again."""
        return self._events(_job_path(job_id, "events"), after)

    def events_after(self, job_id: str, after: int = 0, limit: int = 200) -> list[RunEvent]:
        """The events after an id, by polling instead of one long answer."""
        path = _job_path(job_id, "events", "history")
        return self._get(path, list[RunEvent], after=after, limit=limit)

    def checkpoints(self, run_id: str) -> list[Artifact]:
        """Stored checkpoints."""
        return self._get(url_path("/runs", run_id, "checkpoints"), list[Artifact])

    def artifacts(self, run_id: str) -> list[Artifact]:
        """Stored files."""
        return self._get(url_path("/runs", run_id, "artifacts"), list[Artifact])

    def download_artifact(self, run_id: str, name: str, path: str | os.PathLike[str]) -> Path:
        """Download a file; what arrives is checked against its SHA-256.

        Raises:
            StorageError: the file cannot be written, or what arrived is damaged.
        """
        return self._download(url_path("/runs", run_id, "artifacts", *name.split("/")), path)

    def download_run(
        self,
        run_id: str,
        folder: str | os.PathLike[str],
        on_file: Callable[[Artifact], None] = lambda _: None,
    ) -> Path:
        """A finished run as a folder: its report, its model and its predictions.

        Files that are there and whole stay. The report comes last: where it is, all is.

        Args:
            run_id: the run.
            folder: becomes what `calift train --out` would have made.
            on_file: is given each file before it is fetched.

        Raises:
            NotFoundError: there is no such run.
            SpecError: it has no finished model.
            StorageError: a file cannot be written, or what arrived is damaged.
        """
        files = {one.name: one for one in self.artifacts(run_id) if one.kind in _OF_A_FOLDER}
        if not {"report.json", "checkpoint/model.json"} <= set(files):
            raise SpecError(
                f"run {run_id} has no finished model to fetch.",
                hint="Imported predictions have none, and others get theirs when they succeed.",
            )
        target = Path(folder)
        for one in sorted(files.values(), key=lambda file: file.name == "report.json"):
            parts = PurePosixPath(one.name).parts
            if ".." in parts or parts[0] == "/":
                raise StorageError(f"the service names a file {one.name!r}, outside its run")
            path = target.joinpath(*parts)
            if not (path.is_file() and sha256_file(path) == one.sha256):
                on_file(one)
                path.parent.mkdir(parents=True, exist_ok=True)
                self.download_artifact(run_id, one.name, path)
        return target

    def download_model(
        self,
        run_id: str,
        path: str | os.PathLike[str],
        *,
        calibrator: str = "auto",
        initial: str | None = None,
        onnx: bool = False,
    ) -> Path:
        """A finished run's model as a zip of what `calift export` writes; made where the API is.

        Args:
            run_id: the run.
            path: the file.
            calibrator: its kind, `none`, or `auto`: by the NLL on ID validation.
            initial: one of `initial_runs`, for calibrators that read the initial model's logits;
                its model travels along.
            onnx: with a graph from pixels to probabilities, `model.onnx`.

        Raises:
            NotFoundError: there is no such run.
            SpecError: the calibrator reads the initial model and none is named, or it does not and
                one is.
            ServiceError: it has no model, the calibrator cannot be fitted, or the API has no torch.
            StorageError: the file cannot be written, or what arrived is damaged.
        """
        place, params = url_path("/runs", run_id, "model"), _model(calibrator, initial, onnx)
        return self._download(place, path, wait_s=_MAKING_S, **params)

    def make_model(
        self,
        run_id: str,
        *,
        calibrator: str = "auto",
        initial: str | None = None,
        onnx: bool = False,
    ) -> None:
        """Have the service make what `download_model` fetches, which it then keeps for a while.

        Raises:
            NotFoundError, SpecError, ServiceError: as `download_model`.
        """
        with self._stream(
            url_path("/runs", run_id, "model"),
            params=_model(calibrator, initial, onnx),
            headers={"Accept": "*/*"},
            wait_s=_MAKING_S,
        ):
            pass  # it is made before the first byte comes

    def initial_runs(self, run_id: str) -> list[RunSummary]:
        """Finished zero-shot runs that hold the model which a run started from, newest first."""
        return self._get(url_path("/runs", run_id, "initial-runs"), list[RunSummary])

    def logs(
        self, job_id: str, *, offset: int = 0, limit: int = 65_536, tail: int | None = None
    ) -> LogPage:
        """A piece of the log from a byte offset; a negative one counts from the end.

        With `tail`, the last so many lines instead, as far as they are within `limit` bytes.
        """
        path = _job_path(job_id, "logs")
        return self._get(path, LogPage, offset=offset, limit=limit, tail=tail)

    def run_evaluations(self, run_id: str) -> list[Evaluation]:
        """A run's evaluations in the order they were made."""
        return self._get(url_path("/runs", run_id, "evaluations"), list[Evaluation])

    def spectra(self, run_id: str) -> list[Spectrum]:
        """Singular values by step; the finished model's last."""
        return self._get(url_path("/runs", run_id, "spectra"), list[Spectrum])

    def report(self, run_id: str) -> Report:
        """`report.json` of a finished run."""
        return self._get(url_path("/runs", run_id, "report"), Report)

    def frontier(self, run_id: str) -> Frontier:
        """The path of a WiSE-FT run between the zero-shot model and the fine-tuned one.

        Raises:
            ServiceError: with status 404 when the run measured none.
        """
        return self._get(url_path("/runs", run_id, "frontier"), Frontier)

    def change_runs(
        self,
        action: BulkAction,
        *,
        ids: Sequence[str] | None = None,
        filter: RunFilter | None = None,
        tags: Sequence[str] = (),
    ) -> BulkDone:
        """Cancel, retry, archive, tag or delete many runs, each by the rules of a single one.

        Args:
            action: `tag` and `untag` take `tags`; `delete` needs the scope admin.
            ids: the runs; or
            filter: which runs, in the words of `runs`.
            tags: to add or to take away.

        Raises:
            SpecError: neither or both of `ids` and `filter`, or tags where they mean nothing.
        """
        given = None if ids is None else list(ids)
        try:
            body = Bulk(action=action, ids=given, filter=filter, tags=list(tags))
        except ValidationError as error:
            raise SpecError("; ".join(e["msg"] for e in error.errors())) from error
        return self._post("/runs/bulk", BulkDone, body)

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
        return self._post_once("/evaluations", EvaluationJob, body, idempotency_key)

    def validate_evaluation(self, spec: EvaluationJobSpec | Mapping[str, Any]) -> Validation:
        """A dry run of `evaluate`: what stands in the way, what it will cost."""
        given = spec.model_dump() if isinstance(spec, EvaluationJobSpec) else spec
        return self._post("/evaluations/validate", Validation, _evaluation_body(**given))

    evaluation_jobs = Operation("/evaluation-jobs", EvaluationJobsQuery, EvaluationJobPage)
    """A page of evaluation jobs, newest first: of any of the runs, in any of the phases."""

    def evaluation_job(self, job_id: str) -> EvaluationJob:
        """One evaluation job."""
        return self._get(url_path("/evaluation-jobs", job_id), EvaluationJob)

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
        events: list[RunEvent] = []
        while page := self.events_after(job_id, events[-1].id if events else 0):
            events += page
        found = [one.data for one in events if one.kind == "unlabelled"]
        return [UnlabelledRecord.model_validate(data) for data in found]


def _model(calibrator: str, initial: str | None, onnx: bool) -> dict[str, Any]:
    params = {"calibrator": calibrator, "initial": initial, "onnx": onnx}
    return ModelQuery.of(params=params).model_dump(exclude_defaults=True)


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
