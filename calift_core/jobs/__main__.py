"""The runner that a worker starts.

`python -m calift_core.jobs FOLDER` runs a job in this process and exits with 0, 1 (failed) or 75
(stopped on request, checkpoint saved).
"""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from calift_core.errors import CaliftError, InterruptedRunError, OutOfMemoryError
from calift_core.files import atomic_write_json
from calift_core.jobs.folder import run_in_folder
from calift_core.jobs.job import Stop
from calift_core.jobs.judging import judge_in_folder
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.records import (
    EXIT_INTERRUPTED,
    DoneRecord,
    EvaluationRecord,
    JobFile,
    JobResult,
    PhaseRecord,
    ProgressRecord,
    Record,
    ResumedRecord,
)
from calift_core.schema.spec import load_spec

log = logging.getLogger(__name__)

#: Seconds between two lines of progress in a run's log.
LINE_EVERY_S = 10.0


def main(argv: list[str]) -> int:
    """Run the job of a folder: the runner that a worker starts.

    Args:
        argv: one element, the folder; it holds `spec.json` and `job.json`.

    Returns:
        Exit status: 0, 1 when the run failed, 75 when it stopped on request.
    """
    if len(argv) != 1:
        sys.stderr.write("usage: python -m calift_core.jobs FOLDER\n")
        return 2
    _die_with_parent()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    folder = Path(argv[0])
    next_line = 0.0
    asked_to_stop = False

    def on_signal(signum: int, frame: object) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        job = JobFile.model_validate_json((folder / "job.json").read_bytes())
        if job.request_id:
            log.info("run %s, attempt %d, request %s", job.run_id, job.attempt, job.request_id)
        for record in work(job, folder, stop=lambda: asked_to_stop):
            if record.kind == "progress":
                if time.monotonic() < next_line:
                    continue
                next_line = time.monotonic() + LINE_EVERY_S
            words = line_of(record)
            if words:
                log.info("%s", words)
        result, status = JobResult(outcome="succeeded"), 0
    except InterruptedRunError as error:
        result = JobResult(outcome="interrupted", code=error.code, message=error.message)
        status = EXIT_INTERRUPTED
    except CaliftError as error:
        log.error("%s", error)
        result = JobResult(
            outcome="failed", code=error.code, message=error.message, hint=error.hint
        )
        status = 1
    except MemoryError:
        message = "this machine ran out of memory"
        result = JobResult(outcome="failed", code=OutOfMemoryError.code, message=message)
        status = 1
    except Exception as error:
        log.exception("the run failed")
        last = traceback.format_exception_only(error)[-1].strip()
        result = JobResult(
            outcome="failed",
            code="INTERNAL_ERROR",
            message=f"an unexpected error: {last[:500]}",
            hint="The traceback is in the run's log.",
        )
        status = 1
    atomic_write_json(folder / "result.json", result.model_dump(mode="json"))
    return status


def work(job: JobFile, folder: Path, *, stop: Stop) -> Iterator[Record]:
    """Do what a job's folder asks: train a model, or judge those of finished runs."""
    resume_from = Path(job.resume_from) if job.resume_from else None
    inputs = {name: Path(given) for name, given in job.inputs.items()}
    if job.kind == "evaluation":
        asked = EvaluationJobSpec.model_validate_json((folder / "spec.json").read_bytes())
        yield from judge_in_folder(asked, folder, inputs=inputs, resume_from=resume_from, stop=stop)
        return
    yield from run_in_folder(
        load_spec(folder / "spec.json"),
        folder,
        run_id=job.run_id,
        resume_from=resume_from,
        inputs=inputs,
        stop=stop,
        keep_states=True,  # the worker may die before it has stored the result
    )


def line_of(record: Record) -> str | None:
    """A record as a line of the run's log; None for what only charts need."""
    match record:
        case PhaseRecord():
            return f"{record.phase}: {record.detail}" if record.detail else record.phase
        case ProgressRecord():
            speed = f", {record.samples_per_s:,.0f} images/s" if record.samples_per_s else ""
            detail = f", {record.detail}" if record.detail else ""
            return f"{record.phase}: {record.step:,} of {record.total_steps:,}{detail}{speed}"
        case EvaluationRecord(evaluation=e):
            whose = f"{record.run} on " if record.run else ""
            return (
                f"{whose}{e.dataset}: accuracy {e.accuracy:.4f}, ECE {e.ece.value:.4f} "
                f"(floor {e.ece.null_mean:.4f}), n = {e.n:,}"
            )
        case ResumedRecord():
            return f"going on from the checkpoint of step {record.step:,}"
        case DoneRecord():
            return "done"
    return None


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the worker that started this process is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
