"""One supervised attempt: real store, real runner processes."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from backend.storage.artifacts import ArtifactStore
from backend.store.claims import MAX_STORAGE_REQUEUES, Claim
from backend.store.engine import writing
from backend.store.stores import Stores
from calift_core.errors import DiskFullError
from calift_core.files import sha256_file
from calift_core.jobs.folder import run_in_folder
from tests.conftest import spec_of, until
from tests.core.conftest import VIT, write_classes
from tests.support import recorded
from worker.folders import job_dir
from worker.limits import Limits
from worker.runner import RUNNER_ARGV, runner_environment
from worker.supervisor import Outcome, supervise

pytestmark = pytest.mark.service

STANDIN = [sys.executable, str(Path(__file__).with_name("standin_runner.py"))]
LIMITS = Limits(
    ttl_s=30, heartbeat_s=0.2, cancel_poll_s=0.05, group_s=0.05, grace_s=20, tick_s=0.02
)


class Bench:
    """A store, an artifact store and a folder of jobs."""

    def __init__(self, store: Stores, root: Path) -> None:
        self.store = store
        self.artifacts = ArtifactStore(root / "artifacts")
        self.jobs = root / "jobs"
        self.limits = LIMITS
        self.argv = STANDIN
        self.draining = False

    def submit(self, *, max_attempts: int = 3, **plan: Any) -> str:
        return self.store.runs.submit(spec_of(notes=json.dumps(plan)), max_attempts=max_attempts)

    def claim(self, run_id: str) -> Claim:
        claim = self.store.claims.claim(run_id, worker_id="w", ttl_s=self.limits.ttl_s)
        assert claim is not None
        return claim

    def supervise(self, claim: Claim, **changes: Any) -> Outcome:
        return supervise(
            self.store.engine,
            self.artifacts,
            claim,
            jobs=self.jobs,
            limits=dataclasses.replace(self.limits, **changes),
            claimed_at=time.monotonic(),
            draining=lambda: self.draining,
            runner_argv=self.argv,
        )

    def attempt(self, run_id: str, **changes: Any) -> Outcome:
        return self.supervise(self.claim(run_id), **changes)

    @contextmanager
    def attempting(self, claim: Claim, **changes: Any) -> Iterator[Callable[[], Outcome]]:
        """Supervise in a thread; call what is given to wait for the outcome."""
        outcomes: list[Outcome] = []
        thread = threading.Thread(
            target=lambda: outcomes.append(self.supervise(claim, **changes)), daemon=True
        )
        thread.start()

        def outcome() -> Outcome:
            thread.join(30)
            assert not thread.is_alive(), "the supervisor does not end"
            return outcomes[0]

        yield outcome
        outcome()

    def folder(self, run_id: str, attempt: int = 1) -> Path:
        return job_dir(self.jobs, run_id, attempt)

    def steps(self, run_id: str) -> list[int]:
        series = {s.name: s.steps for s in self.store.history.metrics(run_id).series}
        return series.get("loss", [])

    def events(self, run_id: str, kind: str = "state") -> list[dict[str, Any]]:
        return [e.data for e in self.store.history.events_after(run_id, 0)[0] if e.kind == kind]

    def stored_steps(self, run_id: str) -> list[int]:
        names = [a.name for a in self.store.files.of_run(run_id, kind="state")]
        return [int(name.split("/")[1]) for name in names if name.endswith("manifest.json")]

    def reaches(self, run_id: str, step: int) -> None:
        until(lambda: step in self.steps(run_id), what=f"step {step}")

    def drain_at(self, run_id: str, step: int) -> None:
        """Let a worker take a run, and end in good order at a step of it."""
        with self.attempting(self.claim(run_id)) as outcome:
            self.reaches(run_id, step)
            self.draining = True
            assert outcome() == "requeued"
        self.draining = False

    def resumed(self, run_id: str) -> list[int]:
        """The steps that the run was gone on with from."""
        return [e["step"] for e in self.events(run_id, "resumed")]

    def runner_pid(self, run_id: str, attempt: int = 1) -> int:
        found = [pid for pid, argv in processes() if str(self.folder(run_id, attempt)) in argv]
        assert len(found) == 1, found
        return found[0]


def processes() -> list[tuple[int, list[str]]]:
    """What runs, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            found.append((int(entry.name), argv))
    return found


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def bench(store, home):
    return Bench(store, home)


def test_supervise__success_stores_everything_and_cleans_up(bench, monkeypatch):
    monkeypatch.setenv("CALIFT_DATABASE_URL", "postgresql://u:secret@h/d")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_id = bench.submit()
    assert bench.attempt(run_id) == "succeeded"
    run = bench.store.runs.get(run_id)
    assert (run.phase, run.reason) == ("SUCCEEDED", None)
    assert run.progress.run_fraction == 0.99  # saving was the last that it said
    assert run.summary is not None
    assert run.summary == recorded.RECORDED[-1].summary
    assert bench.steps(run_id) == list(range(1, 11))
    stored = {a.name: a for a in bench.store.files.of_run(run_id)}
    assert {n: a.kind for n, a in stored.items()} == {
        "report.json": "report",
        "metrics.jsonl": "metrics",
        "runner.log": "log",
        "predictions/id.parquet": "predictions",
        "checkpoint/model.safetensors": "checkpoint",
    }
    content = bench.artifacts.verified(stored["predictions/id.parquet"].sha256).read_bytes()
    assert content == b"predictions of a run"
    assert "hello from attempt 1" in bench.store.history.logs(run_id).text
    seen = bench.store.results.report(run_id)["environment"]["variables"]
    assert "OMP_NUM_THREADS" in seen
    assert "CALIFT_HOME" in seen
    assert "CALIFT_DATABASE_URL" not in seen
    assert not bench.folder(run_id).parent.exists()


@pytest.mark.parametrize("code", ["NAN_LOSS", "STORAGE_FAILED"])  # a file of its own, unreadable
def test_supervise__a_deliberate_failure_keeps_its_reason_and_its_folder(bench, code):
    run_id = bench.submit(end="badly", code=code)
    assert bench.attempt(run_id) == "failed"
    run = bench.store.runs.get(run_id)
    assert (run.phase, run.reason, run.hint) == ("FAILED", code, "Lower train.lr.")
    assert run.message == "the loss is not finite"
    assert (bench.folder(run_id) / "runner.log").exists()
    assert bench.store.files.of_run(run_id) == []


def test_supervise__a_crash_tells_the_last_words_even_those_that_no_database_takes(bench):
    run_id = bench.submit(end="crash", words="these are its\0last words")
    assert bench.attempt(run_id) == "failed"
    run = bench.store.runs.get(run_id)
    assert (run.phase, run.reason) == ("FAILED", "RUNNER_CRASHED")
    assert "exit status 3" in (run.message or "")
    assert "these are its\N{SYMBOL FOR NULL}last words" in (run.message or "")
    assert "last words" in bench.store.history.logs(run_id).text


def test_supervise__no_sql_reaches_a_user(bench):
    run_id = bench.submit(max_attempts=1)
    with writing(bench.store.engine) as connection:  # a database that refuses the report
        connection.execute(
            text(
                "CREATE TRIGGER refuses BEFORE INSERT ON reports "
                "BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )
        )
    assert bench.attempt(run_id) == "requeued"
    run = bench.store.runs.get(run_id)
    assert (run.phase, run.reason) == ("FAILED", "WORKER_ERROR")
    assert "INSERT" not in (run.message or "")
    assert "SQL:" not in (run.message or "")


@pytest.mark.parametrize(
    ("end", "reason", "said"), [("kill", "RUNNER_LOST", ""), ("lost", "RANK_LOST", "rank 1")]
)
def test_supervise__a_killed_process_is_a_loss_and_the_next_attempt_goes_on(
    bench, end, reason, said
):
    run_id = bench.submit(ends=[end, "well"], steps=12)
    assert bench.attempt(run_id) == "requeued"
    run = bench.store.runs.get(run_id)
    assert (run.phase, run.reason) == ("QUEUED", reason)
    assert said in (run.message or "")
    assert bench.steps(run_id) == list(range(1, 13))  # and not the torn record's step
    assert bench.attempt(run_id) == "succeeded"
    assert bench.resumed(run_id) == [10]
    assert bench.steps(run_id) == list(range(1, 13))
    assert bench.store.results.report(run_id)["data"] == {"attempt": 2}


def test_supervise__losses_are_bounded_by_max_attempts(bench):
    run_id = bench.submit(end="kill", max_attempts=2)
    bench.attempt(run_id)
    bench.attempt(run_id)
    run = bench.store.runs.get(run_id)
    assert (run.phase, run.reason) == ("FAILED", "RUNNER_LOST")
    assert "memory" in run.hint
    assert bench.store.claims.claim(run_id, worker_id="w", ttl_s=9) is None


def test_supervise__a_newer_checkpoint_supersedes_the_older_attempts(bench, tmp_path):
    gates = [tmp_path / "gate-1", tmp_path / "gate-2"]
    run_id = bench.submit(
        wait_at=[12, 18], wait_for=[str(g) for g in gates], steps=20, ends=["well"]
    )
    bench.drain_at(run_id, 12)
    assert bench.folder(run_id, 1).exists()
    gates[0].touch()
    with bench.attempting(bench.claim(run_id)) as outcome:
        until(lambda: not bench.folder(run_id, 1).exists(), what="the old attempt's folder to go")
        assert (bench.folder(run_id, 2) / "checkpoint" / "steps" / "00000015").exists()
        gates[1].touch()
        assert outcome() == "succeeded"


def test_supervise__cancel_saves_a_checkpoint_and_a_retry_goes_on(bench, tmp_path):
    gate = tmp_path / "gate"
    run_id = bench.submit(wait_at=7, wait_for=str(gate))
    with bench.attempting(bench.claim(run_id)) as outcome:
        bench.reaches(run_id, 7)
        assert bench.store.runs.request_cancel(run_id).phase == "CANCELLING"
        assert outcome() == "cancelled"
    run = bench.store.runs.get(run_id)
    assert (run.phase, run.reason) == ("CANCELLED", "USER_CANCELLED")
    assert (bench.folder(run_id) / "checkpoint/steps/00000007/manifest.json").exists()
    gate.touch()
    bench.store.runs.retry(run_id)
    assert bench.attempt(run_id) == "succeeded"
    assert bench.resumed(run_id) == [7]


def test_supervise__a_runner_deaf_to_cancel_is_killed_after_the_grace(bench, tmp_path):
    run_id = bench.submit(deaf=True, wait_at=3, wait_for=str(tmp_path / "never"))
    with bench.attempting(bench.claim(run_id), grace_s=0.2) as outcome:
        bench.reaches(run_id, 3)
        pid = bench.runner_pid(run_id)
        bench.store.runs.request_cancel(run_id)
        assert outcome() == "cancelled"
    assert not alive(pid)


def test_supervise__a_cancel_before_the_runner_starts_starts_none(bench):
    run_id = bench.submit()
    claim = dataclasses.replace(bench.claim(run_id), cancel_requested=True)
    assert bench.supervise(claim) == "cancelled"
    assert not bench.folder(run_id).exists()


def test_supervise__a_silent_runner_is_taken_for_hung(bench, tmp_path):
    run_id = bench.submit(deaf=True, wait_at=4, wait_for=str(tmp_path / "never"), max_attempts=1)
    with bench.attempting(bench.claim(run_id), hang_timeout_s=6.0) as outcome:
        bench.reaches(run_id, 4)
        pid = bench.runner_pid(run_id)
        assert outcome() == "requeued"
    assert not alive(pid)
    run = bench.store.runs.get(run_id)
    assert (run.phase, run.reason) == ("FAILED", "RUNNER_HUNG")


def test_supervise__another_attempt_fences_this_one_off(bench, tmp_path):
    run_id = bench.submit(wait_at=6, wait_for=str(tmp_path / "never"))
    with bench.attempting(bench.claim(run_id)) as outcome:
        bench.reaches(run_id, 6)
        pid = bench.runner_pid(run_id)
        with writing(bench.store.engine) as connection:
            # As the lease reaper and another worker would do when this one had been frozen.
            connection.execute(
                text("UPDATE runs SET attempt = attempt + 1, owner = 'other' WHERE id = :i"),
                {"i": run_id},
            )
        assert outcome() == "fenced"
    assert not alive(pid)
    run = bench.store.runs.get(run_id)
    assert (run.phase, run.attempt, run.worker) == ("RUNNING", 2, "other")


def test_supervise__an_unreachable_database_ends_the_attempt_before_the_lease(bench, tmp_path):
    run_id = bench.submit(wait_at=6, wait_for=str(tmp_path / "never"))
    bench.limits = dataclasses.replace(bench.limits, ttl_s=3.0)
    with bench.attempting(bench.claim(run_id)) as outcome:
        bench.reaches(run_id, 6)
        pid = bench.runner_pid(run_id)
        with writing(bench.store.engine):  # nobody else can write now
            locked_at = time.monotonic()
            until(lambda: not alive(pid), timeout_s=3.0, what="the runner to be killed")
            assert time.monotonic() - locked_at < 3.0
        assert outcome() == "fenced"
    assert bench.store.runs.get(run_id).phase == "RUNNING"  # the lease reaper's to settle


def test_supervise__a_full_artifact_store_sets_the_run_back_and_loses_nothing(bench):
    full = ArtifactStore(bench.jobs.parent / "full", free_space_floor_bytes=1 << 60)
    bench.artifacts, good = full, bench.artifacts
    run_id = bench.submit(max_attempts=1)
    assert bench.attempt(run_id) == "requeued"
    run = bench.store.runs.get(run_id)
    assert (run.phase, run.reason, run.storage_requeues) == ("QUEUED", "DISK_FULL", 1)
    assert bench.store.files.of_run(run_id) == []
    assert "report.json" not in {path.name for path in full.root.rglob("*")}
    bench.artifacts = good  # there is room again: what was finished is stored
    assert bench.attempt(run_id) == "succeeded"
    assert bench.store.results.report(run_id)["data"] == {"attempt": 1}


def test_supervise__a_folder_that_cannot_be_made_sets_the_run_back(bench):
    bench.jobs.parent.mkdir(exist_ok=True)
    bench.jobs.write_text("in the way")
    run_id = bench.submit(max_attempts=1)
    assert bench.attempt(run_id) == "requeued"
    run = bench.store.runs.get(run_id)
    assert (run.phase, run.reason, run.lost_attempts) == ("QUEUED", "STORAGE_FAILED", 0)


def test_supervise__a_run_that_fills_every_disk_fails_at_last_and_leaves_room(bench):
    run_id = bench.submit(end="badly", code="DISK_FULL", checkpoint_every=99)
    for _ in range(MAX_STORAGE_REQUEUES):
        assert bench.attempt(run_id) == "requeued"
        assert not any(bench.folder(run_id).parent.iterdir()), "nobody goes on from that"
    run = bench.store.runs.get(run_id)
    assert (run.phase, run.reason) == ("FAILED", "DISK_FULL")
    assert run.hint


def test_supervise__checkpoints_are_stored_as_they_are_made_and_used_where_they_are_better(
    bench, tmp_path
):
    gates = [tmp_path / "gate-1", tmp_path / "gate-2"]
    run_id = bench.submit(
        wait_at=[7, 12], wait_for=[str(g) for g in gates], steps=20, ends=["well"]
    )
    here, there = bench.jobs, bench.jobs.with_name("elsewhere")
    bench.drain_at(run_id, 7)
    run = bench.store.runs.get(run_id)
    assert (run.phase, run.reason, run.lost_attempts) == ("QUEUED", "WORKER_DRAINED", 0)
    assert bench.stored_steps(run_id) == [5, 7]
    bench.jobs = there  # another machine: it has nothing but what is stored
    gates[0].touch()
    bench.drain_at(run_id, 12)
    assert bench.stored_steps(run_id) == [10, 12]
    bench.jobs = here  # back on the first, whose own checkpoint is older now
    gates[1].touch()
    assert bench.attempt(run_id) == "succeeded"
    assert bench.resumed(run_id) == [7, 12]
    assert bench.steps(run_id) == list(range(1, 21))
    assert bench.stored_steps(run_id) == []


def test_supervise__a_real_run_ends_on_another_machine_as_on_one(bench, tmp_path):
    bench.argv = list(RUNNER_ARGV)
    bench.limits = dataclasses.replace(bench.limits, group_s=1.0)
    (tmp_path / "vit.json").write_text(json.dumps(VIT))
    photos = write_classes(tmp_path / "photos", n=40)
    spec = spec_of(
        method={"kind": "finetune"},
        model={"name": str(tmp_path / "vit.json"), "pretrained": None},
        suite={"id": f"folder:{photos}", "templates": "photo"},
        train={"epochs": 3, "batch_size": 8, "device": "cpu", "checkpoint_every_steps": 2}
        | {"log_every_steps": 1},
        evaluation={"n_resamples": 20},
    )
    alone = list(run_in_folder(spec, tmp_path / "alone"))
    moved = bench.store.runs.submit(spec)
    with bench.attempting(bench.claim(moved)) as outcome:
        until(lambda: bench.stored_steps(moved), what="a stored checkpoint")
        os.kill(bench.runner_pid(moved), signal.SIGKILL)
        assert outcome() == "requeued"
    shutil.rmtree(bench.jobs)
    bench.jobs = bench.jobs.with_name("elsewhere")
    assert bench.attempt(moved) == "succeeded", bench.store.runs.get(moved).message
    assert bench.events(moved, "resumed")
    curves = {}
    for record in alone:
        if record.kind == "metrics":
            for name, value in record.values.items():
                steps, values = curves.setdefault(name, ([], []))
                steps.append(record.step)
                values.append(value)
    stored = bench.store.history.metrics(moved).series
    assert {s.name: (s.steps, s.values) for s in stored} == curves
    spectra = [(r.step, r.final) for r in alone if r.kind == "spectrum"]
    assert [(s.step, s.final) for s in bench.store.history.spectra(moved)] == spectra
    model = bench.store.files.get(moved, "checkpoint/model.safetensors")
    assert model.sha256 == sha256_file(tmp_path / "alone/checkpoint/model.safetensors")


def test_supervise__a_stored_checkpoint_that_is_damaged_is_passed_over(bench, tmp_path):
    gate = tmp_path / "gate"
    run_id = bench.submit(wait_at=12, wait_for=str(gate), steps=14)
    bench.drain_at(run_id, 12)
    bench.jobs = bench.jobs.with_name("elsewhere")
    gate.touch()
    stored = bench.store.files.of_run(run_id, kind="state")
    newest = next(a for a in stored if a.name == "states/00000012/state.json")
    bench.artifacts.path(newest.sha256).write_bytes(b"damaged")
    assert bench.attempt(run_id) == "succeeded"
    assert bench.resumed(run_id) == [10]
    assert bench.steps(run_id) == list(range(1, 15))


def test_supervise__checkpoints_that_cannot_be_stored_do_not_stop_the_run(bench):
    class Full(ArtifactStore):
        def put_file(self, source, *, link=False):
            if link:
                raise DiskFullError("no room for checkpoints")
            return super().put_file(source)

    bench.artifacts = Full(bench.artifacts.root)
    run_id = bench.submit()
    assert bench.attempt(run_id) == "succeeded"
    assert bench.store.runs.get(run_id).storage_requeues == 0


def test_supervise__a_run_whose_input_is_gone_fails_with_its_name(bench):
    tuned = bench.submit()
    assert bench.attempt(tuned) == "succeeded"
    merge = {"method": {"kind": "model_stock", "runs": [tuned, "deadbeef"]}}
    more = {"train": {"initial_run": tuned}}
    for expected, spec in (
        ("model.json", merge), ("model.json", more), ("there is no run", merge),
        ("there is no run", more),
    ):  # fmt: skip
        run_id = bench.store.runs.submit(spec_of(**spec))
        assert bench.attempt(run_id) == "failed"
        run = bench.store.runs.get(run_id)
        assert run.reason == "MODEL_UNAVAILABLE"
        assert tuned in (run.message or "")
        assert expected in (run.message or "")
        if spec is more and expected == "model.json":  # the stand-in leaves none
            bench.store.runs.delete(tuned)


def test_supervise__linked_inputs_go_with_the_attempt(bench, tmp_path):
    gate = tmp_path / "gate"
    tuned = bench.submit(model=True)
    assert bench.attempt(tuned) == "succeeded"
    spec = spec_of(
        method={"kind": "wise_ft", "run": tuned},
        notes=json.dumps({"wait_at": 3, "wait_for": str(gate), "end": "badly"}),
    )
    run_id = bench.store.runs.submit(spec)
    with bench.attempting(bench.claim(run_id)) as outcome:
        bench.reaches(run_id, 3)
        job = json.loads((bench.folder(run_id) / "job.json").read_text())
        folder = Path(job["inputs"][tuned])
        assert (folder / "checkpoint" / "model.safetensors").read_bytes() == b"weights"
        assert (folder / "report.json").is_file()
        # A run that is deleted now takes nothing away from the one that works.
        digests = bench.store.runs.delete(tuned)
        bench.artifacts.collect(bench.store.files, grace_s=0, digests=digests)
        assert (folder / "checkpoint" / "model.safetensors").read_bytes() == b"weights"
        gate.touch()
        assert outcome() == "failed"
    assert bench.folder(run_id).is_dir()
    assert not folder.exists()


@pytest.mark.parametrize("run_id", ["", ".", "..", "a/b", "../x", "a\0b", "-x", "x" * 65])
def test_job_dir__a_run_id_cannot_lead_elsewhere(run_id, tmp_path):
    with pytest.raises(ValueError, match="a run id"):
        job_dir(tmp_path, run_id, 1)


@given(st.dictionaries(st.text(max_size=30), st.text(max_size=5), max_size=10))
def test_runner_environment__passes_only_what_is_named(environment):
    secrets = {
        "CALIFT_TOKEN": "t",
        "CALIFT_DATABASE_URL": "d",
        "CALIFT_BROKER_URL": "b",
        "POSTGRES_PASSWORD": "p",
        "AWS_SECRET_ACCESS_KEY": "k",
        "LD_PRELOAD": "x",
    }
    passed = runner_environment(environment | secrets | {"PATH": "/bin", "LC_ALL": "C"})
    assert not secrets.keys() & passed.keys()
    assert passed["PATH"] == "/bin"
    assert passed["LC_ALL"] == "C"
