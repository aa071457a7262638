"""What methods that contrast images with captions share."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from calift_core.data.batch import Batch
from calift_core.errors import UnsupportedTowerError
from calift_core.methods.base import (
    Classifier,
    Embedded,
    Setup,
    Stateless,
    encode_captions,
    zero_shot_classifier,
)
from calift_core.methods.confidence import PairLoss
from calift_core.methods.teacher import Teacher
from calift_core.methods.terms import similarity
from calift_core.models.adapters import parameter_of
from calift_core.models.clip import Clip


class Contrastive(Stateless):
    """Both towers are trained on Z = s · I Tᵀ; the classifier is made of prompts afterwards.

    Args:
        weights: coefficients of the method's own terms, by name.

    Attributes:
        extra: what `train.confidence` adds.
        teacher: a frozen model that the student is distilled from; None unless the method sets it.
            It is all that a resumed run needs beside the weights.

    Raises:
        UnsupportedTowerError: a term with a coefficient is not defined for this model. That is
            said here, before anything is trained.
    """

    def __init__(self, setup: Setup[Any], *, weights: dict[str, float]) -> None:
        super().__init__(setup)
        clip = self.clip
        self.extra = PairLoss(setup.confidence, clip, self.captions)
        self.weights = weights | self.extra.weights
        self.teacher: Teacher | None = None
        if weights.get("orthogonality"):
            clip.image_projection()
        if weights.get("cross_tower"):
            require_cross_tower(clip)

    @property
    def couples_samples(self) -> bool:
        """Each sample is contrasted with all others."""
        return True

    def trained_with(self, adapt: Literal["lora", "head"]) -> dict[str, nn.Parameter]:
        """The logit scale, and a sigmoid's bias; with `head` both projections W_v and W_t too."""
        net = self.clip.net
        found: dict[str, nn.Parameter] = {"logit_scale": net.logit_scale}
        if self.clip.is_sigmoid:
            found["logit_bias"] = net.logit_bias
        if adapt == "head":
            for projection in (self.clip.image_projection(), self.clip.text_projection()):
                found |= [parameter_of(net, projection)]
        return found

    def begin_with(self, net: Mapping[str, Tensor], classifier: Classifier) -> None:
        """Take the towers, which the classifier is made of; a teacher that follows them too."""
        super().begin_with(net, classifier)
        if self.teacher is not None:
            self.teacher.begin_with(self.clip)

    def encode(self, batch: Batch) -> Embedded:
        """Images, and captions each distinct one once."""
        images = self.clip.encode_image(batch.images)
        return Embedded(images, encode_captions(self.clip, self.captions, batch.captions))

    def z_of(self, embedded: Embedded) -> Tensor:
        """Z = s · I Tᵀ of the student: (B, B), images in rows, captions in columns."""
        return similarity(*embedded.pairs(), self.clip.logit_scale)

    def after_step(self, step: int) -> dict[str, float]:
        """Move the teacher towards the student."""
        if self.teacher is None:
            return {}
        self.teacher.update(self.clip, step)
        return self.teacher.logged(step)

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


def require_cross_tower(clip: Clip) -> None:
    """Refuse, before anything is trained, a model that ‖W_v W_tᵀ‖ is not defined for.

    Raises:
        UnsupportedTowerError: a tower ends in something else than a linear map.
    """
    try:
        clip.image_projection()
        clip.text_projection()
    except UnsupportedTowerError as error:
        raise UnsupportedTowerError(
            error.message,
            hint="The cross-tower penalty needs both projections: method.lambda_x: 0 leaves it "
            "out.",
        ) from None
