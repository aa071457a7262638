"""A run's settings with nothing left open."""

from dataclasses import dataclass

import torch

from calift_core.data.listing import steps_per_epoch
from calift_core.methods import fitted
from calift_core.models.clip import Clip
from calift_core.models.precision import Precision, resolve_precision
from calift_core.schema.methods import Pretrain
from calift_core.schema.spec import RunSpec
from calift_core.training.schedule import default_warmup


@dataclass(frozen=True)
class TrainingPlan:
    """Every number the loop needs, nothing left open.

    Attributes:
        accumulation_steps: parts that each batch is taken in; the loss stays that of the batch.
        freeze_batch_norm: normalise by the running statistics of the start, which then stay.
    """

    total_steps: int
    steps_per_epoch: int
    lr: float
    min_lr: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    warmup_steps: int
    clip_grad_norm: float | None
    accumulation_steps: int
    precision: Precision
    log_every_steps: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    spec_sha256: str
    freeze_batch_norm: bool = False


def _checkpoint_every(spec: RunSpec, steps_per_epoch: int) -> int:
    """Steps between checkpoints where the spec leaves them open.

    Four an epoch when a small model is pre-trained: somebody's first run waits for it, and what is
    written is little.
    """
    return max(1, steps_per_epoch // 4) if isinstance(spec.method, Pretrain) else steps_per_epoch


def make_plan(spec: RunSpec, n_train: int, device: torch.device, clip: Clip) -> TrainingPlan:
    """Fill in what the spec leaves open."""
    t, method = spec.train, fitted(spec.method, clip)
    per_epoch = steps_per_epoch(n_train, t.batch_size)
    total = 0 if method.solved_at_once else per_epoch * t.epochs
    return TrainingPlan(
        total_steps=total,
        steps_per_epoch=per_epoch,
        lr=method.rate_of(t.adapt) if t.lr is None else t.lr,
        min_lr=t.min_lr,
        weight_decay=method.decay if t.weight_decay is None else t.weight_decay,
        betas=t.betas,
        eps=t.eps,
        warmup_steps=default_warmup(total) if t.warmup_steps is None else t.warmup_steps,
        clip_grad_norm=(
            method.default_clip_grad_norm if t.clip_grad_norm is None else t.clip_grad_norm
        ),
        accumulation_steps=t.accumulation_steps,
        precision=resolve_precision(t.precision, device),
        log_every_steps=t.log_every_steps,
        checkpoint_every_steps=t.checkpoint_every_steps or _checkpoint_every(spec, per_epoch),
        keep_checkpoints=t.keep_checkpoints,
        spec_sha256=spec.content_hash(),
        freeze_batch_norm=t.freezes_batch_norm,
    )
