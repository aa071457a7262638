"""Curves of training: what is drawn is what the numbers say."""

from __future__ import annotations

from calift_core.schema.wire.runs import Metrics, MetricSeries
from frontend import figures


def test_curves__long_series_are_drawn_by_webgl() -> None:
    def metrics(n: int) -> Metrics:
        steps = list(range(1, n + 1))
        series = MetricSeries(name="loss", steps=steps, values=[1 / s for s in steps])
        return Metrics(series=[series], last_step=n)

    assert figures.curves.figure(metrics(50)).data[0].type == "scatter"
    assert (
        figures.curves.figure(metrics(figures.style.WEBGL_POINTS + 1)).data[0].type == "scattergl"
    )
    assert list(figures.curves.figure(metrics(3), ["loss", "absent"]).data[0].y) == [
        1,
        1 / 2,
        1 / 3,
    ]
