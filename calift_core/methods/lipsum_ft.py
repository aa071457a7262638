"""LipSum-FT: cross-entropy, and energies to random texts kept near the initial tower's."""

import torch
from torch import Tensor

from calift_core.data.batch import Batch
from calift_core.errors import ModelError
from calift_core.methods.base import Embedded, Setup
from calift_core.methods.supervised import Supervised
from calift_core.methods.terms import energy_gap, similarity
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.schema.methods import LipsumFt as LipsumFtSpec


class LipsumFt(Supervised):
    """L = CE + λ · (1/B) Σ_i (1/2M) Σ_m (e_im − e⁰_im)² over M random texts, new ones each step.

    Nam et al. 2024, section 4. Text tower and logit scale are frozen; the head starts zero-shot and
    is trained. `e_im = s·⟨I_i, T_m⟩`, and the head's logits are `s·⟨I_i, w_c⟩`: the weights start
    with unit norm, the constant scale stands outside of them, and there is no bias, as in its code.

    Differs from the reference code: in nothing that is known.
    """

    def __init__(self, setup: Setup[LipsumFtSpec]) -> None:
        clip, captions, spec, length = setup.clip, setup.captions, setup.spec, setup.length
        super().__init__(
            setup,
            scale="outside",
            bias=False,
            keep_initial=spec.lambda_energy > 0,
        )
        self.spec = spec
        self.weights["energy_gap"] = spec.lambda_energy
        self.generator = torch.Generator().manual_seed(length.seed)
        if spec.lambda_energy:
            self.start, self.end, self.words, self.context = _vocabulary(clip, captions)
            if spec.text_length + 2 > self.context:
                raise ModelError(
                    f"lipsum_ft: start token, {spec.text_length} random tokens and end token do "
                    f"not fit in the {self.context} positions of {clip.name}'s text tower"
                )

    def terms_of(self, embedded: Embedded, batch: Batch) -> dict[str, Tensor]:
        """The head's loss and the energy gap."""
        images = embedded.images
        if not self.spec.lambda_energy or self.initial is None:
            return self.loss.terms(self.head(images), batch)
        initial = self.initial(batch)
        terms = self.loss.terms(self.head(images), batch, initial_features=initial)
        with torch.no_grad():
            texts = self.clip.encode_text(self.random_texts().to(images.device))  # (M, D)
            scale = self.clip.logit_scale.detach()
        terms["energy_gap"] = energy_gap(
            similarity(images, texts, scale), similarity(initial, texts, scale)
        )
        return terms

    def random_texts(self) -> Tensor:
        """(M, L) tokens: start, uniform words, end, padding."""
        shape = (self.spec.n_texts, self.spec.text_length)
        words = self.words[torch.randint(len(self.words), shape, generator=self.generator)]
        tokens = torch.zeros(self.spec.n_texts, self.context, dtype=torch.long)
        tokens[:, 0] = self.start
        tokens[:, 1 : self.spec.text_length + 1] = words
        tokens[:, self.spec.text_length + 1] = self.end
        return tokens

    def state(self) -> dict[str, Tensor]:
        """How far the generator of the random texts is."""
        return {"texts_generator": self.generator.get_state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on with the random texts from where they were."""
        self.generator.set_state(state["texts_generator"])


def _vocabulary(clip: Clip, captions: Captions) -> tuple[int, int, Tensor, int]:
    """Start token, end token, every other token, and the context length."""
    start = getattr(clip.tokenizer, "sot_token_id", None)
    end = getattr(clip.tokenizer, "eot_token_id", None)
    if start is None or end is None:
        raise ModelError(
            "lipsum_ft draws random texts between a start and an end token, and the tokenizer of "
            f"{clip.name} has none",
            hint="Take car_ft or finetune with this model.",
        )
    words = torch.arange(int(clip.tokenizer.vocab_size))  # type: ignore[attr-defined]
    words = words[(words != start) & (words != end)]
    return int(start), int(end), words, captions.tokens.shape[1]
