"""Runs in sentences: how right and how sure, how far two are apart, where nobody can tell."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from calift_core.calibration.squared import rms_difference
from calift_core.schema.report import EvaluationReport, Role
from calift_core.schema.wire.answers import Board
from calift_core.schema.wire.results import Comparison, PairedDifference, Reliability
from frontend import text
from frontend.findings import accuracy_ends
from frontend.tables.comparisons import decided

#: What the metrics of an answer are called.
WORDS = {"accuracy": "accuracy", "ece": "L2 calibration error"}
#: Roles in the order in which they are told.
_ROLES: tuple[Role, ...] = ("shift", "corruption", "id")


class Answer(NamedTuple):
    """What a comparison of two runs says.

    Attributes:
        sentence: in Markdown; names are escaped. Empty where nothing was compared.
        dataset: where it is most so, for a link.
        note: what it is decided on, in plain text, where the sentence does not say.
    """

    sentence: str
    dataset: str | None = None
    note: str = ""


class _Apart(NamedTuple):
    """A difference in one place, its interval, and what is added where it is told first."""

    where: str
    difference: float
    low: float
    high: float
    more: str = ""

    @property
    def clear(self) -> bool:
        return self.low > 0 or self.high < 0

    def size_and_ends(self) -> tuple[str, str]:
        """`2.1 points higher` and `1.2 to 3.0`; what is not clear has no size, and signs."""
        if not self.clear:
            ends = f"{text.points(self.low)} to {text.points(self.high)}"
            return "cannot be told apart", ends
        low, high = sorted(abs(100 * end) for end in (self.low, self.high))
        word = "higher" if self.difference > 0 else "lower"
        return (
            f"{abs(100 * self.difference):.1f} points {word}",
            f"{low:.1f} to {high:.1f}",
        )


def _sentence(name: str, base: str, metric: str, found: Sequence[_Apart]) -> str:
    """One sentence of several places."""
    run, other, what = f"**{text.md(name)}**", text.md(base), WORDS[metric]
    parts = []
    for at, one in enumerate(found):
        size, ends = one.size_and_ends()
        where = one.where if at else one.where[:1].upper() + one.where[1:]
        if not at:
            ends = f"95 % interval {ends}{one.more}"
            clause = (
                f"{run}'s {what} is {size} than {other}'s"
                if one.clear
                else f"the {what} of {run} and {other} {size}"
            )
        elif one.clear:
            clause = f"it is {size}" if found[0].clear else f"{run}'s is {size}"
        else:
            clause = f"they {size}"
        parts.append(f"{where} {clause} ({ends})")
    return f"{'; '.join(parts)}." if parts else ""


def _squares(difference: float, low: float, high: float) -> str:
    """`−183.2 pp² (95 % interval −225.4 to −140.9)`."""
    ends = " to ".join(text.square_points(end) for end in (low, high))
    return f"{text.square_points(difference)} (95 % interval {ends})"


def _note(squares: Sequence[str]) -> str:
    return f"The noise is taken out of squared errors: {'; '.join(squares)}." if squares else ""


_MARKS = re.compile(r"\\(.)|\*\*", re.DOTALL)


def plain(sentence: str) -> str:
    """A sentence for a terminal: as typed, without marks."""
    return _MARKS.sub(lambda found: found[1] or "", sentence)


# ---- Over all data sets ------------------------------------------------------------------------


def _over(role: str, datasets: Sequence[str]) -> str:
    if role == "id":
        return "on ID data"
    if len(datasets) == 1:
        return f"on {text.md(datasets[0].replace('_', ' '))}"
    return f"over the {len(datasets)} {role}s"


def of_run(name: str, evaluations: Sequence[EvaluationReport]) -> str:
    """Accuracy and ECE of a run over its shifts and on ID data; empty where it has none.

    The interval of a mean is the mean of the intervals: it holds however the sets depend on each
    other, and is rather wide.
    """
    parts = []
    for role in _ROLES:
        own = [e for e in evaluations if e.role == role]
        if not own:
            continue
        right, low, high, error, floor, least, most = np.mean(
            [
                (e.accuracy, *accuracy_ends(e), e.ece.value, e.ece.null_mean, *e.ece.interval)
                for e in own
            ],
            axis=0,
        ).tolist()
        parts.append(
            f"{_over(role, [e.dataset for e in own])} accuracy {text.percent(right)} "
            f"(95 % interval {text.interval(low, high)}), ECE {text.percent(error)} "
            f"({text.interval(least, most)}, floor {text.percent(floor)})"
        )
    return f"**{text.md(name)}**: {'; '.join(parts)}." if parts else ""


def on_diagram(found: Reliability, error: str = "ECE") -> str:
    """How large a run's calibration error is on a data set, and which way it errs."""
    gap = found.mean_confidence - found.accuracy
    lean = f"{abs(100 * gap):.1f} points {'over' if gap > 0 else 'under'}-confident on average"
    floor = (
        f"above the floor of {text.percent(found.null_mean)}"
        if found.ece > found.null_q95
        else f"no more than a calibrated model's, up to {text.percent(found.null_q95)} at this n"
    )
    return (
        f"**{text.md(found.run_name)}** on {text.md(found.dataset.replace('_', ' '))}: {error} "
        f"{text.percent(found.ece)} (95 % interval {text.interval(*found.interval)}), {floor}; "
        f"{lean}."
    )


def overall(
    run: str, base: str, boards: Sequence[Board], labels: Mapping[str, str]
) -> list[Answer]:
    """How far a run is from another by its means over shifts, corruptions and ID data.

    Decided as the boards are, by the same draws, with intervals that hold for all pairs of a board
    at once.

    Args:
        run: its id.
        base: the id of what it is relative to.

    Returns:
        An answer on accuracy and one on calibration; none where the runs share nothing.
    """
    answered = []
    for metric in WORDS:
        found, squares = [], []
        by_role = {board.role: board for board in boards if board.metric == metric}
        for board in (by_role[role] for role in _ROLES if role in by_role):
            own, other = (
                next(s for s in board.standings if s.run_id == one) for one in (run, base)
            )
            apart, reach = own.decided - other.decided, own.reach[base]
            all_of_it, more = (apart, apart - reach, apart + reach), ""
            where = _over(board.role, board.datasets)
            if metric == "ece":
                squares.append(f"{where} {_squares(*all_of_it)}")
                all_of_it = rms_difference(own.decided, other.decided, all_of_it[1:])
                more = f"; ECE {text.percent(own.value)} against {text.percent(other.value)}"
            found.append(_Apart(where, *all_of_it, more))
        if found:
            sentence = _sentence(labels[run], labels[base], metric, found)
            answered.append(Answer(sentence, note=_note(squares)))
    return answered


# ---- Data set by data set ----------------------------------------------------------------------


def by_dataset(name: str, base: str, found: Sequence[PairedDifference], metric: str) -> Answer:
    """Where a run is furthest from the baseline, where it is so the other way, where it is open.

    Args:
        found: the run minus the baseline, on any data sets.
        metric: of `WORDS`.
    """
    own = sorted((d for d in found if d.metric == metric), key=lambda d: -abs(decided(d)[0]))
    if not own:
        return Answer("")
    high = text.METRICS[metric].better == "high"

    def kind(one: PairedDifference) -> str:
        return (
            ("better" if (decided(one)[0] > 0) == high else "worse")
            if one.distinguishable
            else "open"
        )

    kinds = {word: [d for d in own if kind(d) == word] for word in ("better", "worse", "open")}
    ends = [kinds[word][0] for word in ("better", "worse") if kinds[word]]
    shown = [*sorted(ends, key=own.index), *kinds["open"][-1:]]
    first, counts = shown[0], ""
    if len(own) > 1:
        counts = (
            f" Of {len(own)} data sets: better on {len(kinds['better'])}, worse on "
            f"{len(kinds['worse'])}, not distinguishable on {len(kinds['open'])}."
        )
    of = first.squared
    return Answer(
        _sentence(name, base, metric, [_on(d) for d in shown]) + counts,
        first.dataset,
        _note([] if of is None else [_squares(of.difference, *of.interval)]),
    )


def _on(found: PairedDifference) -> _Apart:
    more = ""
    if found.squared is not None:
        more = f"; ECE {text.percent(found.value)} against {text.percent(found.baseline)}"
    return _Apart(f"on {text.md(found.dataset.replace('_', ' '))}", *decided(found), more)


def merged(parts: Sequence[Comparison]) -> Comparison:
    """One comparison of parts that were made data set by data set; the first has the runs."""
    first = parts[0]
    columns = [
        column.model_copy(
            update={"differences": [d for part in parts for d in part.runs[at].differences]}
        )
        for at, column in enumerate(first.runs)
    ]
    warnings = dict.fromkeys(sentence for part in parts for sentence in part.warnings)
    return first.model_copy(
        update={
            "runs": columns,
            "confidence_sets": [found for part in parts for found in part.confidence_sets],
            "warnings": list(warnings),
        }
    )
