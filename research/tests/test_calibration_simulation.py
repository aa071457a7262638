"""The simulations behind docs/calibration.md at a small size: do intervals cover?"""

import pytest

from research.measurements import calibration_simulation as simulation

# Four standard errors of a share of 0.95 over 60 repeats are 0.11: a run this small can see an
# interval that fails, not one that is a little off. Seeds are fixed.
REPEATS = 60


@pytest.mark.parametrize(
    ("truth", "norm"), [("calibrated", "l1"), ("over-confident", "l2"), ("0.20 too sure", "max")]
)
def test_interval__covers_for_a_model_that_is_mostly_sure(truth, norm):
    found = simulation.interval_coverage("sure", truth, 1000, norm=norm, repeats=REPEATS)
    assert found.covered >= 0.85
    assert found.width < 0.35


@pytest.mark.parametrize(
    ("accuracy", "n", "sure", "norm"), [(0.97, 500, 0.5, "l1"), (0.99, 200, 1.0, "l1")]
)
def test_interval__covers_for_a_model_that_is_sure_of_everything(accuracy, n, sure, norm):
    found = simulation.saturated_coverage(accuracy, n, sure=sure, norm=norm, repeats=REPEATS)
    assert found.covered >= 0.87
    assert found.width < 0.15


def pair_id(pair: tuple[str, str, bool]) -> str:
    return f"{pair[0]} / {pair[1]} / {'alike' if pair[2] else 'other'}"


@pytest.mark.parametrize("pair", simulation.PAIRS, ids=pair_id)
def test_paired_difference__of_calibration_covers_whatever_the_two_models_are(pair):
    found, called = simulation.pair_coverage(pair, 500, repeats=100)
    assert found.covered >= 0.88
    if pair[0] == pair[1]:
        assert called <= 0.08


def test_paired_difference__sees_five_points_at_500_samples_more_often_than_not():
    pair = ("0.04 too sure", "0.09 too sure", True)
    _, called = simulation.pair_coverage(pair, 500, repeats=60)
    assert called >= 0.75


def test_paired_difference__of_accuracy_calls_equal_models_different_one_time_in_twenty():
    pair = ("calibrated", "calibrated", False)
    found, called = simulation.pair_coverage(pair, 500, metric="accuracy", repeats=200)
    assert 0.9 <= found.covered <= 0.99
    assert called == pytest.approx(1 - found.covered)


@pytest.mark.parametrize("metric", ["accuracy", "ece"])
def test_model_confidence_set__of_ten_equal_models_all_stay(metric):
    # Four standard errors above 5 % at 80 repeats are 15 %.
    found = simulation.best_models(500, metric, repeats=80, n_resamples=200)
    assert found.split <= 0.15
    assert found.kept >= 0.95


def test_model_confidence_set__finds_the_model_that_is_five_points_better():
    found = simulation.best_models(2000, "accuracy", lead=0.05, repeats=30, n_resamples=200)
    assert found.kept == 1
    assert found.alone >= 0.6
    assert found.size <= 2
    calibrated = simulation.best_models(2000, "ece", off=0.1, repeats=20, n_resamples=200)
    assert calibrated.kept == calibrated.alone == 1


def test_samples_needed__have_the_power_that_they_promise():
    pair = ("0.04 too sure", "calibrated", True)
    now = simulation.promised_power(pair, 500, pilots=8, repeats=25)
    # 200 comparisons: four standard errors at 80 % are 11 points, and a first look is noisy too.
    assert 0.69 <= now.power <= 0.93
    assert 2500 <= now.needed <= 5000


def test_debiased__is_centred_in_its_square_and_more_often_negative_than_not():
    found = simulation.debiased(500, repeats=600)
    assert abs(found.squared_mean) <= 4
    assert 0.5 < found.negative < 0.66
    assert found.median < 0


@pytest.mark.parametrize("kind", ["histogram", "isotonic"])
def test_views__in_sample_reads_next_to_nothing_and_elsewhere_its_floor_or_more(kind):
    found = simulation.calibrated_views(kind, 500, repeats=8)
    assert found["in_sample"] <= 0.1 * found["in_sample_floor"]
    assert found["elsewhere"] >= 0.8 * found["elsewhere_floor"]


def test_views__the_floor_holds_after_a_temperature_fitted_elsewhere():
    found = simulation.calibrated_views("temperature", 2000, repeats=20)
    assert found["elsewhere"] == pytest.approx(found["elsewhere_floor"], rel=0.2)


@pytest.mark.parametrize("scheme", ["equal_mass", "equal_width"])
def test_reliability_curve__wilson_intervals_and_the_band_hold_nineteen_points_in_twenty(scheme):
    held, inside = simulation.bin_coverage(
        "hesitant", "calibrated", 1000, scheme=scheme, repeats=60
    )
    assert 0.9 <= held <= 0.99
    assert 0.9 <= inside <= 0.99


@pytest.mark.parametrize(
    ("n", "equal_width", "equal_mass", "smooth_ece"),
    [(200, 0.058, 0.072, None), (2000, 0.018, 0.023, 0.019), (10_000, None, None, 0.0105)],
)
def test_floors__are_what_perfect_models_were_measured_to_show(
    n, equal_width, equal_mass, smooth_ece
):
    found = simulation.floors(n, repeats=30)
    expected = {"equal_width": equal_width, "equal_mass": equal_mass, "smooth_ece": smooth_ece}
    for name, value in expected.items():
        if value is not None:
            assert found[name] == pytest.approx(value, rel=0.15)


def test_ece_batch_averaged__its_bias_is_that_of_its_batches():
    found = simulation.batch_bias(20_480, (64, 128, 256, 512), repeats=2)
    expected = {64: 0.082, 128: 0.058, 256: 0.043, 512: 0.030}
    for size, value in expected.items():
        assert found[size] == pytest.approx(value, rel=0.12)
    assert found[0] < 0.008
