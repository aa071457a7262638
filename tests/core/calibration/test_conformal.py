"""Split-conformal sets: the promise by simulation, parity with crepes, relations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calift_core.calibration import softmax
from calift_core.calibration.conformal import KINDS, coverage_of, fit_conformal
from calift_core.errors import PredictionsError, SpecError


def drawn(rng: np.random.Generator, n: int, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of an over-confident model, and labels of the truth behind it."""
    logits = rng.normal(0, 2, size=(n, classes))
    truth = softmax(logits)
    labels = (truth.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return softmax(2.5 * logits), labels


@pytest.mark.parametrize("kind", KINDS)
def test_promise__holds_on_average_over_repeats_however_wrong_the_probabilities(kind):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        conformal = fit_conformal(*drawn(rng, 200), coverage=0.9, kind=kind)
        found.append(coverage_of(conformal, *drawn(rng, 200)).coverage)
    mean, error = np.mean(found), np.std(found) / 200**0.5
    assert mean >= 0.9 - 3 * error
    if kind == "plain":  # and not by much more: at most 1 / (n + 1) too often
        assert mean <= 0.9 + 1 / 201 + 3 * error


def test_class_conditional__holds_for_a_class_that_is_harder():
    rng = np.random.default_rng(1)

    def hard(n):
        probs, labels = drawn(rng, n, 3)
        wrong = (labels == 2) & (rng.random(n) < 0.5)
        return np.where(wrong[:, None], probs[:, [1, 2, 0]], probs), labels

    covered = {"plain": [], "class_conditional": []}
    for _ in range(40):
        fit, (probs, labels) = hard(600), hard(600)
        for kind in covered:
            sets = fit_conformal(*fit, coverage=0.9, kind=kind).sets(probs)
            covered[kind].append(float(sets[labels == 2, 2].mean()))
    assert np.mean(covered["plain"]) < 0.85
    assert np.mean(covered["class_conditional"]) > 0.89


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 120),
    coverage=st.floats(0.05, 0.98),
    by_class=st.booleans(),
)
def test_sets__are_those_of_crepes(seed, n, coverage, by_class):
    crepes = pytest.importorskip("crepes")
    rng = np.random.default_rng(seed)
    (probs, labels), (new, _) = drawn(rng, n, 4), drawn(rng, 30, 4)
    kind = "class_conditional" if by_class else "plain"
    ours = fit_conformal(probs, labels, coverage=coverage, kind=kind).sets(new)
    theirs = crepes.ConformalClassifier()
    alphas = 1 - probs[np.arange(n), labels]
    if by_class:
        theirs.fit(alphas, bins=labels)
        columns = [
            theirs.predict_p(1 - new[:, [c]], bins=np.full(len(new), c), smoothing=False)
            for c in range(4)
        ]
        found = np.hstack(columns) > 1 - coverage
    else:
        theirs.fit(alphas)
        found = theirs.predict_set(1 - new, confidence=coverage, smoothing=False)
    # A p-value that equals 1 − coverage but for rounding is on either side of it.
    counts = np.array([(labels == c).sum() for c in range(4)]) if by_class else np.array([n])
    at_edge = np.abs((counts + 1) * coverage - np.round((counts + 1) * coverage)) < 1e-6
    keep = ~(at_edge if by_class else np.repeat(at_edge, 4))
    assert (ours[:, keep] == np.asarray(found, bool)[:, keep]).all()


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(20, 200))
def test_sets__grow_with_the_promise_and_raps_are_never_empty(seed, n):
    rng = np.random.default_rng(seed)
    (probs, labels), (new, truth) = drawn(rng, n), drawn(rng, 50)
    for kind in KINDS:
        small, large = (fit_conformal(probs, labels, coverage=c, kind=kind) for c in (0.6, 0.9))
        assert (small.sets(new) <= large.sets(new)).all()
        answer = coverage_of(large, new, truth)
        assert answer.mean_size == large.sets(new).sum(axis=1).mean()
        assert (answer.empty == 0) or kind != "raps"


def test_too_few__is_every_class_and_wrong_input_a_sentence():
    probs, labels = np.array([[0.9, 0.1]] * 5), np.zeros(5, int)
    assert fit_conformal(probs, labels, coverage=0.9).sets(probs).all()
    by_class = fit_conformal(probs, labels, coverage=0.6, kind="class_conditional")
    assert np.isinf(by_class.q[1])
    with pytest.raises(PredictionsError, match="the fitted 2 classes, got 3"):
        by_class.sets(np.full((2, 3), 1 / 3))
    for coverage in (0, 1, -0.5):
        with pytest.raises(SpecError, match="coverage"):
            fit_conformal(probs, labels, coverage=coverage)
    with pytest.raises(SpecError, match="kind"):
        fit_conformal(probs, labels, kind="best")
    with pytest.raises(PredictionsError, match="probs must be"):
        fit_conformal(probs[0], labels)
