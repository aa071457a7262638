"""How a run is started: in one process, or in several by torchrun. Torch-free.

Either way it is one command in a session of its own, which is asked to stop by SIGTERM, says what
happens in its folder and leaves `result.json`. What it starts dies with it.
"""

from collections.abc import Sequence
from typing import Protocol

from calift_core.jobs.processes import LAUNCHER_ARGV
from calift_core.schema.spec import RunSpec


class Launcher(Protocol):
    """Gives the command of a run."""

    def __call__(self, runner: Sequence[str], spec: RunSpec) -> Sequence[str]:
        """The command that the job's folder is appended to, given that of a single process."""


def local(runner: Sequence[str], spec: RunSpec) -> Sequence[str]:
    return runner


def torchrun(runner: Sequence[str], spec: RunSpec) -> Sequence[str]:
    """A runner on each GPU of this host, started and watched by torchrun."""
    return (*LAUNCHER_ARGV, "--ranks", str(spec.resources.processes))


def launcher_of(spec: RunSpec) -> Launcher:
    """What a run asks for in `resources`."""
    return local if spec.resources.processes == 1 else torchrun
