"""The folders of jobs on this machine: one of each attempt, `jobs/RUN/attempt-N`."""

import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from backend.storage.artifacts import ArtifactKind
from calift_core.schema.records import JobResult
from calift_core.schema.report import Report

log = logging.getLogger(__name__)


_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ATTEMPT = re.compile(r"attempt-([1-9]\d{0,8})")


_SINGLE_FILES: dict[str, ArtifactKind] = {
    "report.json": "report",
    "metrics.jsonl": "metrics",
    "runner.log": "log",
}
_FOLDERS: tuple[ArtifactKind, ...] = ("predictions", "checkpoint")


def job_dir(jobs: Path, run_id: str, attempt: int) -> Path:
    """`jobs/RUN/attempt-N`.

    Raises:
        ValueError: the run's id could lead out of `jobs`.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(f"a run id has letters, digits, '_' or '-', got {run_id!r}")
    return jobs / run_id / f"attempt-{attempt}"


def earlier_attempts(jobs: Path, number: int) -> list[Path]:
    """Folders of a run's attempts before this one, newest first."""
    found = []
    for path in jobs.iterdir() if jobs.is_dir() else ():
        match = _ATTEMPT.fullmatch(path.name)
        if match and int(match[1]) < number and not path.is_symlink():
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found, reverse=True)]


def finished_earlier(folders: Sequence[Path], run_id: str) -> Path | None:
    """An attempt that was finished, but whose worker died before it said so."""
    for folder in folders:
        result = read_result(folder)
        if result is not None and result.outcome == "succeeded":
            try:
                report = Report.model_validate_json((folder / "report.json").read_bytes())
            except (OSError, ValidationError) as error:
                log.warning("%s is not readable: %s", folder / "report.json", error)
                continue
            if report.run_id == run_id:
                return folder
    return None


def remove(folders: Sequence[Path]) -> None:
    """Remove folders; one that cannot be is left."""
    for folder in folders:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            log.warning("cannot remove %s: %s", folder, error)


def newest_checkpoint(folder: Path | None) -> tuple[int, int]:
    """Attempt and step of the newest checkpoint in an attempt's folder; (0, -1) without one."""
    match = None if folder is None else _ATTEMPT.fullmatch(folder.name)
    if folder is None or match is None:
        return (0, -1)
    found = (folder / "checkpoint" / "steps").glob("[0-9]*/manifest.json")
    return int(match[1]), max((int(path.parent.name) for path in found), default=-1)


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something to go on from.

    That is a checkpoint, whose manifest is written last, or parts of an evaluation: a run that
    trained leaves those beside its checkpoint only, an evaluation job in a folder for each run.
    """
    return any((folder / "checkpoint" / "steps").glob("[0-9]*/manifest.json")) or any(
        any(folder.glob(f"{place}evaluating/*/[!.]*")) for place in ("", "runs/*/")
    )


def is_worth_keeping(folder: Path) -> bool:
    """Whether another attempt would use it."""
    result = read_result(folder)
    return has_checkpoint(folder) or (result is not None and result.outcome == "succeeded")


def read_result(folder: Path) -> JobResult | None:
    """What the runner wrote at its end, if it came to that."""
    try:
        return JobResult.model_validate_json((folder / "result.json").read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("%s is not readable: %s", folder / "result.json", error)
        return None


def last_lines(path: Path) -> str:
    """The end of a text file; empty where there is none."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-20:])
    return ""


def files_of(folder: Path) -> Iterator[tuple[str, ArtifactKind]]:
    """Name and kind of the files that a finished run leaves."""
    for name, kind in _SINGLE_FILES.items():
        if (folder / name).is_file():
            yield name, kind
    for kind in _FOLDERS:
        for path in sorted((folder / kind).rglob("*")):
            name = path.relative_to(folder).as_posix()
            # The states to go on from are not the run's result.
            resumable = name.startswith("checkpoint/steps/") or "/." in name
            if path.is_file() and not path.is_symlink() and not resumable:
                yield name, kind
