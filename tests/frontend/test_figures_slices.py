"""Slices: what is drawn is what the numbers say."""

from calift_core.analysis import slices
from calift_core.schema.wire.queries import SlicesQuery
from calift_core.schema.wire.results import Source
from frontend import figures
from frontend.tables import analysis
from tests.frontend.examples import BINNING, DRAWS, RUNS, samples_of


def test_slices__marks_are_filled_only_above_the_floor(pages):
    figure = figures.slices.gaps(pages)
    assert [trace.name for trace in figure.data] == ["first", "second"]
    names = list(figure.layout.yaxis.ticktext)
    assert names == [s.title for s in pages[0][1].items]
    assert list(figure.data[0].x) == sorted(figure.data[0].x)  # the first page's own order
    for trace, (_, page) in zip(figure.data, pages, strict=True):
        places = [round(y) for y in trace.y]
        found = dict(zip(places, zip(trace.x, trace.marker.symbol, strict=True), strict=True))
        for s in page.items:
            x, symbol = found[names.index(s.title)]
            assert x == 100 * s.gap
            above = s.ece is not None and s.null_q95 is not None and s.ece > s.null_q95
            assert symbol.endswith("-open") != above
        assert "pp" in trace.hovertemplate
    axis = figure.layout.xaxis
    assert (axis.title.text, axis.tickformat) == ("Confidence minus accuracy, points", None)
    assert any(s.too_small for s in pages[0][1].items)
    assert set(figure.data[0].marker.size) == {6, 10}
    alt = figures.style.alt_text(figure)
    assert "first: " in alt
    assert "slices above their floor" in alt


def test_slices__none_is_reported():
    page = slices.slice_page(
        samples_of("CaRot"),
        Source(dataset="sketch", role="shift"),
        SlicesQuery(where="rank > 99"),
        BINNING,
        DRAWS,
    )
    assert "no sample" in figures.style.alt_text(figures.slices.gaps([(RUNS[0], page)]))
    assert analysis.slices([(RUNS[0], page)]).rows == []
