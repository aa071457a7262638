"""Singular values of the features, and σ_min and effective rank over training; their tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from calift_core.schema.wire.results import Spectrum
from frontend import text
from frontend.figures.style import (
    MUTED,
    WEBGL_POINTS,
    RunStyle,
    axis,
    blank,
    decades,
    empty_figure,
    legend_below,
    run_styles,
)
from frontend.tables import Column, Run, Table


def singular_values(
    spectra: Sequence[tuple[Run, Spectrum]],
    *,
    styles: Mapping[str, RunStyle] | None = None,
    title: str = "Singular values of the ID features",
) -> go.Figure:
    """All singular values, largest first, on a logarithmic axis; σ_min is marked.

    Values that are zero cannot stand on a logarithmic axis and are left out; a spectrum of fewer
    samples than features has no σ_min that says anything, so none is marked.
    """
    if not spectra:
        return empty_figure(title, "no spectrum is stored yet")
    styles = styles or run_styles(run.id for run, _ in spectra)
    total = sum(len(s.singular_values) for _, s in spectra)
    line = go.Scattergl if total > WEBGL_POINTS else go.Scatter
    figure = blank(
        title=title,
        subtitle=["covariance of standardised features · ring: σ_min"],
        alt="",
        height=360,
    )
    phrases = []
    for run, spectrum in spectra:
        own = styles[run.id]
        kept = [(i, v) for i, v in enumerate(spectrum.singular_values, 1) if v > 0]
        step = "final" if spectrum.final else f"step {spectrum.step}"
        figure.add_trace(
            line(
                x=[i for i, _ in kept],
                y=[v for _, v in kept],
                mode="lines",
                name=f"{text.esc(run.label)}, {step}",
                legendgroup=run.id,
                line={"color": own.colour, "dash": own.dash if line is go.Scatter else "solid",
                      "width": 2},
                customdata=[text.number(v) for _, v in kept],
                hovertemplate="σ%{x} = %{customdata}<extra>" + text.esc(run.label) + "</extra>",
            )
        )  # fmt: skip
        if spectrum.sigma_min is not None and spectrum.sigma_min > 0:
            figure.add_trace(
                go.Scatter(
                    x=[len(spectrum.singular_values)],
                    y=[spectrum.sigma_min],
                    mode="markers",
                    legendgroup=run.id,
                    showlegend=False,
                    marker={"symbol": f"{own.symbol}-open", "size": 11, "color": own.colour,
                            "line": {"width": 2}},
                    hovertemplate=f"σ_min = {text.number(spectrum.sigma_min)}"
                    + f"<extra>{text.esc(run.label)}</extra>",
                )
            )  # fmt: skip
        phrases.append(f"{run.label} ({step}): {_spectrum_words(spectrum)}")
    figure.update_layout(
        meta={
            "alt": f"{title}, {len(spectra)} spectra on a logarithmic axis. {'; '.join(phrases)}."
        },
        xaxis=axis(name="Index", rangemode="tozero"),
        yaxis=axis(
            name="Singular value",
            type="log",
            exponentformat="power",
            dtick=1,
            tickfont={"size": 10, "color": MUTED},
        ),
        showlegend=False,
    )
    if len(spectra) > 1:
        legend_below(figure, math.ceil(len(spectra) / 3))
    return figure


def _spectrum_words(spectrum: Spectrum) -> str:
    sigma = (
        f"σ_min undefined ({spectrum.n} samples for {spectrum.n_features} features)"
        if spectrum.sigma_min is None
        else f"σ_min {text.number(spectrum.sigma_min)}"
    )
    return f"{sigma}, effective rank {text.number(spectrum.effective_rank)}"


def over_steps(
    spectra: Sequence[tuple[Run, Sequence[Spectrum]]],
    *,
    quantity: str = "sigma_min",
    styles: Mapping[str, RunStyle] | None = None,
) -> go.Figure:
    """σ_min or the effective rank over training; the finished model is marked by a ring.

    Args:
        spectra: runs and their spectra in any order.
        quantity: `sigma_min` or `effective_rank`.
    """
    names = {"sigma_min": "σ_min", "effective_rank": "Effective rank"}
    heading = f"{names[quantity]} over training"
    styles = styles or run_styles(run.id for run, _ in spectra)
    figure = blank(title=heading, alt="", height=300)
    phrases = []
    values = [v for _, series in spectra for s in series if (v := getattr(s, quantity)) is not None]
    for run, series in spectra:
        own = styles[run.id]
        # The final spectrum is of other images (test, not validation): a mark of its own, no line.
        path = sorted((s for s in series if not s.final), key=lambda s: s.step)
        path = [s for s in path if getattr(s, quantity) is not None]
        final = [s for s in series if s.final and getattr(s, quantity) is not None]
        if path:
            figure.add_trace(
                go.Scatter(
                    x=[s.step for s in path],
                    y=[getattr(s, quantity) for s in path],
                    mode="lines+markers",
                    name=text.esc(run.label),
                    legendgroup=run.id,
                    line={"color": own.colour, "dash": own.dash, "width": 2},
                    marker={"color": own.colour, "symbol": own.symbol, "size": 8},
                    customdata=[text.number(getattr(s, quantity)) for s in path],
                    hovertemplate="step %{x}: %{customdata}<extra>"
                    + text.esc(run.label)
                    + "</extra>",
                )
            )
        if final:
            figure.add_trace(
                go.Scatter(
                    x=[s.step for s in final],
                    y=[getattr(s, quantity) for s in final],
                    mode="markers",
                    cliponaxis=False,
                    name=f"{text.esc(run.label)}, final",
                    legendgroup=run.id,
                    showlegend=not path,
                    marker={"symbol": f"{own.symbol}-open", "size": 13, "color": own.colour,
                            "line": {"width": 2}},
                    customdata=[text.number(getattr(s, quantity)) for s in final],
                    hovertemplate="final model: %{customdata}<extra>" + text.esc(run.label)
                    + "</extra>",
                )
            )  # fmt: skip
        if path or final:
            last = (final or path)[-1]
            phrases.append(f"{run.label} ends at {text.number(getattr(last, quantity))}")
    if not phrases:
        why = (
            "there were fewer samples than features, so σ_min says nothing"
            if any(series for _, series in spectra)
            else "no spectrum is stored yet"
        )
        return empty_figure(heading, why)
    figure.update_layout(
        meta={"alt": f"{heading}. {'; '.join(phrases)}. Rings are the finished models."},
        xaxis=axis(name="Step", rangemode="tozero"),
        yaxis=axis(name=names[quantity], **{"exponentformat": "power", **_scale(values)}),
        showlegend=False,
    )
    if len(phrases) > 1:
        legend_below(figure, math.ceil(len(phrases) / 2))
    return figure


def _scale(values: Sequence[float]) -> dict[str, Any]:
    """Logarithmic where a straight axis would press most of the values together."""
    low, high = min(values), max(values)
    if low <= 0 or high / low < 8:
        return {}
    return decades(values)


def singular_values_table(spectra: Sequence[tuple[Run, Spectrum]]) -> Table:
    rows = [
        {"run": run.label, "step": s.step, "index": index, "singular_value": value}
        for run, s in spectra
        for index, value in enumerate(s.singular_values, 1)
    ]
    return Table(
        [
            Column("run", "Run"),
            Column("step", "Step", "count"),
            Column("index", "Index", "count"),
            Column("singular_value", "Singular value", "number"),
        ],
        rows,
    )


def table(series: Sequence[tuple[Run, Sequence[Spectrum]]]) -> Table:
    """One row per run and measured step."""
    rows = [
        {
            "run": run.label,
            "step": s.step,
            "final": s.final,
            "sigma_min": s.sigma_min,
            "effective_rank": s.effective_rank,
            "condition_number": s.condition_number,
            "n": s.n,
            "n_features": s.n_features,
            "n_constant_features": s.n_constant_features,
            "projection_gram_distance": s.projection_gram_distance,
        }
        for run, found in series
        for s in sorted(found, key=lambda s: (s.final, s.step))
    ]
    return Table(
        [
            Column("run", "Run"),
            Column("step", "Step", "count"),
            Column("final", "Final", "yes"),
            Column("sigma_min", "σ_min", "number"),
            Column("effective_rank", "Effective rank", "number"),
            Column("condition_number", "Condition number", "number"),
            Column("n", "Samples", "count"),
            Column("n_features", "Features", "count"),
            Column("n_constant_features", "Constant features", "count"),
            Column("projection_gram_distance", "‖W_vᵀW_v − 1‖", "number"),
        ],
        rows,
    )
