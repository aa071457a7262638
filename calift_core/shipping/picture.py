"""The reliability diagram of a model card, as PNG, by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from calift_core.errors import SpecError
from calift_core.installed import install_extra
from calift_core.shipping.exported_scores import DatasetScores
from calift_core.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR, _BAND, _INK = "#0072B2", "#c9ced4", "#1c2733"


def reliability_png(rows: Sequence[DatasetScores]) -> bytes:
    """Diagrams side by side.

    Args:
        rows: what is drawn, at least one, each with its `curve`.

    Raises:
        SpecError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise SpecError(
            "the card's diagram needs matplotlib, which is not installed.",
            hint=install_extra("study"),
        ) from None
    figure = Figure(figsize=(4.6 * len(rows), 4.8), layout="constrained")
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        _draw(axes, row)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Axes, row: DatasetScores) -> None:
    curve = row.curve
    assert curve is not None
    full = curve.count > 0
    x, y = curve.mean_confidence[full], curve.accuracy[full]
    axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle="--")
    axes.fill_between(
        x, curve.band_low[full], curve.band_high[full], color=_BAND, linewidth=0, label="calibrated"
    )
    spread = np.abs(np.stack([y - curve.interval_low[full], curve.interval_high[full] - y]))
    axes.errorbar(
        x, y, yerr=spread, color=_BAR, fmt="o-", markersize=4, linewidth=1.2, label="this model"
    )
    low, high = row.ece.interval
    axes.set_title(
        f"{row.dataset}, n = {row.n:,}\nECE {percent(row.ece.value)} ({percent(low)} to "
        f"{percent(high)}), "
        f"floor {percent(row.ece.null_mean)}",
        fontsize=9,
        color=_INK,
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean confidence", ylabel="accuracy", aspect="equal")
    axes.legend(loc="upper left", frameon=False, fontsize=8)
