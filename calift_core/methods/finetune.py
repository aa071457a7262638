"""FT: cross-entropy on the image tower and a head that starts from the zero-shot classifier."""

from calift_core.methods.base import RunLength
from calift_core.methods.supervised import HeadScale, Supervised
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.schema.methods import FineTune as FineTuneSpec
from calift_core.schema.train import ConfidenceSpec


class FineTune(Supervised):
    """L = CE(head(I), y); the text tower takes no part.

    Wortsman et al. 2022, section 2.

    Differs from the reference code: gradients are clipped after un-scaling under mixed precision.
    """

    def __init__(
        self,
        clip: Clip,
        captions: Captions,
        spec: FineTuneSpec,
        length: RunLength,
        confidence: ConfidenceSpec,
    ) -> None:
        scale: HeadScale = "learned" if spec.head_scale == "learned" else "folded"
        super().__init__(clip, captions, confidence, scale=scale)
