"""Singular values of the ID features, the quantity CaRot's bound is about.

Oh et al. 2024, section 3: the covariance of the image representation, each feature standardised to
zero mean and unit variance over the N ID samples; its smallest singular value enters the bound.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from calift_core.errors import ModelError, SpecError
from calift_core.models.clip import Clip
from calift_core.schema.report import SpectrumReport

#: A feature whose standard deviation is below this share of the largest is constant.
_CONSTANT = 1e-7


class Covariance:
    """Streaming mean and Gram of features, in float64.

    Sums are taken about the first sample: about zero, a large mean would swamp a small variance.
    """

    def __init__(self, n_features: int) -> None:
        self.n = 0
        self.origin: NDArray[np.float64] | None = None
        self.total = np.zeros(n_features)
        self.gram = np.zeros((n_features, n_features))

    def add(self, features: NDArray[np.floating]) -> None:
        """Add the features of a batch to the mean and the Gram.

        Args:
            features: (B, D).
        """
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.total):
            raise SpecError(f"features must be (B, {len(self.total)}), got {x.shape}")
        if self.origin is None and len(x):
            self.origin = x[0].copy()
        x = x if self.origin is None else x - self.origin
        self.n += len(x)
        self.total += x.sum(axis=0)
        self.gram += x.T @ x

    def state(self) -> dict[str, NDArray[np.float64]]:
        """The sums over every batch so far, as arrays."""
        origin = np.zeros(0) if self.origin is None else self.origin
        n = np.array([self.n], dtype=np.float64)
        return {"n": n, "origin": origin, "total": self.total, "gram": self.gram}

    def load_state(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Take `state` back; what is added from here on gives the same as without a break."""
        self.n = int(state["n"][0])
        self.origin = state["origin"].copy() if len(state["origin"]) else None
        self.total, self.gram = state["total"].copy(), state["gram"].copy()

    def merge(self, parts: Sequence[Mapping[str, NDArray[np.float64]]]) -> None:
        """Become the sums over all of what several have seen: equal but for rounding (1e-16)."""
        seen = [part for part in parts if part["n"][0] > 0]
        if not seen:
            return
        self.load_state(seen[0])
        assert self.origin is not None
        for part in seen[1:]:
            n, shift = float(part["n"][0]), part["origin"] - self.origin
            cross = np.outer(shift, part["total"])
            self.n += int(n)
            self.gram += part["gram"] + cross + cross.T + n * np.outer(shift, shift)
            self.total += part["total"] + n * shift

    def correlation(self) -> tuple[NDArray[np.float64], int]:
        """The covariance of the standardised features, and how many were constant and left out."""
        if self.n < 2:
            raise SpecError(f"a spectrum needs at least 2 samples, got {self.n}")
        mean = self.total / self.n
        covariance = self.gram / self.n - np.outer(mean, mean)
        deviation = np.sqrt(np.clip(np.diag(covariance), 0, None))
        keep = deviation > _CONSTANT * max(float(deviation.max(initial=0.0)), 1e-300)
        scaled = covariance[np.ix_(keep, keep)] / np.outer(deviation[keep], deviation[keep])
        return scaled, int((~keep).sum())


def spectrum_report(
    covariance: Covariance, *, projection: NDArray[np.floating] | None = None, features: str = ""
) -> SpectrumReport:
    """Singular values and what is read from them.

    Args:
        projection: W_v, (width, D), for the distance of its Gram from the identity.

    Returns:
        All singular values, largest first; σ_min is null when N ≤ D, where it is 0 by rank.
    """
    matrix, n_constant = covariance.correlation()
    values = np.clip(np.linalg.eigvalsh(matrix)[::-1], 0, None)
    by_rank = covariance.n <= len(covariance.total)
    smallest = None if by_rank or not len(values) else float(values[-1])
    distance = None
    if projection is not None:
        w = np.asarray(projection, dtype=np.float64)
        distance = float(np.linalg.norm(w.T @ w - np.eye(w.shape[1])))
    return SpectrumReport(
        singular_values=[float(v) for v in values],
        sigma_min=smallest,
        condition_number=float(values[0] / smallest) if smallest else None,
        effective_rank=effective_rank(values),
        n=covariance.n,
        n_features=len(covariance.total),
        n_constant_features=n_constant,
        projection_gram_distance=distance,
        features=features,
    )


def effective_rank(singular_values: NDArray[np.floating]) -> float:
    """Exp of the entropy of the normalised spectrum (Roy & Vetterli 2007); between 1 and D."""
    total = float(np.sum(singular_values))
    if total <= 0:
        return 0.0
    p = np.asarray(singular_values, dtype=np.float64) / total
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def spectrum_of(clip: Clip, covariance: Covariance, features: str) -> SpectrumReport | None:
    """The spectrum of a model's features; None of fewer than two."""
    if covariance.n < 2:
        return None
    try:
        projection = clip.image_projection().detach().float().cpu().numpy()
    except ModelError:
        projection = None
    return spectrum_report(covariance, projection=projection, features=features)
