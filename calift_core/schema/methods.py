"""The method union: one model per `method.kind`, with each option's meaning, range and source.

Sources in brackets: [paper] the method's publication, [code] its authors' released code where the
two differ, [calift] a choice made here.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from calift_core.schema.base import Frozen


class MethodBase(Frozen):
    """What every method's options share.

    Class attributes say how the run is trained when the spec leaves it open.
    """

    title: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    trains: ClassVar[bool] = True
    default_lr: ClassVar[float] = 1e-5
    default_weight_decay: ClassVar[float] = 0.1
    default_clip_grad_norm: ClassVar[float | None] = None
    terms: ClassVar[tuple[str, ...]] = ()


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

    kind: Literal["finetune"] = "finetune"
    head_scale: Literal["fixed", "learned"] = Field(
        default="fixed",
        title="Logit scale of the head",
        description="fixed: the pre-trained scale is folded into the head's weights and features "
        "stay L2-normalised [code]; learned: the scale is a parameter of its own [calift]",
    )


class Flyp(MethodBase):
    """Contrastive fine-tuning with the pre-training loss on class captions."""

    title: ClassVar[str] = "FLYP"
    summary: ClassVar[str] = "Fine-tune like you pre-train: the contrastive loss on class captions."
    source: ClassVar[str] = "Goyal et al. 2023"
    terms: ClassVar[tuple[str, ...]] = ("contrastive",)

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
        default=0.0,
        ge=0,
        le=1000,
        title="λ_X",
        description="Weight of the cross-tower penalty ‖W_v W_tᵀ‖_F; the released scripts use 0.05",
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
        default=0.05, ge=0, le=1, title="Teacher momentum at the start", description="[code]"
    )
    teacher_momentum_end: float = Field(
        default=0.9, ge=0, le=1, title="Teacher momentum after the ramp", description="[code]"
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

    kind: Literal["pretrain"] = "pretrain"
    multi_positive: bool = Field(
        default=True,
        title="Share targets among equal captions",
        description="Same-caption pairs in a batch are positives of each other",
    )


METHOD_SPECS: dict[str, type[MethodBase]] = {
    "zero_shot": ZeroShot,
    "finetune": FineTune,
    "flyp": Flyp,
    "carot": CaRot,
    "pretrain": Pretrain,
}

MethodSpec = Annotated[ZeroShot | FineTune | Flyp | CaRot | Pretrain, Field(discriminator="kind")]
