"""`csv:FILE`: curves as W&B exports them, and beside them `FILE.runs.csv`, a line a run."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from calift.trackers.runs import Exchanged, metrics_of
from calift_core.errors import DataError, SpecError
from calift_core.files import atomic_write_bytes
from calift_core.schema.wire.runs import Metrics

#: Between a run and its series in the name of a column, as W&B exports charts.
_BETWEEN = " - "


def push(runs: Sequence[Exchanged], place: str, *, again: bool) -> list[str]:
    """Add runs to both files; returns where they are. Other runs in them stay.

    Raises:
        SpecError: a run is there already, and not `again`.
        DataError: a file is there that holds no curves.
    """
    path, new = Path(place), {run.id for run in runs}
    earlier = _read(place) if path.is_file() else []
    for run in earlier:
        if run.id in new and not again:
            raise SpecError(
                f"{run.name!r} is in {place!r} already.", hint="--again replaces it there."
            )
    runs = [*(run for run in earlier if run.id not in new), *runs]
    names = _names(runs)
    curves = {name: run.curves for name, run in zip(names, runs, strict=True)}
    atomic_write_bytes(path, _to_csv(curves).encode())
    atomic_write_bytes(_table(path), _lines(names, runs).encode())
    return [str(path), str(_table(path))]


def _read(place: str) -> list[Exchanged]:
    """Runs that were written before."""
    path = Path(place)
    try:
        content = path.read_text(encoding="utf-8")
        table = _table(path)
        lines = table.read_text(encoding="utf-8") if table.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{place!r} must be a CSV file: {error}") from error
    known = {row.get("Name", ""): row for row in csv.DictReader(io.StringIO(lines))}
    curves = _from_csv(content, place)
    found = []
    for name in dict.fromkeys([*known, *curves]):
        row = known.get(name, {})
        found.append(
            Exchanged(
                name=name,
                id=row.get("ID", "") or f"{path.name}#{name}",
                settings={
                    k.removeprefix("config."): v
                    for k, v in row.items()
                    if k.startswith("config.") and v
                },
                curves=curves.get(name, Metrics(series=[], last_step=-1)),
                numbers={
                    k.removeprefix("summary."): float(v)
                    for k, v in row.items()
                    if k.startswith("summary.") and v
                },
            )
        )
    return found


def _to_csv(runs: Mapping[str, Metrics]) -> str:
    """One line for each step; numbers as they are."""
    columns = [(run, series) for run, found in runs.items() for series in found.series]
    cells: dict[int, dict[int, float]] = {}
    for place, (_, series) in enumerate(columns):
        for step, value in zip(series.steps, series.values, strict=True):
            cells.setdefault(step, {})[place] = value
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["Step", *(f"{run}{_BETWEEN}{series.name}" for run, series in columns)])
    for step in sorted(cells):
        writer.writerow([step, *(cells[step].get(place, "") for place in range(len(columns)))])
    return out.getvalue()


def _from_csv(content: str, place: str) -> dict[str, Metrics]:
    """Curves by run, as `_to_csv` writes them."""
    rows = csv.DictReader(io.StringIO(content))
    columns = {
        name: name.rpartition(_BETWEEN)[::2] for name in rows.fieldnames or () if name != "Step"
    }
    found: dict[str, dict[str, dict[int, float]]] = {}
    try:
        for row in rows:
            for column, (run, series) in columns.items():
                if row[column]:
                    points = found.setdefault(run, {}).setdefault(series, {})
                    points[int(row["Step"])] = float(row[column])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{place!r} must hold curves that calift wrote: {error}") from error
    return {run: metrics_of(series) for run, series in found.items()}


def _table(path: Path) -> Path:
    return path.with_suffix(".runs.csv")


def _names(runs: Sequence[Exchanged]) -> list[str]:
    every = [run.name for run in runs]
    return [
        f"{n} ({r.id[:6]})" if every.count(n) > 1 else n for n, r in zip(every, runs, strict=True)
    ]


def _lines(names: Sequence[str], runs: Sequence[Exchanged]) -> str:
    settings = list(dict.fromkeys(key for run in runs for key in run.settings))
    numbers = list(dict.fromkeys(key for run in runs for key in run.numbers))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["Name", "ID", *(f"config.{k}" for k in settings), *(f"summary.{k}" for k in numbers)]
    )
    for name, run in zip(names, runs, strict=True):
        writer.writerow(
            [
                name,
                run.id,
                *(run.settings.get(k, "") for k in settings),
                *(run.numbers.get(k, "") for k in numbers),
            ]
        )
    return out.getvalue()
