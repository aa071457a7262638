"""FLYP with a static functional anchor: the initial model as a teacher that never moves."""

from torch import Tensor

from calift_core.data.batch import Batch
from calift_core.methods.base import Embedded, Setup, refuse_sigmoid
from calift_core.methods.contrastive import Contrastive
from calift_core.methods.teacher import Teacher
from calift_core.methods.terms import distillation, info_nce
from calift_core.schema.methods import Anchored as AnchoredSpec


class Anchored(Contrastive):
    """L = L_MCL + λ₀ · [KL(p(Z₀) ‖ p(Z)) + KL(p(Z₀ᵀ) ‖ p(Zᵀ))].

    Z₀ is the initial model's, with its own scale. With λ₀ = 0 it is FLYP, step for step; at the
    first step the anchor pulls nowhere. [calift]

    Differs from the reference, which is L_SD of CaRot: the teacher stays. A moving average follows
    the student until there is nothing left to distil.
    """

    def __init__(self, setup: Setup[AnchoredSpec]) -> None:
        clip, captions, spec = setup.clip, setup.captions, setup.spec
        refuse_sigmoid(clip, "anchored")
        weights = {"contrastive": 1.0, "anchor": spec.lambda_0}
        super().__init__(setup, weights=weights)
        if spec.lambda_0:
            self.teacher = Teacher(clip, captions)

    def terms_of(self, embedded: Embedded, batch: Batch) -> dict[str, Tensor]:
        """The contrastive loss, and the anchor if it has a weight."""
        z = self.z_of(embedded)
        terms = {"contrastive": info_nce(z, smoothing=self.extra.smoothing)}
        if self.teacher is not None:
            terms["anchor"] = distillation(z, self.teacher.similarity(batch))
        return terms | self.extra.terms(z, batch)
