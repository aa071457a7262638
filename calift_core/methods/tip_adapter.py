"""Tip-Adapter-F: a cache of the training images' features beside the zero-shot classifier."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from calift_core.methods.base import Classifier, Features, KeyCache, Setup
from calift_core.methods.frozen import FrozenTowers
from calift_core.schema.methods import TipAdapter as TipAdapterSpec
from calift_core.schema.records import LogRecord, Record


class Keys(nn.Module):
    """The cache: N keys that are trained, and their classes. Empty until it is filled."""

    classes: Tensor

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.zeros(0, width, device=device))
        self.register_buffer("classes", torch.zeros(0, dtype=torch.long, device=device))

    @torch.no_grad()
    def fill(self, keys: Tensor, classes: Tensor) -> None:
        """Take keys (N, D) and their classes (N,); the parameter stays the same object."""
        device = self.keys.device
        self.keys.data = keys.detach().clone().to(device)
        self.classes = classes.detach().clone().to(device)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Take a checkpoint's cache, whatever its size."""
        self.fill(state_dict["keys"], state_dict["classes"])
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


class TipAdapter(FrozenTowers):
    """L = CE(s·I Wᵀ + α·exp(−β(1 − I Fᵀ)) L, y): W zero-shot, F the cache's keys, L their classes.

    Zhang et al. 2022 ("Tip-Adapter: training-free adaption of CLIP"), section 3.2. F starts as the
    features of up to K training images a class and is trained; with no steps it is Tip-Adapter.

    Differs from the reference (gaopengcuhk/Tip-Adapter, `main.py` and `configs/`): α and β are
    options, where theirs train the keys at α 1.17 and β 1 (ImageNet; 2 and 1 for DTD) and then
    search both on validation images, ImageNet's on test images; features are made once, where
    theirs are of random crops and flips, and a key is the mean over ten of them; the keys are the
    last step's, where theirs are those of the epoch that was best on test images. As theirs: AdamW
    at 1e-3 with PyTorch's weight decay of 0.01, cosine; 20 epochs in batches of 256 there, as the
    RunSpec says here. Written from the paper; compared with that code by reading alone.
    """

    def __init__(self, setup: Setup[TipAdapterSpec]) -> None:
        super().__init__(setup)
        self.spec, self.seed = setup.spec, setup.length.seed
        weights = self.zero_shot.weights
        self.cache = Keys(weights.shape[1], weights.device)

    def trainable(self) -> dict[str, nn.Module]:
        """The keys alone."""
        return {"cache": self.cache}

    def prepare(self, features: Features) -> Iterator[Record]:
        """Fill the cache with features of up to K images a class, drawn by the run's seed."""
        x, y = features("train")
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(x), generator=generator)
        labels = y.cpu()[order]
        chosen = torch.cat(
            [order[labels == c][: self.spec.per_class] for c in range(len(self.zero_shot.weights))]
        ).to(x.device)
        self.cache.fill(x[chosen], y[chosen])
        yield LogRecord(
            message=f"The cache holds {len(chosen):,} of {len(x):,} training images, at most "
            f"{self.spec.per_class} of a class."
        )

    def logits(self, features: Tensor) -> Tensor:
        """Zero-shot logits and what the cache adds."""
        return self._classifier(self.cache.keys).logits(features)

    def classifier(self) -> Classifier:
        """Zero-shot weights and the cache."""
        return self._classifier(self.cache.keys.detach())

    def _classifier(self, keys: Tensor) -> Classifier:
        zero_shot, spec = self.zero_shot, self.spec
        cache = KeyCache(keys, self.cache.classes, alpha=spec.alpha, beta=spec.beta)
        return Classifier(zero_shot.weights, zero_shot.scale, cache=cache)

    def resolved(self) -> dict[str, object]:
        """How large the cache is."""
        return {"cached_images": len(self.cache.classes)}
