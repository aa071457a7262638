"""Images that a model sees alike: clusters of stored features, and the prompts nearest to each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calift_core.calibration.bins import Ints
from calift_core.errors import SpecError
from calift_core.predictions.prompts import PromptHeads

#: Clusters of a data set at most.
_MOST = 30
#: Images for a cluster on average at least.
_EACH = 20
_ROUNDS = 15
#: Rows of features that are compared at once.
_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Clusters:
    """K clusters of N images.

    Attributes:
        of: (N,) which cluster each image is in.
        titles: K titles: the classes that a cluster has most.
    """

    of: Ints
    titles: tuple[str, ...]


def clustered(
    features: npt.NDArray[np.float16], labels: Ints, class_names: Sequence[str]
) -> Clusters | None:
    """Clusters by k-means (k-means++, at most 30 and 20 images each on average) of unit vectors.

    Args:
        features: (N, D), L2-normalised.
        labels: (N,) classes, for the titles.

    Returns:
        None of too few images.
    """
    from scipy.cluster.vq import kmeans2  # takes long to import

    n = len(features)
    k = min(_MOST, round(math.sqrt(n / _EACH)))
    if k < 2:
        return None
    points = features.astype(np.float32)
    _, of = kmeans2(points, k, iter=_ROUNDS, minit="++", rng=0, missing="warn")
    _, of = np.unique(of, return_inverse=True)  # an empty cluster is none
    titles = []
    for cluster in range(int(of.max()) + 1):
        counts = np.bincount(labels[of == cluster], minlength=len(class_names))
        often = [c for c in np.argsort(-counts, kind="stable")[:3].tolist() if counts[c]]
        titles.append("images like " + ", ".join(class_names[c] for c in often))
    return Clusters(of.astype(np.int64), tuple(titles))


def cosines(
    features: npt.NDArray[np.float16], vector: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float32]:
    """Cosine similarity (N,) of L2-normalised features (N, D) with one such vector (D,).

    Raises:
        SpecError: the vector has another width.
    """
    if vector.shape != features.shape[1:]:
        raise SpecError(
            f"what is searched for must have the images' {features.shape[1]} features, got "
            f"{vector.shape}"
        )
    found = np.empty(len(features), np.float32)
    for at in range(0, len(features), _ROWS):
        here = features[at : at + _ROWS].astype(np.float32)
        np.matmul(here, vector.astype(np.float32), out=found[at : at + _ROWS])
    return found


def nearest_prompts(
    heads: PromptHeads, features: npt.NDArray[np.float16], k: int
) -> list[list[tuple[str, float]]]:
    """The k prompts nearest to each image, as text and cosine, the nearest first.

    Args:
        heads: of the model; of its prompts the run's templates one by one, where they were kept.
        features: (M, D), L2-normalised.

    Returns:
        M lists; empty ones where no single template was kept.
    """
    single = [at for at, name in enumerate(heads.names) if "{}" in name]
    if not single:
        return [[] for _ in features]
    vectors = heads.heads[single].astype(np.float32)
    n_classes = vectors.shape[1]
    cosines = features.astype(np.float32) @ vectors.reshape(-1, vectors.shape[2]).T
    found = []
    for row in cosines:
        order = np.argsort(-row, kind="stable")[:k].tolist()
        found.append(
            [
                (
                    heads.names[single[at // n_classes]].replace(
                        "{}", heads.class_names[at % n_classes]
                    ),
                    float(row[at]),
                )
                for at in order
            ]
        )
    return found
