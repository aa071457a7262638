"""The bound's terms, rank statistics and the monitor of finished runs."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from calift_core.analysis.bound import bound_terms, correlations_of, method_label
from calift_core.analysis.ranks import rank_correlation, scaled_ranks
from calift_core.errors import SpecError
from calift_core.schema.wire.answers import RunPoint

finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)
tied = st.integers(0, 4)


def test_bound_terms__by_hand():
    terms = bound_terms(0.1, 0.5, 4)
    assert terms.covariance == 8
    assert terms.rhs == pytest.approx(8.1)


@given(st.floats(0, 1), st.floats(1e-6, 1), st.integers(1, 4096))
def test_bound_terms__is_never_below_the_dimension_and_falls_with_sigma(calibration, sigma, n):
    terms = bound_terms(calibration, sigma, n)
    assert terms.rhs >= terms.covariance >= n
    assert bound_terms(calibration, sigma / 2, n).rhs > terms.rhs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.1, 0.0, 4), r"sigma_min must lie in \(0, 1\], got 0.0"),
        ((0.1, 1.5, 4), "sigma_min must lie"),
        ((1.2, 0.5, 4), r"calibration_error must lie in \[0, 1\], got 1.2"),
        ((0.1, 0.5, 0), "n_features must be ≥ 1, got 0"),
        ((math.nan, 0.5, 1), "calibration_error"),
    ],
)
def test_bound_terms__refuses_what_is_out_of_range(arguments, words):
    with pytest.raises(SpecError, match=words):
        bound_terms(*arguments)


@given(st.lists(st.tuples(tied, tied), min_size=8, max_size=40))
def test_rank_correlation__equals_scipy_with_ties(pairs):
    x, y = zip(*pairs, strict=True)
    few = {"n_resamples": 50, "n_permutations": 50}
    if len(set(x)) == 1 or len(set(y)) == 1:
        with pytest.raises(SpecError, match="one of them is constant"):
            rank_correlation(x, y, **few)
    else:
        found = rank_correlation(x, y, **few)
        assert found.rho == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


@given(st.lists(st.tuples(tied, st.sampled_from("ab")), min_size=1, max_size=30))
def test_scaled_ranks__are_scipys_inside_each_stratum(pairs):
    values, strata = zip(*pairs, strict=True)
    found = scaled_ranks(values, strata)
    for name in set(strata):
        own = np.array(strata) == name
        expected = (rankdata(np.array(values)[own]) - 0.5) / own.sum()
        np.testing.assert_allclose(found[own], expected)


@given(st.lists(st.tuples(finite, finite), min_size=8, max_size=20, unique_by=lambda p: p[0]))
def test_rank_correlation__knows_ranks_alone(pairs):
    x, y = (np.array(v) for v in zip(*pairs, strict=True))
    if len(set(y)) == 1:
        return
    few = {"n_resamples": 50, "n_permutations": 50}
    found = rank_correlation(x, y, **few)
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    assert -1 <= found.low <= found.rho <= found.high <= 1
    assert 0 < found.p_value <= 1
    stretched = rank_correlation(rankdata(x) ** 3, y, **few)
    assert stretched == found
    turned = rank_correlation(-x, y, **few)
    assert turned.rho == pytest.approx(-found.rho)
    assert turned.p_value == found.p_value


def test_rank_correlation__ranks_inside_strata():
    """The second stratum lies lower in x and higher in y: pooled ranks would say the opposite."""
    x = [*range(10, 20), *range(10)]
    y = [*range(10), *range(20, 30)]
    strata = ["a"] * 10 + ["b"] * 10
    assert rank_correlation(x, y).rho < 0
    inside = rank_correlation(x, y, strata=strata)
    assert inside.rho == pytest.approx(1)
    assert inside.p_value < 0.01


def test_rank_correlation__copies_of_a_point_are_no_evidence():
    rng = np.random.default_rng(1)
    x = rng.normal(size=12)
    y = x + rng.normal(size=12)
    once = rank_correlation(x, y)
    groups = [str(i) for i in np.repeat(np.arange(12), 6)]
    grouped = rank_correlation(np.repeat(x, 6), np.repeat(y, 6), groups=groups)
    blind = rank_correlation(np.repeat(x, 6), np.repeat(y, 6))
    assert grouped.rho == pytest.approx(once.rho)
    assert (grouped.n, grouped.n_groups) == (72, 12)
    assert grouped.p_value == pytest.approx(once.p_value, abs=0.01)
    assert grouped.high - grouped.low > 0.75 * (once.high - once.low)
    assert blind.high - blind.low < 0.6 * (once.high - once.low)


@pytest.mark.parametrize(("rho", "share"), [(0.0, 0.0), (0.7, 0.6)])
def test_rank_correlation__interval_covers_and_p_value_holds_its_level(rho, share):
    """Pairs of bivariate normal points in groups; Spearman's ρ of those is known."""
    truth = 6 / math.pi * math.asin(rho / 2)
    mix = np.linalg.cholesky(np.array([[1, rho], [rho, 1]]))
    rng = np.random.default_rng(5)
    labels = [str(i) for i in np.repeat(np.arange(10), 3)]
    covered = rejected = 0
    n = 200
    for seed in range(n):
        common, own = rng.normal(size=(10, 1, 2)), rng.normal(size=(10, 3, 2))
        points = math.sqrt(share) * common @ mix.T + math.sqrt(1 - share) * own @ mix.T
        x, y = points.reshape(-1, 2).T
        found = rank_correlation(
            x, y, groups=labels, n_resamples=300, n_permutations=199, seed=seed
        )
        covered += found.low <= truth <= found.high
        rejected += found.p_value <= 0.05
    # Three binomial standard deviations about 0.95 are 0.046.
    assert covered / n > 0.90
    assert (rejected / n < 0.10) if rho == 0 else (rejected / n > 0.3)


@pytest.mark.parametrize(
    ("x", "y", "options", "words"),
    [
        (range(7), range(7), {}, "at least 8 points, got 7"),
        (range(9), range(8), {}, "of one length"),
        ([*range(8)], [1.0] * 8, {}, "one of them is constant"),
        ([*range(7), math.nan], range(8), {}, "finite"),
        (range(8), range(8), {"groups": ["a"] * 8}, "at least 3 of them, got 1"),
        (range(8), range(8), {"n_resamples": 1}, "n_resamples must be ≥ 2"),
        (range(8), range(8), {"level": 1.0}, "level"),
    ],
)
def test_rank_correlation__refuses(x, y, options, words):
    with pytest.raises(SpecError, match=words):
        rank_correlation(list(x), list(y), **options)


@pytest.mark.parametrize(
    ("method", "train", "label"),
    [
        ({"kind": "carot", "lambda_oc": 0.2, "lambda_sd": 1.5}, {}, "carot"),
        ({"kind": "carot", "lambda_sd": 0.0}, {"seed": 4, "lr": 1.0}, "carot (lambda_sd 0)"),
        ({"kind": "carot", "teacher_update_every": 3}, {}, "carot"),
        ({"kind": "wise_ft", "run": "a", "alpha": 0.3}, {}, "wise_ft"),
        (
            {"kind": "finetune"},
            {"confidence": {"label_smoothing": 0.1, "focal": "off"}},
            "finetune (label_smoothing 0.1)",
        ),
        ({"kind": "of the future", "x": 1}, {}, "of the future"),
    ],
)
def test_method_label__names_what_is_minimised(method, train, label):
    assert method_label({"method": method, "train": train}) == label


def monitored(n: int, seed: int, **changes: Any) -> list[RunPoint]:
    rng = np.random.default_rng(seed)
    sigma, noise = rng.uniform(0.01, 0.5, n), rng.normal(size=n)
    return [
        RunPoint.model_validate(
            {
                "run_id": str(i), "name": str(i), "method": "m", "variant": f"v{i // 2}",
                "model": "tower", "seed": i, "n_features": 16, "sigma_min": sigma[i],
                "effective_rank": 3 + sigma[i], "covariance_term": 16 / sigma[i],
                "rhs": 0.02 + 16 / sigma[i], "id_ece": 0.02, "id_error": 0.1 + 0.01 * noise[i],
                "ood_error": 0.5 - sigma[i] / 2, "ood_ece": 0.2 + 0.02 * noise[i],
                "ood_ece_floor": 0.01, **changes,
            }
        )
        for i in range(n)
    ]  # fmt: skip


def test_monitor__ranks_terms_inside_models_and_draws_variants():
    points = monitored(16, 0)
    found, notes = correlations_of(points)
    by_name = {(c.term, c.error): c for c in found}
    assert by_name["sigma_min", "ood_error"].rho == pytest.approx(-1)
    assert by_name["covariance_term", "ood_error"].rho == pytest.approx(1)
    assert by_name["rhs", "ood_ece"].rho == by_name["covariance_term", "ood_ece"].rho
    alone = by_name["id_error", "ood_ece"]
    assert (alone.n, alone.n_groups) == (16, 8)
    assert alone.low <= alone.rho <= alone.high
    assert any("constant" in note for note in notes)  # the ID ECE is the same everywhere
    # Another model whose runs are all worse changes no rank inside the first.
    ordered = sorted(monitored(8, 1), key=lambda p: p.sigma_min or 0)
    other = [
        p.model_copy(update={"model": "other", "ood_error": 0.9 - 1e-3 * i})
        for i, p in enumerate(ordered)
    ]
    both = {(c.term, c.error): c for c in correlations_of([*points, *other])[0]}
    assert both["sigma_min", "ood_error"].rho == pytest.approx(-1)
    assert both["sigma_min", "ood_error"].n_groups == 12


def test_monitor__too_few_runs_or_variants_are_reported():
    found, notes = correlations_of(monitored(7, 0))
    assert found == []
    assert "at least 8 runs, got 7" in notes[0]
    found, notes = correlations_of(monitored(9, 0, variant="one"))
    assert found
    assert "taken for independent" in notes[0]
    found, notes = correlations_of(monitored(9, 0, sigma_min=None))
    assert found == []
    assert "9 left out: σ_min is 0 by rank." in notes
