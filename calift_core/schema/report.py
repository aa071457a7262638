"""`report.json`: what a finished run says about its model. Accuracy and ECE are fractions."""

from typing import Any, Literal

from pydantic import Field

from calift_core.schema.base import Frozen

Role = Literal["id", "shift", "corruption"]


class EceReport(Frozen):
    """A calibration error with what is needed to judge it.

    Attributes:
        value: plug-in error over the whole set.
        null_mean: its mean if the model were perfectly calibrated (labels drawn from the model's
            own probabilities): the floor of the estimator at this n.
        null_q95: the 95 % quantile of the same.
        interval: 95 % interval of the binned calibration error, low and high.
        debiased: the debiased estimate; it may be negative, which means: not above the noise.
    """

    value: float
    n_bins: int
    scheme: Literal["equal_mass", "equal_width"]
    norm: Literal["l1", "l2", "max"] = "l1"
    null_mean: float
    null_q95: float
    interval: tuple[float, float]
    debiased: float
    n_resamples: int
    seed: int


class EvaluationReport(Frozen):
    """One model on one data set."""

    dataset: str
    role: Role
    n: int
    n_classes: int
    accuracy: float
    mean_per_class_accuracy: float
    macro_f1: float
    top5_accuracy: float | None = None
    nll: float
    brier: float
    mean_confidence: float
    overconfidence: float
    underconfidence: float
    ece: EceReport
    ece_equal_width: EceReport
    ece_batch_averaged: float
    mce: float
    smooth_ece: float
    classwise_ece: float | None = Field(
        default=None, description="Null where only the largest logits are stored"
    )
    ks_error: float
    aurc: float
    corruption: str | None = None
    severity: int | None = None
    temperature: float = 1.0
    predictions_sha256: str = ""
    seconds: float = 0.0


class SpectrumReport(Frozen):
    """Singular values of the standardised features' covariance, largest first.

    `sigma_min` is null when n < D: then it is 0 by rank and says nothing.
    """

    singular_values: list[float]
    sigma_min: float | None
    condition_number: float | None
    effective_rank: float
    n: int
    n_features: int
    n_constant_features: int
    projection_gram_distance: float | None = None
    features: str = Field(default="", description="Which images the features are of")


class Summary(Frozen):
    """The headline; OOD values are unweighted means over shifts, else over corruptions."""

    id_accuracy: float | None = None
    ood_accuracy: float | None = None
    id_ece: float | None = None
    ood_ece: float | None = None
    id_ece_floor: float | None = None
    ood_ece_floor: float | None = None
    id_nll: float | None = None
    ood_nll: float | None = None
    sigma_min: float | None = None
    worst_shift: str | None = None
    worst_shift_accuracy: float | None = None
    #: Of a corruption; runs from before it was kept have the mean over severities instead.
    worst_severity: int | None = None


class FrontierSet(Frozen):
    """One point of the path between two models, on one data set."""

    dataset: str
    role: Role
    n: int
    accuracy: float
    ece: float
    ece_floor: float = Field(description="What ECE would read if this model were calibrated")
    nll: float
    corruption: str | None = None
    severity: int | None = None


class FrontierPoint(Frozen):
    """One model on the path between the zero-shot (α = 0) and the fine-tuned one (α = 1).

    OOD values are means as in `Summary`; `val` is the ID validation split, the only one that an α
    may be chosen on.
    """

    alpha: float
    id_accuracy: float
    id_ece: float
    id_ece_floor: float
    id_nll: float
    ood_accuracy: float | None = None
    ood_ece: float | None = None
    ood_ece_floor: float | None = None
    ood_nll: float | None = None
    val_accuracy: float | None = None
    val_ece: float | None = None
    val_ece_floor: float | None = None
    val_nll: float | None = None
    datasets: list[FrontierSet] = Field(description="The ID test split, shifts and corruptions")


class Report(Frozen):
    """The whole `report.json`. `frontier` is the path of a WiSE-FT run, null for other runs."""

    format_version: Literal[1] = 1
    run_id: str
    name: str
    spec: dict[str, Any]
    spec_sha256: str
    resolved: dict[str, Any]
    summary: Summary
    evaluations: list[EvaluationReport]
    spectrum: SpectrumReport | None
    selection: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    timings_s: dict[str, float]
    environment: dict[str, Any]
    speeds: dict[str, float] = Field(
        default_factory=dict,
        description="Images a second while training (the steps alone) and while evaluating",
    )
    frontier: list[FrontierPoint] | None = None
