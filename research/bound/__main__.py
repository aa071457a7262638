"""Does CaRot's bound rank the errors under shift? On synthetic data and over finished runs.

python -m research.bound --synthetic --out study    # 96 small models, 1 to 3 minutes on two cores
python -m research.bound FOLDER --out study         # finished runs, from their report.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from calift_core import __version__
from calift_core.errors import CaliftError
from research.bound.analysis import analyse
from research.bound.figure import need_matplotlib
from research.bound.runs import read_runs
from research.bound.synthetic import FULL, QUICK, synthetic_points, synthetic_scopes
from research.bound.written import markdown_tables, write_study


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, and write them where `--out` says."""
    parser = argparse.ArgumentParser(prog="python -m research.bound", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="searched for finished runs")
    parser.add_argument("--synthetic", action="store_true", help="train the synthetic models")
    parser.add_argument("--quick", action="store_true", help="few of them, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="for JSON, CSV, tables (Markdown), figures (SVG)")
    options = parser.parse_args(arguments)
    if not (options.folders or options.synthetic):
        parser.error("name folders of runs, or --synthetic")
    try:
        if options.out:
            need_matplotlib()
        analyses = []
        if options.synthetic:
            points = list(synthetic_points(QUICK if options.quick else FULL, seed=options.seed))
            scopes = synthetic_scopes(points)
            analyses.append(analyse("synthetic", points, scopes=scopes, seed=options.seed))
        if options.folders:
            points, notes = read_runs(options.folders)
            analyses.append(analyse("runs", points, notes=notes, seed=options.seed))
        for analysis in analyses:
            print(markdown_tables(analysis))
        about = {"calift": __version__, "seed": options.seed, "quick": options.quick}
        for path in write_study(options.out, analyses, about=about) if options.out else ():
            print(f"wrote {path}")
    except CaliftError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
