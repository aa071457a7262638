"""Whether the bound's terms rank the errors under shift."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calift_core.analysis.ranks import (
    RESAMPLES,
    SMALLEST_N,
    RankCorrelation,
    rank_correlation,
    scaled_ranks,
)
from calift_core.errors import SpecError
from research.bound.points import BoundPoint

#: What is ranked against the errors, by name.
TERMS: dict[str, str] = {
    "rhs": "ε_ID + D/σ_min",
    "id_calibration": "ε_ID",
    "covariance_term": "D/σ_min",
    "product": "(D/σ_min) · E_ID(h − η)²",
    "id_squared": "E_ID(h − η)²",
    "mean_rank": "mean rank of both",
    "id_error": "ID error, to compare",
}
#: The measured errors, by name.
ERRORS: dict[str, str] = {"ood_error": "OOD error", "ood_ece": "OOD ECE"}


@dataclass(frozen=True)
class Association:
    """One row: a term against an error over a scope's points."""

    scope: str
    term: str
    error: str
    correlation: RankCorrelation


@dataclass(frozen=True)
class Analysis:
    """The rank correlations of one part, and what was left out and why."""

    part: str
    points: tuple[BoundPoint, ...]
    associations: tuple[Association, ...]
    notes: tuple[str, ...]


def analyse(
    part: str,
    points: Sequence[BoundPoint],
    *,
    scopes: Sequence[tuple[str, Sequence[BoundPoint]]] | None = None,
    notes: Iterable[str] = (),
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> Analysis:
    """Rank correlations of every term with both errors.

    Args:
        part: `synthetic` or `runs`.
        scopes: named subsets; ranks are taken inside suites. None: each suite, all suites together,
            the widest of these without zero-shot models where there are any, and, of runs, within
            methods and between them.

    Raises:
        SpecError: no scope has 8 points.
    """
    if scopes is None:
        scopes = _default_scopes(part, points)
    associations: list[Association] = []
    remarks = list(notes)
    for scope, chosen in scopes:
        if len(chosen) < SMALLEST_N:
            remarks.append(
                f"{scope}: a rank correlation needs at least {SMALLEST_N} models, got "
                f"{len(chosen)}; none is given."
            )
            continue
        strata = [p.suite for p in chosen]
        groups = [p.group for p in chosen]
        columns = {name: [float(getattr(p, name)) for p in chosen] for name in _COLUMNS}
        columns["mean_rank"] = list(
            scaled_ranks(columns["id_calibration"], strata)
            + scaled_ranks(columns["covariance_term"], strata)
        )
        for term, error in itertools.product(TERMS, ERRORS):
            try:
                found = rank_correlation(
                    columns[term],
                    columns[error],
                    groups=groups,
                    strata=strata,
                    n_resamples=n_resamples,
                    seed=seed,
                )
            except SpecError as problem:
                remarks.append(
                    f"{scope}, {TERMS[term]} against {ERRORS[error]}: {problem.message}."
                )
                continue
            associations.append(Association(scope, term, error, found))
    if not associations:
        raise SpecError(
            f"a rank correlation needs at least {SMALLEST_N} models evaluated on the same data, "
            f"got {len(points)} in {len({p.suite for p in points})} suites",
            hint=" ".join(remarks),
        )
    return Analysis(part, tuple(points), tuple(associations), tuple(remarks))


_COLUMNS = (
    "rhs",
    "id_calibration",
    "covariance_term",
    "product",
    "id_squared",
    "id_error",
    "ood_error",
    "ood_ece",
)


def _default_scopes(part: str, points: Sequence[BoundPoint]) -> list[tuple[str, list[BoundPoint]]]:
    suites = list(dict.fromkeys(p.suite for p in points))
    scopes = [(suite, [p for p in points if p.suite == suite]) for suite in suites]
    enough = [suite for suite, chosen in scopes if len(chosen) >= SMALLEST_N]
    if len(enough) > 1:
        scopes.append(("all suites, ranked inside", [p for p in points if p.suite in enough]))
    widest, chosen = scopes[-1]
    if any(p.zero_shot for p in chosen):
        scopes.append((f"{widest}, no zero-shot", [p for p in chosen if not p.zero_shot]))
    if part == "runs":
        scopes += [(f"{widest}, within methods", within_methods(chosen)),
                   (f"{widest}, between methods", between_methods(chosen))]  # fmt: skip
    return scopes


def within_methods(points: Sequence[BoundPoint]) -> list[BoundPoint]:
    """Points whose ranks are taken inside one method of one suite; its rates are the groups.

    A method with fewer than two rates is left out: nothing varies in it but the seed.
    """
    rates: dict[tuple[str, str], set[str]] = defaultdict(set)
    for p in points:
        rates[p.suite, p.group].add(p.setting)
    return [
        replace(p, suite=f"{p.suite}, {p.group}", group=p.setting)
        for p in points
        if len(rates[p.suite, p.group]) > 1
    ]


def between_methods(points: Sequence[BoundPoint]) -> list[BoundPoint]:
    """A point for each method of each suite: the means over its runs."""
    of: dict[tuple[str, str], list[BoundPoint]] = defaultdict(list)
    for p in points:
        of[p.suite, p.group].append(p)
    means: list[BoundPoint] = []
    for some in of.values():
        numbers: dict[str, Any] = {
            name: float(np.mean([getattr(p, name) for p in some]))
            for name in (*_COLUMNS, "sigma_min")
        }
        means.append(replace(some[0], **numbers))
    return means
