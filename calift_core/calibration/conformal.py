"""Prediction sets that hold the true class as often as they say, on data like their own.

Split conformal prediction: scores of labelled samples that nothing else was fitted on say how
small a set may be (Vovk, Gammerman & Shafer 2005; Papadopoulos et al. 2002). The promise is
marginal, over samples and repeats, and holds for exchangeable data alone: under a shift nothing is
promised, which is why `coverage_of` is told for every shift beside it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from calift_core.calibration.bins import Bools, Doubles, Floats, Ints, check_labels
from calift_core.errors import PredictionsError, SpecError

Kind = Literal["plain", "class_conditional", "raps"]
KINDS: tuple[Kind, ...] = ("plain", "class_conditional", "raps")

#: Of RAPS: what each class behind the first `RAPS_FREE` adds to a score.
RAPS_PENALTY, RAPS_FREE = 0.01, 5


@dataclass(frozen=True)
class Conformal:
    """Fitted prediction sets.

    - `plain`: classes whose probability is at least 1 − q, one q for all (LAC, Sadinle et al.
      2019).
    - `class_conditional`: the same with a q for each class, so that the promise holds for each.
    - `raps`: the likeliest classes until their probabilities sum to q, each behind the fifth made
      dearer by 0.01 (Angelopoulos et al. 2021), without its randomisation: sets are never empty and
      cover more than they promise.

    Attributes:
        coverage: the promised share of sets with the true class, in (0, 1).
        q: (1,) of scores, or (C,) by class; infinite where too few samples were there, and the set
            is then every class.
    """

    kind: Kind
    coverage: float
    q: Doubles
    n: int

    def sets(self, probs: Floats) -> npt.NDArray[np.bool_]:
        """(N, C) whether a class is in the set of a sample, given probabilities (N, C).

        Raises:
            PredictionsError: C differs from the fitted one.
        """
        scores = _scores(probs, self.kind)
        if self.kind == "class_conditional" and scores.shape[1] != len(self.q):
            raise PredictionsError(
                f"probs must have the fitted {len(self.q)} classes, got {scores.shape[1]}"
            )
        inside = scores <= self.q
        if self.kind == "raps":
            inside[np.arange(len(scores)), np.argmax(probs, axis=1)] = True
        return np.asarray(inside)


@dataclass(frozen=True)
class Coverage:
    """What prediction sets give on labelled samples.

    Attributes:
        coverage: share of sets with the true class.
        empty: share of sets without any class.
    """

    n: int
    coverage: float
    mean_size: float
    empty: float


def fit_conformal(
    probs: Floats, labels: Ints, *, coverage: float = 0.9, kind: Kind = "plain"
) -> Conformal:
    """Fit prediction sets.

    Args:
        probs: (N, C) probabilities of samples that nothing else was fitted on.
        labels: (N,) class indices.
        coverage: the share of sets that are to hold the true class, in (0, 1).

    Raises:
        SpecError: coverage is not in (0, 1), or there is no such kind.
        PredictionsError: probs or labels break their contract.
    """
    if not 0 < coverage < 1:
        raise SpecError(f"coverage must lie in (0, 1), got {coverage}")
    if kind not in KINDS:
        raise SpecError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    scores = _scores(probs, kind)
    targets = check_labels(labels, *scores.shape)
    own = scores[np.arange(len(targets)), targets]
    if kind == "class_conditional":
        classes = range(scores.shape[1])
        q = np.array([_quantile(own[targets == c], coverage) for c in classes])
    else:
        q = np.array([_quantile(own, coverage)])
    return Conformal(kind, coverage, q, len(targets))


def coverage_of(conformal: Conformal, probs: Floats, labels: Ints) -> Coverage:
    """How often sets hold the true class (N,), and how large they are.

    Raises:
        PredictionsError: probs or labels break their contract.
    """
    inside = conformal.sets(probs)
    targets = check_labels(labels, *inside.shape)
    sizes = inside.sum(axis=1)
    hits: Bools = inside[np.arange(len(targets)), targets]
    return Coverage(
        len(targets), float(hits.mean()), float(sizes.mean()), float((sizes == 0).mean())
    )


def _quantile(scores: Doubles, coverage: float) -> float:
    """The ⌈(n + 1) · coverage⌉-th smallest score; infinite where there are not so many."""
    n = len(scores)
    # (n + 1) · 0.9 is 9.000…02 at n = 9 in floating point; a billionth is no sample.
    rank = int(np.ceil((n + 1) * coverage - 1e-9))
    return float("inf") if rank > n else float(np.partition(scores, rank - 1)[rank - 1])


def _scores(probs: Floats, kind: Kind) -> Doubles:
    """(N, C) how ill each class fits."""
    p = np.asarray(probs, dtype=np.float64)
    if p.ndim != 2 or not p.size:
        raise PredictionsError(f"probs must be (N, C) with N and C ≥ 1, got {p.shape}")
    if kind != "raps":
        return np.asarray(1 - p)
    order = np.argsort(-p, axis=1, kind="stable")
    sums = np.cumsum(np.take_along_axis(p, order, axis=1), axis=1)
    penalties = RAPS_PENALTY * np.maximum(0, np.arange(1, p.shape[1] + 1) - RAPS_FREE)
    scores = np.empty_like(p)
    np.put_along_axis(scores, order, sums + penalties, axis=1)
    return scores
