"""How a runner is started, what it may see of our environment, and what its exit status means."""

import re
import sys
from collections.abc import Mapping, Sequence

from calift_core.jobs.processes import LAUNCHER_ARGV
from calift_core.schema.spec import RunSpec
from calift_core.threads import openmp_environment

#: How the runner is started: fixed words and the job's folder, never a shell.
RUNNER_ARGV: tuple[str, ...] = (sys.executable, "-m", "calift_core.jobs")


#: When memory runs out the kernel should take the runner and leave the one that reports it.
OOM_SCORE_ADJ = 500


#: What a runner may see of the worker's environment. Database and broker URLs and API tokens are
#: not its business: it runs the libraries that open people's files.
_PASSED_ON = re.compile(
    r"""PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|TZ|TMPDIR|VIRTUAL_ENV|PYTHONPATH|LD_LIBRARY_PATH
    |CALIFT_HOME|CALIFT_FASHION_MNIST
    |SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|(?i:https?_proxy|no_proxy)
    |(?:LC|XDG|OMP|GOMP|KMP|MKL|OPENBLAS|CUDA|NVIDIA|NCCL|GLOO|TORCH|TORCHINDUCTOR|PYTORCH|HF)_\w+
    |(?:WANDB|MLFLOW|TRACKIO|TENSORBOARD)_\w+""",
    re.VERBOSE,
)


#: Ends by SIGHUP, SIGINT, SIGKILL and SIGTERM come from outside: a user's mistake does not kill.
LOST_STATUSES = frozenset({-1, -2, -9, -15})


def runner_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of the worker's environment that a runner gets, unbuffered and with fault traces.

    How its threads wait and how many they are is set too, unless the worker's environment says.
    """
    passed = {name: value for name, value in environment.items() if _PASSED_ON.fullmatch(name)}
    passed |= openmp_environment(passed)
    return passed | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}


def command_of(spec: RunSpec, runner: Sequence[str] = RUNNER_ARGV) -> Sequence[str]:
    """The command of a run, which the job's folder is appended to.

    One process, or one on each GPU of this host, which torchrun starts and watches. Either way it
    is in a session of its own, is asked to stop by SIGTERM, says what happens in its folder and
    leaves `result.json`. What it starts dies with it.
    """
    n = spec.resources.processes
    return runner if n == 1 else (*LAUNCHER_ARGV, "--ranks", str(n))


def status_words(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"exit status {returncode}"
