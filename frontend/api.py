"""The API as the pages see it: the visitor's client, answers that are kept, faults in words."""

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, NoReturn, ParamSpec, TypeVar
from urllib.parse import urlencode, urlsplit

import streamlit as st

from calift_core.client import Client
from calift_core.errors import CaliftError, ServiceError
from calift_core.schema.report import Role
from calift_core.schema.unlabelled import UnlabelledRecord
from calift_core.schema.wire.answers import Leaders, Ledger
from calift_core.schema.wire.queries import CompareQuery, Query, ReliabilityQuery
from calift_core.schema.wire.results import (
    Comparison,
    DoubtfulLabels,
    Evaluation,
    Frontier,
    Reliability,
    SampleHistory,
)
from calift_core.schema.wire.runs import TERMINAL_PHASES, Metrics, RunSummary, Validation
from calift_core.schema.wire.service import FolderList, SuiteScan, Visitor
from calift_core.schema.wire.sweeps import SweepDetail, SweepValidation, SweepVerdict
from frontend import text
from frontend.authentication import session_of
from frontend.gains import Gain, clear_gains, gains

T = TypeVar("T")
P = ParamSpec("P")
Q = TypeVar("Q", bound=Query)
#: Likely label errors that are loaded at once.
_DOUBTFUL = 100


@st.cache_resource(show_spinner=False, max_entries=256, on_release=Client.close)
def _client(url: str | None, token: str) -> Client:
    return Client(url, token)


def session_token() -> str | None:
    """The session that the visitor's browser brought along; see `frontend.authentication`."""
    return session_of(st.context.cookies, st.context.headers.get("Host") or "")


def client() -> Client:
    """The typed client of the API, with the visitor's own session; the page ends without one."""
    token = session_token()
    if token is None:
        _log_in("You are not logged in.")
    return _client(os.environ.get("CALIFT_API_URL"), token)


def visitor() -> Visitor:
    """Who looks at the page, as the API knows them now; the page ends for anybody else."""
    token, state = session_token(), st.session_state
    if token is None:
        _log_in("You are not logged in.")
    if state.get("session") != token:
        # What an earlier visitor saw in this browser is not for this one.
        state.clear()
        state["session"] = token
    try:
        state["visitor"] = client().visitor()
    except CaliftError as error:
        if getattr(error, "status", 0) in (401, 403):
            _log_in("Your session has ended.")
        # One who was known before keeps seeing what was received, with a word on that.
        if "visitor" not in state:
            problem(error, "ask the API who you are")
            st.stop()
    found: Visitor = state["visitor"]
    return found


def locked(scope: Literal["submit", "admin"]) -> str:
    """Why the visitor may not do what needs a scope; empty where they may."""
    held = (st.session_state.get("visitor") or visitor()).scope
    if held in ("admin", scope):
        return ""
    return f"This needs a token of scope {scope}; yours has {held}."


def _log_in(why: str) -> NoReturn:
    place = urlsplit(str(st.context.url or ""))
    query = urlencode(dict(st.query_params), safe=",")
    here = (place.path or "/") + (f"?{query}" if query else "")
    st.html(
        f'<div class="calift-empty"><strong>{text.esc(why)}</strong>'
        f'<a href="/login?{text.esc(urlencode({"next": here}))}" target="_self">Log in</a> to go '
        "on here.</div>"
    )
    st.stop()


def problem(error: CaliftError, what: str, *, kept: str = "") -> None:
    """Say what failed, where, and the request id.

    Args:
        error: what the client raised.
        what: the action in words, such as `load the runs`.
        kept: when what is still shown was received.
    """
    if getattr(error, "status", 0) == 401:
        _log_in("Your session has ended.")
    lines = [f"**Could not {text.md(what)}:** {text.md_prose(error.message)}"]
    if error.hint:
        lines.append(text.md_prose(error.hint))
    where = [f"API {text.md(getattr(client(), 'base_url', ''))}"]
    if isinstance(error, ServiceError):
        if error.status:
            where.append(f"status {error.status}")
        body = error.problem
        where += [f"{text.md(body[k])}" for k in ("code",) if body.get(k)]
        if body.get("request_id"):
            where.append(f"request id {text.md(body['request_id'])}")
        for fault in _faults(body):
            lines.append(
                f"- {text.md(fault.get('pointer', ''))}: {text.md_prose(fault.get('message', ''))}"
            )
    if kept:
        lines.append(f"What is shown below was received at {kept}.")
    lines.append(f":small[{' · '.join(where)}]")
    show = st.warning if kept else st.error
    show("\n\n".join(lines), icon=":material/cloud_off:" if not kept else ":material/history:")


def _faults(body: Mapping[str, object]) -> list[dict[str, str]]:
    errors = body.get("errors")
    return [e for e in errors if isinstance(e, dict)] if isinstance(errors, list) else []


def fetch(what: str, call: Callable[[], T], *, key: str) -> T:
    """What `call` gives. When it fails, the error and the last answer; without one the page ends.

    Args:
        what: the action in words, for the error.
        key: of the last good answer in this session.
    """
    kept = st.session_state.setdefault("last-good", {})
    try:
        value = call()
    except CaliftError as error:
        if key in kept and getattr(error, "status", 0) != 404:
            at, value = kept[key]
            problem(error, what, kept=at)
            return value
        problem(error, what)
        st.stop()
    kept[key] = (datetime.now(UTC).strftime("%H:%M:%S UTC"), value)
    while len(kept) > 60:
        kept.pop(next(iter(kept)))
    return value


def ask(what: str, call: Callable[P, T], /, *args: P.args, **params: P.kwargs) -> T:
    """`fetch` of a call with its arguments, by which the last good answer is known."""
    return fetch(what, partial(call, *args, **params), key=f"{what}-{args}-{params}")


def act(what: str, call: Callable[[], T]) -> T | None:
    """Do something that changes the service; on failure show why and return None."""
    try:
        return call()
    except CaliftError as error:
        problem(error, what)
        return None


# ---- What is kept: answers about predictions never change, those about a run as long as nothing
# ---- happens to it (its `revision`): an evaluation job may add results to a finished one.


@st.cache_data(ttl=3600, max_entries=200, show_spinner=False)
def hint_of(run_id: str, revision: int) -> str:
    return client().run(run_id).hint


def is_working(phase: str) -> bool:
    """Whether a run may still change by itself."""
    return phase not in TERMINAL_PHASES


@st.cache_data(ttl=3600, max_entries=400, show_spinner=False)
def _stored_evaluations(run_id: str, revision: int) -> list[Evaluation]:
    return client().run_evaluations(run_id)


def evaluations(run: RunSummary) -> list[Evaluation]:
    """A run's evaluations; those of a finished run are kept until another is added."""

    def call() -> list[Evaluation]:
        if is_working(run.phase):
            return client().run_evaluations(run.id)
        return _stored_evaluations(run.id, run.revision)

    return fetch(f"load the evaluations of {run.name}", call, key=f"evaluations-{run.id}")


@st.cache_data(ttl=3600, max_entries=2000, show_spinner=False)
def _stored_answer(
    name: str, target: str, version: str | int, query: Q, _ask: Callable[[Client, str, Q], T]
) -> T:
    return _ask(client(), target, query)


def answer(ask: Callable[[Client, str, Q], T], target: str, version: str | int, query: Q) -> T:
    """What a method of the client says, kept.

    Args:
        ask: such as `Client.slices`.
        version: what the answer changes with: the digest of the predictions, or the run's revision.
    """
    return _stored_answer(ask.__name__, target, version, query, ask)


def fetched(
    what: str, ask: Callable[[Client, str, Q], T], target: str, version: str | int, query: Q
) -> T:
    """As `answer`; when it fails, as `fetch`."""
    return fetch(
        what, lambda: answer(ask, target, version, query), key=f"{ask.__name__}-{target}-{query}"
    )


def reliability(evaluation: Evaluation, query: ReliabilityQuery) -> Reliability:
    """A diagram's numbers, kept by the digest of the predictions that they are made of."""
    return fetched(
        f"make the diagram of {evaluation.run_name} on {evaluation.dataset}",
        Client.reliability,
        evaluation.id,
        evaluation.predictions_sha256,
        query,
    )


def zero_shot_of(run: RunSummary) -> RunSummary | None:
    """The newest finished zero-shot run on the same model and data, none where there is none."""
    if run.method in ("zero_shot", "imported"):
        return None
    found = fetch(
        "look for the zero-shot run",
        lambda: client().runs(
            method=["zero_shot"], phase=["SUCCEEDED"], model=[run.model], suite=[run.suite], limit=1
        ),
        key=f"zero-shot-{run.model}-{run.suite}",
    )
    return found.items[0] if found.items else None


def gains_over(run: RunSummary, base: RunSummary | None) -> dict[str, Gain | None]:
    """The differences to another run's headline, on data that both were judged on."""
    return {} if base is None else gains(evaluations(run), evaluations(base))


def clear_gains_over(run: RunSummary, base: RunSummary | None) -> dict[str, bool]:
    """By which headline numbers a run is better (true) or worse than another beyond noise."""
    if base is None or is_working(run.phase):
        return {}
    try:
        found = leaders((run.id, base.id), (run.revision, base.revision))
    except CaliftError:  # without predictions nothing is known
        return {}
    return clear_gains(found.boards, run.id)


@st.cache_data(ttl=3600, max_entries=400, show_spinner=False)
def compared(
    run_ids: tuple[str, ...],
    baseline: str,
    revisions: tuple[int, ...],
    datasets: tuple[str, ...] | None,
) -> Comparison:
    """Runs side by side on some data sets; None: without differences."""
    query = CompareQuery(
        run_id=run_ids, baseline=baseline, dataset=datasets or (), paired=datasets is not None
    )
    return client().compare(query)


@st.cache_data(ttl=3600, max_entries=200, show_spinner=False)
def curves(run_id: str, revision: int, max_points: int, names: tuple[str, ...] = ()) -> Metrics:
    """Curves of a run, all or those named, thinned to so many points with their extremes kept."""
    return client().metrics(run_id, max_points=max_points, names=names)


@st.cache_data(ttl=3600, max_entries=100, show_spinner=False)
def leaders(run_ids: tuple[str, ...], revisions: tuple[int, ...]) -> Leaders:
    return client().leaders(run_id=run_ids)


@st.cache_data(ttl=3600, max_entries=100, show_spinner=False)
def ledger(run_id: str, against: str, revision: int, base_revision: int) -> Ledger:
    return client().ledger(run_id, against=against)


@st.cache_data(ttl=60, max_entries=100, show_spinner=False)
def doubtful_labels(evaluation_id: str) -> DoubtfulLabels:
    """Likely label errors of an evaluation; kept shortly, as other runs come."""
    return client().doubtful_labels(evaluation_id, limit=_DOUBTFUL)


@st.cache_data(ttl=600, max_entries=200, show_spinner=False)
def sample_answers(evaluation_id: str, sample_id: str, run_id: str, revision: int) -> SampleHistory:
    """What a run says of one image wherever it met it; `revision` is the run's."""
    return client().sample_answers(evaluation_id, sample_id, run_id=run_id)


@st.cache_data(ttl=3600, max_entries=400, show_spinner=False)
def evaluation(evaluation_id: str) -> Evaluation:
    """One evaluation, which never changes."""
    return client().evaluation(evaluation_id)


@st.cache_data(ttl=30, max_entries=200, show_spinner=False)
def evaluations_of(dataset: str, role: Role) -> list[Evaluation]:
    return client().evaluations(dataset=[dataset], role=[role], limit=50).items


@st.cache_data(ttl=3600, max_entries=100, show_spinner=False)
def unlabelled(job_id: str) -> list[UnlabelledRecord]:
    """What a job that has succeeded found on images without labels."""
    return client().unlabelled(job_id)


@st.cache_data(ttl=3600, max_entries=100, show_spinner=False)
def frontier(run_id: str, attempt: int, _finished: str) -> Frontier | None:
    """The path of a WiSE-FT run's attempt, none where it stored none."""
    try:
        return client().frontier(run_id)
    except ServiceError as error:
        if error.status == 404:
            return None
        raise


@st.cache_data(ttl=30, max_entries=50, show_spinner=False)
def scan(suite: str, group_by: str | None = None) -> SuiteScan:
    """A look at data that a run could name; kept for a short time, as folders change."""
    return client().scan(suite=suite, group_by=group_by)


@st.cache_data(ttl=30, max_entries=50, show_spinner=False)
def folders(path: str | None) -> FolderList:
    """The folders in a registered folder of the service's machine; kept for a short time."""
    return client().folders(path)


@st.cache_data(ttl=30, max_entries=200, show_spinner=False)
def validate(document: dict[str, Any]) -> Validation:
    """What the API says of a RunSpec; kept for a short time, as runs and data come and go."""
    return client().validate(document)


@st.cache_data(ttl=30, max_entries=200, show_spinner=False)
def validate_sweep(document: dict[str, Any]) -> SweepValidation:
    """What the API says of a SweepSpec; kept for a short time."""
    return client().validate_sweep(document)


@st.cache_data(ttl=3600, max_entries=100, show_spinner=False)
def _verdict_of(sweep_id: str, phase: str, runs_done: int) -> SweepVerdict | None:
    try:
        return client().sweep_verdict(sweep_id)
    except ServiceError as error:
        if error.status == 404:
            return None
        raise


def sweep_verdict(sweep: SweepDetail) -> SweepVerdict | None:
    """What a sweep says so far; None while no method has all of its evaluation runs."""
    return act("judge the sweep", lambda: _verdict_of(sweep.id, sweep.phase, sweep.runs_done))
