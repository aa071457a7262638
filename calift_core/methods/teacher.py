"""Frozen models beside the student: the initial one, a moving average, a trajectory average."""

import copy

import numpy as np
import torch
from torch import Tensor

from calift_core.data.batch import Batch
from calift_core.data.ranks import ALONE
from calift_core.methods.base import encode_captions
from calift_core.methods.terms import similarity
from calift_core.models.adapters import plain_tensors
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip


@torch.no_grad()
def average_into(target: Clip, source: Clip, share: float, *, buffer_share: float) -> None:
    """`target ← target + share · (source − target)`, over parameters and, separately, buffers.

    What an adapter does to the source's matrices is part of them.

    Buffers are those that a checkpoint holds (an attention mask is none of them); integer ones
    (counts of batches) are copied, unless buffers are left alone.
    """
    mine: list[Tensor] = list(target.parameters())
    theirs = plain_tensors(source, target)  # by name: a merged adapter leaves another order
    torch._foreach_lerp_(mine, theirs, share)
    if buffer_share:
        for buffer, other in zip(target.buffers(), source.buffers(), strict=True):
            if buffer.is_floating_point() and buffer_share < 1:
                # Equal entries stay: there is no number between two −∞ of an attention mask.
                between = torch.lerp(buffer, other, buffer_share)
                buffer.copy_(torch.where(buffer == other, buffer, between))
            else:
                buffer.copy_(other)


class Teacher:
    """A copy of the student as it was at the start: frozen, in eval mode.

    Text embeddings change only when the teacher does and captions are a finite set, so each caption
    is encoded at most once between two updates.

    Attributes:
        update_every: optimiser steps from one update to the next; None: it never changes.
    """

    update_every: int | None = None

    def __init__(self, student: Clip, captions: Captions) -> None:
        self.clip = copy.deepcopy(student).eval().requires_grad_(False)
        self.captions = captions
        device = next(student.parameters()).device
        self.texts = torch.zeros(len(captions), student.embed_dim, device=device)  # (C·P, D)
        self.known = torch.zeros(len(captions), dtype=torch.bool)  # on the CPU: it is branched on

    def begin_with(self, student: Clip) -> None:
        """Take a student that was trained before; a teacher that never changes stays as it is."""
        if self.update_every is not None:
            self._average(student, 1.0, buffer_share=1.0)

    def update(self, student: Clip, step: int) -> bool:
        """Take the student in after optimiser step `step` (from 1); true if the teacher moved."""
        return False

    def logged(self, step: int) -> dict[str, float]:
        """What a run's curves show of it after optimiser step `step`."""
        return {}

    @torch.no_grad()
    def encode_all(self) -> None:
        """Encode every caption now: which ones share a forward pass changes the last bits."""
        every = torch.arange(len(self.captions), device=self.texts.device)
        for ids in torch.split(every, 512):
            self.texts[ids] = encode_captions(self.clip, self.captions, ids)
        self.known.fill_(True)

    @torch.no_grad()
    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """I and T of the teacher: (B, D) each."""
        ids = batch.captions.cpu()
        distinct = torch.unique(ids)
        fresh = distinct[~self.known[distinct]]
        device = self.texts.device
        if len(fresh):
            # Every rank knows the same captions, so each can take a part of those that are new.
            ranks = batch.ranks if len(fresh) >= batch.ranks.world else ALONE
            new = [
                encode_captions(self.clip, self.captions, part)
                for part in ranks.share(fresh).chunk(batch.parts)
            ]
            self.texts[fresh.to(device)] = ranks.gather(torch.cat(new), len(fresh))
            self.known[fresh] = True
        texts = self.texts[ids.to(device, non_blocking=True)]
        return batch.frozen(self.clip.encode_image), texts

    @torch.no_grad()
    def similarity(self, batch: Batch) -> Tensor:
        """Z of the teacher, with its own scale: (B, B)."""
        images, texts = self.embed(batch)
        return similarity(images, texts, self.clip.logit_scale)

    @torch.no_grad()
    def _average(self, student: Clip, share: float, *, buffer_share: float) -> None:
        """`ψ ← ψ + share · (θ − ψ)`, over parameters, the log of the logit scale among them."""
        average_into(self.clip, student, share, buffer_share=buffer_share)
        self.known.zero_()

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers and encoded captions."""
        tensors = {f"net.{name}": t for name, t in self.clip.net.state_dict().items()}
        return tensors | {"texts": self.texts, "known": self.known}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take `state` back."""
        prefix = "net."
        net = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        self.clip.net.load_state_dict(net)
        self.texts.copy_(state["texts"])
        self.known.copy_(state["known"])


class EmaTeacher(Teacher):
    """A moving average of the student: `ψ ← m ψ + (1 − m) θ`, every `update_every` steps.

    Buffers (BatchNorm statistics) are copied from the student when `follow_buffers` is on. Oh et
    al. 2024, section 4.2; the momentum rises linearly and then stays.
    """

    def __init__(
        self,
        student: Clip,
        captions: Captions,
        *,
        update_every: int,
        momentum_start: float,
        momentum_end: float,
        ramp_steps: float,
        follow_buffers: bool,
    ) -> None:
        super().__init__(student, captions)
        self.update_every: int = update_every
        self.momentum_start, self.momentum_end = momentum_start, momentum_end
        self.ramp_steps = ramp_steps
        self.follow_buffers = follow_buffers

    def momentum(self, step: int) -> float:
        """The momentum m at a step: linear from start to end over the ramp, then constant."""
        share = 1.0 if self.ramp_steps <= 0 else min(1.0, step / self.ramp_steps)
        return self.momentum_start + (self.momentum_end - self.momentum_start) * share

    def update(self, student: Clip, step: int) -> bool:
        """Average the student in if this is one of the update steps."""
        if step % self.update_every:
            return False
        self._average(
            student, 1 - self.momentum(step), buffer_share=1.0 if self.follow_buffers else 0.0
        )
        return True

    def logged(self, step: int) -> dict[str, float]:
        """The momentum."""
        return {"teacher_momentum": self.momentum(step)}


class TrajectoryTeacher(Teacher):
    """A weighted mean of every student iterate, the initial model among them.

    `ψ ← (ψ + r·θ)/(1 + r)` with `r = w_k / Σ_{j<k} w_j` after step k, and `w_k` the density of
    Beta(β, β) at `(k + ½)/(K + 1)`: after step k the teacher is `Σ_{j≤k} w_j θ_j / Σ_{j≤k} w_j`.
    With β < 1 the first and the last iterates weigh most, so the zero-shot anchor stays. TRACER.

    BatchNorm statistics are part of an iterate and are averaged with its weights.
    """

    update_every = 1

    def __init__(
        self,
        student: Clip,
        captions: Captions,
        *,
        total_steps: int,
        beta: float,
        follow_buffers: bool,
    ) -> None:
        super().__init__(student, captions)
        self.follow_buffers = follow_buffers
        at = (np.arange(total_steps + 1) + 0.5) / (total_steps + 1)
        # The density without its constant: only ratios count.
        self.iterate_weights = (at * (1 - at)) ** (beta - 1)  # (K + 1,)
        self.sums = np.cumsum(self.iterate_weights)

    def update(self, student: Clip, step: int) -> bool:
        """Average the iterate of step k in; r/(1 + r) is `w_k / Σ_{j≤k} w_j`."""
        share = float(self.iterate_weights[step] / self.sums[step])
        self._average(student, share, buffer_share=share if self.follow_buffers else 0.0)
        return True
