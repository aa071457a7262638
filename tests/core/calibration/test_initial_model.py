"""Calibrators that read the initial model's logits: what defines them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calift_core.calibration import INITIAL_MODEL_CALIBRATORS, softmax
from calift_core.calibration.calibrators import Temperature
from calift_core.calibration.initial_model import (
    PRIOR,
    CautiousTemperature,
    DisagreementTemperature,
    Ensemble,
    SampleScaling,
    disagreement,
)
from calift_core.calibration.registry import calibrator_from_dict
from calift_core.errors import LeakageError, SpecError

ID = {"split": "calibration", "role": "id"}


def drawn(seed: int, n: int = 400, n_classes: int = 5, apart: float = 1.0):
    """Logits of a tuned and an initial model, and labels that the mean of both explains."""
    rng = np.random.default_rng(seed)
    initial = rng.normal(0, 2, (n, n_classes)).astype(np.float32)
    logits = (initial + rng.normal(0, apart, initial.shape)).astype(np.float32)
    probs = softmax((logits + initial) / 2)
    labels = np.array([rng.choice(n_classes, p=p / p.sum()) for p in probs.astype(np.float64)])
    return 2 * logits, initial, labels


def nll(probs, labels) -> float:
    return float(-np.log(probs[np.arange(len(labels)), labels]).mean())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(INITIAL_MODEL_CALIBRATORS)))
def test_initial_model__predictions_are_kept_where_it_says_so_and_when_stored(seed, kind):
    logits, initial, labels = drawn(seed, n=100)
    calibrator = INITIAL_MODEL_CALIBRATORS[kind]().fit(logits, labels, initial=initial, **ID)
    probs = calibrator.transform(logits, initial)
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-5)
    agree = initial.argmax(axis=1) == logits.argmax(axis=1)
    kept = probs.argmax(axis=1) == logits.argmax(axis=1)
    assert kept[agree].all() if kind == "ensemble" else kept.all()
    again = calibrator_from_dict(calibrator.to_dict())
    assert np.array_equal(again.transform(logits, initial), probs)


def test_disagreement__of_equal_models_is_plain_temperature():
    logits, _, labels = drawn(0)
    found = DisagreementTemperature().fit(logits, labels, initial=logits, **ID)
    plain = Temperature().fit(logits, labels, **ID)
    assert not disagreement(logits, logits).any()
    assert found.b == 0
    assert np.exp(found.a) == pytest.approx(plain.temperature, rel=1e-3)


def test_disagreement__is_hotter_where_models_differ_and_no_worse_than_temperature():
    logits, initial, labels = drawn(1, n=4000, apart=3.0)
    found = DisagreementTemperature().fit(logits, labels, initial=initial, **ID)
    plain = Temperature().fit(logits, labels, **ID)
    assert found.b > 0
    of = nll(found.transform(logits, initial), labels)
    assert of < nll(plain.transform(logits), labels)

    # The optimum of NLL and prior together: no step of either parameter lowers it.
    def loss(a, b):
        heat = np.exp(a + b * disagreement(logits, initial))[:, None]
        return nll(softmax(logits / heat), labels) + b * b / (2 * PRIOR**2 * len(labels))

    best = loss(found.a, found.b)
    for da, db in ((1e-2, 0), (-1e-2, 0), (0, 1e-2), (0, -1e-2)):
        assert loss(found.a + da, found.b + db) >= best


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_cautious__is_disagreement_temperature_where_b_is_not_negative_else_plain_temperature(
    seed, is_right
):
    logits, initial, labels = drawn(seed, n=300, apart=3.0)
    if is_right:  # the tuned model is right throughout: where the two disagree, b wants to be < 0
        labels = logits.argmax(axis=1)
        labels[::9] = initial.argmax(axis=1)[::9]
    free = DisagreementTemperature().fit(logits, labels, initial=initial, **ID)
    found = CautiousTemperature().fit(logits, labels, initial=initial, **ID)
    assert found.b >= 0
    if free.b >= 0:
        assert found.b == pytest.approx(free.b, abs=1e-2)
    else:
        plain = Temperature().fit(logits, labels, **ID)
        assert np.exp(found.a) == pytest.approx(plain.temperature, rel=1e-2)
        assert found.b == pytest.approx(0, abs=1e-6)


def test_disagreement__few_images_leave_it_near_temperature():
    logits, initial, labels = drawn(2, n=4000, apart=3.0)
    many = DisagreementTemperature().fit(logits, labels, initial=initial, **ID)
    one = DisagreementTemperature().fit(logits[:1], labels[:1], initial=initial[:1], **ID)
    assert abs(one.b) < abs(many.b)


def test_sals__has_the_range_of_the_initial_model():
    logits, initial, labels = drawn(3)
    found = SampleScaling().fit(logits, labels, initial=initial, **ID)
    probs = found.transform(logits, initial).astype(np.float64)
    spread = np.log(probs.max(axis=1) / probs.min(axis=1))
    assert np.allclose(spread, initial.max(axis=1) - initial.min(axis=1), atol=1e-3)
    assert np.allclose(found.transform(initial, initial), softmax(initial), atol=1e-6)
    flat = np.zeros_like(logits)
    assert np.allclose(found.transform(flat, initial), 1 / logits.shape[1])


def test_ensemble__of_equal_models_is_temperature():
    logits, _, labels = drawn(5)
    found = Ensemble().fit(logits, labels, initial=logits, **ID)
    plain = Temperature().fit(logits, labels, **ID)
    assert np.allclose(found.transform(logits, logits), plain.transform(logits), atol=1e-6)


def test_initial_model__without_the_initial_model_or_off_the_calibration_split_is_refused():
    logits, initial, labels = drawn(4)
    for kind, make in INITIAL_MODEL_CALIBRATORS.items():
        with pytest.raises(SpecError, match=f"{kind}.*initial model's logits, got none"):
            make().fit(logits, labels, **ID)
        with pytest.raises(SpecError, match=r"must be \(400, 5\), they are \(400, 4\)"):
            make().fit(logits, labels, initial=initial[:, :4], **ID)
        with pytest.raises(LeakageError):
            make().fit(logits, labels, initial=initial, split="test", role="id")
        fitted = make().fit(logits, labels, initial=initial, **ID)
        with pytest.raises(SpecError, match="got none"):
            fitted.transform(logits)
