"""How well scores tell a run's ID test images from other sets of images, from what is stored."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.calibration.bins import Doubles, Floats
from calift_core.calibration.ood import (
    MEASURES,
    NEIGHBOUR,
    SCORES,
    detection,
    energy,
    knn,
    mcm,
    relative_mahalanobis,
    threshold_at,
)
from calift_core.predictions.training import TrainingImages

#: Bins of a histogram, and images that are named on each side of a threshold.
BINS, NAMED = 40, 12
#: Draws of a pair of sets at most and at least, and images that are drawn for one altogether.
_MOST, _FEWEST, _DRAWN = 1000, 200, 2_000_000


@dataclass(frozen=True, eq=False)
class OodImages:
    """What a model makes of N images, for the scores.

    Attributes:
        ids: (N,) names.
        confidences: (N,) the largest probability of each, after the calibrator.
        logits: (n, C) of one part of the images after another, read once.
        features: (N, D); None: not stored.
        clusters: (N,) sources of the images; None: each is its own.
    """

    ids: NDArray[Any]
    confidences: Doubles
    logits: Iterable[Floats]
    features: Floats | None = None
    clusters: NDArray[Any] | None = None


def image_scores(
    images: OodImages, logit_scale: float, training: TrainingImages | None
) -> dict[str, Doubles]:
    """Every score (N,) that the images have what it takes for, by name."""
    parts = [(energy(part), mcm(part, logit_scale)) for part in images.logits]
    energies, matches = (np.concatenate(each) for each in zip(*parts, strict=True))
    found = {"max_softmax": images.confidences, "energy": energies, "mcm": matches}
    if images.features is not None and training is not None:
        k = min(NEIGHBOUR, len(training.features))
        found["knn"] = knn(images.features, training.features, k)
        found["relative_mahalanobis"] = relative_mahalanobis(
            images.features, training.features, training.labels
        )
    return found


def compared(
    own: OodImages,
    own_scores: Mapping[str, Doubles],
    other: OodImages,
    other_scores: Mapping[str, Doubles],
) -> list[dict[str, Any]]:
    """The `OodScore`s, plain, of a set against the ID test images, by what both have."""
    names = [name for name in SCORES if name in own_scores and name in other_scores]
    n_resamples = int(np.clip(_DRAWN // (len(own.ids) + len(other.ids)), _FEWEST, _MOST))
    estimates = detection(
        {name: own_scores[name] for name in names},
        {name: other_scores[name] for name in names},
        n_resamples=n_resamples,
        id_clusters=own.clusters,
        ood_clusters=other.clusters,
    )
    rows = []
    for name in names:
        inside, outside = own_scores[name], other_scores[name]
        threshold = threshold_at(inside)
        near = np.argsort(np.abs(outside - threshold), kind="stable")
        accepted = outside[near] >= threshold
        rows.append(
            {
                "score": name,
                **{measure: asdict(estimates[name][measure]) for measure in MEASURES},
                "threshold": threshold,
                "below": [str(i) for i in other.ids[near[~accepted][:NAMED]]],
                "above": [str(i) for i in other.ids[near[accepted][:NAMED]]],
                "histogram": _histogram(name, inside, outside),
            }
        )
    return rows


def _histogram(name: str, inside: Doubles, outside: Doubles) -> dict[str, list[float]]:
    """Of both in the same bins: over [0, 1] for a probability, else over all values."""
    both = np.concatenate([inside, outside])
    low, high = (0.0, 1.0) if name == "max_softmax" else (float(both.min()), float(both.max()))
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    counts = {"id": inside, "ood": outside}
    shares = {k: (np.histogram(v, edges)[0] / len(v)).tolist() for k, v in counts.items()}
    return {"edges": edges.tolist(), **shares}
