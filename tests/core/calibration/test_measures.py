"""Bins and measures: the relations that define them, hand-worked cases, parity with others."""

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from calift_core import calibration as cal
from calift_core.calibration import measures
from calift_core.calibration.diagrams import wilson_interval
from calift_core.calibration.measures import (
    debiased_squared_error,
    over_under_confidence,
    top_k_accuracy,
)
from calift_core.calibration.smooth import smooth_ece_at
from calift_core.errors import PredictionsError, SpecError, UnknownNameError

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Case = tuple[Floats, Ints]


def simulate(n, n_classes, seed, *, true_temperature=1.0, spread=2.0):
    """Probabilities of a model whose labels follow softmax(logits / true_temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, n_classes)) * spread
    truth = cal.softmax(logits, true_temperature).cumsum(axis=1)
    labels = (truth < rng.random((n, 1)) * truth[:, -1:]).sum(axis=1)
    return cal.softmax(logits), labels


def top_label(probs: Floats, labels: Ints) -> tuple[Floats, npt.NDArray[np.bool_]]:
    scores = cal.score_probs(probs, labels)
    return scores.confidences, scores.correct


@st.composite
def cases(draw: st.DrawFn, max_n: int = 200) -> Case:
    n = draw(st.integers(1, max_n))
    n_classes = draw(st.integers(2, 7))
    probs, labels = simulate(
        n,
        n_classes,
        draw(st.integers(0, 2**32 - 1)),
        true_temperature=draw(st.sampled_from([0.5, 1.0, 3.0])),
    )
    if draw(st.booleans()):  # few distinct values make ties
        steps = draw(st.sampled_from([4, 10]))
        probs = np.floor(probs * steps)
        probs[:, 0] += steps - probs.sum(axis=1)
        probs = probs / steps
    return probs, labels


n_bins = st.integers(1, 30)
schemes: st.SearchStrategy[cal.Scheme] = st.sampled_from(["equal_mass", "equal_width"])
norms: st.SearchStrategy[cal.Norm] = st.sampled_from(["l1", "l2", "max"])


# Bins


@settings(deadline=None)
@given(case=cases(), n_bins=n_bins, scheme=schemes)
def test_bins__cover_zero_to_one_and_keep_every_sample(case, n_bins, scheme):
    confidences = cal.score_probs(*case).confidences
    edges = cal.bin_edges(confidences, cal.Binning(n_bins, scheme))
    assert edges[0] == 0
    assert edges[-1] == 1
    assert (np.diff(edges) > 0).all()
    assert len(edges) - 1 <= n_bins
    index = cal.assign_bins(confidences, edges)
    assert (edges[index] <= confidences).all()
    assert (confidences <= edges[index + 1]).all()
    assert np.bincount(index, minlength=len(edges) - 1).sum() == len(confidences)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 300),
    n_bins=n_bins,
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_bins__equal_mass_differs_by_at_most_one_without_ties(seed, n, n_bins, dtype):
    confidences = np.random.default_rng(seed).random(n).astype(dtype)
    assume(len(np.unique(confidences)) == n)
    edges = cal.bin_edges(confidences, cal.Binning(n_bins))
    counts = np.bincount(cal.assign_bins(confidences, edges), minlength=len(edges) - 1)
    assert len(counts) == min(n, n_bins)
    assert counts.max() - counts.min() <= 1


def test_bins__inner_edges_belong_to_the_lower_bin():
    confidences = np.array([0.0, 0.1, 0.2, 0.3, 0.30000000000000004, 0.7, 1.0])
    edges = cal.bin_edges(confidences, cal.Binning(10, "equal_width"))
    assert cal.assign_bins(confidences, edges).tolist() == [0, 0, 1, 2, 3, 6, 9]


# Measures: relations


@settings(deadline=None)
@given(case=cases(), seed=st.integers(0, 99), n_bins=n_bins, scheme=schemes)
def test_measures__do_not_depend_on_the_order_of_the_samples(case, seed, n_bins, scheme):
    probs, labels = case
    order = np.random.default_rng(seed).permutation(len(labels))

    binning = cal.Binning(n_bins, scheme)

    def values(p, y):
        scores = cal.score_probs(p, y)
        binned = [cal.ece, cal.mce, cal.debiased_calibration_error]
        plain = [cal.smooth_ece, cal.ks_error, cal.aurc, cal.nll, cal.brier]
        return [
            *(measure(scores, binning) for measure in binned),
            *(measure(scores) for measure in (*plain, cal.mean_per_class_accuracy)),
            cal.ece(scores, cal.Binning(n_bins, scheme, "l2")),
            cal.classwise_ece(p, y, binning),
            *over_under_confidence(scores, binning),
        ]

    np.testing.assert_allclose(
        values(probs, labels), values(probs[order], labels[order]), atol=1e-9
    )


@settings(deadline=None)
@given(case=cases(), temperature=st.floats(0.05, 20))
def test_softmax__temperature_keeps_the_argmax_and_the_rows_sum_to_one(case, temperature):
    logits = np.log(np.maximum(case[0], 1e-6))
    probs = cal.softmax(logits, temperature)
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    rows = np.arange(len(probs))
    assert (probs[rows, logits.argmax(axis=1)] == probs.max(axis=1)).all()


@settings(deadline=None)
@given(case=cases(), n_bins=n_bins, scheme=schemes)
def test_reliability_curve__its_weighted_gaps_are_the_ece(case, n_bins, scheme):
    scores, binning = cal.score_probs(*case), cal.Binning(n_bins, scheme)
    curve = cal.reliability_curve(scores, binning, n_resamples=3)
    filled = curve.count > 0
    weights = curve.count[filled] / curve.n
    assert curve.count.sum() == len(case[1])
    assert np.abs(curve.gap[filled]) @ weights == pytest.approx(cal.ece(scores, binning))
    for points in (curve.mean_confidence, curve.accuracy, curve.interval_low, curve.band_low):
        assert np.isnan(points[~filled]).all()
        assert not np.isnan(points[filled]).any()
    assert (curve.interval_low <= curve.accuracy + 1e-12)[filled].all()
    assert (curve.accuracy <= curve.interval_high + 1e-12)[filled].all()
    assert (curve.band_low <= curve.band_high)[filled].all()
    json.dumps(curve.to_dict(), allow_nan=False)


@settings(deadline=None)
@given(case=cases(), batch_size=st.integers(1, 60), n_bins=n_bins)
def test_ece__whole_set_is_at_most_the_weighted_mean_of_batches(case, batch_size, n_bins):
    scores, binning = cal.score_probs(*case), cal.Binning(n_bins, "equal_width")
    n = len(scores)
    batches = [scores.take(np.arange(n)[s : s + batch_size]) for s in range(0, n, batch_size)]
    weighted = sum(cal.ece(batch, binning) * len(batch) / n for batch in batches)
    assert cal.ece(scores, binning) <= weighted + 1e-12


@settings(deadline=None)
@given(case=cases(), n_bins=n_bins, coverage=st.floats(0.01, 1))
def test_measures__take_scores_and_top_labels_alike(case, n_bins, coverage):
    scores = cal.score_probs(*case)
    top = cal.TopLabel(scores.confidences, scores.correct)
    binned = {"binning": cal.Binning(n_bins)}
    for name, options in {
        "ece": binned,
        "mce": binned,
        "debiased_calibration_error": binned,
        "over_under_confidence": binned,
        "ece_batch_averaged": {"batch_size": 7, "n_bins": n_bins},
        "risk_at_coverage": {"coverage": coverage},
        "smooth_ece": {},
        "ks_error": {},
        "aurc": {},
        "ece_lower_bound": {},
    }.items():
        measure = getattr(cal, name, None) or getattr(measures, name)
        assert measure(scores, **options) == measure(top, **options)


@settings(deadline=None)
@given(case=cases(), n_bins=n_bins, scheme=schemes)
def test_ece__norms_are_ordered_and_the_split_adds_up(case, n_bins, scheme):
    scores, binning = cal.score_probs(*case), cal.Binning(n_bins, scheme)
    l1, l2, largest = (
        cal.ece(scores, cal.Binning(n_bins, scheme, norm)) for norm in ("l1", "l2", "max")
    )
    assert 0 <= l1 <= l2 + 1e-12 <= largest + 2e-12 <= 1 + 3e-12
    assert largest == cal.mce(scores, binning)
    over, under = over_under_confidence(scores, binning)
    assert over + under == pytest.approx(l1)
    mean_gap = float(scores.confidences.mean()) - cal.accuracy(scores)
    assert over - under == pytest.approx(mean_gap, abs=1e-9)
    assert l1 >= abs(mean_gap) - 1e-9


@settings(deadline=None)
@given(case=cases(), k=st.integers(1, 7))
def test_top_k_accuracy__grows_to_one_and_starts_at_accuracy(case, k):
    probs, labels = case
    k, scores = min(k, probs.shape[1]), cal.score_probs(probs, labels)
    assert top_k_accuracy(scores, k=1) == cal.accuracy(scores)
    assert top_k_accuracy(scores, k=probs.shape[1]) == 1
    order = np.argsort(-probs, axis=1, kind="stable")[:, :k]
    expected = float((order == labels[:, None]).any(axis=1).mean())
    assert top_k_accuracy(scores, k=k) == pytest.approx(expected)


@settings(deadline=None)
@given(case=cases(max_n=60), n_bins=st.integers(1, 12), scheme=schemes, norm=norms)
def test_classwise_ece__equals_one_binary_problem_per_class(case, n_bins, scheme, norm):
    (probs, labels), binning = case, cal.Binning(n_bins, scheme, norm)
    classes = [cal.TopLabel(probs[:, c], labels == c) for c in range(probs.shape[1])]
    values = np.array([cal.ece(one, binning) for one in classes])
    expected = {"l1": values.mean(), "l2": np.sqrt((values**2).mean()), "max": values.max()}
    found = cal.classwise_ece(probs, labels, binning)
    assert found == pytest.approx(expected[norm], abs=1e-12)


# Measures: hand-worked cases


def test_ece__confidence_of_exactly_one_falls_in_last_bin():
    # (0.5, 1] holds 0.8 right, 1.0 and 1.0 wrong; (0, 0.5] holds 0.5 right.
    scores = cal.TopLabel(np.array([1.0, 1.0, 0.8, 0.5]), np.array([False, False, True, True]))
    curve = cal.reliability_curve(scores, cal.Binning(2, "equal_width"))
    assert curve.count.tolist() == [1, 3]
    np.testing.assert_allclose(curve.gap, [-0.5, 2.8 / 3 - 1 / 3])
    expected = 0.25 * 0.5 + 0.75 * 0.6
    assert cal.ece(scores, cal.Binning(2, "equal_width")) == pytest.approx(expected)
    assert cal.ece(scores, cal.Binning(2, "equal_width", "max")) == pytest.approx(0.6)


def test_mce__bins_below_min_count_are_left_out():
    probs = np.array([[0.95, 0.05]] * 9 + [[0.55, 0.45]])
    labels = np.array([0] * 9 + [1])
    binning = cal.Binning(10, "equal_width")
    assert cal.mce(cal.score_probs(probs, labels), binning) == pytest.approx(0.55)
    assert cal.mce(cal.score_probs(probs, labels), binning, min_count=2) == pytest.approx(0.05)
    assert math.isnan(cal.mce(cal.score_probs(probs, labels), binning, min_count=10))


def test_aurc_and_ks_error__by_hand():
    confidences = np.array([0.9, 0.6, 0.6, 0.7])
    correct = np.array([True, False, True, False])
    # sorted: 0.6 twice (+0.6 − 0.4 = +0.2), 0.7 (+0.7 → 0.9), 0.9 right (−0.1 → 0.8)
    assert cal.ks_error(cal.TopLabel(confidences, correct)) == pytest.approx(0.9 / 4)
    confidences = np.array([0.9, 0.8, 0.8, 0.5])
    correct = np.array([True, True, False, False])
    # errors by rank 0, ½, ½, 1 → risks 0, ¼, ⅓, ½
    assert cal.aurc(cal.TopLabel(confidences, correct)) == pytest.approx(
        (0 + 1 / 4 + 1 / 3 + 1 / 2) / 4
    )


def test_risk_at_coverage__keeps_the_most_confident():
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    scores = cal.score_probs(probs, np.array([0, 0, 1, 1]))
    found = [cal.risk_at_coverage(scores, coverage=c) for c in (0.25, 0.5, 0.75, 1.0)]
    assert found == pytest.approx([0, 0, 1 / 3, 1 / 2])
    with pytest.raises(SpecError, match=r"coverage .* got 0"):
        cal.risk_at_coverage(scores, coverage=0)


def test_mean_per_class_accuracy__absent_classes_do_not_count():
    probs = np.eye(3)[[0, 0, 0, 2]]
    assert cal.mean_per_class_accuracy(
        cal.score_probs(probs, np.array([0, 0, 1, 2]))
    ) == pytest.approx(2 / 3)


@given(case=cases(max_n=60))
def test_macro_f1__is_scikit_learns_over_the_classes_that_occur(case):
    probs, labels = case
    scores = cal.score_probs(probs, labels)
    metrics = pytest.importorskip("sklearn.metrics")
    theirs = metrics.f1_score(
        labels, scores.predicted, average="macro", labels=np.unique(labels), zero_division=0
    )
    assert cal.macro_f1(scores) == pytest.approx(theirs)


def test_debiased_squared_error__hand_case():
    confidences, correct = np.full(10, 0.8), np.array([True] * 6 + [False] * 4)
    assert debiased_squared_error(
        cal.TopLabel(confidences, correct), cal.Binning(n_bins=1)
    ) == pytest.approx(0.2**2 - 0.6 * 0.4 / 9)


def test_wilson_interval__hand_case_and_no_trials():
    low, high = wilson_interval(np.array([9, 0, 0]), np.array([10, 5, 0]))
    np.testing.assert_allclose(low, [0.5958, 0.0, np.nan], atol=1e-4)
    np.testing.assert_allclose(high, [0.9821, 0.4345, np.nan], atol=1e-4)


# Inputs


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        (np.array([[0.2, 0.9, 0.1]]), np.array([1]), r"sum to 1 ± 0.001, got 1\.2"),
        (np.array([[1.5, -0.5]]), np.array([0]), r"not be negative, got -0\.5"),
        (np.array([[np.nan, 0.5]]), np.array([0]), "finite, got NaN"),
        (np.array([0.5, 0.5]), np.array([0]), r"shape \(N, C\), got float64 of shape \(2,\)"),
        (np.array([[1, 0]]), np.array([0]), "floats of shape"),
        (np.empty((0, 3)), np.empty(0, dtype=int), r"got float64 of shape \(0, 3\)"),
        (np.array([[0.5, 0.5]]), np.array([2]), r"lie in \[0, 1\], got 2 to 2"),
        (np.array([[0.5, 0.5]]), np.array([-1]), r"got -1 to -1"),
        (np.array([[0.5, 0.5]]), np.array([0, 1]), r"\(1\), got 2"),
        (np.array([[0.5, 0.5]]), np.array([0.0]), "labels must be integers"),
    ],
)
def test_ece__inputs_that_break_the_contract_are_named(probs, labels, message):
    with pytest.raises(PredictionsError, match=message):
        cal.ece(cal.score_probs(probs, labels))


def test_ece__bad_options_are_named():
    probs, labels = simulate(10, 3, 0)
    with pytest.raises(SpecError, match="n_bins must be ≥ 1, got 0"):
        cal.ece(cal.score_probs(probs, labels), cal.Binning(n_bins=0))
    with pytest.raises(UnknownNameError, match="equal_mass, equal_width"):
        cal.ece(cal.score_probs(probs, labels), cal.Binning(scheme="quantile"))
    with pytest.raises(UnknownNameError, match="l1, l2, max"):
        cal.ece(cal.score_probs(probs, labels), cal.Binning(norm="l3"))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_softmax__temperature_must_be_positive_and_finite(temperature):
    with pytest.raises(SpecError, match="temperature must be positive"):
        cal.softmax(np.zeros((1, 2)), temperature)


def test_softmax__widens_half_precision_and_survives_large_logits():
    probs = cal.softmax(np.array([[60000.0, 0.0]], dtype=np.float16))
    assert probs.dtype == np.float32
    assert probs.tolist() == [[1.0, 0.0]]


# Parity with independent libraries, and each known disagreement


def parity_case(seed: int) -> Case:
    probs, labels = simulate(700, 5, seed, true_temperature=2.0)
    return probs, labels


@pytest.mark.parametrize("bins", [5, 15])
def test_ece__agrees_with_torchmetrics_off_the_edges(bins):
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.classification")
    probs, labels = parity_case(bins)
    for norm in ("l1", "l2", "max"):
        metric = classification.MulticlassCalibrationError(5, n_bins=bins, norm=norm)
        theirs = metric(torch.tensor(probs, dtype=torch.float64), torch.tensor(labels)).item()
        ours = cal.ece(cal.score_probs(probs, labels), cal.Binning(bins, "equal_width", norm))
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_ece_batch_averaged__agrees_with_torchmetrics_batch_by_batch_with_confidence_one():
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(11)
    confidences = rng.beta(5, 0.6, 1300).astype(np.float32)
    confidences[rng.random(1300) < 0.1] = 1.0
    confidences[rng.random(1300) < 0.05] = 0.5
    correct = rng.random(1300) < confidences**1.5
    total = 0.0
    for start in range(0, 1300, 512):
        batch = slice(start, start + 512)
        found = functional.binary_calibration_error(
            torch.from_numpy(confidences[batch]), torch.from_numpy(correct[batch]).int(), n_bins=10
        )
        total += float(found) * len(confidences[batch])
    assert cal.ece_batch_averaged(cal.TopLabel(confidences, correct)) == pytest.approx(
        total / 1300, abs=1e-6
    )


@pytest.mark.filterwarnings("ignore")
def test_ece__agrees_with_netcal_off_the_edges():
    metrics = pytest.importorskip("netcal.metrics")
    probs, labels = parity_case(11)
    scores, binning = cal.score_probs(probs, labels), cal.Binning(10, "equal_width")
    for ours, theirs in ((cal.ece, metrics.ECE(10)), (cal.mce, metrics.MCE(10))):
        expected = theirs.measure(probs, labels)
        assert ours(scores, binning) == pytest.approx(expected, abs=1e-6)


def smoothed_exactly(confidences, correct, bandwidth):
    """The definition by dense quadrature: every image of every sample, 20,000 points."""
    t = (np.arange(20_000) + 0.5) / 20_000
    total = np.zeros_like(t)
    for value, residual in zip(confidences, confidences - correct, strict=True):
        for shift in (-2, 0, 2):
            for image in (value + shift, -value + shift):
                if -8 * bandwidth < image < 1 + 8 * bandwidth:
                    total += residual * np.exp(-0.5 * ((t - image) / bandwidth) ** 2)
    return float(np.abs(total).mean() / (bandwidth * np.sqrt(2 * np.pi) * len(confidences)))


@pytest.mark.parametrize(("n", "temperature"), [(50, 1.0), (200, 3.0), (200, 0.5)])
def test_smooth_ece__is_the_fixed_point_of_the_exact_definition(n, temperature):
    confidences, correct = top_label(*simulate(n, 5, n, true_temperature=temperature))
    for bandwidth in (0.02, 0.1):
        assert smooth_ece_at(
            cal.TopLabel(confidences, correct), bandwidth=bandwidth
        ) == pytest.approx(smoothed_exactly(confidences, correct, bandwidth), abs=1e-6)
    found = cal.smooth_ece(cal.TopLabel(confidences, correct))
    # The integral falls with the bandwidth, so the fixed point is no farther off than this.
    assert smoothed_exactly(confidences, correct, found) == pytest.approx(found, abs=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("n", "temperature"), [(500, 1.0), (2000, 3.0)])
def test_smooth_ece__relplot_stops_within_its_bandwidth_step(n, temperature):
    relplot = pytest.importorskip("relplot")
    confidences, correct = top_label(*simulate(n, 5, n, true_temperature=temperature))
    ours = cal.smooth_ece(cal.TopLabel(confidences, correct))
    theirs, width = relplot.smECE(f=confidences, y=correct.astype(np.float64), return_width=True)
    # Ten halvings of [0, 1] end at the next multiple of 1/1,024 above the fixed point, where the
    # integral is smaller: its value is not the width that it is meant to equal.
    assert theirs == pytest.approx(ours, abs=1 / 1024)
    assert ours - 1e-4 <= width <= ours + 1 / 1024 + 1e-4


def test_scores__agree_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    probs, labels = parity_case(3)
    scores = cal.score_probs(probs, labels)
    brier = metrics.brier_score_loss(labels, probs, scale_by_half=False)
    balanced = metrics.balanced_accuracy_score(labels, probs.argmax(axis=1))
    assert cal.nll(scores) == pytest.approx(metrics.log_loss(labels, probs), abs=1e-6)
    assert cal.brier(scores) == pytest.approx(brier, abs=1e-6)
    assert cal.mean_per_class_accuracy(scores) == pytest.approx(balanced)
    top = metrics.top_k_accuracy_score(labels, probs, k=2)
    assert top_k_accuracy(scores, k=2) == pytest.approx(top)


def test_smooth_ece__known_cases():
    right = np.ones(1000, dtype=bool)
    assert cal.smooth_ece(cal.TopLabel(np.ones(1000), right)) == pytest.approx(0, abs=1e-6)
    # Certain and always wrong: the residuals are 1 everywhere, whatever the width.
    assert cal.smooth_ece(cal.TopLabel(np.ones(1000), ~right)) == pytest.approx(1, abs=1e-6)


# Smooth curve and the bundle


def test_smooth_reliability_curve__density_integrates_to_one_and_json_is_clean():
    probs, labels = simulate(3000, 4, 5)
    curve = cal.smooth_reliability_curve(cal.score_probs(probs, labels))
    assert curve.smooth_ece == pytest.approx(cal.smooth_ece(cal.score_probs(probs, labels)))
    assert np.trapezoid(curve.density, curve.confidence) == pytest.approx(1, abs=0.02)
    dense = curve.density > 0.5
    assert np.abs(curve.accuracy - curve.confidence)[dense].max() < 0.12
    assert np.isnan(curve.accuracy[curve.confidence < 0.05]).all()
    json.dumps(curve.to_dict(), allow_nan=False)


@settings(deadline=None, max_examples=20)
@given(case=cases(max_n=80))
def test_evaluate_all__is_json_and_agrees_with_the_single_measures(case):
    (probs, labels), scores = case, cal.score_probs(*case)
    drawn = {"n_resamples": 10, "seed": 4}
    report = cal.evaluate_all(probs, labels, **drawn)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report) == {
        *("n", "accuracy", "nll", "brier", "ece", "ece_equal_width", "ece_batch_averaged", "mce"),
        *("smooth_ece", "classwise_ece", "ks_error", "aurc", "mean_confidence"),
        *("mean_per_class_accuracy", "macro_f1", "top5_accuracy"),
        *("overconfidence", "underconfidence"),
    }
    assert (report["top5_accuracy"] is None) == (probs.shape[1] <= 5)
    for key, scheme in (("ece", "equal_mass"), ("ece_equal_width", "equal_width")):
        block = report[key]
        assert isinstance(block, dict)
        assert set(block) == {
            *("value", "n_bins", "scheme", "norm", "null_mean", "null_q95", "interval"),
            *("debiased", "n_resamples", "seed"),
        }
        assert block["scheme"] == scheme
        binning = cal.Binning(scheme=scheme)
        assert block["value"] == cal.ece(scores, binning)
        assert block["null_mean"] == cal.null_floor(scores, binning, **drawn).mean
        assert tuple(block["interval"]) == cal.interval(scores, binning, **drawn)
    assert report["aurc"] == cal.aurc(scores)
    assert report["mce"] == cal.mce(scores)
