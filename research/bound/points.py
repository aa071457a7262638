"""A point of the study: one model."""

from __future__ import annotations

from dataclasses import dataclass


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
