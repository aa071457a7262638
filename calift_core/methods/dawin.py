"""DaWin: weights interpolated image by image, by how sure each of two models is."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def expertise(logits: Tensor, initial: Tensor) -> Tensor:
    """α = e^(−H) / (e^(−H) + e^(−H₀)) of each image (B,), with the entropies of the two models.

    Oh et al. 2025, section 4. The image's answer is that of the weights (1 − α)·θ₀ + α·θ₁. Costs
    three passes: one of each model, one of the image's own.

    Differs from the reference: each image takes the nearest of 21 points of the path, where the
    reference fits a mixture of Beta distributions to the α of a whole test set and gives a cluster
    its mean; and there is no offset from the statistics of a test set's entropies. Here an image's
    answer does not depend on which others are asked about.

    Args:
        logits: (B, C) of the tuned model, divided by its ID temperature.
        initial: (B, C) of the initial model, divided by its own.
    """
    return torch.sigmoid(entropies(initial) - entropies(logits))


def entropies(logits: Tensor) -> Tensor:
    """H of softmax(z) for each row (B,), in nats."""
    log_probs = F.log_softmax(logits.float(), dim=1)
    return -(log_probs.exp() * log_probs).sum(dim=1)


def nearest(alphas: Tensor, grid: Sequence[float]) -> Tensor:
    """Position in an ascending grid of the value nearest to each α, (B,)."""
    at = torch.tensor(grid, device=alphas.device, dtype=alphas.dtype)
    return (alphas[:, None] - at).abs().argmin(dim=1)
