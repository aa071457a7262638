"""A run on several processes, followed from the one that started them. Torch-free.

`calift train` draws what happens from records; here they are read from the file that rank 0 writes.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from calift_core.analysis.report import run_id_of
from calift_core.errors import CaliftError, InterruptedRunError, RankLostError
from calift_core.files import atomic_write_json
from calift_core.jobs.processes import LAUNCHER_ARGV
from calift_core.schema.records import RECORD, JobFile, JobResult, Record
from calift_core.schema.spec import RunSpec

#: Where the folder of a run holds what is asked of it, beside the spec that it was begun with.
ASKED = "asked.json"
_TICK_S = 0.1


def run_on_several(
    spec: RunSpec,
    folder: Path,
    *,
    stop: Callable[[], bool],
    options: Sequence[str] = (),
    quiet: bool = False,
) -> Iterator[Record]:
    """`run_in_folder` on as many processes as `spec.resources` asks, by torchrun.

    What the processes print is in `runner.log`.

    Args:
        folder: the run's own folder, which all hosts see.

    Raises:
        CaliftError: whatever stands in the way, as the process that met it said.
        InterruptedRunError: `stop` said so; a checkpoint is saved.
        RankLostError: a process was ended from outside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_json(folder / ASKED, spec.model_dump(mode="json"))
    job = JobFile(run_id=run_id_of(folder), spec=ASKED, keep_states=False)
    atomic_write_json(folder / "job.json", job.model_dump(mode="json"))
    records = folder / "records.jsonl"
    at = records.stat().st_size if records.is_file() else 0
    argv = [*LAUNCHER_ARGV, "--ranks", str(spec.resources.processes), *options, str(folder)]
    stop_sent = False
    with (folder / "runner.log").open("ab") as log:
        launcher = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        while True:
            ended = launcher.poll() is not None
            at, lines = _new_lines(records, at)
            for line in () if quiet else lines:
                with contextlib.suppress(ValidationError):
                    yield RECORD.validate_json(line)
            if ended and not lines:
                break
            if stop() and not stop_sent:
                stop_sent = True
                launcher.terminate()
            if not lines:
                time.sleep(_TICK_S)
    finally:
        if launcher.poll() is None:  # its ranks die with it
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    _raise_worst_error(folder, launcher.returncode)


def _new_lines(path: Path, at: int) -> tuple[int, list[bytes]]:
    try:
        with path.open("rb") as file:
            file.seek(at)
            data = file.read()
    except FileNotFoundError:
        return at, []
    whole = data[: data.rfind(b"\n") + 1]
    return at + len(whole), whole.splitlines()


def _raise_worst_error(folder: Path, status: int) -> None:
    if status == 0:
        return
    try:
        result = JobResult.model_validate_json((folder / "result.json").read_bytes())
    except (OSError, ValidationError):
        result = JobResult(outcome="lost", message=f"the launcher ended with status {status}")
    match result.outcome:
        case "succeeded":
            return
        case "interrupted":
            raise InterruptedRunError(result.message)
        case "lost":
            raise RankLostError(
                result.message, hint="The same command goes on from the last checkpoint."
            )
    error = CaliftError(result.message, hint=result.hint)
    error.code = result.code
    raise error
