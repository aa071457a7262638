"""Structured scaling: what pulls it to temperature, and what `probmetrics` finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calift_core.calibration import CALIBRATORS
from calift_core.calibration.calibrators import Temperature
from calift_core.errors import SpecError

ID = {"split": "calibration", "role": "id"}
KINDS = ("svs", "sms")


def waves(n: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels that no generator of random numbers decides."""
    at = np.outer(np.arange(1, n + 1), 0.7 + 0.6 * np.arange(n_classes))
    logits = 3 * np.sin(at)
    return logits, (logits + np.array([1.0, 0, -0.5, 0][:n_classes]) + 2 * np.cos(3 * at)).argmax(1)


#: What probmetrics 1.3.0 gives for the first three rows of waves(80, 4), fitted on all of them.
PROBMETRICS = {
    "svs": [
        [0.2284, 0.304, 0.3473, 0.1203],
        [0.8655, 0.1213, 0.0084, 0.0048],
        [0.5599, 0.0028, 0.009, 0.4284],
    ],
    "sms": [
        [0.1833, 0.3287, 0.3531, 0.135],
        [0.8631, 0.1284, 0.0031, 0.0054],
        [0.7296, 0.0022, 0.0054, 0.2627],
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_structured__is_what_probmetrics_finds(kind):
    logits, labels = waves(80, 4)
    found = CALIBRATORS[kind]().fit(logits, labels, **ID)
    np.testing.assert_allclose(found.transform(logits[:3]), PROBMETRICS[kind], atol=2e-3)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(KINDS), st.integers(2, 4), st.integers(30, 90))
def test_structured__no_step_of_any_parameter_lowers_its_objective(kind, n_classes, n):
    logits, labels = waves(n, n_classes)
    found = CALIBRATORS[kind]().fit(logits, labels, **ID)
    rows = np.arange(n)

    def objective(weight, bias):
        found.weight, found.bias = weight, bias
        nll = -np.log(found.transform(logits)[rows, labels]).mean()
        ridge = n_classes / n
        return float(nll + found._penalty(weight, n_classes, ridge)[0] + ridge * bias @ bias)

    weight, bias = found.weight, found.bias
    best = objective(weight, bias)
    for at in range(len(weight) + len(bias)):
        for step in (1e-3, -1e-3):
            moved = np.concatenate([weight, bias])
            moved[at] += step
            assert objective(moved[: len(weight)], moved[len(weight) :]) >= best - 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_structured__one_image_moves_it_from_temperature_by_little(kind):
    logits, labels = waves(300, 4)
    few = CALIBRATORS[kind]().fit(logits[:1], labels[:1], **ID)
    many = CALIBRATORS[kind]().fit(logits, labels, **ID)
    with pytest.raises(SpecError, match="the fitted 4 classes, got 3"):
        many.transform(logits[:, :3])
    assert np.abs(few.weight).max() < np.abs(many.weight).max()
    plain = Temperature().fit(logits, labels, **ID)
    nll = [-np.log(c.transform(logits)[np.arange(300), labels]).mean() for c in (many, plain)]
    assert nll[0] < nll[1]
