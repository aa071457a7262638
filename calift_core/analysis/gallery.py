"""Samples of an evaluation one by one: which are meant, in which order, and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from calift_core import calibration
from calift_core.analysis.clusters import Clusters
from calift_core.analysis.condition import Samples, matching
from calift_core.calibration import Binning, SampleScores
from calift_core.calibration.bins import Bools, Doubles, Floats, Ints
from calift_core.errors import SpecError, UnknownNameError
from calift_core.schema.wire.queries import Outcome, SampleFilter, SampleOrder
from calift_core.schema.wire.results import (
    ClassProbability,
    Look,
    NearPrompt,
    Sample,
    SampleAnswer,
    SharedTrait,
)

#: Traits that are told of a column at most.
_MOST_TRAITS = 10


@dataclass(frozen=True, eq=False)
class Baseline:
    """Another model's answers on the same samples.

    Attributes:
        position: (N,) where each of ours is among them, −1 where it is not.
    """

    scores: SampleScores
    position: Ints

    @classmethod
    def of(cls, n: int, scores: SampleScores, ours: Ints, theirs: Ints) -> Baseline:
        """From what `shared_samples` gives: positions (S,) of the shared samples in each."""
        position = np.full(n, -1, dtype=np.int64)
        position[ours] = theirs
        return cls(scores, position)

    def value(self, name: Literal["nll", "correct"]) -> Doubles:
        """A score (N,) of theirs for each of ours, NaN where they have not seen it."""
        found = np.full(len(self.position), np.nan)
        seen = self.position >= 0
        found[seen] = getattr(self.scores, name)[self.position[seen]]
        return found


def chosen(
    samples: Samples, wanted: SampleFilter, binning: Binning, baseline: Baseline | None = None
) -> Ints:
    """Positions (M,) of the samples that are meant, in stored order.

    Args:
        binning: of `wanted.bin`.
        beside: the baseline of `wanted.outcome`.

    Raises:
        SpecError: the condition is not valid, there is no such bin, or an outcome has no baseline.
    """
    mask = matching(samples, wanted.where, wanted.area)
    confidences = samples.scores.confidences
    if wanted.lower is not None and wanted.lower > 0:
        mask = mask & (confidences > wanted.lower)
    if wanted.upper is not None:
        mask = mask & (confidences <= wanted.upper)
    if wanted.bin is not None:
        edges = calibration.bin_edges(confidences, binning)
        if not 0 <= wanted.bin < len(edges) - 1:
            raise SpecError(
                f"bin must lie in [0, {len(edges) - 2}], the bins of this diagram, got {wanted.bin}"
            )
        mask = mask & (calibration.assign_bins(confidences, edges) == wanted.bin)
    if wanted.outcome is not None:
        mask = mask & _outcome(samples.scores.correct, wanted.outcome, baseline)
    return np.flatnonzero(mask)


def _outcome(correct: Bools, outcome: str, baseline: Baseline | None) -> Bools:
    if outcome not in get_args(Outcome):
        raise UnknownNameError("outcome", outcome, get_args(Outcome))
    if baseline is None:
        raise _needs_baseline(f"outcome {outcome!r}")
    before = baseline.value("correct")  # NaN equals neither, so a sample that only we saw is out
    now, then = {
        "gained": (True, 0.0),
        "lost": (False, 1.0),
        "both": (True, 1.0),
        "neither": (False, 0.0),
    }[outcome]
    found: Bools = (correct == now) & (before == then)
    return found


def _needs_baseline(what: str) -> SpecError:
    return SpecError(
        f"{what} must have a baseline, got none.",
        hint="Name another evaluation on the same samples with against=….",
    )


def ordered(
    scores: SampleScores,
    index: Ints,
    order: SampleOrder,
    *,
    descending: bool,
    baseline: Baseline | None = None,
    similar: Floats | None = None,
) -> Ints:
    """Positions (M,) in an order; equal ones keep that of the file.

    Args:
        index: (M,) positions.
        order: `gap` is confidence − correctness; `change` what the log-likelihood of the true class
            has gained over the baseline, in nats, and samples that only one of both saw come last.
        descending: largest first.
        baseline: of `change`.
        similar: (N,) cosines with what was searched for, of `similarity`.

    Raises:
        UnknownNameError: an unknown order.
        SpecError: `change` without a baseline, `similarity` without a search.
    """
    if order not in get_args(SampleOrder):
        raise UnknownNameError("order", order, get_args(SampleOrder))
    if order == "stored":
        return index[::-1] if descending else index
    values: Doubles | Floats
    if order == "confidence":
        values = scores.confidences
    elif order == "gap":
        values = scores.confidences - scores.correct
    elif order == "nll":
        values = scores.nll
    elif order == "similarity":
        if similar is None:
            raise SpecError("the order 'similarity' must have a search, got none: text=… or like=…")
        values = similar
    else:
        if baseline is None:
            raise _needs_baseline("the order 'change'")
        values = baseline.value("nll") - scores.nll
    here = values[index]
    found: Ints = index[np.argsort(-here if descending else here, kind="stable")]
    return found


def described(
    samples: Samples,
    at: Ints,
    top: list[list[tuple[int, float]]],
    baseline: Baseline | None,
    near: Sequence[Sequence[tuple[str, float]]] = (),
    similar: Floats | None = None,
) -> list[Sample]:
    """The samples at positions (M,), each with its largest probabilities and nearest prompts.

    `top` and `near` have M entries, or none where they are not wanted; `similar` has all N.
    """
    scores, names = samples.scores, samples.class_names
    tags: dict[str, list[str]] = {}
    for sample, tag in samples.tags or ():
        tags.setdefault(sample, []).append(tag)
    found = []
    for row, k in enumerate(at.tolist()):
        theirs = None
        if baseline is not None and (j := int(baseline.position[k])) >= 0:
            theirs = _answer(baseline.scores, j, names)
        found.append(
            Sample(
                id=str(samples.ids[k]),
                label=int(scores.labels[k]),
                label_name=names[scores.labels[k]],
                rank=int(scores.rank[k]),
                cluster=None if samples.clusters is None else str(samples.clusters[k]),
                **_answer(scores, k, names).model_dump(),
                top=[
                    ClassProbability(index=c, name=names[c], probability=p)
                    for c, p in (top[row] if top else [])
                ],
                against=theirs,
                prompts=[
                    NearPrompt(text=text, cosine=cosine)
                    for text, cosine in (near[row] if near else [])
                ],
                similarity=None if similar is None else float(similar[k]),
                tags=tags.get(str(samples.ids[k]), []),
            )
        )
    return found


def _answer(scores: SampleScores, k: int, names: tuple[str, ...]) -> SampleAnswer:
    return SampleAnswer(
        predicted=int(scores.predicted[k]),
        predicted_name=names[scores.predicted[k]],
        confidence=float(scores.confidences[k]),
        correct=bool(scores.correct[k]),
        nll=float(scores.nll[k]),
    )


# ---- What they share ---------------------------------------------------------------------------


def shared_traits(
    samples: Samples, index: Ints, clusters: Clusters | None = None
) -> list[SharedTrait]:
    """Classes, and clusters of alike images, that samples have more often than the rest.

    Each class is tested by Fisher's exact test, one-sided, of those at `index` against all others.
    The p-values of a column's C classes are adjusted together (Holm 1979), so that 1,000 classes
    show one at 0.05 by chance in one data set out of twenty.

    Args:
        index: (M,) positions of those in question.

    Returns:
        At most ten a column, the smallest p first; none where nothing or everything is chosen.
    """
    n, n_all = len(index), len(samples.scores)
    if not 0 < n < n_all:
        return []
    found = []
    columns: list[tuple[Literal["label", "predicted", "cluster"], Ints, Sequence[str]]] = [
        ("label", samples.column("label"), samples.class_names),
        ("predicted", samples.column("predicted"), samples.class_names),
    ]
    if clusters is not None:
        columns.append(("cluster", clusters.of, clusters.titles))
    for column, values, titles in columns:
        n_classes = len(titles)
        every = np.bincount(values, minlength=n_classes)
        own = np.bincount(values[index], minlength=n_classes)
        p = _holm(_more_often(own, every, n, n_all))
        shares, rest = own / n, (every - own) / (n_all - n)
        for k in np.argsort(p, kind="stable")[:_MOST_TRAITS].tolist():
            if shares[k] > rest[k]:
                found.append(
                    SharedTrait(
                        column=column,
                        key=k,
                        title=titles[k],
                        n=int(own[k]),
                        share=float(shares[k]),
                        rest_share=float(rest[k]),
                        p=float(p[k]),
                    )
                )
    return found


def _more_often(own: Ints, every: Ints, n: int, n_all: int) -> Doubles:
    """P (C,) of as many or more of each class among n of all samples, drawn without replacement."""
    from scipy.stats import hypergeom  # takes long to import

    p: Doubles = hypergeom.sf(own - 1, n_all, every, n)
    return np.where(own > 0, p, 1.0)


def _holm(p: Doubles) -> Doubles:
    """P-values (C,) adjusted for that there are C of them."""
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


# ---- How they look -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What is measured of one image.

    Attributes:
        brightness: mean luminance, in [0, 1].
        hash: 16 bytes, a perceptual hash.
    """

    brightness: float
    contrast: float
    sharpness: float
    hash: bytes


def hashes_of(found: Sequence[Measured]) -> npt.NDArray[np.uint8]:
    """Their hashes, (M, 16) uint8."""
    return np.frombuffer(b"".join(m.hash for m in found), dtype=np.uint8).reshape(len(found), 16)


def drawn(index: Ints, n: int, most: int) -> tuple[Ints, Ints]:
    """Positions of at most `most` of those at `index` (M,), and of all n others, drawn evenly.

    The same of the same question, so that what was measured is found again.
    """
    rest = np.setdiff1d(np.arange(n), index)

    def some(of: Ints) -> Ints:
        if len(of) <= most:
            return of
        return np.sort(np.random.default_rng(len(of)).choice(of, most, replace=False))

    return some(index), some(rest)


def compared_looks(chosen: Sequence[Measured], rest: Sequence[Measured]) -> list[Look]:
    """Each property of the chosen images against that of the rest; none where one side is empty."""
    from scipy.stats import mannwhitneyu

    if not chosen or not rest:
        return []
    names: tuple[Literal["brightness", "contrast", "sharpness"], ...]
    names = ("brightness", "contrast", "sharpness")
    pairs = [([getattr(m, name) for m in chosen], [getattr(m, name) for m in rest])
             for name in names]  # fmt: skip
    p = _holm(np.array([mannwhitneyu(own, other).pvalue for own, other in pairs]))
    return [
        Look(name=name, mean=float(np.mean(own)), rest_mean=float(np.mean(other)), p=float(p[k]))
        for k, (name, (own, other)) in enumerate(zip(names, pairs, strict=True))
    ]


# ---- Labels that runs contradict ---------------------------------------------------------------


def contradicted(answers: Sequence[Baseline], threshold: float) -> tuple[Ints, Doubles]:
    """Samples that every model has seen and surely takes for one and the same other class.

    Args:
        answers: of two models or more, each against the same N samples.

    Returns:
        Positions (M,), the surest first, and the least confidence (M,) of any model there.
    """
    if len(answers) < 2:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    seen = np.all([one.position >= 0 for one in answers], axis=0)

    def each(name: str) -> npt.NDArray[Any]:
        return np.stack([getattr(one.scores, name)[one.position[seen]] for one in answers])

    predicted, least = each("predicted"), each("confidences").min(axis=0)
    wrong = ~each("correct").any(axis=0) & (predicted == predicted[0]).all(axis=0)
    found = np.flatnonzero(wrong & (least >= threshold))
    order = found[np.argsort(-least[found], kind="stable")]
    return np.flatnonzero(seen)[order], least[order]
