"""What measures take: what one pass over logits or probabilities leaves of each sample.

Seven numbers a sample instead of C are enough for every measure but the class-wise: a set of 50,000
samples and 1,000 classes is explored in a few megabytes. From probabilities `score_probs` is the
only way, from logits `score_samples`; `TopLabel` serves where nothing but confidences is known.
N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from calift_core.calibration.bins import (
    SMALLEST_PROBABILITY,
    Bools,
    Doubles,
    Floats,
    Ints,
    check_confidences,
    check_labels,
    check_logits,
    check_probs,
    check_temperature,
    rank_of_label,
)
from calift_core.errors import PredictionsError

_CELLS_AT_ONCE = 1_000_000


class Scores(Protocol):
    """What a measure of top-label calibration needs of N samples."""

    @property
    def confidences(self) -> Doubles:
        """(N,) probability of the predicted class, a fraction."""

    @property
    def correct(self) -> Bools:
        """(N,) whether the predicted class is the label."""


@dataclass(frozen=True, eq=False)
class TopLabel:
    """Confidences and hits alone, as of drawn outcomes; checked as they come in.

    Attributes:
        confidences: (N,) floats in [0, 1], N ≥ 1; kept as float64.
        correct: (N,) bool.

    Raises:
        PredictionsError: lengths differ, nothing is there, or a value is out of range.
    """

    confidences: Doubles
    correct: Bools

    def __post_init__(self) -> None:
        """Check and widen the fields."""
        confidences, correct = check_confidences(self.confidences, self.correct)
        object.__setattr__(self, "confidences", confidences)
        object.__setattr__(self, "correct", correct)


def checked(scores: Scores) -> TopLabel:
    """Return confidences and hits that were checked, or raise PredictionsError."""
    if isinstance(scores, TopLabel):
        return scores
    return TopLabel(scores.confidences, scores.correct)


@dataclass(frozen=True, eq=False)
class SampleScores:
    """Per-sample scores of N samples, in stored order.

    Attributes:
        labels: (N,) int64 true class.
        predicted: (N,) int64 class of the largest probability, the first of tied ones.
        confidences: (N,) float64 probability of the predicted class, a fraction.
        correct: (N,) bool, predicted = label.
        nll: (N,) float64 −log p(label), nats.
        brier: (N,) float64 Σ_c (p_c − 1[c = label])², in [0, 2].
        rank: (N,) int64 number of classes more probable than the label; 0 is first.
    """

    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    confidences: Doubles
    correct: Bools
    nll: Doubles
    brier: Doubles
    rank: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Memory that the arrays take, in bytes."""
        return sum(getattr(self, field.name).nbytes for field in fields(self))

    def take(self, index: npt.NDArray[Any]) -> SampleScores:
        """Return the samples at an index (M,) of positions, or of booleans (N,)."""
        return SampleScores(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def part(self, rows: slice) -> SampleScores:
        """Return samples that follow each other, without a copy."""
        return SampleScores(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @staticmethod
    def concatenate(parts: Sequence[SampleScores]) -> SampleScores:
        """Return the samples of all parts, one part after the other.

        Raises:
            PredictionsError: there is no part.
        """
        if not parts:
            raise PredictionsError("scores must come from at least one sample, got none")
        return SampleScores(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts])
               for f in fields(SampleScores)}
        )  # fmt: skip


def score_samples(logits: Floats, labels: Ints, temperature: float = 1.0) -> SampleScores:
    """Score logits (N, C) against labels (N,), a few rows at a time, in float32 or better.

    Args:
        logits: (N, C), natural-log scale; what softmax(logits / temperature) makes of them counts.
        labels: (N,) integers in [0, C).
        temperature: positive divisor of the logits; it changes neither `predicted` nor `rank`.

    Raises:
        SpecError: the temperature is not a positive finite number.
        PredictionsError: logits or labels break their contract.
    """
    check_temperature(temperature)
    wide = check_logits(logits)
    targets = check_labels(labels, *wide.shape)
    rows = max(1, _CELLS_AT_ONCE // wide.shape[1])
    return SampleScores.concatenate(
        [
            _score_rows(wide[start : start + rows], targets[start : start + rows], temperature)
            for start in range(0, len(wide), rows)
        ]
    )


def rescore(logits: Floats, known: SampleScores, temperature: float) -> SampleScores:
    """Score logits (N, C) anew that were scored at another temperature; the same numbers, sooner.

    A temperature moves neither the predicted class nor the label's rank, which take the longer.

    Args:
        logits: (N, C), the very same.
        temperature: positive divisor of the logits.

    Raises:
        SpecError: the temperature is not a positive finite number.
        PredictionsError: the scores are of another number of samples.
    """
    check_temperature(temperature)
    if len(logits) != len(known):
        raise PredictionsError(f"scores must be of {len(logits)} samples, got {len(known)}")
    # As `check_logits` widens them; that they are finite was found when they were first scored.
    wide = logits if logits.dtype == np.float64 else logits.astype(np.float32, copy=False)
    return _score_rows(wide, known.labels, temperature, known)


def _score_rows(
    logits: Floats,
    labels: npt.NDArray[np.int64],
    temperature: float,
    known: SampleScores | None = None,
) -> SampleScores:
    at = np.arange(len(logits))
    predicted = logits.argmax(axis=1) if known is None else known.predicted
    correct = predicted == labels
    z = logits - logits[at, predicted][:, None]
    if temperature != 1.0:
        z /= temperature
    own_logit = z[at, labels].astype(np.float64)
    np.exp(z, out=z)
    total = z.sum(axis=1, dtype=np.float64)
    log_total = np.log(total)
    squares = np.einsum("nc,nc->n", z, z, dtype=np.float64) / np.square(total)
    return SampleScores(
        labels=labels,
        predicted=predicted.astype(np.int64),
        # The largest of the shifted logits is 0, so the top probability is 1 / total.
        confidences=1 / total,
        correct=correct,
        nll=np.minimum(log_total - own_logit, -np.log(SMALLEST_PROBABILITY)),
        brier=squares - 2 * np.exp(own_logit - log_total) + 1,
        rank=_rank(logits, labels, correct) if known is None else known.rank,
    )


def score_probs(probs: Floats, labels: Ints) -> SampleScores:
    """Score probabilities (N, C) against labels (N,); see `score_samples`.

    Args:
        probs: (N, C), rows sum to one. Of tied classes the first is predicted.
        labels: (N,) integers in [0, C).

    Raises:
        PredictionsError: probs or labels break their contract.
    """
    rows = check_probs(probs)
    targets = check_labels(labels, *rows.shape)
    predicted = rows.argmax(axis=1)
    confidences = rows[np.arange(len(rows)), predicted].astype(np.float64)
    return SampleScores(
        labels=targets,
        predicted=predicted.astype(np.int64),
        confidences=np.minimum(confidences, 1.0),
        correct=predicted == targets,
        nll=_nll_of_rows(rows, targets),
        brier=_brier_of_rows(rows, targets),
        rank=_rank(rows, targets, predicted == targets),
    )


def _rank(values: Floats, labels: Ints, correct: Bools) -> npt.NDArray[np.int64]:
    """`rank_of_label` (N,), which only samples that are not right need be asked for."""
    rank = np.zeros(len(labels), dtype=np.int64)
    wrong = np.flatnonzero(~correct)
    rank[wrong] = rank_of_label(values[wrong], labels[wrong])
    return rank


def _nll_of_rows(probs: Floats, labels: Ints) -> Doubles:
    """Return −log p[label] (N,) in nats for checked probs (N, C)."""
    own = probs[np.arange(len(probs)), labels].astype(np.float64)
    return -np.log(np.maximum(own, SMALLEST_PROBABILITY))


def _brier_of_rows(probs: Floats, labels: Ints) -> Doubles:
    """Return Σ_c (p_c − 1[label = c])² (N,) for checked probs (N, C)."""
    own = probs[np.arange(len(probs)), labels].astype(np.float64)
    squares: Doubles = np.einsum("nc,nc->n", probs, probs, dtype=np.float64)
    return squares - 2 * own + 1
