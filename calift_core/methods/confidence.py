"""Training-time calibration: what `train.confidence` adds to a method's loss."""

from dataclasses import replace

import torch
from torch import Tensor

from calift_core.data.batch import Batch
from calift_core.methods.base import Classifier, InitialTower
from calift_core.methods.teacher import Teacher
from calift_core.methods.terms import cross_entropy, distillation, focal, kl, mmce, negative_entropy
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.schema.train import ConfidenceSpec


class ClassLoss:
    """The loss of a classifier's logits: cross-entropy or focal, with what stands beside it.

    Args:
        initial: the initial image tower, needed for distillation from zero-shot.
    """

    def __init__(
        self,
        options: ConfidenceSpec,
        *,
        initial: InitialTower | None = None,
        zero_shot: Classifier | None = None,
    ) -> None:
        self.options, self.initial, self.zero_shot = options, initial, zero_shot
        self.weights: dict[str, float] = {"cross_entropy": 1.0}
        if options.zero_shot_kd:
            self.weights["zero_shot_distillation"] = options.zero_shot_kd
        if options.mmce:
            self.weights["mmce"] = options.mmce
        if options.entropy:
            self.weights["negative_entropy"] = options.entropy

    def terms(
        self, logits: Tensor, batch: Batch, *, initial_features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Each term that is on, by name. `cross_entropy` is the focal loss where that is chosen.

        Args:
            logits: (B, C).
            initial_features: (B, D) of the initial tower, where the method has them already.
        """
        options = self.options
        if options.focal == "off":
            main = cross_entropy(
                logits,
                batch.labels,
                smoothing=options.label_smoothing,
                mixed_with=batch.mixed_with,
                share=batch.share,
            )
        else:
            gamma = options.focal_gamma if options.focal == "constant" else None
            main = focal(logits, batch.labels, gamma)
        terms = {"cross_entropy": main}
        if options.zero_shot_kd and self.zero_shot is not None:
            if initial_features is None and self.initial is not None:
                initial_features = self.initial(batch)
            if initial_features is not None:
                terms["zero_shot_distillation"] = kl(
                    logits,
                    self.zero_shot.logits(initial_features),
                    temperature=options.zero_shot_kd_temperature,
                )
        if options.mmce:
            terms["mmce"] = mmce(logits, batch.labels)
        if options.entropy:
            terms["negative_entropy"] = negative_entropy(logits)
        return terms


class PairLoss:
    """What stands beside a contrastive loss: label smoothing in it, distillation from zero-shot."""

    def __init__(self, options: ConfidenceSpec, clip: Clip, captions: Captions) -> None:
        self.options = options
        self.initial = Teacher(clip, captions) if options.zero_shot_kd else None
        if self.initial is not None:
            self.initial.encode_all()  # it is not saved, so a resumed run must find the same bits
        self.weights: dict[str, float] = (
            {"zero_shot_distillation": options.zero_shot_kd} if options.zero_shot_kd else {}
        )

    @property
    def smoothing(self) -> float:
        """ε over the pairs of a batch."""
        return self.options.label_smoothing

    def terms(self, z: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Each extra term that is on, by name."""
        if self.initial is None:
            return {}
        return {
            "zero_shot_distillation": distillation(
                z, self.initial.similarity(batch), temperature=self.options.zero_shot_kd_temperature
            )
        }


def mix(batch: Batch, alpha: float, generator: torch.Generator) -> Batch:
    """Mixup: each image becomes λ·itself + (1 − λ)·another one, one λ ~ Beta(α, α) a batch.

    Zhang et al. 2018, section 2.

    Args:
        batch: images (B, 3, S, S).
        alpha: α > 0.
    """
    # Beta(α, α) is G/(G + G') of two Gamma(α) draws, and Gamma(α) is Gamma(α + 1)·U^(1/α): their
    # logs stay finite where a small α makes both draws round to 0.
    pair = torch._standard_gamma(torch.full((2,), alpha + 1, dtype=torch.float64), generator)
    logs = pair.log() + torch.rand(2, dtype=torch.float64, generator=generator).log() / alpha
    share = float(torch.sigmoid(logs[0] - logs[1]))
    other = torch.randperm(len(batch), generator=generator).to(batch.labels.device)
    images, labels = batch.images, batch.labels
    if batch.ranks.world > 1:  # the other image may be one of another rank
        images, labels = (batch.ranks.gather(rows, len(batch)) for rows in (images, labels))
        other = batch.ranks.share(other)
    mixed = share * batch.images + (1 - share) * images[other]
    return replace(batch, images=mixed, mixed_with=labels[other], share=share)
