"""Ensemble temperature scaling: between temperature, what the model says, and nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from calift_core.calibration import CALIBRATORS
from calift_core.calibration.bins import softmax

ID = {"split": "calibration", "role": "id"}


def drawn(seed: int, *, scale: float, blind: float, n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Logits of 5 classes whose labels follow them, but for a share that follows nothing."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, 5))
    labels = np.array([rng.choice(5, p=p) for p in softmax(logits).astype(np.float64)])
    at_random = rng.random(n) < blind
    labels[at_random] = rng.integers(0, 5, at_random.sum())
    return scale * logits, labels


def nll(probs: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(probs[np.arange(len(labels)), labels]).mean())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.floats(0.3, 3), st.floats(0, 0.4))
def test_ets__keeps_predictions_and_fits_no_worse_than_temperature(seed, scale, blind):
    logits, labels = drawn(seed, scale=scale, blind=blind)
    found = CALIBRATORS["ets"]().fit(logits, labels, **ID)
    probs = found.transform(logits)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(probs.argmax(axis=1), logits.argmax(axis=1))
    plain = CALIBRATORS["temperature"]().fit(logits, labels, **ID).transform(logits)
    assert nll(probs, labels) <= nll(plain, labels) + 1e-6


def test_ets__weights_are_where_a_general_solver_puts_them():
    logits, labels = drawn(3, scale=2.0, blind=0.3)
    found = CALIBRATORS["ets"]().fit(logits, labels, **ID)
    parts = np.stack(
        [softmax(logits, found.temperature), softmax(logits), np.full(logits.shape, 0.2)]
    ).astype(np.float64)
    own = parts[:, np.arange(len(labels)), labels]
    best = minimize(
        lambda w: -np.log(w @ own).mean(),
        np.full(3, 1 / 3),
        method="SLSQP",
        bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-12},
    )
    assert nll(found.transform(logits), labels) == pytest.approx(best.fun, abs=1e-5)
    assert found.weights[2] > 0.1  # a share of the labels follows nothing
