"""Training and evaluating where the operating system has no more than Windows has."""

import json
import subprocess
import sys
from pathlib import Path

from calift_core.files import try_lock
from tests.core.conftest import environment, python

#: Takes from the product's modules, and from them alone (libraries know Windows by themselves),
#: what Linux has and Windows has not.
WITHOUT = """
import builtins, os, signal, sys
OURS = {"calift", "calift_core", "backend", "worker", "frontend"}
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "syslog", "curses"}
NAMES = {
    "fork", "getuid", "geteuid", "getpgid", "killpg", "setsid", "waitid", "sched_getaffinity",
    "statvfs", "uname", "mkfifo", "chown", "P_PID", "WEXITED", "WNOHANG", "WNOWAIT", "O_NOFOLLOW",
    "SIGKILL", "SIGHUP", "SIGCHLD", "SIGUSR1", "SIGALRM", "pthread_sigmask",
}

class Lacking:
    def __init__(self, module):
        self.module = module
    def __getattr__(self, name):
        if name in NAMES:
            raise AttributeError(f"Windows has no {self.module.__name__}.{name}")
        return getattr(self.module, name)

real = builtins.__import__
def lacking(name, globals=None, *more, **named):
    if not globals or (globals.get("__name__") or "").partition(".")[0] not in OURS:
        return real(name, globals, *more, **named)
    if name in MODULES:
        raise ModuleNotFoundError(f"Windows has no {name}", name=name)
    module = real(name, globals, *more, **named)
    return Lacking(module) if module in (os, signal) else module
builtins.__import__ = lacking
"""


def test_train_and_services__need_nothing_that_windows_lacks(run_spec, home, tmp_path):
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(run_spec("carot").model_dump(mode="json")))
    names = ["calift.commands.main", "calift.commands.demo", "calift.commands.doctor"]
    names += ["calift_core.client", "calift_core.files", "calift_core.predictions.foreign.load"]
    names += ["backend.stack", "backend.main", "worker.devices", "worker.supervisor"]
    train = f"""
import importlib
for name in {names}:
    importlib.import_module(name)
sys.argv[0] = "calift"
sys.modules["calift.commands.main"].main()
"""
    options = {"cwd": home, "env": environment(home)}
    python("-c", WITHOUT + train, "train", spec, "--out", tmp_path / "run", **options)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["summary"]["id_accuracy"] > 0.3


def test_lock__is_dropped_with_its_process_and_waited_for(tmp_path):
    path = tmp_path / "a.lock"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom calift_core.files import try_lock\n"
        "held = try_lock(Path(sys.argv[1]))\nprint(held is not None, flush=True)\ntime.sleep(60)"
    )
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    with child.stdout:
        assert child.stdout.readline() == "True\n"
        assert try_lock(path) is None
        child.kill()
        child.wait()
    lock = try_lock(path, patience_s=5)
    assert try_lock(path) is None, "a second holder in the same process"
    lock.release()
    again = try_lock(path)
    again.release()
