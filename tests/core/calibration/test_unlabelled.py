"""Expected accuracy without labels."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar

from calift_core.calibration import unlabelled
from calift_core.calibration.bins import softmax
from calift_core.calibration.unlabelled import (
    AGREEMENT,
    AVERAGE,
    DIFFERENCE,
    FUSED,
    REGRESSED,
    THRESHOLD,
    TRANSPORT,
    AccuracyEstimators,
    EstimatorError,
    KnownSet,
    Labelled,
    Unlabelled,
    estimate_regressed,
    fit_nearest,
    recommended,
    regressed,
    validate_estimators,
)
from calift_core.errors import PredictionsError, SpecError


def of(confidences: np.ndarray, right: np.ndarray, initial: np.ndarray | None = None) -> Labelled:
    """Images of four classes in turn, with these confidences, and right where `right` says so."""
    n, labels = len(confidences), np.arange(len(confidences)) % 4
    probs = np.tile(((1 - confidences) / 3)[:, None], (1, 4))
    probs[np.arange(n), np.where(right, labels, (labels + 1) % 4)] = confidences
    return Labelled(probs, initial, labels)


def calibrated(rng: np.random.Generator, n: int, a: float = 4.0, b: float = 1.5) -> Labelled:
    confidences = 0.3 + 0.7 * rng.beta(a, b, size=n)
    return of(confidences, rng.random(n) < confidences)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(4, 300))
def test_estimators__of_the_id_data_themselves_give_their_accuracy(seed, n):
    rng = np.random.default_rng(seed)
    confidences = 0.3 + 0.7 * rng.permutation(n) / n  # no two alike
    own = of(confidences, rng.random(n) < 0.7, rng.normal(size=(n, 4)))
    found = AccuracyEstimators(own).expected(own)
    for name in (DIFFERENCE, THRESHOLD, AGREEMENT):
        assert found[name] == pytest.approx(own.accuracy, abs=1e-6), name
    assert found[AVERAGE] == pytest.approx(confidences.mean())
    # Which of equal images is moved to which label is open: costs may tie.
    assert found[TRANSPORT] == pytest.approx(own.accuracy, abs=1e-6)
    assert all(0 <= value <= 1 for value in found.values())


def test_estimates__cover_the_accuracy_where_the_model_stays_calibrated():
    rng = np.random.default_rng(0)
    hits = dict.fromkeys((AVERAGE, DIFFERENCE), 0)
    for repeat in range(60):
        own, target = calibrated(rng, 400), calibrated(rng, 300, 3.0, 1.6)
        truth = float(target.confidences.mean())
        for e in AccuracyEstimators(own).estimate(target, n_resamples=60, seed=repeat):
            assert e.low <= e.value <= e.high
            if e.estimator in hits:
                hits[e.estimator] += e.low <= truth <= e.high
    # What is covered is the expectation; the others are biased once the confidences move.
    assert min(hits.values()) >= 50


def test_thresholded__of_tied_confidences_is_not_biased_where_nothing_shifts():
    """Ten levels of confidence; Monte-Carlo standard error 0.06 points."""
    rng = np.random.default_rng(4)
    levels = np.linspace(0.5, 0.95, 10)
    off = []
    for _ in range(1_000):
        own, target = rng.choice(levels, 1_000), rng.choice(levels, 1_000)
        accuracy = float((rng.random(1_000) < own).mean())
        off.append(unlabelled._share_above(own, target, accuracy) - levels.mean())
    assert abs(np.mean(off)) < 0.005


def test_parts__are_what_independent_ways_find():
    rng = np.random.default_rng(7)
    probs = rng.dirichlet(np.ones(3), size=6)
    places = np.repeat(np.arange(3), 2)
    least = min(
        sum(1 - probs[i, places[j]] for i, j in enumerate(p)) for p in permutations(range(6))
    )
    assert unlabelled._costs(probs, np.full(3, 1 / 3)).sum() == pytest.approx(least)

    rows = rng.normal(size=(300, 2))
    right = (rng.random(300) < 1 / (1 + np.exp(-rows[:, 0] - 0.5))).astype(float)

    def loss(w):
        z = w[0] + rows @ w[1:]
        return float(np.logaddexp(0, z).mean() - (right * z).mean() + 5e-4 * w[1:] @ w[1:])

    np.testing.assert_allclose(
        unlabelled._logistic(rows, right), minimize(loss, np.zeros(3)).x, atol=1e-4
    )
    logits = rng.normal(size=(80, 5)) * 3
    near = softmax(logits, 1.7)
    assert fit_nearest(logits, near) == pytest.approx(1.7, rel=1e-3)
    other = softmax(rng.normal(size=(80, 5)))

    def divergence(log_t):
        return float((other * np.log(other / softmax(logits, float(np.exp(log_t))))).sum())

    best = minimize_scalar(divergence, bounds=(-3, 3), method="bounded").x
    assert fit_nearest(logits, other) == pytest.approx(np.exp(best), rel=1e-3)


def test_initial_model__that_agrees_less_lowers_the_estimate_of_a_model_as_sure_as_before():
    rng = np.random.default_rng(3)

    def drawn(accuracy, theirs):
        sure = 0.6 + 0.4 * rng.random(2_000)
        made = of(sure, rng.random(2_000) < accuracy)
        initial = rng.normal(size=(2_000, 4))
        named = rng.random(2_000) < np.where(made.correct, theirs, 0.25)
        initial[np.arange(2_000), np.where(named, made.labels, rng.integers(4, size=2_000))] += 3
        return Labelled(made.probs, initial, made.labels)

    estimators, shift = AccuracyEstimators(drawn(0.8, 0.9)), drawn(0.5, 0.9)
    found = estimators.expected(shift)
    assert found[AVERAGE] > 0.75
    assert found[AGREEMENT] < found[AVERAGE] - 0.1
    assert found[FUSED] < found[AVERAGE] - 0.05
    with pytest.raises(PredictionsError, match="initial model's logits"):
        estimators.expected(Unlabelled(shift.probs))


def sets(accuracies: np.ndarray, slope: float, noise: np.ndarray) -> list[KnownSet]:
    """Sets whose estimates lie on a line in log-odds, but for noise."""
    odds = np.log(accuracies / (1 - accuracies))
    estimates = 1 / (1 + np.exp(-(slope * odds + 1.0 + noise)))
    return [
        KnownSet(str(i), float(a), {AVERAGE: float(e), DIFFERENCE: float(e)})
        for i, (a, e) in enumerate(zip(accuracies, estimates, strict=True))
    ]


def test_regressed__on_a_line_is_exact_and_its_interval_covers_what_scatters_about_it():
    rng = np.random.default_rng(2)
    own, *shifts, new = sets(rng.uniform(0.2, 0.9, size=7), 0.5, np.zeros(7))
    by_name = {one.estimator: one for one in validate_estimators(own, shifts)}
    assert max(map(abs, by_name[AVERAGE + REGRESSED].errors.values())) < 1e-9
    assert by_name[AVERAGE].mean_error > 0.05
    assert regressed([own, *shifts], AVERAGE, new.estimates[AVERAGE]) == pytest.approx(new.accuracy)
    assert recommended(list(by_name.values())) in (AVERAGE + REGRESSED, DIFFERENCE + REGRESSED)
    few = {one.estimator for one in validate_estimators(own, shifts[:2])}
    assert few == {AVERAGE, DIFFERENCE}

    covered = 0
    for _ in range(400):
        own, *shifts, new = sets(rng.uniform(0.3, 0.8, size=8), 0.7, rng.normal(0, 0.15, size=8))
        errors = {one.estimator: one for one in validate_estimators(own, shifts)}
        estimate = estimate_regressed(
            [own, *shifts], errors[AVERAGE + REGRESSED], new.estimates[AVERAGE]
        )
        covered += estimate.low <= new.accuracy <= estimate.high
    assert 0.92 <= covered / 400 <= 0.995


def test_validated__says_who_was_off_and_recommends_none_that_was_worse():
    rng = np.random.default_rng(1)
    own = calibrated(rng, 2_000)
    sure = 0.3 + 0.7 * rng.beta(4, 1.5, size=2_000)  # as sure as before, wrong twice as often
    shifts = {
        "honest": calibrated(rng, 2_000, 2.0, 2.0),
        "wrong and sure": of(sure, rng.random(2_000) < sure / 2),
    }
    estimators = AccuracyEstimators(own)
    known = [estimators.known(name, shift) for name, shift in shifts.items()]
    judged = {j.estimator: j for j in validate_estimators(estimators.known("ID", own), known)}
    assert abs(judged[AVERAGE].errors["honest"]) < 0.03
    assert all(j.errors["wrong and sure"] > 0.2 for j in judged.values())
    assert judged[AVERAGE].bias > 0.1
    best = recommended(list(judged.values()))
    assert judged[best].mean_error <= judged[DIFFERENCE].mean_error
    worse = [EstimatorError(DIFFERENCE, {"a": 0.1}), EstimatorError(THRESHOLD, {"a": -0.2})]
    assert recommended(worse) == DIFFERENCE
    assert recommended([EstimatorError(AVERAGE, {})]) == DIFFERENCE


def test_wrong_input__is_a_sentence():
    half = np.full((2, 2), 0.5)
    good = Labelled(half, None, np.array([0, 1]))
    with pytest.raises(PredictionsError):
        Labelled(half, None, np.array([0]))
    with pytest.raises(PredictionsError, match="must be \\(2, 2\\), got \\(2, 3\\)"):
        Unlabelled(half, np.zeros((2, 3)))
    with pytest.raises(PredictionsError, match="2 classes"):
        AccuracyEstimators(good).expected(Unlabelled(np.full((1, 4), 0.25)))
    with pytest.raises(SpecError, match="n_resamples"):
        AccuracyEstimators(good).estimate(good, n_resamples=0)
