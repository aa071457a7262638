"""What methods that contrast images with captions share."""

from __future__ import annotations

from torch import Tensor

from calift_core.data.batch import Batch
from calift_core.errors import UnsupportedTowerError
from calift_core.methods.base import (
    Classifier,
    Embedded,
    Stateless,
    encode_captions,
    zero_shot_classifier,
)
from calift_core.methods.confidence import PairLoss
from calift_core.methods.teacher import Teacher
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.schema.spec import ConfidenceSpec


class Contrastive(Stateless):
    """Both towers are trained, and a classifier is made of prompts from the tuned text tower.

    Attributes:
        extra: what `train.confidence` adds.
        teacher: a frozen model that the student is distilled from, where a method has one. It is
            all that a resumed run needs beside the weights.
    """

    def __init__(self, clip: Clip, captions: Captions, confidence: ConfidenceSpec) -> None:
        self.clip, self.captions = clip, captions
        self.extra = PairLoss(confidence, clip, captions)
        self.teacher: Teacher | None = None

    @property
    def couples(self) -> bool:
        """Each sample is contrasted with all others."""
        return True

    def encode(self, batch: Batch) -> Embedded:
        """Images, and captions each distinct one once."""
        images = self.clip.encode_image(batch.images)
        return Embedded(images, encode_captions(self.clip, self.captions, batch.captions))

    def after_step(self, step: int) -> dict[str, float]:
        """Take the student into the teacher."""
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


def demand_cross_tower(clip: Clip) -> None:
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
