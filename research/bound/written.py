"""The study's numbers, tables and figures as files."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from calift_core.analysis.ranks import RankCorrelation
from calift_core.files import atomic_write_bytes, atomic_write_json
from research.bound.analysis import ERRORS, TERMS, Analysis
from research.bound.figure import Panel, PlotMark, scatter_svg
from research.bound.points import BoundPoint
from research.bound.synthetic import synthetic_means


def write_study(folder: Path, analyses: Sequence[Analysis], *, about: dict[str, Any]) -> list[Path]:
    """Write `bound.json`, `bound.csv`, `bound.md` and one figure per suite.

    Args:
        folder: made when it is not there.
        about: what goes to the JSON beside them, such as the seed.

    Returns:
        The files written.

    Raises:
        StorageError: a file cannot be written.
    """
    written = [folder / "bound.json", folder / "bound.csv", folder / "bound.md"]
    atomic_write_json(written[0], study_document(analyses, about=about))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, [f.name for f in fields(BoundPoint)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(p) for a in analyses for p in a.points)
    atomic_write_bytes(written[1], table.getvalue().encode())
    text = "\n".join(map(markdown_tables, analyses))
    atomic_write_bytes(written[2], text.encode())
    for analysis in analyses:
        for suite in dict.fromkeys(p.suite for p in analysis.points):
            chosen = [p for p in analysis.points if p.suite == suite]
            name = "synthetic" if analysis.part == "synthetic" else f"runs-{_file_name(suite)}"
            path = folder / f"{name}.svg"
            atomic_write_bytes(path, _suite_figure(analysis, suite, chosen).encode())
            written.append(path)
    return written


@dataclass(frozen=True)
class TextTable:
    """A table for people: the first `n_left` columns are words, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_left: int


def study_tables(analysis: Analysis) -> list[TextTable]:
    """The tables that the command prints and that `bound.md` holds."""
    tables = []
    if analysis.part == "synthetic":
        header = ("regularisers", "models", "σ_min", "ε_ID", "ID MSE", "OOD MSE", "OOD ECE")
        rows = tuple(
            (variant, str(n), *(f"{value:.4f}" for value in means))
            for variant, n, means in synthetic_means(analysis.points)
        )
        tables.append(TextTable("Synthetic models, means over repeats", header, rows, 1))
    found = {(a.scope, a.term, a.error): a.correlation for a in analysis.associations}
    lines = []
    for scope, term in itertools.product(
        dict.fromkeys(a.scope for a in analysis.associations), TERMS
    ):
        pair = [found.get((scope, term, error)) for error in ERRORS]
        cells = [c for r in pair for c in (_interval_text(r), f"{r.p_value:.4f}" if r else "–")]
        size = next((f"{r.n} ({r.n_groups})" for r in pair if r), "–")
        lines.append((scope, TERMS[term], *cells, size))
    columns = [name for error in ERRORS.values() for name in (f"ρ with {error}", "p")]
    title = f"Rank correlations: {analysis.part}"
    tables.append(TextTable(title, ("models", "term", *columns, "n (groups)"), tuple(lines), 2))
    return tables


def _interval_text(r: RankCorrelation | None) -> str:
    return "–" if r is None else f"{r.rho:+.2f} [{r.low:+.2f}, {r.high:+.2f}]"


def markdown_tables(analysis: Analysis) -> str:
    """Its tables, and what was left out and why."""
    return "\n\n".join([*map(_markdown, study_tables(analysis)), *analysis.notes]) + "\n"


def _markdown(table: TextTable) -> str:
    rule = ["---" if i < table.n_left else "--:" for i in range(len(table.header))]
    lines = ["| " + " | ".join(row) + " |" for row in (table.header, rule, *table.rows)]
    return f"**{table.title}**\n\n" + "\n".join(lines)


def study_document(analyses: Sequence[Analysis], *, about: dict[str, Any]) -> dict[str, Any]:
    """The study as plain data: fractions, and names of `TERMS` and `ERRORS`."""
    return {
        "format_version": 1,
        "about": about,
        "terms": TERMS,
        "errors": ERRORS,
        "parts": {
            a.part: {
                "notes": list(a.notes),
                "associations": [
                    {"scope": r.scope, "term": r.term, "error": r.error} | asdict(r.correlation)
                    for r in a.associations
                ],
                "points": [asdict(p) for p in a.points],
            }
            for a in analyses
        },
    }


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def _suite_figure(analysis: Analysis, suite: str, points: Sequence[BoundPoint]) -> str:
    synthetic = analysis.part == "synthetic"
    scope = "all" if synthetic else suite
    x_label = "ε_ID + D/σ_min"
    labels = {
        "ood_error": "OOD MSE" if synthetic else "OOD error (1 − accuracy)",
        "ood_ece": "OOD ECE",
    }
    panels = []
    for error, label in labels.items():
        found = [
            a.correlation
            for a in analysis.associations
            if (a.scope, a.term, a.error) == (scope, "rhs", error)
        ]
        title = label
        if found:
            r = found[0]
            title = f"{label}: ρ = {r.rho:+.2f} [{r.low:+.2f}, {r.high:+.2f}]"
        marks = [PlotMark(p.rhs, getattr(p, error), p.variant, hollow=p.zero_shot) for p in points]
        panels.append(Panel(title, x_label, label, tuple(marks)))
    groups, units = len({p.group for p in points}), "settings" if synthetic else "methods"
    caption = (
        f"{len(points)} models in {groups} {units}. x: the bound's right-hand side as far as ID "
        "data show it, on a logarithmic axis; as a bound it is far above every error, so only the "
        f"order is read. ρ: Spearman, with a 95 % interval over {units}."
        + (" Hollow: zero-shot." if any(p.zero_shot for p in points) else "")
    )
    name = "The bound on synthetic data" if synthetic else f"The bound on {suite}"
    return scatter_svg(panels, title=name, caption=caption)
