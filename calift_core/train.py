"""The one training loop: a generator of records.

To cancel is to stop iterating, or to let `stop()` return true, which saves a checkpoint first.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from calift_core.checkpoint import TrainState, save_state
from calift_core.errors import (
    CheckpointError,
    InterruptedRunError,
    NanLossError,
    OutOfMemoryError,
    SpecError,
    reason_of,
)
from calift_core.files import sha256_file
from calift_core.gradcache import backward_whole
from calift_core.methods.base import Batch, Method
from calift_core.schedule import learning_rate
from calift_core.schema.records import (
    CheckpointRecord,
    LogRecord,
    MetricsRecord,
    ProgressRecord,
    Record,
    ResumedRecord,
)

log = logging.getLogger(__name__)

Precision = Literal["fp32", "fp16", "bf16"]
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Plan:
    """Every number the loop needs, nothing left open.

    Attributes:
        total_steps: optimiser steps in the run.
        steps_per_epoch: of them, in an epoch.
        accumulation_steps: parts that each batch is taken in; the loss stays that of the batch.
        checkpoint_every_steps: a checkpoint after every so many steps.
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


def resolve_device(name: str) -> torch.device:
    """`auto` is the first of CUDA, MPS and CPU that is here."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_precision(name: str, device: torch.device) -> Precision:
    """`auto` is bf16, else fp16, on a CUDA device, and fp32 elsewhere."""
    if name != "auto":
        return name  # type: ignore[return-value]
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Mixed precision for forward passes; nothing in fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def make_optimizer(method: Method, plan: Plan) -> torch.optim.AdamW:
    """AdamW over every parameter of the method, weight decay on all of them as published."""
    parameters = [p for module in method.trainable().values() for p in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return torch.optim.AdamW(
        parameters,
        lr=plan.lr,
        betas=plan.betas,
        eps=plan.eps,
        weight_decay=plan.weight_decay,
        fused=True,
    )


def train(
    method: Method,
    batches: Callable[[int], Iterable[Batch]],
    plan: Plan,
    *,
    device: torch.device,
    folder: Path,
    resume: TrainState | None = None,
    stop: Callable[[], bool] = lambda: False,
    at_epoch_end: Callable[[int], Iterable[Record]] = lambda step: (),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Record]:
    """Train a method and yield what happens.

    Args:
        method: what is trained, in place.
        batches: start step → the batches from there to the end of the run.
        plan: optimisation settings.
        device: where the model is.
        folder: holds `checkpoint/`.
        resume: state to go on from.
        stop: asked after every step; true saves a checkpoint and raises `InterruptedRunError`.
        at_epoch_end: called with the steps done after each epoch, its records are passed on.
        clock: seconds, from any origin.

    Yields:
        MetricsRecord, ProgressRecord, CheckpointRecord, ResumedRecord, LogRecord. The speed counts
        the steps and their batches alone; the time that is left counts all that stands between.

    Raises:
        SpecError: parts of a batch are not what the method's loss can be made of.
        NanLossError: the loss is not finite; no later checkpoint is written.
        OutOfMemoryError: the device has no memory left.
        InterruptedRunError: `stop` returned true; a checkpoint of that step is saved.
        DiskFullError: a checkpoint does not fit; earlier ones are untouched.
    """
    optimizer = make_optimizer(method, plan)
    scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "fp16")
    start = 0
    if resume is not None:
        _restore(method, optimizer, scaler, resume)
        start = resume.step
        resume = None  # it is as large as the model and its moments, and maps a file
        yield ResumedRecord(step=start)

    def checkpoint(step: int) -> CheckpointRecord:
        state = _capture(method, optimizer, scaler, step, plan.spec_sha256)
        path = save_state(folder / "checkpoint", state, keep=plan.keep_checkpoints)
        return CheckpointRecord(
            step=step,
            path=str(path.relative_to(folder)),
            size_bytes=sum(f.stat().st_size for f in path.iterdir()),
            sha256=sha256_file(path / "manifest.json"),
        )

    yield from make_ready(method, plan)
    began = resumed_at = clock()
    working, seen = 0.0, 0
    for step, batch in enumerate(batches(start), start=start + 1):
        rate = learning_rate(
            step - 1,
            peak=plan.lr,
            total_steps=plan.total_steps,
            warmup_steps=plan.warmup_steps,
            floor=plan.min_lr,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        try:
            values, norm = _step(method, batch, optimizer, scaler, plan, device)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"the device ran out of memory at step {step}: {reason_of(error)}",
                hint=_memory_hint(method),
            ) from None
        extra = method.after_step(step)
        seen += len(batch.labels)
        is_last = step == plan.total_steps
        # The last step's checkpoint lets a run that is stopped while it is evaluated go on there.
        save_now = step % plan.checkpoint_every_steps == 0 or is_last
        epoch_ends = step % plan.steps_per_epoch == 0 or is_last
        stopping = stop()
        log_now = step % plan.log_every_steps == 0 or save_now
        if log_now or epoch_ends or stopping:
            numbers = {name: float(value) for name, value in values.items()}
            numbers |= {"lr": rate, "logit_scale": float(method.clip.logit_scale.detach())}
            # Under fp16 the scaler skips steps whose gradient overflows, to find its scale.
            if norm is not None and (norm.isfinite() or not scaler.is_enabled()):
                numbers["grad_norm"] = float(norm)
            _refuse_nan(numbers, step)
        if save_now or epoch_ends or stopping:
            _refuse_nan_weights(method, step)
        now = clock()  # the numbers above have waited for the device
        working += now - resumed_at
        if log_now:  # a stop logs nothing of its own: the curve is that of a run left alone
            numbers |= extra
            yield MetricsRecord(step=step, epoch=step / plan.steps_per_epoch, values=numbers)
            yield ProgressRecord(
                phase="training",
                step=step,
                total_steps=plan.total_steps,
                samples_per_s=seen / working if working else None,
                eta_s=(plan.total_steps - step) * (now - began) / (step - start),
            )
        if epoch_ends:
            yield from at_epoch_end(step)
            _train_mode(method, plan)
        if save_now or stopping:
            yield checkpoint(step)
        if stopping and not is_last:
            raise InterruptedRunError(
                f"stopped at step {step} of {plan.total_steps}; its checkpoint is saved"
            )
        resumed_at = clock() if log_now or epoch_ends else now


def make_ready(method: Method, plan: Plan) -> Iterator[Record]:
    """Put the model in the mode it is trained in.

    Yields:
        A warning where BatchNorm sees parts of a batch instead of the batch.

    Raises:
        SpecError: it does, and the method's loss is of the whole batch.
    """
    _train_mode(method, plan)
    if plan.accumulation_steps == 1 or not any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        for owned in method.trainable().values()
        for module in owned.modules()
    ):
        return
    told = (
        f"with train.accumulation_steps = {plan.accumulation_steps}, BatchNorm normalises each "
        "part of a batch by that part's own statistics"
    )
    if method.couples:
        raise SpecError(
            f"{told}, so the loss of the whole batch, which this method compares samples over, "
            "cannot be had",
            hint="Set train.batch_norm: frozen, which makes the parts equal to the batch, or "
            "train.accumulation_steps: 1.",
        )
    yield LogRecord(
        level="warning",
        message=f"{told}: not quite the run of a whole batch, which train.batch_norm: frozen is.",
    )


def _memory_hint(method: Method) -> str:
    """What to do when the device's memory is too small."""
    if not method.couples:
        return "Raise train.accumulation_steps, or lower train.batch_size."
    return (
        "Raise train.accumulation_steps: it takes the batch in parts and keeps the loss of the "
        "whole batch. A tower with BatchNorm needs train.batch_norm: frozen for that."
    )


def _train_mode(method: Method, plan: Plan) -> None:
    method.clip.train()
    if plan.freeze_batch_norm:
        for module in method.clip.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _step(
    method: Method,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    plan: Plan,
    device: torch.device,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """One optimiser step. Returns the loss, each term (un-weighted), and the gradient's norm."""
    totals = add_gradient(method, batch, scaler, plan, device)
    norm = None
    if plan.clip_grad_norm is not None:
        scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, plan.clip_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return totals, norm


def add_gradient(
    method: Method,
    batch: Batch,
    scaler: torch.amp.GradScaler,
    plan: Plan,
    device: torch.device,
) -> dict[str, Tensor]:
    """Add the gradient of a batch's loss, scaled, to the parameters. Returns loss and terms."""
    if method.couples and plan.accumulation_steps > 1:
        return _whole(method, batch, scaler, plan, device)
    return _summed(method, batch, scaler, plan, device)


def _summed(
    method: Method,
    batch: Batch,
    scaler: torch.amp.GradScaler,
    plan: Plan,
    device: torch.device,
) -> dict[str, Tensor]:
    """Add up the gradients of a batch's parts. Returns loss and terms.

    A part counts by its share of the batch: the last one may be smaller.
    """
    totals: dict[str, Tensor] = {}
    for part in _split(batch, plan.accumulation_steps):
        share = len(part.labels) / len(batch.labels)
        with autocast(device, plan.precision):
            terms = method.terms(part)
        loss = torch.stack([method.weights[name] * term for name, term in terms.items()]).sum()
        scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
        for name, value in {"loss": loss, **terms}.items():
            totals[name] = totals.get(name, 0) + value.detach() * share
    return totals


def _whole(
    method: Method,
    batch: Batch,
    scaler: torch.amp.GradScaler,
    plan: Plan,
    device: torch.device,
) -> dict[str, Tensor]:
    """The gradient of a loss that compares the samples of a batch. Returns loss and terms."""
    losses: list[Tensor] = []

    def backward(loss: Tensor) -> None:
        losses.append(loss.detach())
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    terms = backward_whole(
        method,
        batch,
        plan.accumulation_steps,
        backward=backward,
        autocast=lambda: autocast(device, plan.precision),
    )
    return {"loss": losses[0]} | {name: term.detach() for name, term in terms.items()}


def _split(batch: Batch, parts: int) -> Iterator[Batch]:
    if parts == 1:
        yield batch
        return
    mixed = batch.mixed_with
    for images, labels, captions, mixed_with in zip(
        batch.images.chunk(parts),
        batch.labels.chunk(parts),
        batch.captions.chunk(parts),
        itertools.repeat(None) if mixed is None else mixed.chunk(parts),
        strict=mixed is not None,
    ):
        yield replace(batch, images=images, labels=labels, captions=captions, mixed_with=mixed_with)


def _refuse_nan(values: dict[str, float], step: int) -> None:
    bad = {name: value for name, value in values.items() if not torch.tensor(value).isfinite()}
    if bad:
        raise NanLossError(
            f"at step {step} these are not finite: "
            + ", ".join(f"{name} = {value}" for name, value in bad.items()),
            hint="Lower the learning rate, lengthen the warm-up, clip gradients or train in fp32.",
        )


def _refuse_nan_weights(method: Method, step: int) -> None:
    """A finite loss can have an infinite gradient, which the loss shows only a step later."""
    for module in method.trainable().values():
        for name, parameter in module.named_parameters():
            if not parameter.isfinite().all():
                raise NanLossError(
                    f"after step {step} the weights of {name} are not finite",
                    hint="Lower the learning rate, lengthen the warm-up, clip gradients or train "
                    "in fp32.",
                )


def _capture(
    method: Method,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    step: int,
    spec_sha256: str,
) -> TrainState:
    rng = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    return TrainState(
        step=step,
        spec_sha256=spec_sha256,
        modules={name: dict(m.state_dict()) for name, m in method.trainable().items()},
        method=method.state(),
        optimizer=optimizer.state_dict(),
        scaler=scaler.state_dict(),
        rng=rng,
        made=method.clip.made.described(),
    )


def _restore(
    method: Method,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    state: TrainState,
) -> None:
    try:
        for name, module in method.trainable().items():
            module.load_state_dict(state.modules[name])
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint of step {state.step} does not fit this version's make of the method: "
            + " ".join(str(error).split())[:300],
            hint="Start the run anew, in a new folder.",
        ) from None
    method.load_state(state.method)
    optimizer.load_state_dict(state.optimizer)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            # A file holds no strides, and AdamW's fused form needs those of the parameter.
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    if state.scaler:
        scaler.load_state_dict(state.scaler)
    torch.set_rng_state(state.rng["cpu"])
    if "cuda" in state.rng and torch.cuda.is_available():
        torch.cuda.set_rng_state(state.rng["cuda"])
