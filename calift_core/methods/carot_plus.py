"""CaRot+: CaRot with the parts that an ablation on ID criteria kept."""

from __future__ import annotations

from torch import Tensor

from calift_core.data.batch import Batch
from calift_core.methods.base import Embedded, RunLength, refuse_sigmoid
from calift_core.methods.carot import ema_teacher
from calift_core.methods.contrastive import Contrastive
from calift_core.methods.teacher import TrajectoryTeacher, average_into
from calift_core.methods.terms import (
    distillation,
    feature_distance,
    info_nce,
    multi_positive_info_nce,
    orthogonality,
    similarity,
)
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.schema.methods import CaRot as CaRotSpec
from calift_core.schema.methods import CarotPlus as CarotPlusSpec
from calift_core.schema.spec import ConfidenceSpec


class CarotPlus(Contrastive):
    """L = L_MCL' + λ_OC · L_OC + λ_SD · L_SD + λ_FD · FD.

    L_MCL' shares its targets among the pairs of a class; the teacher averages the trajectory;
    the finished weights may take a share of the teacher's. With all of that off it is CaRot, step
    for step. L_OC and L_SD are of Oh et al. 2024, section 4; FD and the trajectory teacher of
    TRACER; shared targets of Khosla et al. 2020; the final average of Wortsman et al. 2022.

    Differs from the reference: there is none, for the choice of parts is calift's.
    """

    def __init__(
        self,
        clip: Clip,
        captions: Captions,
        spec: CarotPlusSpec,
        length: RunLength,
        confidence: ConfidenceSpec,
    ) -> None:
        refuse_sigmoid(clip, "carot_plus")
        weights = {
            "contrastive": 1.0,
            "orthogonality": spec.lambda_oc,
            "distillation": spec.lambda_sd,
            "feature": spec.lambda_fd,
        }
        super().__init__(clip, captions, confidence, weights=weights)
        self.spec = spec
        if not (spec.lambda_sd or spec.lambda_fd):
            return
        if spec.teacher == "ema":
            self.teacher = ema_teacher(clip, captions, CaRotSpec(), length)
        else:
            self.teacher = TrajectoryTeacher(
                clip,
                captions,
                total_steps=length.total_steps,
                beta=spec.teacher_beta,
                follow_buffers=True,
            )

    def terms_of(self, embedded: Embedded, batch: Batch) -> dict[str, Tensor]:
        """Every term whose coefficient is not 0."""
        images, texts = embedded.pairs()
        z = self.z_of(embedded)
        smoothing = self.extra.smoothing
        terms = {
            "contrastive": multi_positive_info_nce(z, batch.labels, smoothing=smoothing)
            if self.spec.multi_positive
            else info_nce(z, smoothing=smoothing)
        }
        if self.spec.lambda_oc:
            terms["orthogonality"] = orthogonality(self.clip.image_projection(), "norm")
        if self.teacher is not None:
            images_t, texts_t = self.teacher.embed(batch)
            if self.spec.lambda_sd:
                z_t = similarity(images_t, texts_t, self.teacher.clip.logit_scale)
                terms["distillation"] = distillation(z, z_t)
            if self.spec.lambda_fd:
                terms["feature"] = feature_distance(images, texts, images_t, texts_t)
        return terms | self.extra.terms(z, batch)

    def finish(self) -> None:
        """Average the teacher into the weights, BatchNorm statistics among them."""
        share = self.spec.final_average
        if self.teacher is not None and share:
            average_into(self.clip, self.teacher.clip, share, buffer_share=share)

    def resolved(self) -> dict[str, object]:
        """The teacher's interval in steps; None without one."""
        return {"teacher_update_every": self.teacher and self.teacher.update_every}
