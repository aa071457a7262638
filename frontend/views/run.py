"""One run: where it is, how it ended, and everything it measured."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st
import yaml

from calift_core.client import Client
from calift_core.schema.wire import TERMINAL_PHASES, LogPage, Metrics, RunDetail
from frontend import charts, state, tables, text, ui
from frontend.tables import Column, Markup, Table

TABS = ["Curves", "Shifts", "Calibration", "Spectrum", "Config", "Artifacts", "Logs"]
MAX_POINTS = 800
LOG_BYTES = 65_536
#: Lines of a log that are shown.
LOG_LINES = 500
#: Curves that are no part of the loss and have another scale.
ASIDE = (
    "lr",
    "grad_norm",
    "logit_scale",
    "sigma_min",
    "effective_rank",
)
TITLES = {"Lr": "Learning rate", "Grad norm": "Gradient norm", "Sigma min": "σ_min (validation)"}


def _load(run_id: str) -> RunDetail:
    return ui.fetch(f"load the run {run_id}", lambda: ui.client().run(run_id), key=f"run-{run_id}")


def _actions(run: RunDetail) -> None:
    working, locked = ui.is_working(run.phase), ui.locked("submit")
    with st.container(horizontal=True, key="run-actions"):
        stop = working and st.button(
            "Cancel",
            icon=":material/stop_circle:",
            disabled=run.phase == "CANCELLING" or bool(locked),
            help=locked or "The run saves a checkpoint and stops",
        )
        if stop and ui.act("cancel the run", lambda: ui.client().cancel(run.id)):
            ui.flash("Asked the run to stop; it saves a checkpoint first")
            st.rerun()
        again = run.phase in ("FAILED", "CANCELLED", "LOST") and st.button(
            "Retry",
            icon=":material/replay:",
            disabled=bool(locked),
            help=locked or "Queues this run again, from its checkpoint",
        )
        if again and ui.act("retry the run", lambda: ui.client().retry(run.id)):
            ui.flash("Queued again")
            st.rerun()
        if run.method != "imported" and st.button(
            "Clone", icon=":material/content_copy:", help="Opens the form with these settings"
        ):
            st.switch_page("views/new.py", query_params={"clone": run.id})
        if run.summary is not None:
            if st.button("Calibration", icon=":material/target:"):
                st.switch_page("views/calibration.py", query_params={"run": run.id})
            if st.button("Compare", icon=":material/compare_arrows:"):
                base = ui.zero_shot_of(run)
                some = [run.id] + ([base.id] if base else [])
                st.switch_page("views/compare.py", query_params={"ids": ",".join(some)})
        if not locked:
            with st.popover("Edit", icon=":material/edit:"):
                _edit(run)


def _edit(run: RunDetail) -> None:
    with st.form(f"edit-{run.id}", border=False):
        name = st.text_input("Name", run.name, max_chars=120)
        tags = st.text_input("Tags", ", ".join(run.tags), help="Comma-separated")
        notes = st.text_area("Notes", run.notes, max_chars=10_000)
        if st.form_submit_button("Save", type="primary"):
            wanted = {"name": name.strip(), "tags": state.split(tags), "notes": notes}
            if ui.act("save the changes", lambda: ui.client().patch(run.id, **wanted)):
                ui.flash("Saved")
                st.rerun()
    if st.button(
        "Take out of the archive" if run.archived else "Archive", icon=":material/archive:"
    ) and ui.act("archive the run", lambda: ui.client().patch(run.id, archived=not run.archived)):
        st.rerun()
    if not ui.is_working(run.phase):
        kept = ui.locked("admin")
        sure = st.checkbox(
            "Delete the run with all its files",
            key=f"sure-{run.id}",
            disabled=bool(kept),
            help=kept or None,
        )
        if st.button("Delete", icon=":material/delete:", disabled=not sure) and (
            ui.act("delete the run", lambda: ui.client().delete(run.id) or True)
        ):
            ui.flash(f"Deleted {run.name}")
            st.switch_page("views/runs.py")


def _status(run: RunDetail) -> None:
    """Status with its reason, progress, and the headline."""
    took = text.elapsed_s(run.started_at, run.finished_at)
    facts = [
        f"{run.method} on {run.suite}",
        run.model,
        f"seed {run.seed}" if run.method != "imported" else "",
        f"took {text.duration(took)}" if run.finished_at and took else "",
        text.age(run.finished_at or run.started_at or run.created_at),
        f"attempt {run.attempts}" if run.attempt > 1 else "",
    ]
    spans = "".join(f"<span>{text.esc(fact)}</span>" for fact in facts if fact)
    st.html(
        f'<div class="calift-meta">{ui.pill(run.phase)}{spans}{ui.tags(run.tags)}'
        + (ui.tags(["archived"]) if run.archived else "")
        + "</div>"
    )
    if run.phase in ("FAILED", "LOST"):
        lines = [
            f"**{text.md(run.reason or 'FAILED')}**: {text.md_prose(run.message or 'no message')}"
        ]
        if run.hint:
            lines.append(text.md_prose(run.hint))
        st.error("\n\n".join(lines), icon=":material/error:")
    elif run.phase == "CANCELLED":
        st.info(text.md_prose(run.message or "Cancelled on request."), icon=":material/cancel:")
    elif ui.is_working(run.phase):
        _progress(run)
    if run.summary is not None:
        base = ui.zero_shot_of(run)
        ui.stats(ui.against(run, base))


def _progress(run: RunDetail) -> None:
    p = run.progress
    if p is None:
        waiting = run.phase == "QUEUED"
        st.info(
            text.md_prose(run.waiting or "Waits for a worker.")
            if waiting
            else "A worker has taken the run and is loading.",
            icon=":material/schedule:" if waiting else ":material/hourglass_top:",
        )
        return
    share = p.step / p.total_steps if p.total_steps else 0.0
    words = [text.md(p.phase or "working")]
    if p.detail:
        words.append(text.md(p.detail))
    if p.total_steps:
        words.append(f"step {p.step:,} of {p.total_steps:,}")
    if p.samples_per_s is not None:
        words.append(f"{p.samples_per_s:,.0f} samples/s")
    if p.eta_s is not None:
        words.append(f"{text.duration(p.eta_s)} left in this phase")
    words.append(f"last heartbeat {text.age(run.heartbeat_at or p.updated_at)}")
    st.progress(min(1.0, max(0.0, share)), text=" · ".join(words))


def _curves(run: RunDetail) -> None:
    metrics = ui.fetch(
        "load the curves",
        lambda: ui.client().metrics(run.id, max_points=MAX_POINTS),
        key=f"metrics-{run.id}",
    )
    if not metrics.series:
        if run.method == "zero_shot":
            ui.empty("No curves", "A zero-shot model is not trained. Its results are under Shifts.")
        elif run.method == "imported":
            ui.empty("No curves", "The predictions were made elsewhere. See Calibration.")
        elif ui.is_working(run.phase):
            ui.empty("No point yet", "The first one appears when training has begun.")
        else:
            ui.empty("No curves", "The run ended before it recorded a step.")
        return
    names = [s.name for s in metrics.series]
    aside = [n for n in names if n in ASIDE or n.startswith(("teacher", "lr"))]
    losses = [n for n in names if n not in aside and not n.startswith(("val", "validation"))]
    checks = [n for n in names if n.startswith(("val", "validation"))]
    log_y = state.bound(
        st.toggle,
        "Logarithmic axis",
        name="log",
        default=False,
        decode=lambda given: given == "1",
        encode=lambda on: "1" if on else "",
    )
    _curve(metrics, sorted(losses, key=lambda n: n != "loss"), "Loss and its terms", "loss", log_y)
    rest: list[tuple[str, list[str]]] = []
    if checks:
        rest.append(("Validation", checks))
    rest += [(name.replace("_", " ").capitalize(), [name]) for name in aside]
    columns = st.columns(2)
    for index, (title, some) in enumerate(rest):
        with columns[index % 2]:
            _curve(metrics, some, TITLES.get(title, title), some[0], log_y)


def _curve(metrics: Metrics, names: list[str], title: str, key: str, log_y: bool) -> None:
    ui.chart(
        charts.curves(metrics, names, title=title, log_y=log_y),
        tables.curves(metrics, names),
        name=f"curve-{key}",
    )


def _shifts(run: RunDetail) -> None:
    found = ui.evaluations(run)
    if not found:
        _not_yet(run, "evaluated")
        return
    metric = state.choice(
        st.segmented_control,
        "Metric",
        name="metric",
        options=("accuracy", "ece", "nll", "brier"),
        format_func=lambda m: text.METRICS[m].title,
        required=True,
    )
    me = charts.Run(run.id, run.name)
    styles = state.styles([run.id])
    pairs = [(me, found)]
    corrupted = any(e.corruption for e in found)
    left, right = st.columns(2) if corrupted else (st.container(), None)
    with left:
        ui.chart(
            charts.accuracy_by_shift(pairs, metric=metric, styles=styles),
            tables.shifts(pairs, metric),
            name=f"by-shift-{metric}",
        )
    if right is not None:
        with right:
            ui.chart(
                charts.corruption_heatmap(found, metric=metric),
                tables.corruptions(pairs, metric),
                name=f"corruptions-{metric}",
            )
    shown = tables.evaluations(found)
    by_title = {text.evaluation_title(e): e.dataset for e in found}
    rows = [
        {
            **row,
            "title": ui.link(
                row["title"], "calibration", run=run.id, dataset=by_title[row["title"]],
                note=row["role"],
            ),
        }
        for row in shown.rows
    ]  # fmt: skip
    columns = [c for c in shown.columns if c.name != "role"]
    ui.table(Table(columns, rows), caption="Every evaluation of the run")


def _not_yet(run: RunDetail, what: str) -> None:
    if ui.is_working(run.phase):
        ui.empty(f"Not {what} yet", "This happens after training, one data set after the other.")
    else:
        ui.empty(f"Never {what}", f"The run ended as {run.phase} before it came to that.")


def _calibration(run: RunDetail) -> None:
    found = ui.evaluations(run)
    if not found:
        _not_yet(run, "evaluated")
        return
    order = {"id": 0, "shift": 1, "corruption": 2}
    ordered = sorted(found, key=lambda e: (order[e.role], e.dataset))
    # ID beside the shift that is worst calibrated: the contrast people come for.
    first = ordered[0]
    rest = [e for e in ordered if e.role != "id"]
    chosen = [first] + ([max(rest, key=lambda e: e.ece.value)] if rest else [])
    look = state.styles([run.id])[run.id]
    for place, evaluation in zip(st.columns(2), chosen, strict=False):
        with place:
            diagram = ui.reliability(
                evaluation,
                n_bins=evaluation.ece.n_bins,
                scheme=evaluation.ece.scheme,
                norm="l1",
                temperature=evaluation.temperature,
            )
            title = text.evaluation_title(evaluation)
            if evaluation.role != "id":
                title += ", the worst calibrated"
            ui.chart(
                charts.reliability_diagram(
                    diagram, title=title, colour=look.colour, symbol=look.symbol, side=360
                ),
                tables.reliability([diagram]),
                name=f"reliability-{evaluation.role}",
                data=diagram.model_dump_json,
            )
            st.caption(ui.verdict(diagram.ece, diagram.null_mean, diagram.null_q95))
    st.page_link(
        "views/calibration.py",
        label="Other data, bins and temperatures",
        icon=":material/target:",
        query_params={"run": run.id, "dataset": first.dataset},
    )


def _spectrum(run: RunDetail) -> None:
    spectra = ui.fetch(
        "load the spectra", lambda: ui.client().spectra(run.id), key=f"spectra-{run.id}"
    )
    if not spectra:
        if run.method == "imported":
            ui.empty("No spectrum", "It needs the model's features; predictions were imported.")
        else:
            _not_yet(run, "measured")
        return
    me = charts.Run(run.id, run.name)
    styles = state.styles([run.id])
    final = next((s for s in spectra if s.final), spectra[-1])
    ui.stats(
        [
            ("σ_min", text.number(final.sigma_min),
             "0 by rank: fewer samples than features" if final.sigma_min is None else "smallest"),
            ("Effective rank", text.number(final.effective_rank),
             f"of {text.count(final.n_features)} features"),
            ("Condition number", text.number(final.condition_number), "largest over smallest"),
            ("‖W_vᵀW_v − 1‖", text.number(final.projection_gram_distance),
             "how far the projection is from orthogonal"),
            ("Samples", text.count(final.n),
             f"{final.n_constant_features} constant features left out"
             if final.n_constant_features else "no constant feature"),
        ]
    )  # fmt: skip
    ui.chart(
        charts.singular_values([(me, final)], styles=styles),
        tables.singular_values([(me, final)]),
        name="singular-values",
    )
    for place, quantity in zip(st.columns(2), ("sigma_min", "effective_rank"), strict=True):
        with place:
            ui.chart(
                charts.sigma_over_steps([(me, spectra)], quantity=quantity, styles=styles),
                tables.spectra([(me, spectra)]),
                name=f"over-steps-{quantity}",
            )


def _config(run: RunDetail) -> None:
    left, right = st.columns(2)
    with left:
        st.markdown("**RunSpec**")
        document = yaml.safe_dump(
            run.spec, sort_keys=False, allow_unicode=True, default_flow_style=None
        )
        st.code(document, language="yaml", wrap_lines=True)
        st.download_button(
            "RunSpec, YAML",
            document,
            f"{run.name}.yaml",
            "application/yaml",
            icon=":material/download:",
            on_click="ignore",
        )
    with right:
        facts = {
            "id": run.id,
            "SHA-256 of the spec": run.spec_sha256,
            "submitted": text.moment(run.created_at),
            "started": text.moment(run.started_at),
            "finished": text.moment(run.finished_at),
            "owner": run.owner,
            "worker": run.worker,
            "priority": run.priority,
            "cloned from": ui.link(run.cloned_from, "run", id=run.cloned_from)
            if run.cloned_from
            else None,
        }
        _facts("Run", facts)
        if run.resolved:
            _facts("Resolved defaults", run.resolved)
        if run.environment:
            _facts("Environment", run.environment)
        if run.notes:
            st.markdown("**Notes**")
            st.text(run.notes)


def _facts(title: str, facts: dict[str, Any]) -> None:
    st.markdown(f"**{title}**")
    rows = [
        {
            "name": key.replace("_", " "),
            "value": value
            if isinstance(value, Markup) or value in (None, "")
            else Markup(f'<div class="wrap">{text.esc(text.plain(value))}</div>'),
        }
        for key, value in facts.items()
    ]
    ui.table(Table([Column("name", "Name"), Column("value", "Value")], rows), caption=title)


def _artifacts(run: RunDetail) -> None:
    found = ui.fetch(
        "list the files", lambda: ui.client().artifacts(run.id), key=f"artifacts-{run.id}"
    )
    if not found:
        ui.empty(
            "No file is stored",
            "Checkpoints appear while the run trains; predictions and the report at its end."
            if ui.is_working(run.phase)
            else "The run ended before it stored one.",
        )
        return
    rows = [
        {
            "name": a.name,
            "kind": a.kind,
            "size": Markup(text.esc(text.size(a.size_bytes))),
            "sha256": Markup(
                f'<code title="{text.esc(a.sha256)}">{text.esc(a.sha256[:16])}</code>'
            ),
            "attempt": a.attempt,
            "at": text.age(a.created_at),
        }
        for a in found
    ]
    columns = [
        Column("name", "File"),
        Column("kind", "Kind"),
        Column("size", "Size"),
        Column("sha256", "SHA-256"),
        Column("attempt", "Attempt", "count"),
        Column("at", "Stored"),
    ]
    ui.table(Table(columns, rows), caption="Stored files of the run")
    total = sum(a.size_bytes for a in found)
    st.caption(f"{len(found)} files, {text.size(total)} in all")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        sizes = {a.name: a.size_bytes for a in found}
        name = st.selectbox(
            "Download",
            list(sizes),
            format_func=lambda n: f"{n} ({text.size(sizes[n])})",
            key=f"artifact-{run.id}",
            width=420,
        )
        st.download_button(
            "Get the file",
            # Called when somebody clicks, outside of any visitor's page: so with this one's client.
            partial(_content, ui.client(), run.id, name),
            Path(name).name,
            "application/octet-stream",
            icon=":material/download:",
            on_click="ignore",
            key=f"get-{run.id}-{name}",
        )


def _content(client: Client, run_id: str, name: str) -> bytes:
    """The verified bytes of a stored file."""
    with tempfile.TemporaryDirectory() as folder:
        return client.download_artifact(run_id, name, Path(folder) / "file").read_bytes()


def _logs(run: RunDetail) -> None:
    body, begins_at = _log_end(run)
    if not body.strip():
        ui.empty(
            "The log is empty",
            "Lines appear when a worker has taken the run; they follow by themselves."
            if ui.is_working(run.phase)
            else "The run left no line.",
        )
        return
    lines = body.splitlines()[-LOG_LINES:]
    if begins_at or len(lines) == LOG_LINES:
        st.caption(f"The last {len(lines):,} lines; the file has all.")
    # It stays at its end as lines come, until somebody scrolls up.
    with st.container(
        height=min(480, 60 + 21 * len(lines)), autoscroll=True, border=False, key="log-end"
    ):
        st.code("\n".join(lines), language=None, wrap_lines=True)
    st.download_button(
        "Log, text",
        # Called when somebody clicks, outside of any visitor's page: so with this one's client.
        partial(_whole_log, ui.client(), run.id),
        f"{run.name}.log",
        "text/plain",
        icon=":material/download:",
        on_click="ignore",
    )


def _log_end(run: RunDetail) -> tuple[str, int]:
    """The end of the log, and the byte that it begins at; only what is new is asked for."""
    kept: dict[str, LogPage] = st.session_state.setdefault("log-ends", {})
    known = kept.get(run.id)

    def read(start: int) -> LogPage:
        return ui.fetch(
            "read the log",
            lambda: ui.client().logs(run.id, offset=start, limit=LOG_BYTES),
            key=f"logs-{run.id}",
        )

    page = read(-LOG_BYTES if known is None else known.next_offset)
    if page.size_bytes - page.next_offset >= LOG_BYTES:  # much has come since: to the end at once
        page, known = read(-LOG_BYTES), None
    if known is None:
        known = page
    elif page.offset == known.next_offset:  # what an earlier look gave is not added again
        body = known.text + page.text
        more = {"text": body[-2 * LOG_BYTES :], "next_offset": page.next_offset}
        known = known.model_copy(update=more)
    kept.clear()  # of one run: the one that is looked at
    kept[run.id] = known
    return known.text, known.offset


def _whole_log(client: Client, run_id: str) -> str:
    pieces: list[str] = []
    offset = 0
    while True:
        page = client.logs(run_id, offset=offset, limit=1 << 20)
        pieces.append(page.text)
        if page.complete or page.next_offset <= offset:
            return "".join(pieces)
        offset = page.next_offset


def main() -> None:
    """Draw the page."""
    run_id = state.param("id")
    if run_id is None:
        ui.head("Run")
        ui.empty("No run is named", "Open one from the list of runs; its address then names it.")
        st.page_link("views/runs.py", label="All runs", icon=":material/list:")
        return
    run = _load(run_id)
    ui.head(run.name)
    working = ui.is_working(run.phase)
    every = ui.LIVE_S if working else None

    @st.fragment(run_every=every)
    def status() -> None:
        now = _load(run_id) if working else run
        _status(now)
        if working and (now.phase in TERMINAL_PHASES or now.phase != run.phase):
            st.rerun()

    status()
    _actions(run)
    first = "Logs" if run.phase in ("FAILED", "LOST") else "Curves"
    if run.method == "imported":
        first = "Calibration"
    opened = st.tabs(TABS, default=first, key="tab", bind="query-params", on_change="rerun")
    bodies = [_curves, _shifts, _calibration, _spectrum, _config, _artifacts, _logs]
    for tab, name, body in zip(opened, TABS, bodies, strict=True):
        if not tab.open:
            continue
        with tab:
            # What grows while the run works looks again by itself; widgets' text does not jump.
            live = every if name in ("Curves", "Logs", "Shifts", "Spectrum") else None

            @st.fragment(run_every=live)
            def draw(body: Any = body) -> None:
                body(_load(run_id) if working else run)

            draw()


main()
