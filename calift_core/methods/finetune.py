"""FT: cross-entropy on the image tower and a head that starts from the zero-shot classifier."""

from calift_core.methods.base import Setup
from calift_core.methods.supervised import HeadScale, Supervised
from calift_core.schema.methods import FineTune as FineTuneSpec


class FineTune(Supervised):
    """L = CE(head(I), y); the text tower takes no part.

    Wortsman et al. 2022, section 2.

    Differs from the reference code: gradients are clipped after un-scaling under mixed precision.
    """

    def __init__(self, setup: Setup[FineTuneSpec]) -> None:
        scale: HeadScale = "learned" if setup.spec.head_scale == "learned" else "folded"
        super().__init__(setup, scale=scale)
