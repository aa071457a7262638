"""What the pages share: the client, errors that say what and where, charts with their twins."""

from __future__ import annotations

import importlib.util
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar
from urllib.parse import urlencode, urlsplit

import plotly.graph_objects as go
import streamlit as st

from calift_core.client import Client
from calift_core.errors import CaliftError, ServiceError, ServiceUnavailableError
from calift_core.installed import as_typed
from calift_core.schema.wire import (
    TERMINAL_PHASES,
    Evaluation,
    Reliability,
    RunSummary,
    Visitor,
)
from frontend import charts, pictures, state, tables, text
from frontend.door import session_of
from frontend.tables import Markup, Table

T = TypeVar("T")

#: How many runs a picker offers; older ones are reached by their link or by searching.
PICKER_LIMIT = 200
#: The choice of runs on any data.
_EVERY_SUITE = "*"
#: Seconds that a run which a link names is kept.
_NAMED_S = 60.0
#: Runs that fit one chart: as many as there are colours that can be told apart.
MAX_RUNS = len(charts.PALETTE)
#: Seconds between two looks at a run that works.
LIVE_S = 2.0


@st.cache_resource(show_spinner=False, max_entries=256, on_release=Client.close)
def _client(url: str | None, token: str) -> Client:
    return Client(url, token)


def session_token() -> str | None:
    """The session that the visitor's browser brought along; see `frontend.door`."""
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


# ---- Errors ------------------------------------------------------------------------------------


def problem(error: CaliftError, what: str, *, kept: str = "") -> None:
    """Say what failed, where, and the request id.

    Args:
        error: what the client raised.
        what: the action in words, such as `load the runs`.
        kept: when what is still shown was received.
    """
    if getattr(error, "status", 0) == 401:
        _log_in("Your session has ended.")
    lines = [f"**Could not {text.md(what)}.** {text.md_prose(error.message)}"]
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
    if isinstance(error, ServiceUnavailableError):
        lines.append(as_typed("Start the service with `calift up`, or set `CALIFT_API_URL`."))
    if kept:
        lines.append(f"What is shown below was received at {kept}.")
    lines.append(f":small[{' · '.join(where)}]")
    show = st.warning if kept else st.error
    show("\n\n".join(lines), icon=":material/cloud_off:" if not kept else ":material/history:")


def _faults(body: Mapping[str, object]) -> list[dict[str, str]]:
    errors = body.get("errors")
    return [e for e in errors if isinstance(e, dict)] if isinstance(errors, list) else []


def fetch(what: str, call: Callable[[], T], *, key: str) -> T:
    """What `call` gives; when it fails, the error and what it gave last, or the page ends here.

    Args:
        what: the action in words, for the error.
        call: asks the API.
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


def act(what: str, call: Callable[[], T]) -> T | None:
    """Do something that changes the service; on failure show why and give none."""
    try:
        return call()
    except CaliftError as error:
        problem(error, what)
        return None


# ---- Words and marks ---------------------------------------------------------------------------


def head(title: str, lead: str = "") -> None:
    """A page's title and one sentence on what it is for."""
    note = f"<p>{text.esc(lead)}</p>" if lead else ""
    st.html(f'<div class="calift-head"><h1>{text.esc(title)}</h1>{note}</div>')


def pill(phase: str) -> Markup:
    """A run's phase as symbol, word and colour."""
    look = text.phase_look(phase)
    return mark(look.colour, look.symbol, look.word)


def mark(colour: str, symbol: str, word: str) -> Markup:
    """A word with a symbol on a coloured ground; the symbol is not read out."""
    return Markup(
        f'<span class="calift-pill {text.esc(colour)}"><span aria-hidden="true">'
        f"{text.esc(symbol)}</span>{text.esc(word)}</span>"
    )


def tags(names: Sequence[str]) -> Markup:
    """Tags in frames."""
    return Markup("".join(f'<span class="calift-tag">{text.esc(n)}</span>' for n in names))


def href(page: str, **params: str) -> str:
    """A link to a page of the dashboard, relative to any other page."""
    query = urlencode({k: v for k, v in params.items() if v}, safe=",")
    return f"{page}?{query}" if query else page


def link(words: str, page: str, *, note: str = "", **params: str) -> Markup:
    """An anchor with escaped words, and a small second line."""
    small = f"<small>{text.esc(note)}</small>" if note else ""
    return Markup(
        f'<a href="{text.esc(href(page, **params))}" target="_self">{text.esc(words)}</a>{small}'
    )


def stats(items: Sequence[tuple[str, str, str]]) -> None:
    """Cards of label, value and a small note; the note may be `Markup`."""
    cells = "".join(
        f"<div><dt>{text.esc(label)}</dt><dd>{text.esc(value)}"
        f"<small>{note if isinstance(note, Markup) else text.esc(note)}</small></dd></div>"
        for label, value, note in items
    )
    st.html(f'<dl class="calift-stats">{cells}</dl>')


def bar(share: float, label: str) -> Markup:
    """A progress bar that also says its value."""
    width = max(0.0, min(1.0, share)) * 100
    return Markup(
        f'<div class="calift-bar" role="progressbar" aria-valuenow="{width:.0f}" aria-valuemin="0"'
        f' aria-valuemax="100" aria-label="{text.esc(label)}"><i style="width:{width:.1f}%"></i>'
        "</div>"
    )


def empty(title: str, why: str) -> None:
    """An empty state: what is missing and why. The next action follows as a page link."""
    st.html(f'<div class="calift-empty"><strong>{text.esc(title)}</strong>{text.esc(why)}</div>')


def table(shown: Table, *, caption: str, **options: Any) -> None:
    """Show rows as an HTML table."""
    st.html(tables.to_html(shown, caption=caption, **options))


def flash(message: str) -> None:
    """Say something after the next rerun."""
    st.session_state["flash"] = message


def show_flash() -> None:
    """Show what `flash` left."""
    message = st.session_state.pop("flash", None)
    if message:
        st.toast(text.md(message), icon=":material/check:")


# ---- Charts ------------------------------------------------------------------------------------


def chart(
    figure: go.Figure,
    twin: Table,
    *,
    name: str,
    data: Callable[[], str] | None = None,
    wide: bool = False,
) -> None:
    """Show a figure with its description, its table and its exports.

    Args:
        figure: from `frontend.charts`.
        twin: the same numbers as a table.
        name: of the exported files and of the widgets; unique on the page.
        data: JSON for the export; default: the twin's rows.
        wide: on a narrow screen, scroll the figure sideways rather than squeeze it.
    """
    alt = charts.alt_text(figure)
    config = {
        **charts.CONFIG,
        "toImageButtonOptions": {**charts.CONFIG["toImageButtonOptions"], "filename": name},
    }
    with st.container(key=f"wide-{name}") if wide else nullcontext():
        st.plotly_chart(
            figure, theme=None, width="stretch", key=f"chart-{name}", config=config, alt=alt
        )
    with st.container(horizontal=True, gap="small", key=f"below-{name}"):
        with st.popover("Table", icon=":material/table_rows:", type="tertiary", key=f"tbl-{name}"):
            table(twin, caption=alt or name, limit=100)
        with st.popover("Export", icon=":material/download:", type="tertiary", key=f"exp-{name}"):
            _exports(figure, twin, name, data)


def _exports(figure: go.Figure, twin: Table, name: str, data: Callable[[], str] | None) -> None:
    save = partial(st.download_button, on_click="ignore", width="stretch")
    save("Table, CSV", partial(tables.to_csv, twin), f"{name}.csv", "text/csv", key=f"csv-{name}")
    save(
        "Numbers, JSON",
        data or partial(tables.to_json, twin),
        f"{name}.json",
        "application/json",
        key=f"json-{name}",
    )
    save(
        "Figure, HTML",
        partial(charts.to_html, figure, title=name),
        f"{name}.html",
        "text/html",
        key=f"html-{name}",
    )
    if importlib.util.find_spec("kaleido") and _chrome():
        for kind, mime in (("svg", "image/svg+xml"), ("pdf", "application/pdf")):
            save(
                f"Figure, {kind.upper()}",
                partial(pictures.one, figure, kind),
                f"{name}.{kind}",
                mime,
                key=f"{kind}-{name}",
            )
    else:
        st.caption(
            "SVG: the camera at the chart's upper right. PDF needs Chrome and kaleido on the "
            "dashboard's machine."
        )


@st.cache_resource(show_spinner=False)
def _chrome() -> bool:
    from shutil import which

    names = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser", "chrome")
    named = os.environ.get("BROWSER_PATH")
    return bool(named and Path(named).exists()) or any(which(n) for n in names)


# ---- Runs --------------------------------------------------------------------------------------


def is_working(phase: str) -> bool:
    """Whether a run may still change by itself."""
    return phase not in TERMINAL_PHASES


def short_suite(suite: str) -> str:
    """A suite's name with the last two folders of where it lies."""
    head, _, path = suite.partition(":")
    parts = PurePath(path).parts
    return f"{head}:…/{'/'.join(parts[-2:])}" if len(parts) > 2 else suite


def labels(runs: Sequence[RunSummary]) -> dict[str, str]:
    """A name per run id; equal names are told apart by seed, else by the id's beginning."""
    names = Counter(run.name for run in runs)
    seeds = Counter((run.name, run.seed) for run in runs)
    out = {}
    for run in runs:
        if names[run.name] == 1:
            out[run.id] = run.name
        elif seeds[run.name, run.seed] == 1:
            out[run.id] = f"{run.name} (seed {run.seed})"
        else:
            out[run.id] = f"{run.name} ({run.id[-6:]})"
    return out


def find_runs(kept: Sequence[RunSummary] = (), *, own: str = "") -> Found:
    """Widgets that search all finished runs on the server, and the newest of those that match.

    Args:
        kept: runs that are chosen already; the data of the first is where the search begins, else
            that of the newest run.
        own: a suite that comes first, where nothing is chosen.
    """
    suites = fetch(
        "list the suites", lambda: client().suites(phase=["SUCCEEDED"]), key="finished-suites"
    )
    counts = {s.suite: s.runs for s in suites}
    homes = list(dict.fromkeys(run.suite for run in kept)) or [own or next(iter(counts), "")]
    offered = list(dict.fromkeys([*homes, *counts]))
    every = f"all data ({sum(counts.values()):,})"
    with st.container(horizontal=True, vertical_alignment="bottom", key="find-runs"):
        suite = state.choice(
            st.selectbox,
            "Runs on",
            name="suite",
            options=[*offered, _EVERY_SUITE],
            # What a link names may be on several suites, and nothing of it should seem left out.
            default=homes[0] if len(homes) == 1 else _EVERY_SUITE,
            format_func=lambda s: (
                every if s == _EVERY_SUITE else f"{short_suite(s)} ({counts.get(s, 0):,})"
            ),
            help="Pages show runs on the same data; 'all data' shows every run",
            width=300,
        )
        words = state.bound(
            st.text_input,
            "Find",
            name="find",
            default="",
            decode=str,
            placeholder="in names, notes and ids",
            icon=":material/search:",
            width=300,
        ).strip()
    page = fetch(
        "list the finished runs",
        lambda: client().runs(
            phase=["SUCCEEDED"],
            suite=[] if suite == _EVERY_SUITE else [suite],
            q=words[:200],
            sort="-created",
            limit=PICKER_LIMIT,
        ),
        key=f"finished-{suite}-{words}",
    )
    if page.total > len(page.items):
        st.caption(
            f"The newest {len(page.items)} of {page.total:,} runs are offered. Find looks through "
            "all of them."
        )
    elif not page.items and (words or counts):
        where = "" if suite == _EVERY_SUITE else f" on {text.md(short_suite(suite))}"
        what = f" with {text.md(words)} in its name, notes or id" if words else ""
        st.caption(f"There is no finished run{where}{what}.")
    return Found(page.items, sum(counts.values()))


class Found(NamedTuple):
    """Finished runs that a search offers, and how many there are on all data."""

    runs: list[RunSummary]
    total: int


def named_runs(run_ids: Sequence[str], *, quiet: bool = False) -> list[RunSummary]:
    """Runs that a link or an earlier choice names, whatever is searched for now.

    Args:
        run_ids: of the runs.
        quiet: say nothing of one that cannot be loaded.
    """
    found: list[RunSummary] = []
    for run_id in run_ids:
        try:
            found.append(_named_run(run_id))
        except CaliftError as error:
            if not quiet:
                problem(error, f"load the run {run_id} that the link names")
    return found


def _named_run(run_id: str) -> RunSummary:
    """A finished run is asked for once a minute at most: a page is drawn for every click."""
    kept: dict[str, tuple[float, RunSummary]] = st.session_state.setdefault("named-runs", {})
    at, run = kept.get(run_id, (0.0, None))
    if run is None or is_working(run.phase) or time.monotonic() - at > _NAMED_S:
        run = client().run(run_id)
        kept[run_id] = (time.monotonic(), run)
    return run


def pick_runs(name: str, *, label: str = "Runs", most: int = MAX_RUNS) -> dict[str, RunSummary]:
    """A picker of finished runs, kept in the URL; the page ends here when there is none.

    The default is what was chosen last, else the newest three runs on the newest run's data.
    """
    kept = named_runs(state.ids(name) or state.remembered_runs())
    page = find_runs(kept)
    if not page.total and not kept:
        empty(
            "No finished run yet",
            "This page compares results, and no run has succeeded so far.",
        )
        st.page_link("views/new.py", label="Start a run", icon=":material/add:")
        st.stop()
    found = {run.id: run for run in [*kept, *page.runs]}
    names = labels(list(found.values()))
    several = len({run.suite for run in found.values()}) > 1

    def words(run_id: str) -> str:
        run = found[run_id]
        on = f" · {short_suite(run.suite)}" if several else ""
        return f"{names[run_id]} · {run.method}{on}"

    chosen = state.several(
        st.multiselect,
        label,
        name=name,
        options=list(found),
        default=([run.id for run in kept] or [run.id for run in page.runs[:3]])[:most],
        always=True,
        format_func=words,
        max_selections=most,
        placeholder="Choose runs",
    )
    if not chosen:
        empty("No run is chosen", "Choose at least one run above.")
        st.stop()
    state.remember_runs(chosen)
    return {run_id: found[run_id] for run_id in chosen}


def as_runs(runs: Mapping[str, RunSummary]) -> list[charts.Run]:
    """Chart runs with labels that are all different."""
    names = labels(list(runs.values()))
    return [charts.Run(run_id, names[run_id]) for run_id in runs]


@st.cache_data(ttl=3600, max_entries=400, show_spinner=False)
def _stored_evaluations(run_id: str, attempt: int, _finished: str) -> list[Evaluation]:
    return client().run_evaluations(run_id)


def evaluations(run: RunSummary) -> list[Evaluation]:
    """A run's evaluations; those of a finished attempt never change and are kept."""

    def call() -> list[Evaluation]:
        if is_working(run.phase):
            return client().run_evaluations(run.id)
        return _stored_evaluations(run.id, run.attempt, str(run.finished_at))

    return fetch(f"load the evaluations of {run.name}", call, key=f"evaluations-{run.id}")


@st.cache_data(ttl=3600, max_entries=400, show_spinner=False)
def _stored_reliability(
    evaluation_id: str, _digest: str, n_bins: int, scheme: str, norm: str, temperature: float
) -> Reliability:
    return client().reliability(
        evaluation_id, n_bins=n_bins, scheme=scheme, norm=norm, temperature=temperature
    )


def reliability(
    evaluation: Evaluation, *, n_bins: int, scheme: str, norm: str, temperature: float
) -> Reliability:
    """A diagram's numbers, kept by the digest of the predictions that they are made of."""
    return fetch(
        f"make the diagram of {evaluation.run_name} on {evaluation.dataset}",
        lambda: _stored_reliability(
            evaluation.id, evaluation.predictions_sha256, n_bins, scheme, norm, temperature
        ),
        key=f"reliability-{evaluation.id}-{n_bins}-{scheme}-{norm}-{temperature}",
    )


def verdict(value: float, null_mean: float, null_q95: float) -> str:
    """What the floor says about an error, in a sentence."""
    if value <= null_q95:
        return (
            f"Not above the floor: a perfectly calibrated model would show up to "
            f"{text.percent(null_q95)} at this n."
        )
    return (
        f"Above the floor: a perfectly calibrated model would show {text.percent(null_mean)} on "
        f"average and more than {text.percent(null_q95)} only once in twenty."
    )


def progress_cell(run: RunSummary) -> Markup:
    """Phase, share and rest of a working run."""
    p = run.progress
    if p is None or run.phase == "QUEUED":
        return Markup(text.esc("waits for a worker" if run.phase == "QUEUED" else "starting"))
    share = p.step / p.total_steps if p.total_steps else 0.0
    words = p.phase or "working"
    if p.total_steps:
        words += f", step {p.step:,} of {p.total_steps:,}"
    if p.eta_s is not None:
        words += f", {text.duration(p.eta_s)} left"
    return Markup(bar(share, words) + f"<small>{text.esc(words)}</small>")


def against(run: RunSummary, base: RunSummary | None) -> list[tuple[str, str, str]]:
    """A run's headline as cards, with the difference to its zero-shot model where there is one."""
    s = run.summary
    if s is None:
        return []
    z = base.summary if base is not None else None

    def note(value: float | None, ref: float | None, better: str) -> str:
        if z is None or value is None or ref is None:
            return ""
        gain = value - ref if better == "high" else ref - value
        tone = "up" if gain > 0 else "down" if gain < 0 else ""
        words = f"{text.points(value - ref)} to zero-shot"
        if tone:
            words += " (better)" if gain > 0 else " (worse)"
        return Markup(f'<span class="{tone}">{text.esc(words)}</span>')

    def floored(floor: float | None, more: str) -> Markup:
        head = text.esc(f"floor {text.percent(floor)}")
        return Markup(f"{head}<br>{more}" if more else head)

    cards = [
        ("ID accuracy", text.percent(s.id_accuracy),
         note(s.id_accuracy, z.id_accuracy if z else None, "high")),
        ("OOD accuracy", text.percent(s.ood_accuracy),
         note(s.ood_accuracy, z.ood_accuracy if z else None, "high")),
        ("ID ECE", text.percent(s.id_ece),
         floored(s.id_ece_floor, note(s.id_ece, z.id_ece if z else None, "low"))),
        ("OOD ECE", text.percent(s.ood_ece),
         floored(s.ood_ece_floor, note(s.ood_ece, z.ood_ece if z else None, "low"))),
        ("Worst shift", text.percent(s.worst_shift_accuracy), text.worst_shift(s)),
    ]  # fmt: skip
    if s.sigma_min is not None:
        cards.append(("σ_min", text.number(s.sigma_min), "smallest singular value"))
    return cards


def zero_shot_of(run: RunSummary) -> RunSummary | None:
    """The newest finished zero-shot run on the same model and data, none where there is none."""
    if run.method in ("zero_shot", "imported"):
        return None
    page = fetch(
        "look for the zero-shot run",
        lambda: client().runs(
            method=["zero_shot"], phase=["SUCCEEDED"], model=[run.model], suite=[run.suite], limit=1
        ),
        key=f"zero-shot-{run.model}-{run.suite}",
    )
    return page.items[0] if page.items else None
