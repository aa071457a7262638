"""A runner that behaves like the real one without training: `python standin_runner.py JOB_DIR`.

Its words are those of the recorded real run. What it does is a JSON object in the spec's notes:
`steps` (default 10), `step_s` (how long each takes, 0), `checkpoint_every` (5), `model` (leave a
`model.json`), `wait_at`/`wait_for` (at that step or those, until that file is there), `end`: one of
the functions at the bottom, by attempt in `ends`. `ledger` is a file that every step made is told
to; a file `checkpoint` in the folder `traps` kills it in the midst of its next checkpoint.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from calift_core.errors import CaliftError
from calift_core.files import atomic_write_bytes, atomic_write_json
from calift_core.jobs.curves import Curves
from calift_core.schema import records as r
from calift_core.schema.report import Report

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support import recorded

folder = Path(sys.argv[1])
job = r.JobFile.model_validate_json((folder / "job.json").read_bytes())
spec = json.loads((folder / "spec.json").read_text())
plan = json.loads(spec["notes"] or "{}")
steps = plan.get("steps", 10)
waits = [(plan.get("wait_at"), plan.get("wait_for"))]
if isinstance(plan.get("wait_at"), list):
    waits = list(zip(plan["wait_at"], plan["wait_for"], strict=True))
stopping = False


def on_signal(*_):
    global stopping
    stopping = True


signal.signal(signal.SIGTERM, signal.SIG_IGN if plan.get("deaf") else on_signal)
records = (folder / "records.jsonl").open("a", encoding="utf-8")
curves = Curves(folder, Path(job.resume_from) if job.resume_from else None)
stage = []


def emit(*told):
    for record in told:
        recorded.checked([*stage, record])
        if isinstance(record, r.PhaseRecord):
            stage[:] = [record]
        curves.take(record)
        records.write(record.model_dump_json() + "\n")
        records.flush()


def result(outcome, **more):
    body = r.JobResult(outcome=outcome, **more).model_dump(mode="json")
    atomic_write_json(folder / "result.json", body)


def checkpoint(step):
    path = folder / "checkpoint" / "steps" / f"{step:08d}"
    if sprung("checkpoint"):
        path.mkdir(parents=True)
        (path / "state.json").write_text('{"st')
        os.kill(os.getpid(), signal.SIGKILL)
    atomic_write_json(path / "state.json", {"step": step})
    atomic_write_json(path / "manifest.json", {"state.json": ""})
    emit(recorded.checkpoint(step))


def sprung(name):
    with contextlib.suppress(KeyError, FileNotFoundError):
        (Path(plan["traps"]) / name).unlink()
        return True
    return False


def enter(step, at=None):
    """A line of the ledger; short ones are written whole, whoever else writes."""
    if "ledger" in plan:
        with open(plan["ledger"], "a", encoding="utf-8") as ledger:
            ledger.write(f"{job.run_id} {job.attempt} {step} {at or now():.3f}\n")


def now():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def started():
    ticks = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def end_well():
    atomic_write_bytes(
        folder / "predictions" / "id.parquet", b"predictions of " + spec["name"].encode()
    )
    atomic_write_bytes(folder / "checkpoint" / "model.safetensors", b"weights")
    if plan.get("model"):
        atomic_write_json(folder / "checkpoint" / "model.json", {})
    emit(recorded.phase("evaluating"))
    *_, final = (record for record in recorded.RECORDED if isinstance(record, r.SpectrumRecord))
    summary = recorded.RECORDED[-1].summary
    report = Report(
        run_id=job.run_id,
        name=spec["name"],
        spec=spec,
        spec_sha256="0" * 64,
        resolved={},
        summary=summary,
        evaluations=[],
        spectrum=final.spectrum,
        selection={},
        model={},
        data={"attempt": job.attempt},
        timings_s={},
        environment={"variables": sorted(os.environ)},
    )
    atomic_write_json(folder / "report.json", report.model_dump(mode="json"))
    emit(*recorded.ending(final.spectrum, summary, steps=steps))
    result("succeeded")


def end_badly():
    result(
        "failed",
        code=plan.get("code", "NAN_LOSS"),
        message="the loss is not finite",
        hint="Lower train.lr.",
    )
    sys.exit(1)


def end_by_crash():
    sys.stdout.write(plan.get("words", "these are its last words") + "\n")
    sys.exit(3)


def end_by_kill():
    # A torn record: killed in the middle of a write.
    records.write('{"kind":"metrics","step":999,"epo')
    records.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def end_by_a_lost_process():
    result("lost", code="RANK_LOST", message="rank 1 (process 7) ended with signal 9", hint="")
    sys.exit(r.EXIT_LOST)


def end_by_filling_the_disk():
    # Somebody else's file, which stays; then what a real runner says when it cannot write.
    with open(plan["fill"], "wb") as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 20)):
            file.flush()
    try:
        atomic_write_bytes(folder / "checkpoint" / "model.safetensors", bytes(1 << 22))
    except CaliftError as error:
        result("failed", code=error.code, message=error.message, hint=error.hint)
    sys.exit(1)


def end_with_the_worker():
    end_well()
    os.kill(os.getppid(), signal.SIGKILL)


ENDS = {
    "well": end_well,
    "with the worker": end_with_the_worker,
    "by filling the disk": end_by_filling_the_disk,
    "badly": end_badly,
    "crash": end_by_crash,
    "kill": end_by_kill,
    "lost": end_by_a_lost_process,
}

start = 0
enter(start, started())
enter(0)
sys.stdout.write(f"hello from attempt {job.attempt}\n")
emit(recorded.phase("loading"))
resumed = []
if job.resume_from:
    found = sorted((Path(job.resume_from) / "checkpoint" / "steps").glob("*/manifest.json"))
    start = json.loads(found[-1].with_name("state.json").read_text())["step"]
    resumed = [recorded.resumed(start)]
emit(recorded.phase("training"), *resumed)
for step in range(start + 1, steps + 1):
    emit(recorded.metrics(step, step / 10, loss=1 / step))
    emit(recorded.progress(step, steps))
    time.sleep(plan.get("step_s", 0))
    enter(step)
    if step % plan.get("checkpoint_every", 5) == 0:
        checkpoint(step)
    for at, gate in waits:
        while step == at and not Path(gate).exists() and not stopping:
            time.sleep(0.01)
    if stopping:
        checkpoint(step)
        result("interrupted", code="INTERRUPTED", message="stopped on request")
        sys.exit(r.EXIT_INTERRUPTED)
ends = plan.get("ends", [plan.get("end", "well")])
ENDS[ends[min(job.attempt, len(ends)) - 1]]()
