"""Parallel coordinates: each line passes where its run's values are, and needs no WebGL."""

import re
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend import figures
from frontend.figures import parallel
from frontend.tables import Column, Table

COLUMNS = [
    Column("arm", "Contender"),
    Column("lr", "Rate", "number"),
    Column("seed", "Seed"),
    Column("id_accuracy", "ID accuracy", "percent"),
    Column("sigma_min", "σ_min", "number"),
]


def row(**changes: Any) -> dict[str, Any]:
    return {"run": "one", "arm": "flyp", "lr": 1e-4, "seed": "0", "id_accuracy": 0.8,
            "sigma_min": None} | changes  # fmt: skip


def drawn(*rows: dict[str, Any]) -> go.Figure:
    return parallel.figure(Table(COLUMNS, list(rows)), colour="arm")


def labels(figure: go.Figure, at: int) -> dict[str, float]:
    """Words and places of an axis's labels."""
    return {a.text: a.y for a in figure.layout.annotations if a.x == at and a.yshift is None}


shares = st.floats(0, 1)
some_rows = st.lists(
    st.builds(
        row,
        arm=st.sampled_from(["flyp", "carot", "<b>"]),
        lr=st.floats(1e-7, 1.0),
        seed=st.sampled_from(["0", "1", "2", "10"]),
        id_accuracy=st.none() | shares,
        sigma_min=st.none() | st.floats(-1e3, 1e3),
    ),
    min_size=2,
    max_size=8,
)


@given(some_rows)
def test_parallel__lines_keep_the_order_of_values_on_every_axis(rows):
    figure = drawn(*rows)
    if not figure.data:
        return
    at = {a.text.replace("<br>", " "): a.x for a in figure.layout.annotations if a.yshift}
    for column in COLUMNS:
        if column.kind != "text" and column.label in at:
            known = sorted((r[column.name], t.y[at[column.label]])
                           for r, t in zip(rows, figure.data, strict=True)
                           if r[column.name] is not None)  # fmt: skip
            ys = [y for _, y in known]
            assert all(after >= before - 1e-9 for before, after in pairwise(ys))
    for trace in figure.data:
        assert all(0 <= y <= 1 or y == parallel.MISSING for y in trace.y)


@given(shares, shares)
def test_parallel__labels_of_an_axis_of_shares_are_true_and_within_0_and_100(first, second):
    figure = drawn(row(id_accuracy=first), row(id_accuracy=second, arm="carot"))
    if abs(first - second) < 1e-6:
        return
    ticks = {float(words.split()[0]): y for words, y in labels(figure, 3).items()}
    assert min(ticks) >= 0
    assert max(ticks) <= 100
    assert len(ticks) <= 8
    low, high = min(ticks), max(ticks)
    for trace, value in zip(figure.data, (first, second), strict=True):
        assert low + trace.y[3] * (high - low) == pytest.approx(100 * value, abs=1e-6)


def test_parallel__is_of_lines_alone_and_each_says_its_run_and_all_its_values():
    figure = drawn(row(run="<i>first"), row(run="second", arm="carot", lr=1e-3, id_accuracy=0.9))
    assert {trace.type for trace in figure.data} == {"scatter"}
    assert figures.style.on_dark(figure).data[0].line.color != figure.data[0].line.color
    first, second = (re.sub(r"\s", " ", trace.hovertext) for trace in figure.data)
    assert first.startswith("<b>&lt;i&gt;first</b>")
    for words in ("Contender: carot", "Rate: 0.001", "Seed: 0", "ID accuracy: 90.0 %"):
        assert words in second


def test_parallel__names_begin_at_the_top_and_numbers_grow_upwards():
    figure = drawn(*(row(lr=lr, arm=f"a{lr}") for lr in (1e-5, 1e-4, 1e-3)))
    assert labels(figure, 1) == {"1e-05": 0.0, "0.0001": pytest.approx(0.5), "0.001": 1.0}
    figure = drawn(*(row(arm=arm, seed=seed) for arm, seed in (("b", "2"), ("a", "10"))))
    assert labels(figure, 0) == {"a": 1.0, "b": 0.0}
    assert labels(figure, 2) == {"2": 0.0, "10": 1.0}
    table = Table(COLUMNS, [row(arm="a"), row(arm="b")])
    given = parallel.figure(table, colour="arm", order=["c", "b", "a"])
    assert labels(given, 0) == {"b": 1.0, "a": 0.0}
    colours = [figures.style.PALETTE[i] for i in (2, 1)]
    assert [trace.line.color for trace in given.data] == colours


def test_parallel__what_all_share_is_in_the_middle_and_what_is_missing_below():
    assert len(drawn(row(), row(arm="carot")).data[0].x) == 4  # σ_min has no value: no axis
    assert not drawn(row(), row()).data
    figure = drawn(row(sigma_min=0.2), row(arm="carot", id_accuracy=None))
    assert labels(figure, 2) == {"0": 0.5}
    assert [trace.y[4] for trace in figure.data] == [0.5, parallel.MISSING]
    assert labels(figure, 4)["none"] == parallel.MISSING
    assert figure.layout.yaxis.range[0] < parallel.MISSING


def test_parallel__colours_follow_the_contender_and_lines_are_bounded():
    rows = [row(arm=f"a{i % 3}", seed=str(i)) for i in range(parallel.MOST + 50)]
    figure = drawn(*rows)
    assert len(figure.data) == parallel.MOST
    assert f"the first {parallel.MOST} of {len(rows)} runs" in figure.layout.title.text
    by_name = {trace.name: trace.line.color for trace in figure.data}
    assert all(by_name[trace.name] == trace.line.color for trace in figure.data)
    assert len(set(by_name.values())) == 3
    assert sum(bool(trace.showlegend) for trace in figure.data) == 3
