"""Singular values: what is drawn is what the numbers say."""

from frontend import figures
from frontend.tables import Run
from tests.frontend.examples import spectrum_of


def test_singular_values__all_are_drawn_and_zero_is_left_out():
    figure = figures.spectra.singular_values([(Run("a", "one"), spectrum_of([3.0, 1.0, 0.5]))])
    assert list(figure.data[0].y) == [3.0, 1.0, 0.5]
    assert figure.layout.yaxis.type == "log"
    zero = figures.spectra.singular_values(
        [(Run("a", "one"), spectrum_of([3.0, 0.0], sigma_min=None))]
    )
    assert list(zero.data[0].y) == [3.0]
    assert len(zero.data) == 1  # no mark for a σ_min that says nothing
    assert "undefined" in figures.style.alt_text(zero)


def test_sigma_over_steps__undefined_is_reported_and_values_far_apart_are_on_a_logarithmic_axis():
    short = spectrum_of([3.0, 0.0], sigma_min=None, n=1)
    figure = figures.spectra.over_steps([(Run("a", "one"), [short])])
    assert not figure.data
    assert "fewer samples than features" in figures.style.alt_text(figure)
    path = [spectrum_of([2.0, s / 10], step=s, final=s == 3) for s in (3, 1, 2)]
    drawn = figures.spectra.over_steps([(Run("a", "one"), path)])
    assert list(drawn.data[0].x) == [1, 2]
    assert list(drawn.data[1].y) == [0.3]
    near = [spectrum_of([2.0, s / 10], step=s) for s in (1, 2)]
    far = [spectrum_of([2.0, s / 1000], step=s) for s in (1, 2)]
    one, other = Run("a", "one"), Run("b", "other")
    assert figures.spectra.over_steps([(one, near)]).layout.yaxis.type != "log"
    assert figures.spectra.over_steps([(one, near), (other, far)]).layout.yaxis.type == "log"
    zero = [spectrum_of([2.0, 0.0], sigma_min=0.0, step=1)]
    assert figures.spectra.over_steps([(one, near), (other, zero)]).layout.yaxis.type != "log"
