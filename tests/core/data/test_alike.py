"""Near-copies by features: what is planted is found, and the threshold is what it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calift_core.data.alike import alike, threshold_of


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(rng: np.random.Generator, n: int, centres: np.ndarray) -> tuple[np.ndarray, ...]:
    """Images of classes: far from each other, and alike inside a class."""
    labels = rng.integers(len(centres), size=n)
    return unit(centres[labels] + 0.8 * rng.normal(size=(n, centres.shape[1]))), labels


@given(st.integers(0, 50))
def test_alike__finds_what_was_planted_and_little_else(seed):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, 32))
    train, labels = clustered(rng, 150, centres)
    test, test_labels = clustered(rng, 80, centres)
    copies = unit(train[:20] + 0.02 * rng.normal(size=(20, 32)))
    output = alike(np.concatenate([test, copies]), train, np.r_[test_labels, labels[:20]], labels)
    pairs = {(a, b) for a, b, _ in output.pairs}
    planted = {(80 + i, i) for i in range(20)}
    assert planted <= pairs
    assert len(pairs - planted) <= 1
    # Whichever set is looked at first.
    other = alike(train, np.concatenate([test, copies]), labels, np.r_[test_labels, labels[:20]])
    assert {(b, a) for a, b, _ in other.pairs} == pairs


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1e-1, 1e-2, 1e-3]))
def test_threshold__at_most_the_share_of_different_pairs_passes(seed, rate):
    rng = np.random.default_rng(seed)
    one, other = unit(rng.normal(size=(40, 6))), unit(rng.normal(size=(30, 6)))
    a, b = rng.integers(3, size=40), rng.integers(3, size=30)
    threshold, n = threshold_of(one, other, a, b, rate)
    cosines = (one @ other.T)[a[:, None] != b[None]]
    assert n == len(cosines)
    assert (cosines > threshold + 1e-6).sum() <= rate * n
    # And no more are kept out than must be.
    assert (cosines > threshold - 1e-6).sum() > rate * n - 1


def test_threshold__of_more_pairs_than_are_looked_at_is_that_of_a_sample(monkeypatch):
    rng = np.random.default_rng(0)
    one, other = unit(rng.normal(size=(300, 6))), unit(rng.normal(size=(200, 6)))
    a, b = rng.integers(3, size=300), rng.integers(3, size=200)
    every, n_every = threshold_of(one, other, a, b, 0.1)
    monkeypatch.setattr("calift_core.data.alike.MOST_PAIRS", 20_000)
    some, n_some = threshold_of(one, other, a, b, 0.1)
    assert n_some < 20_000 < n_every
    assert some == pytest.approx(every, abs=0.02)


def test_alike__without_another_class_or_another_image_says_nothing():
    features = unit(np.random.default_rng(0).normal(size=(5, 4)))
    same = np.zeros(5, np.int64)
    assert alike(features, features, same, same).pairs == ()
    assert alike(features[:0], features, same[:0], same).pairs == ()
