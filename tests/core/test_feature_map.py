"""Image features in a plane, and what lies within a lasso."""

import numpy as np
import pytest
from matplotlib.path import Path

from calift_core.analysis.feature_map import inside, laid_out
from calift_core.errors import SpecError


def test_laid_out__keeps_images_near_that_are_alike_and_is_the_same_again():
    rng = np.random.default_rng(0)
    groups = rng.integers(4, size=160)
    features = np.eye(4, 32)[groups] + 0.05 * rng.normal(size=(160, 32))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    points = laid_out(features)
    assert points.shape == (160, 2)
    assert np.abs(points).max() == pytest.approx(1)
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + 9 * np.eye(160)
    assert (groups[apart.argmin(axis=1)] == groups).all()
    assert (laid_out(features) == points).all()
    with pytest.raises(SpecError, match="at least 10 images, got 9"):
        laid_out(features[:9])


def test_inside__is_what_another_library_finds():
    rng = np.random.default_rng(1)
    points = rng.uniform(-1, 1, size=(500, 2)).astype(np.float32)
    for _ in range(20):
        corners = rng.uniform(-1, 1, size=(rng.integers(3, 9), 2)).round(3)
        # Of a polygon that does not cross itself: even-odd and non-zero then agree.
        corners = corners[np.argsort(np.arctan2(*(corners - corners.mean(axis=0)).T))]
        area = " ".join(f"{x:.3f},{y:.3f}" for x, y in corners)
        assert (inside(points, area) == Path(corners).contains_points(points)).all()
