"""The two ID terms of CaRot's bound, of one model, and their rank correlation with the errors."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calift_core.analysis.ranks import SMALLEST_N, rank_correlation, scaled_ranks
from calift_core.errors import SpecError
from calift_core.schema.methods import METHOD_SPECS
from calift_core.schema.report import SpectrumReport, Summary
from calift_core.schema.train import ConfidenceSpec
from calift_core.schema.wire.answers import Correlation, RunPoint

#: What is ranked against the errors.
TERMS = ("sigma_min", "effective_rank", "covariance_term", "id_ece", "rhs", "mean_rank", "id_error")
ERRORS = ("ood_ece", "ood_error")
#: Fewer than in the study, which nobody waits for.
_RESAMPLES, _PERMUTATIONS = 1000, 1999
#: An interval over variants takes so many more of them than models.
_SPARE_GROUPS = 3


@dataclass(frozen=True)
class BoundTerms:
    """What of the bound's right-hand side can be measured on ID data.

    Attributes:
        calibration: ε_ID, an ID calibration error, a fraction.
        covariance: D/σ_min, at least D.
    """

    calibration: float
    covariance: float

    @property
    def rhs(self) -> float:
        """`ε_ID + D/σ_min`, without Δ and the sampling term, which ID data do not show."""
        return self.calibration + self.covariance


def bound_terms(calibration_error: float, sigma_min: float, n_features: int) -> BoundTerms:
    """Both measurable terms of the bound (Oh et al. 2024).

    Args:
        calibration_error: ε_ID in [0, 1].
        sigma_min: smallest singular value of the standardised ID covariance, in (0, 1]: their mean
            is 1.

    Raises:
        SpecError: an argument is out of its range; σ_min = 0 is a rank-deficient representation.
    """
    if not 0 <= calibration_error <= 1:
        raise SpecError(f"calibration_error must lie in [0, 1], got {calibration_error}")
    if n_features < 1:
        raise SpecError(f"n_features must be ≥ 1, got {n_features}")
    if not 0 < sigma_min <= 1 + 1e-9:
        raise SpecError(f"sigma_min must lie in (0, 1], got {sigma_min}")
    return BoundTerms(float(calibration_error), n_features / sigma_min)


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


#: Options that make no independent evidence: points of one path, or the runs a merge is made of.
_NO_METHOD = frozenset({"alpha", "run", "runs", "teacher_update_every"})


def method_label(spec: dict[str, Any]) -> str:
    """A method's kind with the options that differ from its defaults; seeds and rates are not in.

    Args:
        spec: of a report; options that this version does not know are passed over.
    """
    kind = str(spec.get("method", {}).get("kind", "unknown"))
    changed: list[str] = []
    for options, model in (
        (spec.get("method", {}), METHOD_SPECS.get(kind)),
        (spec.get("train", {}).get("confidence") or {}, ConfidenceSpec),
    ):
        known = {} if model is None else model.model_fields
        changed += [
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in sorted(options.items())
            if name in known
            and name not in _NO_METHOD
            and isinstance(value, bool | int | float | str)
            and not known[name].is_required()
            and value != known[name].get_default(call_default_factory=True)
        ]
    return kind if not changed else f"{kind} ({', '.join(changed)})"
