"""Scores per sample: what they keep of the probabilities, and comparisons from them alone."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calift_core import calibration as cal
from calift_core.calibration import scores as scores_module
from calift_core.calibration.bins import SMALLEST_PROBABILITY
from calift_core.calibration.measures import top_k_accuracy
from calift_core.calibration.scores import rescore
from calift_core.errors import PredictionsError, SpecError, UnknownNameError

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FIELDS = ("labels", "predicted", "confidences", "correct", "nll", "brier", "rank")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Doubles, Ints]:
    n, n_classes = draw(st.integers(1, 80)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(size=(n, n_classes)) * draw(st.sampled_from([0.1, 1.0, 20.0]))
    if draw(st.booleans()):
        logits = np.round(logits)  # ties
    return logits, rng.integers(n_classes, size=n)


def pair(n: int, seed: int) -> tuple[Doubles, Doubles, Ints]:
    """Probabilities of a calibrated model and of an over-confident, slightly other one, labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 4)) * 1.5
    probs = cal.softmax(logits)
    labels = (probs.cumsum(axis=1)[:, :-1] < rng.random((n, 1))).sum(axis=1)
    return probs, cal.softmax(logits + 0.3 * rng.normal(size=(n, 4)), 0.6), labels


@given(case=cases(), temperature=st.floats(0.05, 20))
def test_score_samples__its_means_are_the_measures_of_the_softmax(case, temperature):
    logits, labels = case
    scores = cal.score_samples(logits, labels, temperature)
    probs = cal.softmax(logits, temperature)
    assert len(scores) == len(labels)
    assert scores.correct.mean() == cal.accuracy(cal.score_probs(cal.softmax(logits), labels))
    assert scores.nll.mean() == pytest.approx(cal.nll(cal.score_probs(probs, labels)), abs=1e-9)
    assert scores.brier.mean() == pytest.approx(
        cal.brier(cal.score_probs(probs, labels)), abs=1e-12
    )
    np.testing.assert_allclose(scores.confidences, probs.max(axis=1), rtol=1e-12)
    assert (scores.confidences <= 1).all()
    for k in range(1, logits.shape[1] + 1):
        assert (scores.rank < k).mean() == top_k_accuracy(
            cal.score_probs(cal.softmax(logits), labels), k=k
        )


@given(case=cases(), seed=st.integers(0, 99), rows=st.integers(1, 30))
def test_score_samples__follow_the_order_of_the_samples_and_no_chunk_shows(case, seed, rows):
    logits, labels = case
    order = np.random.default_rng(seed).permutation(len(labels))
    whole = cal.score_samples(logits, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores_module, "_CELLS_AT_ONCE", rows * logits.shape[1])
        shuffled = cal.score_samples(logits[order], labels[order])
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(whole.take(order), name), getattr(shuffled, name))


def test_score_samples__ties_and_vanishing_probabilities():
    logits = np.array([[1.0, 2.0, 2.0, 0.0]] * 4)
    scores = cal.score_samples(logits, np.array([0, 1, 2, 3]))
    assert scores.predicted.tolist() == [1, 1, 1, 1]
    assert scores.rank.tolist() == [2, 0, 1, 3]
    assert cal.score_probs(cal.softmax(logits), np.array([0, 1, 2, 3])).rank.tolist() == [
        2,
        0,
        1,
        3,
    ]
    logits, labels = np.array([[0.0, -500.0]]), np.array([1])
    found = cal.score_samples(logits, labels).nll[0]
    assert found == -np.log(SMALLEST_PROBABILITY)
    assert cal.score_probs(cal.softmax(logits), labels).nll[0] == found


def test_sample_scores__parts_are_taken_and_joined():
    probs, _, labels = pair(30, 0)
    scores = cal.score_probs(probs, labels)
    half = np.arange(30) < 15
    joined = cal.SampleScores.concatenate([scores.take(half), scores.take(~half)])
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(joined, name), getattr(scores, name))
    assert joined.nbytes == sum(getattr(scores, name).nbytes for name in FIELDS)
    with pytest.raises(PredictionsError, match="at least one sample, got none"):
        cal.SampleScores.concatenate([])


def test_score_samples__inputs_that_break_the_contract_are_named():
    with pytest.raises(SpecError, match="temperature must be positive and finite, got 0"):
        cal.score_samples(np.zeros((2, 2)), np.zeros(2, dtype=int), 0)
    with pytest.raises(PredictionsError, match="finite, got NaN"):
        cal.score_samples(np.full((2, 2), np.nan), np.zeros(2, dtype=int))
    with pytest.raises(PredictionsError, match=r"lie in \[0, 1\], got 2 to 2"):
        cal.score_probs(np.full((1, 2), 0.5), np.array([2]))


# Comparisons from scores


def test_paired_difference__samples_that_do_not_pair_are_named():
    a, b, labels = pair(20, 2)
    one, other = cal.score_probs(a, labels), cal.score_probs(b, labels)
    with pytest.raises(PredictionsError, match="one length, got 20 and 19"):
        cal.paired_difference(one, other.take(np.arange(19)))
    with pytest.raises(PredictionsError, match=r"same labels, got \d and \d for sample \d+"):
        cal.paired_difference(one, other.take(np.arange(20)[::-1]))
    with pytest.raises(UnknownNameError, match="accuracy, brier, confidence, nll, squared_ece"):
        cal.paired_difference(one, other, metric="f1")
    with pytest.raises(PredictionsError, match=r"clusters must have shape \(20,\), got \(3,\)"):
        cal.paired_difference(one, other, clusters=np.arange(3))


@given(st.integers(0, 2**32 - 1), st.sampled_from([np.float16, np.float32, np.float64]))
def test_rescore__is_score_samples_bit_for_bit(seed, kind):
    rng = np.random.default_rng(seed)
    logits = (20 * rng.normal(size=(30, 7))).round(rng.integers(0, 3)).astype(kind)  # some tie
    labels = rng.integers(7, size=30)
    known = cal.score_samples(logits, labels, 1.7)
    for temperature in (0.3, 1.0, 2.5):
        fresh = cal.score_samples(logits, labels, temperature)
        again = rescore(logits, known, temperature)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(again, name), getattr(fresh, name))
    with pytest.raises(PredictionsError, match="30 samples, got 29"):
        rescore(logits, known.take(np.arange(29)), 1.0)
