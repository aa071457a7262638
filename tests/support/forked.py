"""Processes forked from one that has loaded what they import: such a start takes no second.

They are as `python FILE` or `python -m MODULE` would be, but for `/proc/PID/cmdline` and `environ`.
"""

import ctypes
import multiprocessing
import os
import runpy
import signal
import sys
import time
import types
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")


def _become(argv, environment, output, cwd):
    os.setsid()
    if sys.platform == "linux":  # PR_SET_PDEATHSIG: it ends with the process that it is forked from
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
    with output.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd or Path.cwd())
    if argv[0] == "-m":
        sys.argv = [str(argv[1]), *argv[2:]]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(argv)
        runpy.run_path(argv[0], run_name="__main__")


class Forked:
    """Such a process, with the methods of `children.process.ManagedProcess` that tests call.

    Args:
        argv: a file, or `-m` and a module, and what it is given.
        output: what its streams are appended to.
        environment: all of its environment.
        cwd: where it runs.
        loaded: modules that are loaded before the first fork of this process of tests; what they
            lack is imported by whoever needs it.
    """

    def __init__(self, argv, *, output, environment, cwd=None, loaded=()):
        _FORKS.set_forkserver_preload(list(loaded))
        self._process = _FORKS.Process(
            target=_become, args=(list(argv), dict(environment), output, cwd)
        )
        # The process would run this one's main module first, which may be a page of the dashboard.
        main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        try:
            self._process.start()
        finally:
            sys.modules["__main__"] = main
        assert self._process.pid is not None
        self.pid = self._process.pid

    def ended(self) -> bool:
        return not self._process.is_alive()

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        self._process.join(max(0.0, deadline - time.monotonic()))
        return self.ended()

    def reap(self) -> int:
        """Kill what is left of its group, and return its exit status."""
        if not self.ended():
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode
