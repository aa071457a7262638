"""The runner that a worker starts.

`python -m calift_core.jobs FOLDER` runs a job in this process and exits with 0, 1 (failed) or 75
(stopped on request, checkpoint saved).
"""

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from calift_core.data.ranks import ALONE, Ranks, joined
from calift_core.errors import CaliftError, InterruptedRunError, OutOfMemoryError, RankLostError
from calift_core.files import atomic_write_json
from calift_core.jobs.evaluation_job import evaluate_in_folder
from calift_core.jobs.folder import run_in_folder
from calift_core.jobs.job import Stop
from calift_core.jobs.processes import STATUS_OF, STOP_FILE, die_with_parent, rank_file
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.records import (
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
from calift_core.schema.unlabelled import UnlabelledRecord
from calift_core.words import percent

log = logging.getLogger(__name__)

#: Seconds between two lines of progress in a run's log.
LINE_EVERY_S = 10.0


def main(argv: list[str]) -> int:
    """Run the job of a folder: the runner that a worker starts, or one rank of it.

    Args:
        argv: one element, the folder; it holds `spec.json` and `job.json`.

    Returns:
        Exit status: 0, 1 when the run failed, 75 when it stopped on request. A rank that stopped on
        request returns 0, since torchrun ends the others as soon as one returns anything else.
    """
    if len(argv) != 1:
        sys.stderr.write("usage: python -m calift_core.jobs FOLDER\n")
        return 2
    die_with_parent()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    folder = Path(argv[0])
    stop_requested = False

    def on_signal(signum: int, frame: object) -> None:
        nonlocal stop_requested
        stop_requested = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    stop_file, rank = os.environ.get(STOP_FILE), os.environ.get("RANK")
    if rank is not None:
        rank_file(folder, int(rank)).unlink(missing_ok=True)  # of an earlier start
    result = outcome_of(
        lambda: _run(
            folder,
            stop=lambda: stop_requested or (stop_file is not None and os.path.exists(stop_file)),
        )
    )
    if rank in (None, "0"):
        atomic_write_json(folder / "result.json", result.model_dump(mode="json"))
    if rank is None:
        return STATUS_OF[result.outcome]
    atomic_write_json(rank_file(folder, int(rank)), result.model_dump(mode="json"))
    return 0 if result.outcome in ("succeeded", "interrupted") else 1


def _run(folder: Path, *, stop: Callable[[], bool]) -> None:
    job = JobFile.model_validate_json((folder / "job.json").read_bytes())
    if job.request_id:
        log.info("run %s, attempt %d, request %s", job.run_id, job.attempt, job.request_id)
    next_line = 0.0
    with joined() as ranks:
        for record in work(job, folder, stop=stop, ranks=ranks):
            if not ranks.first:
                continue
            if record.kind == "progress":
                if time.monotonic() < next_line:
                    continue
                next_line = time.monotonic() + LINE_EVERY_S
            words = line_of(record)
            if words:
                log.info("%s", words)


def outcome_of(run: Callable[[], None]) -> JobResult:
    """How a run ended, whatever it raised."""
    try:
        run()
        return JobResult(outcome="succeeded")
    except InterruptedRunError as error:
        return JobResult(outcome="interrupted", code=error.code, message=error.message)
    except RankLostError as error:
        log.error("%s", error)
        return JobResult(outcome="lost", code=error.code, message=error.message)
    except CaliftError as error:
        log.error("%s", error)
        return JobResult(outcome="failed", code=error.code, message=error.message, hint=error.hint)
    except MemoryError:
        message = "this machine ran out of memory"
        return JobResult(outcome="failed", code=OutOfMemoryError.code, message=message)
    except Exception as error:
        log.exception("the run failed")
        last = traceback.format_exception_only(error)[-1].strip()
        return JobResult(
            outcome="failed",
            code="INTERNAL_ERROR",
            message=f"an unexpected error: {last[:500]}",
            hint="The traceback is in the run's log.",
        )


def work(job: JobFile, folder: Path, *, stop: Stop, ranks: Ranks = ALONE) -> Iterator[Record]:
    """Do what a job's folder asks: train a model, or evaluate those of finished runs."""
    resume_from = Path(job.resume_from) if job.resume_from else None
    inputs = {name: Path(path) for name, path in job.inputs.items()}
    if job.kind == "evaluation":
        spec = EvaluationJobSpec.model_validate_json((folder / job.spec).read_bytes())
        yield from evaluate_in_folder(
            spec, folder, inputs=inputs, resume_from=resume_from, stop=stop
        )
        return
    yield from run_in_folder(
        load_spec(folder / job.spec),
        folder,
        run_id=job.run_id,
        resume_from=resume_from,
        inputs=inputs,
        stop=stop,
        keep_states=job.keep_states,
        ranks=ranks,
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
                f"{whose}{e.dataset}: accuracy {percent(e.accuracy)}, ECE {percent(e.ece.value)} "
                f"(floor {percent(e.ece.null_mean)}), n = {e.n:,}"
            )
        case UnlabelledRecord():
            return f"{record.run} on {record.source}: {record.sentence}"
        case ResumedRecord():
            return f"going on from the checkpoint of step {record.step:,}"
        case DoneRecord():
            return "done"
    return None


if __name__ == "__main__":
    status = main(sys.argv[1:])
    if "RANK" in os.environ:
        # Threads that wait for a rank that is gone must not hold the process.
        logging.shutdown()
        os._exit(status)
    sys.exit(status)
