"""Every measure of a set with its floor and interval, and the audit of its estimators."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from calift_core import calibration
from calift_core.analysis.chunks import CELLS_AT_ONCE, PathLike, logit_chunks
from calift_core.analysis.draws import DEFAULT_DRAWS, Draws
from calift_core.calibration import Binning, SampleScores, TopLabel
from calift_core.calibration.bins import (
    DEFAULT_BINNING,
    Bools,
    Doubles,
    Floats,
    Ints,
    Norm,
    error_of_gaps,
)
from calift_core.calibration.diagrams import wilson_interval
from calift_core.calibration.measures import (
    LowerBound,
    batch_cells,
    over_classes,
    over_under_confidence,
)
from calift_core.calibration.scores import Scores
from calift_core.predictions.read import read_index, read_metadata
from calift_core.schema.wire.results import Measure

Unit = Literal["fraction", "nats", "score"]
BATCH_SIZES = (64, 128, 256, 512)
#: Label draws behind the floor of a measure other than the binned top-label error.
_OTHER_DRAWS = 100
#: Label draws behind the class-wise floor, each of which touches every class.
_CLASSWISE_DRAWS = 40
_Z95 = NormalDist().inv_cdf(0.975)


# ---- Measures ----------------------------------------------------------------------------------

_Estimator = Callable[[Scores], float]


def _null_of(
    estimators: Mapping[str, _Estimator], confidences: Doubles, *, n_resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Mean and 95 % quantile of estimators under labels drawn from the confidences (N,)."""
    rng = np.random.default_rng(seed)
    narrow = confidences.astype(np.float32)
    values: dict[str, list[float]] = {name: [] for name in estimators}
    for _ in range(n_resamples):
        drawn = TopLabel(confidences, rng.random(len(narrow), dtype=np.float32) < narrow)
        for name, estimator in estimators.items():
            values[name].append(estimator(drawn))
    return {
        name: (float(np.mean(found)), float(np.quantile(found, 0.95)))
        for name, found in values.items()
    }


def _batch_averaged(confidences: Doubles, batch_size: int) -> _Estimator:
    """`calibration.ece_batch_averaged` for many draws on the same confidences."""
    cell, n_cells = batch_cells(confidences, batch_size=batch_size, n_bins=10)

    def estimate(scores: Scores) -> float:
        residual = scores.confidences - scores.correct
        sums = np.bincount(cell, weights=residual, minlength=n_cells)
        return float(np.abs(sums).sum() / len(residual))

    return estimate


def _mean_measure(name: str, title: str, unit: Unit, values: Doubles) -> Measure:
    value = float(values.mean())
    half = _Z95 * float(values.std()) / len(values) ** 0.5
    return Measure(
        name=name, title=title, unit=unit, value=value, interval=(value - half, value + half)
    )


def _share_measure(name: str, title: str, hits: Bools) -> Measure:
    n = float(len(hits))
    low, high = wilson_interval(np.array([float(hits.sum())]), np.array([n]))
    return Measure(
        name=name, title=title, unit="fraction", value=float(hits.mean()),
        interval=(float(low[0]), float(high[0])),
    )  # fmt: skip


def _binned_measure(
    scores: Scores, binning: Binning, draws: Draws, *, name: str, title: str, note: str = ""
) -> Measure:
    report: dict[str, Any] = calibration.ece_report(scores, binning, **asdict(draws))
    return Measure(
        name=name, title=title, unit="fraction", value=report["value"],
        null_mean=report["null_mean"], null_q95=report["null_q95"],
        interval=tuple(report["interval"]), debiased=report["debiased"],
        n_bins=binning.n_bins, scheme=binning.scheme, note=note,
    )  # fmt: skip


_NORM_TITLES: dict[Norm, tuple[str, str]] = {
    "l1": ("ece", "ECE"),
    "l2": ("ece_l2", "ECE, L2"),
    "max": ("mce", "MCE"),
}


@dataclass(frozen=True)
class MeasureKind:
    """A measure of a set, a fraction.

    Attributes:
        of: takes N samples, and a binning if `is_binned`.
        has_floor: whether what a perfectly calibrated model would read stands beside it; `of` then
            makes do with confidences and hits.
    """

    title: str
    of: Callable[..., float]
    has_floor: bool = False
    is_binned: bool = False

    def value(self, scores: Scores, binning: Binning) -> float:
        """Of N samples."""
        return self.of(scores, binning) if self.is_binned else self.of(scores)


#: What a set is measured by, beside its accuracies, proper scores and one binned error.
MEASURES: dict[str, MeasureKind] = {
    "mce": MeasureKind("MCE", calibration.mce, has_floor=True, is_binned=True),
    "debiased_l2": MeasureKind(
        "Debiased calibration error, L2",
        lambda s, binning: calibration.debiased_calibration_error(s, replace(binning, norm="l2")),
        has_floor=True, is_binned=True,
    ),
    "smooth_ece": MeasureKind("Smooth ECE", calibration.smooth_ece, has_floor=True),
    "ks_error": MeasureKind("KS calibration error", calibration.ks_error, has_floor=True),
    "mean_per_class_accuracy": MeasureKind(
        "Mean per-class accuracy", calibration.mean_per_class_accuracy
    ),
    "macro_f1": MeasureKind("Macro-F1", calibration.macro_f1),
    "aurc": MeasureKind("AURC", calibration.aurc),
    "risk_at_coverage_80": MeasureKind(
        "Error rate at 80 % coverage", partial(calibration.risk_at_coverage, coverage=0.8)
    ),
    "overconfidence": MeasureKind(
        "Over-confident part of the ECE",
        lambda s, binning: over_under_confidence(s, binning)[0], is_binned=True,
    ),
    "underconfidence": MeasureKind(
        "Under-confident part of the ECE",
        lambda s, binning: over_under_confidence(s, binning)[1], is_binned=True,
    ),
}  # fmt: skip


def measures_of(
    scores: SampleScores,
    binning: Binning,
    draws: Draws = DEFAULT_DRAWS,
    *,
    n_classes: int,
    classwise: Measure | None = None,
) -> list[Measure]:
    """Every measure of N samples at one binning.

    Args:
        scores: N samples in stored order.
        binning: of every binned measure; the first of them is at its norm.
        draws: behind floors and intervals; other floors than that of the ECE take at most 100.
        n_classes: C; top-5 accuracy exists above 5.
        classwise: from `classwise_measure`, where it was asked for.
    """
    name, title = _NORM_TITLES[binning.norm]
    bins: dict[str, Any] = {"n_bins": binning.n_bins, "scheme": binning.scheme}
    kinds = {key: kind for key, kind in MEASURES.items() if key != name}
    floors = _null_of(
        {
            key: partial(kind.value, binning=binning)
            for key, kind in kinds.items()
            if kind.has_floor
        },
        scores.confidences,
        n_resamples=min(draws.n_resamples, _OTHER_DRAWS),
        seed=draws.seed,
    )
    rows = {
        key: Measure(
            name=key, title=kind.title, unit="fraction", value=kind.value(scores, binning),
            **(dict(zip(("null_mean", "null_q95"), floors[key], strict=True))
               if kind.has_floor else {}),
            **(bins if kind.is_binned else {}),
        )
        for key, kind in kinds.items()
    }  # fmt: skip
    return [
        _share_measure("accuracy", "Accuracy", scores.correct),
        *([_share_measure("top5_accuracy", "Top-5 accuracy", scores.rank < 5)]
          if n_classes > 5 else []),
        _mean_measure("mean_confidence", "Mean confidence", "fraction", scores.confidences),
        _mean_measure("nll", "NLL", "nats", scores.nll),
        _mean_measure("brier", "Brier score", "score", scores.brier),
        _binned_measure(scores, binning, draws, name=name, title=title),
        *(row for key, row in rows.items() if key in floors),
        *([classwise] if classwise is not None else []),
        *(row for key, row in rows.items() if key not in floors),
    ]  # fmt: skip


def _lower_bound(confidences: Doubles) -> _Estimator:
    """`ece_lower_bound` for many draws on the same confidences."""
    bound = LowerBound(confidences)
    return lambda scores: bound(scores.correct)


def audit_of(
    scores: SampleScores, draws: Draws = DEFAULT_DRAWS, *, classwise: Sequence[Measure] = ()
) -> list[Measure]:
    """The same predictions under the estimators in use: why published numbers differ.

    Args:
        scores: N samples in stored order, which the batch-averaged values depend on.
        draws: behind each ECE's floor and interval; other floors take at most 100.
        classwise: rows from `classwise_measure`, put before the last.
    """
    confidences = scores.confidences
    sizes = [size for size in BATCH_SIZES if size < len(scores)]
    estimators: dict[str, _Estimator] = {
        f"ece_batch_averaged_{size}": _batch_averaged(confidences, size) for size in sizes
    }
    estimators |= {
        "mce_equal_width": lambda s: calibration.mce(s, Binning(scheme="equal_width")),
        "mce": calibration.mce,
        "debiased_l2": lambda s: calibration.debiased_calibration_error(s, Binning(norm="l2")),
        "smooth_ece": calibration.smooth_ece,
        "ks_error": calibration.ks_error,
    }
    estimators["ece_lower_bound"] = _lower_bound(confidences)
    null = _null_of(
        estimators, confidences,
        n_resamples=min(draws.n_resamples, _OTHER_DRAWS), seed=draws.seed,
    )  # fmt: skip

    def row(name: str, title: str, note: str, **more: Any) -> Measure:
        return Measure(
            name=name, title=title, unit="fraction", value=estimators[name](scores),
            null_mean=null[name][0], null_q95=null[name][1], note=note, **more,
        )  # fmt: skip

    def binned(binning: Binning, title: str, note: str) -> Measure:
        return _binned_measure(
            scores, binning, draws, name=f"ece_{binning.norm}_{binning.n_bins}_{binning.scheme}",
            title=title, note=note,
        )  # fmt: skip

    return [
        *(
            row(
                f"ece_batch_averaged_{size}", f"Batch-averaged ECE, batches of {size}",
                "paper-compatible: averages the noise of batches, never ranked on",
                n_bins=10, scheme="equal_width", batch_size=size,
            )
            for size in sizes
        ),
        binned(Binning(10, "equal_width"), "ECE, 10 equal-width bins",
               "the whole set at once, with the papers' bins"),
        binned(Binning(15, "equal_width"), "ECE, 15 equal-width bins",
               "nearly empty bins add noise"),
        binned(Binning(15, "equal_mass"), "ECE, 15 equal-mass bins", "the default here"),
        binned(Binning(15, "equal_mass", "l2"), "ECE, L2, 15 equal-mass bins",
               "weighs large gaps more, so it is never below L1"),
        row("debiased_l2", "Debiased calibration error, L2",
            "noise taken out; of perfect models more than half read negative", n_bins=15,
            scheme="equal_mass"),
        row("mce_equal_width", "MCE, 15 equal-width bins", "one nearly empty bin decides it",
            n_bins=15, scheme="equal_width"),
        row("mce", "MCE, 15 equal-mass bins", "the largest gap", n_bins=15, scheme="equal_mass"),
        row("smooth_ece", "Smooth ECE", "no bins; it has a floor too"),
        row("ece_lower_bound", "Lower bound, L1 (variational)",
            "no bins; in the mean never above the error, negative: no fault found"),
        *classwise,
        row("ks_error", "KS calibration error", "no bins; gaps of opposite sign cancel"),
    ]  # fmt: skip


def classwise_measure(
    path: PathLike,
    binning: Binning = DEFAULT_BINNING,
    draws: Draws = DEFAULT_DRAWS,
    *,
    temperature: float = 1.0,
) -> Measure:
    """The class-wise calibration error of a file with its floor, which needs all N·C probabilities.

    The floor draws every sample's label from its own row of probabilities, at most 40 times.

    Args:
        path: a predictions file that stores all logits.
        binning: of each class's probabilities.
        temperature: positive divisor of the logits.

    Raises:
        SpecError: the temperature is not valid.
        PredictionsError: the file breaks its contract or does not hold all logits.
    """
    probs, labels = _probabilities(path, temperature)
    n_resamples = min(draws.n_resamples, _CLASSWISE_DRAWS)
    drawn = _draw_labels(probs, n_resamples, np.random.default_rng(draws.seed))
    errors = _classwise_errors(probs, np.concatenate([labels[None], drawn]), binning)
    return Measure(
        name=f"classwise_ece_{binning.scheme}",
        title=f"Class-wise ECE, {binning.n_bins} {binning.scheme.replace('_', '-')} bins",
        unit="fraction",
        value=float(errors[0]),
        null_mean=float(errors[1:].mean()),
        null_q95=float(np.quantile(errors[1:], 0.95)),
        n_bins=binning.n_bins,
        scheme=binning.scheme,
        note="mean over classes of every class's own probability",
    )


def _probabilities(path: PathLike, temperature: float) -> tuple[Floats, npt.NDArray[np.int64]]:
    labels = read_index(path)[1]
    probs = np.empty((len(labels), len(read_metadata(path).class_names)), dtype=np.float32)
    start = 0
    for chunk in logit_chunks(path):
        probs[start : start + len(chunk)] = calibration.softmax(chunk.logits, temperature)
        start += len(chunk)
    return probs, labels


def _draw_labels(
    probs: Floats, n_resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw a label for each row of probabilities (N, C), R times; (R, N)."""
    n, n_classes = probs.shape
    drawn = np.empty((n_resamples, n), dtype=np.int64)
    rows = max(1, CELLS_AT_ONCE // n_classes)
    for start in range(0, n, rows):
        below = np.cumsum(probs[start : start + rows], axis=1, dtype=np.float64)
        below /= below[:, -1:]
        at = np.arange(len(below))
        # One ascending sequence for all rows: row i lies in [i, i + 1].
        flat = (below + at[:, None]).ravel()
        points = rng.random((n_resamples, len(below))) + at
        found = np.searchsorted(flat, points.ravel(), side="right").reshape(points.shape)
        drawn[:, start : start + rows] = np.clip(found - at * n_classes, 0, n_classes - 1)
    return drawn


def _classwise_errors(probs: Floats, labels: Ints, binning: Binning) -> Doubles:
    """Class-wise errors (S,) of S label vectors (S, N) on the same probabilities (N, C)."""
    n_sets, n = labels.shape
    n_classes = probs.shape[1]
    order = np.argsort(labels.ravel(), kind="stable")
    starts = np.searchsorted(labels.ravel()[order], np.arange(n_classes + 1))
    errors = np.empty((n_classes, n_sets))
    for c in range(n_classes):
        column = np.minimum(probs[:, c], 1).astype(np.float64)
        edges = calibration.bin_edges(column, binning)
        of, size = calibration.assign_bins(column, edges), len(edges) - 1
        count = np.bincount(of, minlength=size)
        total = np.bincount(of, weights=column, minlength=size)
        members = order[starts[c] : starts[c + 1]]
        cell = members // n * size + of[members % n]
        hits = np.bincount(cell, minlength=n_sets * size).reshape(n_sets, size)
        filled = count > 0
        gap = (total - hits)[:, filled] / count[filled]
        errors[c] = error_of_gaps(gap, count[filled] / n, binning.norm)
    return over_classes(errors, binning)
