"""The figure of docs/results.md: what each recipe gains over zero-shot, on ID data and under shift.

python -m research.figure --write docs/img
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from research.recipes import ZERO_SHOT
from research.records import RECORDS
from research.study import FIRST
from research.tables import Study, complete_studies

#: Row → its colour: Okabe and Ito's, which people of every colour vision tell apart.
COLOURS = dict(zip(FIRST, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=True))
NAMES = {"flyp": "FLYP", "carot": "CaRot", "tracer": "TRACER", "ft": "FT"}
ZERO = (ZERO_SHOT, "end", "raw")


def draw(studies: Sequence[Study], out: Path) -> Path:
    """A panel a suite; the same records give the same bytes."""
    with rc_context({"svg.hashsalt": "calift", "svg.fonttype": "none", "font.size": 9}):
        columns = 2 if len(studies) == 4 else len(studies)
        rows = len(studies) // columns
        figure = Figure(figsize=(4.4 * columns, 3.9 * rows), layout="constrained")
        places = figure.subplots(rows, columns, squeeze=False).flat
        for axes, study in zip(places, studies, strict=True):
            _panel(axes, study)
        file = out / "results-gains.svg"
        figure.savefig(file, metadata={"Date": None, "Creator": None})
    return file


def gains(study: Study, recipe: tuple[str, str, str]) -> tuple[float, float]:
    """NLL below zero-shot's own probabilities, on ID test images and under shift, in nats."""
    first, second = (
        study.mean(ZERO, kind, "nll") - study.mean(recipe, kind, "nll")
        for kind in ("test", "shift")
    )
    return first, second


def _panel(axes: Axes, study: Study) -> None:
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.axvline(0, color="#888888", linewidth=0.8)
    n = 0
    for row in FIRST:
        for point, fill in (("end", True), ("path", False)):
            one, two = ((row, point, use) for use in ("published", "ensemble"))
            if one not in study.recipes or two not in study.recipes:
                continue
            n = len(study.runs(one))
            start, stop = gains(study, one), gains(study, two)
            colour = COLOURS[row]
            axes.annotate(
                "", stop, start, arrowprops={"arrowstyle": "->", "color": colour, "shrinkA": 4}
            )
            axes.plot(
                *start,
                marker="o",
                color=colour,
                markerfacecolor=colour if fill else "white",
                linestyle="none",
                label=NAMES[row] if fill else None,
            )
    axes.set_title(f"{study.suite}, {n} seeds", loc="left")
    axes.set_xlabel("NLL gained on ID test, nats")
    axes.set_ylabel("NLL gained under shift, nats")
    axes.legend(frameon=False, loc="lower left")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--write", type=Path, required=True)
    options = parser.parse_args(arguments)
    studies = complete_studies(options.records)
    if not studies:
        sys.exit(f"no suite has a complete record in {options.records}")
    print(draw(studies, options.write))


if __name__ == "__main__":
    sys.exit(main())
