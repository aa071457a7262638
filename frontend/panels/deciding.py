"""A threshold with its promise for each run, and what it gives on ID data and under shift."""

from collections.abc import Mapping, Sequence

import streamlit as st

from calift_core.client import Client
from calift_core.errors import CaliftError
from calift_core.schema.wire.answers import Decision, KeptSet, PromiseTest
from calift_core.schema.wire.queries import DecisionQuery
from calift_core.schema.wire.runs import RunSummary
from frontend import api, figures, page, state, text
from frontend.tables import Run, analysis

_LEVELS = {"0.9": "90 %", "0.95": "95 %", "0.99": "99 %"}
_RISKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)


def draw(chosen: Mapping[str, RunSummary], runs: Sequence[Run]) -> None:
    """Let a visitor say how many errors they bear, and show what that takes."""
    left, right = st.columns([3, 2])
    risk = float(
        state.choice(
            left.select_slider,
            "Maximum error rate",
            name="risk",
            options={f"{r:g}": text.percent(r) for r in _RISKS},
            default="0.05",
        )
    )
    level = float(
        state.choice(
            right.segmented_control,
            "Confidence level",
            name="level",
            options=_LEVELS,
            default="0.95",
            required=True,
            help="Of repeats of the ID validation part that the threshold is chosen on",
        )
    )
    decisions = []
    for run in runs:
        try:
            query = DecisionQuery(risk=risk, level=level)
            found = api.answer(Client.decision, run.id, chosen[run.id].revision, query)
        except CaliftError as error:
            st.warning(
                f"**{text.md(run.label)}**: {text.md_prose(str(error))}", icon=":material/warning:"
            )
            continue
        decisions.append((run, found))
        _say(run, found)
    if not decisions:
        return
    styles = state.styles(list(chosen))
    if any(found.threshold is not None for _, found in decisions):
        page.chart(
            figures.deciding.risks(decisions, styles=styles),
            analysis.decisions(decisions),
            name="kept",
        )
    _curves(decisions, risk)
    st.header("What is kept, and how often it is wrong", anchor=False)
    page.table(analysis.decisions(decisions), caption="What the thresholds keep of each data set")


def _say(run: Run, found: Decision) -> None:
    """The answer for one run in sentences, with its way to the confident errors."""
    split, name = found.chosen_on, f"**{text.md(run.label)}**"
    with st.container(border=True, gap="xsmall"):
        for note in found.warnings:
            st.caption(text.md_prose(note))
        if found.threshold is None:
            st.markdown(
                f"{name}: no threshold can promise at most {text.percent(found.risk)} errors from "
                f"the {text.count(split.n)} samples of {text.md(split.dataset)}. Allow more "
                "errors, or give the suite a larger validation part."
            )
            return
        if found.test is not None:
            _tested(name, found.test, found.risk)
        shown = sorted((s for s in found.sets if s.risk is not None), key=analysis.set_order)
        st.markdown(
            f"{name}: keep predictions whose confidence is at least "
            f"**{text.percent(found.threshold, 2)}** ({_answers(found)}). "
            + " ".join(map(_sentence, shown[:1]))
        )
        worst = max(shown[1:], key=lambda s: s.risk or 0.0, default=None)
        if worst is not None:
            broken = sum(s.holds is False for s in shown if s.role != "id")
            st.markdown(
                f"{_sentence(worst)} That is the worst of "
                f"{len(shown) - 1} shifts and corruptions; {broken} have more errors than "
                f"{text.percent(found.risk)} beyond doubt."
            )
            own, where = found.calibrator == "none", text.md(analysis.set_name(worst))
            # That page draws the run's own confidences.
            at = f"confidence >= {found.threshold!r} and not correct" if own else "not correct"
            st.page_link(
                "views/calibration.py",
                label=f"Errors that are kept on {where}" if own else f"Errors on {where}",
                icon=":material/image:",
                query_params={
                    "run": run.id, "dataset": worst.dataset, "view": "slices", "where": at
                },
            )  # fmt: skip


def _answers(found: Decision) -> str:
    own = found.calibrator == "none"
    of = "of its own probabilities" if own else f"after {text.calibrator(found.calibrator)}"
    return f"{of}, found on {text.md(found.chosen_on.dataset)}"


def _tested(run: str, test: PromiseTest, risk: float) -> None:
    """Whether the promise holds on the ID test set where there is doubt: why, what would hold."""
    over = test.risk is not None and test.risk > risk
    if not (over or test.distinguishable):
        return
    where = text.md(test.dataset.replace("_", " "))
    low, high = test.interval
    parts = (
        f"{text.percent(test.chosen_on_accuracy)} of the images that the threshold was found on "
        f"are right and {text.percent(test.accuracy)} of the test images, a difference of "
        f"{text.points(test.difference)} ({text.points(low)} to {text.points(high)})"
    )
    why = (
        f"The two parts are not alike: {parts}. The promise is for data like the former."
        if test.distinguishable
        else f"In accuracy the two parts do not differ beyond chance: {parts}. They may differ in "
        "other ways, or this is one of the repeats in which the promise fails."
    )
    remedy = (
        f"No threshold can promise it from {where} itself."
        if test.threshold is None
        else f"By the same rule {where} itself asks for a confidence of "
        f"**{text.percent(test.threshold, 2)}**."
    )
    ends = "" if test.risk_interval is None else f" ({text.interval(*test.risk_interval)})"
    wrong = f"{text.percent(test.risk)} of what is kept is wrong{ends}"
    if test.holds is False:
        finding = f"the promise is broken on {where}**: {wrong}, not at most {text.percent(risk)}."
        st.error(f"{run}: **{finding} {why} {remedy}", icon=":material/error:")
    else:
        finding = "the promise holds" if test.holds else "it is open whether the promise holds"
        finding += f" on {where}**: {wrong}."
        st.warning(f"{run}: **{finding} {why} {remedy}", icon=":material/warning:")


def _sentence(one: KeptSet) -> str:
    if one.risk is None or one.risk_interval is None:
        return f"On {text.md(analysis.set_name(one))} it keeps nothing."
    return (
        f"On {text.md(analysis.set_name(one))} that keeps {text.percent(one.coverage)}, of "
        f"which {text.percent(one.risk)} is wrong ({text.interval(*one.risk_interval)})."
    )


def _curves(decisions: Sequence[tuple[Run, Decision]], risk: float) -> None:
    """Risk against coverage on ID data and, beside it, under a shift."""
    by_set: dict[str, list[tuple[Run, KeptSet, float | None]]] = {}
    roles: dict[str, str] = {}
    for run, decision in decisions:
        for one in sorted(decision.sets, key=analysis.set_order):
            by_set.setdefault(one.dataset, []).append((run, one, decision.threshold))
            roles[one.dataset] = one.role
    styles = state.styles([run.id for run, _ in decisions])
    own = [name for name, role in roles.items() if role == "id"]
    others = [name for name in by_set if name not in own]
    sides = own[:1]
    if others:
        sides.append(
            state.choice(
                st.selectbox,
                "Beside the ID data",
                name="beside",
                options={name: name.replace("_", " ") for name in others},
                default=max(others, key=lambda n: max(s.risk or 0.0 for _, s, _ in by_set[n])),
                help="It begins with the data on which most of what is kept is wrong",
            )
        )
    most = 1.05 * max(max(p.high for p in s.curve[-1:]) for n in sides for _, s, _ in by_set[n])
    for place, name in zip(st.columns(len(sides)), sides, strict=True):
        with place:
            page.chart(
                figures.deciding.curves(
                    by_set[name], styles=styles, risk=risk, title=name.replace("_", " "), most=most
                ),
                figures.deciding.curves_table(by_set[name]),
                name=f"risk-coverage-{name}",
            )
