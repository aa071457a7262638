"""`calift backup` and `calift restore`: the whole service as one folder, and back."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from calift.commands.console import JsonFlag, err, out, print_json
from calift_core.errors import SpecError
from calift_core.installed import install_extra

if TYPE_CHECKING:
    from backend.settings import Settings
    from backend.storage.backup import Manifest, Progress


def backup(
    target: Annotated[Path, typer.Argument(help="An empty folder, or one of an earlier backup.")],
    by_reference: Annotated[
        bool,
        typer.Option(
            "--by-reference", help="Copy no stored file; read and hash each where it lies."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the database and every file that it names to a folder, while the service goes on."""
    settings = _settings()
    from backend.storage.backup import back_up

    with _bar(quiet=as_json) as progress:
        made = back_up(settings, target, by_reference=by_reference, progress=progress)
    _say(made, f"Backed up to {target}", as_json=as_json)


def restore(
    source: Annotated[Path, typer.Argument(help="A folder that `calift backup` wrote.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Lose what the database here holds.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make this CALIFT_HOME, or the database that is set, what a backup holds."""
    settings = _settings()
    from backend.storage.backup import put_back

    with _bar(quiet=as_json) as progress:
        made = put_back(settings, source, replace=replace, progress=progress)
    _say(made, f"Restored from {source}", as_json=as_json)


def _settings() -> Settings:
    if any(importlib.util.find_spec(name) is None for name in ("sqlalchemy", "pydantic_settings")):
        raise SpecError(
            "this needs the service's packages, which are not installed.", hint=install_extra("api")
        )
    from pydantic import ValidationError

    from backend.settings import load_settings

    try:
        return load_settings()
    except ValidationError as error:
        raise SpecError(f"a CALIFT_ setting is wrong: {error}") from error


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Progress]:
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, console=err, disable=quiet or not err.is_terminal) as bars:
        task = bars.add_task("")
        yield lambda done, total, what: bars.update(
            task, completed=done, total=total, description=what
        )


def _say(made: Manifest, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(made.model_dump(mode="json", exclude={"contents"}) | {"files": _files(made)})
        return
    where = f", left where they are ({made.by_reference})" if made.by_reference else ""
    runs = f"{made.runs:,} {'run' if made.runs == 1 else 'runs'}"
    out.print(
        f"{what}: {runs} and {_files(made):,} files of {made.size_bytes / 1e6:,.1f} MB"
        f"{where}, every one hashed.",
        markup=False,
    )
    if made.missing:
        out.print(f"{len(made.missing)} files of runs that were deleted meanwhile are not in it.")


def _files(made: Manifest) -> int:
    return len(made.contents) - len(made.missing)
