"""Calibrators fitted on stored predictions and applied to others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from calift_core import calibration
from calift_core.analysis.chunks import PathLike, logit_chunks
from calift_core.analysis.draws import DEFAULT_DRAWS, Draws
from calift_core.calibration import Binning, SampleScores, score_probs
from calift_core.calibration.bins import Floats
from calift_core.calibration.calibrators import Calibrator, TopLabelMap
from calift_core.calibration.registry import known
from calift_core.errors import PredictionsError, SpecError
from calift_core.predictions.read import read_index, read_metadata, read_predictions
from calift_core.predictions.types import Predictions, PredictionsMetadata
from calift_core.schema.wire.results import FittedCalibrator, FittedOn

#: Logits that a calibrator is fitted on at most: 10,000 samples of 1,000 classes.
FIT_CELLS = 10_000_000


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
    for chunk in logit_chunks(path):
        inside = kept[(kept >= start) & (kept < start + len(chunk))] - start
        parts.append((chunk.ids[inside], chunk.labels[inside], chunk.logits[inside]))
        start += len(chunk)
    ids, own, logits = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Predictions(ids=ids, labels=own, logits=logits, metadata=metadata)


def fit_calibrator(
    kind: str,
    parts: Sequence[Predictions],
    *,
    oracle: bool,
    evaluation_id: str | None = None,
    initial: Predictions | None = None,
) -> tuple[Calibrator, FittedCalibrator]:
    """Fit a calibrator on stored predictions, under the leakage guard.

    Args:
        kind: a name in `CALIBRATORS` or `INITIAL_MODEL_CALIBRATORS`.
        parts: one set of predictions, from `read_to_fit`; for `tsp` the ID calibration split and
            its perturbed copies.
        oracle: allow data other than the ID calibration split.
        evaluation_id: of the part, where it is an evaluation of a service.
        initial: the initial model's predictions of the same part, for those that read them.

    Returns:
        The calibrator, and what is told of it.

    Raises:
        UnknownNameError: the kind does not exist.
        LeakageError: the data are not the ID calibration split and `oracle` is false.
        SpecError: `tsp` without perturbed copies.
        PredictionsError: the files do not hold all logits.
    """
    calibrator = known(kind)()
    first = parts[0].metadata
    role = "id" if first.in_distribution else first.role
    if kind == "tsp" and len(parts) < 2 and not oracle:
        raise SpecError(
            "tsp must have predictions of perturbed copies of the calibration split, got none.",
            hint="Evaluate the run with perturbed calibration copies, or use temperature.",
        )
    if initial is not None:
        require_same(parts[0], initial)
    calibrator.fit(
        np.concatenate([part.logits for part in parts]) if len(parts) > 1 else parts[0].logits,
        np.concatenate([part.labels for part in parts]),
        split=first.split,
        role=role,
        oracle=oracle,
        initial=None if initial is None else initial.logits,
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


def chunks_with_initial(
    path: PathLike, initial: PathLike | None
) -> Iterator[tuple[Predictions, Floats | None]]:
    """A file's predictions, as many rows as fit at once, and the initial model's logits on them.

    Args:
        initial: the initial model's of the same samples; None: there are none.

    Raises:
        PredictionsError: the two are of other samples.
    """
    others = () if initial is None else logit_chunks(initial)
    for chunk, other in zip_longest(logit_chunks(path), others):
        if chunk is None or (other is None and initial is not None):
            raise PredictionsError(
                f"{str(path)!r} and {str(initial)!r} must be of the same samples"
            )
        if other is not None:
            require_same(chunk, other)
        yield chunk, None if other is None else other.logits


def require_same(own: Predictions, initial: Predictions) -> None:
    """Make sure that two models were asked about the same samples.

    Raises:
        PredictionsError: they were not.
    """
    if not np.array_equal(own.ids, initial.ids):
        raise PredictionsError(
            f"the initial model must have predicted the same samples of {own.metadata.dataset}, in "
            f"their order; it has predicted {len(initial)} of {initial.metadata.dataset}"
        )


def calibrated_scores(
    path: PathLike, calibrators: Sequence[Calibrator], *, initial: PathLike | None = None
) -> list[SampleScores]:
    """Score a file through each calibrator in one pass over its logits, a few rows at a time.

    A calibrator of the top label keeps the class that was predicted, with its new confidence; NLL
    and Brier score are those of all its probabilities.

    Args:
        initial: the initial model's predictions of the same samples, for those that read them.

    Raises:
        SpecError: a calibrator was fitted for another number of classes, or reads the initial
            model's logits and there are none.
        PredictionsError: a file breaks its contract or does not hold all logits, or the two are of
            other samples.
    """
    parts: list[list[SampleScores]] = [[] for _ in calibrators]
    for chunk, first in chunks_with_initial(path, initial):
        for found, calibrator in zip(parts, calibrators, strict=True):
            scores = score_probs(calibrator.transform(chunk.logits, first), chunk.labels)
            if isinstance(calibrator, TopLabelMap):
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
