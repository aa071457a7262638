"""How far predictions can be trusted, in three sentences and the numbers behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from calift_core.analysis.draws import Draws
from calift_core.analysis.reliability import reliability_numbers
from calift_core.calibration import Binning, ece, nll, paired_difference, score_probs
from calift_core.calibration.bins import two_columns
from calift_core.calibration.compare import PairedDifference
from calift_core.calibration.decisions import choose_threshold, keep
from calift_core.calibration.diagrams import wilson_interval
from calift_core.calibration.scores import SampleScores
from calift_core.errors import PredictionsError
from calift_core.judging.calibrated import calibrate
from calift_core.judging.labels import class_indices
from calift_core.judging.page import fragment, page
from calift_core.judging.sets import JudgedSet
from calift_core.words import nats, percent

#: Largest share of errors that the sentence on a threshold allows.
RISK = 0.05
#: Metrics that two models are compared by, with the direction that is better.
COMPARED: tuple[tuple[str, str, Literal["higher", "lower"]], ...] = (
    ("accuracy", "accuracy", "higher"),
    ("nll", "NLL", "lower"),
    ("squared_ece", "calibration", "lower"),
)
#: Fewest samples that a calibrator is cross-fitted on.
_LEAST_CROSS_FITTED = 50


@dataclass(frozen=True)
class Judgement:
    """What `judge` found.

    Attributes:
        sentences: the answer, in three.
        sets: the first data set, then the shifts.
        other: name of the model that it was compared with; none where there is none.
    """

    sentences: tuple[str, str, str]
    sets: tuple[JudgedSet, ...]
    other: str = ""

    def __repr__(self) -> str:
        return "\n".join(self.sentences)

    def _repr_html_(self) -> str:
        return fragment(self.sentences, self.sets)

    def to_html(self, *, title: str = "") -> str:
        """One page that needs nothing else: the sentences, a table, a diagram a data set."""
        return page(self.sentences, self.sets, title=title)

    def to_dict(self) -> dict[str, Any]:
        """Sentences and numbers as plain values for JSON."""
        return {
            "sentences": list(self.sentences),
            "sets": [
                {
                    "name": one.name,
                    "role": one.role,
                    "accuracy_interval": list(one.accuracy_interval),
                    **one.numbers,
                    "against": {
                        metric: {"difference": d.difference, "interval": [d.low, d.high]}
                        for metric, d in one.against.items()
                    },
                }
                for one in self.sets
            ],
            "other": self.other,
        }


def judge(
    probs: Any,
    labels: Any,
    *,
    classes: Any = None,
    shifts: Mapping[str, tuple[Any, Any]] | None = None,
    against: Any = None,
    name: str = "data",
    other: str = "the other model",
    n_bins: int = 15,
    n_resamples: int = 200,
    seed: int = 0,
) -> Judgement:
    """Say how far probabilities can be trusted: accuracy, calibration, shifts, another model.

    Args:
        probs: (N, C) probabilities, rows sum to one, or (N,) of the second of two classes.
        labels: (N,) class indices or names.
        classes: (C,) labels in the order of the columns; None: 0 to C − 1 for integers, the sorted
            labels for strings, as scikit-learn orders them.
        shifts: name → probabilities and labels of a shifted data set, in the same classes.
        against: another model's probabilities of the same samples in the same order.
        name: of the data set.
        other: name of the other model.
        n_bins: equal-mass bins of the calibration error.
        n_resamples: draws behind floors and intervals.
        seed: of the draws.

    Raises:
        PredictionsError: an array breaks its contract; says what was expected and what came.
        SpecError: an option is not valid.
    """
    binning, draws = Binning(n_bins, "equal_mass"), Draws(n_resamples, seed)
    own = two_columns(probs)
    targets, names = class_indices(labels, *own.shape, classes=classes)
    scores = score_probs(own, targets)
    compared, other_ece = {}, 0.0
    if against is not None:
        rival = score_probs(two_columns(against), targets)
        compared = {
            metric: paired_difference(scores, rival, metric=metric, seed=seed)
            for metric, _, _ in COMPARED
        }
        other_ece = ece(rival, binning)
    sets = [_judged(name, "id", scores, binning, draws, compared)]
    for shift, (shifted, labels_of_shift) in (shifts or {}).items():
        found = two_columns(shifted)
        if found.shape[1] != own.shape[1]:
            raise PredictionsError(
                f"the shift {shift!r} must have {own.shape[1]} classes, as {name!r}, it has "
                f"{found.shape[1]}"
            )
        of_shift, _ = class_indices(labels_of_shift, *found.shape, classes=names)
        shift_scores = score_probs(found, of_shift)
        sets.append(_judged(shift, "shift", shift_scores, binning, draws, {}))
    third = (
        _against(sets[0], other, other_ece)
        if compared
        else _improved(own, targets, scores, binning)
    )
    sentences = (_first(sets[0]), _second(sets, scores), third)
    return Judgement(sentences, tuple(sets), other if compared else "")


def _judged(
    name: str,
    role: Literal["id", "shift"],
    scores: SampleScores,
    binning: Binning,
    draws: Draws,
    against: dict[str, PairedDifference],
) -> JudgedSet:
    right, n = np.asarray(scores.correct.sum()), np.asarray(len(scores.correct))
    low, high = wilson_interval(right, n)
    numbers = reliability_numbers(scores, binning, draws)
    return JudgedSet(name, role, numbers, (float(low), float(high)), against)


def _first(found: JudgedSet) -> str:
    n, (low, high) = found.numbers, found.accuracy_interval
    least, most = n["interval"]
    word = "over-confident" if found.gap > 0 else "under-confident"
    above = "more than chance explains" if found.is_miscalibrated else "which chance can explain"
    return (
        f"On {found.name} it is right on {percent(n['accuracy'])} of {n['n']:,} samples "
        f"({percent(low)} to {percent(high)}) and on average {percent(n['mean_confidence'])} "
        f"sure, {word} by {abs(100 * found.gap):.1f} points; its calibration error (ECE) is "
        f"{percent(n['ece'])} ({percent(least)} to {percent(most)}), {above} (floor "
        f"{percent(n['null_mean'])})."
    )


def _second(sets: Sequence[JudgedSet], scores: SampleScores) -> str:
    shifts = sets[1:]
    if not shifts:
        threshold = choose_threshold(scores, risk=RISK)
        if threshold is None:
            return (
                f"There is no confidence from which on at most {percent(RISK)} of its answers "
                "would be wrong, as far as this many samples can promise."
            )
        kept = keep(scores, threshold)
        return (
            f"Answers that are at least {percent(threshold)} sure may be trusted: of data like "
            f"these at most {percent(RISK)} of them are wrong, and they are "
            f"{percent(kept.coverage)} of all."
        )
    worst = min(shifts, key=lambda s: float(s.numbers["accuracy"]))
    surest = max(shifts, key=lambda s: s.gap)
    n, first = worst.numbers, sets[0].numbers
    lost = 100 * (first["accuracy"] - n["accuracy"])
    several = len(shifts) > 1
    lead = (
        f"Of {len(shifts)} shifts {worst.name} costs most:" if several else f"On {worst.name} it is"
    )
    sentence = (
        f"{lead} right on {percent(n['accuracy'])}, {abs(lost):.1f} points "
        f"{'less' if lost >= 0 else 'more'}, "
        f"with an ECE of {percent(n['ece'])} (floor {percent(n['null_mean'])}) and an NLL of "
        f"{nats(n['nll'])}, before {nats(first['nll'])}"
    )
    if surest is not worst and surest.gap > 0:
        sentence += f"; it is too sure most on {surest.name}, by {100 * surest.gap:.1f} points"
    return sentence + "."


def _against(found: JudgedSet, other: str, other_ece: float) -> str:
    parts = []
    for metric, word, better in COMPARED:
        d = found.against[metric]
        if not d.distinguishable:
            parts.append(f"{word} cannot be told apart")
            continue
        way = "higher" if d.difference > 0 else "lower"
        ends = sorted((abs(d.low), abs(d.high)))
        if metric == "accuracy":
            size = f"{abs(100 * d.difference):.1f} points"
            span = f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
        else:
            size, span = f"{abs(d.difference):.3f} nats", f"{ends[0]:.3f} to {ends[1]:.3f}"
        mark = "better" if way == better else "worse"
        parts.append(
            f"{word} is {mark} (ECE {percent(found.numbers['ece'])} against {percent(other_ece)})"
            if metric == "squared_ece"
            else f"{word} is {size} {way} ({span}), {mark}"
        )
    return f"Against {other}, on the same samples: {'; '.join(parts)}."


def _improved(
    probs: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[Any],
    scores: SampleScores,
    binning: Binning,
) -> str:
    if len(labels) < _LEAST_CROSS_FITTED:
        return (
            f"A calibrator was not tried: {len(labels)} samples are fewer than the "
            f"{_LEAST_CROSS_FITTED} that one is cross-fitted on."
        )
    fitted = calibrate(probs, labels, kind="temperature")
    after = score_probs(fitted.cross_fitted_, labels)
    d = paired_difference(after, scores, metric="nll")
    if not d.distinguishable or d.difference > 0:
        return (
            "A temperature would not help on data like these: cross-fitted, it takes the NLL from "
            f"{nats(nll(scores))} to {nats(nll(after))}, which is no clear gain."
        )
    return (
        f"A temperature of {fitted.temperature:.2f} would help on data like these: cross-fitted, "
        f"it takes the NLL from {nats(nll(scores))} to {nats(nll(after))} and the ECE from "
        f"{percent(ece(scores, binning))} to {percent(ece(after, binning))} "
        "(`calift.calibrate`); under a shift it may do harm."
    )
