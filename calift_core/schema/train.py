"""How a run is trained: optimisation, and what is added against over-confidence."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from calift_core.schema.base import Frozen, Positive, Rate, Weight, option
from calift_core.schema.methods.base import Adapt, RunName


class ConfidenceSpec(Frozen):
    """Training-time calibration: what is added to a method's loss against over-confidence.

    All off by default. Which of them go with which method is a matter of the method
    (`MethodBase.accepts`).
    """

    label_smoothing: float = option(
        0.0,
        "Label smoothing ε",
        "(1 − ε)·NLL + ε·mean(−log p); 0 turns it off. In a contrastive loss the "
        "classes are the batch's other pairs [Szegedy et al. 2016]",
        ge=0,
        lt=1,
    )
    focal: Literal["off", "constant", "flsd53"] = option(
        "off",
        "Focal loss",
        "constant: −(1 − p)^γ log p with one γ [Lin et al. 2017]; flsd53: γ = 5 where "
        "p < 0.2, else 3 [Mukhoti et al. 2020]",
    )
    focal_gamma: float = option(3.0, "Focal γ", "γ of the constant focal loss", gt=0, le=20)
    mixup_alpha: float = option(
        0.0,
        "Mixup α",
        "Images and labels mixed with weight λ ~ Beta(α, α) in each batch; 0 turns it "
        "off [Zhang et al. 2018]",
        ge=0,
        le=10,
    )
    zero_shot_kd: Weight = option(
        0.0,
        "Distillation from zero-shot",
        "Weight of the divergence of the model's class probabilities from the "
        "zero-shot model's (of its similarities, in a contrastive method); 0 turns it off",
    )
    zero_shot_kd_temperature: float = option(
        1.0,
        "Temperature of that distillation",
        "Both sides' logits are divided by it and the divergence multiplied by its "
        "square [Hinton et al. 2015]",
        gt=0,
        le=100,
    )
    mmce: Weight = option(
        0.0,
        "MMCE weight",
        "Weight of the kernel calibration error of a batch; 0 turns it off [Kumar et al. 2018]",
    )

    entropy: float = option(
        0.0,
        "Entropy weight β",
        "Weight of −H(p), which pays for confidence: cross-entropy − β·H(p); 0 turns "
        "it off [Pereyra et al. 2017]",
        ge=0,
        le=100,
    )

    def active(self) -> set[str]:
        """Names of the options that are on, as in `MethodBase.accepts`."""
        return {
            name
            for name, is_on in (
                ("label_smoothing", self.label_smoothing > 0),
                ("focal", self.focal != "off"),
                ("mixup", self.mixup_alpha > 0),
                ("zero_shot_kd", self.zero_shot_kd > 0),
                ("mmce", self.mmce > 0),
                ("entropy", self.entropy > 0),
            )
            if is_on
        }

    @model_validator(mode="after")
    def _go_together(self) -> ConfidenceSpec:
        on = self.active()
        if "focal" in on and on & {"label_smoothing", "mixup"}:
            raise ValueError(
                "the focal loss is defined by the probability of one true class, and "
                f"{' and '.join(sorted(on & {'label_smoothing', 'mixup'}))} spread the target over "
                "several"
            )
        if {"mmce", "mixup"} <= on:
            raise ValueError(
                "mmce asks whether a prediction is correct; a mixed image has no answer"
            )
        return self


class TrainSpec(Frozen):
    """Optimisation; fields left out take the method's default, which the report records."""

    epochs: int = Field(default=10, ge=1, le=10_000, title="Epochs")
    batch_size: int = option(
        512,
        "Batch size",
        "Samples per optimiser step, all accumulation steps together",
        ge=2,
        le=65_536,
    )
    accumulation_steps: Positive = option(
        1,
        "Gradient accumulation",
        "Take each batch in this many parts, which saves memory. The loss and its "
        "gradient stay those of the whole batch: contrastive methods, and mmce, encode twice for "
        "that (GradCache), and need batch_norm: frozen where the tower has BatchNorm [Gao et al. "
        "2021]",
    )
    lr: Rate | None = option(
        None, "Learning rate", "The highest, after the warm-up; none: the method's default"
    )
    weight_decay: float | None = option(
        None, "Weight decay", "none: the method's default", ge=0, le=10
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), title="AdamW betas"
    )
    eps: float = Field(default=1e-8, gt=0, title="AdamW epsilon")
    warmup_steps: int | None = option(
        None, "Warm-up steps", "none: 500, or a tenth of the run where that is fewer", ge=0
    )
    min_lr: float = Field(default=0.0, ge=0, title="Final learning rate")
    clip_grad_norm: float | None = option(
        None, "Gradient clip", "L2 norm, applied after un-scaling; none: the method's default", gt=0
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = option(
        "auto", "Precision", "auto: bf16 or fp16 where the device has fast units for it, else fp32"
    )
    device: str = option(
        "auto", "Device", "auto, cpu, cuda, cuda:1, mps", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$"
    )
    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (
        Field(
            default=(0.9, 1.0),
            title="Random crop scale",
            description="Area range of RandomResizedCrop; (1, 1) turns it off",
        )
    )
    horizontal_flip: bool = Field(default=False, title="Random horizontal flip")
    workers: int | None = option(
        None,
        "Loader workers",
        "Processes that decode images, for each GPU; none: up to 8 of the cores that "
        "there are for one, and none beside a model on the CPU",
        ge=0,
        le=128,
    )
    draft_decoding: bool = option(
        False,
        "Draft decoding",
        "Decode training JPEGs that are at least twice as large as the model's input "
        "at 1/2, 1/4 or 1/8 of their size: many times faster for photographs, with slightly other "
        "pixels. Images are judged at full size always",
    )
    cache_images: bool = option(
        False,
        "Cache decoded images",
        "Keep decoded training images in memory after the first epoch, for sets that "
        "fit; the result is the same",
    )
    compile: bool = option(
        False,
        "torch.compile",
        "Compile both towers; takes a minute at the start, and sums may be taken in another order",
    )
    activation_checkpointing: bool = option(
        False,
        "Activation checkpointing",
        "Forget activations and compute them again for the gradient: a third more "
        "time, far less memory, the same gradient",
    )
    adapt: Adapt = option(
        "full",
        "What is trained",
        "full: all that the method trains; lora: a low-rank term W + (α/r)·BA for "
        "every linear map of the towers that it trains, whose own weights stay [Hu et al. 2022]; "
        "head: the classifier alone, or in a contrastive method the projections W_v and W_t and "
        "the logit scale",
    )
    lora_rank: int = option(
        8, "LoRA rank r", "Of each low-rank term; at most what its matrix has", ge=1, le=1024
    )
    lora_alpha: float = option(
        8.0, "LoRA α", "A term counts α/r times: at α = r it is BA itself", gt=0, le=10_000
    )
    batch_norm: Literal["train", "frozen"] = option(
        "train",
        "BatchNorm",
        "train: batch statistics while training, as published (of all GPUs' images "
        "where several share the batch); frozen: the pre-trained running ones, so that student and "
        "teacher see the same. Towers without BatchNorm (ViT) do not differ [calift]",
    )
    confidence: ConfidenceSpec = Field(
        default_factory=ConfidenceSpec, title="Training-time calibration"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, title="Seed")
    log_every_steps: int = Field(default=10, ge=1, title="Log every (steps)")
    checkpoint_every_steps: Positive | None = option(
        None, "Checkpoint every (steps)", "none: once an epoch"
    )
    keep_checkpoints: int = Field(default=1, ge=1, le=100, title="Checkpoints kept")
    spectrum_every_epochs: int = option(
        1,
        "Spectrum every (epochs)",
        "Measure σ_min on validation features during training; 0: only at the end",
        ge=0,
    )
    watch_shifts: int = option(
        0,
        "Watch shifts (images)",
        "Diagnostic: whenever σ_min is measured, so many images of each shift are "
        "predicted too, as curves of their own. Nothing is chosen on them; 0: shifts are not "
        "looked at before the end",
        ge=0,
    )
    trackers: tuple[Literal["wandb", "trackio", "mlflow", "tensorboard"], ...] = option(
        (),
        "Live trackers",
        "Send curves while the run trains, and its numbers at the end, to wandb, trackio, mlflow "
        "or tensorboard, each set up by its own environment; a tracker that fails stops no run",
    )
    keep_features: int = option(
        10_000,
        "Training images to compare with",
        "Image features of so many training images are kept beside the model, so that "
        "a picture can be shown with those that the model finds most alike; where there are more, "
        "those whose ids hash lowest. One pass over them without gradients; 0: none",
        ge=0,
        le=1_000_000,
    )

    initial_run: RunName | None = option(
        None,
        "Begin with the model of a run",
        "A finished run on the same initial model and classes, by its id in the service or its "
        "folder for calift train: its weights are trained on, with new optimiser moments and a "
        "warm-up and cosine of their own over these epochs; what the method compares with the "
        "initial model stays, and a teacher that follows the student begins as the run's model",
    )

    @property
    def freezes_batch_norm(self) -> bool:
        """Whether BatchNorm keeps its statistics: they are weights of a tower that stays, too."""
        return self.batch_norm == "frozen" or self.adapt != "full"

    @model_validator(mode="after")
    def _consistent(self) -> TrainSpec:
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale must be (low, high), got {self.crop_scale}")
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"batch_size must be a multiple of accumulation_steps, got {self.batch_size} and "
                f"{self.accumulation_steps}"
            )
        if self.lr is not None and self.min_lr > self.lr:
            raise ValueError(f"min_lr must be ≤ lr, got {self.min_lr} and {self.lr}")
        return self
