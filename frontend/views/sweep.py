"""One sweep: the verdict in a sentence, then how far it is, what it costs, and the tables."""

from functools import partial

import streamlit as st

from calift_core.schema.wire.runs import RunPage
from calift_core.schema.wire.sweeps import SWEEP_ENDS, SweepCost, SweepDetail, SweepVerdict
from frontend import api, figures, page, state, tables, text
from frontend.figures.style import PALETTE
from frontend.tables import Column, Run, Table
from frontend.tables import sweeps as sweep_tables

#: Seconds between two looks at a sweep that works.
LIVE_S = 4.0
RUNS = 100
MAX_POINTS = 200
#: Curves that are shown of all runs at once.
CURVES = ("val_accuracy", "val_nll", "val_ece", "loss")
ACCURACY_AND_ECE = ("id_accuracy", "ood_accuracy", "id_ece", "ood_ece")


def _load(sweep_id: str) -> SweepDetail:
    return api.ask(f"load the sweep {sweep_id}", api.client().get_sweep, sweep_id)


def _head(sweep: SweepDetail) -> None:
    facts = [
        ", ".join(sweep.methods),
        f"seeds {', '.join(map(str, sweep.spec.seeds))}",
        f"priority {sweep.priority}" if sweep.priority else "",
        sweep.owner or "",
        text.age(sweep.finished_at or sweep.created_at),
    ]
    spans = "".join(f"<span>{text.esc(fact)}</span>" for fact in facts if fact)
    st.html(f'<div class="calift-meta">{page.pill(sweep.phase)}{spans}</div>')


def _sentence(sweep: SweepDetail, verdict: SweepVerdict | None) -> None:
    if verdict is not None:
        st.markdown(f"## {text.md(verdict.sentence)}")
    if sweep.message and sweep.phase != "SUCCEEDED":
        show = st.error if sweep.phase == "FAILED" else st.info
        show(text.md_prose(sweep.message), icon=":material/info:")


def _progress(cost: SweepCost) -> None:
    done = cost.runs_done + cost.runs_failed + cost.runs_cancelled
    parts = [f"{cost.runs_done} of {cost.runs_planned} runs done"]
    for count, word in (
        (cost.runs_working, "working"),
        (cost.runs_queued, "queued"),
        (cost.runs_failed, "failed or diverged"),
        (cost.runs_cancelled, "cancelled"),
        (cost.runs_to_come, "to come"),
    ):
        parts += [f"{count} {word}"] if count else []
    st.progress(done / cost.runs_planned if cost.runs_planned else 0.0, text=" · ".join(parts))
    page.stats(
        [
            ("Runs", f"{cost.runs_done} of {cost.runs_planned}", ""),
            ("Spent", text.duration(3600 * cost.hours_spent), "of work"),
            ("To come", *_to_come(cost.hours_to_come)),
        ]
    )


def _to_come(hours: float | None) -> tuple[str, str]:
    """How long a sweep still takes, and a note on it."""
    if hours is None:
        return text.duration(None), "known after a first run like these"
    return (text.duration(3600 * hours), "of one worker") if hours else ("nothing", "")


def _actions(sweep: SweepDetail) -> None:
    locked = api.locked("submit")
    client = api.client()
    ways = [
        ("Pause", "pause", client.pause_sweep, ("RUNNING",),
         "Queues nothing more; runs that work go on"),
        ("Resume", "play_arrow", client.resume_sweep, ("PAUSED",), "Goes on where it was"),
        ("Cancel", "stop_circle", client.cancel_sweep, ("RUNNING", "PAUSED"),
         "Cancels every run that has not ended"),
        ("Retry", "replay", client.retry_sweep, ("FAILED", "CANCELLED"),
         "Queues failed and cancelled runs again"),
    ]  # fmt: skip
    with st.container(horizontal=True, key="sweep-actions"):
        for label, icon, call, phases, what in ways:
            if sweep.phase in phases and st.button(
                label, icon=f":material/{icon}:", disabled=bool(locked), help=locked or what
            ):
                if api.act(f"{label.lower()} the sweep", lambda call=call: call(sweep.id)):
                    page.flash(f"{label}: {sweep.name}")
                st.rerun()
        if sweep.reason == "HOURS_CAP" and sweep.phase == "PAUSED" and not locked:
            with st.popover("Give it more hours", icon=":material/more_time:"):
                hours = st.number_input(
                    "Hours in all", 0.1, 1e6, 2 * (sweep.spec.max_hours or 1.0), key="more-hours"
                )
                if st.button("Resume", key="resume-more", type="primary") and api.act(
                    "resume the sweep", lambda: client.resume_sweep(sweep.id, max_hours=hours)
                ):
                    st.rerun()
        done = [run for arm in sweep.arms for run in arm.run_ids[:1]]
        if len(done) > 1 and st.button(
            "Compare", icon=":material/compare_arrows:", help="The first seed of each configuration"
        ):
            st.switch_page("views/compare.py", query_params={"ids": ",".join(done[:10])})
        if len(done) > 1 and st.button("Curves", icon=":material/timeline:"):
            st.switch_page("views/curves.py", query_params={"ids": ",".join(done[:8])})


def _contenders(sweep: SweepDetail) -> None:
    st.header("Configurations", anchor=False)
    page.table(sweep_tables.arms(sweep.arms), caption="Configurations and their rates")
    chart = figures.sweeps.ladders(sweep.arms)
    if chart is not None:
        page.chart(chart, sweep_tables.ladders(sweep.arms), name="sweep-ladders")


def _table(shown: Table, *, caption: str, evaluated_on: str) -> None:
    page.table(sweep_tables.as_evaluated(shown, evaluated_on), caption=caption)


def _verdict(verdict: SweepVerdict) -> None:
    where = {"shifts": "shifts", "corruptions": "corruptions", "id": "the ID test set"}
    st.header("Each at its own rate", anchor=False)
    st.caption(
        f"On {where[verdict.evaluated_on]} ({len(verdict.datasets)}), {verdict.n_images:,} images; "
        "± is the standard error of the mean over seeds. "
        "L2² is the squared calibration error with the noise taken out, which decides; an ECE has "
        "no interval that could be trusted and stands beside its floor."
    )
    table = partial(_table, evaluated_on=verdict.evaluated_on)
    table(sweep_tables.verdict_rows(verdict), caption="Configurations at their own rates")
    table(sweep_tables.confidence_sets(verdict.sets), caption="Model confidence sets, 95 %")
    with st.expander("Paired differences, over seeds and images"):
        table(sweep_tables.differences(verdict.sets), caption="Paired differences")
    equal = verdict.equal
    if equal is not None and equal.id_accuracy is not None:
        st.header(f"At equal ID accuracy: {text.percent(equal.id_accuracy)}", anchor=False)
        st.caption(f"Each read along its ladder, between two rates; intervals over {equal.covers}.")
        table(sweep_tables.at_equal_accuracy(equal), caption="Configurations at equal ID accuracy")
        table(sweep_tables.confidence_sets(equal.sets), caption="Model confidence sets there")
        with st.expander("Paired differences at equal ID accuracy"):
            table(sweep_tables.differences(equal.sets), caption="Differences there")
    left = [*verdict.left_out, *(equal.left_out if equal is not None else [])]
    for one in left:
        st.caption(f"Without {text.md(one.label)}: {text.md_prose(one.why)}.")
    for note in verdict.notes:
        st.caption(text.md_prose(note))
    st.download_button(
        "Verdict, JSON", verdict.model_dump_json(indent=2), "verdict.json", "application/json",
        icon=":material/download:", on_click="ignore",
    )  # fmt: skip


def _found(sweep: SweepDetail, order: page.Order) -> RunPage:
    return api.ask(
        "list the runs of the sweep", api.client().sweep_runs, sweep.id, sort=order.now, limit=RUNS
    )


def _curves(sweep: SweepDetail, found: RunPage) -> None:
    """What the runs have recorded so far, in one chart, coloured by their configurations."""
    labels = [arm.label for arm in sweep.arms]
    arms = {r.id: int(r.sweep_key.partition(".")[0]) for r in found.items if r.sweep_key}
    begun = [run for run in found.items if run.phase != "QUEUED" and run.id in arms]
    curves = [api.curves(run.id, run.revision, MAX_POINTS, CURVES) for run in begun]
    there = {series.name for metrics in curves for series in metrics.series}
    offered = {name: figures.curves.title_of(name) for name in CURVES if name in there}
    if not offered:
        return
    st.header("Curves", anchor=False)
    name = state.choice(
        st.segmented_control, "Curve", name="curve", options=offered, required=True,
        label_visibility="collapsed",
    )  # fmt: skip
    style = figures.style.style_of_slot
    by_label = [Run(run.id, labels[arms[run.id]]) for run in begun]
    by_name = [Run(run.id, run.name) for run in begun]
    page.chart(
        figures.curves.overlay(
            list(zip(by_label, curves, strict=True)),
            name,
            styles={run.id: style(arms[run.id] % len(PALETTE)) for run in begun},
            grouped=True,
        ),
        figures.curves.overlay_table(list(zip(by_name, curves, strict=True)), name),
        name="sweep-curves",
    )


def _runs(sweep: SweepDetail, found: RunPage, order: page.Order) -> None:
    every = sweep_tables.runs(sweep.arms, found.items)
    if len(every.rows) > 1:
        st.header("Every run at once", anchor=False)
        page.chart(
            figures.parallel.figure(
                every, colour="arm", order=[arm.label for arm in sweep.arms], title=""
            ),
            every,
            name="sweep-parallel",
            wide=True,
        )
    st.header("Runs", anchor=False)
    rows = [{**tables.runs.row(run), "role": run.sweep_role} for run in found.items]
    columns = tables.runs.columns(rows, ["phase", "status", "age", *ACCURACY_AND_ECE])
    links = [f"/run?id={run.id}" for run in found.items]
    page.rows(
        Table([*columns, Column("role", "Role")], rows),
        key="sweep-runs",
        caption="Runs",
        links=links,
        order=order,
    )
    if found.total > len(found.items):
        st.caption(f"The first {len(found.items)} of {found.total} in this order.")


def main() -> None:
    sweep_id = state.param("id")
    if sweep_id is None:
        page.head("Sweep")
        page.empty("No sweep is named", "Open one from the list; its address then names it.")
        st.page_link("views/sweeps.py", label="All sweeps", icon=":material/list:")
        return
    sweep = _load(sweep_id)
    page.head(sweep.name)
    working = sweep.phase not in SWEEP_ENDS
    _actions(sweep)

    @st.fragment(run_every=LIVE_S if working else None)
    def body() -> None:
        now = _load(sweep_id) if working else sweep
        if now.phase != sweep.phase:
            st.rerun()
        verdict = api.sweep_verdict(now)
        _head(now)
        _sentence(now, verdict)
        _progress(now.cost)
        order = page.run_order("-created")
        found = _found(now, order)
        _curves(now, found)
        _contenders(now)
        if verdict is not None:
            _verdict(verdict)
        _runs(now, found, order)

    body()


main()
