"""What stands above the tabs: how the run is doing, its headline, and what can be done with it."""

import streamlit as st

from calift_core.schema.methods import METHOD_SPECS
from calift_core.schema.wire.runs import RunDetail
from frontend import api, page, pickers, state, text
from frontend.panels import reporting
from frontend.panels.evaluate import form
from frontend.panels.run import ship


def status(run: RunDetail) -> None:
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
        f'<div class="calift-meta">{page.pill(run.phase)}{spans}{page.tags(run.tags)}'
        + (page.tags(["archived"]) if run.archived else "")
        + "</div>"
    )
    if begin := (run.spec.get("train") or {}).get("initial_run"):
        known = {item["run"]: item["name"] for item in run.resolved.get("inputs", [])}
        st.page_link(
            "views/run.py",
            label=text.md(f"Begins with the model of {known.get(begin, begin)}"),
            icon=":material/fast_forward:",
            query_params={"id": begin},
        )
    if run.phase == "FAILED":
        lines = [
            f"**{text.md(run.reason or 'FAILED')}**: {text.md_prose(run.message or 'no message')}"
        ]
        if run.hint:
            lines.append(text.md_prose(run.hint))
        st.error("\n\n".join(lines), icon=":material/error:")
    elif run.phase == "CANCELLED":
        st.info(text.md_prose(run.message or "Cancelled on request."), icon=":material/cancel:")
    elif api.is_working(run.phase):
        _progress(run)
    if run.summary is not None:
        base = api.zero_shot_of(run)
        gained, clear = api.gains_over(run, base), api.clear_gains_over(run, base)
        page.stats(page.headline_cards(run, gained, clear))


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
    page.progress_bar(run, "step", f"last heartbeat {text.age(run.heartbeat_at or p.updated_at)}")


def actions(run: RunDetail) -> None:
    working, locked = api.is_working(run.phase), api.locked("submit")
    with st.container(horizontal=True, vertical_alignment="center", key="run-actions"):
        stop = working and st.button(
            "Cancel",
            icon=":material/stop_circle:",
            disabled=run.phase == "CANCELLING" or bool(locked),
            help=locked or "The run saves a checkpoint and stops",
        )
        if stop and api.act("cancel the run", lambda: api.client().cancel(run.id)):
            page.flash("Asked the run to stop; it saves a checkpoint first")
            st.rerun()
        again = run.phase in ("FAILED", "CANCELLED") and st.button(
            "Retry",
            icon=":material/replay:",
            disabled=bool(locked),
            help=locked or "Queues this run again, from its checkpoint",
        )
        if again and api.act("retry the run", lambda: api.client().retry(run.id)):
            page.flash("Queued again")
            st.rerun()
        if run.method != "imported" and st.button(
            "Clone", icon=":material/content_copy:", help="Opens the form with these settings"
        ):
            st.switch_page("views/new.py", query_params={"clone": run.id})
        if run.phase == "SUCCEEDED" and _trains_on(run) and not locked:
            with st.popover("More epochs", icon=":material/fast_forward:"):
                _more_epochs(run)
        if run.sweep_id is not None:
            st.page_link(
                "views/sweep.py", label="Its sweep", icon=":material/account_tree:",
                query_params={"id": run.sweep_id},
            )  # fmt: skip
        elif run.method not in ("imported", "zero_shot") and not locked:
            with st.popover("Three seeds", icon=":material/account_tree:"):
                _three_seeds(run)
        if run.summary is not None:
            ids = ",".join(one.id for one in pickers.with_zero_shot([run]))
            if st.button("Calibration", icon=":material/target:"):
                st.switch_page("views/calibration.py", query_params={"run": ids})
            if st.button("Compare", icon=":material/compare_arrows:"):
                st.switch_page("views/compare.py", query_params={"ids": ids})
        if run.phase == "SUCCEEDED":
            reporting.button([run])
            if run.method != "imported":
                ship.button(run)
        form.button([run])
        if not locked:
            with st.popover("Edit", icon=":material/edit:"):
                _edit(run)


def _trains_on(run: RunDetail) -> bool:
    kind = METHOD_SPECS.get(run.method)
    return kind is not None and kind.model_validate(run.spec["method"]).trains_on


def _more_epochs(run: RunDetail) -> None:
    st.caption(
        "A new run begins with this one's weights, with new optimiser moments and a warm-up and "
        "cosine of its own: the first schedule has ended, and at its last rate little would change."
    )
    epochs = st.number_input("Epochs", 1, 10_000, 2, key=f"more-epochs-{run.id}")
    if st.button("Start", type="primary", key=f"continue-{run.id}"):
        more = api.act("begin it", lambda: api.client().continue_run(run.id, int(epochs)))
        if more is not None:
            page.flash(f"{more.name} is queued")
            st.switch_page("views/run.py", query_params={"id": more.id})


def _three_seeds(run: RunDetail) -> None:
    st.caption(
        "Runs these settings with this seed and the two after it, and says how far apart they end."
    )
    if st.button("Start three runs", type="primary", key=f"seeds-{run.id}"):
        spec = {"preset": "three-seeds", "base": run.spec}
        begun = api.act("begin the sweep", lambda: api.client().sweep(spec))
        if begun is not None:
            page.flash(f"{begun.name} has begun")
            st.switch_page("views/sweep.py", query_params={"id": begun.id})


def _edit(run: RunDetail) -> None:
    with st.form(f"edit-{run.id}", border=False):
        name = st.text_input("Name", run.name, max_chars=120)
        tags = st.text_input("Tags", ", ".join(run.tags), help="Comma-separated")
        notes = st.text_area("Notes", run.notes, max_chars=10_000)
        if st.form_submit_button("Save", type="primary"):
            wanted = {"name": name.strip(), "tags": state.split(tags), "notes": notes}
            if api.act("save the changes", lambda: api.client().patch(run.id, **wanted)):
                page.flash("Saved")
                st.rerun()
    if st.button(
        "Take out of the archive" if run.archived else "Archive", icon=":material/archive:"
    ) and api.act("archive the run", lambda: api.client().patch(run.id, archived=not run.archived)):
        st.rerun()
    if not api.is_working(run.phase):
        kept = api.locked("admin")
        sure = st.checkbox(
            "Delete the run with all its files",
            key=f"sure-{run.id}",
            disabled=bool(kept),
            help=kept or None,
        )
        if st.button("Delete", icon=":material/delete:", disabled=not sure) and (
            api.act("delete the run", lambda: api.client().delete(run.id) or True)
        ):
            page.flash(f"Deleted {run.name}")
            st.switch_page("views/runs.py")
