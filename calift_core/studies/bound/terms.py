"""The two ID terms of the bound, of one model."""

from __future__ import annotations

from dataclasses import dataclass

from calift_core.errors import SpecError


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


@dataclass(frozen=True)
class BoundPoint:
    """One model: the bound's ID terms and its measured errors under shift.

    Attributes:
        part: `synthetic` or `runs`.
        suite: what it was evaluated on; ranks are taken inside one suite.
        group: models that differ by less than this, such as the seed, are no independent evidence.
        id_calibration: ε_ID. Synthetic: squared binned error of P(y = 1); runs: the report's ECE.
        covariance_term: D/σ_min.
        rhs: ε_ID + D/σ_min.
        id_squared: E_ID(h − η)² as far as it can be known. Synthetic: exact, for η is known there;
            runs: the Brier score, which is that and the noise of the labels, the same for all
            models.
        product: (D/σ_min) · `id_squared`, the form of the bound in which the second term bites.
        id_error: ID counterpart of `ood_error`, for comparison; no term of the bound.
        ood_error: synthetic: MSE; runs: 1 − mean accuracy over the shifts.
        ood_ece: synthetic: ECE of P(y = 1); runs: mean top-label ECE over the shifts.
        setting: what models of a group share besides, such as the learning rate.
        zero_shot: the model was not fine-tuned.
    """

    part: str
    suite: str
    group: str
    variant: str
    name: str
    seed: int
    id_calibration: float
    sigma_min: float
    n_features: int
    covariance_term: float
    rhs: float
    id_squared: float
    product: float
    id_error: float
    ood_error: float
    ood_ece: float
    setting: str = ""
    zero_shot: bool = False
    spec_sha256: str = ""
