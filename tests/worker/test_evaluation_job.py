"""An evaluation job from its submission to its results, with a real worker and real runners."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.artifacts import ArtifactStore
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
def art(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shift of 450 images: 57 batches of 8, 8 shards for each model."""
    return write_classes(tmp_path_factory.mktemp("shift") / "art", n=150, seed=4)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    configs: dict[str, Path],  # noqa: F811
    photos: Path,  # noqa: F811
    art: Path,
) -> dict[str, Path]:
    """Two finished runs of one tower, and one of them once more with the data in its own spec."""
    home = tmp_path_factory.mktemp("finished")
    more = {"shifts": {"art": str(art)}, "corruptions": CORRUPTIONS}
    return {
        name: run_once(small_spec(kind, configs["vit"], photos, **suite), home / name)
        for name, kind, suite in (
            ("zs", "zero_shot", {}),
            ("ft", "finetune", {}),
            ("whole", "finetune", more),
        )
    }


@pytest.fixture
def service(sqlite_url: str, home: Path) -> Iterator[Stores]:
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
    end = f"/{job_id}/attempt-{attempt}"
    return next((pid for pid, argv in processes() if any(a.endswith(end) for a in argv)), None)


def asked_to_stop(pid: int) -> bool:
    """Whether a SIGTERM waits for a process that is held."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = [int(line.split()[1], 16) for line in status.splitlines() if "Pnd" in line[:6]]
    return any(mask >> (signal.SIGTERM - 1) & 1 for mask in pending)


def test_job__two_runs_in_one_pass_killed_in_mid_set_resumed_and_equal_to_the_last_digit(
    service: Stores,
    sqlite_url: str,
    home: Path,
    art: Path,
    finished: dict[str, Path],
    start_worker: Callable[..., Any],
) -> None:
    artifacts = ArtifactStore(home / "artifacts")
    zs, ft = (store_run(service, artifacts, finished[name]) for name in ("zs", "ft"))
    spec = EvaluationJobSpec.model_validate(
        {"runs": [zs, ft], "shifts": {"art": str(art)}, "corruptions": CORRUPTIONS}
    )
    job_id = service.evaluation_jobs.submit(spec)
    start_worker(sqlite_url, real=True)
    folder = home / "jobs" / job_id / "attempt-1"
    shards = "runs/*/evaluating/*/*.safetensors"
    until(lambda: len(list(folder.glob(shards))) >= 4, timeout_s=240, what="four shards")
    pid = runner_of(job_id, 1)
    assert pid is not None, "the pass was over before it could be killed"
    os.kill(pid, signal.SIGKILL)
    job = until(lambda: ended(service, job_id), timeout_s=240, what="the job to end")
    log = service.history.logs(job_id).text
    assert (job.phase, job.attempt, job.losses, job.results) == ("SUCCEEDED", 2, 1, 4), log
    # One pass for both, in the first attempt and in the second, which began behind the shards.
    assert log.count("evaluating: 2 models in one pass, each image decoded once") == 2
    n_test = service.results.run_evaluations(ft)[0].n
    begun = log.split("evaluating: 2 models in one pass")[2]
    done, total = (
        int(n.replace(",", ""))
        for n in re.search(r"evaluating: ([\d,]+) of ([\d,]+)", begun).groups()  # type: ignore[union-attr]
    )
    assert total == 2 * (450 + n_test)
    assert 4 * 64 <= done < 2 * 450, begun
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


def test_job__cancelled_keeps_what_is_finished_and_a_retry_does_the_rest(
    service: Stores,
    sqlite_url: str,
    home: Path,
    art: Path,
    finished: dict[str, Path],
    start_worker: Callable[..., Any],
    tmp_path: Path,
) -> None:
    artifacts = ArtifactStore(home / "artifacts")
    zs = store_run(service, artifacts, finished["zs"])
    gone = store_run(service, artifacts, finished["ft"])
    small = write_classes(tmp_path / "small", n=3, seed=8)
    spec = EvaluationJobSpec.model_validate(
        {"runs": [zs, gone], "shifts": {"small": str(small), "art": str(art)}}
    )
    job_id = service.evaluation_jobs.submit(spec)
    service.runs.delete(gone)
    start_worker(sqlite_url, real=True)
    until(lambda: service.evaluation_jobs.get(job_id).results == 1, timeout_s=240, what="a result")
    # Held in the second set until it has been asked to stop, however fast it would be.
    pid = runner_of(job_id, 1)
    assert pid is not None, "the pass was over before it could be held"
    os.kill(pid, signal.SIGSTOP)
    try:
        service.evaluation_jobs.request_cancel(job_id)
        until(lambda: asked_to_stop(pid), what="the runner to be asked to stop")
    finally:
        os.kill(pid, signal.SIGCONT)
    job = until(lambda: ended(service, job_id), timeout_s=240, what="the job to end")
    assert (job.phase, job.results) == ("CANCELLED", 1)
    assert [e.dataset for e in service.results.run_evaluations(zs)][1:] == ["small"]
    service.evaluation_jobs.retry(job_id)
    job = until(lambda: ended(service, job_id), timeout_s=240, what="the job to end")
    log = service.history.logs(job_id).text
    assert (job.phase, job.results) == ("SUCCEEDED", 2), log
    assert job.message == f"without what is gone meanwhile: {gone}"
    assert f"The run {gone} is gone" in log or "gone" in (job.message or "")
    assert [e.dataset for e in service.results.run_evaluations(zs)][1:] == ["small", "art"]
