"""Post-hoc calibrators: what each may change, what it must recover, and what it must refuse."""

import json
import logging
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from calift_core import calibration as cal
from calift_core.calibration.calibrators import PerturbedTemperature, fit_temperature
from calift_core.calibration.perturbation import perturbation_levels
from calift_core.calibration.registry import calibrator_from_dict
from calift_core.errors import LeakageError, SpecError, UnknownNameError
from calift_core.schema.wire.queries import CalibratorKind

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer]

ID = {"split": "calibration", "role": "id"}


def draw_labels(logits: Doubles, rng: np.random.Generator) -> Ints:
    truth = cal.softmax(logits).cumsum(axis=1)
    return (truth[:, :-1] < rng.random((len(logits), 1))).sum(axis=1)


def overconfident(n: int, seed: int, n_classes: int = 4) -> tuple[Doubles, Ints]:
    """Logits twice as large as the truth that drew the labels."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, n_classes)) * 1.5
    return 2 * truth, draw_labels(truth, rng)


def test_registry__is_what_may_be_requested():
    assert get_args(CalibratorKind) == (*cal.CALIBRATORS, *cal.INITIAL_MODEL_CALIBRATORS)


@pytest.mark.parametrize("kind", sorted(cal.CALIBRATORS))
def test_calibrators__repair_an_overconfident_model_on_fresh_data(kind):
    calibrator = cal.CALIBRATORS[kind]().fit(*overconfident(4000, 0), **ID)
    logits, labels = overconfident(4000, 1)
    before, after = cal.softmax(logits), calibrator.transform(logits)
    assert cal.ece(cal.score_probs(before, labels)) > 0.1
    assert cal.ece(cal.score_probs(after, labels)) < 0.04
    assert cal.nll(cal.score_probs(after, labels)) < cal.nll(cal.score_probs(before, labels))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 60), n_classes=st.integers(2, 6))
@pytest.mark.parametrize("kind", sorted(cal.CALIBRATORS))
def test_calibrators__give_probabilities_on_any_logits(kind, seed, n, n_classes):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(n, n_classes)) * 10.0 ** rng.integers(-2, 3)).astype(np.float32)
    labels = rng.integers(n_classes, size=n)
    logger = logging.getLogger("calift_core.calibration.calibrators")
    logger.disabled = True  # bounds are hit often on so few samples, and are said aloud
    try:
        calibrator = cal.CALIBRATORS[kind]().fit(logits, labels, **ID)
    finally:
        logger.disabled = False
    probs = calibrator.transform(logits)
    assert probs.shape == logits.shape
    assert (probs >= 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    stored = json.loads(json.dumps(calibrator.to_dict(), allow_nan=False))
    again = calibrator_from_dict(stored)
    assert again.to_dict() == calibrator.to_dict()
    assert (again.transform(logits) == probs).all()
    assert again.oracle is False


# Leakage


@pytest.mark.parametrize("kind", sorted(cal.CALIBRATORS))
@pytest.mark.parametrize(
    ("split", "role"), [("test", "id"), ("calibration", "shift"), ("validation", "id")]
)
def test_calibrators__refuse_all_but_id_calibration_data_unless_oracle(kind, split, role):
    logits, labels = overconfident(200, 2)
    calibrator = cal.CALIBRATORS[kind]()
    with pytest.raises(LeakageError, match=f"split '{split}' of role '{role}'"):
        calibrator.fit(logits, labels, split=split, role=role)
    assert calibrator.fitted_on is None
    calibrator.fit(logits, labels, split=split, role=role, oracle=True)
    assert calibrator.oracle
    assert calibrator.fitted_on == {"split": split, "role": role, "n": 200}
    stored = json.loads(json.dumps(calibrator.to_dict()))
    for _ in range(2):  # the mark survives however often it is stored and read
        again = calibrator_from_dict(stored)
        assert again.oracle
        assert again.fitted_on == calibrator.fitted_on
        stored = again.to_dict()


def test_calibrators__permission_alone_does_not_make_an_oracle():
    logits, labels = overconfident(200, 2)
    assert not cal.CALIBRATORS["temperature"]().fit(logits, labels, **ID, oracle=True).oracle


@pytest.mark.parametrize("kind", sorted(cal.CALIBRATORS))
def test_calibrators__unfitted_ones_say_so(kind):
    with pytest.raises(SpecError, match="must be fitted"):
        cal.CALIBRATORS[kind]().transform(np.zeros((1, 3)))


def test_calibrator_from_dict__unknown_and_incomplete_ones_are_named():
    with pytest.raises(UnknownNameError, match="Did you mean 'temperature'"):
        calibrator_from_dict({"kind": "temprature"})
    with pytest.raises(SpecError, match="must be complete"):
        calibrator_from_dict({"kind": "temperature"})


# Temperature


@given(seed=st.integers(0, 2**32 - 1), factor=st.floats(0.3, 3))
@settings(deadline=None, max_examples=20)
def test_temperature__follows_the_scale_of_the_logits(seed, factor):
    logits, labels = overconfident(600, seed)
    once = fit_temperature(logits, labels)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor * once, rel=1e-4)


def test_temperature__is_the_optimum_that_scipy_finds():
    for seed in range(3):
        logits, labels = overconfident(800, seed)

        def loss(log_t, z=logits, y=labels):
            return cal.nll(cal.score_probs(cal.softmax(z, float(np.exp(log_t))), y))

        theirs = minimize_scalar(loss, bounds=(-2, 3), method="bounded", options={"xatol": 1e-9})
        ours = fit_temperature(logits, labels)
        assert loss(float(np.log(ours))) == pytest.approx(theirs.fun, abs=1e-9)
        assert ours == pytest.approx(np.exp(theirs.x), abs=1e-6)


def test_temperature__with_a_large_offset_is_the_same_and_without_an_optimum_at_its_bound(caplog):
    logits, labels = overconfident(2000, 5)
    plain = fit_temperature(logits, labels)
    shifted = fit_temperature((logits + 25).astype(np.float32), labels)
    assert shifted == pytest.approx(plain, rel=1e-4)
    logits = np.eye(3)[[0, 1, 2, 0]]
    assert fit_temperature(logits, np.array([0, 1, 2, 0])) == pytest.approx(0.01)
    assert fit_temperature(logits, np.array([1, 2, 0, 1])) == pytest.approx(100)
    assert caplog.text.count("hits its bound") == 2


# Vector


def test_vector__fits_no_worse_than_temperature_and_undoes_a_bias():
    rng = np.random.default_rng(6)
    truth = rng.normal(size=(4000, 3)) * 1.5
    labels = draw_labels(truth, rng)
    skewed = truth * [1.0, 2.0, 0.5] + [1.0, 0.0, -1.0]
    vector = cal.CALIBRATORS["vector"]().fit(skewed, labels, **ID)
    temperature = cal.CALIBRATORS["temperature"]().fit(skewed, labels, **ID)
    fitted = cal.nll(cal.score_probs(vector.transform(skewed), labels))
    assert fitted < cal.nll(cal.score_probs(temperature.transform(skewed), labels)) - 0.01
    assert fitted == pytest.approx(cal.nll(cal.score_probs(cal.softmax(truth), labels)), abs=0.02)
    with pytest.raises(SpecError, match="fitted 3 classes, got 4"):
        vector.transform(np.zeros((1, 4)))


# Histogram and isotonic


def test_histogram__a_bin_becomes_its_accuracy():
    # Two confidences, 0.8 and 0.6, right three times in four and once in four.
    logits = np.log(np.array([[0.8, 0.2]] * 4 + [[0.6, 0.4]] * 4))
    labels = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    calibrator = cal.CALIBRATORS["histogram"]().fit(logits, labels, **ID)
    probs = calibrator.transform(logits)
    np.testing.assert_allclose(probs[:, 0], [0.75] * 4 + [0.25] * 4)
    np.testing.assert_allclose(calibrator.confidences(logits), [0.75] * 4 + [0.25] * 4)


@pytest.mark.parametrize("kind", ["histogram", "isotonic"])
def test_top_label_calibrators__keep_the_proportions_of_the_other_classes(kind):
    logits, labels = overconfident(500, 7)
    probs = cal.softmax(logits)
    after = cal.CALIBRATORS[kind]().fit(logits, labels, **ID).transform(logits)
    rows, top = np.arange(500), probs.argmax(axis=1)
    ratio = after / probs
    ratio[rows, top] = np.nan
    ratio = ratio[after[rows, top] < 1]  # a new confidence of one leaves nothing to share
    spread = np.nanmax(ratio, axis=1) - np.nanmin(ratio, axis=1)
    np.testing.assert_allclose(spread / np.nanmax(ratio, axis=1), 0, atol=1e-9)


def test_isotonic__agrees_with_scikit_learn_and_never_falls():
    isotonic = pytest.importorskip("sklearn.isotonic")
    logits, labels = overconfident(800, 8)
    scores = cal.score_probs(cal.softmax(logits), labels)
    theirs = isotonic.IsotonicRegression(out_of_bounds="clip").fit(
        scores.confidences, scores.correct
    )
    calibrator = cal.CALIBRATORS["isotonic"]().fit(logits, labels, **ID)
    fresh, _ = overconfident(300, 9)
    found = calibrator.confidences(fresh)
    given_ = cal.score_probs(cal.softmax(fresh), np.zeros(300, dtype=int)).confidences
    np.testing.assert_allclose(found, theirs.predict(given_), atol=1e-9)
    assert (np.diff(found[np.argsort(given_)]) >= 0).all()


# TS-P


def test_perturbation_levels__accuracy_falls_in_equal_steps_to_chance():
    def accuracy_at(noise):
        return 0.1 + 0.8 * float(np.exp(-noise))

    levels = perturbation_levels(accuracy_at, n_classes=10, n_levels=5, max_noise=20.0)
    assert levels == sorted(levels)
    assert levels[0] == 0
    reached = [accuracy_at(level) for level in levels]
    np.testing.assert_allclose(reached, [0.9, 0.7, 0.5, 0.3, 0.1], atol=1e-3)
    with pytest.raises(SpecError, match="n_levels must be ≥ 2, got 1"):
        perturbation_levels(accuracy_at, n_classes=10, n_levels=1)


class Toy:
    """A small model of two-dimensional inputs that is over-confident, more so under noise."""

    def __init__(self, n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(3, size=n)
        angle = 2 * np.pi * np.arange(3) / 3
        self.weights = np.stack([np.cos(angle), np.sin(angle)])  # (2, C)
        self.inputs = self.weights.T[self.labels] + 0.5 * rng.normal(size=(n, 2))
        self.noise = rng.normal(size=(n, 2))

    def __call__(self, level: float) -> Doubles:
        return 6 * np.tanh(self.inputs + level * self.noise) @ self.weights


def test_tsp__fits_the_union_of_perturbed_copies():
    toy = Toy(2000, 0)

    def accuracy_at(level):
        return float((toy(level).argmax(axis=1) == toy.labels).mean())

    levels = perturbation_levels(accuracy_at, n_classes=3, n_levels=5, n_steps=12)
    union = np.concatenate([toy(level) for level in levels])
    tsp = PerturbedTemperature().fit(union, np.tile(toy.labels, 5), **ID)
    assert tsp.fitted_on == {"split": "calibration", "role": "id", "n": 10_000}
    plain = cal.CALIBRATORS["temperature"]().fit(toy(0.0), toy.labels, **ID)
    fresh = Toy(2000, 1)
    shifted = [fresh(level) for level in levels]
    assert np.mean(
        [cal.nll(cal.score_probs(tsp.transform(z), fresh.labels)) for z in shifted]
    ) < np.mean([cal.nll(cal.score_probs(plain.transform(z), fresh.labels)) for z in shifted])
    stored = calibrator_from_dict(json.loads(json.dumps(tsp.to_dict())))
    assert isinstance(stored, PerturbedTemperature)
    assert stored.temperature == tsp.temperature
