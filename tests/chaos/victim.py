"""The worker that chaos strikes: the stand-in of `tests/worker`, with a clock and traps of its own.

`CHAOS_CLOCK_S` moves its wall clock. A file `commit-before` or `commit-after` in the folder
`CHAOS_TRAPS` kills it at its next COMMIT of what it stores of a run: before the database was asked,
or after it has done it and before anybody here knows.
"""

import datetime
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path


def shift_clock(seconds: float) -> None:
    """Move what this process takes for the time of day."""
    true_time, true_datetime = time.time, datetime.datetime

    class Shifted(true_datetime):
        @classmethod
        def now(cls, tz=None):
            return true_datetime.fromtimestamp(time.time(), tz)

    time.time = lambda: true_time() + seconds
    datetime.datetime = Shifted


def sprung(trap: Path) -> bool:
    """Whether a trap was set; it springs for one only."""
    try:
        trap.unlink()
    except FileNotFoundError:
        return False
    return True


def arm(traps: Path) -> None:
    from sqlalchemy import Engine, event

    @event.listens_for(Engine, "commit")
    def on_commit(connection):
        # The thread that supervises; relay, lease reaper and heartbeat have others.
        if not threading.current_thread().name.startswith("ThreadPool"):
            return
        if sprung(traps / "commit-before"):
            os.kill(os.getpid(), signal.SIGKILL)
        if sprung(traps / "commit-after"):
            connection.connection.dbapi_connection.commit()
            os.kill(os.getpid(), signal.SIGKILL)


if float(os.environ["CHAOS_CLOCK_S"]):
    shift_clock(float(os.environ["CHAOS_CLOCK_S"]))
arm(Path(os.environ["CHAOS_TRAPS"]))
standin = str(Path(__file__).parents[1] / "worker" / "standin_worker.py")
sys.argv[0] = standin
runpy.run_path(standin, run_name="__main__")
