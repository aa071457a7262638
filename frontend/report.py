"""A comparison of runs as files: JSON, CSV, figures, and one HTML page that needs nothing else."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from calift_core import __version__
from calift_core.client import Client
from calift_core.errors import StorageError
from calift_core.files import atomic_write_bytes, atomic_write_json
from calift_core.schema.wire.results import Evaluation, Reliability, Spectrum
from calift_core.schema.wire.runs import RunDetail
from frontend import figures, pictures, tables, text
from frontend.figures import style
from frontend.figures.style import Run

Say = Callable[[str], None]


def write_report(
    client: Client,
    runs: Sequence[RunDetail],
    folder: Path,
    *,
    title: str,
    note: str,
    diagrams: Sequence[str],
    timings: dict[str, float] | None = None,
    say: Say = lambda sentence: None,
) -> Path:
    """Write everything about some finished runs.

    Args:
        client: of the service that has the runs.
        runs: finished runs, in the order of the table.
        folder: receives the files; what an earlier report left there is replaced.
        title: heading of the page.
        note: a paragraph under the table: what these numbers are and are not.
        diagrams: data sets to draw reliability diagrams of; ID data comes first.
        timings: seconds that each part took, by name.
        say: told sentences for people.

    Returns:
        The HTML page.

    Raises:
        StorageError: a file cannot be written.
        ServiceError: the service does not give what is asked.
    """
    labels = [Run(run.id, run.name) for run in runs]
    evaluations = [client.run_evaluations(run.id) for run in runs]
    spectra = [client.spectra(run.id) for run in runs]
    body = {
        "title": title,
        "calift": __version__,
        "note": note,
        "timings_s": timings or {},
        "runs": [client.report(run.id).model_dump(mode="json") for run in runs],
    }
    figures = _figures(client, labels, evaluations, spectra, diagrams)
    clear(folder)
    atomic_write_json(folder / "report.json", body)
    atomic_write_bytes(folder / "runs.csv", _runs_csv(runs).encode())
    atomic_write_bytes(folder / "evaluations.csv", _evaluations_csv(labels, evaluations).encode())
    page = _page(title, note, runs, figures, timings or {})
    atomic_write_bytes(folder / "index.html", page.encode())
    _write_pictures(figures, folder / "figures", say)
    return folder / "index.html"


#: Everything that a report writes; nothing else in its folder is touched.
FILES = ("report.json", "runs.csv", "evaluations.csv", "index.html")


def clear(folder: Path) -> None:
    """Remove an earlier report, so that old and new are never mixed."""
    try:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        for picture in (folder / "figures").glob("*.svg"):
            picture.unlink()
    except OSError as error:
        raise StorageError(f"cannot replace the report in {str(folder)!r}: {error}") from error


def _figures(
    client: Client,
    labels: Sequence[Run],
    evaluations: Sequence[list[Evaluation]],
    spectra: Sequence[list[Spectrum]],
    diagrams: Sequence[str],
) -> dict[str, go.Figure]:
    data = list(zip(labels, evaluations, strict=True))
    drawn = {}
    for dataset in diagrams:
        grid: list[Reliability] = []
        for found in evaluations:
            grid += [client.reliability(e.id) for e in found if e.dataset == dataset]
        if grid:
            name = f"reliability-{dataset.replace('/', '-')}"
            drawn[name] = figures.reliability.grid(
                grid, columns=2, titles=[f"{d.run_name} · {d.dataset}" for d in grid]
            )
    drawn["accuracy-by-shift"] = figures.shifts.dots(data, metric="accuracy")
    drawn["ece-by-shift"] = figures.shifts.dots(data, metric="ece")
    drawn["ece-heatmap"] = figures.shifts.by_run(data, metric="ece")
    drawn["ece-by-severity"] = figures.shifts.severity_lines(data, metric="ece")
    last = [
        (label, final[-1])
        for label, series in zip(labels, spectra, strict=True)
        if (final := [s for s in series if s.final])
    ]
    drawn["singular-values"] = figures.spectra.singular_values(last)
    drawn["sigma-min-over-training"] = figures.spectra.over_steps(
        [(label, s) for label, s in zip(labels, spectra, strict=True) if len(s) > 1]
    )
    return drawn


_RUN_COLUMNS = (
    *(column.name for column in tables.headline(floors=True)),
    "worst_shift",
    "worst_severity",
    "worst_shift_accuracy",
)


def _runs_csv(runs: Sequence[RunDetail]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("run_id", "name", "method", "seed", "lr", *_RUN_COLUMNS))
    for run in runs:
        values = run.summary.model_dump() if run.summary else {}
        writer.writerow(
            (
                run.id,
                run.name,
                run.method,
                run.seed,
                run.resolved.get("lr", ""),
                *(values.get(column) for column in _RUN_COLUMNS),
            )
        )
    return out.getvalue()


def _evaluations_csv(labels: Sequence[Run], evaluations: Sequence[list[Evaluation]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        (
            "run_id",
            "name",
            "dataset",
            "role",
            "n",
            "accuracy",
            "nll",
            "brier",
            "mean_confidence",
            "ece",
            "ece_floor",
            "ece_floor_q95",
            "ece_low",
            "ece_high",
            "ece_debiased",
            "smooth_ece",
            "n_bins",
            "scheme",
        )
    )
    for label, found in zip(labels, evaluations, strict=True):
        for e in found:
            writer.writerow(
                (
                    label.id,
                    label.label,
                    e.dataset,
                    e.role,
                    e.n,
                    e.accuracy,
                    e.nll,
                    e.brier,
                    e.mean_confidence,
                    e.ece.value,
                    e.ece.null_mean,
                    e.ece.null_q95,
                    *e.ece.interval,
                    e.ece.debiased,
                    e.smooth_ece,
                    e.ece.n_bins,
                    e.ece.scheme,
                )
            )
    return out.getvalue()


def _with_floor(value: float | None, floor: float | None) -> str:
    if value is None or floor is None:
        return text.DASH
    return f"{text.percent(value)} ({100 * floor:.1f})"


_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1c2733;margin:0 auto;max-width:1100px;padding:24px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:36px 0 4px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:6px 10px;border-bottom:1px solid #e3e8ee}
th:first-child,td:first-child{text-align:left}.scroll{overflow-x:auto}
p.note{color:#4a5763;max-width:75ch}figure{margin:0;overflow-x:auto}
"""


def _page(
    title: str,
    note: str,
    runs: Sequence[RunDetail],
    figures: dict[str, go.Figure],
    timings: dict[str, float],
) -> str:
    """One self-contained HTML page: plotly's script is in it once."""
    rows = []
    for run in runs:
        s = run.summary
        cells = (
            [
                text.percent(s.id_accuracy),
                text.percent(s.ood_accuracy),
                _with_floor(s.id_ece, s.id_ece_floor),
                _with_floor(s.ood_ece, s.ood_ece_floor),
                text.DASH if s.sigma_min is None else f"{s.sigma_min:.2e}",
            ]
            if s
            else [text.DASH] * 5
        )
        rows.append(
            f"<tr><td>{html.escape(run.name)}</td>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            + "</tr>"
        )
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<script>{get_plotlyjs()}</script></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        '<div class="scroll"><table><thead><tr><th>run</th><th>ID acc</th><th>mean OOD acc</th>'
        "<th>ID ECE (floor)</th><th>OOD ECE (floor)</th><th>σ_min</th></tr></thead><tbody>",
        *rows,
        "</tbody></table></div>",
        f'<p class="note">{html.escape(note)}</p>',
    ]
    for name, figure in figures.items():
        alt = html.escape(style.alt_text(figure))
        inner = figure.to_html(full_html=False, include_plotlyjs=False, config=style.CONFIG)
        heading = html.escape(name.replace("-", " "))
        parts.append(
            f'<h2>{heading}</h2><figure role="img" aria-label="{alt}">{inner}</figure>'
            f'<p class="note">{alt}</p>'
        )
    if timings:
        items = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{seconds:.0f} s</td></tr>"
            for name, seconds in timings.items()
        )
        parts.append(f"<h2>What took how long</h2><table>{items}</table>")
    parts.append(f'<p class="note">calift {html.escape(__version__)}</p></body></html>')
    return "\n".join(parts)


def _write_pictures(figures: dict[str, go.Figure], folder: Path, say: Say) -> None:
    """SVG files where an installed Chrome can draw them, a sentence where not."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        drawn = pictures.draw(figures)
    except ImportError:
        say("No SVG figures: `kaleido` is not installed. The HTML page has them all.")
        return
    except Exception as error:  # kaleido and the browser fail in many types
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else ""
        say(
            "No SVG figures: they need an installed Chrome or Chromium "
            f"({type(error).__name__}: {reason}). The HTML page has them all."
        )
        return
    for name, picture in drawn.items():
        atomic_write_bytes(folder / f"{name}.svg", picture)
