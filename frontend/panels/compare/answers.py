"""The answer of a comparison, data set by data set as the service finds it, and the leaderboard."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import streamlit as st

from calift_core.calibration.confidence_sets import on_border
from calift_core.schema.wire.answers import Board, Leaders
from calift_core.schema.wire.results import Comparison
from frontend import answers, api, page, state, text
from frontend.tables import Column, Markup, Table

#: Seconds between two answers that are drawn one over the other.
_PAUSE_S = 1.0
_ROLES = {"id": "ID data", "shift": "Shifts, mean", "corruption": "Corruptions, mean"}


def batches(names: Sequence[str]) -> Iterator[list[str]]:
    """Data sets to ask for at a time: one first, for a first answer, then more and more."""
    start, size = 0, 1
    while start < len(names):
        yield list(names[start : start + size])
        start, size = start + size, 2 * size


class Stream:
    """Shows the answer as it comes, and has the whole comparison in the end.

    Args:
        names: data sets, in the order in which they are asked for.
        ask: gives the comparison on some of them.
    """

    def __init__(
        self,
        bare: Comparison,
        names: Sequence[str],
        ask: Callable[[Sequence[str]], Comparison],
        labels: Mapping[str, str],
    ) -> None:
        self._names, self._ask, self._labels = names, ask, labels
        self._parts, self._done = [bare], 0
        self._batches = batches(names)
        self._place = st.empty()
        self._show()

    def go_on(self) -> bool:
        """Ask for a few more data sets; whether there were any left."""
        batch = next(self._batches, None)
        if batch is None:
            return False
        first = not self._done
        self._parts.append(self._ask(batch))
        self._done += len(batch)
        last = self._done >= len(self._names)
        # Answers that are at hand come at once: each that is drawn costs the browser as much.
        if first or last or time.monotonic() - self._shown > _PAUSE_S:
            self._show()
        return True

    def rest(self) -> Comparison:
        """Ask for all that is left and give the whole."""
        while self.go_on():
            pass
        return answers.merged(self._parts)

    def _show(self) -> None:
        self._shown = time.monotonic()
        with self._place.container():
            _show(answers.merged(self._parts), self._labels, self._done, len(self._names))


def _show(found: Comparison, labels: Mapping[str, str], done: int, of: int) -> None:
    base = labels[found.baseline]
    others = [c for c in found.runs if c.run.id != found.baseline]
    if not done:
        waiting(f"Comparing on {of} data sets", 2 * len(others))
        return
    for column in others:
        name = labels[column.run.id]
        told = [
            said(name, base, column.differences)
            for said in (answers.on_accuracy, answers.on_calibration)
        ]
        with st.container(border=True, gap="xsmall"):
            if not told[0].dataset:
                st.markdown(f"**{text.md(name)}** shares no samples with {text.md(base)} so far.")
                continue
            st.markdown(told[0].sentence)
            st.markdown(told[1].sentence, help=told[1].note or None)
            _links(column.run.id, found.baseline, [a.dataset for a in told])
    if done < of:
        st.caption(f"{done} of {of} data sets so far; the others follow.")
    elif of:
        st.caption(
            "Paired on the same samples; 95 % intervals, uncorrected for multiple tests: "
            "expect 1 false positive in 20."
        )


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


def leaderboard(
    run_ids: Sequence[str], labels: Mapping[str, str], revisions: Sequence[int]
) -> None:
    """Which runs may be the best on ID data, over the shifts and over the corruptions."""
    st.header("Leaderboard", anchor=False)
    metric = state.choice(
        st.segmented_control,
        "By",
        name="by",
        options={m: text.METRICS[m].title for m in ("accuracy", "ece", "nll", "brier")},
        required=True,
    )
    place = st.empty()
    with place.container():
        waiting("Ranking the runs", 1 + len(run_ids))
    found = api.fetch(
        "rank the runs",
        lambda: api.leaders(tuple(run_ids), tuple(revisions)),
        key=f"leaders-{sorted(run_ids)}",
    )
    with place.container():
        _boards(found, labels, metric)


def _boards(found: Leaders, labels: Mapping[str, str], metric: str) -> None:
    boards = [b for b in found.boards if b.metric == metric]
    if not boards:
        page.empty("Nothing to rank", "There is no data set that all of these runs were tested on.")
        return
    page.table(board_table(boards, labels), caption=f"Leaderboard by {text.METRICS[metric].title}")
    sets = ", ".join(
        f"{_ROLES[b.role]}: {len(b.datasets)} data set{'s' * (len(b.datasets) > 1)}" for b in boards
    )
    decided = " Decided on the squared L2 error with the noise taken out." * (metric == "ece")
    st.caption(
        "Runs marked “statistically tied for best” include the best one in 95 of 100 repeats, "
        "however many are compared (model confidence set of "
        f"{text.draws(min(b.n_resamples for b in boards))}). "
        f"{sets}.{decided}"
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
    beside = "" if floor is None else f" <small>floor {text.esc(text.percent(floor))}</small>"
    shown = (
        text.Mark("statistically tied for best", "★", "green")
        if leads
        else text.Mark("ruled out", "–", "gray")
    )
    said = page.mark(shown)
    says_p = not leads or on_border(p, n_resamples)
    sure = f" <small>{text.esc(text.p_value(p, n_resamples))}</small>" if says_p else ""
    return Markup(f"{text.esc(text.metric_text(value, metric))}{beside} {said}{sure}")
