"""The simulations behind docs/calibration.md at a size for every commit: do intervals cover?"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import calibration_simulation as simulation  # noqa: E402

from calift_core import calibration as cal  # noqa: E402

# Four standard errors of a share of 0.95 over 60 repeats are 0.11: a run this small can see an
# interval that fails, not one that is a little off. Seeds are fixed.
REPEATS = 60


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
@pytest.mark.parametrize("truth", ["calibrated", "over-confident", "0.20 too sure"])
def test_interval__covers_for_a_model_that_is_mostly_sure(truth: str, norm: cal.Norm) -> None:
    found = simulation.interval_coverage("sure", truth, 1000, norm=norm, repeats=REPEATS)
    assert found.covered >= 0.85
    assert found.width < 0.35


def pair_id(pair: tuple[str, str, bool]) -> str:
    return f"{pair[0]} / {pair[1]} / {'alike' if pair[2] else 'other'}"


@pytest.mark.parametrize("pair", simulation.PAIRS, ids=pair_id)
def test_paired_difference__of_ece_covers_whatever_the_two_models_are(
    pair: tuple[str, str, bool],
) -> None:
    found, called = simulation.pair_coverage(pair, 2000, repeats=40, n_resamples=100)
    assert found.covered >= 0.85
    if pair[0] == pair[1]:
        assert called <= 0.1


def test_paired_difference__of_accuracy_calls_equal_models_different_one_time_in_twenty() -> None:
    pair = ("calibrated", "calibrated", False)
    found, called = simulation.pair_coverage(pair, 500, metric="accuracy", repeats=200)
    assert 0.9 <= found.covered <= 0.99
    assert called == pytest.approx(1 - found.covered)


@pytest.mark.parametrize("scheme", ["equal_mass", "equal_width"])
def test_reliability_curve__wilson_intervals_and_the_band_hold_nineteen_points_in_twenty(
    scheme: cal.Scheme,
) -> None:
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
    n: int, equal_width: float | None, equal_mass: float | None, smooth_ece: float | None
) -> None:
    found = simulation.floors(n, repeats=30)
    expected = {"equal_width": equal_width, "equal_mass": equal_mass, "smooth_ece": smooth_ece}
    for name, value in expected.items():
        if value is not None:
            assert found[name] == pytest.approx(value, rel=0.15)


def test_ece_batch_averaged__its_bias_is_that_of_its_batches() -> None:
    found = simulation.batch_bias(20_480, (64, 128, 256, 512), repeats=2)
    expected = {64: 0.082, 128: 0.058, 256: 0.043, 512: 0.030}
    for size, value in expected.items():
        assert found[size] == pytest.approx(value, rel=0.12)
    assert found[0] < 0.008


def test_write_block__replaces_one_block_only() -> None:
    text = (
        "a\n<!-- simulation:x -->\nold\n<!-- /simulation:x -->\n"
        "<!-- simulation:y -->\n<!-- /simulation:y -->\n"
    )
    once = simulation.write_block(text, "x", "new")
    assert once == text.replace("old", "new")
    assert simulation.write_block(once, "x", "new") == once
    with pytest.raises(ValueError, match="markers of simulation:z"):
        simulation.write_block(text, "z", "new")


def test_docs__hold_a_block_for_every_table() -> None:
    text = simulation.DOCS.read_text()
    for name in simulation.TABLES:
        assert simulation.write_block(text, name, "")
