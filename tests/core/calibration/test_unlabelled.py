"""Expected accuracy without labels, and drift."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calift_core.calibration.unlabelled import (
    AVERAGE,
    ESTIMATORS,
    THRESHOLD,
    EstimatorError,
    Labelled,
    energy_drift,
    estimate_accuracy,
    expected_accuracy,
    familiarity,
    recommended,
    validate_estimators,
)
from calift_core.errors import PredictionsError, SpecError


def calibrated(rng: np.random.Generator, n: int, a: float = 4.0, b: float = 1.5) -> Labelled:
    confidences = rng.beta(a, b, size=n)
    return Labelled(confidences, rng.random(n) < confidences)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 400))
def test_expected_accuracy__of_the_id_data_themselves_is_their_accuracy(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    labelled = Labelled(rng.permutation(n) / n, rng.random(n) < 0.7)  # no two alike
    found = expected_accuracy(labelled, labelled.confidences)
    accuracy = labelled.correct.mean()
    assert found[THRESHOLD] == pytest.approx(accuracy)
    assert found["difference_of_confidences"] == pytest.approx(accuracy)
    assert found[AVERAGE] == pytest.approx(labelled.confidences.mean())


@given(seed=st.integers(0, 2**32 - 1))
def test_expected_accuracy__lies_in_0_to_1_and_rises_with_confidence(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labelled, target = calibrated(rng, 100), rng.random(60)
    low = expected_accuracy(labelled, target * 0.5)
    high = expected_accuracy(labelled, target)
    for name in ESTIMATORS:
        assert 0 <= low[name] <= high[name] <= 1


def test_estimates__cover_the_accuracy_where_the_model_stays_calibrated() -> None:
    rng = np.random.default_rng(0)
    hits = dict.fromkeys(ESTIMATORS, 0)
    for repeat in range(60):
        labelled, target = calibrated(rng, 800), calibrated(rng, 500, 3.0, 1.6)
        truth = float((target.confidences).mean())
        for e in estimate_accuracy(labelled, target.confidences, n_resamples=100, seed=repeat):
            assert e.low <= e.value <= e.high
            hits[e.estimator] += e.low <= truth <= e.high
    # What is covered is the expectation; thresholding is biased once the confidences move.
    assert hits[AVERAGE] >= 50
    assert hits["difference_of_confidences"] >= 50


def test_thresholded__of_tied_confidences_is_not_biased_where_nothing_shifts() -> None:
    """Ten levels of confidence; Monte-Carlo standard error 0.06 points."""
    rng = np.random.default_rng(4)
    levels = np.linspace(0.5, 0.95, 10)
    off = []
    for _ in range(1_000):
        own, target = rng.choice(levels, 1_000), rng.choice(levels, 1_000)
        labelled = Labelled(own, rng.random(1_000) < own)
        off.append(expected_accuracy(labelled, target)[THRESHOLD] - levels.mean())
    assert abs(np.mean(off)) < 0.005


def test_judged__says_who_was_off_and_recommends_none_that_was_worse_than_the_average() -> None:
    rng = np.random.default_rng(1)
    labelled = calibrated(rng, 4_000)
    sure = rng.beta(4, 1.5, size=4_000)  # as sure as before, and wrong twice as often
    shifts = {
        "honest": calibrated(rng, 4_000, 2.0, 2.0),
        "wrong and sure": Labelled(sure, rng.random(4_000) < sure / 2),
    }
    judged = {j.estimator: j for j in validate_estimators(labelled, shifts)}
    assert abs(judged[AVERAGE].errors["honest"]) < 0.03
    assert all(j.errors["wrong and sure"] > 0.2 for j in judged.values())
    best = recommended(list(judged.values()))
    assert judged[best].mean_error <= judged[AVERAGE].mean_error
    worse = [EstimatorError(AVERAGE, {"a": 0.1}), EstimatorError(THRESHOLD, {"a": -0.2})]
    assert recommended(worse) == AVERAGE
    assert recommended([EstimatorError(name, {}) for name in ESTIMATORS]) == AVERAGE


def test_energy_drift__finds_a_move_and_calls_equal_sets_different_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    called = 0
    for seed in range(100):
        found = energy_drift(
            rng.normal(size=(60, 4)), rng.normal(size=(50, 4)), n_permutations=99, seed=seed
        )
        called += found.p_value <= 0.05
    assert called <= 11  # 5 expected; more than 11 in 1 of 250 such tests
    moved = energy_drift(rng.normal(size=(200, 4)), rng.normal(0.5, size=(200, 4)))
    assert moved.p_value <= 0.002
    assert moved.distance > 0.05


def test_energy_drift__is_the_definition() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a[:, None] - b[None], axis=-1).mean())

    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert energy_drift(x, y, n_permutations=1).distance == pytest.approx(expected)
    assert energy_drift(x, x, n_permutations=9).distance == pytest.approx(0, abs=1e-12)
    large = energy_drift(rng.normal(size=(1_500, 2)), y[:, :2], n_permutations=1)
    assert (large.n_reference, large.n) == (1_000, 5)


def test_familiarity__tells_what_lies_among_known_shifts_from_what_is_further_or_unlike() -> None:
    rng = np.random.default_rng(5)

    def at(*where: float) -> np.ndarray:
        return rng.normal(size=(200, 3)) + np.array(where)

    own, shifts = at(0, 0, 0), {"a": at(2, 0, 0), "b": at(3, 0, 0), "c": at(2, 1.5, 0)}
    ways = {
        "alike": (at(0, 0, 0), False, False),
        "between": (at(2.5, 0, 0), False, False),
        "known": (at(3, 0, 0)[:20], False, False),
        "further": (at(8, 0, 0), True, True),
        "unlike": (at(0, 0, -2.5), False, True),
    }
    for name, (values, further, unlike) in ways.items():
        found = familiarity(own, shifts, values)
        assert found is not None
        assert (found.further, found.unlike) == (further, unlike), name
    assert found.nearest == "ID"
    assert familiarity(own, {}, own) is None
    long = familiarity(at(0, 0, 0).repeat(6, axis=0), shifts, at(2, 0, 0))
    assert long is not None
    assert long.nearest == "a"


def test_wrong_input__is_a_sentence() -> None:
    good = Labelled(np.array([0.5]), np.array([True]))
    with pytest.raises(PredictionsError, match="same N"):
        Labelled(np.array([0.5, 0.6]), np.array([True]))
    for confidences in ([], [1.2], [np.nan], [[0.5]]):
        with pytest.raises(PredictionsError, match="confidences must"):
            expected_accuracy(good, np.array(confidences))
    with pytest.raises(SpecError, match="n_resamples"):
        estimate_accuracy(good, np.array([0.5]), n_resamples=0)
    with pytest.raises(PredictionsError, match="2 rows"):
        energy_drift(np.zeros((1, 2)), np.zeros((5, 2)))
    with pytest.raises(SpecError, match="n_permutations"):
        energy_drift(np.zeros((3, 2)), np.zeros((5, 2)), n_permutations=0)
