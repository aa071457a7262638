"""`calift slurm` on a real Slurm: one node of two cores, its daemons in a folder of the test.

`apt-get install slurmctld slurmd slurm-client munge` makes this run; it needs root, as slurmd does.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import free_port
from tests.core.conftest import PHOTO, VIT, calift, environment, write_classes

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")


def missing() -> str:
    """Why there is no Slurm here; empty if there is."""
    places = os.environ["PATH"] + os.pathsep + "/usr/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=places) is None]
    if absent:
        return f"Slurm is not installed here ({', '.join(absent)} missing)"
    return "" if os.geteuid() == 0 else "slurmd needs root"


pytestmark = [
    pytest.mark.service,
    pytest.mark.skipif(bool(missing()), reason=missing() or "Slurm is here"),
    pytest.mark.timeout(600),
]

CONFIG = """\
ClusterName=calift
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ctld}
SlurmdPort={slurmd}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
ReturnToService=2
KillWait=60
SchedulerParameters=bf_interval=1,sched_interval=2,requeue_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=60 State=UP
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF State=UP
"""


def until(condition: Callable[[], Any], *, what: str, patience_s: float = 60.0) -> None:
    """Ask now and then: each question starts a program."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s:g} s: {what}"
        time.sleep(0.3)


class Slurm:
    """A cluster of one node."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.host = folder, socket.gethostname().split(".")[0]
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.environ["PATH"] + os.pathsep + "/usr/sbin",
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        ports = {"ctld": free_port(), "slurmd": free_port()}
        config = CONFIG.format(host=self.host, folder=self.folder, **ports)
        (self.folder / "slurm.conf").write_text(config)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._run(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={self.folder}/munge.sock",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munged.seed",
        )
        until((self.folder / "munge.sock").exists, what="munge's socket")
        self._run("slurmctld", "-D")
        self._run("slurmd", "-D", "-N", self.host)
        until(lambda: "idle" in self("sinfo", "-h", "-o", "%T"), what="an idle node", patience_s=60)

    def stop(self) -> None:
        if len(self.processes) == 3:  # what a failed test left
            self("scancel", "--full", "--signal=KILL", "--partition=low")
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _run(self, *argv: str) -> None:
        with (self.folder / f"{argv[0]}.out").open("wb") as log:
            self.processes.append(
                subprocess.Popen(argv, stdout=log, stderr=log, env=self.environment)
            )

    def __call__(self, *argv: str) -> str:
        done = subprocess.run(
            argv, capture_output=True, text=True, env=self.environment, check=False, timeout=30
        )
        return (done.stdout + done.stderr).strip()

    def state(self, job: str) -> str:
        """`PENDING`, `RUNNING`, …: of a job or of a task, `7_1`."""
        fields = dict(
            word.partition("=")[::2] for word in self("scontrol", "show", "job", job).split()
        )
        return fields.get("JobState", "GONE")

    def becomes(self, job: str, state: str, patience_s: float = 400.0) -> None:
        until(
            lambda: self.state(job) == state, what=f"job {job} to be {state}", patience_s=patience_s
        )


@pytest.fixture(scope="module")
def slurm():
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:  # a socket's path must be short
        cluster = Slurm(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="module")
def spec_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("slurm-data")
    photos = write_classes(root / "photos", n=40)
    (root / "vit.json").write_text(json.dumps(VIT))

    def make(name, *, epochs, **train):
        spec = {
            "name": name,
            "model": {"name": str(root / "vit.json"), "pretrained": None},
            "method": {"kind": "flyp"},
            "suite": {"id": f"folder:{photos}", "templates": list(PHOTO)},
            "train": {"epochs": epochs, "batch_size": 8, "lr": 1e-3, "device": "cpu"}
            | {"log_every_steps": 1, "checkpoint_every_steps": 10_000}
            | {"spectrum_every_epochs": 0}
            | train,
            "evaluation": {"n_resamples": 20},
        }
        path = root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(spec))
        return path

    return make


def submit(slurm: Slurm, home: Path, *arguments: str) -> tuple[str, list[Path]]:
    """Job id and the folders of its runs."""
    done = subprocess.run(
        [sys.executable, "-m", "calift", "slurm", "submit", *arguments, "--json"],
        env=environment(home) | slurm.environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    return answer["job"], [Path(folder) for folder in answer["folders"]]


def steps(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line)["step"] for line in whole.splitlines()]


def resumed(folder: Path) -> list[int]:
    """Steps that the run was gone on with from."""
    path = folder / "records.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    records = [json.loads(line) for line in whole.splitlines()]
    return [record["step"] for record in records if record["kind"] == "resumed"]


def saved(folder: Path) -> list[int]:
    """Steps of the checkpoints that are there."""
    return [int(path.name) for path in (folder / "checkpoint" / "steps").iterdir()]


def test_slurm__an_array_has_a_task_for_each_run_and_waits_for_a_drained_node(
    slurm, spec_file, tmp_path
):
    slurm("scontrol", "update", f"NodeName={slurm.host}", "State=DRAIN", "Reason=test")
    specs = [str(spec_file(f"short-{i}", epochs=1)) for i in range(2)]
    job, folders = submit(slurm, tmp_path / "home", *specs, "--out", str(tmp_path / "array"))
    assert slurm.state(f"{job}_0") == "PENDING"
    slurm("scontrol", "update", f"NodeName={slurm.host}", "State=RESUME")
    for task in range(2):
        slurm.becomes(f"{job}_{task}", "COMPLETED")
        assert (folders[task] / "report.json").is_file()


def test_slurm__a_run_that_is_preempted_goes_on_and_one_that_is_cancelled_does_not(
    slurm, spec_file, tmp_path
):
    long = str(spec_file("long", epochs=60))
    job, (folder,) = submit(
        slurm, tmp_path / "home", long, "--out", str(tmp_path / "low"), "--cpus", "2"
    )
    until(lambda: len(steps(folder)) > 5, what="some steps", patience_s=300)
    other = slurm(
        "sbatch", "--parsable", "-p", "high", "-c", "2", "--wrap", "sleep 1", "-o", "/dev/null"
    )
    slurm.becomes(other, "COMPLETED")
    (step,) = saved(folder)
    assert step > 5
    until(lambda: resumed(folder), what="the run to go on", patience_s=300)
    assert resumed(folder) == [step]
    until(lambda: max(steps(folder)) > step, what="a step", patience_s=300)
    assert steps(folder) == list(range(1, max(steps(folder)) + 1))
    slurm("scancel", job)
    slurm.becomes(job, "CANCELLED")
    time.sleep(2)  # as long as a requeue would take
    assert slurm.state(job) == "CANCELLED"
    assert saved(folder)[0] > step  # it has saved all the same


def test_slurm__a_run_out_of_time_is_queued_again_by_its_script(slurm, spec_file, tmp_path):
    long = str(spec_file("out-of-time", epochs=5000))
    job, (folder,) = submit(
        slurm,
        tmp_path / "home",
        long,
        "--out",
        str(tmp_path / "time"),
        "--time=5",
        "--option=--signal=TERM@270",  # SIGTERM after half a minute of the five
    )
    until(lambda: resumed(folder), what="the run to go on", patience_s=500)
    slurm("scancel", job)


def test_slurm__runs_of_an_array_must_ask_for_the_same(spec_file, tmp_path):
    one, other = spec_file("one", epochs=1), spec_file("two", epochs=1, device="auto")
    done = calift("slurm", "submit", str(one), str(other), "--out", str(tmp_path), home=tmp_path)
    assert done.returncode == 1
    assert "the same resources and device" in done.stderr
