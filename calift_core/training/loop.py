"""The one training loop: a generator of records.

To cancel is to stop iterating, or to let `stop()` return true, which saves a checkpoint first.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from calift_core.data.batch import Batch
from calift_core.data.ranks import ALONE, Ranks
from calift_core.errors import (
    CheckpointError,
    InterruptedRunError,
    NanLossError,
    OutOfMemoryError,
    SpecError,
    reason_of,
)
from calift_core.files import sha256_file
from calift_core.methods.base import Method
from calift_core.schema.records import (
    CheckpointRecord,
    LogRecord,
    MetricsRecord,
    ProgressRecord,
    Record,
    ResumedRecord,
)
from calift_core.training.checkpoint import TrainState, save_state
from calift_core.training.plan import TrainingPlan
from calift_core.training.schedule import learning_rate
from calift_core.training.step import make_optimizer, optimiser_step


def train(
    method: Method,
    batches: Callable[[int], Iterable[Batch]],
    plan: TrainingPlan,
    *,
    device: torch.device,
    folder: Path,
    resume: TrainState | None = None,
    stop: Callable[[], bool] = lambda: False,
    at_epoch_end: Callable[[int], Iterable[Record]] = lambda step: (),
    ranks: Ranks = ALONE,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Record]:
    """Train a method and yield what happens.

    Args:
        batches: start step → the batches from there to the end of the run.
        folder: holds `checkpoint/`.
        stop: asked after every step; true saves a checkpoint and raises `InterruptedRunError`.
        at_epoch_end: called with the steps done after each epoch, its records are passed on.
        ranks: who trains with this process. Rank 0 writes checkpoints, all of them make the same
            steps, log the same numbers and stop at the same step.
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
        note = _restore(method, optimizer, scaler, resume, ranks)
        start = resume.step
        resume = None  # it is as large as the model and its moments, and maps a file
        yield ResumedRecord(step=start)
        if note:
            yield LogRecord(message=note)

    yield from prepare_for_training(method, plan)
    ranks.copy_from_first(_tensors_of(method))
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
            values, norm = optimiser_step(method, batch, optimizer, scaler, plan, device)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"the device ran out of memory at step {step}: {reason_of(error)}",
                hint=_memory_hint(method),
            ) from None
        extra = method.after_step(step)
        seen += len(batch)
        is_last = step == plan.total_steps
        # The last step's checkpoint lets a run that is stopped while it is evaluated go on there.
        save_now = step % plan.checkpoint_every_steps == 0 or is_last
        epoch_ends = step % plan.steps_per_epoch == 0 or is_last
        stopping = ranks.any(stop())
        log_now = step % plan.log_every_steps == 0 or save_now
        if log_now or epoch_ends or stopping:
            numbers = _numbers(method, values, rate, norm, scaler)
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
            rng = _random_states(ranks)
            if ranks.first:
                state = _capture(method, optimizer, scaler, step, plan.spec_sha256, rng)
                yield _saved(state, folder, plan)
            ranks.wait()  # nobody ends before the checkpoint is there
        if stopping and not is_last:
            raise InterruptedRunError(
                f"stopped at step {step} of {plan.total_steps}; its checkpoint is saved"
            )
        resumed_at = clock() if log_now or epoch_ends else now


def prepare_for_training(method: Method, plan: TrainingPlan) -> Iterator[Record]:
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
    prefix = (
        f"with train.accumulation_steps = {plan.accumulation_steps}, BatchNorm normalises each "
        "part of a batch by that part's own statistics"
    )
    if method.couples_samples:
        raise SpecError(
            f"{prefix}, so the loss of the whole batch, which this method compares samples over, "
            "cannot be had",
            hint="Set train.batch_norm: frozen, which makes the parts equal to the batch, or "
            "train.accumulation_steps: 1.",
        )
    yield LogRecord(
        level="warning",
        message=f"{prefix}: not quite the run of a whole batch, which train.batch_norm: frozen is.",
    )


def _memory_hint(method: Method) -> str:
    if not method.couples_samples:
        return "Raise train.accumulation_steps, or lower train.batch_size."
    return (
        "Raise train.accumulation_steps: it takes the batch in parts and keeps the loss of the "
        "whole batch. A tower with BatchNorm needs train.batch_norm: frozen for that."
    )


def _train_mode(method: Method, plan: TrainingPlan) -> None:
    method.clip.train()
    if plan.freeze_batch_norm:
        for module in method.clip.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _numbers(
    method: Method,
    values: Mapping[str, Tensor],
    rate: float,
    norm: Tensor | None,
    scaler: torch.amp.GradScaler,
) -> dict[str, float]:
    """What the curves show of a step: loss, terms, rate, logit scale, the gradient's norm."""
    numbers = {name: float(value) for name, value in values.items()}
    numbers |= {"lr": rate, "logit_scale": float(method.clip.logit_scale.detach())}
    # Under fp16 the scaler skips steps whose gradient overflows, to find its scale.
    if norm is not None and (norm.isfinite() or not scaler.is_enabled()):
        numbers["grad_norm"] = float(norm)
    return numbers


def _saved(state: TrainState, folder: Path, plan: TrainingPlan) -> CheckpointRecord:
    """Save a state under `folder/checkpoint`; the record that says so."""
    path = save_state(folder / "checkpoint", state, keep=plan.keep_checkpoints)
    return CheckpointRecord(
        step=state.step,
        path=str(path.relative_to(folder)),
        size_bytes=sum(f.stat().st_size for f in path.iterdir()),
        sha256=sha256_file(path / "manifest.json"),
    )


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
    rng: dict[str, Tensor],
) -> TrainState:
    return TrainState(
        step=step,
        spec_sha256=spec_sha256,
        modules={name: dict(m.state_dict()) for name, m in method.trainable().items()},
        method=method.state(),
        optimizer=optimizer.state_dict(),
        scaler=scaler.state_dict(),
        rng=rng,
        model_config=method.clip.model_config.described(),
    )


def _random_states(ranks: Ranks) -> dict[str, Tensor]:
    """The generators of all ranks: `cpu` and `cuda` of rank 0, `cpu.1` and so on of the others."""
    mine = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        mine["cuda"] = torch.cuda.get_rng_state()
    return {
        name if rank == 0 else f"{name}.{rank}": tensor
        for rank, states in enumerate(ranks.all_gather(mine))
        for name, tensor in states.items()
    }


def _tensors_of(method: Method) -> list[Tensor]:
    modules = [m for module in method.trainable().values() for m in module.state_dict().values()]
    return [*modules, *method.state().values()]


def _restore(
    method: Method,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    state: TrainState,
    ranks: Ranks,
) -> str:
    """Take a state back; a sentence where this number of ranks is another than the one it had."""
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
    mine = "" if ranks.first else f".{ranks.rank}"
    if f"cpu{mine}" in state.rng:
        torch.set_rng_state(state.rng[f"cpu{mine}"])
    if f"cuda{mine}" in state.rng and torch.cuda.is_available():
        torch.cuda.set_rng_state(state.rng[f"cuda{mine}"])
    before = 1 + sum(name.startswith("cpu.") for name in state.rng)
    if before == ranks.world:
        return ""
    return (
        f"The checkpoint is of a run on {before} processes, which goes on with {ranks.world}: the "
        "same batches and the same loss, with other random numbers for dropout, where a tower has "
        "it."
    )
