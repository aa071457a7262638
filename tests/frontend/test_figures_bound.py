"""An association in words: what it says follows from interval and p, and it names no cause."""

from __future__ import annotations

import pytest

from calift_core.schema.wire.answers import Correlation
from frontend.figures.bound import ERRORS, RANKED, sentence


@pytest.mark.parametrize(
    ("rho", "low", "high", "p", "says"),
    [
        (-0.7, -0.9, -0.3, 0.01, "Runs with a larger σ_min have a lower OOD ECE"),
        (0.7, 0.3, 0.9, 0.01, "Runs with a larger σ_min have a higher OOD ECE"),
        (-0.7, -0.9, -0.3, 0.15, "chance among so few variants might do too"),
        (-0.2, -0.6, 0.3, 0.5, "cannot be said to go together"),
    ],
)
def test_sentence__says_no_more_than_is_known(
    rho: float, low: float, high: float, p: float, says: str
) -> None:
    found = Correlation(
        term="sigma_min", error="ood_ece", rho=rho, low=low, high=high, p_value=p, n=20, n_groups=8
    )
    assert says in sentence(found)
    for word in ("cause", "because", "effect", "due to", "improve", "lead"):
        assert word not in sentence(found)


def test_sentence__knows_every_term_and_error() -> None:
    from calift_core.studies.bound.monitor import ERRORS as MEASURED
    from calift_core.studies.bound.monitor import TERMS as RANKED_THERE

    assert set(RANKED) == set(RANKED_THERE)
    assert set(ERRORS) == set(MEASURED)
