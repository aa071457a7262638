"""Comparisons in sentences: how far two runs are apart, where, and where nobody can tell."""

from collections.abc import Sequence
from typing import NamedTuple

from calift_core.schema.wire.results import Comparison, PairedDifference
from frontend import text


class Answer(NamedTuple):
    """What a comparison of two runs says.

    Attributes:
        sentence: in Markdown; names are escaped.
        dataset: where it is most so, for a link; none where nothing was compared.
        note: what it is decided on, in plain text, where the sentence does not say.
    """

    sentence: str
    dataset: str | None
    note: str = ""


class _Tally(NamedTuple):
    """Differences of one metric by what they say of the run: better, worse, or nothing."""

    better: list[PairedDifference]
    worse: list[PairedDifference]
    open: list[PairedDifference]

    @property
    def clear(self) -> list[PairedDifference]:
        return [*self.better, *self.worse]


def _decided(found: PairedDifference) -> float:
    return found.difference if found.squared is None else found.squared.difference


def _tally(found: Sequence[PairedDifference], metric: str) -> _Tally:
    high = text.METRICS[metric].better == "high"
    own = [d for d in found if d.metric == metric]
    clear = sorted((d for d in own if d.distinguishable), key=lambda d: -abs(_decided(d)))
    return _Tally(
        [d for d in clear if (_decided(d) > 0) == high],
        [d for d in clear if (_decided(d) > 0) != high],
        sorted((d for d in own if not d.distinguishable), key=lambda d: abs(_decided(d))),
    )


def on_accuracy(name: str, base: str, found: Sequence[PairedDifference]) -> Answer:
    """How far a run's accuracy is from the baseline's on the same samples.

    Args:
        found: the run minus the baseline, on any data sets.
    """
    tally = _tally(found, "accuracy")
    if not tally.clear and not tally.open:
        return Answer("", None)
    run, other = _strong(name), text.md(base)
    if not tally.clear:
        closest = tally.open[-1]
        return Answer(
            f"{run} and {other} cannot be told apart by their accuracy on "
            f"{_sets(len(tally.open))}: nowhere does the interval exclude zero.",
            closest.dataset,
        )
    most = max(tally.clear, key=lambda d: abs(d.difference))
    parts = [f"On {_title(most)} {run}'s accuracy is {_apart(most)} than {other}'s"]
    against = tally.worse if most in tally.better else tally.better
    if against:
        parts.append(f"on {_title(against[0])} it is {_apart(against[0])}")
    if tally.open:
        parts.append(f"on {_title(tally.open[0])} they cannot be told apart")
    return Answer(f"{'; '.join(parts)}. {_count(tally, 'higher', 'lower')}", most.dataset)


def on_calibration(name: str, base: str, found: Sequence[PairedDifference]) -> Answer:
    """Whether a run is better calibrated than the baseline; decided on squared L2 errors."""
    tally = _tally(found, "ece")
    if not tally.clear and not tally.open:
        return Answer("", None)
    run, other = _strong(name), text.md(base)
    if not tally.clear:
        return Answer(
            f"{run} and {other} cannot be told apart by their calibration on "
            f"{_sets(len(tally.open))}.",
            tally.open[-1].dataset,
        )
    most = tally.clear[0] if not tally.worse else max(tally.clear, key=lambda d: abs(_decided(d)))
    word = "better" if most in tally.better else "worse"
    lead = (
        f"{run} is {word} calibrated than {other} on {_title(most)} "
        f"(ECE {text.percent(most.value)} against {text.percent(most.baseline)}"
        f", {abs(100 * most.difference):.1f} points "
        f"{'lower' if most.difference < 0 else 'higher'})"
    )
    against = tally.worse if word == "better" else tally.better
    if against:
        turned = "worse" if word == "better" else "better"
        lead += (
            f"; {turned} on {_title(against[0])} ({text.percent(against[0].value)} against "
            f"{text.percent(against[0].baseline)})"
        )
    return Answer(f"{lead}. {_count(tally, 'better', 'worse')}", most.dataset, _squared(most))


def _strong(name: str) -> str:
    return f"**{text.md(name)}**"


def _title(found: PairedDifference) -> str:
    return text.md(found.dataset.replace("_", " "))


def _apart(found: PairedDifference) -> str:
    """`22.9 points higher (21.7 to 24.2)`, of the accuracy; the smaller end first."""
    low, high = found.interval or (found.difference, found.difference)
    ends = sorted(abs(100 * end) for end in (low, high))
    word = "higher" if found.difference > 0 else "lower"
    return f"{abs(100 * found.difference):.1f} points {word} ({ends[0]:.1f} to {ends[1]:.1f})"


def _squared(found: PairedDifference) -> str:
    """`Decided on … : 183.2 pp² lower, 95 % interval 140.9 to 225.4`; the smaller end first."""
    if found.squared is None:
        return ""
    ends = sorted(abs(1e4 * end) for end in found.squared.interval)
    word = "lower" if found.squared.difference < 0 else "higher"
    by = text.square_points(abs(found.squared.difference)).lstrip("+")
    return (
        f"Decided on debiased squared L2 errors: {by} {word}, 95 % interval {ends[0]:.1f} to "
        f"{ends[1]:.1f}."
    )


def _sets(count: int) -> str:
    return "the one data set compared" if count == 1 else f"all {count} data sets"


def _count(tally: _Tally, better: str, worse: str) -> str:
    every = len(tally.clear) + len(tally.open)
    if every == 1:
        return ""
    return (
        f"Of {every} data sets: {better} on {len(tally.better)}, {worse} on {len(tally.worse)}, "
        f"not distinguishable on {len(tally.open)}."
    )


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
