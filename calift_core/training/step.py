"""One optimiser step: the loss's gradient, whole or in parts."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from calift_core.data.batch import Batch
from calift_core.methods.base import Method
from calift_core.models.precision import autocast
from calift_core.training.gradcache import backward_whole
from calift_core.training.plan import TrainingPlan


def parameters_of(method: Method) -> int:
    """How many numbers the optimiser changes."""
    return sum(p.numel() for module in method.trainable().values() for p in module.parameters())


def make_optimizer(method: Method, plan: TrainingPlan) -> torch.optim.AdamW:
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


def optimiser_step(
    method: Method,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    plan: TrainingPlan,
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
    plan: TrainingPlan,
    device: torch.device,
) -> dict[str, Tensor]:
    """Add the gradient of a batch's loss, scaled, to the parameters. Returns loss and terms.

    Ranks that share the batch add up what each of them has: by one sum once it is all there.
    """
    if method.couples_samples and (plan.accumulation_steps > 1 or batch.ranks.world > 1):
        totals = _whole(method, batch, scaler, plan, device)
    else:
        totals = _summed(method, batch, scaler, plan, device)
    if batch.ranks.world > 1:
        parameters = [p for module in method.trainable().values() for p in module.parameters()]
        batch.ranks.add_up([p.grad for p in parameters if p.grad is not None])
    return totals


def _summed(
    method: Method,
    batch: Batch,
    scaler: torch.amp.GradScaler,
    plan: TrainingPlan,
    device: torch.device,
) -> dict[str, Tensor]:
    """Add up the gradients of a batch's parts. Returns loss and terms.

    A part counts by its share of the batch: the last one may be smaller.
    """
    totals: dict[str, Tensor] = {}
    for part in _split(batch.own(), plan.accumulation_steps):
        share = len(part.labels) / len(batch)
        with autocast(device, plan.precision):
            terms = method.terms(part)
        loss = torch.stack([method.weights[name] * term for name, term in terms.items()]).sum()
        scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
        for name, value in {"loss": loss, **terms}.items():
            totals[name] = totals.get(name, 0) + value.detach() * share
    if batch.ranks.world > 1:
        values = torch.stack(list(totals.values()))
        batch.ranks.add_up([values])
        return dict(zip(totals, values, strict=True))
    return totals


def _whole(
    method: Method,
    batch: Batch,
    scaler: torch.amp.GradScaler,
    plan: TrainingPlan,
    device: torch.device,
) -> dict[str, Tensor]:
    """The gradient of a loss that compares the samples of a batch. Returns loss and terms."""

    def backward(loss: Tensor) -> None:
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    terms = backward_whole(
        method,
        batch,
        plan.accumulation_steps,
        backward=backward,
        autocast=lambda: autocast(device, plan.precision),
    )
    values = {name: term.detach() for name, term in terms.items()}
    loss = torch.stack([method.weights[name] * value for name, value in values.items()]).sum()
    return {"loss": loss} | values


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
