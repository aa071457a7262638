"""Whether sets of vectors are alike."""

import numpy as np
import pytest

from calift_core.calibration.drift import KnownSets, energy_drift
from calift_core.errors import PredictionsError, SpecError


def test_energy_drift__finds_a_move_and_calls_equal_sets_different_as_often_as_it_says():
    rng = np.random.default_rng(2)
    called = 0
    for seed in range(100):
        found = energy_drift(
            rng.normal(size=(60, 4)), rng.normal(size=(50, 4)), n_permutations=99, seed=seed
        )
        called += found.p_value <= 0.05
    assert called <= 11  # 5 expected; more than 11 in 1 of 250 such tests
    moved = energy_drift(rng.normal(size=(200, 4)), rng.normal(0.5, size=(200, 4)))
    assert moved.p_value <= 0.002
    assert moved.distance > 0.05


def test_energy_drift__is_the_definition():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))

    def mean(a, b):
        return float(np.linalg.norm(a[:, None] - b[None], axis=-1).mean())

    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert energy_drift(x, y, n_permutations=1).distance == pytest.approx(expected)
    assert energy_drift(x, x, n_permutations=9).distance == pytest.approx(0, abs=1e-12)
    large = energy_drift(rng.normal(size=(1_500, 2)), y[:, :2], n_permutations=1)
    assert (large.n_reference, large.n) == (1_000, 5)


def test_familiarity__tells_what_lies_among_known_shifts_from_what_is_further_or_unlike():
    rng = np.random.default_rng(5)

    def at(*where):
        return rng.normal(size=(200, 3)) + np.array(where)

    own, shifts = at(0, 0, 0), {"a": at(2, 0, 0), "b": at(3, 0, 0), "c": at(2, 1.5, 0)}
    ways = {
        "alike": (at(0, 0, 0), False, False),
        "between": (at(2.5, 0, 0), False, False),
        "known": (at(3, 0, 0)[:20], False, False),
        "further": (at(8, 0, 0), True, True),
        "unlike": (at(0, 0, -2.5), False, True),
    }
    known = KnownSets(own, shifts)
    for name, (values, further, unlike) in ways.items():
        found = known.familiarity(values)
        assert (found.further, found.unlike) == (further, unlike), name
    assert found.nearest == "ID"
    long, other = KnownSets(at(0, 0, 0).repeat(6, axis=0), shifts), at(2, 0, 0).repeat(6, axis=0)
    assert long.familiarity(other).nearest == "a"
    assert long.familiarity(other) == long.familiarity(other)


def test_wrong_input__is_a_sentence():
    with pytest.raises(PredictionsError, match="2 rows"):
        energy_drift(np.zeros((1, 2)), np.zeros((5, 2)))
    with pytest.raises(SpecError, match="n_permutations"):
        energy_drift(np.zeros((3, 2)), np.zeros((5, 2)), n_permutations=0)
