"""The suggested recipe names what there is, and says where the evidence does not apply."""

import pytest

from calift_core.calibration.registry import INITIAL_MODEL_CALIBRATORS
from calift_core.recommendation import LEAST_GAIN, RECOMMENDED, advice
from calift_core.schema.methods import METHOD_SPECS


def test_recommended__is_a_method_and_a_calibrator_that_can_be_had():
    assert RECOMMENDED.method in METHOD_SPECS
    assert (RECOMMENDED.calibrator in INITIAL_MODEL_CALIBRATORS) == (RECOMMENDED.passes == 2)
    assert RECOMMENDED.with_initial in INITIAL_MODEL_CALIBRATORS


@pytest.mark.parametrize(
    ("initial", "tuned", "applies"),
    [(0.55, 0.76, True), (0.55, 0.56, False), (0.84, 0.82, False), (None, 0.7, True)],
)
def test_advice__says_where_fine_tuning_gains_too_little(initial, tuned, applies):
    output = advice(initial, tuned)
    assert (output == "") == applies
    assert applies or f"at least {100 * LEAST_GAIN:.0f}" in output
