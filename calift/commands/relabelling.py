"""`calift data doubtful` and `relabel`: likely label errors, looked at and corrected."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from calift.commands.console import JsonFlag, out, percent, print_json
from calift_core.errors import DataError

if TYPE_CHECKING:
    from calift_core.analysis.label_errors import LabelErrorCandidate

_SHOWN = 20


def doubtful(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    to: Annotated[
        Path | None, typer.Option("--out", help="Write all of them to this CSV.", metavar="FILE")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List likely label errors among the images that a run was evaluated on but not trained on.

    By confident learning, on the run's predictions of validation, calibration and test images and
    of shifts. They are suggestions: look at each, correct the column `suggested` (empty leaves the
    image out) or delete the line, then `calift data relabel`.
    """
    from calift_core.analysis.copies import evaluated_sets
    from calift_core.analysis.label_errors import label_error_candidates_in
    from calift_core.predictions.read import read_scores

    sets = evaluated_sets(run)
    found = [one for path in sets.values() for one in label_error_candidates_in(path)]
    hits = [hit for path in sets.values() for hit in read_scores(path).correct.tolist()]
    agrees = sum(hits) / len(hits)
    if to is not None:
        _write(found, to)
    if as_json:
        items = [asdict(one) for one in found]
        print_json({"run": str(run), "sets": list(sets), "agrees": agrees, "items": items})
        return
    table = Table("image", "set", "label", "", "looks like", "")
    for one in found[:_SHOWN]:
        table.add_row(
            one.sample, one.dataset, one.label, percent(one.own_probability),
            one.suggested, percent(one.probability),
        )  # fmt: skip
    if found:
        out.print(table)
    more = f"; the first {_SHOWN} are shown" if len(found) > _SHOWN else ""
    out.print(
        f"{len(found):,} of {len(hits):,} labels are likely wrong in {', '.join(sets)}{more}. The "
        f"run agrees with {percent(agrees)} of all: the less that is, the less its doubts say.",
        markup=False,
    )
    if to is not None:
        out.print(f"They are in {to}.", markup=False)


def _write(found: list[LabelErrorCandidate], path: Path) -> None:
    from calift_core.files import atomic_path
    from calift_core.untrusted import mark_formula

    columns = ("sample", "label", "suggested", "own_probability", "probability", "dataset")
    samples = [one.sample for one in found]
    if len(set(samples)) < len(samples):
        raise DataError("several sets have images of one name: take --json")
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([mark_formula(getattr(one, name)) for name in columns] for one in found)


def relabel(
    source: Annotated[str, typer.Argument(help="A folder, or manifest:FILE.")],
    corrections: Annotated[
        Path,
        typer.Argument(
            metavar="LIST", help="CSV with the columns sample and suggested, as `doubtful` writes."
        ),
    ],
    to: Annotated[
        Path, typer.Option("--out", help="The corrected manifest, a .csv.", metavar="FILE")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Write a manifest of a source's images with corrected labels; the source stays as it is."""
    from calift_core.data.relabel import read_corrections
    from calift_core.data.relabel import relabel as write
    from calift_core.schema.suite import absolute_uri

    changed, dropped = write(absolute_uri(source), read_corrections(corrections), to)
    if as_json:
        print_json({"manifest": str(to), "changed": changed, "left_out": dropped})
        return
    out.print(
        f"{changed:,} labels are others and {dropped:,} images are left out in {to}: "
        f"suite.id: manifest:{to}",
        markup=False,
    )
