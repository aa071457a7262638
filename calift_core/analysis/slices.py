"""Slices of an evaluation: the samples that a condition holds for, in groups."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import NormalDist
from typing import Any, NamedTuple, get_args

import numpy as np

from calift_core import calibration
from calift_core.analysis.condition import Samples, matching
from calift_core.analysis.draws import DEFAULT_DRAWS, Draws
from calift_core.calibration import Binning, SampleScores, TopLabel
from calift_core.calibration.bins import Doubles, Ints
from calift_core.calibration.diagrams import wilson_interval
from calift_core.errors import UnknownNameError
from calift_core.schema.wire.queries import MAX_CONDITION, By, SliceOrder, SlicesQuery
from calift_core.schema.wire.results import Slice, SlicePage, Source

_Z95 = NormalDist().inv_cdf(0.975)


# ---- The groups --------------------------------------------------------------------------------


class Group(NamedTuple):
    """Samples that make one slice: what they share, their positions (M,), and their condition.

    The condition holds for these of the grouped samples and no others; it is empty where none can
    be written.
    """

    key: str
    title: str
    positions: Ints
    condition: str


def groups_by(samples: Samples, by: By, index: Ints, binning: Binning) -> list[Group]:
    """Put the samples at `index` (M,) in groups; groups without samples are left out.

    Args:
        by: `all` makes one group, `confidence` the bins of a reliability diagram, `confusion` a
            group of each true class and the wrong one that was predicted.
        binning: of `confidence`.

    Raises:
        UnknownNameError: an unknown `by`.
        SpecError: `cluster` without such a column.
    """
    if by not in get_args(By):
        raise UnknownNameError("grouping", by, get_args(By))
    if not len(index):
        return []
    if by == "all":
        return [Group("all", "all samples", index, "")]
    if by == "confidence":
        chosen = samples.scores.confidences[index]
        edges = calibration.bin_edges(chosen, binning)
        of = calibration.assign_bins(chosen, edges)
        return [
            Group(str(k), f"{edges[k]:.3f} to {edges[k + 1]:.3f}", members, _between(edges, k))
            for k, members in _split(of, index)
        ]
    if by == "cluster":
        found, of = np.unique(samples.column("cluster")[index], return_inverse=True)
        return [
            Group(str(found[k]), str(found[k]), m, _is_text("cluster", str(found[k])))
            for k, m in _split(of, index)
        ]
    names = samples.class_names
    if by == "confusion":
        wrong = index[~samples.scores.correct[index]]
        pairs = samples.column("label")[wrong] * len(names) + samples.column("predicted")[wrong]
        return [
            Group(
                f"{label},{predicted}",
                f"{names[label]} → {names[predicted]}",
                members,
                f"label == {label} and predicted == {predicted}",
            )
            for k, members in _split(pairs, wrong)
            for label, predicted in [divmod(k, len(names))]
        ]
    column = "label" if by == "class" else "predicted"
    return [
        Group(str(k), names[k], members, f"{column} == {k}")
        for k, members in _split(samples.column(column)[index], index)
    ]


def _between(edges: Doubles, k: int) -> str:
    """The condition of bin k, as `assign_bins` has it: the upper edge is in it."""
    inside = [f"confidence > {float(edges[k])!r}"] if k else []
    if k < len(edges) - 2:
        inside.append(f"confidence <= {float(edges[k + 1])!r}")
    return " and ".join(inside)


def _is_text(column: str, value: str) -> str:
    quote = '"' if '"' not in value else "'"
    return "" if quote in value else f"{column} == {quote}{value}{quote}"


def _both(where: str | None, own: str) -> str:
    """Two conditions as one, empty where it would be too long to be asked."""
    outer = (where or "").strip()
    found = f"({outer}) and {own}" if outer and own else own or outer
    return found if len(found) <= MAX_CONDITION else ""


def _split(of: Ints, index: Ints) -> list[tuple[int, Ints]]:
    order = np.argsort(of, kind="stable")
    keys, starts = np.unique(of[order], return_index=True)
    return list(zip([int(k) for k in keys], np.split(index[order], starts[1:]), strict=True))


def binning_for(n: int, binning: Binning) -> Binning:
    """Return how a slice of n samples is binned: as asked, but ten samples or more a bin."""
    return replace(binning, n_bins=min(binning.n_bins, max(1, n // 10)))


def slice_of(
    scores: SampleScores,
    binning: Binning,
    *,
    key: str,
    title: str,
    n_total: int,
    min_n: int,
    n_resamples: int,
    seed: int,
    condition: str = "",
) -> Slice:
    """Measure one slice; below `min_n` samples its calibration error is left out, and it says so.

    Args:
        scores: of the slice's M ≥ 1 samples.
        binning: of a slice that is large enough; see `binning_for`.
        min_n: fewest samples that a calibration error is given for.
        condition: that holds for these samples and no others.
    """
    n, own = len(scores), binning_for(len(scores), binning)
    residual = scores.confidences - scores.correct
    half = _Z95 * float(residual.std()) / n**0.5
    gap = float(residual.mean())
    hits = float(scores.correct.sum())
    low, high = wilson_interval(np.array([hits]), np.array([float(n)]))
    report: dict[str, Any] = {}
    if n >= min_n:
        report = calibration.ece_report(scores, own, n_resamples=n_resamples, seed=seed)
    return Slice(
        key=key,
        title=title,
        n=n,
        share=n / n_total,
        accuracy=hits / n,
        accuracy_interval=(float(low[0]), float(high[0])),
        mean_confidence=float(scores.confidences.mean()),
        gap=gap,
        gap_interval=(gap - half, gap + half) if n >= min_n else None,
        nll=float(scores.nll.mean()),
        too_small=n < min_n,
        n_bins=own.n_bins if report else None,
        ece=report.get("value"),
        null_mean=report.get("null_mean"),
        null_q95=report.get("null_q95"),
        interval=tuple(report["interval"]) if report else None,
        debiased=report.get("debiased"),
        condition=condition,
    )


def sorted_groups(
    samples: Samples,
    groups: Sequence[Group],
    sort: SliceOrder,
    binning: Binning,
    *,
    descending: bool,
) -> list[Group]:
    """Order groups by what they show; equal ones keep the order of their keys.

    Raises:
        UnknownNameError: an unknown `sort`.
    """
    if sort not in get_args(SliceOrder):
        raise UnknownNameError("order", sort, get_args(SliceOrder))
    if sort == "key":
        return list(reversed(groups)) if descending else list(groups)
    scores = samples.scores

    def value(group: Group) -> float:
        if sort == "n":
            return float(len(group.positions))
        confidences, correct = scores.confidences[group.positions], scores.correct[group.positions]
        if sort == "accuracy":
            return float(correct.mean())
        if sort == "gap":
            return float((confidences - correct).mean())
        return calibration.ece(
            TopLabel(confidences, correct), binning_for(len(group.positions), binning)
        )

    return sorted(groups, key=lambda group: -value(group) if descending else value(group))


# ---- Slices ------------------------------------------------------------------------------------


def slice_page(
    samples: Samples,
    source: Source,
    query: SlicesQuery,
    binning: Binning,
    draws: Draws = DEFAULT_DRAWS,
    *,
    temperature: float = 1.0,
) -> SlicePage:
    """One page of slices of an evaluation.

    Args:
        query: which slices, in which order.
        binning: of each slice's error, and of `by="confidence"`.
        draws: behind each slice's floor and interval.

    Raises:
        SpecError: the condition or the grouping is not valid.
    """
    where, by, sort, descending = query.where, query.by, query.sort, query.descending
    min_n, offset = query.min_n, query.offset
    index = np.flatnonzero(matching(samples, where, query.area))
    groups = groups_by(samples, by, index, binning)
    groups = sorted_groups(samples, groups, sort, binning, descending=descending)
    items = [
        slice_of(
            samples.scores.take(group.positions), binning, **asdict(draws), key=group.key,
            title=group.title, n_total=len(samples.scores), min_n=min_n,
            condition=_both(where, group.condition),
        )
        for group in groups[offset : offset + query.limit]
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
        n_total=len(samples.scores), min_n=min_n, condition=_both(where, ""),
    )  # fmt: skip
