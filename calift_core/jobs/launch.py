"""`python -m calift_core.jobs.launch FOLDER --ranks N`: a job on several processes, by torchrun.

It restarts nothing: whoever started it does that, from the last checkpoint. On SIGTERM it asks all
ranks to stop, by a file, and waits for as long as they take to save.
"""

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch.distributed import run as _torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from calift_core.errors import RankLostError
from calift_core.files import atomic_write_json
from calift_core.jobs.processes import LAUNCHER, STATUS_OF, STOP_FILE, die_with_parent
from calift_core.schema.records import JobResult
from calift_core.threads import usable_cores

log = logging.getLogger(__name__)

#: torch's command, which has no types.
torchrun: Any = _torchrun


def main(argv: list[str]) -> int:
    """Run the job of a folder on several processes.

    Args:
        argv: the folder, `--ranks` of all hosts together, and where there are several hosts
            `--hosts` and the `--rendezvous` (HOST:PORT) that all of them are given.

    Returns:
        Exit status: 0, 1 when the run failed, 75 when it stopped on request, 76 when a process of
        it was ended from outside.
    """
    parser = argparse.ArgumentParser(prog="python -m calift_core.jobs.launch")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--rendezvous", default="")
    args = parser.parse_args(argv)
    if args.ranks % args.hosts:
        parser.error(f"--ranks {args.ranks} cannot be shared evenly by --hosts {args.hosts}")
    if args.hosts > 1 and not args.rendezvous:
        parser.error("--hosts needs --rendezvous HOST:PORT, the same on every host")
    die_with_parent()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    here = args.ranks // args.hosts
    with tempfile.TemporaryDirectory(prefix="calift-") as temporary:
        stop = Path(temporary) / "stop"

        def on_signal(signum: int, frame: object) -> None:
            stop.touch()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        os.environ |= {STOP_FILE: str(stop), LAUNCHER: str(os.getpid())}
        # torchrun would set 1 where nothing is set.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // here)))
        failures = _launch(args.folder, here, args.hosts, args.rendezvous)
    result = _result(args.folder, failures, all_here=args.hosts == 1)
    if failures or args.hosts == 1:  # else rank 0, which may be elsewhere, says it
        atomic_write_json(args.folder / "result.json", result.model_dump(mode="json"))
    if result.outcome in ("failed", "lost"):
        log.error("%s", result.message)
    return STATUS_OF[result.outcome]


def _launch(folder: Path, here: int, hosts: int, rendezvous: str) -> Mapping[int, ProcessFailure]:
    if hosts == 1:
        shutil.rmtree(folder / "ranks", ignore_errors=True)
        (folder / "result.json").unlink(missing_ok=True)
        where = ["--standalone"]
    else:
        where = ["--rdzv-backend=c10d", f"--rdzv-endpoint={rendezvous}", f"--nnodes={hosts}"]
        where.append(f"--rdzv-id={folder.name}")
    (folder / "ranks").mkdir(exist_ok=True)
    # SIGTERM is ours: torchrun's handler would kill the ranks 30 s after it.
    fixed = ["--max-restarts=0", "--signals-to-handle=SIGQUIT", f"--nproc-per-node={here}"]
    try:
        torchrun.run(torchrun.parse_args([*where, *fixed, "-m", "calift_core.jobs", str(folder)]))
    except ChildFailedError as error:
        return error.failures
    return {}


def _result(folder: Path, failures: Mapping[int, ProcessFailure], *, all_here: bool) -> JobResult:
    """How the run ended, from what the ranks said and from what became of them."""
    results = {}
    for path in sorted((folder / "ranks").glob("*.json"), key=lambda path: int(path.stem)):
        try:
            results[int(path.stem)] = JobResult.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            log.warning("%s is not readable: %s", path, error)
    # A reason of its own counts before the loss of others that follows from it.
    for outcome in ("failed", "interrupted"):
        for result in results.values():
            if result.outcome == outcome:
                return result
    if not failures and (0 in results or not all_here):
        return results.get(0, JobResult(outcome="succeeded"))
    gone = [f for r, f in failures.items() if r not in results] or list(failures.values())
    # The first to go: torchrun ends the others by SIGTERM.
    gone.sort(key=lambda f: (f.exitcode != -signal.SIGKILL, f.exitcode >= 0, f.timestamp))
    words = ", ".join(_words(failure) for failure in gone[:1]) or "it left no word"
    return JobResult(
        outcome="lost",
        code=RankLostError.code,
        message=f"a process of this run is gone: {words}; the others were ended too",
        hint="Most often this is a machine that ran out of memory: lower train.batch_size or "
        "train.workers, or free some.",
    )


def _words(failure: ProcessFailure) -> str:
    status = failure.exitcode
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return f"rank {failure.local_rank} (process {failure.pid}) ended with {how}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
