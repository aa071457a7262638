"""Expected accuracy on images without labels, batch by batch; its table."""

import plotly.graph_objects as go

from calift_core.schema.unlabelled import FollowedBatch, UnlabelledRecord
from frontend import text
from frontend.figures.style import OVER, SHARE, UNDER, axis, blank, interval_bars, legend_below
from frontend.tables import Column, Table

#: Where a batch is drawn whose accuracy is unknown.
_UNKNOWN_AT = 0.5


def figure(record: UnlabelledRecord) -> go.Figure:
    """A mark a batch, the oldest files at the left; alarms in colour, `?` where it is unknown."""
    n, n_alarms = len(record.batches), sum(bool(one.alarms) for one in record.batches)
    made = blank(
        title="Expected accuracy by batch",
        subtitle=["The oldest files at the left; ?: the accuracy is unknown."],
        alt=f"Expected accuracy of {record.found.n:,} images without labels in "
        f"{n} batches, {n_alarms} with an alarm.",
        height=260,
    )
    for name, alarm, colour in (("no alarm", False, UNDER), ("alarm", True, OVER)):
        drawn = [(k, b) for k, b in enumerate(record.batches, 1) if bool(b.alarms) == alarm]
        if not drawn:
            continue
        known = [(b.value or 0.0, b.low or 0.0, b.high or 0.0) for _, b in drawn]
        made.add_trace(
            go.Scatter(
                x=[k for k, _ in drawn],
                y=[_UNKNOWN_AT if b.value is None else b.value for _, b in drawn],
                error_y=interval_bars([h - v for v, _, h in known], [v - w for v, w, _ in known],
                                      colour),
                mode="markers+text",
                text=["<b>?</b>" if b.value is None else "" for _, b in drawn],
                textfont={"color": colour, "size": 16},
                marker={"color": colour, "symbol": "diamond" if alarm else "circle",
                        "size": [0 if b.value is None else 9 for _, b in drawn]},
                name=f"{name} ({len(drawn)})",
                hovertext=[_words(b) for _, b in drawn],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )  # fmt: skip
    made.update_layout(
        xaxis=axis(name="Batch", range=[0.5, n + 0.5], tick0=1, dtick=1 + n // 12),
        yaxis=axis(name="Expected accuracy", tickformat=SHARE, range=[0, 1.02]),
        showlegend=True,
    )
    legend_below(made, 1)
    made.update_layout(legend_itemsizing="constant")
    return made


def _words(one: FollowedBatch) -> str:
    value = "accuracy unknown"
    if one.value is not None and one.low is not None and one.high is not None:
        value = f"{text.percent(one.value)}, {text.interval(one.low, one.high)}"
    lines = [f"{one.n:,} images: {value}", text.p_value(one.p_value), *one.alarms]
    return "<br>".join(map(text.esc, lines))


def table(record: UnlabelledRecord) -> Table:
    return Table(
        [
            Column("batch", "Batch", "count"),
            Column("n", "Images", "count"),
            Column("value", "Expected accuracy", "percent"),
            Column("low", "From", "percent"),
            Column("high", "To", "percent"),
            Column("p_value", "Drift p", "number"),
            Column("alarm", "Alarm"),
            Column("unknown", "Unknown because", "prose"),
        ],
        [
            {"batch": k, **one.model_dump(), "alarm": " and ".join(one.alarms) or "none"}
            for k, one in enumerate(record.batches, 1)
        ],
    )
