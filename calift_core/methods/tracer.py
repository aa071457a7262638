"""TRACER: contrastive fine-tuning with four distillations from a trajectory-averaged teacher."""

from torch import Tensor

from calift_core.data.batch import Batch
from calift_core.methods.base import Embedded, Setup, refuse_sigmoid
from calift_core.methods.contrastive import Contrastive
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
from calift_core.models.clip import Clip
from calift_core.schema.methods import Tracer as TracerSpec
from calift_core.schema.methods.base import Tower

#: Width of ViT-L; ViT-B has 768.
LARGE_WIDTH = 1024


class Tracer(Contrastive):
    """L = L_MCL + λ_X·L_X + λ_SD·(α_FD·FD + α_CRD·CRD + α_ICL·ICL + α_X·CrossKD).

    TRACER, ICML 2026. The teacher is the Beta(β, β)-weighted average of the trajectory, updated
    every step; CRD is half of CaRot's L_SD. The student is evaluated. Its scripts have a setting
    for each tower, and α_FD = 2000 where its algorithm writes 1: `preset` says which is on.

    Differs from the reference code: α_FD grows with the embedding width, over which FD is a mean,
    so that the published pull is the same at any width; at the published towers nothing changes.
    """

    def __init__(self, setup: Setup[TracerSpec]) -> None:
        clip, captions, spec, length = setup.clip, setup.captions, setup.spec, setup.length
        refuse_sigmoid(clip, "tracer")
        self.spec = spec = fitted(spec, clip)
        lambda_sd = spec.lambda_sd or 0.0
        distillations = {
            "feature": lambda_sd * (spec.alpha_fd or 0.0),
            "relational": lambda_sd * spec.alpha_crd,
            "interactive": lambda_sd * spec.alpha_icl,
            "cross_distillation": lambda_sd * spec.alpha_cross,
        }
        weights = {"contrastive": 1.0, "cross_tower": spec.lambda_x or 0.0, **distillations}
        super().__init__(setup, weights=weights)
        if any(distillations.values()):
            self.teacher = TrajectoryTeacher(
                clip,
                captions,
                total_steps=length.total_steps,
                beta=spec.teacher_beta,
                follow_buffers=spec.teacher_buffers,
            )

    def terms_of(self, embedded: Embedded, batch: Batch) -> dict[str, Tensor]:
        """Every term whose coefficient is not 0."""
        scale = self.clip.logit_scale
        images, texts = embedded.pairs()
        z = self.z_of(embedded)
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

    def resolved(self) -> dict[str, object]:
        """The preset and what it gave."""
        names = ("preset", "lambda_sd", "lambda_x", "alpha_fd")
        return {name: getattr(self.spec, name) for name in names}


def fitted(spec: TracerSpec, clip: Clip) -> TracerSpec:
    """The options with the preset filled in that fits a model."""
    return spec.fitted(_nearest(clip), clip.embed_dim)


def _nearest(clip: Clip) -> Tower:
    """The published tower that a model's image tower is nearest to."""
    if clip.is_convolutional:
        return "RN50"
    visual = clip.net.visual
    trunk = getattr(visual, "trunk", None)  # timm
    width = visual.conv1.out_channels if trunk is None else trunk.num_features
    return "ViT-L-14" if width >= LARGE_WIDTH else "ViT-B-16"
