"""Image features laid out in a plane by t-SNE (openTSNE), in a process of its own. Torch-free.

`python -m calift_core.analysis.feature_map MEMORY_BYTES` is asked with the path of a predictions
file and answers with its points, (N, 2) float32.
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calift_core.calibration.bins import Bools
from calift_core.child_process import answer_all, limit
from calift_core.errors import SpecError
from calift_core.installed import install_extra
from calift_core.predictions.rows import read_features

Points = npt.NDArray[np.float32]
#: Fewest images that are laid out, and the dimensions that are left of their features before.
_FEWEST, _DIMENSIONS = 10, 50


def laid_out(features: npt.NDArray[np.float16], seed: int = 0) -> Points:
    """Points (N, 2) within [-1, 1] of L2-normalised features (N, D).

    t-SNE (van der Maaten & Hinton 2008) of 50 principal components, begun with the first two of
    them, of perplexity 30 or a third of the images. The same seed gives the same points: one thread
    does it.

    Raises:
        SpecError: openTSNE is not installed, or there are less than ten images.
    """
    try:
        from openTSNE import TSNE
        from sklearn.decomposition import PCA
    except ImportError as error:
        raise SpecError(
            f"a map of features needs {error.name}, which is not installed.",
            hint=install_extra("map"),
        ) from error
    n, width = features.shape
    if n < _FEWEST:
        raise SpecError(f"a map of features must have at least {_FEWEST} images, got {n}")
    reduced = PCA(min(_DIMENSIONS, n, width), svd_solver="randomized", random_state=seed)
    main = reduced.fit_transform(features.astype(np.float32))
    tsne = TSNE(perplexity=min(30.0, (n - 1) / 3), n_jobs=1, random_state=seed)
    points = np.asarray(tsne.fit(main), dtype=np.float64)
    points -= (points.max(axis=0) + points.min(axis=0)) / 2
    scaled: Points = (points / max(float(np.abs(points).max()), 1e-12)).astype(np.float32)
    return scaled


def inside(points: Points, area: str) -> Bools:
    """Which points (N,) lie in a polygon, as `SampleFilter.area` writes one: even-odd rule."""
    corners = np.array([corner.split(",") for corner in area.split()], dtype=np.float64)
    x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    found = np.zeros(len(points), dtype=np.bool_)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            found ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return found


def answer(question: bytes) -> bytes:
    """The points of a predictions file.

    Raises:
        CaliftError: it has no features, or they cannot be laid out.
    """
    features = read_features(Path(question.decode()))
    if features is None:
        raise SpecError("no image features are stored of this data")
    return laid_out(features).tobytes()


if __name__ == "__main__":
    limit(int(sys.argv[1]))
    answer_all(b"{}", answer)
