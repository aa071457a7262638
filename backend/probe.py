"""A container's health check that also has it restarted: `python -m backend.probe …`.

::

    python -m backend.probe --ready http://127.0.0.1:8000/api/v1/readyz
                            --lives http://127.0.0.1:8000/api/v1/health
    python -m backend.probe --pulse /tmp

The exit status is what `--ready` says, else what `--lives` or `--pulse` says. Docker marks an
unhealthy container and leaves it alone. So after `--restart-after` checks in a row without a sign
of life the first process is asked to end, and two checks later everything is killed: the restart
policy of the container does the rest. Whether the service is *ready* restarts nothing: a database
that is away does not come back by that.

The standard library alone, because every image has it.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

#: A process that moves its pulse does so every few seconds.
_PULSE_S = 60.0
_ANSWER_S = 3.0


def answers(url: str) -> bool:
    """Whether an address of this machine answers with success."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_ANSWER_S) as answer:
            return bool(answer.status < 400)
    except (OSError, ValueError):
        return False


def has_heartbeat(folder: Path) -> bool:
    """Whether a process of this container has moved its pulse lately."""
    for path in folder.glob("*.pulse"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < _PULSE_S:
                return True
    return False


def count_failures(lives: bool, memory: Path) -> int:
    """How many checks in a row found no life, this one included."""
    try:
        before = int(memory.read_text())
    except (OSError, ValueError):
        before = 0
    now = 0 if lives else before + 1
    with contextlib.suppress(OSError):
        memory.write_text(str(now))
    return now


def main(argv: list[str] | None = None, *, kill: Callable[[int, int], None] = os.kill) -> int:
    """Check once; 0 when it is well."""
    parser = argparse.ArgumentParser(prog="python -m backend.probe")
    parser.add_argument("--ready", default="")
    parser.add_argument("--lives", default="")
    parser.add_argument("--pulse", type=Path, default=None)
    parser.add_argument("--restart-after", type=int, default=6)
    parser.add_argument("--memory", type=Path, default=Path(tempfile.gettempdir(), "calift-probe"))
    options = parser.parse_args(argv)
    lives = has_heartbeat(options.pulse) if options.pulse is not None else answers(options.lives)
    failures = count_failures(lives, options.memory)
    if failures >= options.restart_after + 2:
        _signal(kill, -1, signal.SIGKILL)  # everything but the first process and this one
    elif failures >= options.restart_after:
        sys.stderr.write(f"no sign of life in {failures} checks: it is asked to end\n")
        _signal(kill, 1, signal.SIGTERM)
    well = answers(options.ready) if options.ready else lives
    return 0 if well else 1


def _signal(kill: Callable[[int, int], None], pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        kill(pid, number)


if __name__ == "__main__":
    sys.exit(main())
