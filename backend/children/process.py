"""Child processes that cannot outlive who started them."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# Asks the kernel for SIGKILL when the thread that started us ends (prctl(2), PR_SET_PDEATHSIG = 1),
# looks whether that has happened already, and becomes the command: same process id, same argv as if
# it had been started directly. `preexec_fn` would do it too, but it runs Python between fork and
# exec, which can deadlock in a process with threads.
_TIE = (
    "import ctypes,os,signal,sys;"
    "ctypes.CDLL(None,use_errno=True).prctl(1,int(signal.SIGKILL),0,0,0);"
    "os.getppid()==int(sys.argv[1]) or os._exit(1);"
    "sys.argv[2]=='-' or open('/proc/self/oom_score_adj','w').write(sys.argv[2]);"
    "os.execvp(sys.argv[3],sys.argv[3:])"
)


def die_with_parent(argv: Sequence[str], *, oom_score_adj: int | None = None) -> list[str]:
    """A command that runs `argv` and is killed when the calling *thread's* process dies.

    The thread that starts it must live as long as the child should: the kernel counts threads here.
    Where the operating system has no such service (it is Linux's), `argv` itself comes back.

    Args:
        oom_score_adj: how much sooner than others the kernel should pick this process when memory
            runs out (0 to 1000); None leaves it.
    """
    if sys.platform != "linux":
        return list(argv)
    score = "-" if oom_score_adj is None else str(oom_score_adj)
    return [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), score, *argv]


def pulse_path(home: Path, pid: int) -> Path:
    """The file whose time a process of a home moves as long as it lives.

    Containers that share a home, each with a process of the same number, name a folder of their own
    in `CALIFT_PULSE_DIR`.
    """
    folder = os.environ.get("CALIFT_PULSE_DIR")
    return (Path(folder) if folder else home / "run") / f"{pid}.pulse"


class Pulse:
    """Moves the time of a file every few seconds, from a thread that does nothing else.

    A process that is stopped, or whose threads cannot run, falls silent; one that waits for a
    database or a full disk does not.

    Args:
        path: the file; see `pulse_path`.
    """

    def __init__(self, path: Path, *, every_s: float = 1.0) -> None:
        self._path, self._every_s = path, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def start(self) -> None:
        """Start the thread that moves the file's time."""
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # a full disk may refuse a new file
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._path.touch()
            if self._over.wait(self._every_s):
                return


class ManagedProcess:
    """A process in a session of its own, tied to us; its output goes to a file, never to a pipe.

    A pipe that nobody empties stops its writer. Safe to use from several threads.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        output: Path,
        environment: Mapping[str, str],
        cwd: Path | None = None,
        oom_score_adj: int | None = None,
    ) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started or `output` cannot be opened.
        """
        self._lock = threading.Lock()
        with output.open("ab") as file:
            self._process = _start(argv, file, environment, cwd, oom_score_adj)

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its session and of its process group."""
        return self._process.pid

    def ended(self) -> bool:
        """Whether it has ended. It stays a zombie until `reap`, so that its id stays taken."""
        with self._lock:
            if self._process.returncode is not None:
                return True
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self.pid, options) is not None

    def terminate(self) -> None:
        """Ask it to stop: SIGTERM to the process alone, it knows what to do with its children."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole group. Does nothing once it has been reaped."""
        with self._lock, contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process.returncode is None:
                os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Kill what is left of the group, wait for the process and return its exit status.

        A negative status is minus the signal that ended it.
        """
        self.kill()
        with self._lock:
            return self._process.wait()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended, at most `timeout_s`; return whether it has."""
        deadline = time.monotonic() + timeout_s
        while not self.ended():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        return True


def _start(
    argv: Sequence[str],
    output: IO[bytes],
    environment: Mapping[str, str],
    cwd: Path | None,
    oom_score_adj: int | None,
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        die_with_parent(argv, oom_score_adj=oom_score_adj),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        cwd=cwd,
        start_new_session=True,
        close_fds=True,
    )
