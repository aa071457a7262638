"""An evaluation job from its submission to its results, with a real worker and real runners."""

# ruff: noqa: F811
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from backend.storage.artifacts import ArtifactStore
from backend.store.engine import open_engine
from backend.store.stores import Stores
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.report import EvaluationReport, Report
from tests.command.conftest import configs, one_thread, photos  # noqa: F401
from tests.conftest import until
from tests.core.conftest import write_classes
from tests.support.finished import run_once, small_spec, store_run
from tests.worker.test_supervisor import processes

pytestmark = pytest.mark.service

CORRUPTIONS = {"names": ["gaussian_noise"], "severities": [3]}


@pytest.fixture(scope="module")
def shifts(tmp_path_factory):
    """One of 9 images and one of 750: 94 batches of 8, 12 shards for each model."""
    folder = tmp_path_factory.mktemp("shifts")
    return {
        "small": str(write_classes(folder / "small", n=3, seed=8)),
        "art": str(write_classes(folder / "art", n=250, seed=4)),
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, configs, photos, shifts):
    """Two finished runs of one tower, and one of them once more with the data in its own spec."""
    home = tmp_path_factory.mktemp("finished")
    more = {"shifts": shifts, "corruptions": CORRUPTIONS}
    return {
        name: run_once(small_spec(kind, configs["vit"], photos, **suite), home / name)
        for name, kind, suite in (
            ("zs", "zero_shot", {}),
            ("ft", "finetune", {}),
            ("whole", "finetune", more),
        )
    }


@pytest.fixture
def service(sqlite_url, home):
    store = Stores.on(open_engine(sqlite_url))
    yield store
    store.close()


def numbers(evaluation: EvaluationReport) -> dict[str, Any]:
    kept = set(EvaluationReport.model_fields) - {"seconds"}
    return {name: getattr(evaluation, name) for name in kept}


def ended(store: Stores, job_id: str) -> Any:
    job = store.evaluation_jobs.get(job_id)
    return job if job.phase in ("SUCCEEDED", "FAILED", "CANCELLED") else None


def runner_of(job_id: str, attempt: int) -> int | None:
    """The runner itself: what it forks has its command line too, and maybe a lower number."""
    end = f"/{job_id}/attempt-{attempt}"
    found = [pid for pid, argv in processes() if any(a.endswith(end) for a in argv)]
    return next((pid for pid in found if os.getsid(pid) == pid), None)


def asked_to_stop(pid: int) -> bool:
    """Whether a SIGTERM waits for a process that is held."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = [int(line.split()[1], 16) for line in status.splitlines() if "Pnd" in line[:6]]
    return any(mask >> (signal.SIGTERM - 1) & 1 for mask in pending)


def test_job__cancelled_in_mid_set_and_retried_is_equal_to_the_last_digit(
    service, sqlite_url, home, shifts, finished, start_worker
):
    artifacts = ArtifactStore(home / "artifacts")
    zs, ft, gone = (store_run(service, artifacts, finished[name]) for name in ("zs", "ft", "ft"))
    spec = EvaluationJobSpec.model_validate(
        {"runs": [zs, ft, gone], "shifts": shifts, "corruptions": CORRUPTIONS}
    )
    job_id = service.evaluation_jobs.submit(spec)
    service.runs.delete(gone)
    start_worker(sqlite_url, real=True)
    folder = home / "jobs" / job_id / "attempt-1"

    def shards():
        """Those of the large set, by the image that they end before."""
        found = folder.glob("runs/*/evaluating/*/*.safetensors")
        return [path for path in found if int(path.name.split("-")[1]) >= 64]

    one_pass = "evaluating: 2 models in one pass, each image decoded once"

    def log():
        return service.history.logs(job_id).text

    # Held until it has been asked to stop, however fast it would be.
    until(lambda: len(shards()) >= 2, timeout_s=240, what="two shards")
    pid = runner_of(job_id, 1)
    assert pid is not None, "the pass was over before it could be held"
    os.kill(pid, signal.SIGSTOP)
    try:
        service.evaluation_jobs.request_cancel(job_id)
        until(lambda: asked_to_stop(pid), what="the runner to be asked to stop")
    finally:
        os.kill(pid, signal.SIGCONT)
    job = until(lambda: ended(service, job_id), timeout_s=240, what="the job to end")
    found = (job.phase, job.attempt, job.lost_attempts, job.results)
    assert found == ("CANCELLED", 1, 0, 2), log()
    assert [e.dataset for e in service.results.run_evaluations(zs)][1:] == ["small"]

    service.evaluation_jobs.retry(job_id)
    job = until(lambda: ended(service, job_id), timeout_s=240, what="the job to end")
    assert (job.phase, job.results) == ("SUCCEEDED", 6), log()
    assert job.message == f"without what is gone meanwhile: {gone}"
    assert f"The run {gone} is gone" in log() or "gone" in (job.message or "")
    assert log().count(one_pass) == 2
    # It began behind the shards of the first.
    begun = log().split(one_pass)[2]
    done, total = (
        int(n.replace(",", ""))
        for n in re.search(r"evaluating: ([\d,]+) of ([\d,]+)", begun).groups()
    )
    n_test = service.results.run_evaluations(ft)[0].n
    assert total == 2 * (9 + 750 + n_test)
    assert 2 * 64 <= done < total, begun
    whole = Report.model_validate_json((finished["whole"] / "report.json").read_bytes())
    expected = {e.dataset: numbers(e) for e in whole.evaluations}
    mine = {e.dataset: e for e in service.results.run_evaluations(ft)}
    assert {name: numbers(e) for name, e in mine.items()} == expected
    assert {e.job_id for e in mine.values()} == {None, job_id}
    assert service.runs.get(ft).summary == whole.summary
    files = {a.name: a.sha256 for a in service.files.of_run(ft)}
    for name, evaluation in mine.items():
        stored = artifacts.verified(evaluation.predictions_sha256)
        assert evaluation.predictions_sha256 in files.values()
        assert stored.stat().st_size > 0, name
    report = json.loads(artifacts.verified(files["report.json"]).read_text())
    assert [e["dataset"] for e in report["evaluations"]] == list(mine)
    assert {e.dataset for e in service.results.run_evaluations(zs)} == set(mine)
    # Its end is recorded before its folder goes.
    until(lambda: not (home / "jobs" / job_id).exists(), what="the job's folder to be removed")
