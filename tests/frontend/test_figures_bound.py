"""An association in words: what it says follows from interval and p, and it names no cause."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calift_core.schema.wire.answers import Correlation, RunPoint
from frontend.figures.bound import ERRORS, RANKED, scatter, sentence
from frontend.figures.style import SHARE, style_of_slot


@pytest.mark.parametrize(
    ("rho", "low", "high", "p", "says"),
    [
        (-0.7, -0.9, -0.3, 0.01, "Runs with a larger σ_min have a lower OOD ECE"),
        (0.7, 0.3, 0.9, 0.01, "Runs with a larger σ_min have a higher OOD ECE"),
        (-0.7, -0.9, -0.3, 0.15, "chance among so few variants might do too"),
        (-0.2, -0.6, 0.3, 0.5, "cannot be said to go together"),
    ],
)
def test_sentence__says_no_more_than_is_known(rho, low, high, p, says):
    found = Correlation(
        term="sigma_min", error="ood_ece", rho=rho, low=low, high=high, p_value=p, n=20, n_groups=8
    )
    assert says in sentence(found)
    for word in ("cause", "because", "effect", "due to", "improve", "lead"):
        assert word not in sentence(found)


def test_sentence__knows_every_term_and_error():
    from calift_core.analysis.bound import ERRORS as MEASURED
    from calift_core.analysis.bound import TERMS as RANKED_THERE

    assert set(RANKED) == set(RANKED_THERE)
    assert set(ERRORS) == set(MEASURED)


def _run(sigma_min: float) -> RunPoint:
    return RunPoint(
        run_id="a", name="a", method="carot", variant="carot", model="m", seed=0, n_features=8,
        sigma_min=sigma_min, effective_rank=4.0, covariance_term=1 / sigma_min,
        rhs=0.1 + 1 / sigma_min, id_ece=0.1, id_error=0.2, ood_error=0.3, ood_ece=0.15,
        ood_ece_floor=None,
    )  # fmt: skip


@given(
    st.floats(1e-6, 1, exclude_min=True),
    st.floats(1, 1e4),
    st.sampled_from(["sigma_min", "covariance_term"]),
)
def test_scatter__marks_lie_between_ticks(sigma, spread, term):
    """Powers of ten alone leave an axis of less than two of them with one tick, or none."""
    axis = scatter([_run(sigma), _run(sigma * spread)], term=term, error="ood_ece").layout.xaxis
    assert axis.type == "log"
    assert axis.dtick == "D2" or math.log10(spread) > 1.99


def test_scatter__ticks_and_looks_of_few_runs():
    layout = scatter([_run(1e-4)], term="id_ece", error="ood_ece").layout
    assert layout.xaxis.tickformat == layout.yaxis.tickformat == SHARE
    points = [_run(0.1), _run(0.2).model_copy(update={"run_id": "b", "name": "b"})]
    looks = {"a": style_of_slot(3), "b": style_of_slot(1)}
    drawn = scatter(points, term="sigma_min", error="ood_ece", styles=looks).data
    assert [(t.name, t.marker.color, t.marker.symbol) for t in drawn] == [
        (name, looks[name].colour, looks[name].symbol) for name in "ab"
    ]
    assert len(scatter(points, term="sigma_min", error="ood_ece").data) == 1  # one method
