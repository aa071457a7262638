"""Zero-shot: the pre-trained model with a classifier made of prompts."""

from typing import Any

from torch import Tensor, nn

from calift_core.data.batch import Batch
from calift_core.methods.base import Classifier, Setup, Stateless, zero_shot_classifier


class ZeroShot(Stateless):
    """`logits = s · I Tᵀ` with T the normalised mean of each class's prompt embeddings.

    Radford et al. 2021, section 3.1.4. Nothing is trained.

    Differs from the reference: in nothing that is known.
    """

    def __init__(self, setup: Setup[Any]) -> None:
        super().__init__(setup)
        self.weights = {}

    def trainable(self) -> dict[str, nn.Module]:
        """Nothing."""
        return {}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Nothing to train on."""
        return {}

    def classifier(self) -> Classifier:
        """The prompt ensemble."""
        return zero_shot_classifier(self.clip, self.captions)
