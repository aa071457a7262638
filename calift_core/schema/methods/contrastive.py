"""Methods that train both towers and take a classifier made of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from calift_core.schema.base import Rate, Share, Weight, option
from calift_core.schema.methods.base import Contrastive, MethodBase, Tower


class Flyp(Contrastive):
    """Contrastive fine-tuning with the pre-training loss on class captions."""

    title = "FLYP"
    summary = "Fine-tune like you pre-train: the contrastive loss on class captions."
    source = "Goyal et al. 2023"

    kind: Literal["flyp"] = "flyp"


class CaRot(Contrastive):
    """Contrastive loss, orthogonality of the image projection, distillation from an EMA teacher."""

    title = "CaRot"
    summary = (
        "FLYP's loss with an orthogonality constraint that raises the smallest singular value of "
        "the ID features, and self-distillation from a moving-average teacher."
    )
    source = "Oh, Lim et al., NeurIPS 2024"
    terms = ("contrastive", "orthogonality", "distillation", "cross_tower")

    kind: Literal["carot"] = "carot"
    lambda_oc: Weight = option(
        0.2, "λ_OC", "Weight of the orthogonality term; 0 turns it off [code]"
    )
    lambda_sd: Weight = option(
        1.5, "λ_SD", "Weight of the self-distillation term; 0 turns the teacher off [code]"
    )
    lambda_x: Weight = option(
        0.05,
        "λ_X",
        "Weight of the cross-tower penalty ‖W_v W_tᵀ‖_F [code: 0.05 in the scripts and "
        "in the main result's command; the paper's equation has no such term: 0 leaves it out]",
    )
    orthogonality_form: Literal["norm", "squared"] = option(
        "norm",
        "Orthogonality form",
        "norm: ‖WᵀW − 1‖_F, which the published λ_OC belongs to [code]; "
        "squared: ‖WᵀW − 1‖²_F [paper]",
    )
    teacher_update_every: int | None = option(
        None,
        "Teacher update every (steps)",
        "none: about 50 updates in the run, as 500 steps give on ImageNet [calift]",
        ge=1,
    )
    teacher_momentum_start: Share = option(
        0.05,
        "Teacher momentum at the start",
        "Share of itself that the teacher keeps at its first update [code]",
    )
    teacher_momentum_end: Share = option(
        0.9,
        "Teacher momentum after the ramp",
        "Share of itself that the teacher keeps at an update once the ramp is over [code]",
    )
    teacher_ramp_fraction: Share = option(
        0.2, "Momentum ramp", "Share of the run over which the momentum rises linearly [code]"
    )
    teacher_buffers: bool = option(
        True,
        "Teacher follows BatchNorm statistics",
        "Copy the student's buffers at each teacher update [calift; the released code "
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


class Tracer(Contrastive):
    """Contrastive loss and four kinds of distillation from the trajectory's weighted average."""

    title = "TRACER"
    summary = (
        "FLYP's loss with feature, relational, interactive and cross distillation from a teacher "
        "that averages the whole trajectory, its ends weighted most."
    )
    source = "TRACER, ICML 2026"
    terms = (
        "contrastive",
        "cross_tower",
        "feature",
        "relational",
        "interactive",
        "cross_distillation",
    )

    kind: Literal["tracer"] = "tracer"
    preset: Literal["auto", "ViT-B-16", "RN50", "ViT-L-14", "paper"] = option(
        "auto",
        "Preset by tower",
        "Whose published λ_SD, λ_X, α_FD, learning rate and weight decay are taken "
        "where none is named [code]. auto: RN50 for a convolutional image tower, ViT-L-14 for one "
        "of width 1024 or more, else ViT-B-16. paper: ViT-B-16's with α_FD = 1, as the paper's "
        "algorithm writes",
    )
    lambda_sd: Weight | None = option(
        None,
        "λ_SD",
        "Weight of all distillation together; 0 turns the teacher off; none: the preset's",
    )
    lambda_x: Weight | None = option(
        None, "λ_X", "Weight of the cross-tower penalty ‖W_v W_tᵀ‖_F; none: the preset's"
    )
    alpha_fd: float | None = option(
        None,
        "α_FD",
        "Weight of feature distillation within λ_SD, taken as it is; none: the "
        "preset's, scaled by the model's embedding width over the preset's tower's, so that a "
        "feature is pulled as hard as there",
        ge=0,
        le=1e6,
    )
    alpha_crd: Weight = option(
        1.0, "α_CRD", "Weight of contrastive relational distillation within λ_SD [code]"
    )
    alpha_icl: Weight = option(
        1.0, "α_ICL", "Weight of interactive contrastive learning within λ_SD [code]"
    )
    alpha_cross: Weight = option(1.0, "α_X", "Weight of cross distillation within λ_SD [code]")
    teacher_beta: Rate = option(
        0.5,
        "Teacher β",
        "Iterates are weighted by the density of Beta(β, β): below 1, the ends of the "
        "trajectory weigh most [paper; 0.2 is its best ablation]",
    )
    teacher_buffers: bool = option(
        True,
        "Teacher averages BatchNorm statistics",
        "With the weights of the iterates; off: they stay the initial ones [calift]",
    )

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


class Anchored(Contrastive):
    """FLYP's loss, and a divergence from the initial model that keeps the student near it."""

    title = "FLYP, anchored"
    summary = (
        "FLYP's loss with the initial model as a fixed teacher: a divergence between what the two "
        "say of a batch."
    )
    source = "calift, after Oh, Lim et al. 2024"
    terms = ("contrastive", "anchor")

    kind: Literal["anchored"] = "anchored"
    lambda_0: Weight = option(
        1.0, "λ₀", "Weight of the divergence from the initial model; 0 is FLYP [calift]"
    )


class Averaged(Contrastive):
    """FLYP's steps; the model is a weighted mean of its trajectory."""

    title = "FLYP, averaged"
    summary = (
        "FLYP's training, ended with the mean of every iterate, of which the first and the last "
        "weigh most."
    )
    source = "calift, after TRACER (ICML 2026)"

    kind: Literal["averaged"] = "averaged"
    beta: float = option(
        0.5,
        "β",
        "Iterates are weighted by the density of Beta(β, β) along the run; below 1 its "
        "two ends weigh most [TRACER: 0.5]",
        gt=0,
        le=100,
    )


class Pretrain(MethodBase):
    """Contrastive pre-training of a small CLIP on one data set seen in many named styles."""

    title = "Pre-training"
    summary = (
        "Contrastive pre-training from random weights on a suite's pre-training part, each image "
        "in a random named style that its caption tells."
    )
    source = "Radford et al. 2021; the styles are calift's"
    default_lr = 1e-3
    terms = ("contrastive",)
    family = "contrastive"
    keeps_features = False

    kind: Literal["pretrain"] = "pretrain"
    multi_positive: bool = option(
        True,
        "Share targets among equal captions",
        "Same-caption pairs in a batch are positives of each other",
    )
    vague_captions: float = option(
        0.0,
        "Vague captions",
        "Share of captions that say nothing of the class, only what any image of the "
        "suite is (letter, object)",
        ge=0,
        lt=1,
    )
    coarse_captions: Share = option(
        0.0,
        "Coarse captions",
        "Share of the other captions that give the name which several classes share "
        "(letter a for A and a, shoe for sandal and sneaker)",
    )
    wrong_captions: float = option(
        0.0,
        "Wrong captions",
        "Share of the captions that are not vague which name another class, drawn at random",
        ge=0,
        lt=1,
    )
    coarse_names: dict[str, str] = Field(
        default_factory=dict,
        title="Coarse names",
        description="Class → the name that it shares with others; none: the suite's own",
    )
