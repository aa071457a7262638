"""The five pictures of the results page, from the small records of the second study.

    python -m research.second.figures --write research/second/pages/img            # results-*.svg
    python -m research.second.figures --records FOLDER --write FOLDER --suites typefaces,cifar10

Every number is of the records. A mark is a mean over the seeds that are there; its bar is the 95 %
interval over seeds (Student's t; none of fewer than three), so it says nothing of other
images: the verdicts do. A suite without a record is left out, and every picture says how many seeds
it is of.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from research.bound.figure import STYLE
from research.second.study import BENCHES, OURS, PATHS, RECORDS, TRAINED, own_rates
from research.second.tables import Record, load, mean

#: Okabe & Ito's colours, and a mark for each family of rows: a path has its method's, hollow.
LOOKS = {
    "zero-shot": ("#000000", "*"),
    "FT": ("#7f7f7f", "v"),
    "FLYP": ("#0072B2", "o"),
    "CaRot": ("#D55E00", "s"),
    "TRACER": ("#009E73", "D"),
    "FLYP, anchored": ("#56B4E9", "P"),
    "FLYP, averaged": ("#E69F00", "X"),
    "ZS-Norm": ("#CC79A7", "^"),
}
CALIBRATED = {
    "raw": ("raw", "#7f7f7f", "o"),
    "temperature": ("ID temperature", "#0072B2", "s"),
    "published": ("best published calibrator", "#009E73", "D"),
    OURS: ("disagreement temperature", "#D55E00", "^"),
}
ROWS = ("zero-shot", *TRAINED, *PATHS)


class Suite:
    """The records of a suite, by row and rate."""

    def __init__(self, name: str, records: Path) -> None:
        self.name = name
        self.records = [r for r in load(records, BENCHES[name]) if "numbers" in r]
        ladder = [r for r in self.records if r["row"] in (*TRAINED, *PATHS)]
        self.own = own_rates(ladder)

    def some(self, row: str, lr: float | None) -> list[Record]:
        """Of a row at a rate."""
        return [r for r in self.records if (r["row"], r["lr"]) == (row, lr)]

    def at_own(self, row: str) -> list[Record]:
        """Of a row at its own rate."""
        return self.some(row, self.own.get(row))

    def rates(self, row: str) -> list[float]:
        """Of a row, ascending."""
        return sorted({r["lr"] for r in self.records if r["row"] == row})

    @property
    def rows(self) -> list[str]:
        """That have a record, zero-shot first."""
        known = {r["row"] for r in self.records}
        return [row for row in ROWS if row in known]

    @property
    def said(self) -> str:
        """Name and seeds."""
        seeds = {r["seed"] for r in self.records if r["lr"] is not None}
        return f"{self.name}, {len(seeds)} seed{'s' * (len(seeds) != 1)}"


def look(row: str) -> dict[str, Any]:
    """Colour, mark and filling of a row."""
    colour, mark = LOOKS[PATHS.get(row, row)]
    face = "white" if row in PATHS else colour
    return {"color": colour, "marker": mark, "markerfacecolor": face}


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval over seeds; 0 for fewer than three."""
    v = np.asarray(values)
    if len(v) < 3:
        return float(v.mean()), 0.0
    reach = student_t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v))
    return float(v.mean()), float(reach)


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=9, fontweight="bold")
    ax.tick_params(which="both", length=0)


def frontier(figure: Figure, suites: Sequence[Suite]) -> str:
    """ID accuracy against OOD NLL along the ladders, raw and after a calibrator."""
    shown = [(suite, kind) for suite in suites for kind in ("raw", "published", OURS)]
    axes = figure.subplots(len(suites), 3, squeeze=False, sharey="row").ravel()
    for ax, (suite, kind) in zip(axes, shown, strict=True):
        for row in suite.rows:
            if row not in ("zero-shot", "FT", "FLYP", "CaRot", "TRACER", *PATHS):
                continue
            points = []
            for lr in suite.rates(row) if row != "zero-shot" else [None]:
                some = suite.some(row, lr)
                x = spread([100 * mean(r, kind, "id", "accuracy") for r in some])
                y = spread([mean(r, kind, "shift", "nll") for r in some])
                points.append((*x, *y))
            x, dx, y, dy = (np.array(v) for v in zip(*points, strict=True))
            line = "--" if row in PATHS else "-"
            ax.errorbar(x, y, dy, dx, linestyle=line, linewidth=1, elinewidth=0.6, label=row,
                        markersize=9 if row == "zero-shot" else 5, **look(row))  # fmt: skip
        _title(ax, f"{suite.said}: {CALIBRATED[kind][0]}")
        ax.set_xlabel("ID test accuracy, %")
    for ax in axes[::3]:
        ax.set_ylabel("OOD NLL, nats")
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=5, loc="outside lower center")
    return ("Lower right is better. A line is a ladder of learning rates; dashed and hollow: the "
            "one-standard-error weight path of the same runs. Bars: 95 % over seeds.")  # fmt: skip


def _dots(ax: Axes, suite: Suite, number: str, scale: float) -> None:
    """A line a row, a mark a calibrator, at own rates."""
    rows = list(reversed(suite.rows))
    for kind, (label, colour, mark) in CALIBRATED.items():
        at, reach = zip(*(spread([scale * mean(r, kind, "shift", number)
                                  for r in suite.at_own(row)]) for row in rows),
                        strict=True)  # fmt: skip
        ax.errorbar(at, range(len(rows)), xerr=reach, linestyle="none", marker=mark, color=colour,
                    markersize=6, label=label, alpha=0.9)  # fmt: skip
    ax.set_yticks(range(len(rows)), rows)


def calibrated(figure: Figure, suites: Sequence[Suite]) -> str:
    """OOD ECE and NLL of every row, raw and after each kind of calibrator."""
    axes = figure.subplots(len(suites), 2, squeeze=False, sharey="row")
    for (left, right), suite in zip(axes, suites, strict=True):
        _dots(left, suite, "ece", 100)
        floors = [mean(r, "raw", "shift", "floor") for row in suite.rows for r in suite.at_own(row)]
        left.axvline(100 * float(np.mean(floors)), color="#5b6875", linestyle=":", label="floor")
        _dots(right, suite, "nll", 1)
        left.set_xlabel("OOD ECE, %")
        right.set_xlabel("OOD NLL, nats")
        _title(left, suite.said)
        _title(right, "the same models")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=3, loc="outside lower center")
    return ("Each row at its own rate, mean over the shifts. Calibrators are fitted on ID "
            "calibration images, the best published one is chosen on ID validation. Dotted: what "
            "the ECE of a calibrated model would read.")  # fmt: skip


def spectrum(figure: Figure, suites: Sequence[Suite]) -> str:
    """σ_min along the ladder, and σ_min against OOD NLL."""
    axes = figure.subplots(len(suites), 2, squeeze=False)
    for (left, right), suite in zip(axes, suites, strict=True):
        for row in suite.rows:
            if row in PATHS:
                continue
            rates = suite.rates(row) if row != "zero-shot" else [1e-5]
            at = [None] if row == "zero-shot" else rates
            sigma = [spread([1e4 * r["sigma_min"] for r in suite.some(row, lr)]) for lr in at]
            y = [spread([mean(r, "raw", "shift", "nll") for r in suite.some(row, lr)])[0]
                 for lr in at]  # fmt: skip
            middle, reach = zip(*sigma, strict=True)
            left.errorbar(rates, middle, reach, linewidth=1, markersize=5, label=row, **look(row))
            right.plot(middle, y, linewidth=1, markersize=5, **look(row))
        left.set(xscale="log", yscale="log", xlabel="learning rate (zero-shot: at the left)",
                 ylabel="σ_min, 1e-4")  # fmt: skip
        right.set(xscale="log", xlabel="σ_min, 1e-4", ylabel="OOD NLL, raw")
        _title(left, f"{suite.said}: smallest singular value")
        _title(right, "and the error under shift")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, loc="outside lower center")
    return ("Smallest singular value of the standardised ID test features. L_OC (CaRot) is made to "
            "raise it.")  # fmt: skip


def per_shift(figure: Figure, suites: Sequence[Suite]) -> str:
    """OOD accuracy and NLL on each shift, of the rows of the verdict."""
    axes = figure.subplots(len(suites), 2, squeeze=False, sharey="row")
    rows = ("zero-shot", "FLYP", "CaRot", "TRACER", "FLYP, path", "CaRot, path")
    for (left, right), suite in zip(axes, suites, strict=True):
        some = suite.at_own("zero-shot")
        shifts = [name for name, role in some[0]["roles"].items() if role in ("id", "shift")]
        order = sorted(shifts, key=lambda n: some[0]["numbers"]["raw"][n]["accuracy"])
        for step, row in enumerate(r for r in rows if r in suite.rows):
            at = np.arange(len(order)) + 0.12 * (step - 2.5)
            for ax, number, scale in ((left, "accuracy", 100), (right, "nll", 1)):
                middle, reach = zip(*(spread([scale * r["numbers"]["raw"][name][number]
                                              for r in suite.at_own(row)]) for name in order),
                                    strict=True)  # fmt: skip
                ax.errorbar(middle, at, xerr=reach, linestyle="none", markersize=5, label=row,
                            **look(row))  # fmt: skip
        named = ["ID data" if n.endswith("/test") else n for n in order]
        left.set_yticks(range(len(order)), named)
        left.set_xlabel("accuracy, %")
        right.set_xlabel("NLL, nats, raw")
        _title(left, f"{suite.said}: per shift, at own rates")
        _title(right, "the same models")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=3, loc="outside lower center")
    return "Hardest for zero-shot at the bottom. Bars: 95 % over seeds."


def cost(figure: Figure, suites: Sequence[Suite]) -> str:
    """Processor seconds of training and of the whole run."""
    axes = figure.subplots(1, len(suites), squeeze=False)[0]
    for ax, suite in zip(axes, suites, strict=True):
        rows = [r for r in reversed(suite.rows) if any("processor_s" in one["seconds"]
                for one in suite.records if one["row"] == r)]  # fmt: skip
        whole, train = [], []
        for row in rows:
            seconds = [r["seconds"] for r in suite.records if r["row"] == row]
            seconds = [s for s in seconds if "processor_s" in s]
            whole.append(float(np.median([s["processor_s"] for s in seconds])))
            train.append(float(np.median([s.get("training_cpu_s", 0.0) for s in seconds])))
        ax.barh(rows, whole, color="#cfd8e3", label="whole run, its evaluation included")
        ax.barh(rows, train, color="#0072B2", label="training")
        _title(ax, suite.said)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        ncols=2,
        loc="outside lower center",
        title="processor seconds of one thread, median",
    )
    return ("A path's bar is its 21 models on the validation images, without the training that it "
            "starts from.")  # fmt: skip


#: Name → how it is drawn, width and height a suite, inches.
PICTURES: dict[str, tuple[Callable[[Figure, Sequence[Suite]], str], float, float]] = {
    "frontier": (frontier, 11.5, 3.6),
    "calibrated": (calibrated, 10, 3.8),
    "spectrum": (spectrum, 10, 3.4),
    "shifts": (per_shift, 10, 4.2),
    "cost": (cost, 10, 3.2),
}


def draw(name: str, suites: Sequence[Suite], folder: Path) -> Path:
    """One picture as SVG; the same records give the same bytes."""
    make, width, height = PICTURES[name]
    tall = 1 if name == "cost" else len(suites)
    with rc_context({**STYLE, "svg.hashsalt": f"results-{name}"}):
        figure = Figure(figsize=(width, height * tall + 0.5), layout="constrained")
        caption = make(figure, suites)
        path = folder / f"results-{name}.svg"
        figure.savefig(path, metadata={"Date": None, "Title": name, "Description": caption})
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--suites", default=",".join(BENCHES))
    parser.add_argument("--write", type=Path, required=True, help="folder of the pictures")
    options = parser.parse_args(arguments)
    suites = list(map(partial(Suite, records=options.records), options.suites.split(",")))
    suites = [suite for suite in suites if len(suite.rows) > 1]
    if not suites:
        sys.exit(f"no suite has a trained row's record in {options.records}")
    for name in PICTURES:
        print(draw(name, suites, options.write))


if __name__ == "__main__":
    main()
