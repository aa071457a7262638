"""Floors, intervals and paired comparisons, held against simulations whose truth is known."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calift_core import calibration as cal
from calift_core.calibration.compare import METRICS, Together, confidence_set_over
from calift_core.calibration.measures import debiased_squared_error, ece_lower_bound
from calift_core.calibration.planning import SquaredPlan
from calift_core.calibration.squared import SquaredDifference, SquaredError, rms_difference
from calift_core.errors import PredictionsError, SpecError, UnknownNameError

Doubles = npt.NDArray[np.float64]
Truth = Callable[[Doubles], Doubles]


def confident(rng: np.random.Generator, n: int) -> Doubles:
    return rng.beta(4, 1.2, n)


def certain(confidences: Doubles) -> cal.TopLabel:
    """Scores of samples that are all right; to a floor only the confidences matter."""
    return cal.TopLabel(confidences, np.ones(len(confidences), dtype=np.bool_))


def scored(models, labels):
    return {name: cal.score_probs(probs, labels) for name, probs in models.items()}


def two_class(confidences: Doubles, correct: npt.NDArray[np.bool_]) -> tuple[Doubles, Doubles]:
    """Probabilities and labels that have these confidences and hits; confidences above ½."""
    return np.stack([confidences, 1 - confidences], axis=1), (~correct).astype(np.int64)


# The floor


@pytest.mark.parametrize(
    ("scheme", "norm"), [("equal_mass", "l1"), ("equal_width", "l2"), ("equal_mass", "max")]
)
def test_null_floor__agrees_with_fresh_labels_from_the_models_own_probabilities(scheme, norm):
    rng = np.random.default_rng(1)
    probs = cal.softmax(rng.normal(size=(800, 4)) * 2)
    drawn = []
    for _ in range(600):
        labels = (probs.cumsum(axis=1)[:, :-1] < rng.random((800, 1))).sum(axis=1)
        drawn.append(cal.ece(cal.score_probs(probs, labels), cal.Binning(scheme=scheme, norm=norm)))
    floor = cal.null_floor(
        cal.score_probs(probs, labels),
        cal.Binning(scheme=scheme, norm=norm),
        n_resamples=1000,
        seed=7,
    )
    assert floor.mean == pytest.approx(np.mean(drawn), rel=0.06)
    assert floor.q95 == pytest.approx(np.quantile(drawn, 0.95), rel=0.12)
    assert floor.values.shape == (1000,)


def test_null_floor__falls_with_the_root_of_n_and_repeats_with_its_seed():
    rng = np.random.default_rng(0)
    small = cal.null_floor(certain(confident(rng, 1000)))
    large = cal.null_floor(certain(confident(rng, 16_000)))
    assert small.mean / large.mean == pytest.approx(4, rel=0.15)
    again = cal.null_floor(certain(confident(np.random.default_rng(0), 1000)))
    other = cal.null_floor(certain(confident(np.random.default_rng(0), 1000)), seed=1)
    assert (again.values == small.values).all()
    assert (other.values != small.values).any()


def test_debiased_calibration_error__is_centred_on_the_truth():
    rng = np.random.default_rng(5)
    for shift, tolerance in ((0.0, 0.004), (0.1, 0.005)):
        squared, plain, debiased = [], [], []
        for _ in range(150):
            confidences = 0.2 + 0.6 * rng.random(1000)
            correct = rng.random(1000) < confidences - shift
            squared.append(debiased_squared_error(cal.TopLabel(confidences, correct)))
            plain.append(cal.ece(cal.TopLabel(confidences, correct)))
            debiased.append(cal.debiased_calibration_error(cal.TopLabel(confidences, correct)))
        # Four standard errors of the mean over repeats.
        noise = 4 * np.std(squared) / np.sqrt(len(squared))
        assert np.mean(squared) == pytest.approx(shift**2, abs=noise)
        assert np.mean(debiased) == pytest.approx(shift, abs=2 * tolerance + 0.1 * shift)
        assert abs(np.mean(debiased) - shift) <= abs(np.mean(plain) - shift) + tolerance
        if shift == 0:
            assert min(debiased) < 0
            assert np.mean(plain) > 0.03
    with pytest.raises(SpecError, match="norm must be l1 or l2"):
        cal.debiased_calibration_error(cal.TopLabel(confidences, correct), cal.Binning(norm="max"))


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.1])
def test_ece_lower_bound__is_the_error_or_less_in_the_mean(shift):
    rng = np.random.default_rng(7)
    found = []
    for _ in range(100):
        confidences = 0.3 + 0.6 * rng.random(1000)
        correct = rng.random(1000) < confidences - shift
        found.append(ece_lower_bound(cal.TopLabel(confidences, correct)))
        assert (
            found[-1]
            <= cal.ece(cal.TopLabel(confidences, correct), cal.Binning(n_bins=1000)) + 1e-12
        )
    noise = 4 * np.std(found) / np.sqrt(len(found))
    assert np.mean(found) <= shift + noise
    assert np.mean(found) >= {0.0: -0.005, 0.02: 0.0, 0.1: 0.09}[shift] - noise


def test_ece_lower_bound__hand_worked():
    # Each sample is judged by the others: 0.9 said and all wrong, whoever is left out.
    assert ece_lower_bound(
        cal.TopLabel(np.full(10, 0.9), np.zeros(10, dtype=np.bool_))
    ) == pytest.approx(0.9)
    assert ece_lower_bound(cal.TopLabel(np.array([0.9]), np.array([True]))) == 0


# The interval


def covers(truth: Truth, n: int, scheme: cal.Scheme, repeats: int, norm: cal.Norm = "l1") -> float:
    rng = np.random.default_rng(n)
    population = np.sort(confident(rng, 100_000))
    totals = np.concatenate([[0.0], np.cumsum(population - truth(population))])
    hits = 0
    for repeat in range(repeats):
        confidences = confident(rng, n)
        correct = rng.random(n) < truth(confidences)
        edges = cal.bin_edges(confidences, cal.Binning(15, scheme))
        used = np.bincount(cal.assign_bins(confidences, edges), minlength=len(edges) - 1) > 0
        inner = np.searchsorted(population, edges[1:-1], side="right")
        bounds = np.concatenate([[0], inner, [len(population)]])
        share = np.diff(bounds) / len(population)
        gap = np.abs(np.diff(totals[bounds])[used] / np.diff(bounds)[used])
        target = gap @ share[used] if norm == "l1" else np.sqrt(gap**2 @ share[used])
        low, high = cal.interval(
            cal.TopLabel(confidences, correct),
            cal.Binning(scheme=scheme, norm=norm),
            n_resamples=120,
            seed=repeat,
        )
        hits += low <= target <= high
    return hits / repeats


@pytest.mark.parametrize(
    ("truth", "n", "scheme", "norm"),
    [
        (lambda c: np.clip(c + 0.05 * np.sin(12 * c), 0, 1), 500, "equal_mass", "l1"),
        (lambda c: c**1.5, 2000, "equal_width", "l2"),
    ],
    ids=["wavy", "over-confident"],
)
def test_interval__covers_the_true_error_at_least_nine_times_in_ten(truth, n, scheme, norm):
    assert covers(truth, n, scheme, repeats=100, norm=norm) >= 0.9


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60), level=st.sampled_from([0.5, 0.95]))
def test_interval__is_ordered_and_within_bounds_on_any_sample(seed, n, level):
    rng = np.random.default_rng(seed)
    confidences = np.round(rng.random(n), rng.integers(0, 3))
    correct = rng.random(n) < 0.5
    for norm in ("l1", "l2", "max"):
        low, high = cal.interval(
            cal.TopLabel(confidences, correct),
            cal.Binning(norm=norm),
            n_resamples=20,
            level=level,
            seed=seed,
        )
        assert 0 <= low <= high <= 1


def test_interval__bad_options_are_named():
    confidences, correct = np.array([0.5, 0.7]), np.array([True, False])
    with pytest.raises(SpecError, match="n_resamples must be ≥ 1, got 0"):
        cal.interval(cal.TopLabel(confidences, correct), n_resamples=0)
    with pytest.raises(SpecError, match=r"level must lie in \(0, 1\), got 95"):
        cal.interval(cal.TopLabel(confidences, correct), level=95)
    with pytest.raises(PredictionsError, match=r"lie in \[0, 1\], got -1"):
        cal.interval(cal.TopLabel(np.array([-1.0, 0.5]), correct))
    with pytest.raises(PredictionsError, match="correct must be bool"):
        cal.interval(cal.TopLabel(confidences, np.array([1, 0])))


# Pairs


def pair(n: int, seed: int) -> tuple[Doubles, Doubles, npt.NDArray[np.int64]]:
    """A calibrated model, an over-confident copy of it, and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 3)) * 1.5
    probs = cal.softmax(logits)
    labels = (probs.cumsum(axis=1)[:, :-1] < rng.random((n, 1))).sum(axis=1)
    return probs, cal.softmax(logits, 0.4), labels


def scored_pair(n: int, seed: int) -> list[cal.SampleScores]:
    *probs, labels = pair(n, seed)
    return [cal.score_probs(p, labels) for p in probs]


def squared_error(scores: cal.SampleScores) -> float:
    """Σ w (mean² − variance of the mean) of the residuals of each bin."""
    confidences, correct = scores.confidences, scores.correct
    index = cal.assign_bins(confidences, cal.bin_edges(confidences))
    residual = confidences - correct
    total = 0.0
    for k in np.unique(index):
        own = residual[index == k]
        noise = own.var(ddof=1) / len(own) if len(own) > 1 else own.mean() ** 2
        total += len(own) / len(residual) * (own.mean() ** 2 - noise)
    return total


MEASURES: dict[str, Callable[[cal.SampleScores], float]] = {
    "accuracy": cal.accuracy,
    "brier": cal.brier,
    "confidence": lambda scores: float(scores.confidences.mean()),
    "nll": cal.nll,
    "squared_ece": squared_error,
}


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_paired_difference__a_model_never_differs_from_itself(metric):
    probs, _, labels = pair(200, 0)
    found = cal.paired_difference(
        cal.score_probs(probs, labels),
        cal.score_probs(probs, labels),
        metric=metric,
        n_resamples=50,
    )
    assert found.difference == found.low == found.high == 0
    assert found.p_value == 1
    assert not found.distinguishable


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_paired_difference__names_agree_with_their_measures_and_are_antisymmetric(metric):
    *probs, labels = pair(300, 1)
    a, b = (cal.score_probs(p, labels) for p in probs)
    measure, drawn = MEASURES[metric], {"n_resamples": 60, "seed": 3}
    found = cal.paired_difference(a, b, metric=metric, **drawn)
    back = cal.paired_difference(b, a, metric=metric, **drawn)
    assert (found.a, found.b) == pytest.approx((measure(a), measure(b)))
    assert (found.low, found.high) == pytest.approx((-back.high, -back.low))
    assert found.p_value == pytest.approx(back.p_value)
    if metric != "squared_ece":  # which has a formula; a function re-cuts bins in every draw
        general = cal.paired_difference(a, b, metric=measure, **drawn)
        assert (general.low, general.high) == pytest.approx((found.low, found.high))


def test_paired_difference__pairing_sees_what_two_single_intervals_cannot():
    rng = np.random.default_rng(4)
    labels = rng.integers(2, size=2000)
    right = rng.random(2000) < 0.7
    better = right | (rng.random(2000) < 0.02)
    a, b = (np.eye(2)[np.where(hit, labels, 1 - labels)] for hit in (better, right))
    found = cal.paired_difference(
        cal.score_probs(a, labels), cal.score_probs(b, labels), metric="accuracy", n_resamples=400
    )
    assert found.distinguishable
    single = 1.96 * np.sqrt(0.7 * 0.3 / 2000)
    assert found.difference < 2 * single


def test_paired_difference__copies_of_one_image_are_not_new_evidence():
    a, b, labels = pair(120, 5)
    copies = 9
    source = np.tile(np.arange(120), copies)
    many = [cal.score_probs(np.tile(p, (copies, 1)), np.tile(labels, copies)) for p in (a, b)]
    single = cal.paired_difference(
        cal.score_probs(a, labels), cal.score_probs(b, labels), metric="nll", n_resamples=300
    )
    clustered = cal.paired_difference(
        *many, metric="nll", n_resamples=300, clusters=source.astype(str)
    )
    fooled = cal.paired_difference(*many, metric="nll", n_resamples=300)
    assert clustered.n_clusters == 120
    assert clustered.standard_error == pytest.approx(single.standard_error, rel=0.15)
    assert fooled.standard_error < 0.5 * single.standard_error


def test_paired_difference__of_calibration_does_not_see_that_samples_were_copied():
    a, b, labels = pair(150, 5)
    many = [cal.score_probs(np.tile(p, (4, 1)), np.tile(labels, 4)) for p in (a, b)]
    single = cal.paired_difference(cal.score_probs(a, labels), cal.score_probs(b, labels))
    clustered = cal.paired_difference(*many, clusters=np.tile(np.arange(150), 4))
    fooled = cal.paired_difference(*many)
    for name in ("a", "b", "low", "high", "p_value"):
        assert getattr(clustered, name) == pytest.approx(getattr(single, name), rel=1e-6)
    assert fooled.standard_error < 0.7 * single.standard_error


def test_squared_difference__is_the_formula_over_stacked_bins():
    rng = np.random.default_rng(12)
    confidences = rng.uniform(0.4, 0.6, 300), rng.uniform(0.3, 0.5, 300)
    # Errors abound, so that no bin lacks noise; in each, right ones are the less sure ones.
    correct = rng.random(300) < 0.5, rng.random(300) < 0.5
    models = [SquaredError(cal.TopLabel(*each)) for each in zip(confidences, correct, strict=True)]
    found = SquaredDifference.of(*models)
    member = np.zeros((300, len(found.means)))
    start = 0
    for values, hits in zip(confidences, correct, strict=True):
        index = cal.assign_bins(values, cal.bin_edges(values))
        for k in np.unique(index):
            own = (values - hits)[index == k]
            scale = np.sqrt(len(own) / (len(own) - 1))
            member[index == k, start + k] = scale * (own - own.mean()) / 300
        start += len(np.unique(index))
    sigma = member.T @ member
    m, form = found.means, np.diag(found.form)
    assert found.value == pytest.approx(m @ form @ m - np.trace(form @ sigma))
    # p̃ is drawn to a half, which leaves the least variance a little larger than the shown one.
    np.testing.assert_allclose(found.covariance, sigma, rtol=0.1, atol=1e-5)
    assert (np.diag(found.covariance) >= np.diag(sigma) - 1e-15).all()
    scaled = form @ found.covariance
    square = np.trace(scaled @ scaled)
    linear = m @ form @ found.covariance @ form @ m
    assert found.variance == pytest.approx(max(4 * linear - 2 * square, 2 * square))


def test_paired_difference__two_models_without_an_error_cannot_be_told_apart():
    labels = np.zeros(60, dtype=np.int64)
    rng = np.random.default_rng(1)
    sure, surer = (two_class(c + 0.005 * rng.random(60), labels == 0)[0] for c in (0.96, 0.99))
    found = cal.paired_difference(cal.score_probs(sure, labels), cal.score_probs(surer, labels))
    assert found.difference > 0
    assert not found.distinguishable
    both = cal.model_confidence_set(scored({"sure": sure, "surer": surer}, labels), n_resamples=200)
    assert set(both.members) == {"sure", "surer"}


# Confidence sets


def test_model_confidence_set__keeps_equal_models_and_leaves_a_worse_one_out():
    a, b, labels = pair(1500, 8)
    models = {"sharp": b, "calibrated": a, "twin": a.copy()}
    found = cal.model_confidence_set(scored(models, labels), n_resamples=100)
    assert found.members == ("calibrated", "twin")
    assert found.excluded == ("sharp",)
    assert found.p_values["sharp"] < 0.05
    assert found.p_values["calibrated"] == found.p_values["twin"] == 1
    assert found.values["calibrated"] == pytest.approx(squared_error(cal.score_probs(a, labels)))
    same = cal.model_confidence_set(scored(models, labels), metric="accuracy", n_resamples=20)
    assert same.members == ("sharp", "calibrated", "twin")
    assert cal.model_confidence_set({}).members == ()
    assert cal.model_confidence_set(scored({"sharp": b}, labels)).members == ("sharp",)
    worst = cal.model_confidence_set(
        scored(models, labels), metric=cal.nll, higher_is_better=True, n_resamples=20
    )
    assert worst.members == ("sharp",)


@pytest.mark.parametrize("metric", ["accuracy", "squared_ece"])
def test_model_confidence_set__does_not_depend_on_the_order_of_the_models(metric):
    rng = np.random.default_rng(4)
    labels = rng.integers(3, size=300)
    logits = 2 * np.eye(3)[labels] + rng.normal(size=(300, 3))
    models = {
        f"{k}": cal.softmax(logits + 0.2 * k * rng.normal(size=(300, 3)), 1 / (1 + k))
        for k in range(5)
    }
    found = cal.model_confidence_set(scored(models, labels), metric=metric, n_resamples=80)
    back = cal.model_confidence_set(
        scored(dict(reversed(models.items())), labels), metric=metric, n_resamples=80
    )
    assert found.p_values == pytest.approx(back.p_values)
    assert set(found.members) == set(back.members)
    assert max(found.p_values.values()) == 1
    assert set(found.members) | set(found.excluded) == set(models)
    assert all(found.p_values[name] >= 0.05 for name in found.members)


@pytest.mark.parametrize("metric", ["accuracy", "nll", "squared_ece"])
def test_model_confidence_set__of_two_models_decides_as_their_pair_does(metric):
    agreed = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a, b, labels = pair(400, seed)
        b = cal.softmax(np.log(b + 1e-12) + rng.normal(size=b.shape), 0.4 + seed / 8)
        found = cal.model_confidence_set(
            scored({"a": a, "b": b}, labels), metric=metric, n_resamples=400
        )
        pairwise = cal.paired_difference(
            cal.score_probs(a, labels), cal.score_probs(b, labels), metric=metric, n_resamples=400
        )
        agreed += (len(found.members) == 1) == pairwise.distinguishable
        apart, reach = found.values["a"] - found.values["b"], found.reach["a"]["b"]
        assert (abs(apart) > reach) == (len(found.members) == 1)
    assert agreed >= 18


def test_model_confidence_set__of_many_leaves_out_the_loser_of_each_pair_that_is_apart():
    a, b, labels = pair(400, 0)
    models = {f"{k:g}": cal.softmax(np.log(b + 1e-12), k) for k in (0.5, 1.0, 1.5, 2.5)} | {"a": a}
    found = cal.model_confidence_set(scored(models, labels), metric="nll", n_resamples=400)
    wide = 0
    for one, reach in found.reach.items():
        for other, width in reach.items():
            assert width == found.reach[other][one]
            if found.values[one] - found.values[other] > width:
                assert one in found.excluded
                wide += 1
    assert wide >= 3


@pytest.mark.parametrize(("value", "baseline"), [(0.0025, 0.0001), (-0.0001, 0.0002), (0.01, 0.01)])
@pytest.mark.parametrize("reach", [0.0, 0.0005, 0.02])
def test_rms_difference__decides_as_the_squares_do(value, baseline, reach):
    apart = value - baseline
    found, low, high = rms_difference(value, baseline, (apart - reach, apart + reach))
    assert low <= found <= high
    assert (low > 0 or high < 0) == (abs(apart) > reach)
    if min(value, baseline) >= 0 and reach < 0.001:
        assert found == pytest.approx(value**0.5 - baseline**0.5)


def test_model_confidence_set__copies_of_one_image_are_not_new_evidence():
    a, b, labels = pair(60, 3)
    models = {"a": a, "b": cal.softmax(np.log(b + 1e-12), 1.6)}
    many = {name: np.tile(probs, (30, 1)) for name, probs in models.items()}
    clusters = np.tile(np.arange(60), 30)
    plain = cal.model_confidence_set(scored(models, labels), metric="nll", n_resamples=400)
    found = cal.model_confidence_set(
        scored(many, np.tile(labels, 30)), metric="nll", n_resamples=400, clusters=clusters
    )
    assert found.n_clusters == 60
    assert found.p_values == pytest.approx(plain.p_values, abs=0.1)
    fooled = cal.model_confidence_set(
        scored(many, np.tile(labels, 30)), metric="nll", n_resamples=400
    )
    assert min(fooled.p_values.values()) < min(found.p_values.values())


def test_model_confidence_set__inputs_that_do_not_pair_are_named():
    a, b, labels = pair(20, 7)
    with pytest.raises(PredictionsError, match="one length, got 20 and 19"):
        cal.model_confidence_set(
            {"a": cal.score_probs(a, labels), "b": cal.score_probs(b[1:], labels[1:])}
        )
    with pytest.raises(UnknownNameError, match="squared_ece"):
        cal.model_confidence_set(scored({"a": a}, labels), metric="ece")
    with pytest.raises(SpecError, match="level must lie"):
        cal.model_confidence_set(scored({"a": a}, labels), level=1.0)


# Planning


def test_samples_needed__grows_with_the_square_of_a_smaller_difference():
    a, b = scored_pair(400, 9)
    found = cal.paired_difference(a, b, metric="nll", n_resamples=200)
    at = cal.samples_needed(found, difference=0.02)
    assert cal.samples_needed(found, difference=0.01) == pytest.approx(4 * at, rel=0.01)
    assert cal.samples_needed(found, difference=0.02, power=0.95) > at
    # With z = 1.96 + 0.84 it needs (2.8 · se / difference)² times n.
    assert at == pytest.approx(400 * (2.8016 * found.standard_error / 0.02) ** 2, abs=2)
    with pytest.raises(TypeError, match="difference"):
        cal.samples_needed(found)
    with pytest.raises(SpecError, match="difference must not be 0"):
        cal.samples_needed(found, difference=0.0)
    for difference in (5e-324, -1e-12):
        with pytest.raises(SpecError, match="at most 1,000,000,000,000 samples"):
            cal.samples_needed(found, difference=difference)


@pytest.mark.parametrize("paired", [True, False])
def test_squared_plan__what_n_samples_show_takes_n_samples(paired):
    a, b, labels = pair(3000, 10)
    one, other = (SquaredError(cal.score_probs(probs, labels)) for probs in (b, a))
    plan = SquaredPlan(one, other, paired=paired)
    shown = plan.detectable()
    assert shown is not None
    assert 0.005 < shown < 0.2
    assert plan.needed(shown) == pytest.approx(3000, rel=0.02)
    assert plan.needed(-shown) == plan.needed(shown)
    assert plan.needed(shown / 2) > 2 * plan.needed(shown)
    assert plan.needed(shown, power=0.95) > plan.needed(shown) > plan.needed(shown, power=0.5)
    assert plan.needed(shown, level=0.99) > plan.needed(shown)
    assert plan.needed(0.9) == 150
    for difference, power in ((0.0, 0.8), (1e-9, 0.8), (0.1, 1.0)):
        with pytest.raises(SpecError, match="must not be 0|at most 1,000,000,000,000|power must"):
            plan.needed(difference, power=power)


def test_together__is_what_pairs_and_sets_are_one_by_one():
    rng = np.random.default_rng(3)
    labels = rng.integers(4, size=400)
    clusters = rng.integers(90, size=400)
    models = {
        name: cal.score_samples(rng.normal(size=(400, 4)) + strength * np.eye(4)[labels], labels)
        for name, strength in (("a", 1.0), ("b", 1.3), ("c", 2.0))
    }
    requested = {"n_resamples": 60, "clusters": clusters, "seed": 5}
    together = Together(models, **requested)
    for metric in METRICS:
        pair = cal.paired_difference(models["c"], models["a"], metric=metric, **requested)
        assert together.difference("c", "a", metric) == pair
        alone = cal.model_confidence_set(models, metric=metric, **requested)
        assert together.confidence_set(metric) == alone
        # A data set counted twice is the data set; of independent ones the mean is known better.
        twice = confidence_set_over([together, together], metric)
        assert (twice.members, twice.p_values) == (alone.members, alone.p_values)
    other = Together(models, **{**requested, "seed": 6})
    both = confidence_set_over([together, other], "accuracy")
    assert both.values == together.confidence_set("accuracy").values
    spread = [np.std(np.diff(t.noise("accuracy")[:, :2])) for t in (together, other)]
    mean = (together.noise("accuracy") + other.noise("accuracy")) / 2
    assert np.std(np.diff(mean[:, :2])) < 0.85 * max(spread)
    with pytest.raises(SpecError, match="same models"):
        confidence_set_over([together, Together({"a": models["a"]})], "nll")
