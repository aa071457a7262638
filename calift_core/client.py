"""The typed client of the REST API: for scripts, the `calift` command and the dashboard.

::

    with Client() as calift:
        run = calift.submit({"name": "carot", "method": {"kind": "carot"}})
        run = calift.wait(run.id)
        print(run.summary.ood_ece)

It finds the service by `CALIFT_API_URL`, else the stack that runs on `CALIFT_HOME`, else on this
machine's port `CALIFT_PORT`; and the token in `CALIFT_TOKEN`, else in `CALIFT_HOME/token`.

Long, because one class has a method for each route and people read it from top to bottom.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx2 as httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from calift_core import __version__
from calift_core.errors import ServiceError, ServiceUnavailableError, SpecError, StorageError
from calift_core.files import atomic_path
from calift_core.home import calift_home, stack_file
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.report import Report, Role
from calift_core.schema.spec import RunSpec, problems_of
from calift_core.schema.sweep import SweepSpec
from calift_core.schema.wire.answers import BoundMonitor, Decision, Leaders, Ledger
from calift_core.schema.wire.evaluation_jobs import (
    EvaluationJob,
    EvaluationJobPage,
    EvaluationSubmit,
)
from calift_core.schema.wire.operations import (
    AuditPage,
    Bulk,
    BulkAction,
    BulkDone,
    BulkFilter,
    PruneAsked,
    Pruned,
    SavedView,
    TokenInfo,
    TokenMade,
    TokenMake,
    ViewSave,
)
from calift_core.schema.wire.results import (
    AS_EVALUATED,
    AskedBinning,
    Budget,
    CalibratorEffect,
    Comparison,
    DoubtfulLabels,
    Evaluation,
    EvaluationPage,
    Frontier,
    MeasureSet,
    Reliability,
    SampleHistory,
    SampleLooks,
    SamplePage,
    SampleTraits,
    SlicePage,
    Spectrum,
    TransferMatrix,
)
from calift_core.schema.wire.runs import (
    TERMINAL_PHASES,
    Artifact,
    LogPage,
    Metrics,
    RunClone,
    RunDetail,
    RunEvent,
    RunPage,
    RunPatch,
    RunSubmit,
    RunSummary,
    SortKey,
    Validation,
)
from calift_core.schema.wire.service import (
    DatasetInfo,
    Health,
    MethodInfo,
    ModelInfo,
    Opened,
    Ready,
    Stats,
    SuiteRuns,
    Visitor,
    WorkerInfo,
)
from calift_core.schema.wire.sweeps import (
    SWEEP_ENDS,
    SweepDetail,
    SweepPage,
    SweepResume,
    SweepValidation,
    SweepVerdict,
)

if TYPE_CHECKING:
    from calift_core.predictions.types import Role as PredictedRole
    from calift_core.predictions.write import Keep

DEFAULT_PORT = 8000
_PREFIX = "/api/v1"
#: How long `wait` and `events` bear a service that does not answer, such as one that restarts.
_PATIENCE_S = 60.0
#: The service checks and measures an upload before it answers.
_IMPORT_WAIT_S = 600.0

_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)
#: What `wait` waits for.
_Ends = TypeVar("_Ends", RunDetail, EvaluationJob, SweepDetail)
Spec = RunSpec | Mapping[str, Any]


def _spec_body(spec: Spec) -> dict[str, Any]:
    return spec.model_dump(mode="json") if isinstance(spec, RunSpec) else dict(spec)


def _sweep_body(spec: SweepSpec | Mapping[str, Any]) -> dict[str, Any]:
    return spec.model_dump(mode="json") if isinstance(spec, SweepSpec) else dict(spec)


def _find_token() -> tuple[str | None, str]:
    """The token, and where it was found."""
    given = os.environ.get("CALIFT_TOKEN")
    if given:
        return given.strip(), "from CALIFT_TOKEN"
    path = calift_home() / "token"
    try:
        return path.read_text(encoding="ascii").strip() or None, f"from {path}"
    except (OSError, UnicodeDecodeError):
        return None, ""


def _find_url() -> tuple[str, str]:
    """The service's address, and why it is that one."""
    given = os.environ.get("CALIFT_API_URL")
    if given:
        return given, "CALIFT_API_URL says so"
    running = running_stack()
    if running is not None:
        return running, f"the stack that runs on {calift_home()} says so"
    port = os.environ.get("CALIFT_PORT") or str(DEFAULT_PORT)
    why = "CALIFT_PORT says so" if os.environ.get("CALIFT_PORT") else "nothing says otherwise"
    return f"http://127.0.0.1:{port}", why


def running_stack() -> str | None:
    """The API's address of the stack that `calift up` keeps on `CALIFT_HOME`, if one is up."""
    try:
        state = json.loads(stack_file().read_text(encoding="utf-8"))
        # A stack that was killed leaves its file behind.
        return str(state["urls"]["api"]) if _lives(int(state["pid"])) else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _lives(pid: int) -> bool:
    if os.name != "posix":
        return True  # where asking would end the process
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # it is another user's
    except ProcessLookupError:
        return False
    return True


def _scheme(url: str) -> str:
    try:
        return urlsplit(url).scheme
    except ValueError:
        return ""


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Client:
    """A connection to a calift service. Close it, or use it as a context manager.

    Args:
        base_url: where the service is; None: `CALIFT_API_URL`, else the stack that runs here.
        token: None: `CALIFT_TOKEN`, else the embedded one's token file.
        timeout_s: for one answer to begin; downloads and event streams may take longer.

    Raises:
        SpecError: the address or the token cannot be used.

    Every method raises ServiceUnavailableError when nothing answers, and ServiceError, with the
    server's sentence and hint, when the answer is an error.
    """

    def __init__(
        self,
        base_url: str | None = None,
        token: str | None = None,
        timeout_s: float = 60.0,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        url, self._why_url = (base_url, "") if base_url else _find_url()
        self.base_url = url.rstrip("/").removesuffix(_PREFIX)
        if _scheme(self.base_url) not in ("http", "https"):
            raise SpecError(
                f"a service's address must begin with http:// or https://, got {url!r}.",
                hint="Such as CALIFT_API_URL=http://127.0.0.1:8000",
            )
        token, self._token_from = (token, "") if token else _find_token()
        headers = {"User-Agent": f"calift/{__version__}", "Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            self._http = httpx.Client(
                base_url=self.base_url + _PREFIX,
                headers=headers,
                timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
                follow_redirects=False,  # the token goes to the named host alone
                trust_env=not _is_loopback(self.base_url),  # no proxy between us and ourselves
                transport=transport,
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            what = "the token" if isinstance(error, UnicodeEncodeError) else repr(url)
            raise SpecError(
                f"{what} cannot be used: {error}", hint=self._asked_there().strip()
            ) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- plumbing -----------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: BaseModel | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        content = None
        sent = dict(headers or {})
        if body is not None:
            data = body.model_dump(mode="json") if isinstance(body, BaseModel) else body
            content = json.dumps(data).encode()
            sent["Content-Type"] = "application/json"
        try:
            response = self._http.request(
                method, path, params=_given(params), content=content, headers=sent
            )
        except httpx.TransportError as error:
            raise self._unavailable(error) from error
        if response.status_code >= 300:
            raise self._error(response)
        return response

    def _unavailable(self, error: Exception) -> ServiceUnavailableError:
        return ServiceUnavailableError(
            f"no calift service answers at {self.base_url} ({error or type(error).__name__}).",
            hint=f"{self._asked_there()}Start one with `calift up`, or name another in "
            "CALIFT_API_URL.",
        )

    def _error(self, response: httpx.Response) -> ServiceError:
        try:
            problem = response.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict) or "detail" not in problem:
            return ServiceError(
                f"{self.base_url} answered {response.status_code}, and not as calift does.",
                status=response.status_code,
                hint=f"{self._asked_there()}Is that the address of a calift service? "
                "CALIFT_API_URL names another.",
            )
        message = str(problem["detail"])
        hint = str(problem.get("hint") or "")
        if response.status_code == 401:
            message = f"{self.base_url} says: {message}"
            sent = f"The token came {self._token_from}. " if self._token_from else ""
            hint = f"{sent}{self._asked_there()}{hint}"
        errors = [e for e in problem.get("errors") or [] if isinstance(e, dict)]
        if len(errors) > 1:
            lines = [
                f"  {e.get('pointer') or e.get('parameter', '')}: {e.get('message', '')}"
                for e in errors
            ]
            message += "\n" + "\n".join(lines) + "\n"
        return ServiceError(
            message,
            status=response.status_code,
            problem=problem,
            hint=hint,
        )

    def _asked_there(self) -> str:
        return f"This address was asked because {self._why_url}. " if self._why_url else ""

    def _read(self, response: httpx.Response, into: type[_T]) -> _T:
        try:
            return TypeAdapter(into).validate_json(response.content)
        except ValidationError as error:
            raise ServiceError(
                f"{self.base_url} gave an answer that this version ({__version__}) cannot read: "
                f"{error.error_count()} faults in {response.request.url.path}.",
                status=response.status_code,
                hint="Use the same version of calift on both sides.",
            ) from error

    def _get(self, path: str, into: type[_T], **params: Any) -> _T:
        return self._read(self._send("GET", path, params=params), into)

    def _post(self, path: str, body: BaseModel | None) -> RunDetail:
        return self._read(self._send("POST", path, body=body), RunDetail)

    def _post_once(self, path: str, body: BaseModel, key: str | None) -> RunDetail:
        return self._read(self._send_once(path, body, key), RunDetail)

    def _send_once(
        self, path: str, body: BaseModel | Mapping[str, Any], key: str | None
    ) -> httpx.Response:
        """Post with a key, so that an answer lost on the way can be asked for again."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        try:
            return self._send("POST", path, body=body, headers=headers)
        except ServiceUnavailableError as error:
            if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                raise
            return self._send("POST", path, body=body, headers=headers)

    @contextmanager
    def _stream(
        self, path: str, *, params: Mapping[str, Any], headers: Mapping[str, str], wait_s: float
    ) -> Iterator[httpx.Response]:
        timeout = httpx.Timeout(wait_s, connect=10.0)
        try:
            with self._http.stream(
                "GET", path, params=_given(params), headers=dict(headers), timeout=timeout
            ) as response:
                if response.status_code >= 300:
                    response.read()
                    raise self._error(response)
                yield response
        except httpx.TransportError as error:
            raise self._unavailable(error) from error

    def _download(self, path: str, target: str | os.PathLike[str]) -> Path:
        target = Path(target)
        with self._stream(path, params={}, headers={"Accept": "*/*"}, wait_s=120.0) as response:
            expected = response.headers.get("etag", "").strip('"')
            digest = hashlib.sha256()
            with atomic_path(target) as temporary, temporary.open("wb") as file:
                for piece in response.iter_bytes():
                    digest.update(piece)
                    file.write(piece)
                if expected and digest.hexdigest() != expected:
                    raise StorageError(
                        f"the download of {path} is damaged: its SHA-256 is not the announced one.",
                        hint="Try again.",
                    )
        return target

    # -- runs ---------------------------------------------------------------------------------

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
        return self._post_once("/runs", body, idempotency_key)

    def validate(self, spec: Spec) -> Validation:
        """A dry run: faults, what is missing on the service's machine, what it will cost."""
        body = RunSubmit(spec=_spec_body(spec))
        return self._read(self._send("POST", "/runs/validate", body=body), Validation)

    def runs(
        self,
        *,
        phase: Sequence[str] = (),
        method: Sequence[str] = (),
        model: Sequence[str] = (),
        suite: Sequence[str] = (),
        tag: Sequence[str] = (),
        q: str = "",
        archived: bool | None = False,
        sort: SortKey = "-created",
        cursor: str | None = None,
        limit: int = 50,
    ) -> RunPage:
        """A page of runs. Lists filter by any of their values, `tag` by all, `q` by words.

        Args:
            phase: such as `RUNNING`.
            method: such as `carot`.
            model: `name/weights`.
            suite: the ID data.
            tag: tags that must all be there.
            q: words in name, notes or id.
            archived: None shows both kinds.
            sort: a key; with `-` from the top down. Missing numbers come last.
            cursor: `next_cursor` of the page before.
            limit: at most 200.
        """
        return self._get(
            "/runs",
            RunPage,
            phase=list(phase),
            method=list(method),
            model=list(model),
            suite=list(suite),
            tag=list(tag),
            q=q,
            archived="any" if archived is None else archived,
            sort=sort,
            cursor=cursor,
            limit=limit,
        )

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
        return self._get(_at("/runs", run_id), RunDetail)

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
        return self._read(self._send("PATCH", _at("/runs", run_id), body=body), RunDetail)

    def cancel(self, run_id: str) -> RunDetail:
        """Ask a run to stop; repeatable."""
        return self._post(_at("/runs", run_id, "cancel"), None)

    def retry(self, run_id: str) -> RunDetail:
        """Queue a failed or cancelled run again."""
        return self._post(_at("/runs", run_id, "retry"), None)

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
        return self._post_once(_at("/runs", run_id, "clone"), body, idempotency_key)

    def delete(self, run_id: str) -> None:
        """Delete a run that does not work, with its files."""
        self._send("DELETE", _at("/runs", run_id))

    def wait(
        self, run_id: str, poll_s: float = 1.0, *, timeout_s: float | None = None
    ) -> RunDetail:
        """Wait until a run has ended, and return it, whatever its end.

        A service that is away for less than a minute is waited for.

        Raises:
            TimeoutError: `timeout_s` seconds went by.
        """
        return self._wait(lambda: self.run(run_id), f"run {run_id}", poll_s, timeout_s)

    def _wait(
        self,
        ask: Callable[[], _Ends],
        what: str,
        poll_s: float,
        timeout_s: float | None,
        *,
        ends: Collection[str] = TERMINAL_PHASES,
    ) -> _Ends:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        answered = time.monotonic()
        while True:
            try:
                found = ask()
                answered = time.monotonic()
                if found.phase in ends:
                    return found
            except ServiceUnavailableError:
                if time.monotonic() - answered > _PATIENCE_S:
                    raise
            if deadline is not None and time.monotonic() + poll_s > deadline:
                raise TimeoutError(f"{what} had not ended after {timeout_s:g} s")
            time.sleep(poll_s)

    # -- sweeps -------------------------------------------------------------------------------

    def sweep(
        self, spec: SweepSpec | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> SweepDetail:
        """Begin a sweep. With an own key, the same request gives the same sweep."""
        return self._read(
            self._send_once("/sweeps", _sweep_body(spec), idempotency_key), SweepDetail
        )

    def validate_sweep(self, spec: SweepSpec | Mapping[str, Any]) -> SweepValidation:
        """A dry run: faults, what is missing, how many runs, hours and bytes a sweep takes."""
        sent = self._send("POST", "/sweeps/validate", body=_sweep_body(spec))
        return self._read(sent, SweepValidation)

    def sweeps(self, *, cursor: str | None = None, limit: int = 50) -> SweepPage:
        """A page of sweeps, the newest first."""
        return self._get("/sweeps", SweepPage, cursor=cursor, limit=limit)

    def get_sweep(self, sweep_id: str) -> SweepDetail:
        """One sweep: its contenders with their rates, what it has cost and will cost."""
        return self._get(_at("/sweeps", sweep_id), SweepDetail)

    def sweep_runs(
        self,
        sweep_id: str,
        *,
        sort: SortKey = "created",
        cursor: str | None = None,
        limit: int = 50,
    ) -> RunPage:
        """A page of the runs that a sweep has queued so far."""
        return self._get(
            _at("/sweeps", sweep_id, "runs"), RunPage, sort=sort, cursor=cursor, limit=limit
        )

    def sweep_verdict(self, sweep_id: str) -> SweepVerdict:
        """What a sweep says so far; a 404 while no method has all of its judged runs."""
        return self._get(_at("/sweeps", sweep_id, "verdict"), SweepVerdict)

    def cancel_sweep(self, sweep_id: str) -> SweepDetail:
        """Cancel a sweep and its runs that have not ended; repeatable."""
        return self._steer(sweep_id, "cancel")

    def pause_sweep(self, sweep_id: str) -> SweepDetail:
        """Queue nothing more of a sweep and take waiting runs out of line; repeatable."""
        return self._steer(sweep_id, "pause")

    def resume_sweep(self, sweep_id: str, *, max_hours: float | None = None) -> SweepDetail:
        """Go on with a paused sweep, with another cap on its hours if one is given."""
        return self._steer(sweep_id, "resume", SweepResume(max_hours=max_hours))

    def retry_sweep(self, sweep_id: str) -> SweepDetail:
        """Queue the failed and cancelled runs of a sweep again, and go on with it."""
        return self._steer(sweep_id, "retry")

    def _steer(self, sweep_id: str, action: str, body: BaseModel | None = None) -> SweepDetail:
        return self._read(
            self._send("POST", _at("/sweeps", sweep_id, action), body=body), SweepDetail
        )

    def wait_sweep(
        self, sweep_id: str, poll_s: float = 2.0, *, timeout_s: float | None = None
    ) -> SweepDetail:
        """Wait until a sweep has ended or is paused, and return it.

        A service that is away for less than a minute is waited for.

        Raises:
            TimeoutError: `timeout_s` seconds went by.
        """
        return self._wait(
            lambda: self.get_sweep(sweep_id),
            f"sweep {sweep_id}",
            poll_s,
            timeout_s,
            ends=(*SWEEP_ENDS, "PAUSED"),
        )

    # -- what a run says ----------------------------------------------------------------------

    def metrics(
        self,
        run_id: str,
        *,
        names: Sequence[str] = (),
        since_step: int = -1,
        max_points: int | None = None,
    ) -> Metrics:
        """Curves after a step, thinned to `max_points` with their extremes kept."""
        return self._get(
            _at("/runs", run_id, "metrics"),
            Metrics,
            names=list(names),
            since_step=since_step,
            max_points=max_points,
        )

    def events(self, run_id: str, *, after: int = 0) -> Iterator[RunEvent]:
        """Events as they happen, until the run ends. A dropped connection is taken up again."""
        return self._events(_at("/runs", run_id, "events"), after)

    def _events(self, path: str, after: int) -> Iterator[RunEvent]:
        last, answered = after, time.monotonic()
        while True:
            try:
                with self._stream(
                    path,
                    params={},
                    headers={"Accept": "text/event-stream", "Last-Event-ID": str(last)},
                    wait_s=_PATIENCE_S,
                ) as response:
                    for kind, data in _messages(response.iter_lines()):
                        answered = time.monotonic()
                        if kind == "end":
                            return
                        event = RunEvent.model_validate_json(data)
                        last = event.id
                        yield event
            except ServiceUnavailableError:
                if time.monotonic() - answered > _PATIENCE_S:
                    raise
            time.sleep(0.5)

    def events_after(self, run_id: str, after: int = 0, limit: int = 200) -> list[RunEvent]:
        """The events after an id, by polling instead of one long answer."""
        return self._get(
            _at("/runs", run_id, "events", "history"), list[RunEvent], after=after, limit=limit
        )

    def checkpoints(self, run_id: str) -> list[Artifact]:
        """Stored checkpoints."""
        return self._get(_at("/runs", run_id, "checkpoints"), list[Artifact])

    def artifacts(self, run_id: str) -> list[Artifact]:
        """Stored files."""
        return self._get(_at("/runs", run_id, "artifacts"), list[Artifact])

    def download_artifact(self, run_id: str, name: str, path: str | os.PathLike[str]) -> Path:
        """Download a file; what arrives is checked against its SHA-256.

        Raises:
            StorageError: the file cannot be written, or what arrived is damaged.
        """
        return self._download(_at("/runs", run_id, "artifacts", *name.split("/")), path)

    def logs(
        self, run_id: str, *, offset: int = 0, limit: int = 65_536, tail: int | None = None
    ) -> LogPage:
        """A piece of the log from a byte offset; a negative one counts from the end.

        With `tail`, the last so many lines instead, as far as they are within `limit` bytes.
        """
        return self._get(
            _at("/runs", run_id, "logs"), LogPage, offset=offset, limit=limit, tail=tail
        )

    def run_evaluations(self, run_id: str) -> list[Evaluation]:
        """A run's evaluations in the order they were made."""
        return self._get(_at("/runs", run_id, "evaluations"), list[Evaluation])

    def spectra(self, run_id: str) -> list[Spectrum]:
        """Singular values by step; the finished model's last."""
        return self._get(_at("/runs", run_id, "spectra"), list[Spectrum])

    def report(self, run_id: str) -> Report:
        """`report.json` of a finished run."""
        return self._get(_at("/runs", run_id, "report"), Report)

    def frontier(self, run_id: str) -> Frontier:
        """The path of a WiSE-FT run between the zero-shot model and the fine-tuned one.

        Raises:
            ServiceError: with status 404 when the run measured none.
        """
        return self._get(_at("/runs", run_id, "frontier"), Frontier)

    # -- evaluation jobs ----------------------------------------------------------------------

    def evaluate(
        self,
        runs: Sequence[str],
        *,
        suites: Sequence[str] = (),
        shifts: Mapping[str, str] | None = None,
        folders: Sequence[str] = (),
        corruptions: Mapping[str, Any] | None = None,
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

    def evaluation_jobs(
        self,
        *,
        run_id: Sequence[str] = (),
        phase: Sequence[str] = (),
        cursor: str | None = None,
        limit: int = 50,
    ) -> EvaluationJobPage:
        """A page of evaluation jobs, newest first: of any of the runs, in any of the phases."""
        return self._get(
            "/evaluation-jobs",
            EvaluationJobPage,
            run_id=list(run_id),
            phase=list(phase),
            cursor=cursor,
            limit=limit,
        )

    def evaluation_job(self, job_id: str) -> EvaluationJob:
        """One evaluation job."""
        return self._get(_at("/evaluation-jobs", job_id), EvaluationJob)

    def cancel_evaluation(self, job_id: str) -> EvaluationJob:
        """Ask a job to stop; repeatable. What it has finished stays."""
        path = _at("/evaluation-jobs", job_id, "cancel")
        return self._read(self._send("POST", path), EvaluationJob)

    def retry_evaluation(self, job_id: str) -> EvaluationJob:
        """Queue a failed or cancelled job again; it goes on where it was."""
        path = _at("/evaluation-jobs", job_id, "retry")
        return self._read(self._send("POST", path), EvaluationJob)

    def delete_evaluation(self, job_id: str) -> None:
        """Delete a job that does not work; its results stay."""
        self._send("DELETE", _at("/evaluation-jobs", job_id))

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
        path = _at("/evaluation-jobs", job_id, "evaluations")
        return self._get(path, EvaluationPage, cursor=cursor, limit=limit)

    def evaluation_events(self, job_id: str, *, after: int = 0) -> Iterator[RunEvent]:
        """Events of a job as they happen, until it ends."""
        return self._events(_at("/evaluation-jobs", job_id, "events"), after)

    def evaluation_logs(
        self, job_id: str, *, offset: int = 0, limit: int = 65_536, tail: int | None = None
    ) -> LogPage:
        """A piece of a job's log, as `logs`."""
        path = _at("/evaluation-jobs", job_id, "logs")
        return self._get(path, LogPage, offset=offset, limit=limit, tail=tail)

    # -- results ------------------------------------------------------------------------------

    def evaluations(
        self,
        *,
        run_id: Sequence[str] = (),
        dataset: Sequence[str] = (),
        role: Sequence[Role] = (),
        cursor: str | None = None,
        limit: int = 50,
    ) -> EvaluationPage:
        """A page of evaluations of all runs, newest first."""
        return self._get(
            "/evaluations",
            EvaluationPage,
            run_id=list(run_id),
            dataset=list(dataset),
            role=list(role),
            cursor=cursor,
            limit=limit,
        )

    def evaluation(self, evaluation_id: str) -> Evaluation:
        """One evaluation."""
        return self._get(_at("/evaluations", evaluation_id), Evaluation)

    def reliability(
        self,
        evaluation_id: str,
        *,
        binning: AskedBinning = AS_EVALUATED,
        temperature: float | None = None,
        calibrator: str | None = None,
        fit_on: str | None = None,
        oracle: bool = False,
    ) -> Reliability:
        """A reliability diagram as numbers; what is None is as it was evaluated.

        With a calibrator, of what it makes of the predictions; see `calibrate`.
        """
        return self._get(
            _at("/evaluations", evaluation_id, "reliability"),
            Reliability,
            **binning.model_dump(),
            temperature=temperature,
            calibrator=calibrator,
            fit_on=fit_on,
            oracle=oracle or None,
        )

    def measures(
        self,
        evaluation_id: str,
        *,
        binning: AskedBinning = AS_EVALUATED,
        temperature: float | None = None,
        classwise: bool = True,
    ) -> MeasureSet:
        """Every measure of an evaluation with floor and interval; None is as it was evaluated."""
        return self._get(
            _at("/evaluations", evaluation_id, "metrics"),
            MeasureSet,
            **binning.model_dump(),
            temperature=temperature,
            classwise=classwise,
        )

    def audit(self, evaluation_id: str, *, temperature: float | None = None) -> MeasureSet:
        """The same predictions under the estimators in use, each with its floor."""
        return self._get(
            _at("/evaluations", evaluation_id, "audit"), MeasureSet, temperature=temperature
        )

    def slices(
        self,
        evaluation_id: str,
        *,
        by: Literal["all", "class", "predicted", "confusion", "confidence", "cluster"] = "class",
        where: str | None = None,
        sort: Literal["key", "n", "accuracy", "gap", "ece"] = "key",
        descending: bool = False,
        min_n: int = 30,
        binning: AskedBinning = AS_EVALUATED,
        temperature: float | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> SlicePage:
        """Calibration by class, confidence or source, of the samples that meet a condition.

        Args:
            evaluation_id: of an evaluation.
            by: what makes a slice.
            where: such as `confidence >= 0.9 and not correct and label in ("shirt", 3)`.
            sort: `key` is the order of classes, bins or names.
            descending: largest first.
            min_n: fewest samples that a slice's ECE is given for.
            binning: of each slice, of fewer bins where it is small.
            temperature: None is as it was evaluated.
            offset: slices before the page.
            limit: at most 200.
        """
        return self._get(
            _at("/evaluations", evaluation_id, "slices"),
            SlicePage,
            by=by,
            where=where,
            sort=sort,
            descending=descending,
            min_n=min_n,
            **binning.model_dump(),
            temperature=temperature,
            offset=offset,
            limit=limit,
        )

    def samples(
        self,
        evaluation_id: str,
        *,
        where: str | None = None,
        lower: float | None = None,
        upper: float | None = None,
        bin: int | None = None,
        binning: AskedBinning = AS_EVALUATED,
        against: str | None = None,
        outcome: Literal["gained", "lost", "both", "neither"] | None = None,
        sort: Literal["stored", "confidence", "gap", "nll", "change"] = "stored",
        descending: bool = False,
        top: int = 5,
        temperature: float | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> SamplePage:
        """Samples of an evaluation one by one, with what the model says of each.

        Args:
            evaluation_id: of an evaluation.
            where: such as `confidence >= 0.9 and not correct`, as for `slices`.
            lower: the confidence lies above it.
            upper: the confidence is at most this; with `lower`, a bin of a diagram.
            bin: index of a bin under `binning`, from 0 and empty ones counted.
            binning: of `bin`.
            against: another model's evaluation on the same samples.
            outcome: against that one: right now and wrong before (`gained`), `lost`, right in
                `both`, or `neither`.
            sort: `change` is the gain in the true class's log-likelihood over `against`.
            descending: largest first.
            top: how many of the most probable classes each sample comes with, at most 10.
            temperature: None is as it was evaluated.
            cursor: `next_cursor` of the page before.
            limit: at most 200.
        """
        return self._get(
            _at("/evaluations", evaluation_id, "samples"),
            SamplePage,
            where=where,
            lower=lower,
            upper=upper,
            bin=bin,
            **binning.model_dump(),
            against=against,
            outcome=outcome,
            sort=sort,
            descending=descending,
            top=top,
            temperature=temperature,
            cursor=cursor,
            limit=limit,
        )

    def sample_traits(
        self,
        evaluation_id: str,
        *,
        where: str | None = None,
        lower: float | None = None,
        upper: float | None = None,
        bin: int | None = None,
        binning: AskedBinning = AS_EVALUATED,
        against: str | None = None,
        outcome: Literal["gained", "lost", "both", "neither"] | None = None,
        temperature: float | None = None,
    ) -> SampleTraits:
        """Classes that the chosen samples have more often than the rest; see `samples`."""
        return self._get(
            _at("/evaluations", evaluation_id, "samples", "traits"),
            SampleTraits,
            where=where,
            lower=lower,
            upper=upper,
            bin=bin,
            **binning.model_dump(),
            against=against,
            outcome=outcome,
            temperature=temperature,
        )

    def sample_looks(
        self,
        evaluation_id: str,
        *,
        where: str | None = None,
        lower: float | None = None,
        upper: float | None = None,
        bin: int | None = None,
        binning: AskedBinning = AS_EVALUATED,
        against: str | None = None,
        outcome: Literal["gained", "lost", "both", "neither"] | None = None,
        temperature: float | None = None,
        most: int = 60,
    ) -> SampleLooks:
        """How the chosen images look against the rest; see `samples`.

        Of both sides at most `most` images are measured.
        """
        return self._get(
            _at("/evaluations", evaluation_id, "samples", "looks"),
            SampleLooks,
            where=where,
            lower=lower,
            upper=upper,
            bin=bin,
            **binning.model_dump(),
            against=against,
            outcome=outcome,
            temperature=temperature,
            most=most,
        )

    def doubtful_labels(
        self, evaluation_id: str, *, threshold: float = 0.8, top: int = 5, limit: int = 50
    ) -> DoubtfulLabels:
        """Likely label errors: all runs of the suite say the same other class, and surely."""
        return self._get(
            _at("/evaluations", evaluation_id, "samples", "doubtful"),
            DoubtfulLabels,
            threshold=threshold,
            top=top,
            limit=limit,
        )

    def sample_answers(
        self, evaluation_id: str, sample_id: str, *, run_id: str | None = None, top: int = 5
    ) -> SampleHistory:
        """What a run says of one image on ID data and under each corruption.

        Args:
            evaluation_id: of an evaluation that has the sample.
            sample_id: its id there.
            run_id: whose answers; None: those of the evaluation's own run.
            top: how many of the most probable classes each answer comes with.
        """
        path = _at("/samples", evaluation_id, sample_id, "answers")
        return self._get(path, SampleHistory, run_id=run_id, top=top)

    def thumbnail(self, evaluation_id: str, sample_id: str, *, size: int = 160) -> bytes:
        """The image of a sample as the model saw it, as PNG or JPEG.

        Args:
            evaluation_id: of the evaluation that it is in.
            sample_id: its id there.
            size: pixels of its longer side, from 64 to 512.

        Raises:
            ServiceError: 404 with the code `NO_IMAGE` where no image of it is known.
        """
        path = _at("/samples", evaluation_id, sample_id, "thumbnail")
        return self._send("GET", path, params={"size": size}, headers={"Accept": "*/*"}).content

    def run_slices(
        self,
        run_id: str,
        *,
        where: str | None = None,
        role: Sequence[Role] = (),
        min_n: int = 30,
        binning: AskedBinning = AS_EVALUATED,
        temperature: float | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> SlicePage:
        """The samples that meet a condition on every data set of a run: one slice each.

        Arguments are those of `slices`.
        """
        return self._get(
            _at("/runs", run_id, "slices"),
            SlicePage,
            where=where,
            role=list(role),
            min_n=min_n,
            **binning.model_dump(),
            temperature=temperature,
            offset=offset,
            limit=limit,
        )

    def calibrate(
        self,
        evaluation_id: str,
        kind: str = "temperature",
        *,
        fit_on: str | None = None,
        oracle: bool = False,
        binning: AskedBinning = AS_EVALUATED,
    ) -> CalibratorEffect:
        """Fit a calibrator, and the diagram of an evaluation before and after it.

        Args:
            evaluation_id: what it is applied to.
            kind: temperature, vector, histogram, isotonic or tsp.
            fit_on: another evaluation of the run; None is the run's ID calibration split.
            oracle: allow `fit_on`; without it that is a ServiceError with the code `LEAKAGE`.
            binning: of the error and of the diagrams.
        """
        return self._get(
            _at("/evaluations", evaluation_id, "calibrators"),
            CalibratorEffect,
            kind=kind,
            fit_on=fit_on,
            oracle=oracle or None,
            **binning.model_dump(),
        )

    def transfer(
        self,
        run_id: str,
        kind: str = "temperature",
        *,
        dataset: Sequence[str] = (),
        binning: AskedBinning = AS_EVALUATED,
    ) -> TransferMatrix:
        """A calibrator fitted on A and tested on B, for the ID data and shifts or those named.

        The first answer takes as long as passing over all their logits.
        """
        return self._get(
            _at("/runs", run_id, "calibrators", "transfer"),
            TransferMatrix,
            kind=kind,
            dataset=list(dataset),
            **binning.model_dump(),
        )

    def budget(
        self,
        evaluation_id: str,
        difference: float,
        *,
        metric: str = "ece",
        against: str | None = None,
        level: float = 0.95,
        power: float = 0.8,
    ) -> Budget:
        """How many samples show a difference of a metric.

        Args:
            evaluation_id: whose noise counts.
            difference: to be shown, in the metric's unit; for ece of L2 errors, a fraction.
            metric: accuracy, ece, nll, brier or confidence.
            against: another model's evaluation on the same samples; None: samples of its own.
            level: of the two-sided test.
            power: chance to show the difference when it is real.
        """
        return self._get(
            _at("/evaluations", evaluation_id, "budget"),
            Budget,
            difference=difference,
            metric=metric,
            against=against,
            level=level,
            power=power,
        )

    def download_predictions(self, evaluation_id: str, path: str | os.PathLike[str]) -> Path:
        """Download the per-sample predictions (Parquet).

        Raises:
            StorageError: the file cannot be written, or what arrived is damaged.
        """
        return self._download(_at("/evaluations", evaluation_id, "predictions"), path)

    def import_predictions(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        dataset: str | None = None,
        role: PredictedRole | None = None,
        class_names: Sequence[str] | None = None,
        run: str | None = None,
        keep: Keep = "auto",
        idempotency_key: str | None = None,
    ) -> RunDetail:
        """Bring in predictions that were made elsewhere: a finished run of its own, or part of one.

        The file is read and checked here, and what is sent is a predictions file of calift.

        Args:
            path: NPZ, Parquet or CSV with `labels` and `probs` or `logits`; see
                `calift_core.predictions.foreign.load`.
            name: of the run; None: the file's.
            dataset: name of the data set; None: what the file says, else its name.
            role: `id`, `shift`, `corruption`, `calibration` or `validation`; None: what the file
                says, else `id`.
            class_names: None: what the file says.
            run: an imported run that the data set is added to.
            keep: `full`, or how many of the largest logits are kept; `auto` decides by size.
            idempotency_key: the same key and file give the same run.

        Raises:
            PredictionsError: the file breaks its contract.
        """
        from calift_core.analysis.imported import run_name
        from calift_core.predictions.foreign.load import load_predictions
        from calift_core.predictions.write import write_predictions

        predictions = load_predictions(path, dataset=dataset, role=role, class_names=class_names)
        given = {"name": name or run_name(Path(path).stem), "run": run}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "predictions.parquet"
            write_predictions(file, predictions, keep=keep)
            return self._upload(file, given, idempotency_key or uuid.uuid4().hex)

    def _upload(self, file: Path, params: Mapping[str, Any], key: str) -> RunDetail:
        headers = {
            "Content-Type": "application/vnd.apache.parquet",
            "Content-Length": str(file.stat().st_size),
            "Idempotency-Key": key,
        }
        timeout = httpx.Timeout(_IMPORT_WAIT_S, connect=10.0)
        try:
            with file.open("rb") as body:
                response = self._http.request(
                    "POST", "/predictions", params=_given(params), content=body, headers=headers,
                    timeout=timeout,
                )  # fmt: skip
        except httpx.TransportError as error:
            raise self._unavailable(error) from error
        if response.status_code >= 300:
            raise self._error(response)
        return self._read(response, RunDetail)

    def compare(
        self,
        run_ids: Sequence[str],
        baseline: str | None = None,
        *,
        datasets: Sequence[str] = (),
        paired: bool = True,
    ) -> Comparison:
        """Put 2 to 10 runs side by side.

        Args:
            run_ids: the runs.
            baseline: one of them; None: the first.
            datasets: what differences and confidence sets are wanted on; none: all.
            paired: make differences and confidence sets at all.
        """
        return self._get(
            "/compare",
            Comparison,
            run_id=list(run_ids),
            baseline=baseline,
            dataset=list(datasets),
            paired=paired,
        )

    def leaders(self, run_ids: Sequence[str]) -> Leaders:
        """Which of 2 to 10 runs may be the best, on ID data, over shifts and corruptions."""
        return self._get("/compare/leaders", Leaders, run_id=list(run_ids))

    def ledger(
        self, run_id: str, against: str, *, datasets: Sequence[str] = (), step: float = 0.1
    ) -> Ledger:
        """What a run has gained and lost against another on the data that both were tested on.

        Args:
            run_id: the run.
            against: another run, such as its zero-shot model.
            datasets: names; none: all.
            step: by how much a confidence must differ to have moved.
        """
        return self._get(
            _at("runs", run_id, "ledger"),
            Ledger,
            against=against,
            dataset=list(datasets),
            step=step,
        )

    def decision(
        self, run_id: str, *, risk: float = 0.05, level: float = 0.95, datasets: Sequence[str] = ()
    ) -> Decision:
        """A threshold for at most so many errors among what is kept, and what it gives.

        Args:
            run_id: a run with predictions of its ID calibration split.
            risk: largest share of errors among what is kept.
            level: how often the promise holds.
            datasets: names; none: all that the run was tested on.
        """
        return self._get(
            _at("runs", run_id, "decision"),
            Decision,
            risk=risk,
            level=level,
            dataset=list(datasets),
        )

    def bound(self, suite: str) -> BoundMonitor:
        """Finished runs on a suite with the bound's terms, and how these rank with the errors."""
        return self._get("/bound", BoundMonitor, suite=suite)

    # -- catalogue ----------------------------------------------------------------------------

    def methods(self) -> list[MethodInfo]:
        """Methods with the JSON schema of their options."""
        return self._get("/methods", list[MethodInfo])

    def models(self) -> list[ModelInfo]:
        """Models that are known by name."""
        return self._get("/models", list[ModelInfo])

    def datasets(self) -> list[DatasetInfo]:
        """Suites, and which of them are on the service's machine."""
        return self._get("/datasets", list[DatasetInfo])

    def suites(self, *, phase: Sequence[str] = ()) -> list[SuiteRuns]:
        """The suites of the runs in any of these phases, that of the newest run first."""
        return self._get("/suites", list[SuiteRuns], phase=list(phase))

    def workers(self) -> list[WorkerInfo]:
        """Workers that have reported in."""
        return self._get("/workers", list[WorkerInfo])

    def stats(self) -> Stats:
        """The overview's numbers."""
        return self._get("/stats", Stats)

    # -- operations ---------------------------------------------------------------------------

    def change_runs(
        self,
        action: BulkAction,
        *,
        ids: Sequence[str] | None = None,
        filter: BulkFilter | None = None,
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
        return self._read(self._send("POST", "/runs/bulk", body=body), BulkDone)

    def drain_worker(self, worker_id: str) -> WorkerInfo:
        """Have a worker take no run after the one that it works on."""
        return self._read(self._send("POST", _at("/workers", worker_id, "drain")), WorkerInfo)

    def resume_worker(self, worker_id: str) -> WorkerInfo:
        """Have a drained worker take runs again."""
        return self._read(self._send("POST", _at("/workers", worker_id, "resume")), WorkerInfo)

    def views(self, *, page: str | None = None) -> list[SavedView]:
        """Saved views, of one page of the dashboard or of all, the newest first."""
        return self._get("/views", list[SavedView], page=page)

    def view(self, view_id: str) -> SavedView:
        """One saved view."""
        return self._get(_at("/views", view_id), SavedView)

    def save_view(self, view: ViewSave) -> SavedView:
        """Keep a page of the dashboard under a short address, `/v/ID`."""
        return self._read(self._send("POST", "/views", body=view), SavedView)

    def delete_view(self, view_id: str) -> None:
        """Forget a saved view."""
        self._send("DELETE", _at("/views", view_id))

    def tokens(self) -> list[TokenInfo]:
        """One's own tokens; an admin sees everybody's."""
        return self._get("/tokens", list[TokenInfo])

    def make_token(self, token: TokenMake) -> TokenMade:
        """Make a token for somebody; its text is in the answer and nowhere else."""
        return self._read(self._send("POST", "/tokens", body=token), TokenMade)

    def revoke_token(self, token_id: str) -> None:
        """Make a token worthless; repeatable."""
        self._send("DELETE", _at("/tokens", token_id))

    def audit_log(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        target: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> AuditPage:
        """Who did what to which object, the newest first; for admins."""
        return self._get(
            "/audit",
            AuditPage,
            actor=actor,
            action=action,
            target=target,
            before=before,
            limit=limit,
        )

    def prune(self, asked: PruneAsked, *, preview: bool = False) -> Pruned:
        """Remove what is old, or with `preview` only say what that would be; for admins."""
        path = "/retention/preview" if preview else "/retention"
        return self._read(self._send("POST", path, body=asked), Pruned)

    # -- log-ins ------------------------------------------------------------------------------

    def visitor(self) -> Visitor:
        """Whose token or session this client has, and what it may do."""
        return self._get("/sessions/current", Visitor)

    def open_session(self) -> Opened:
        """Log in: a session with this client's token, or with a link's code, which is used up."""
        return self._read(self._send("POST", "/sessions"), Opened)

    def end_session(self) -> None:
        """Log out."""
        self._send("DELETE", "/sessions/current")

    def make_link(self) -> Opened:
        """A code that logs in to the dashboard once, at `/enter?code=…`."""
        return self._read(self._send("POST", "/sessions/links"), Opened)

    def health(self) -> Health:
        """Whether the service lives; needs no token."""
        return self._get("/health", Health)

    def server_date(self) -> str | None:
        """What the service's clock says, to a second, as HTTP writes it; None: it does not say."""
        date: str | None = self._send("GET", "/health").headers.get("date")
        return date

    def ready(self) -> Ready:
        """Whether database, tables, broker and artifact store answer; needs no token.

        Raises:
            ServiceError: with status 503 and what does not answer.
        """
        return self._get("/readyz", Ready)


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


def _at(*parts: str) -> str:
    """A path whose parts after the first are data and not syntax."""
    first, *rest = parts
    # A part of dots alone would be resolved away before it is sent.
    safe = [quote(part, safe="") if part.strip(".") else part.replace(".", "%2E") for part in rest]
    return "/".join([first, *safe])


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        key: ("true" if value else "false") if isinstance(value, bool) else value
        for key, value in (params or {}).items()
        if value is not None and value != []
    }


def _messages(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Server-sent events as (event, data); comments and half messages are left out."""
    kind, data = "message", list[str]()
    for line in lines:
        if not line:
            if data:
                yield kind, "\n".join(data)
            kind, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            data.append(value)
