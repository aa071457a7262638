"""CaRot: contrastive fine-tuning, orthogonality of W_v, self-distillation from an EMA teacher."""

from __future__ import annotations

from torch import Tensor

from calift_core.clip import Captions, Clip
from calift_core.methods.base import (
    Batch,
    Classifier,
    RunLength,
    Stateless,
    encode_captions,
    refuse_sigmoid,
    zero_shot_classifier,
)
from calift_core.methods.confidence import PairLoss
from calift_core.methods.teacher import EmaTeacher
from calift_core.methods.terms import cross_tower, distillation, info_nce, orthogonality, similarity
from calift_core.schema.methods import CaRot as CaRotSpec
from calift_core.schema.spec import ConfidenceSpec

#: Teacher updates in a run when the spec leaves the interval open; 500 steps on ImageNet give 51.
UPDATES_PER_RUN = 50


class CaRot(Stateless):
    """L = L_MCL + λ_OC · L_OC + λ_SD · L_SD + λ_X · L_X.

    Oh, Lim et al. 2024, section 4. The student is evaluated, with a classifier built afresh from
    its own text tower. With every λ = 0 it is FLYP, step for step.

    Differs from the reference code: W_v of a ModifiedResNet is oriented so that its Gram is (D, D);
    BatchNorm statistics of the teacher follow the student; the teacher's text embeddings are
    encoded once per teacher update; the norm in L_OC has a finite gradient everywhere.
    """

    def __init__(
        self,
        clip: Clip,
        captions: Captions,
        spec: CaRotSpec,
        length: RunLength,
        confidence: ConfidenceSpec,
    ) -> None:
        refuse_sigmoid(clip, "carot")
        self.clip, self.captions, self.spec = clip, captions, spec
        self.extra = PairLoss(confidence, clip, captions)
        self.weights = {
            "contrastive": 1.0,
            "orthogonality": spec.lambda_oc,
            "distillation": spec.lambda_sd,
            "cross_tower": spec.lambda_x,
            **self.extra.weights,
        }
        if spec.lambda_oc or spec.lambda_x:
            clip.image_projection()  # refuses here, before anything is trained
        if spec.lambda_x:
            clip.text_projection()
        update_every = spec.teacher_update_every or max(1, length.total_steps // UPDATES_PER_RUN)
        self.teacher = (
            EmaTeacher(
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
        terms = {"contrastive": info_nce(z, smoothing=self.extra.smoothing)}
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
        return terms | self.extra.terms(z, batch)

    def after_step(self, step: int) -> dict[str, float]:
        """Move the teacher."""
        if self.teacher is None:
            return {}
        self.teacher.update(self.clip, step)
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
