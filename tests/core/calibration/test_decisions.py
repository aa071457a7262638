"""Thresholds keep what they promise, held against models whose true error rates are known."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaincinv
from scipy.stats import beta, binomtest

from calift_core import calibration as cal
from calift_core.analysis.deciding import promise_test
from calift_core.calibration.beta import beta_quantile
from calift_core.calibration.bins import Doubles
from calift_core.calibration.decisions import (
    THRESHOLDS,
    choose_threshold,
    clopper_pearson,
    keep,
    risk_curve,
)
from calift_core.errors import SpecError

REPEATS = 400


def drawn(rng: np.random.Generator, n: int, error: Callable[[Doubles], Doubles]) -> cal.TopLabel:
    """Samples of a population whose error rate at a confidence is known."""
    confidences = rng.beta(6, 1.0, n)
    return cal.TopLabel(confidences, rng.random(n) >= error(confidences))


def true_risk(error: Callable[[Doubles], Doubles], threshold: float) -> float:
    confidences = np.random.default_rng(99).beta(6, 1.0, 200_000)
    return float(error(confidences[confidences >= threshold]).mean())


#: Calibrated, over-confident, and as wrong as is just too much whatever the confidence says.
ERRORS: dict[str, Callable[[Doubles], Doubles]] = {
    "calibrated": lambda c: 1 - c,
    "over-confident": lambda c: 1 - c**2,
    "flat": lambda c: np.full_like(c, 0.0501),
}


@pytest.mark.parametrize("name", ERRORS)
def test_choose_threshold__keeps_its_promise_in_95_of_100_repeats(name):
    rng, error, risk = np.random.default_rng(7), ERRORS[name], 0.05
    found = [choose_threshold(drawn(rng, 800, error), risk=risk) for _ in range(REPEATS)]
    risks = {t: true_risk(error, t) for t in set(found) if t is not None}
    broken = sum(t is not None and risks[t] > risk for t in found)
    # No more than one in twenty, within what 400 repeats can show.
    assert binomtest(broken, REPEATS, 0.05, alternative="greater").pvalue > 0.001
    if name == "calibrated":  # of as many samples as there often are, it finds one
        many = [choose_threshold(drawn(rng, 4000, error), risk=risk) for _ in range(50)]
        assert sum(t is not None and t < 0.95 for t in many) > 45


def test_promise__holds_for_exchangeable_parts_and_is_refuted_on_others():
    """200 times, parts are dealt from 6,000 fixed images, over-confident as letters are.

    Monte-Carlo standard error of the promise: 1.5 points at 5 %. The other test part is seven
    points less accurate at any confidence.
    """
    rng, repeats, n = np.random.default_rng(11), 200, 2_500
    confidences = rng.beta(4, 0.5, 6_000)
    pool = cal.TopLabel(confidences, rng.random(6_000) < confidences**1.2)
    weights = np.where(pool.correct, 1.0, 1.7)
    broken = refuted_alike = refuted = differ = stricter = 0
    for _ in range(repeats):
        alike, test = (rng.integers(6_000, size=n) for _ in range(2))
        harder = rng.choice(6_000, n, p=weights / weights.sum())
        calibration, one, other = (
            cal.TopLabel(pool.confidences[at], pool.correct[at]) for at in (alike, test, harder)
        )
        threshold = choose_threshold(calibration, risk=0.05)
        assert threshold is not None
        broken += (keep(pool, threshold).risk or 0.0) > 0.05
        held, failed = (
            promise_test(calibration, part, threshold=threshold, risk=0.05, level=0.95)
            for part in (one, other)
        )
        refuted_alike += held["holds"] is False
        refuted += failed["holds"] is False
        differ += failed["distinguishable"]
        stricter += (failed["threshold"] or 1.0) > threshold
    assert broken <= 0.05 * repeats
    assert refuted_alike <= 0.025 * repeats
    assert refuted >= 0.5 * repeats
    assert min(differ, stricter) >= 0.95 * repeats


def test_choose_threshold__the_loosest_that_passes_alone_would_break_it():
    rng, error, risk = np.random.default_rng(8), ERRORS["flat"], 0.05
    broken, repeats = 0, 200
    for _ in range(repeats):
        scores = drawn(rng, 3000, error)
        inside = scores.confidences[:, None] >= THRESHOLDS[20:100:3]
        kept, errors = inside.sum(axis=0), (inside & ~scores.correct[:, None]).sum(axis=0)
        broken += bool((beta.ppf(0.95, errors + 1, kept - errors) <= risk).any())
    assert broken / repeats > 0.1


def test_choose_threshold__keeps_no_more_for_a_stricter_promise_or_none():
    scores = drawn(np.random.default_rng(1), 3000, ERRORS["calibrated"])
    found = [choose_threshold(scores, risk=r) or 2.0 for r in (0.01, 0.02, 0.05, 0.1)]
    assert found == sorted(found, reverse=True)
    loose = choose_threshold(scores, risk=0.05, level=0.8)
    strict = choose_threshold(scores, risk=0.05, level=0.99)
    assert loose is not None
    assert strict is not None
    assert loose <= strict
    right = cal.TopLabel(np.full(58, 0.9), np.ones(58, dtype=np.bool_))
    assert choose_threshold(right, risk=0.05) is None  # 0.95**58 > 0.05
    right = cal.TopLabel(np.full(59, 0.9), np.ones(59, dtype=np.bool_))
    assert choose_threshold(right, risk=0.05) == 0.0
    wrong = cal.TopLabel(np.full(500, 0.9), np.zeros(500, dtype=np.bool_))
    assert choose_threshold(wrong, risk=0.05) is None
    for bad in ({"risk": 0.0}, {"risk": 1.0}, {"risk": 0.1, "level": 1.0}):
        with pytest.raises(SpecError, match="must lie in"):
            choose_threshold(right, **bad)


def test_beta_quantile__is_scipys():
    a, b = (10.0 ** np.random.default_rng(seed).uniform(-0.3, 6, 200) for seed in (0, 1))
    for share in (1e-4, 0.025, 0.5, 0.95):
        found, wanted = beta_quantile(a, b, share), betaincinv(a, b, share)
        assert found == pytest.approx(wanted, rel=1e-7, abs=1e-300)
    assert beta_quantile(2.0, 3.0, [0.0, 1.0]).tolist() == [0.0, 1.0]


@given(st.integers(0, 50), st.integers(0, 50))
def test_clopper_pearson__is_scipys(a, b):
    k, n = min(a, b), max(a, b)
    low, high = clopper_pearson(float(k), float(n))
    if n == 0:
        assert (float(low), float(high)) == (0.0, 1.0)
        return
    expected = binomtest(k, n).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose((low, high), (expected.low, expected.high), atol=1e-9)


@given(st.integers(1, 400), st.integers(0, 2**32 - 1), st.booleans())
def test_risk_curve__ends_at_all_samples_and_is_what_keep_counts(n, seed, ties):
    rng = np.random.default_rng(seed)
    confidences = rng.random(n).round(1 if ties else 9)
    scores = cal.TopLabel(confidences, rng.random(n) < 0.7)
    curve = risk_curve(scores, points=20)
    assert curve.coverage[-1] == 1
    assert curve.risk[-1] == pytest.approx(1 - cal.accuracy(scores))
    assert (np.diff(curve.coverage) > 0).all()
    assert (curve.low <= curve.risk).all()
    assert (curve.risk <= curve.high).all()
    for threshold, coverage, risk in zip(curve.thresholds, curve.coverage, curve.risk, strict=True):
        kept = keep(scores, float(threshold))
        assert kept.coverage == pytest.approx(coverage)
        assert kept.risk == pytest.approx(risk)
    assert keep(scores, 1.5).risk is None
