"""What evaluation jobs put under runs, and the jobs themselves, on both databases."""

from typing import Any

import pytest

from backend.storage.artifacts import ArtifactStore
from backend.store.errors import ConflictError, IdempotencyError, QueueFullError
from backend.store.evaluation_jobs import EvaluationJobs
from backend.store.fairness import Quotas
from backend.store.stores import Stores
from calift_core.errors import NotFoundError
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.records import EvaluationRecord
from tests.backend.store.helpers import WORKER, everything, expire
from tests.conftest import example_evaluation, example_predictions

SHA = "a" * 64


@pytest.fixture
def artifacts(tmp_path):
    return ArtifactStore(tmp_path / "artifacts")


def ask(*runs: str, **data: Any) -> EvaluationJobSpec:
    return EvaluationJobSpec.model_validate({"runs": runs, "shifts": {"art": "/art"}} | data)


def result(dataset: str = "art", sha256: str = SHA, seed: int = 5) -> EvaluationRecord:
    made = example_predictions(seed, dataset=dataset, role="shift")
    return EvaluationRecord(
        evaluation=example_evaluation(made, sha256),
        predictions=f"predictions/{dataset}.parquet",
        run="any",
    )


class Job:
    """A claimed job that judges a finished run."""

    def __init__(self, store: Stores, artifacts: ArtifactStore, *runs: str) -> None:
        self.store, self.artifacts = store, artifacts
        self.id = store.evaluation_jobs.submit(ask(*runs))
        self.attempt = self.claim()

    def claim(self) -> int:
        claim = self.store.claims.claim(self.id, **WORKER)
        assert claim.kind == "evaluation"
        return claim.attempt

    def publish(self, run_id: str, record: EvaluationRecord, attempt: int | None = None) -> str:
        def put(data: bytes) -> tuple[str, int]:
            blob = self.artifacts.put_bytes(data)
            return blob.sha256, blob.size_bytes

        return self.store.evaluated.publish(
            self.id,
            attempt or self.attempt,
            run_id,
            record,
            sha256=record.evaluation.predictions_sha256,
            size_bytes=7,
            put=put,
        )


def test_publish__a_result_is_the_runs_as_if_it_had_evaluated_itself(
    store, artifacts, finished_run
):
    run_id = finished_run(store, artifacts, datasets=(("id", "id"),))
    before = store.runs.get(run_id)
    assert before.summary.ood_accuracy is None
    job = Job(store, artifacts, run_id)
    record = result()
    assert job.publish(run_id, record) == "published"
    run, report = store.runs.get(run_id), store.results.report(run_id)
    assert run.summary.ood_accuracy == record.evaluation.accuracy
    assert run.summary.sigma_min == before.summary.sigma_min
    assert run.revision > before.revision
    assert report["summary"] == run.summary.model_dump(mode="json")
    assert [e["dataset"] for e in report["evaluations"]] == ["id", "art"]
    assert report["data"]["shifts"] == {"art": record.evaluation.n}
    found = store.results.run_evaluations(run_id)
    assert [(e.dataset, e.job_id) for e in found] == [("id", None), ("art", job.id)]
    files = {a.name: a for a in store.files.of_run(run_id)}
    assert files["predictions/art.parquet"].sha256 == SHA
    stored = artifacts.verified(files["report.json"].sha256).read_text()
    assert '"dataset": "art"' in stored
    events, _ = store.history.events_after(run_id)
    assert (events[-1].kind, events[-1].data["dataset"]) == ("evaluation", "art")
    assert store.evaluation_jobs.get(job.id).results == 1
    rows = everything(store)
    assert job.publish(run_id, record) == "published"  # as after a lost answer
    assert everything(store) == rows


def test_publish__leaves_a_headline_over_the_specs_own_shifts_as_it_is(
    store, artifacts, finished_run
):
    run_id = finished_run(store, artifacts)  # judged on sketch, too
    before = store.runs.get(run_id).summary
    assert before.ood_accuracy is not None
    job = Job(store, artifacts, run_id)
    assert job.publish(run_id, result()) == "published"
    assert store.runs.get(run_id).summary == before
    assert store.results.report(run_id)["summary"] == before.model_dump(mode="json")
    assert "art" in {e.dataset for e in store.results.run_evaluations(run_id)}


def test_publish__is_fenced_by_the_job_and_knows_what_is_gone(store, artifacts, finished_run):
    run_id, other = finished_run(store, artifacts), finished_run(store, artifacts, seed=2)
    job = Job(store, artifacts, run_id, other)
    expire(store, job.id)
    assert [s.action for s in store.reaper.sweep()] == ["requeued"]
    rows = everything(store)
    assert job.publish(run_id, result()) == "fenced"
    assert everything(store) == rows
    second = job.claim()
    assert second == 2
    store.runs.delete(other)
    assert job.publish(other, result(), second) == "gone"
    assert job.publish(run_id, result(), second) == "published"
    with pytest.raises(ConflictError, match="other images called 'art'"):
        job.publish(run_id, result(sha256="b" * 64), second)
    # The job tells what it publishes, and no row of its own comes of it.
    assert store.records.record(job.id, second, [result().model_copy(update={"run": run_id})])
    events, _ = store.history.events_after(job.id)
    assert events[-1].data["run_id"] == run_id
    assert store.results.list_evaluations(run_ids=[job.id])[2] == 0
    assert store.results.list_evaluations(job_id=job.id)[2] == 1
    # It outlives its job.
    assert store.claims.finish(job.id, second, phase="SUCCEEDED")
    store.evaluation_jobs.delete(job.id)
    assert "art" in {e.dataset for e in store.results.run_evaluations(run_id)}


def test_evaluation_jobs__live_like_runs_and_are_none(store, artifacts, finished_run):
    run_id = finished_run(store, artifacts)
    jobs = store.evaluation_jobs
    key = {"idempotency_key": "k", "body_hash": "h", "token_id": "t"}
    first = jobs.submit(ask(run_id), **key)
    assert jobs.submit(ask(run_id), **key) == first
    with pytest.raises(IdempotencyError):
        jobs.submit(ask(run_id), **key | {"body_hash": "other"})
    second = jobs.submit(ask(run_id, corruptions={"names": ["fog"]}, shifts={}), priority=3)
    assert [b.run_id for b in store.outbox.unsent()][:1] == [second]
    assert store.runs.page()[2] == 1
    assert store.runs.by_phase() == {"SUCCEEDED": 1}
    assert [s.runs for s in store.runs.suites()] == [1]
    assert store.runs.queue_depth() == 2
    with pytest.raises(NotFoundError):
        store.runs.summaries([first])
    with pytest.raises(NotFoundError):
        jobs.get(run_id)
    items, cursor, total = jobs.page(run_id=[run_id], limit=1)
    assert ([j.name for j in items], total) == (["on fog"], 2)
    items, cursor, _ = jobs.page(run_id=[run_id], limit=1, cursor=cursor)
    assert ([j.id for j in items], cursor) == ([first], None)
    assert jobs.page(run_id=["nobody"])[2] == jobs.page(phase=["FAILED"])[2] == 0
    assert jobs.request_cancel(first).phase == "CANCELLED"
    assert jobs.request_cancel(first).phase == "CANCELLED"
    assert jobs.retry(first).phase == "QUEUED"
    claim = store.claims.claim(first, **WORKER)
    assert claim is not None
    assert jobs.request_cancel(first).phase == "CANCELLING"
    assert store.claims.finish(first, claim.attempt, phase="CANCELLED")
    store.runs.delete(run_id)
    with pytest.raises(ConflictError, match="no finished run"):
        jobs.submit(ask(run_id))
    assert jobs.get(first).spec.runs == (run_id,)


def test_submit__keeps_to_the_quotas_of_owners(store, artifacts, finished_run):
    run_id = finished_run(store, artifacts)
    jobs = EvaluationJobs(store.engine, store.cursors, Quotas(queued=1))
    first = jobs.submit(ask(run_id), submitted_by="ada", request_id="asked")
    with pytest.raises(QueueFullError, match="1 runs of ada are waiting, and 1 may"):
        jobs.submit(ask(run_id), submitted_by="ada")
    jobs.submit(ask(run_id), submitted_by="ben")
    claim = store.claims.claim(first, **WORKER)
    assert claim.request_id == "asked"
    assert store.claims.finish(first, claim.attempt, phase="FAILED")
    jobs.submit(ask(run_id), submitted_by="ada")
    with pytest.raises(QueueFullError):
        jobs.retry(first)
