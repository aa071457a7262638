"""How a run on several processes is started, stopped and told. Torch-free.

::

    python -m calift_core.jobs.launch FOLDER --ranks N     starts them by torchrun, and waits
        python -m calift_core.jobs FOLDER                  each of them: one rank
    FOLDER/ranks/R.json                                    how rank R ended
    FOLDER/result.json                                     how the run ended

torchrun ends the others when a rank fails, gives them 30 s and returns 1 whatever they said. So
nothing is read from its exit status: a stop is asked for by a file, which all ranks look at, and
how a rank ended stands in a file too.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

from calift_core.schema.records import EXIT_INTERRUPTED, EXIT_LOST

#: Names, in the environment of ranks, the file whose presence asks them to stop.
STOP_FILE = "CALIFT_STOP_FILE"
#: Names, in the environment of ranks, the process that they may not outlive.
LAUNCHER = "CALIFT_LAUNCHER"

#: Exit status of a runner by how its run ended.
STATUS_OF = {"succeeded": 0, "failed": 1, "interrupted": EXIT_INTERRUPTED, "lost": EXIT_LOST}

LAUNCHER_ARGV: tuple[str, ...] = (sys.executable, "-m", "calift_core.jobs.launch")


def rank_file(folder: Path, rank: int) -> Path:
    """Where a rank says how it ended."""
    return folder / "ranks" / f"{rank}.json"


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when who started this process is gone (Linux); leave if it is."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None and os.getppid() != int(launcher):
        os._exit(1)
