"""Runs as people see them: one for each request, cancelled, retried, deleted, listed."""

from functools import partial

import pytest

from backend.store.errors import ConflictError, IdempotencyError, QueueFullError
from backend.store.submitting import new_id
from calift_core.errors import NotFoundError
from calift_core.schema import records as r
from tests.backend.store.helpers import WORKER, claimed, everything, metric
from tests.conftest import (
    at_once,
    example_evaluation,
    example_predictions,
    example_spectrum,
    spec_of,
)


def test_cancel__waiting_run_at_once_and_repeatable(store):
    run_id = store.runs.submit(spec_of())
    first = store.runs.request_cancel(run_id)
    assert (first.phase, first.reason) == ("CANCELLED", "USER_CANCELLED")
    assert store.claims.claim(run_id, **WORKER) is None
    assert store.runs.request_cancel(run_id) == first


def test_cancel__working_run_is_told_and_ended_by_its_worker(store):
    claim = claimed(store)
    assert store.runs.request_cancel(claim.run_id).phase == "CANCELLING"
    assert store.runs.request_cancel(claim.run_id).phase == "CANCELLING"
    assert store.claims.heartbeat(claim.run_id, 1, ttl_s=60).cancel_requested
    assert store.records.record(claim.run_id, 1, [metric(1)]), "the checkpoint is not safe yet"
    assert store.runs.get(claim.run_id).phase == "CANCELLING"
    assert store.claims.finish(claim.run_id, 1, phase="CANCELLED", reason="USER_CANCELLED")
    assert store.runs.get(claim.run_id).phase == "CANCELLED"


def test_cancel__ended_run_stays_as_it_is(store):
    claim = claimed(store)
    store.claims.finish(claim.run_id, 1, phase="SUCCEEDED")
    before = everything(store)
    assert store.runs.request_cancel(claim.run_id).phase == "SUCCEEDED"
    assert everything(store) == before


def test_spec__is_that_of_the_whole_run_without_its_report(store):
    run_id = store.runs.submit(spec_of())
    assert store.runs.spec(run_id) == store.runs.get(run_id).spec
    with pytest.raises(NotFoundError, match="no run 'nobody'"):
        store.runs.spec("nobody")


def test_retry__queues_the_same_run_and_is_repeatable(store):
    claim = claimed(store)
    store.records.record(claim.run_id, 1, [metric(1), metric(2)])
    store.claims.finish(claim.run_id, 1, phase="FAILED", reason="OOM", message="no memory")
    run = store.runs.retry(claim.run_id)
    assert (run.phase, run.reason, run.message) == ("QUEUED", None, None)
    assert store.runs.retry(claim.run_id) == run
    assert len(store.outbox.unsent()) >= 1
    again = store.claims.claim(claim.run_id, **WORKER)
    assert again.previous_attempts == [1]
    assert not again.cancel_requested


def test_retry__refuses_success(store):
    claim = claimed(store)
    store.claims.finish(claim.run_id, 1, phase="SUCCEEDED")
    with pytest.raises(ConflictError, match="succeeded"):
        store.runs.retry(claim.run_id)


def test_delete__takes_every_row_and_refuses_working_runs(store):
    claim = claimed(store, tags=["t"])
    run_id = claim.run_id
    store.records.record(
        run_id,
        1,
        [
            metric(1),
            r.SpectrumRecord(step=1, spectrum=example_spectrum()),
            r.EvaluationRecord(
                evaluation=example_evaluation(example_predictions()), predictions="p"
            ),
            r.LogRecord(message="hello"),
        ],
    )
    store.files.add(run_id, 1, name="a", kind="other", sha256="2" * 64, size_bytes=1)
    with pytest.raises(ConflictError, match="Cancel it first"):
        store.runs.delete(run_id)
    store.claims.finish(run_id, 1, phase="SUCCEEDED", report={"summary": {}, "evaluations": []})
    assert store.runs.delete(run_id) == ["2" * 64]
    assert all(rows == [] for rows in everything(store).values())
    for call in (store.runs.get, store.runs.delete, store.runs.request_cancel, store.runs.retry):
        with pytest.raises(NotFoundError):
            call(run_id)


def test_submit__same_key_and_body_is_the_same_run(store):
    key = {"idempotency_key": "k", "body_hash": "b", "token_id": "t"}
    first = store.runs.submit(spec_of(), **key)
    assert store.runs.submit(spec_of(), **key) == first
    assert store.runs.submit(spec_of(), **key | {"token_id": "other"}) != first
    with pytest.raises(IdempotencyError):
        store.runs.submit(spec_of(), **key | {"body_hash": "c"})
    assert store.runs.page()[2] == 2


def test_submit__same_key_at_the_same_moment_is_one_run(store):
    send = partial(store.runs.submit, spec_of(), idempotency_key="k", body_hash="b")
    assert len(set(at_once(*[send] * 6))) == 1


def test_submit__queue_cap_counts_waiting_runs_of_the_token(store):
    first = store.runs.submit(spec_of(), token_id="t", max_queued=1)
    with pytest.raises(QueueFullError):
        store.runs.submit(spec_of(), token_id="t", max_queued=1)
    store.runs.submit(spec_of(), token_id="u", max_queued=1)
    assert store.claims.claim(first, **WORKER) is not None
    store.runs.submit(spec_of(), token_id="t", max_queued=1)


@pytest.mark.parametrize(
    "sort", ["created", "-created", "name", "-name", "id_accuracy", "-ood_ece", "sigma_min"]
)
def test_list__pages_make_up_the_whole_list(store, sort):
    for index in range(11):
        run_id = store.runs.submit(spec_of(name=f"run {index % 4}"))
        if index % 3:
            store.claims.claim(run_id, **WORKER)
            summary = {
                "id_accuracy": (index % 5) / 5,
                "ood_ece": -index / 7,
                "sigma_min": 0.1 * index,
            }
            store.claims.finish(run_id, 1, phase="SUCCEEDED", report={"summary": summary})
    whole, none, total = store.runs.page(sort=sort, limit=200)
    assert (none, total, len(whole)) == (None, 11, 11)
    walked, cursor, _ = store.runs.page(sort=sort, limit=3)
    while cursor:
        page, cursor, count = store.runs.page(sort=sort, cursor=cursor, limit=3)
        assert count == 11
        walked += page
    assert walked == whole
    key = sort.lstrip("-")
    if key not in ("created", "name"):
        values = [getattr(run.summary, key) if run.summary else None for run in whole]
        numbers = [v for v in values if v is not None]
        assert values[: len(numbers)] == sorted(numbers, reverse=sort.startswith("-"))


def test_list__filters(store):
    a = store.runs.submit(spec_of(name="alpha", tags=["x", "y"], notes="first_try at 50%"))
    b = store.runs.submit(spec_of(name="beta", method={"kind": "flyp"}, tags=["x"]))
    c = store.runs.submit(spec_of(name="gamma", suite={"id": "folder:/data"}))
    store.runs.patch(c, archived=True)
    store.runs.request_cancel(b)

    def found(**filters):
        return {run.id for run in store.runs.page(**filters)[0]}

    assert found() == {a, b}
    assert found(archived="any") == {a, b, c}
    assert found(archived=True) == {c}
    assert found(tag=("x",)) == {a, b}
    assert found(tag=("x", "y")) == {a}
    assert found(method=("flyp",)) == {b}
    assert found(phase=("CANCELLED", "FAILED")) == {b}
    assert found(suite=("folder:/data",), archived="any") == {c}
    assert found(q="ALPHA first") == {a}
    assert found(q="50%") == {a}
    assert found(q="5_%") == set()
    assert found(q=b[:8]) == {b}
    assert found(model=("calift-tiny/typefaces",)) == {a, b}


def test_new_id__is_text_in_yaml(monkeypatch):
    drawn = iter(["123456789012", "12e456789012", "12e45678901f"])
    monkeypatch.setattr("secrets.token_hex", lambda _n: next(drawn))
    assert new_id() == "12e45678901f"
