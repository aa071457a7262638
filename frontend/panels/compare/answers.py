"""The answer of a comparison over all data sets, its evidence one click below, the leaderboard."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import streamlit as st

from calift_core.calibration.confidence_sets import on_border
from calift_core.schema.wire.answers import Board
from calift_core.schema.wire.results import Comparison
from frontend import answers, page, state, text
from frontend.tables import Column, Markup, Table

_ROLES = {"id": "ID data", "shift": "Shifts, mean", "corruption": "Corruptions, mean"}


def batches(names: Sequence[str]) -> Iterator[list[str]]:
    """Data sets to ask for at a time: one first, then more and more."""
    start, size = 0, 1
    while start < len(names):
        yield list(names[start : start + size])
        start, size = start + size, 2 * size


def gather(
    bare: Comparison, names: Sequence[str], ask: Callable[[Sequence[str]], Comparison]
) -> Comparison:
    """The whole comparison, asked for in parts; says how far it is.

    Args:
        names: data sets, in the order in which they are asked for.
        ask: gives the comparison on some of them.
    """
    parts, done, place = [bare], 0, st.empty()
    for batch in batches(names):
        with place.container():
            waiting(f"Comparing: {done} of {len(names)} data sets", 2 * len(bare.runs) - 2)
        parts.append(ask(batch))
        done += len(batch)
    place.empty()
    return answers.merged(parts)


def draw(found: Comparison, boards: Sequence[Board], labels: Mapping[str, str]) -> None:
    """A card for each run: the overall differences to the baseline, and where they are largest."""
    base = found.baseline
    for column in (c for c in found.runs if c.run.id != base):
        run = column.run.id
        parts = [
            answers.by_dataset(labels[run], labels[base], column.differences, metric)
            for metric in answers.WORDS
        ]
        overall = answers.overall(run, base, boards, labels)
        with st.container(border=True, gap="xsmall"):
            if not any(one.sentence for one in parts):
                st.markdown(
                    f"**{text.md(labels[run])}** shares no samples with {text.md(labels[base])}."
                )
                continue
            _say(overall or parts)
            with st.expander("Data set by data set"):
                if overall:
                    _say(parts)
                _links(run, base, [one.dataset for one in parts])
    st.caption(
        "On the same samples. Overall intervals hold for all pairs of these runs at once; those of "
        "single data sets are uncorrected for multiple tests: expect 1 false positive in 20."
    )


def _say(found: Sequence[answers.Answer]) -> None:
    for one in found:
        if one.sentence:
            st.markdown(one.sentence, help=one.note or None)


def _links(run: str, base: str, datasets: Sequence[str | None]) -> None:
    with st.container(horizontal=True, gap="small"):
        for name in dict.fromkeys(d for d in datasets if d):
            st.page_link(
                "views/calibration.py",
                label=f"Diagrams on {text.md(name.replace('_', ' '))}",
                icon=":material/target:",
                query_params={"run": f"{base},{run}", "dataset": name},
            )


def waiting(words: str, lines: int) -> None:
    """A placeholder that says what is being made and is as high as what will follow."""
    bars = '<span class="calift-bar"></span>' * lines
    st.html(f'<div class="calift-waiting" role="status">{text.esc(words)} …{bars}</div>')


@st.fragment
def leaderboard(every: Sequence[Board], labels: Mapping[str, str]) -> None:
    """Which runs may be the best on ID data, over the shifts and over the corruptions."""
    st.header("Leaderboard", anchor=False)
    metric = state.choice(
        st.segmented_control,
        "By",
        name="by",
        options={m: text.METRICS[m].title for m in ("accuracy", "ece", "nll", "brier")},
        required=True,
    )
    boards = [b for b in every if b.metric == metric]
    if not boards:
        page.empty("Nothing to rank", "There is no data set that all of these runs were tested on.")
        return
    page.table(board_table(boards, labels), caption=f"Leaderboard by {text.METRICS[metric].title}")
    sets = ", ".join(
        f"{_ROLES[b.role]}: {len(b.datasets)} data set{'s' * (len(b.datasets) > 1)}" for b in boards
    )
    judged = " Judged by the L2 error with the noise taken out." * (metric == "ece")
    st.caption(
        "Runs marked “statistically tied for best” include the best one in 95 of 100 repeats, "
        "however many are compared (model confidence set of "
        f"{text.draws(min(b.n_resamples for b in boards))}); others are ruled out by one that is "
        f"marked. {sets}.{judged}"
    )


def board_table(boards: Sequence[Board], labels: Mapping[str, str]) -> Table:
    """One row a run, one column a role: the mean, its floor, and whether it is tied for best."""
    by_role = {b.role: {s.run_id: s for s in b.standings} for b in boards}
    first = next(b for b in reversed(boards) if b.role != "corruption" or len(boards) == 1)
    rows = []
    for standing in first.standings:
        row: dict[str, object] = {"run": labels[standing.run_id]}
        for board in boards:
            own = by_role[board.role][standing.run_id]
            row[board.role] = _cell(
                board.metric, own.value, own.floor, own.leads, own.p_value, board.n_resamples
            )
        rows.append(row)
    return Table([Column("run", "Run"), *(Column(b.role, _ROLES[b.role]) for b in boards)], rows)


def _cell(
    metric: str, value: float, floor: float | None, leads: bool, p: float, n_resamples: int
) -> Markup:
    small = "" if floor is None else f" <small>floor {text.esc(text.percent(floor))}</small>"
    shown = (
        text.Mark("statistically tied for best", "★", "green")
        if leads
        else text.Mark("ruled out", "–", "gray")
    )
    badge = page.mark(shown)
    says_p = not leads or on_border(p, n_resamples)
    sure = f" <small>{text.esc(text.p_value(p, n_resamples))}</small>" if says_p else ""
    return Markup(f"{text.esc(text.metric_text(value, metric))}{small} {badge}{sure}")
