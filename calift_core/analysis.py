"""What is computed of stored predictions when somebody asks: a file's scores in, numbers out.

The service remembers what it computed and the command reads a file directly; both call these
functions, which know neither. Scores (`SampleScores`) are enough for all of them but the class-wise
error and the calibrators, which pass over the logits of a file in chunks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from calift_core import calibration
from calift_core.calibration import Binning, SampleScores, TopLabel, score_probs
from calift_core.calibration.bins import (
    DEFAULT_BINNING,
    Bools,
    Doubles,
    Floats,
    Ints,
    Norm,
    error_of_gaps,
)
from calift_core.calibration.calibrators import CALIBRATORS, Calibrator, Histogram, Isotonic
from calift_core.calibration.compare import check_paired
from calift_core.calibration.measures import LowerBound, batch_cells, over_classes
from calift_core.calibration.scores import Scores
from calift_core.calibration.squared import Units
from calift_core.errors import SpecError, UnknownNameError
from calift_core.predictions import (
    Predictions,
    PredictionsMetadata,
    iter_chunks,
    read_index,
    read_metadata,
    read_predictions,
)
from calift_core.schema.wire import (
    Budget,
    FittedCalibrator,
    FittedOn,
    Measure,
    Slice,
    SlicePage,
    SmoothCurve,
    Source,
)
from calift_core.slices import By, Samples, Sort, groups_by, matching, slice_of, sorted_groups

PathLike = str | os.PathLike[str]
Unit = Literal["fraction", "nats", "score"]

#: Fields of a `ReliabilityBin`, which only filled bins have.
_BIN_COLUMNS = (
    "lower", "upper", "count", "mean_confidence", "accuracy", "interval_low", "interval_high",
    "band_low", "band_high",
)  # fmt: skip
BATCH_SIZES = (64, 128, 256, 512)
_CELLS_AT_ONCE = 4_000_000
#: Label draws behind the floor of a measure other than the binned top-label error.
_OTHER_DRAWS = 100
#: Logits that a calibrator is fitted on at most: 10,000 samples of 1,000 classes.
FIT_CELLS = 10_000_000
#: Label draws behind the class-wise floor, each of which touches every class.
_CLASSWISE_DRAWS = 40
_Z95 = float(ndtri(0.975))


@dataclass(frozen=True)
class Draws:
    """How often outcomes are drawn for floors and intervals, and from which seed."""

    n_resamples: int = 200
    seed: int = 0


DEFAULT_DRAWS = Draws()


# ---- The reliability diagram -------------------------------------------------------------------


def reliability_numbers(
    scores: SampleScores,
    binning: Binning,
    draws: Draws = DEFAULT_DRAWS,
    *,
    smooth: SmoothCurve | None = None,
) -> dict[str, Any]:
    """Return the fields of a `Reliability` that come from the samples.

    Args:
        scores: N samples.
        binning: of the error and of the diagram alike.
        draws: behind floor, band and interval.
        smooth: from `smooth_curve`, which no binning changes; None leaves it out.
    """
    curve = calibration.reliability_curve(scores, binning, **asdict(draws))
    columns = {name: getattr(curve, name)[curve.count > 0].tolist() for name in _BIN_COLUMNS}
    return {
        "n": curve.n,
        **asdict(binning),
        "accuracy": calibration.accuracy(scores),
        "mean_confidence": float(scores.confidences.mean()),
        "nll": calibration.nll(scores),
        "brier": calibration.brier(scores),
        "ece": curve.ece,
        "null_mean": curve.null_mean,
        "null_q95": curve.null_q95,
        "interval": calibration.interval(scores, binning, **asdict(draws)),
        "debiased": (
            None
            if binning.norm == "max"
            else calibration.debiased_calibration_error(scores, binning)
        ),
        "bins": [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ],
        "smooth": smooth,
    }


def smooth_curve(scores: SampleScores, n_points: int = 101) -> SmoothCurve:
    """Return the kernel diagram that belongs to the smooth calibration error."""
    found = calibration.smooth_reliability_curve(scores, n_points=n_points)
    return SmoothCurve(
        confidence=found.confidence.tolist(),
        accuracy=[None if np.isnan(a) else a for a in found.accuracy.tolist()],
        density=found.density.tolist(),
        bandwidth=found.bandwidth,
        smooth_ece=found.smooth_ece,
    )


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
    low, high = calibration.wilson_interval(np.array([float(hits.sum())]), np.array([n]))
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
    bins: dict[str, Any] = {"n_bins": binning.n_bins, "scheme": binning.scheme}
    name, title = _NORM_TITLES[binning.norm]
    others: dict[str, tuple[str, _Estimator]] = {
        "mce": ("MCE", lambda s: calibration.mce(s, binning)),
        "debiased_l2": (
            "Debiased calibration error, L2",
            lambda s: calibration.debiased_calibration_error(s, replace(binning, norm="l2")),
        ),
        "smooth_ece": ("Smooth ECE", calibration.smooth_ece),
        "ks_error": ("KS calibration error", calibration.ks_error),
    }
    others.pop(name, None)
    null = _null_of(
        {key: estimator for key, (_, estimator) in others.items()}, scores.confidences,
        n_resamples=min(draws.n_resamples, _OTHER_DRAWS), seed=draws.seed,
    )  # fmt: skip
    over, under = calibration.over_under_confidence(scores, binning)
    plain: list[tuple[str, str, float]] = [
        ("mean_per_class_accuracy", "Mean per-class accuracy",
         calibration.mean_per_class_accuracy(scores)),
        ("aurc", "AURC", calibration.aurc(scores)),
        ("risk_at_coverage_80", "Error rate at 80 % coverage",
         calibration.risk_at_coverage(scores, coverage=0.8)),
        ("overconfidence", "Over-confident part of the ECE", over),
        ("underconfidence", "Under-confident part of the ECE", under),
    ]  # fmt: skip
    binned_plain = {"overconfidence", "underconfidence"}
    return [
        _share_measure("accuracy", "Accuracy", scores.correct),
        *([_share_measure("top5_accuracy", "Top-5 accuracy", scores.rank < 5)]
          if n_classes > 5 else []),
        _mean_measure("mean_confidence", "Mean confidence", "fraction", scores.confidences),
        _mean_measure("nll", "NLL", "nats", scores.nll),
        _mean_measure("brier", "Brier score", "score", scores.brier),
        _binned_measure(scores, binning, draws, name=name, title=title),
        *(
            Measure(
                name=key, title=words, unit="fraction", value=estimator(scores),
                null_mean=null[key][0], null_q95=null[key][1],
                **(bins if key in ("mce", "debiased_l2") else {}),
            )
            for key, (words, estimator) in others.items()
        ),
        *([classwise] if classwise is not None else []),
        *(
            Measure(name=key, title=words, unit="fraction", value=value,
                    **(bins if key in binned_plain else {}))
            for key, words, value in plain
        ),
    ]  # fmt: skip


def _lower_bound(confidences: Doubles) -> _Estimator:
    """`calibration.ece_lower_bound` for many draws on the same confidences."""
    bound = LowerBound(confidences)
    return lambda scores: bound(scores.correct)


def audit_of(
    scores: SampleScores,
    draws: Draws = DEFAULT_DRAWS,
    *,
    classwise: Sequence[Measure] = (),
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
        draws: of labels, behind the floor.
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
    for chunk in _chunks(path):
        probs[start : start + len(chunk)] = calibration.softmax(chunk.logits, temperature)
        start += len(chunk)
    return probs, labels


def _chunks(path: PathLike) -> Iterator[Predictions]:
    rows = max(1, _CELLS_AT_ONCE // len(read_metadata(path).class_names))
    return iter_chunks(path, rows)


def _draw_labels(
    probs: Floats, n_resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw a label for each row of probabilities (N, C), R times; (R, N)."""
    n, n_classes = probs.shape
    drawn = np.empty((n_resamples, n), dtype=np.int64)
    rows = max(1, _CELLS_AT_ONCE // n_classes)
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


# ---- Slices ------------------------------------------------------------------------------------


def slice_page(
    samples: Samples,
    source: Source,
    binning: Binning,
    draws: Draws = DEFAULT_DRAWS,
    *,
    by: By = "class",
    where: str | None = None,
    sort: Sort = "key",
    descending: bool = False,
    min_n: int = 30,
    offset: int = 0,
    limit: int = 50,
    temperature: float = 1.0,
) -> SlicePage:
    """One page of slices of an evaluation.

    Args:
        samples: N of them.
        source: what they are of.
        binning: of each slice's error, and of `by="confidence"`.
        draws: behind each slice's floor and interval.
        by: what makes a slice.
        where: a condition that samples must meet; see `calift_core.slices`.
        sort: of the slices; `key` is the order of classes, bins or names.
        descending: largest first.
        min_n: fewest samples that a calibration error is given for.
        offset: slices before the page.
        limit: slices on the page.
        temperature: that the samples were scored at.

    Raises:
        SpecError: the condition or the grouping is not valid.
    """
    index = np.flatnonzero(matching(samples, where))
    groups = groups_by(samples, by, index, binning)
    groups = sorted_groups(samples, groups, sort, binning, descending=descending)
    items = [
        slice_of(
            samples.scores.take(group.positions), binning, **asdict(draws), key=group.key,
            title=group.title, n_total=len(samples.scores), min_n=min_n,
        )
        for group in groups[offset : offset + limit]
    ]  # fmt: skip
    return SlicePage(
        source=source,
        by=by,
        where=where or "",
        sort=sort,
        descending=descending,
        min_n=min_n,
        scheme=binning.scheme,
        norm=binning.norm,
        temperature=temperature,
        n=len(samples.scores),
        n_matching=len(index),
        total=len(groups),
        offset=offset,
        items=items,
    )


def slice_of_set(
    samples: Samples,
    binning: Binning,
    draws: Draws = DEFAULT_DRAWS,
    *,
    title: str,
    where: str | None,
    min_n: int,
) -> Slice | None:
    """The samples of one data set that meet a condition, as one slice; None where none does."""
    index = np.flatnonzero(matching(samples, where))
    if not len(index):
        return None
    return slice_of(
        samples.scores.take(index), binning, **asdict(draws), key=title, title=title,
        n_total=len(samples.scores), min_n=min_n,
    )  # fmt: skip


# ---- Calibrators -------------------------------------------------------------------------------


def is_perturbed(metadata: PredictionsMetadata) -> bool:
    """Whether these are predictions of perturbed copies of the ID calibration split, for TS-P."""
    return metadata.role == "calibration" and metadata.source_dataset is not None


def read_to_fit(path: PathLike, *, n_files: int = 1) -> Predictions:
    """Read what a calibrator is fitted on: all samples, or as many as `FIT_CELLS` logits hold.

    Of a larger file samples are taken at equal distances in stored order.

    Args:
        path: a predictions file that stores all logits.
        n_files: files that the calibrator is fitted on together, which share the logits.

    Raises:
        PredictionsError: the file breaks its contract or does not hold all logits.
    """
    labels, metadata = read_index(path)[1], read_metadata(path)
    most = max(1, FIT_CELLS // (n_files * len(metadata.class_names)))
    if len(labels) <= most:
        return read_predictions(path)
    kept = np.linspace(0, len(labels) - 1, most).round().astype(np.int64)
    parts, start = [], 0
    for chunk in _chunks(path):
        inside = kept[(kept >= start) & (kept < start + len(chunk))] - start
        parts.append((chunk.ids[inside], chunk.labels[inside], chunk.logits[inside]))
        start += len(chunk)
    ids, own, logits = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Predictions(ids=ids, labels=own, logits=logits, metadata=metadata)


def fit_calibrator(
    kind: str, parts: Sequence[Predictions], *, oracle: bool, evaluation_id: str | None = None
) -> tuple[Calibrator, FittedCalibrator]:
    """Fit a calibrator on stored predictions, under the leakage guard.

    Args:
        kind: a name in `CALIBRATORS`.
        parts: one set of predictions, from `read_to_fit`; for `tsp` the ID calibration split and
            its perturbed copies.
        oracle: allow data other than the ID calibration split.
        evaluation_id: of the part, where it is an evaluation of a service.

    Returns:
        The calibrator, and what is told of it.

    Raises:
        UnknownNameError: the kind does not exist.
        LeakageError: the data are not the ID calibration split and `oracle` is false.
        SpecError: `tsp` without perturbed copies.
        PredictionsError: the files do not hold all logits.
    """
    if kind not in CALIBRATORS:
        raise UnknownNameError("calibrator", kind, CALIBRATORS)
    first = parts[0].metadata
    role = "id" if first.in_distribution else first.role
    if kind == "tsp" and len(parts) < 2 and not oracle:
        raise SpecError(
            "tsp must have predictions of perturbed copies of the calibration split, got none.",
            hint="Evaluate the run with perturbed calibration copies, or use temperature.",
        )
    calibrator = CALIBRATORS[kind]()
    calibrator.fit(
        np.concatenate([part.logits for part in parts]) if len(parts) > 1 else parts[0].logits,
        np.concatenate([part.labels for part in parts]),
        split=first.split,
        role=role,
        oracle=oracle,
    )
    stored: dict[str, Any] = calibrator.to_dict()
    return calibrator, FittedCalibrator(
        kind=kind,
        oracle=calibrator.oracle,
        fitted_on=FittedOn(
            dataset=first.dataset,
            split=first.split,
            role=first.role,
            n=sum(len(part) for part in parts),
            evaluation_id=evaluation_id,
        ),
        parameters=stored["parameters"],
    )


def calibrated_scores(path: PathLike, calibrators: Sequence[Calibrator]) -> list[SampleScores]:
    """Score a file through each calibrator in one pass over its logits, a few rows at a time.

    A calibrator of the top label keeps the class that was predicted, with its new confidence; NLL
    and Brier score are those of all its probabilities.

    Raises:
        SpecError: a calibrator was fitted for another number of classes.
        PredictionsError: the file breaks its contract or does not hold all logits.
    """
    parts: list[list[SampleScores]] = [[] for _ in calibrators]
    for chunk in _chunks(path):
        for found, calibrator in zip(parts, calibrators, strict=True):
            scores = score_probs(calibrator.transform(chunk.logits), chunk.labels)
            if isinstance(calibrator, Histogram | Isotonic):
                predicted = chunk.logits.argmax(axis=1).astype(np.int64)
                scores = replace(
                    scores,
                    predicted=predicted,
                    confidences=calibrator.confidences(chunk.logits),
                    correct=predicted == chunk.labels,
                )
            found.append(scores)
    return [SampleScores.concatenate(found) for found in parts]


def transfer_numbers(
    scores: SampleScores, binning: Binning, draws: Draws = DEFAULT_DRAWS
) -> dict[str, float]:
    """The numbers of a `TransferCell` that come from the samples."""
    floor = calibration.null_floor(scores, binning, **asdict(draws))
    return {
        "accuracy": calibration.accuracy(scores),
        "mean_confidence": float(scores.confidences.mean()),
        "nll": calibration.nll(scores),
        "brier": calibration.brier(scores),
        "ece": calibration.ece(scores, binning),
        "null_mean": floor.mean,
        "null_q95": floor.q95,
    }


def gains(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What a calibrator takes off ECE, NLL and Brier score; both from `transfer_numbers`."""
    return {
        "gain": before["ece"] - after["ece"],
        "nll_gain": before["nll"] - after["nll"],
        "brier_gain": before["brier"] - after["brier"],
    }


# ---- Planning ----------------------------------------------------------------------------------


def budget_of(
    scores: SampleScores,
    source: Source,
    *,
    metric: str,
    difference: float,
    against: SampleScores | None = None,
    against_source: Source | None = None,
    clusters: npt.NDArray[Any] | None = None,
    level: float = 0.95,
    power: float = 0.8,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Budget:
    """How many samples show a difference of a metric.

    Against another model on the same samples the noise is that of the paired difference. Without
    one, both models are thought to be evaluated on samples of their own, each as noisy as this one.
    For `ece` the comparison itself is played through, see `calibration.SquaredPlan`.

    Args:
        scores: N samples.
        source: what they are of.
        metric: `accuracy`, `brier`, `confidence`, `nll`, or `ece`.
        difference: to be shown, in the metric's unit (for `ece` of L2 errors, a fraction); not 0.
        against: the other model on the same samples.
        against_source: what those are of.
        clusters: (N,) as in `calibration.paired_difference`.
        level: of the two-sided test.
        power: chance to show the difference when it is real.
        n_resamples: behind the standard error.
        seed: of the draws.

    Raises:
        UnknownNameError: the metric does not exist.
        SpecError: the difference is 0, or level or power is out of range.
    """
    paired = against is not None
    error: float | None
    detectable: float | None
    observed: float | None
    if metric == "ece":
        plan, observed = _squared_plan(scores, against, clusters, seed)
        error = None
        needed = plan.needed(difference, level=level, power=power)
        detectable = plan.detectable(level=level, power=power)
    else:
        found = calibration.paired_difference(
            scores, against if against is not None else _certain(scores), metric=metric,
            level=level, clusters=clusters, n_resamples=n_resamples, seed=seed,
        )  # fmt: skip
        error = found.standard_error * (1.0 if paired else 2.0**0.5)
        needed = calibration.samples_needed(
            replace(found, standard_error=error), difference=difference, level=level, power=power
        )
        observed = found.difference if paired else None
        detectable = float(ndtri((1 + level) / 2) + ndtri(power)) * error
    return Budget(
        source=source,
        against=against_source,
        metric=metric,
        paired=paired,
        difference=abs(difference),
        observed=observed,
        level=level,
        power=power,
        n=len(scores),
        standard_error=error,
        needed=needed,
        enough=needed <= len(scores),
        detectable=detectable,
    )


def _squared_plan(
    scores: SampleScores,
    against: SampleScores | None,
    clusters: npt.NDArray[Any] | None,
    seed: int,
) -> tuple[calibration.SquaredPlan, float | None]:
    """The plan for two calibration errors, and the observed difference where there are two."""
    units = Units(clusters, len(scores))
    own = calibration.SquaredError(scores, units)
    if against is None:
        return calibration.SquaredPlan(own, own, paired=False, seed=seed), None
    check_paired(scores, against)
    other = calibration.SquaredError(against, units)
    worse, better = (own, other) if own.value >= other.value else (other, own)
    sizes = [max(0.0, each.value) ** 0.5 for each in (own, other)]
    return calibration.SquaredPlan(worse, better, seed=seed), sizes[0] - sizes[1]


def _certain(scores: SampleScores) -> SampleScores:
    """A model that is right and sure of it: every metric of it is a constant, without noise."""
    n = len(scores)
    return SampleScores(
        labels=scores.labels,
        predicted=scores.labels,
        confidences=np.ones(n),
        correct=np.ones(n, dtype=np.bool_),
        nll=np.zeros(n),
        brier=np.zeros(n),
        rank=np.zeros(n, dtype=np.int64),
    )
