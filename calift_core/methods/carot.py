"""CaRot: contrastive fine-tuning, orthogonality of W_v, self-distillation from an EMA teacher."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from calift_core.clip import Captions, Clip
from calift_core.methods.base import (
    Batch,
    Classifier,
    RunLength,
    Stateless,
    encode_captions,
    zero_shot_classifier,
)
from calift_core.methods.flyp import refuse_sigmoid
from calift_core.methods.terms import cross_tower, distillation, info_nce, orthogonality, similarity
from calift_core.schema.methods import CaRot as CaRotSpec

#: Teacher updates in a run when the spec leaves the interval open; 500 steps on ImageNet give 51.
UPDATES_PER_RUN = 50


class Teacher:
    """A moving average of the student: `ψ ← m ψ + (1 − m) θ`, frozen and in eval mode.

    The average covers parameters, the log of the logit scale among them. Buffers (BatchNorm
    statistics) are copied from the student when `follow_buffers` is on.

    Text embeddings change only when the teacher does and captions are a finite set, so each caption
    is encoded at most once between two updates.
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
        self.clip = copy.deepcopy(student).eval().requires_grad_(False)
        self.captions = captions
        self.update_every = update_every
        self.momentum_start, self.momentum_end = momentum_start, momentum_end
        self.ramp_steps = ramp_steps
        self.follow_buffers = follow_buffers
        device = next(student.parameters()).device
        self.texts = torch.zeros(len(captions), student.embed_dim, device=device)  # (C·P, D)
        self.known = torch.zeros(len(captions), dtype=torch.bool, device=device)

    def momentum(self, step: int) -> float:
        """M at a step: linear from start to end over the ramp, then constant."""
        share = 1.0 if self.ramp_steps <= 0 else min(1.0, step / self.ramp_steps)
        return self.momentum_start + (self.momentum_end - self.momentum_start) * share

    @torch.no_grad()
    def maybe_update(self, student: Clip, step: int) -> bool:
        """Average the student in if this is one of the update steps."""
        if step % self.update_every:
            return False
        momentum = self.momentum(step)
        mine: list[Tensor] = list(self.clip.parameters())
        theirs: list[Tensor] = list(student.parameters())
        torch._foreach_mul_(mine, momentum)
        torch._foreach_add_(mine, theirs, alpha=1 - momentum)
        if self.follow_buffers:
            for buffer, source in zip(self.clip.buffers(), student.buffers(), strict=True):
                buffer.copy_(source)
        self.known.zero_()
        return True

    @torch.no_grad()
    def similarity(self, batch: Batch) -> Tensor:
        """Z of the teacher: (B, B)."""
        distinct = torch.unique(batch.captions)
        fresh = distinct[~self.known[distinct]]
        if len(fresh):
            self.texts[fresh] = encode_captions(self.clip, self.captions, fresh)
            self.known[fresh] = True
        images = self.clip.encode_image(batch.images)
        return similarity(images, self.texts[batch.captions], self.clip.logit_scale)

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


class CaRot(Stateless):
    """L = L_MCL + λ_OC · L_OC + λ_SD · L_SD + λ_X · L_X.

    Oh, Lim et al. 2024, section 4. The student is evaluated, with a classifier built afresh from
    its own text tower. With every λ = 0 it is FLYP, step for step.

    Differs from the reference code: W_v of a ModifiedResNet is oriented so that its Gram is (D, D);
    BatchNorm statistics of the teacher follow the student; the teacher's text embeddings are
    encoded once per teacher update; the norm in L_OC has a finite gradient everywhere.
    """

    def __init__(self, clip: Clip, captions: Captions, spec: CaRotSpec, length: RunLength) -> None:
        refuse_sigmoid(clip, "carot")
        self.clip, self.captions, self.spec = clip, captions, spec
        self.weights = {
            "contrastive": 1.0,
            "orthogonality": spec.lambda_oc,
            "distillation": spec.lambda_sd,
            "cross_tower": spec.lambda_x,
        }
        if spec.lambda_oc or spec.lambda_x:
            clip.image_projection()  # refuses here, before anything is trained
        if spec.lambda_x:
            clip.text_projection()
        update_every = spec.teacher_update_every or max(1, length.total_steps // UPDATES_PER_RUN)
        self.teacher = (
            Teacher(
                clip,
                captions,
                update_every=update_every,
                momentum_start=spec.teacher_momentum_start,
                momentum_end=spec.teacher_momentum_end,
                ramp_steps=spec.teacher_ramp_fraction * length.total_steps,
                follow_buffers=spec.teacher_buffers,
            )
            if spec.lambda_sd
            else None
        )

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Every term whose coefficient is not 0."""
        images = self.clip.encode_image(batch.images)
        texts = encode_captions(self.clip, self.captions, batch.captions)
        z = similarity(images, texts, self.clip.logit_scale)
        terms = {"contrastive": info_nce(z)}
        if self.spec.lambda_oc:
            terms["orthogonality"] = orthogonality(
                self.clip.image_projection(), self.spec.orthogonality_form
            )
        if self.teacher is not None:
            terms["distillation"] = distillation(z, self.teacher.similarity(batch))
        if self.spec.lambda_x:
            terms["cross_tower"] = cross_tower(
                self.clip.image_projection(), self.clip.text_projection()
            )
        return terms

    def after_step(self, step: int) -> dict[str, float]:
        """Move the teacher."""
        if self.teacher is None:
            return {}
        self.teacher.maybe_update(self.clip, step)
        return {"teacher_momentum": self.teacher.momentum(step)}

    def classifier(self) -> Classifier:
        """The prompt ensemble of the student."""
        return zero_shot_classifier(self.clip, self.captions)

    def state(self) -> dict[str, Tensor]:
        """The teacher."""
        return {} if self.teacher is None else self.teacher.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take the teacher back."""
        if self.teacher is not None:
            self.teacher.load_state(state)

    def resolved(self) -> dict[str, object]:
        """The teacher's interval."""
        every = None if self.teacher is None else self.teacher.update_every
        return {"teacher_update_every": every}
