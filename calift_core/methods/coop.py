"""CoOp: the words around a class name are learned vectors."""

import torch
from torch import Tensor, nn

from calift_core.errors import ModelError
from calift_core.methods.base import Classifier, Setup
from calift_core.methods.frozen import FrozenTowers
from calift_core.methods.terms import similarity
from calift_core.schema.methods import CoOp as CoOpSpec


class Context(nn.Module):
    """The learned vectors: (1, M, width), or (C, M, width) where each class has its own."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(start)


class CoOp(FrozenTowers):
    """L = CE(s·I Tᵀ, y), T_c the embedding of `[V]₁ … [V]_M` and the name of class c.

    Zhou et al. 2022 ("Learning to prompt for vision-language models"), section 3.2, the class name
    at the end. Only the context [V] is trained, through the frozen text tower.

    Differs from the reference (KaiyangZhou/CoOp, `configs/trainers/CoOp/vit_b16.yaml`): features of
    the images are made once, where theirs are of random crops and flips at every step; AdamW
    without weight decay, where theirs is SGD at the same rate of 2e-3 (momentum 0.9, weight decay
    5e-4: the defaults of Dassl, which it is built on); warm-up as the RunSpec says, where theirs is
    an epoch at 1e-5; batches and epochs as the RunSpec says, where theirs are 32 and 200 (100 for 2
    and 4 shots, 50 for one and for ImageNet). Written from the paper; compared with that code by
    reading alone.
    """

    def __init__(self, setup: Setup[CoOpSpec]) -> None:
        clip, captions, spec, length = setup.clip, setup.captions, setup.spec, setup.length
        super().__init__(setup)
        self.scale = clip.logit_scale.detach().clone()
        device = self.scale.device
        names = captions.class_names
        if spec.start:
            start = clip.embed_tokens(_between(clip.tokenizer([spec.start])[0]).to(device))
        else:
            width = clip.embed_tokens(torch.zeros(1, dtype=torch.long, device=device)).shape[1]
            generator = torch.Generator().manual_seed(length.seed)
            start = 0.02 * torch.randn(spec.n_context, width, generator=generator)
        self.n_context = len(start)
        copies = len(names) if spec.class_specific else 1
        self.context = Context(start.to(device).expand(copies, -1, -1).clone())
        plain = clip.tokenizer([f"{name}." for name in names])  # (C, L)
        room = torch.zeros(len(names), self.n_context, dtype=plain.dtype)
        tokens = torch.cat([plain[:, :1], room, plain[:, 1:]], dim=1)
        longest = int(tokens.argmax(dim=1).max()) + 1
        if longest > plain.shape[1]:
            raise ModelError(
                f"coop: {self.n_context} context vectors and the longest class name take {longest} "
                f"positions, and {clip.name}'s text tower has {plain.shape[1]}",
                hint="Lower method.n_context, or shorten the class names.",
            )
        self.tokens = tokens[:, :longest].to(device)
        self.words = clip.embed_tokens(self.tokens)  # (C, L, width)

    def trainable(self) -> dict[str, nn.Module]:
        """The context alone."""
        return {"context": self.context}

    def texts(self) -> Tensor:
        """T, (C, D), with the context as it is now."""
        context = self.context.vectors.expand(len(self.words), -1, -1)
        after = self.words[:, 1 + self.n_context :]
        return self.clip.encode_words(
            torch.cat([self.words[:, :1], context, after], dim=1), self.tokens
        )

    def logits(self, features: Tensor) -> Tensor:
        """Z = s·I Tᵀ."""
        return similarity(features, self.texts(), self.scale)

    @torch.no_grad()
    def classifier(self) -> Classifier:
        """The embeddings of the learned prompts."""
        was_training = self.clip.training
        self.clip.eval()
        texts = self.texts()
        self.clip.train(was_training)
        return Classifier(texts, float(self.scale))

    def resolved(self) -> dict[str, object]:
        """How many vectors there are."""
        return {"n_context": self.n_context}


def _between(tokens: Tensor) -> Tensor:
    """The words of a text without the tokens at its start and end."""
    return tokens[1 : int(tokens.argmax())]
