"""ZS-Norm: cross-entropy of logits that are stretched to the range of the initial model's."""

from torch import Tensor

from calift_core.data.batch import Batch
from calift_core.methods.base import Embedded, Setup, zero_shot_classifier
from calift_core.methods.supervised import Supervised
from calift_core.methods.terms import to_range
from calift_core.schema.methods import ZsNorm as ZsNormSpec


class ZsNorm(Supervised):
    """L = CE(z', y), z' = (z − min z)·(max z₀ − min z₀)/(max z − min z) + min z₀.

    Murugesan et al. 2024, section 4: logits z = head(I) as in FT, z₀ of the initial model on the
    same image. How far apart an image's logits are is then nothing that training can change, so it
    gains nothing by raising confidence. A step costs a pass of the initial image tower more than
    FT's. The finished model is evaluated on z as it is; `sals` is z' when it is evaluated.

    Differs from the reference: there it trains adapters and prompts, here the image tower and a
    head, as the other methods do. Written from the equation; how its authors' trainer treats the
    gradient of the ends of a range was not read, here it flows.
    """

    def __init__(self, setup: Setup[ZsNormSpec]) -> None:
        super().__init__(setup, keep_initial=True)
        self.zero_shot = zero_shot_classifier(self.clip, self.captions)

    def terms_of(self, embedded: Embedded, batch: Batch) -> dict[str, Tensor]:
        """The loss of the head's logits in the range of the initial model's."""
        assert self.initial is not None
        initial = self.initial(batch)
        logits = to_range(self.head(embedded.images), self.zero_shot.logits(initial))
        return self.loss.terms(logits, batch, initial_features=initial)
