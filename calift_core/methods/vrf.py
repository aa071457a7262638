"""VRF: the outputs of two models mixed image by image, by the distance to zero-shot's failures."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

#: Which of M neighbours counts: the reference takes as many thousandths of a set of 1,281,167
#: training images as there are failures among them, which is this share of the failures.
NEIGHBOURS = 1000 / 1_281_167
TEMPERATURES = (0.01, 100.0)


@dataclass(frozen=True)
class Vrf:
    """p = ω·softmax(z / T) + (1 − ω)·softmax(z₀ / T₀), ω = σ((a − d) / b).

    Zhu et al. 2024, section 4: d is the squared distance of an image's tuned features to the k-th
    nearest failure, a training image that zero-shot gets wrong and the tuned model right. Near a
    failure the tuned model is listened to. T and T₀ make each model's mean confidence its accuracy
    on ID data. Costs a pass of both models. Without failures, as of equal models, it is zero-shot.

    Differs from the reference: a and b are not the published 1.5 and 0.6, which belong to ImageNet
    and another width of features, but those with the lowest NLL on ID calibration images; T and T₀
    are matched there too, where the released code takes the ID test images.

    Attributes:
        failures: (M, D), L2-normalised tuned features.
        centre: a; None without failures.
    """

    failures: Tensor
    centre: float | None
    width: float
    own: float
    first: float

    def distances(self, features: Tensor) -> Tensor:
        """D of each image (B,), from its tuned features (B, D)."""
        k = max(1, round(NEIGHBOURS * len(self.failures)))
        similar = features.float() @ self.failures.T
        return 2 - 2 * similar.topk(k, dim=1).values[:, -1]

    def shares(self, features: Tensor) -> Tensor:
        """Ω of each image (B,), from its tuned features (B, D)."""
        if self.centre is None:
            return features.new_zeros(len(features), dtype=torch.float32)
        return torch.sigmoid((self.centre - self.distances(features)) / self.width)

    def log_probs(self, features: Tensor, logits: Tensor, initial: Tensor) -> Tensor:
        """Log p (B, C), from tuned features (B, D), tuned logits and initial logits (B, C)."""
        return mixed(self.shares(features), logits / self.own, initial / self.first)


def mixed(shares: Tensor, logits: Tensor, initial: Tensor) -> Tensor:
    """log(ω·softmax(z) + (1 − ω)·softmax(z₀)), (B, C).

    Args:
        shares: ω, (B,).
        logits: z, (B, C).
        initial: z₀, (B, C).
    """
    own = shares.log()[:, None] + F.log_softmax(logits, dim=1)
    return torch.logaddexp(own, (1 - shares).log()[:, None] + F.log_softmax(initial, dim=1))


def matched_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature at which the mean confidence is the accuracy, within `TEMPERATURES`."""
    accuracy = float((logits.argmax(dim=1) == labels).double().mean())
    low, high = torch.tensor(TEMPERATURES, dtype=torch.float64).log().tolist()
    for _ in range(60):  # confidence falls as T rises
        middle = (low + high) / 2
        hot = F.softmax(logits.double() / torch.tensor(middle).exp(), dim=1).amax(dim=1)
        low, high = (middle, high) if float(hot.mean()) > accuracy else (low, middle)
    return float(torch.tensor((low + high) / 2).exp())


def fit_vrf(
    failures: Tensor, features: Tensor, logits: Tensor, initial: Tensor, labels: Tensor
) -> Vrf:
    """Temperatures, a and b on ID calibration images.

    a is looked for at the deciles of their distances, b at ¼ to 2 standard deviations of them.

    Args:
        failures: (M, D) tuned features of training images.
        features: (N, D) tuned features of the calibration images.
        logits: z, (N, C).
        initial: z₀, (N, C).
        labels: (N,).
    """
    own, first = matched_temperature(logits, labels), matched_temperature(initial, labels)
    plain = Vrf(failures, None, 1.0, own, first)
    if not len(failures):
        return plain
    distances = plain.distances(features)
    spread = max(float(distances.std()), 1e-6)
    deciles = torch.quantile(distances, torch.linspace(0.1, 0.9, 9, device=distances.device))
    tried = [
        Vrf(failures, centre, factor * spread, own, first)
        for centre in deciles.tolist()
        for factor in (0.25, 0.5, 1.0, 2.0)
    ]
    return min(tried, key=lambda v: _nll(v.log_probs(features, logits, initial), labels))


def _nll(log_probs: Tensor, labels: Tensor) -> float:
    return float(F.nll_loss(log_probs.double(), labels))
