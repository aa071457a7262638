"""The bound's terms of finished runs as they come, and their rank correlation with the errors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from calift_core.errors import SpecError
from calift_core.schema.report import SpectrumReport, Summary
from calift_core.schema.wire.answers import Correlation, RunPoint
from calift_core.studies.bound.ranks import SMALLEST_N, rank_correlation, scaled_ranks
from calift_core.studies.bound.terms import bound_terms

#: What is ranked against the errors.
TERMS = ("sigma_min", "effective_rank", "covariance_term", "id_ece", "rhs", "mean_rank", "id_error")
ERRORS = ("ood_ece", "ood_error")
#: Fewer than in the study, which nobody waits for.
_RESAMPLES, _PERMUTATIONS = 1000, 1999
#: An interval over variants takes so many more of them than models.
_SPARE_GROUPS = 3


def point_of(summary: Summary, spectrum: SpectrumReport, **identity: str | int) -> RunPoint | None:
    """The point of a run; None where its headline lacks ID data or shifts.

    Args:
        **identity: the fields of `RunPoint` that name the run.
    """
    s = summary
    if s.id_ece is None or s.id_accuracy is None or s.ood_ece is None or s.ood_accuracy is None:
        return None
    used = spectrum.n_features - spectrum.n_constant_features
    known = bool(spectrum.sigma_min) and used > 0
    terms = bound_terms(s.id_ece, spectrum.sigma_min or 1.0, used) if known else None
    return RunPoint.model_validate(
        {
            **identity,
            "n_features": used,
            "sigma_min": spectrum.sigma_min,
            "effective_rank": spectrum.effective_rank,
            "covariance_term": terms and terms.covariance,
            "rhs": terms and terms.rhs,
            "id_ece": s.id_ece,
            "id_error": 1 - s.id_accuracy,
            "ood_error": 1 - s.ood_accuracy,
            "ood_ece": s.ood_ece,
            "ood_ece_floor": s.ood_ece_floor,
        }
    )


def correlations_of(points: Sequence[RunPoint]) -> tuple[list[Correlation], list[str]]:
    """The rank correlation of each term with each error, and what keeps others from being made.

    Ranks are taken inside models. Runs of a variant are drawn together, unless there are too few
    variants for an interval, which is then of single runs and said to be.
    """
    usable = [p for p in points if p.sigma_min]
    notes = []
    if len(usable) < len(points):
        left = len(points) - len(usable)
        notes.append(f"{left} left out: σ_min is 0 by rank.")
    if len(usable) < SMALLEST_N:
        notes.append(f"A rank correlation takes at least {SMALLEST_N} runs, got {len(usable)}.")
        return [], notes
    strata = [p.model for p in usable]
    groups: list[str] | None = [p.variant for p in usable]
    if len(set(zip(strata, groups or (), strict=True))) < len(set(strata)) + _SPARE_GROUPS:
        groups = None
        notes.append(
            "There are too few variants for an interval over them: runs are taken for independent, "
            "which seeds of one variant are not, and intervals are too short."
        )
    columns = {
        name: [float(getattr(p, name)) for p in usable]
        for name in (*TERMS, *ERRORS)
        if name != "mean_rank"
    }
    ranks = (scaled_ranks(columns[name], strata) for name in ("id_ece", "covariance_term"))
    columns["mean_rank"] = [float(a + b) for a, b in zip(*ranks, strict=True)]
    found = []
    for term, error in itertools.product(TERMS, ERRORS):
        try:
            one = rank_correlation(
                columns[term],
                columns[error],
                groups=groups,
                strata=strata,
                n_resamples=_RESAMPLES,
                n_permutations=_PERMUTATIONS,
            )
        except SpecError as problem:
            notes.append(f"{term} against {error}: {problem.message}.")
            continue
        found.append(
            Correlation(
                term=term, error=error, rho=one.rho, low=one.low, high=one.high,
                p_value=one.p_value, n=one.n, n_groups=one.n_groups,
            )
        )  # fmt: skip
    return found, notes
