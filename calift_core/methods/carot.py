"""CaRot: contrastive fine-tuning, orthogonality of W_v, self-distillation from an EMA teacher."""

from torch import Tensor

from calift_core.data.batch import Batch
from calift_core.methods.base import Embedded, RunLength, Setup, refuse_sigmoid
from calift_core.methods.contrastive import Contrastive
from calift_core.methods.teacher import EmaTeacher
from calift_core.methods.terms import cross_tower, distillation, info_nce, orthogonality
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.schema.methods import CaRot as CaRotSpec

#: Teacher updates in a run when the spec leaves the interval open; 500 steps on ImageNet give 51.
UPDATES_PER_RUN = 50


class CaRot(Contrastive):
    """L = L_MCL + λ_OC · L_OC + λ_SD · L_SD + λ_X · L_X.

    Oh, Lim et al. 2024, section 4. The student is evaluated, with a classifier built afresh from
    its own text tower. With every λ = 0 it is FLYP, step for step. L_X is not in the paper's
    equation but in its released scripts and in the command of its main result, with λ_X = 0.05.

    Differs from the reference code: W_v of a ModifiedResNet is oriented so that its Gram is (D, D);
    BatchNorm statistics of the teacher follow the student; the teacher's text embeddings are
    encoded once per teacher update; the norm in L_OC has a finite gradient everywhere.
    """

    def __init__(self, setup: Setup[CaRotSpec]) -> None:
        clip, captions, spec, length = setup.clip, setup.captions, setup.spec, setup.length
        refuse_sigmoid(clip, "carot")
        weights = {
            "contrastive": 1.0,
            "orthogonality": spec.lambda_oc,
            "distillation": spec.lambda_sd,
            "cross_tower": spec.lambda_x,
        }
        super().__init__(setup, weights=weights)
        self.spec = spec
        if spec.lambda_sd:
            self.teacher = ema_teacher(clip, captions, spec, length)

    def terms_of(self, embedded: Embedded, batch: Batch) -> dict[str, Tensor]:
        """Every term whose coefficient is not 0."""
        z = self.z_of(embedded)
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

    def resolved(self) -> dict[str, object]:
        """The teacher's interval in steps; None without one."""
        return {"teacher_update_every": self.teacher and self.teacher.update_every}


def ema_teacher(clip: Clip, captions: Captions, spec: CaRotSpec, length: RunLength) -> EmaTeacher:
    """The teacher of Oh et al. 2024, section 4.2, at the settings of `spec`."""
    return EmaTeacher(
        clip,
        captions,
        update_every=spec.teacher_update_every or max(1, length.total_steps // UPDATES_PER_RUN),
        momentum_start=spec.teacher_momentum_start,
        momentum_end=spec.teacher_momentum_end,
        ramp_steps=spec.teacher_ramp_fraction * length.total_steps,
        follow_buffers=spec.teacher_buffers,
    )
