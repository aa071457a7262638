"""TRACER: contrastive fine-tuning with four distillations from a trajectory-averaged teacher."""

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
from calift_core.methods.teacher import TrajectoryTeacher
from calift_core.methods.terms import (
    cross_distillation,
    cross_tower,
    distillation,
    feature_distance,
    info_nce,
    interactive,
    similarity,
)
from calift_core.schema.methods import Tracer as TracerSpec
from calift_core.schema.spec import ConfidenceSpec


class Tracer(Stateless):
    """L = L_MCL + λ_X·L_X + λ_SD·(α_FD·FD + α_CRD·CRD + α_ICL·ICL + α_X·CrossKD).

    TRACER, ICML 2026. The teacher is the Beta(β, β)-weighted average of the trajectory, updated
    every step; CRD is half of CaRot's L_SD. The student is evaluated. Its code has α_FD = 2000
    where its algorithm writes 1: `preset` says which is on.
    """

    def __init__(
        self,
        clip: Clip,
        captions: Captions,
        spec: TracerSpec,
        length: RunLength,
        confidence: ConfidenceSpec,
    ) -> None:
        refuse_sigmoid(clip, "tracer")
        self.clip, self.captions, self.spec = clip, captions, spec
        self.extra = PairLoss(confidence, clip, captions)
        self.weights = {
            "contrastive": 1.0,
            "cross_tower": spec.lambda_x,
            "feature": spec.lambda_sd * spec.feature_weight,
            "relational": spec.lambda_sd * spec.alpha_crd,
            "interactive": spec.lambda_sd * spec.alpha_icl,
            "cross_distillation": spec.lambda_sd * spec.alpha_cross,
            **self.extra.weights,
        }
        if spec.lambda_x:
            clip.image_projection()
            clip.text_projection()
        distils = any(
            self.weights[name]
            for name in ("feature", "relational", "interactive", "cross_distillation")
        )
        self.teacher = (
            TrajectoryTeacher(
                clip,
                captions,
                total_steps=length.total_steps,
                beta=spec.teacher_beta,
                follow_buffers=spec.teacher_buffers,
            )
            if distils
            else None
        )

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Every term whose coefficient is not 0."""
        scale = self.clip.logit_scale
        images = self.clip.encode_image(batch.images)
        texts = encode_captions(self.clip, self.captions, batch.captions)
        z = similarity(images, texts, scale)
        terms = {"contrastive": info_nce(z, smoothing=self.extra.smoothing)}
        if self.weights["cross_tower"]:
            terms["cross_tower"] = cross_tower(
                self.clip.image_projection(), self.clip.text_projection()
            )
        if self.teacher is not None:
            images_t, texts_t = self.teacher.embed(batch)
            z_t = similarity(images_t, texts_t, self.teacher.clip.logit_scale)
            if self.weights["feature"]:
                terms["feature"] = feature_distance(images, texts, images_t, texts_t)
            if self.weights["relational"]:
                terms["relational"] = distillation(z, z_t) / 2
            if self.weights["interactive"]:
                terms["interactive"] = interactive(images, texts, images_t, texts_t, scale)
            if self.weights["cross_distillation"]:
                terms["cross_distillation"] = cross_distillation(
                    images, texts, images_t, texts_t, scale, z_t
                )
        return terms | self.extra.terms(z, batch)

    def after_step(self, step: int) -> dict[str, float]:
        """Take the iterate into the teacher."""
        if self.teacher is not None:
            self.teacher.update(self.clip, step)
        return {}

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
        """α_FD as the preset gives it."""
        return {"alpha_fd": self.spec.feature_weight}
