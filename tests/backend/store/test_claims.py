"""A run in the hands of workers: who gets it, in which order, what a lost claim may write."""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.store.claims import MAX_STORAGE_REQUEUES
from backend.store.engine import open_engine
from backend.store.stores import Stores
from calift_core.schema import records as r
from calift_core.schema.wire.runs import Progress
from tests.backend.store.helpers import WORKER, claimed, everything, expire, metric, send_all
from tests.conftest import (
    at_once,
    example_evaluation,
    example_predictions,
    example_spectrum,
    spec_of,
)


def test_claim__of_two_at_once_one_wins(database_url):
    stores = [Stores.on(open_engine(database_url)) for _ in range(4)]
    try:
        for _ in range(8):
            run_id = stores[0].runs.submit(spec_of())
            take = [partial(store.claims.claim, run_id, **WORKER) for store in stores]
            assert [claim.attempt for claim in at_once(*take) if claim] == [1]
    finally:
        for store in stores:
            store.close()


def test_claim__of_unknown_or_ended_run_gives_nothing(store):
    claim = claimed(store)
    assert store.claims.finish(claim.run_id, 1, phase="FAILED", reason="OOM")
    assert store.claims.claim(claim.run_id, **WORKER) is None
    assert store.claims.claim("nobody", **WORKER) is None


OLD_WRITES: dict[str, Callable[[Stores, str, int], Any]] = {
    "old points": lambda s, i, a: s.records.restore(i, a, [metric(3)]),
    "heartbeat": lambda s, i, a: s.claims.heartbeat(i, a, ttl_s=60, progress=Progress(step=1)).held,
    "metrics": lambda s, i, a: s.records.record(i, a, [metric(3)]),
    "resumed": lambda s, i, a: s.records.record(i, a, [r.ResumedRecord(step=0)]),
    "evaluation": lambda s, i, a: s.records.record(
        i,
        a,
        [r.EvaluationRecord(evaluation=example_evaluation(example_predictions()), predictions="p")],
    ),
    "spectrum": lambda s, i, a: s.records.record(
        i, a, [r.SpectrumRecord(step=1, spectrum=example_spectrum())]
    ),
    "log": lambda s, i, a: s.records.append_log(i, a, "late"),
    "artifact": lambda s, i, a: s.files.add(
        i, a, name="n", kind="other", sha256="0" * 64, size_bytes=1
    ),
    "requeue": lambda s, i, a: s.claims.requeue(i, a),
    "succeed": lambda s, i, a: s.claims.finish(i, a, phase="SUCCEEDED", report={"summary": {}}),
    "fail": lambda s, i, a: s.claims.finish(i, a, phase="FAILED", reason="OOM"),
}


@pytest.mark.parametrize("after", ["swept", "claimed again", "finished", "future"])
def test_fence__writes_of_an_attempt_that_lost_its_run_change_nothing(store, after):
    claim = claimed(store)
    run_id = claim.run_id
    store.records.record(run_id, 1, [metric(1)])
    store.files.add(run_id, 1, name="kept", kind="other", sha256="1" * 64, size_bytes=1)
    attempt = 1
    if after == "finished":
        assert store.claims.finish(run_id, 1, phase="SUCCEEDED")
    elif after == "future":
        attempt = 2
    else:
        expire(store, run_id)
        assert [s.action for s in store.reaper.sweep()] == ["requeued"]
        if after == "claimed again":
            again = store.claims.claim(run_id, **WORKER)
            assert (again.attempt, again.previous_attempts) == (2, [1])
    before = everything(store)
    for name, write in OLD_WRITES.items():
        assert write(store, run_id, attempt) is False, name
        assert everything(store) == before, name


def test_fence__lets_the_holder_through(store):
    for name, write in OLD_WRITES.items():
        claim = claimed(store)
        assert write(store, claim.run_id, claim.attempt) is True, name


@pytest.mark.parametrize("how", ["drained", "lost", "swept", "no room"])
def test_line__a_run_that_was_given_back_goes_before_those_submitted_after_it(store, how):
    before = store.runs.submit(spec_of())
    assert store.claims.claim(before, **WORKER) is not None
    behind = [store.runs.submit(spec_of()) for _ in range(3)]
    send_all(store)
    if how == "swept":
        expire(store, before)
        store.reaper.sweep()
    else:
        assert store.claims.requeue(before, 1, lost=how == "lost", setback=how == "no room")
    # Its message comes last, and the first one wakes a worker for it.
    claim = store.claims.claim_next(["cpu"], message_run=behind[0], **WORKER)
    assert (claim.run_id, claim.attempt) == (before, 2)
    again = store.claims.claim_next(["cpu"], message_run=behind[1], **WORKER)
    assert again.run_id == behind[0]


def test_line__a_retried_run_goes_to_the_end(store):
    first = claimed(store).run_id
    second = store.runs.submit(spec_of())
    store.claims.finish(first, 1, phase="FAILED", reason="OOM")
    store.runs.retry(first)
    taken = [store.claims.claim_next(["cpu"], message_run=None, **WORKER) for _ in range(2)]
    assert [c.run_id for c in taken if c] == [second, first]


def test_line__who_may_take_what(store):
    runs = {
        device: store.runs.submit(spec_of(train={"device": device}))
        for device in ("cuda", "mps", "auto", "cpu")
    }

    def takes(queues, message_run=None):
        claim = store.claims.claim_next(queues, message_run=message_run, **WORKER)
        if claim is None:
            return None
        assert store.claims.requeue(claim.run_id, claim.attempt)
        return next(device for device, run_id in runs.items() if run_id == claim.run_id)

    store.workers.seen("m", host="h", queues=["gpu-multi-2"], device="GPUs")
    assert takes(["gpu"]) == "cuda"
    assert takes(["mps", "cpu"]) == "mps"
    assert takes(["cpu"]) == "auto"
    store.workers.seen("w", host="h", queues=["gpu", "cpu"], device="a GPU")
    assert takes(["cpu"]) == "cpu"
    assert takes(["cpu"], message_run=runs["auto"]) == "auto"  # it was sent when there was no GPU
    store.workers.seen("w", host="h", queues=["gpu", "cpu"], device="a GPU", trouble="no room")
    assert takes(["cpu"]) == "auto"
    assert takes(["another"]) is None


@settings(suppress_health_check=list(HealthCheck))
@given(
    devices=st.lists(st.sampled_from(["cpu", "cuda", "auto"]), min_size=1, max_size=6),
    moves=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["gpu", "cpu"]), st.integers(0, 99)),
        max_size=30,
    ),
)
def test_line__no_idle_worker_sleeps_beside_a_run_that_it_could_take(
    sqlite_template, devices, moves
):
    """Whatever order messages are sent and heard in, and whoever answers them."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(sqlite_template, Path(folder) / "line.db")
        store = Stores.on(open_engine(f"sqlite:///{folder}/line.db"))
        serves = {"gpu": ["gpu", "cpu"], "cpu": ["cpu"]}
        for name, queues in serves.items():
            store.workers.seen(name, host="h", queues=queues, device=name)
        broker = {"gpu": [], "cpu": []}
        work = {"gpu": None, "cpu": None}

        def relay():
            for row in store.outbox.take():
                broker[row.queue].append(row.run_id)
                store.outbox.mark_sent(row.id)

        def hear(worker, choice=0):
            """An idle worker takes a message, if one is there for it, and perhaps a run."""
            messages = [(q, i) for q in serves[worker] for i in range(len(broker[q]))]
            if work[worker] is not None or not messages:
                return False
            queue, at = messages[choice % len(messages)]
            message_run = broker[queue].pop(at)
            work[worker] = store.claims.claim_next(
                serves[worker], message_run=message_run, **WORKER
            )
            return True

        def end(worker, well):
            claim = work[worker]
            if claim is None:
                return
            if well:
                assert store.claims.finish(claim.run_id, claim.attempt, phase="SUCCEEDED")
            else:
                assert store.claims.requeue(claim.run_id, claim.attempt, lost=True)
            work[worker] = store.claims.claim_next(serves[worker], message_run=None, **WORKER)

        for index, device in enumerate(devices):
            store.runs.submit(spec_of(train={"device": device}), priority=index % 2)
        relay()
        for move, worker, choice in moves:
            if move == 0:
                device = ("cpu", "cuda", "auto")[choice % 3]
                store.runs.submit(spec_of(train={"device": device}), priority=choice % 2)
            elif move == 1:
                relay()
            elif move == 2:
                hear(worker, choice)
            else:
                end(worker, well=choice % 2 == 0)
        relay()
        while hear("cpu") or hear("gpu"):
            relay()
        for worker, claim in work.items():
            if claim is None:
                assert store.claims.claim_next(serves[worker], message_run=None, **WORKER) is None
        store.close()


def test_waiting__says_what_a_run_waits_for(store):
    runs = {
        device: store.runs.submit(spec_of(train={"device": device}))
        for device in ("cuda", "mps", "auto", "cpu")
    }

    def waiting():
        return {device: store.runs.get(run_id).waiting for device, run_id in runs.items()}

    assert all("No worker has reported in" in words for words in waiting().values())
    store.workers.seen("w", host="box", queues=["cpu"], device="cpu")
    words = waiting()
    assert "CUDA device" in words["cuda"]
    assert "none has reported in" in words["cuda"]
    assert "Apple GPU" in words["mps"]
    assert words["auto"] == words["cpu"] == ""
    assert store.workers.why_waits(spec_of(train={"device": "cuda"})) == words["cuda"]
    store.workers.seen("w", host="box", queues=["cpu"], device="cpu", run_id="other")
    assert "busy" in waiting()["auto"]
    store.workers.seen("w", host="box", queues=["cpu"], device="cpu", trouble="1 MiB is free")
    assert "box: 1 MiB is free" in waiting()["cpu"]
    assert store.claims.claim(runs["cpu"], **WORKER) is not None
    assert store.runs.get(runs["cpu"]).waiting == ""


def test_attempts__drains_and_setbacks_cost_none(store):
    run_id = store.runs.submit(spec_of(), max_attempts=3)
    for attempt in (1, 2, 3):
        assert store.claims.claim(run_id, **WORKER) is not None
        assert store.claims.requeue(run_id, attempt, setback=attempt == 3, reason="DISK_FULL")
    assert store.claims.claim(run_id, **WORKER) is not None
    run = store.runs.get(run_id)
    assert (run.attempt, run.lost_attempts, run.drain_requeues, run.storage_requeues) == (
        4,
        0,
        2,
        1,
    )
    assert run.attempts.startswith("1 of 3, stopped with its worker twice")
    assert store.claims.requeue(run_id, 4, lost=True)
    assert store.runs.get(run_id).attempts.startswith("2 of 3")


def test_attempts__a_run_that_fits_nowhere_fails_at_last(store):
    run_id = store.runs.submit(spec_of(), max_attempts=20)
    for attempt in range(1, MAX_STORAGE_REQUEUES + 1):
        assert store.claims.claim(run_id, **WORKER) is not None
        assert store.claims.requeue(
            run_id, attempt, setback=True, reason="DISK_FULL", message="full", hint="Free some."
        )
    run = store.runs.get(run_id)
    assert (run.phase, run.reason, run.message, run.hint) == (
        "FAILED", "DISK_FULL", "full", "Free some.",
    )  # fmt: skip
    assert store.runs.retry(run_id).storage_requeues == 0


def test_requeue__of_a_run_that_was_cancelled_ends_it(store):
    claim = claimed(store)
    store.runs.request_cancel(claim.run_id)
    assert store.claims.requeue(claim.run_id, 1)
    assert store.runs.get(claim.run_id).phase == "CANCELLED"


def test_requeue__enqueues_for_the_next_worker(store):
    run_id = store.runs.submit(spec_of(), priority=2)
    for row in store.outbox.unsent():
        store.outbox.mark_sent(row.id)
    assert store.claims.claim(run_id, **WORKER) is not None
    assert store.claims.requeue(run_id, 1, reason="DRAINED")
    run = store.runs.get(run_id)
    assert (run.phase, run.reason, run.worker) == ("QUEUED", "DRAINED", None)
    assert [(row.run_id, row.priority) for row in store.outbox.unsent()] == [(run_id, 2)]


def test_finish__names_no_spectrum_final_that_did_not_say_so(store):
    run_id = claimed(store).run_id
    store.records.record(
        run_id, 1, [r.SpectrumRecord(step=s, spectrum=example_spectrum()) for s in (1, 2)]
    )
    store.claims.finish(run_id, 1, phase="SUCCEEDED")
    assert [(s.step, s.final) for s in store.history.spectra(run_id)] == [(1, False), (2, False)]


def test_finish__evaluations_that_the_report_does_not_know_are_dropped(store):
    run_id = claimed(store).run_id
    evaluations = [
        example_evaluation(example_predictions(dataset=name)) for name in ("kept", "stale")
    ]
    store.records.record(
        run_id, 1, [r.EvaluationRecord(evaluation=e, predictions="p") for e in evaluations]
    )
    report = {"summary": {"id_ece": 0.1}, "evaluations": [evaluations[0].model_dump(mode="json")]}
    store.claims.finish(run_id, 1, phase="SUCCEEDED", report=report)
    assert [e.dataset for e in store.results.run_evaluations(run_id)] == ["kept"]
    summary = store.runs.get(run_id).summary
    assert summary.id_ece == 0.1


@pytest.mark.parametrize("words", ["a\0b", "\ud800", "ü\0\udfff"])
def test_finish__a_runners_last_words_may_be_anything(store, words):
    ends = [
        lambda i: store.claims.finish(
            i, 1, phase="FAILED", reason=words, message=words, hint=words
        ),
        lambda i: store.claims.requeue(
            i, 1, reason="RUNNER_LOST", message=words, hint=words, lost=True
        ),
        lambda i: store.records.record(i, 1, [metric(1, name=words), r.LogRecord(message=words)]),
        lambda i: store.records.record(i, 1, [r.PhaseRecord(phase="training", detail=words)]),
        lambda i: store.records.append_log(i, 1, words),
    ]
    for end in ends:
        run_id = store.runs.submit(spec_of(), max_attempts=1)
        assert store.claims.claim(run_id, **WORKER) is not None
        assert end(run_id)
        run = store.runs.get(run_id)
        assert "\0" not in f"{run.message}{run.hint}{run.reason}"
        store.history.events_after(run_id, 0)
        store.history.logs(run_id)
