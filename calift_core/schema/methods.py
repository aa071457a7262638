"""The method union: one model per `method.kind`, with each option's meaning, range and source.

Sources in brackets: [paper] the method's publication, [code] its authors' released code where the
two differ, [calift] a choice made here.

Long, because the options of all methods are read side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from calift_core.schema.base import Frozen

#: `supervised` methods train a linear head on image features, `contrastive` ones both towers and
#: take a classifier made of prompts, `merge` ones combine the weights of finished runs.
Family = Literal["none", "supervised", "contrastive", "merge"]

#: How much of the towers is trained: all, low-rank terms, or nothing below the last layer.
Adapt = Literal["full", "lora", "head"]

#: Image towers that published settings are known for, by open_clip's names.
Tower = Literal["ViT-B-16", "RN50", "ViT-L-14"]

#: The options of `train.confidence`, by the names that `MethodBase.accepts` uses.
_SUPERVISED = frozenset({"label_smoothing", "focal", "mixup", "zero_shot_kd", "mmce", "entropy"})
_CONTRASTIVE = frozenset({"label_smoothing", "zero_shot_kd"})


class MethodBase(Frozen):
    """What every method's options share.

    Class attributes say how the run is trained when the spec leaves it open, which family it
    belongs to, and which training-time calibration options go with it.
    """

    title: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    trains: ClassVar[bool] = True
    default_lr: ClassVar[float] = 1e-5
    default_weight_decay: ClassVar[float] = 0.1
    default_clip_grad_norm: ClassVar[float | None] = None
    terms: ClassVar[tuple[str, ...]] = ()
    family: ClassVar[Family] = "none"
    #: What of `train.confidence` makes sense with this method.
    accepts: ClassVar[frozenset[str]] = frozenset()
    #: What of `train.adapt` makes sense with this method.
    adapts: ClassVar[tuple[Adapt, ...]] = ("full",)
    #: Whether its model is one tower, whose features of training images are kept beside it.
    keeps_features: ClassVar[bool] = True

    kind: str

    def earlier_forms(self) -> list[dict[str, Any]]:
        """How earlier versions wrote these options, where that was otherwise."""
        return []

    @property
    def rate(self) -> float:
        """The learning rate of a run that names none."""
        return self.default_lr

    def rate_of(self, adapt: Adapt) -> float:
        """The learning rate of a run that names none, by what it trains.

        LoRA: what Zanella & Ben Ayed 2024 (CLIP-LoRA) take; a head: the linear probe's. [calift]
        """
        return {"full": self.rate, "lora": 2e-4, "head": 1e-3}[adapt]

    @property
    def decay(self) -> float:
        """The weight decay of a run that names none."""
        return self.default_weight_decay

    @property
    def input_runs(self) -> tuple[str, ...]:
        """Finished runs that this one is made from: ids of a service's runs, or their folders."""
        return ()

    @property
    def evaluated_models(self) -> int:
        """How many models a run of it evaluates: its own, and what else it measures."""
        return 1

    @property
    def chosen_among(self) -> int:
        """How many models are compared on ID validation before its own is known."""
        return 0

    @property
    def on_features(self) -> bool:
        """Whether it trains on cached features instead of images."""
        return False

    @property
    def encodes_first(self) -> bool:
        """Whether features of the training images are computed before the first step."""
        return self.on_features

    @property
    def fitted_on(self) -> tuple[str, ...]:
        """ID parts that two models are asked about before they are mixed."""
        return ()

    @property
    def solved_at_once(self) -> bool:
        """Whether a solver finds the optimum before the first step, and there are no steps."""
        return False


class ZeroShot(MethodBase):
    """No training: the classifier is the mean of prompt embeddings per class."""

    title: ClassVar[str] = "Zero-shot"
    summary: ClassVar[str] = "The pre-trained model with a classifier made of prompts; no training."
    source: ClassVar[str] = "Radford et al. 2021"
    trains: ClassVar[bool] = False

    kind: Literal["zero_shot"] = "zero_shot"


class FineTune(MethodBase):
    """Cross-entropy on the image tower and a linear head that starts from zero-shot weights."""

    title: ClassVar[str] = "Fine-tuning (FT)"
    summary: ClassVar[str] = "Cross-entropy on the image tower and a head that starts zero-shot."
    source: ClassVar[str] = "Wortsman et al. 2022, section 2"
    default_lr: ClassVar[float] = 3e-5
    default_clip_grad_norm: ClassVar[float | None] = 1.0
    terms: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    family: ClassVar[Family] = "supervised"
    adapts: ClassVar[tuple[Adapt, ...]] = ("full", "lora", "head")
    accepts: ClassVar[frozenset[str]] = _SUPERVISED

    kind: Literal["finetune"] = "finetune"
    head_scale: Literal["fixed", "learned"] = Field(
        default="fixed",
        title="Logit scale of the head",
        description="fixed: the pre-trained scale is folded into the head's weights and features "
        "stay L2-normalised [code]; learned: the scale is a parameter of its own [calift]",
    )


class LinearProbe(MethodBase):
    """Cross-entropy on a linear head; the image tower is frozen and its features are cached."""

    title: ClassVar[str] = "Linear probe (LP)"
    summary: ClassVar[str] = "A linear head on the frozen image tower's features."
    source: ClassVar[str] = "Radford et al. 2021, section 3.2; Kumar et al. 2022"
    default_lr: ClassVar[float] = 1e-3
    default_weight_decay: ClassVar[float] = 0.0
    terms: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    family: ClassVar[Family] = "supervised"
    accepts: ClassVar[frozenset[str]] = _SUPERVISED - {"mixup"}

    kind: Literal["linear_probe"] = "linear_probe"
    solver: Literal["adamw", "lbfgs"] = Field(
        default="adamw",
        title="Solver",
        description="adamw: the training loop on cached features; lbfgs: logistic regression to "
        "its optimum for each strength in the grid, the best by NLL on the ID validation split "
        "[Radford et al. 2021 use L-BFGS]",
    )
    head_start: Literal["zero_shot", "zeros"] = Field(
        default="zero_shot",
        title="Head starts from",
        description="zero_shot: the prompt classifier; zeros: nothing known. lbfgs starts there "
        "too but its optimum does not depend on it [calift]",
    )
    strengths: tuple[Annotated[float, Field(gt=0, le=1e9)], ...] = Field(
        default=(0.01, 0.1, 1.0, 10.0, 100.0, 1000.0),
        min_length=1,
        max_length=100,
        title="Inverse strengths C",
        description="lbfgs only: the L2 penalty is ‖W‖²/(2·C·N) beside the mean cross-entropy, as "
        "scikit-learn's C; chosen on the ID validation split, never on the test split [calift]",
    )
    max_iterations: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        title="L-BFGS iterations",
        description="Most iterations for each C of the grid",
    )

    @property
    def on_features(self) -> bool:
        """The tower never changes."""
        return True

    @property
    def solved_at_once(self) -> bool:
        """With `lbfgs`."""
        return self.solver == "lbfgs"


class LpFt(MethodBase):
    """A linear probe first, then fine-tuning of tower and head from there."""

    title: ClassVar[str] = "LP-FT"
    summary: ClassVar[str] = "Linear probe, then fine-tuning that starts from its head."
    source: ClassVar[str] = "Kumar et al. 2022, section 3.4"
    default_lr: ClassVar[float] = 3e-5
    default_clip_grad_norm: ClassVar[float | None] = 1.0
    terms: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    family: ClassVar[Family] = "supervised"
    adapts: ClassVar[tuple[Adapt, ...]] = ("full", "lora", "head")
    accepts: ClassVar[frozenset[str]] = _SUPERVISED

    kind: Literal["lp_ft"] = "lp_ft"
    lp_epochs: int = Field(
        default=5,
        ge=1,
        le=10_000,
        title="LP epochs",
        description="Epochs of the linear probe, on cached features, before fine-tuning [code]",
    )
    lp_lr: float = Field(
        default=1e-3,
        gt=0,
        le=1,
        title="LP learning rate",
        description="Learning rate of the linear probe [calift]",
    )
    head_start: Literal["zero_shot", "zeros"] = Field(
        default="zero_shot",
        title="Head starts from",
        description="What the head is before the linear probe trains it [calift]",
    )

    @property
    def encodes_first(self) -> bool:
        """For the probe."""
        return True


class LipsumFt(MethodBase):
    """Cross-entropy and the energy gap to the initial tower over random texts."""

    title: ClassVar[str] = "LipSum-FT"
    summary: ClassVar[str] = (
        "Fine-tuning that keeps the image tower's energies to random texts near the initial ones."
    )
    source: ClassVar[str] = "Nam et al. 2024"
    default_lr: ClassVar[float] = 1e-5
    default_weight_decay: ClassVar[float] = 0.0
    terms: ClassVar[tuple[str, ...]] = ("cross_entropy", "energy_gap")
    family: ClassVar[Family] = "supervised"
    adapts: ClassVar[tuple[Adapt, ...]] = ("full", "lora", "head")
    accepts: ClassVar[frozenset[str]] = _SUPERVISED

    kind: Literal["lipsum_ft"] = "lipsum_ft"
    lambda_energy: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        title="λ",
        description="Weight of the energy gap; 0 turns it off [paper]",
    )
    n_texts: int = Field(
        default=80,
        ge=1,
        le=10_000,
        title="Random texts M",
        description="How many random texts a step compares; drawn anew each step",
    )
    text_length: int = Field(
        default=8,
        ge=1,
        le=75,
        title="Random tokens in a text",
        description="Each is drawn uniformly from the vocabulary and stands between start and end "
        "token [paper]",
    )


class CarFt(MethodBase):
    """Cross-entropy and the divergence of context distributions from the initial tower's."""

    title: ClassVar[str] = "CAR-FT"
    summary: ClassVar[str] = (
        "Fine-tuning that keeps what the image tower says about the context (which template fits)."
    )
    source: ClassVar[str] = "Mao et al. 2024"
    default_lr: ClassVar[float] = 3e-5
    default_clip_grad_norm: ClassVar[float | None] = 1.0
    terms: ClassVar[tuple[str, ...]] = ("cross_entropy", "context")
    family: ClassVar[Family] = "supervised"
    adapts: ClassVar[tuple[Adapt, ...]] = ("full", "lora", "head")
    accepts: ClassVar[frozenset[str]] = _SUPERVISED

    kind: Literal["car_ft"] = "car_ft"
    alpha: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        title="α",
        description="Weight of KL(c⁰ ‖ c) over the templates; 0 turns it off. 1 is not read from "
        "the paper but recalled [calift]",
    )


class ZsNorm(MethodBase):
    """Cross-entropy of logits that are stretched to the range of the initial model's."""

    title: ClassVar[str] = "ZS-Norm"
    summary: ClassVar[str] = (
        "Fine-tuning on logits that are stretched, image by image, to the range that the initial "
        "model's have: confidence is nothing that training can raise."
    )
    source: ClassVar[str] = "Murugesan et al. 2024, section 4"
    default_lr: ClassVar[float] = 3e-5
    default_clip_grad_norm: ClassVar[float | None] = 1.0
    terms: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    family: ClassVar[Family] = "supervised"
    accepts: ClassVar[frozenset[str]] = _SUPERVISED

    kind: Literal["zs_norm"] = "zs_norm"


class Flyp(MethodBase):
    """Contrastive fine-tuning with the pre-training loss on class captions."""

    title: ClassVar[str] = "FLYP"
    summary: ClassVar[str] = "Fine-tune like you pre-train: the contrastive loss on class captions."
    source: ClassVar[str] = "Goyal et al. 2023"
    terms: ClassVar[tuple[str, ...]] = ("contrastive",)
    family: ClassVar[Family] = "contrastive"
    adapts: ClassVar[tuple[Adapt, ...]] = ("full", "lora", "head")
    accepts: ClassVar[frozenset[str]] = _CONTRASTIVE

    kind: Literal["flyp"] = "flyp"


class CaRot(MethodBase):
    """Contrastive loss, orthogonality of the image projection, distillation from an EMA teacher."""

    title: ClassVar[str] = "CaRot"
    summary: ClassVar[str] = (
        "FLYP's loss with an orthogonality constraint that raises the smallest singular value of "
        "the ID features, and self-distillation from a moving-average teacher."
    )
    source: ClassVar[str] = "Oh, Lim et al., NeurIPS 2024"
    terms: ClassVar[tuple[str, ...]] = (
        "contrastive",
        "orthogonality",
        "distillation",
        "cross_tower",
    )
    family: ClassVar[Family] = "contrastive"
    adapts: ClassVar[tuple[Adapt, ...]] = ("full", "lora", "head")
    accepts: ClassVar[frozenset[str]] = _CONTRASTIVE

    kind: Literal["carot"] = "carot"
    lambda_oc: float = Field(
        default=0.2,
        ge=0,
        le=1000,
        title="λ_OC",
        description="Weight of the orthogonality term; 0 turns it off [code]",
    )
    lambda_sd: float = Field(
        default=1.5,
        ge=0,
        le=1000,
        title="λ_SD",
        description="Weight of the self-distillation term; 0 turns the teacher off [code]",
    )
    lambda_x: float = Field(
        default=0.05,
        ge=0,
        le=1000,
        title="λ_X",
        description="Weight of the cross-tower penalty ‖W_v W_tᵀ‖_F [code: 0.05 in the scripts and "
        "in the main result's command; the paper's equation has no such term: 0 leaves it out]",
    )
    orthogonality_form: Literal["norm", "squared"] = Field(
        default="norm",
        title="Orthogonality form",
        description="norm: ‖WᵀW − 1‖_F, which the published λ_OC belongs to [code]; "
        "squared: ‖WᵀW − 1‖²_F [paper]",
    )
    teacher_update_every: int | None = Field(
        default=None,
        ge=1,
        title="Teacher update every (steps)",
        description="none: about 50 updates in the run, as 500 steps give on ImageNet [calift]",
    )
    teacher_momentum_start: float = Field(
        default=0.05,
        ge=0,
        le=1,
        title="Teacher momentum at the start",
        description="Share of itself that the teacher keeps at its first update [code]",
    )
    teacher_momentum_end: float = Field(
        default=0.9,
        ge=0,
        le=1,
        title="Teacher momentum after the ramp",
        description="Share of itself that the teacher keeps at an update once the ramp is over "
        "[code]",
    )
    teacher_ramp_fraction: float = Field(
        default=0.2,
        ge=0,
        le=1,
        title="Momentum ramp",
        description="Share of the run over which the momentum rises linearly [code]",
    )
    teacher_buffers: bool = Field(
        default=True,
        title="Teacher follows BatchNorm statistics",
        description="Copy the student's buffers at each teacher update [calift; the released code "
        "leaves them stale]",
    )

    @model_validator(mode="after")
    def _ordered(self) -> CaRot:
        if self.teacher_momentum_start > self.teacher_momentum_end:
            raise ValueError(
                "teacher momentum must not fall: start "
                f"{self.teacher_momentum_start} > end {self.teacher_momentum_end}"
            )
        return self


@dataclass(frozen=True)
class TracerPreset:
    """A published setting of TRACER.

    Attributes:
        embed_dim: D that `alpha_fd` belongs to; None where α_FD is not scaled.
    """

    lambda_sd: float
    alpha_fd: float
    lambda_x: float
    lr: float
    weight_decay: float
    embed_dim: int | None


#: The released scripts by tower, and the α_FD of the paper's algorithm.
TRACER_PRESETS: dict[str, TracerPreset] = {
    "ViT-B-16": TracerPreset(0.9, 2000.0, 0.05, 1e-5, 0.1, 512),
    "RN50": TracerPreset(0.01, 200.0, 0.01, 9e-6, 0.02, 1024),
    "ViT-L-14": TracerPreset(1.1, 2000.0, 0.04, 8e-6, 0.05, 768),
    "paper": TracerPreset(0.9, 1.0, 0.05, 1e-5, 0.1, None),
}


class Tracer(MethodBase):
    """Contrastive loss and four kinds of distillation from the trajectory's weighted average."""

    title: ClassVar[str] = "TRACER"
    summary: ClassVar[str] = (
        "FLYP's loss with feature, relational, interactive and cross distillation from a teacher "
        "that averages the whole trajectory, its ends weighted most."
    )
    source: ClassVar[str] = "TRACER, ICML 2026"
    terms: ClassVar[tuple[str, ...]] = (
        "contrastive",
        "cross_tower",
        "feature",
        "relational",
        "interactive",
        "cross_distillation",
    )
    family: ClassVar[Family] = "contrastive"
    adapts: ClassVar[tuple[Adapt, ...]] = ("full", "lora", "head")
    accepts: ClassVar[frozenset[str]] = _CONTRASTIVE

    kind: Literal["tracer"] = "tracer"
    preset: Literal["auto", "ViT-B-16", "RN50", "ViT-L-14", "paper"] = Field(
        default="auto",
        title="Preset by tower",
        description="Whose published λ_SD, λ_X, α_FD, learning rate and weight decay are taken "
        "where none is named [code]. auto: RN50 for a convolutional image tower, ViT-L-14 for one "
        "of width 1024 or more, else ViT-B-16. paper: ViT-B-16's with α_FD = 1, as the paper's "
        "algorithm writes",
    )
    lambda_sd: float | None = Field(
        default=None,
        ge=0,
        le=1000,
        title="λ_SD",
        description="Weight of all distillation together; 0 turns the teacher off; none: the "
        "preset's",
    )
    lambda_x: float | None = Field(
        default=None,
        ge=0,
        le=1000,
        title="λ_X",
        description="Weight of the cross-tower penalty ‖W_v W_tᵀ‖_F; none: the preset's",
    )
    alpha_fd: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        title="α_FD",
        description="Weight of feature distillation within λ_SD, taken as it is; none: the "
        "preset's, scaled by the model's embedding width over the preset's tower's, so that a "
        "feature is pulled as hard as there",
    )
    alpha_crd: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        title="α_CRD",
        description="Weight of contrastive relational distillation within λ_SD [code]",
    )
    alpha_icl: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        title="α_ICL",
        description="Weight of interactive contrastive learning within λ_SD [code]",
    )
    alpha_cross: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        title="α_X",
        description="Weight of cross distillation within λ_SD [code]",
    )
    teacher_beta: float = Field(
        default=0.5,
        gt=0,
        le=1,
        title="Teacher β",
        description="Iterates are weighted by the density of Beta(β, β): below 1, the ends of the "
        "trajectory weigh most [paper; 0.2 is its best ablation]",
    )
    teacher_buffers: bool = Field(
        default=True,
        title="Teacher averages BatchNorm statistics",
        description="With the weights of the iterates; off: they stay the initial ones [calift]",
    )

    @model_validator(mode="before")
    @classmethod
    def _first_presets(cls, value: Any) -> Any:
        """Specs from before there were presets by tower: `code` had α_FD = 2000 at any width."""
        if not isinstance(value, dict) or value.get("preset") != "code":
            return value
        alpha = value.get("alpha_fd")
        return value | {"preset": "ViT-B-16", "alpha_fd": 2000.0 if alpha is None else alpha}

    def earlier_forms(self) -> list[dict[str, Any]]:
        """`_first_presets` undone."""
        if self.preset != "ViT-B-16" or self.alpha_fd is None:
            return []
        body = self.model_dump(mode="json") | {"preset": "code"}
        return [body, body | {"alpha_fd": None}] if self.alpha_fd == 2000.0 else [body]

    def fitted(self, tower: Tower, embed_dim: int) -> Tracer:
        """These options with the preset filled in.

        Args:
            tower: the published tower that the model's is nearest to.
            embed_dim: D of the model.
        """
        name = tower if self.preset == "auto" else self.preset
        published = TRACER_PRESETS[name]
        alpha = published.alpha_fd
        if published.embed_dim is not None:
            alpha *= embed_dim / published.embed_dim
        filled = {"lambda_sd": published.lambda_sd, "lambda_x": published.lambda_x}
        filled["alpha_fd"] = alpha
        open_ones = {k: v for k, v in filled.items() if getattr(self, k) is None}
        return self.model_copy(update={"preset": name, **open_ones})

    @property
    def rate(self) -> float:
        """The preset's, ViT-B/16's while it is open."""
        return TRACER_PRESETS["ViT-B-16" if self.preset == "auto" else self.preset].lr

    @property
    def decay(self) -> float:
        """The preset's, ViT-B/16's while it is open."""
        return TRACER_PRESETS["ViT-B-16" if self.preset == "auto" else self.preset].weight_decay


#: Where `wise_ft` looks for α by the one-standard-error rule.
ONE_SE_PATH = tuple(step / 20 for step in range(21))


class _OfRun(MethodBase):
    """What methods share that make something of the zero-shot model and a finished run's."""

    trains: ClassVar[bool] = False
    family: ClassVar[Family] = "merge"

    run: str = Field(
        min_length=1,
        max_length=4096,
        title="Fine-tuned run",
        description="A finished run that started from this spec's model: its id in the service, "
        "or its folder for `calift train`",
    )

    @property
    def input_runs(self) -> tuple[str, ...]:
        """The fine-tuned run."""
        return (self.run,)


class WiseFt(_OfRun):
    """Weights between the zero-shot model and a finished run's; nothing is trained."""

    title: ClassVar[str] = "WiSE-FT"
    summary: ClassVar[str] = (
        "Interpolates the weights of the zero-shot model and of a finished run, and shows the "
        "whole path between them."
    )
    source: ClassVar[str] = "Wortsman et al. 2022"

    kind: Literal["wise_ft"] = "wise_ft"
    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        title="α",
        description="(1 − α)·zero-shot + α·fine-tuned, tower and head [paper: 0.5]",
    )
    choose: Literal["fixed", "one_se"] = Field(
        default="fixed",
        title="Choice of α",
        description="fixed: the α above; one_se: the smallest of 0, 0.05, …, 1 whose ID validation "
        "accuracy is within one binomial standard error of the path's best, so that no more is "
        "changed than validation can tell [calift, after Breiman 1984]",
    )
    sweep: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        max_length=101,
        title="Path",
        description="The α at which the frontier is measured; empty: only α itself",
    )

    def earlier_forms(self) -> list[dict[str, Any]]:
        """Before α could be chosen, nothing was said of that."""
        if self.choose != "fixed":
            return []
        return [self.model_dump(mode="json", exclude={"choose"})]

    @property
    def evaluated_models(self) -> int:
        """Its own and every other on the path."""
        return len({*self.sweep, self.alpha})

    @property
    def chosen_among(self) -> int:
        """Models of the path where α is chosen."""
        return len(ONE_SE_PATH) if self.choose == "one_se" else 0


class Vrf(_OfRun):
    """Outputs of the zero-shot model and a finished run's, mixed by the distance to failures."""

    title: ClassVar[str] = "VRF"
    summary: ClassVar[str] = (
        "Mixes the outputs of the zero-shot model and a finished run image by image: nearer to "
        "training images that zero-shot got wrong and fine-tuning mended, the tuned one counts "
        "more. Two passes an image."
    )
    source: ClassVar[str] = "Zhu et al., NeurIPS 2024"
    keeps_features: ClassVar[bool] = False

    kind: Literal["vrf"] = "vrf"

    @property
    def fitted_on(self) -> tuple[str, ...]:
        """Failures are of training images."""
        return ("calibration", "train")

    @property
    def evaluated_models(self) -> int:
        """Two."""
        return 2


class Dawin(_OfRun):
    """Weights between the zero-shot model's and a finished run's, chosen for each image."""

    title: ClassVar[str] = "DaWin"
    summary: ClassVar[str] = (
        "Interpolates the weights of the zero-shot model and a finished run for each image, by how "
        "sure each of the two is. Three passes an image."
    )
    source: ClassVar[str] = "Oh et al., ICLR 2025"
    keeps_features: ClassVar[bool] = False

    kind: Literal["dawin"] = "dawin"

    @property
    def fitted_on(self) -> tuple[str, ...]:
        """Two temperatures."""
        return ("calibration",)

    @property
    def evaluated_models(self) -> int:
        """The two, and the image's own."""
        return 3


class ModelStock(MethodBase):
    """Per tensor, the point between the mean of fine-tuned weights and the initial ones."""

    title: ClassVar[str] = "Model Stock"
    summary: ClassVar[str] = (
        "Merges a few finished runs: the angle between their weight changes says how far to go "
        "from the initial weights towards their mean."
    )
    source: ClassVar[str] = "Jang et al. 2024"
    trains: ClassVar[bool] = False
    family: ClassVar[Family] = "merge"

    kind: Literal["model_stock"] = "model_stock"
    runs: tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...] = Field(
        min_length=2,
        max_length=64,
        title="Fine-tuned runs",
        description="Two or more finished runs that started from this spec's model and differ in "
        "seed or settings [paper: 2]: ids in the service, or folders for `calift train`",
    )

    @property
    def input_runs(self) -> tuple[str, ...]:
        """The fine-tuned runs."""
        return self.runs

    @model_validator(mode="after")
    def _different(self) -> ModelStock:
        if len(set(self.runs)) < len(self.runs):
            raise ValueError(f"the runs must differ, got {list(self.runs)}")
        return self


class Anchored(MethodBase):
    """FLYP's loss, and a divergence from the initial model that keeps the student near it."""

    title: ClassVar[str] = "FLYP, anchored"
    summary: ClassVar[str] = (
        "FLYP's loss with the initial model as a fixed teacher: a divergence between what the two "
        "say of a batch."
    )
    source: ClassVar[str] = "calift, after Oh, Lim et al. 2024"
    terms: ClassVar[tuple[str, ...]] = ("contrastive", "anchor")
    family: ClassVar[Family] = "contrastive"
    adapts: ClassVar[tuple[Adapt, ...]] = ("full", "lora", "head")
    accepts: ClassVar[frozenset[str]] = _CONTRASTIVE

    kind: Literal["anchored"] = "anchored"
    lambda_0: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        title="λ₀",
        description="Weight of the divergence from the initial model; 0 is FLYP [calift]",
    )


class Averaged(MethodBase):
    """FLYP's steps; the model is a weighted mean of its trajectory."""

    title: ClassVar[str] = "FLYP, averaged"
    summary: ClassVar[str] = (
        "FLYP's training, ended with the mean of every iterate, of which the first and the last "
        "weigh most."
    )
    source: ClassVar[str] = "calift, after TRACER (ICML 2026)"
    terms: ClassVar[tuple[str, ...]] = ("contrastive",)
    family: ClassVar[Family] = "contrastive"
    adapts: ClassVar[tuple[Adapt, ...]] = ("full", "lora", "head")
    accepts: ClassVar[frozenset[str]] = _CONTRASTIVE

    kind: Literal["averaged"] = "averaged"
    beta: float = Field(
        default=0.5,
        gt=0,
        le=100,
        title="β",
        description="Iterates are weighted by the density of Beta(β, β) along the run; below 1 its "
        "two ends weigh most [TRACER: 0.5]",
    )


class CoOp(MethodBase):
    """Learned vectors in the place of a prompt's words; both towers stay."""

    title: ClassVar[str] = "CoOp"
    summary: ClassVar[str] = (
        "Learns the words around the class names as vectors; both towers stay as they are."
    )
    source: ClassVar[str] = "Zhou et al. 2022, section 3.2"
    default_lr: ClassVar[float] = 2e-3
    default_weight_decay: ClassVar[float] = 0.0
    terms: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    family: ClassVar[Family] = "supervised"
    accepts: ClassVar[frozenset[str]] = _SUPERVISED - {"mixup"}

    kind: Literal["coop"] = "coop"
    n_context: int = Field(
        default=16,
        ge=1,
        le=60,
        title="Context vectors M",
        description="How many stand before the class name, drawn from a normal distribution of "
        "width 0.02; not asked where `start` has words [paper, code: 16]",
    )
    start: str = Field(
        default="",
        max_length=200,
        title="Begins as the words",
        description="Begin with the vectors of these words, one a token, such as 'a photo of a'; "
        "empty: at random [paper has both]",
    )
    class_specific: bool = Field(
        default=False,
        title="A context for each class",
        description="Off: all classes share one [paper: the shared one generalises better]",
    )

    @property
    def on_features(self) -> bool:
        """The image tower never changes."""
        return True


class TipAdapter(MethodBase):
    """A cache of training features beside the zero-shot classifier; its keys are trained."""

    title: ClassVar[str] = "Tip-Adapter-F"
    summary: ClassVar[str] = (
        "Zero-shot logits plus the likeness to a few training images of each class, whose features "
        "are fine-tuned; both towers stay as they are."
    )
    source: ClassVar[str] = "Zhang et al. 2022, section 3.2"
    default_lr: ClassVar[float] = 1e-3
    default_weight_decay: ClassVar[float] = 0.01
    terms: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    family: ClassVar[Family] = "supervised"
    accepts: ClassVar[frozenset[str]] = _SUPERVISED - {"mixup"}

    kind: Literal["tip_adapter"] = "tip_adapter"
    alpha: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        title="α",
        description="Weight of the cache; 0 is zero-shot [calift; code: trains at 1.17 for "
        "ImageNet and 2 for DTD, then searches on validation images]",
    )
    beta: float = Field(
        default=5.5,
        gt=0,
        le=1000,
        title="β",
        description="How fast the likeness of two images falls: exp(−β(1 − cosine)) [calift; "
        "code: trains at 1, then searches on validation images]",
    )
    per_class: int = Field(
        default=16,
        ge=1,
        le=10_000,
        title="Images of a class in the cache",
        description="At most so many, drawn by the run's seed; all training images train their "
        "keys [code: 16 shots]",
    )

    @property
    def on_features(self) -> bool:
        """The image tower never changes."""
        return True


class Pretrain(MethodBase):
    """Contrastive pre-training of a small CLIP on one data set seen in many named styles."""

    title: ClassVar[str] = "Pre-training"
    summary: ClassVar[str] = (
        "Contrastive pre-training from random weights on a suite's pre-training part, each image "
        "in a random named style that its caption tells."
    )
    source: ClassVar[str] = "Radford et al. 2021; the styles are calift's"
    default_lr: ClassVar[float] = 1e-3
    terms: ClassVar[tuple[str, ...]] = ("contrastive",)
    family: ClassVar[Family] = "contrastive"
    keeps_features: ClassVar[bool] = False

    kind: Literal["pretrain"] = "pretrain"
    multi_positive: bool = Field(
        default=True,
        title="Share targets among equal captions",
        description="Same-caption pairs in a batch are positives of each other",
    )
    vague_captions: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        title="Vague captions",
        description="Share of captions that say nothing of the class, only what any image of the "
        "suite is (letter, object)",
    )
    coarse_captions: float = Field(
        default=0.0,
        ge=0,
        le=1,
        title="Coarse captions",
        description="Share of the other captions that give the name which several classes share "
        "(letter a for A and a, shoe for sandal and sneaker)",
    )
    wrong_captions: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        title="Wrong captions",
        description="Share of the captions that are not vague which name another class, drawn "
        "at random",
    )
    coarse_names: dict[str, str] = Field(
        default_factory=dict,
        title="Coarse names",
        description="Class → the name that it shares with others; none: the suite's own",
    )


METHOD_SPECS: dict[str, type[MethodBase]] = {
    "zero_shot": ZeroShot,
    "linear_probe": LinearProbe,
    "finetune": FineTune,
    "lp_ft": LpFt,
    "flyp": Flyp,
    "carot": CaRot,
    "wise_ft": WiseFt,
    "lipsum_ft": LipsumFt,
    "car_ft": CarFt,
    "model_stock": ModelStock,
    "vrf": Vrf,
    "dawin": Dawin,
    "tracer": Tracer,
    "anchored": Anchored,
    "averaged": Averaged,
    "zs_norm": ZsNorm,
    "coop": CoOp,
    "tip_adapter": TipAdapter,
    "pretrain": Pretrain,
}

if TYPE_CHECKING:
    MethodSpec = MethodBase
else:
    #: Any of them, told apart by `kind`.
    MethodSpec = Annotated[reduce(or_, METHOD_SPECS.values()), Field(discriminator="kind")]
