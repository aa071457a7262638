"""Rows of several seeds: what is left out of equal ones, and how often an interval covers."""

import numpy as np
import pytest

from calift_core.sweeps.paired import best_rows, difference, draw_images

ROWS, SEEDS, DRAWS, REPEATS = 10, 5, 150, 400


def rows(rng, means, *, ratio, seeds=SEEDS):
    """Label → (S, R + 1): noise of seeds of standard error 1, of images of `ratio`."""
    own = rng.normal(size=(len(means), seeds, 1)) * seeds**0.5 + means[:, None, None]
    images = ratio * rng.normal(size=(len(means), 1, DRAWS + 1))
    images[:, :, 1:] += images[:, :, :1]  # the draws scatter around what was seen
    return dict(zip(map(str, range(len(means))), own + images, strict=True))


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0])
def test_paired__equal_rows_stay_and_intervals_cover(ratio):
    """Ten equal rows of five seeds. Monte-Carlo standard errors: 1.1 points and 0.6."""
    rng = np.random.default_rng(1)
    excluded = covered = 0
    for _ in range(REPEATS):
        values = rows(rng, np.zeros(ROWS), ratio=ratio)
        found = best_rows(values, higher_is_better=True)
        excluded += len(found["set"]) < ROWS
        for at in range(0, ROWS, 2):
            pair = difference(values[str(at)], values[str(at + 1)])
            covered += pair["low"] <= 0 <= pair["high"]
    assert excluded / REPEATS <= 0.07
    assert 0.93 <= covered / (REPEATS * ROWS / 2) <= 0.97


def test_paired__a_row_that_is_clearly_better_is_left_alone():
    rng = np.random.default_rng(2)
    means = np.array([12.0, *[0.0] * 4])
    found = [best_rows(rows(rng, means, ratio=0.5), higher_is_better=True) for _ in range(50)]
    assert sum(one["set"] == ["0"] for one in found) >= 45
    lower = best_rows(rows(rng, -means, ratio=0.5), higher_is_better=False)
    assert lower["label"] == "0"


def test_paired__rows_without_randomness_are_told_apart_by_images_alone():
    rng = np.random.default_rng(3)
    random = rows(rng, np.zeros(1), ratio=0.1)["0"]
    fixed = np.r_[0.0, rng.normal(size=DRAWS)][None]
    values = {"random": random, "fixed": fixed, "same": fixed, "worse": fixed - 1e-3}
    found = best_rows(values, higher_is_better=True)
    assert found["p_values"]["worse"] < 0.05
    assert {"random", "fixed", "same"} <= set(found["set"])
    assert difference(fixed, fixed)["low"] == 0 == difference(fixed, fixed)["high"]


def test_draw_images__the_first_row_is_the_data_as_they_are():
    times = draw_images(7, n_resamples=3, seed=5)
    assert (times[0] == 1).all()
    assert (times.sum(axis=1) == 7).all()
    assert not (times[1] == times[2]).all()
