"""The job engine: claims, fences, sweeps, and what can never happen."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from backend.store.claims import MAX_SETBACKS, Claim
from backend.store.engine import open_engine, writing
from backend.store.errors import ConflictError, IdempotencyError, NotFoundError, QueueFullError
from backend.store.runs import RunFilters
from backend.store.states import WORKING_PHASES
from backend.store.stores import Stores
from calift_core.errors import SpecError
from calift_core.schema import records as r
from calift_core.schema.wire import TERMINAL_PHASES, Progress
from tests.conftest import CI, example_evaluation, example_predictions, example_spectrum, spec_of

WORKER = {"worker_id": "w", "ttl_s": 60.0}


def expire(store: Stores, run_id: str) -> None:
    """Let a lease run out, as if its time had gone by."""
    with writing(store.engine) as connection:
        connection.execute(
            text("UPDATE runs SET lease_expires = 1.0 WHERE id = :id AND lease_expires > 0"),
            {"id": run_id},
        )


def age_queue(store: Stores, seconds: float) -> None:
    with writing(store.engine) as connection:
        connection.execute(
            text("UPDATE runs SET queued_at = queued_at - :s, dispatched_at = dispatched_at - :s"),
            {"s": seconds},
        )


def everything(store: Stores) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables of runs."""
    tables = [
        "runs", "events", "metrics", "evaluations", "spectra", "reports", "artifacts",
        "log_chunks", "outbox",
    ]  # fmt: skip
    with store.engine.connect() as connection:
        return {
            t: sorted(map(str, connection.execute(text(f"SELECT * FROM {t}")).all()))
            for t in tables
        }


def claimed(store: Stores, **spec: Any) -> Claim:
    claim = store.claims.claim(store.runs.submit(spec_of(**spec)), **WORKER)
    assert claim is not None
    return claim


def metric(step: int, value: float = 1.0, name: str = "loss") -> r.MetricsRecord:
    return r.MetricsRecord(step=step, epoch=step / 10, values={name: value})


def steps(store: Stores, run_id: str) -> list[int]:
    series = store.history.metrics(run_id).series
    return series[0].steps if series else []


# ------------------------------------------------------------------------------- life cycle


def test_life__from_queue_to_success(store: Stores) -> None:
    run_id = store.runs.submit(spec_of(tags=["x"]), priority=3)
    assert store.runs.get(run_id).phase == "QUEUED"
    (row,) = store.doorbells.unsent()
    assert (row.run_id, row.queue, row.priority) == (run_id, "cpu", 3)
    store.doorbells.mark_sent(row.id)
    assert store.doorbells.unsent() == []

    claim = store.claims.claim(run_id, **WORKER)
    assert claim is not None
    assert (claim.attempt, claim.previous_attempts) == (1, [])
    assert claim.spec["method"]["kind"] == "carot"
    assert store.runs.get(run_id).phase == "STARTING"
    assert store.records.record(run_id, 1, [r.PhaseRecord(phase="training")])
    assert store.runs.get(run_id).phase == "RUNNING"
    progress = Progress(phase="training", step=3, total_steps=9)
    assert store.claims.heartbeat(run_id, 1, ttl_s=60, progress=progress).held
    assert store.runs.get(run_id).progress == progress
    assert store.claims.finish(run_id, 1, phase="SUCCEEDED")
    run = store.runs.get(run_id)
    assert run.phase == "SUCCEEDED"
    assert run.finished_at is not None
    states = [e.data["phase"] for e in store.history.events_after(run_id)[0] if e.kind == "state"]
    assert states == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]


def test_claim__of_two_at_once_one_wins(database_url: str) -> None:
    stores = [Stores.on(open_engine(database_url)) for _ in range(4)]
    try:
        for _ in range(8):
            run_id = stores[0].runs.submit(spec_of())
            won: list[Claim] = []
            gate = threading.Barrier(len(stores))

            def contend(
                store: Stores, run_id: str = run_id, won: list[Claim] = won, gate: Any = gate
            ) -> None:
                gate.wait()
                claim = store.claims.claim(run_id, **WORKER)
                if claim is not None:
                    won.append(claim)

            threads = [threading.Thread(target=contend, args=(s,)) for s in stores]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [c.attempt for c in won] == [1]
    finally:
        for store in stores:
            store.close()


def test_claim__of_unknown_or_ended_run_gives_nothing(store: Stores) -> None:
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
def test_fence__writes_of_an_attempt_that_lost_its_run_change_nothing(
    store: Stores, after: str
) -> None:
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
        assert [s.action for s in store.sweeper.sweep()] == ["requeued"]
        if after == "claimed again":
            again = store.claims.claim(run_id, **WORKER)
            assert again is not None
            assert (again.attempt, again.previous_attempts) == (2, [1])
    before = everything(store)
    for name, write in OLD_WRITES.items():
        assert write(store, run_id, attempt) is False, name
        assert everything(store) == before, name


def test_fence__lets_the_holder_through(store: Stores) -> None:
    for name, write in OLD_WRITES.items():
        claim = claimed(store)
        assert write(store, claim.run_id, claim.attempt) is True, name


# ---------------------------------------------------------------------------------- sweeper


def test_sweep__leaves_a_live_lease(store: Stores) -> None:
    claim = claimed(store)
    assert store.sweeper.sweep() == []
    assert store.runs.get(claim.run_id).phase == "STARTING"


def test_sweep__queues_again_until_the_attempts_are_spent(store: Stores) -> None:
    run_id = store.runs.submit(spec_of(), max_attempts=2)
    for attempt, action in ((1, "requeued"), (2, "failed")):
        for row in store.doorbells.unsent():
            store.doorbells.mark_sent(row.id)
        assert store.claims.claim(run_id, **WORKER) is not None
        expire(store, run_id)
        assert [(s.attempt, s.action) for s in store.sweeper.sweep()] == [(attempt, action)]
        assert bool(store.doorbells.unsent()) is (action == "requeued")
    run = store.runs.get(run_id)
    assert (run.phase, run.reason) == ("FAILED", "WORKER_LOST")
    assert run.message
    assert run.hint
    assert store.sweeper.sweep() == []


def test_sweep__drains_are_not_losses(store: Stores) -> None:
    run_id = store.runs.submit(spec_of(), max_attempts=1)
    for attempt in (1, 2, 3):
        claim = store.claims.claim(run_id, **WORKER)
        assert claim is not None
        assert claim.attempt == attempt
        assert store.claims.requeue(run_id, attempt)
        assert store.runs.get(run_id).phase == "QUEUED"
    assert store.claims.claim(run_id, **WORKER) is not None
    expire(store, run_id)
    assert [s.action for s in store.sweeper.sweep()] == ["failed"]


def test_sweep__cancelled_run_of_a_lost_worker_ends_cancelled(store: Stores) -> None:
    claim = claimed(store)
    assert store.runs.request_cancel(claim.run_id).phase == "CANCELLING"
    expire(store, claim.run_id)
    assert [s.action for s in store.sweeper.sweep()] == ["cancelled"]
    assert store.runs.get(claim.run_id).phase == "CANCELLED"


def test_sweep__heartbeat_in_time_saves_the_lease(store: Stores) -> None:
    claim = claimed(store)
    expire(store, claim.run_id)
    assert store.claims.heartbeat(claim.run_id, 1, ttl_s=60).held
    assert store.sweeper.sweep() == []


def test_sweep__heartbeat_after_the_sweeper_looked_saves_the_lease(store: Stores) -> None:
    claim = claimed(store)
    expire(store, claim.run_id)
    assert store.claims.heartbeat(claim.run_id, 1, ttl_s=60).held
    # What `sweep` does with a run that it had found expired a moment before.
    assert store.sweeper._expire(claim.run_id, 1) is None
    assert store.runs.get(claim.run_id).phase == "STARTING"


def test_sweep__rings_again_for_a_forgotten_run_while_a_worker_is_idle(store: Stores) -> None:
    run_id = store.runs.submit(spec_of())
    for row in store.doorbells.unsent():
        store.doorbells.mark_sent(row.id)
    store.workers.seen("w", host="h", queues=["cpu"], device="cpu")
    assert store.sweeper.sweep() == []
    age_queue(store, 130)
    assert [s.action for s in store.sweeper.sweep()] == ["redispatched"]
    assert [row.run_id for row in store.doorbells.unsent()] == [run_id]
    assert store.sweeper.sweep() == []


def ring_all(store: Stores) -> None:
    for row in store.doorbells.unsent(1000):
        store.doorbells.mark_sent(row.id)


def test_sweep__rings_for_nobody_who_could_not_come(store: Stores) -> None:
    gpu = store.runs.submit(spec_of(train={"device": "cuda"}))
    apple = store.runs.submit(spec_of(train={"device": "mps"}))
    ring_all(store)
    store.workers.seen("idle", host="h", queues=["cpu"], device="cpu")
    store.workers.seen("busy", host="h", queues=["gpu", "cpu"], device="cuda", run_id="other")
    store.workers.seen("out", host="h", queues=["gpu", "mps"], device="cuda", trouble="no room")
    age_queue(store, 100_000)
    assert store.sweeper.sweep() == []
    store.workers.seen("free", host="h", queues=["gpu", "cpu"], device="cuda")
    assert [(s.run_id, s.action) for s in store.sweeper.sweep()] == [(gpu, "redispatched")]
    store.workers.seen("mac", host="m", queues=["mps", "cpu"], device="mps")
    assert [(s.run_id, s.action) for s in store.sweeper.sweep()] == [(apple, "redispatched")]


def test_sweep__one_bell_for_each_idle_worker_is_enough(store: Stores) -> None:
    runs = [store.runs.submit(spec_of()) for _ in range(20)]
    ring_all(store)
    for name in ("a", "b"):
        store.workers.seen(name, host="h", queues=["cpu"], device="cpu")
    age_queue(store, 130)
    # The messages were lost; however many look, two wake the two.
    assert [s.run_id for _ in range(5) for s in store.sweeper.sweep()] == runs[:2]
    ring_all(store)
    assert store.sweeper.sweep() == []


# ------------------------------------------------------------------------------------- line


def test_line__higher_priority_first_then_who_came_first(store: Stores) -> None:
    late = [store.runs.submit(spec_of(), priority=p) for p in (0, 3, 0, -2, 3)]
    order = [late[1], late[4], late[0], late[2], late[3]]
    taken = [store.claims.claim_next(["cpu"], bell=None, **WORKER) for _ in range(6)]
    assert [c.run_id for c in taken if c] == order
    assert taken[-1] is None


@pytest.mark.parametrize("how", ["drained", "lost", "swept", "no room"])
def test_line__a_run_that_was_given_back_goes_before_those_submitted_after_it(
    store: Stores, how: str
) -> None:
    before = store.runs.submit(spec_of())
    assert store.claims.claim(before, **WORKER) is not None
    behind = [store.runs.submit(spec_of()) for _ in range(3)]
    ring_all(store)
    if how == "swept":
        expire(store, before)
        store.sweeper.sweep()
    else:
        assert store.claims.requeue(before, 1, lost=how == "lost", setback=how == "no room")
    # Its bell rings last, and the first one wakes a worker for it.
    claim = store.claims.claim_next(["cpu"], bell=behind[0], **WORKER)
    assert claim is not None
    assert (claim.run_id, claim.attempt) == (before, 2)
    again = store.claims.claim_next(["cpu"], bell=behind[1], **WORKER)
    assert again is not None
    assert again.run_id == behind[0]


def test_line__a_retried_run_goes_to_the_end(store: Stores) -> None:
    first = claimed(store).run_id
    second = store.runs.submit(spec_of())
    store.claims.finish(first, 1, phase="FAILED", reason="OOM")
    store.runs.retry(first)
    taken = [store.claims.claim_next(["cpu"], bell=None, **WORKER) for _ in range(2)]
    assert [c.run_id for c in taken if c] == [second, first]


def test_line__who_may_take_what(store: Stores) -> None:
    runs = {
        device: store.runs.submit(spec_of(train={"device": device}))
        for device in ("cuda", "mps", "auto", "cpu")
    }

    def takes(queues: list[str], bell: str | None = None) -> str | None:
        claim = store.claims.claim_next(queues, bell=bell, **WORKER)
        if claim is None:
            return None
        assert store.claims.requeue(claim.run_id, claim.attempt)
        return next(device for device, run_id in runs.items() if run_id == claim.run_id)

    assert takes(["gpu"]) == "cuda"
    assert takes(["mps", "cpu"]) == "mps"
    assert takes(["cpu"]) == "auto"
    store.workers.seen("w", host="h", queues=["gpu", "cpu"], device="a GPU")
    assert takes(["cpu"]) == "cpu"
    assert takes(["cpu"], bell=runs["auto"]) == "auto"  # it was sent when there was no GPU
    store.workers.seen("w", host="h", queues=["gpu", "cpu"], device="a GPU", trouble="no room")
    assert takes(["cpu"]) == "auto"
    assert takes(["another"]) is None


@settings(max_examples=100 if CI else 30, suppress_health_check=list(HealthCheck))
@given(
    devices=st.lists(st.sampled_from(["cpu", "cuda", "auto"]), min_size=1, max_size=6),
    moves=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["gpu", "cpu"]), st.integers(0, 99)),
        max_size=30,
    ),
)
def test_line__no_idle_worker_sleeps_beside_a_run_that_it_could_take(
    sqlite_template: Path, devices: list[str], moves: list[tuple[int, str, int]]
) -> None:
    """Whatever order bells are rung and heard in, and whoever answers them."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(sqlite_template, Path(folder) / "line.db")
        store = Stores.on(open_engine(f"sqlite:///{folder}/line.db"))
        serves = {"gpu": ["gpu", "cpu"], "cpu": ["cpu"]}
        for name, queues in serves.items():
            store.workers.seen(name, host="h", queues=queues, device=name)
        broker: dict[str, list[str]] = {"gpu": [], "cpu": []}
        work: dict[str, Claim | None] = {"gpu": None, "cpu": None}

        def relay() -> None:
            for row in store.doorbells.take():
                broker[row.queue].append(row.run_id)
                store.doorbells.mark_sent(row.id)

        def hear(worker: str, choice: int = 0) -> bool:
            """An idle worker takes a message, if one is there for it, and perhaps a run."""
            bells = [(q, i) for q in serves[worker] for i in range(len(broker[q]))]
            if work[worker] is not None or not bells:
                return False
            queue, at = bells[choice % len(bells)]
            bell = broker[queue].pop(at)
            work[worker] = store.claims.claim_next(serves[worker], bell=bell, **WORKER)
            return True

        def end(worker: str, well: bool) -> None:
            claim = work[worker]
            if claim is None:
                return
            if well:
                assert store.claims.finish(claim.run_id, claim.attempt, phase="SUCCEEDED")
            else:
                assert store.claims.requeue(claim.run_id, claim.attempt, lost=True)
            work[worker] = store.claims.claim_next(serves[worker], bell=None, **WORKER)

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
                assert store.claims.claim_next(serves[worker], bell=None, **WORKER) is None
        store.close()


@pytest.mark.parametrize(
    ("device", "first_is_rung", "left"),
    [
        ("cpu", True, ["cpu"]),  # CPU workers heard nothing
        ("cpu", False, ["cpu"]),
        ("cuda", False, ["gpu"]),
        ("cuda", True, []),  # the first run's bell wakes a worker for the second
    ],
)
def test_line__a_bell_that_woke_a_worker_for_another_run_is_not_lost(
    store: Stores, device: str, first_is_rung: bool, left: list[str]
) -> None:
    first = store.runs.submit(spec_of(train={"device": "cuda"}))
    second = store.runs.submit(spec_of(train={"device": device}))
    for row in store.doorbells.unsent():
        if first_is_rung or row.run_id == second:
            store.doorbells.mark_sent(row.id)
    claim = store.claims.claim_next(["gpu", "cpu"], bell=second, **WORKER)
    assert claim is not None
    assert claim.run_id == first
    assert [(row.run_id, row.queue) for row in store.doorbells.unsent()] == [
        (second, q) for q in left
    ]


def test_waiting__says_what_a_run_waits_for(store: Stores) -> None:
    runs = {
        device: store.runs.submit(spec_of(train={"device": device}))
        for device in ("cuda", "mps", "auto", "cpu")
    }

    def waiting() -> dict[str, str]:
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


def test_attempts__drains_and_setbacks_cost_none(store: Stores) -> None:
    run_id = store.runs.submit(spec_of(), max_attempts=3)
    for attempt in (1, 2, 3):
        assert store.claims.claim(run_id, **WORKER) is not None
        assert store.claims.requeue(run_id, attempt, setback=attempt == 3, reason="DISK_FULL")
    assert store.claims.claim(run_id, **WORKER) is not None
    run = store.runs.get(run_id)
    assert (run.attempt, run.losses, run.drains, run.setbacks) == (4, 0, 2, 1)
    assert run.attempts.startswith("1 of 3, stopped with its worker twice")
    assert store.claims.requeue(run_id, 4, lost=True)
    assert store.runs.get(run_id).attempts.startswith("2 of 3")


def test_attempts__a_run_that_fits_nowhere_fails_at_last(store: Stores) -> None:
    run_id = store.runs.submit(spec_of(), max_attempts=20)
    for attempt in range(1, MAX_SETBACKS + 1):
        assert store.claims.claim(run_id, **WORKER) is not None
        assert store.claims.requeue(
            run_id, attempt, setback=True, reason="DISK_FULL", message="full", hint="Free some."
        )
    run = store.runs.get(run_id)
    assert (run.phase, run.reason, run.message, run.hint) == (
        "FAILED", "DISK_FULL", "full", "Free some.",
    )  # fmt: skip
    assert store.runs.retry(run_id).setbacks == 0


def test_outbox__forgets_runs_that_wait_no_more(store: Stores) -> None:
    run_id = store.runs.submit(spec_of())
    store.runs.request_cancel(run_id)
    assert store.doorbells.unsent() == []
    store.sweeper.sweep()
    assert everything(store)["outbox"] == []


def test_outbox__urgent_first_and_devices_have_their_queues(store: Stores) -> None:
    low = store.runs.submit(spec_of(), priority=-1)
    gpu = store.runs.submit(spec_of(train={"device": "cuda"}), priority=5)
    cpu = store.runs.submit(spec_of(train={"device": "cpu"}))
    assert [(row.run_id, row.queue) for row in store.doorbells.unsent()] == [
        (gpu, "gpu"),
        (cpu, "cpu"),
        (low, "cpu"),
    ]
    store.workers.seen("w", host="h", queues=["gpu", "cpu"], device="a GPU")
    assert [row.queue for row in store.doorbells.unsent()] == ["gpu", "cpu", "gpu"]
    assert [row.run_id for row in store.doorbells.unsent(limit=1)] == [gpu]


def test_outbox__one_relay_holds_what_it_rings_and_a_dead_one_loses_it(store: Stores) -> None:
    runs = [store.runs.submit(spec_of()) for _ in range(3)]
    held = store.doorbells.take(2)
    assert [row.run_id for row in held] == runs[:2]
    (rest,) = store.doorbells.take()
    assert rest.run_id == runs[2]
    assert store.doorbells.take() == []
    store.doorbells.mark_sent(held[0].id)
    store.doorbells.give_back([held[0].id, rest.id])  # the broker went away
    assert [row.run_id for row in store.doorbells.take()] == [runs[2]]
    with writing(store.engine) as connection:  # the relay died, and a minute went by
        connection.execute(text("UPDATE outbox SET held_until = held_until - 61"))
    assert [row.run_id for row in store.doorbells.take()] == runs[1:]


# ------------------------------------------------------------------- cancel, retry, delete


def test_cancel__waiting_run_at_once_and_repeatable(store: Stores) -> None:
    run_id = store.runs.submit(spec_of())
    first = store.runs.request_cancel(run_id)
    assert (first.phase, first.reason) == ("CANCELLED", "USER_CANCELLED")
    assert store.claims.claim(run_id, **WORKER) is None
    assert store.runs.request_cancel(run_id) == first


def test_cancel__working_run_is_told_and_ended_by_its_worker(store: Stores) -> None:
    claim = claimed(store)
    assert store.runs.request_cancel(claim.run_id).phase == "CANCELLING"
    assert store.runs.request_cancel(claim.run_id).phase == "CANCELLING"
    assert store.claims.heartbeat(claim.run_id, 1, ttl_s=60).cancel_requested
    assert store.records.record(claim.run_id, 1, [metric(1)]), "the checkpoint is not safe yet"
    assert store.runs.get(claim.run_id).phase == "CANCELLING"
    assert store.claims.finish(claim.run_id, 1, phase="CANCELLED", reason="USER_CANCELLED")
    assert store.runs.get(claim.run_id).phase == "CANCELLED"


def test_cancel__ended_run_stays_as_it_is(store: Stores) -> None:
    claim = claimed(store)
    store.claims.finish(claim.run_id, 1, phase="SUCCEEDED")
    before = everything(store)
    assert store.runs.request_cancel(claim.run_id).phase == "SUCCEEDED"
    assert everything(store) == before


def test_requeue__of_a_run_that_was_cancelled_ends_it(store: Stores) -> None:
    claim = claimed(store)
    store.runs.request_cancel(claim.run_id)
    assert store.claims.requeue(claim.run_id, 1)
    assert store.runs.get(claim.run_id).phase == "CANCELLED"


def test_requeue__rings_for_the_next_worker(store: Stores) -> None:
    run_id = store.runs.submit(spec_of(), priority=2)
    for row in store.doorbells.unsent():
        store.doorbells.mark_sent(row.id)
    assert store.claims.claim(run_id, **WORKER) is not None
    assert store.claims.requeue(run_id, 1, reason="DRAINED")
    run = store.runs.get(run_id)
    assert (run.phase, run.reason, run.worker) == ("QUEUED", "DRAINED", None)
    assert [(row.run_id, row.priority) for row in store.doorbells.unsent()] == [(run_id, 2)]


def test_retry__queues_the_same_run_and_is_repeatable(store: Stores) -> None:
    claim = claimed(store)
    store.records.record(claim.run_id, 1, [metric(1), metric(2)])
    store.claims.finish(claim.run_id, 1, phase="FAILED", reason="OOM", message="no memory")
    run = store.runs.retry(claim.run_id)
    assert (run.phase, run.reason, run.message) == ("QUEUED", None, None)
    assert store.runs.retry(claim.run_id) == run
    assert len(store.doorbells.unsent()) >= 1
    again = store.claims.claim(claim.run_id, **WORKER)
    assert again is not None
    assert again.previous_attempts == [1]
    assert not again.cancel_requested


def test_retry__refuses_success(store: Stores) -> None:
    claim = claimed(store)
    store.claims.finish(claim.run_id, 1, phase="SUCCEEDED")
    with pytest.raises(ConflictError, match="succeeded"):
        store.runs.retry(claim.run_id)


def test_delete__takes_every_row_and_refuses_working_runs(store: Stores) -> None:
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


# ------------------------------------------------------------------------------ idempotency


def test_submit__same_key_and_body_is_the_same_run(store: Stores) -> None:
    key = {"idempotency_key": "k", "body_hash": "b", "token_id": "t"}
    first = store.runs.submit(spec_of(), **key)
    assert store.runs.submit(spec_of(), **key) == first
    assert store.runs.submit(spec_of(), **key | {"token_id": "other"}) != first
    with pytest.raises(IdempotencyError):
        store.runs.submit(spec_of(), **key | {"body_hash": "c"})
    assert store.runs.page()[2] == 2


def test_submit__same_key_at_the_same_moment_is_one_run(store: Stores) -> None:
    found: list[str] = []
    gate = threading.Barrier(6)

    def send() -> None:
        gate.wait()
        found.append(store.runs.submit(spec_of(), idempotency_key="k", body_hash="b"))

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1


def test_submit__queue_cap_counts_waiting_runs_of_the_token(store: Stores) -> None:
    first = store.runs.submit(spec_of(), token_id="t", max_queued=1)
    with pytest.raises(QueueFullError):
        store.runs.submit(spec_of(), token_id="t", max_queued=1)
    store.runs.submit(spec_of(), token_id="u", max_queued=1)
    assert store.claims.claim(first, **WORKER) is not None
    store.runs.submit(spec_of(), token_id="t", max_queued=1)


# ---------------------------------------------------------------------------------- records


def test_record__resumed_run_neither_loses_nor_repeats_points(store: Stores) -> None:
    run_id = claimed(store).run_id
    store.records.record(run_id, 1, [metric(s, 1.0) for s in range(1, 11)])
    store.records.record(
        run_id, 1, [r.SpectrumRecord(step=s, spectrum=example_spectrum()) for s in (5, 9)]
    )
    expire(store, run_id)
    store.sweeper.sweep()
    assert store.claims.claim(run_id, **WORKER) is not None
    assert store.records.record(
        run_id, 2, [r.ResumedRecord(step=5), metric(6, 2.0), metric(7, 2.0)]
    )
    assert steps(store, run_id) == [1, 2, 3, 4, 5, 6, 7]
    assert store.history.metrics(run_id).series[0].values == [1.0] * 5 + [2.0] * 2
    assert [s.step for s in store.history.spectra(run_id)] == [5]


def test_record__attempt_that_starts_over_leaves_no_old_points(store: Stores) -> None:
    run_id = claimed(store).run_id
    store.records.record(run_id, 1, [metric(s, 1.0) for s in (10, 20, 30, 40)])
    expire(store, run_id)
    store.sweeper.sweep()
    store.claims.claim(run_id, **WORKER)
    store.records.record(run_id, 2, [metric(10, 2.0)])
    assert steps(store, run_id) == [10]


def test_restore__fills_holes_and_touches_nothing_else(store: Stores) -> None:
    run_id = claimed(store).run_id
    store.records.record(run_id, 1, [metric(s, 1.0) for s in (1, 2, 5)])
    expire(store, run_id)
    store.sweeper.sweep()
    assert store.claims.claim(run_id, **WORKER) is not None
    store.records.record(run_id, 2, [r.ResumedRecord(step=5), metric(6, 2.0)])
    events = len(store.history.events_after(run_id)[0])
    measured: list[r.Record] = [metric(s, 1.0) for s in range(1, 6)]
    measured.append(r.SpectrumRecord(step=5, spectrum=example_spectrum()))
    for _ in range(2):
        assert store.records.restore(run_id, 2, measured)
    assert steps(store, run_id) == [1, 2, 3, 4, 5, 6]
    assert store.history.metrics(run_id).series[0].values == [1.0] * 5 + [2.0]
    assert [s.step for s in store.history.spectra(run_id)] == [5]
    assert len(store.history.events_after(run_id)[0]) == events
    assert not store.records.restore(run_id, 1, measured)
    assert not store.records.restore(run_id, 1, [])
    assert store.records.restore(run_id, 2, [metric(s, 1.0) for s in range(1, 2500)])
    assert len(steps(store, run_id)) == 2499


def test_record__repeating_a_batch_changes_no_number(store: Stores) -> None:
    run_id = claimed(store).run_id
    batch = [
        metric(1),
        metric(2),
        r.EvaluationRecord(evaluation=example_evaluation(example_predictions()), predictions="p"),
        r.SpectrumRecord(step=2, spectrum=example_spectrum()),
    ]
    store.records.record(run_id, 1, batch)
    first = (
        store.history.metrics(run_id),
        store.history.spectra(run_id),
        len(store.results.run_evaluations(run_id)),
    )
    store.records.record(run_id, 1, batch)
    assert (
        store.history.metrics(run_id),
        store.history.spectra(run_id),
        len(store.results.run_evaluations(run_id)),
    ) == (first)


def test_record__same_step_twice_in_a_batch_keeps_the_later(store: Stores) -> None:
    run_id = claimed(store).run_id
    assert store.records.record(run_id, 1, [metric(1, 1.0), metric(1, 2.0)])
    assert store.history.metrics(run_id).series[0].values == [2.0]


def test_record__event_ids_have_no_gap(store: Stores) -> None:
    run_id = claimed(store).run_id
    store.records.record(run_id, 1, [r.PhaseRecord(phase="training"), metric(1), metric(2)])
    store.records.record(run_id, 1, [r.LogRecord(message="x"), metric(3)])
    store.claims.finish(run_id, 1, phase="FAILED", reason="OOM")
    events, phase = store.history.events_after(run_id)
    assert [e.id for e in events] == list(range(1, len(events) + 1))
    assert phase == "FAILED"
    assert events[-1].data["phase"] == "FAILED"
    assert store.history.events_after(run_id, 3)[0] == events[3:]


def test_finish__names_no_spectrum_final_that_did_not_say_so(store: Stores) -> None:
    run_id = claimed(store).run_id
    store.records.record(
        run_id, 1, [r.SpectrumRecord(step=s, spectrum=example_spectrum()) for s in (1, 2)]
    )
    store.claims.finish(run_id, 1, phase="SUCCEEDED")
    assert [(s.step, s.final) for s in store.history.spectra(run_id)] == [(1, False), (2, False)]


def test_finish__evaluations_that_the_report_does_not_know_are_dropped(store: Stores) -> None:
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
    assert summary is not None
    assert summary.id_ece == 0.1


@pytest.mark.parametrize("words", ["a\0b", "\ud800", "ü\0\udfff"])
def test_finish__a_runners_last_words_may_be_anything(store: Stores, words: str) -> None:
    ends: list[Callable[[str], bool]] = [
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


# ------------------------------------------------------------------------------------ lists


@pytest.mark.parametrize(
    "sort", ["created", "-created", "name", "-name", "id_accuracy", "-ood_ece", "sigma_min"]
)
def test_list__pages_make_up_the_whole_list(store: Stores, sort: Any) -> None:
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
    walked, cursor = [], None
    while True:
        page, cursor, count = store.runs.page(sort=sort, cursor=cursor, limit=3)
        assert count == 11
        walked += page
        if cursor is None:
            break
    assert walked == whole
    key = sort.lstrip("-")
    if key not in ("created", "name"):
        values = [getattr(run.summary, key) if run.summary else None for run in whole]
        numbers = [v for v in values if v is not None]
        assert values[: len(numbers)] == sorted(numbers, reverse=sort.startswith("-"))


def test_list__filters(store: Stores) -> None:
    a = store.runs.submit(spec_of(name="alpha", tags=["x", "y"], notes="first_try at 50%"))
    b = store.runs.submit(spec_of(name="beta", method={"kind": "flyp"}, tags=["x"]))
    c = store.runs.submit(spec_of(name="gamma", suite={"id": "folder:/data"}))
    store.runs.patch(c, archived=True)
    store.runs.request_cancel(b)

    def found(**filters: Any) -> set[str]:
        return {run.id for run in store.runs.page(RunFilters(**filters))[0]}

    assert found() == {a, b}
    assert found(archived=None) == {a, b, c}
    assert found(archived=True) == {c}
    assert found(tags=("x",)) == {a, b}
    assert found(tags=("x", "y")) == {a}
    assert found(methods=("flyp",)) == {b}
    assert found(phases=("CANCELLED", "FAILED")) == {b}
    assert found(suites=("folder:/data",), archived=None) == {c}
    assert found(text="ALPHA first") == {a}
    assert found(text="50%") == {a}
    assert found(text="5_%") == set()
    assert found(text=b[:8]) == {b}
    assert found(models=("calift-tiny/fashion-mnist",)) == {a, b}


@pytest.mark.parametrize("cursor", ["", "x", "%%%", "bnVsbA", "W10", "WzEsMl0", "é"])
def test_list__foreign_cursor_is_refused(store: Stores, cursor: str) -> None:
    with pytest.raises(SpecError, match="cursor"):
        store.runs.page(cursor=cursor)


def test_list__cursor_of_another_order_is_refused(store: Stores) -> None:
    for _ in range(3):
        store.runs.submit(spec_of())
    cursor = store.runs.page(limit=1)[1]
    with pytest.raises(SpecError, match="cursor"):
        store.runs.page(sort="name", cursor=cursor)
    with pytest.raises(SpecError, match="cursor"):
        store.runs.page(RunFilters(text="a"), cursor=cursor)


# ------------------------------------------------------------------------------------- logs


def test_log__pieces_make_up_the_whole_and_never_split_a_character(store: Stores) -> None:
    run_id = claimed(store).run_id
    text_ = "".join(f"line {i} — ü🎈\n" for i in range(40))
    raw = text_.encode()
    for at in range(0, len(raw), 37):
        store.records.append_log(run_id, 1, raw[at : at + 37])
    store.claims.finish(run_id, 1, phase="SUCCEEDED")
    offset, pieces = 0, []
    while True:
        page = store.history.logs(run_id, offset=offset, limit=50)
        pieces.append(page.text)
        assert page.next_offset > offset or page.complete
        offset = page.next_offset
        if page.complete:
            break
    assert "".join(pieces) == text_
    assert text_.endswith(store.history.logs(run_id, offset=-21).text)
    assert "�" not in store.history.logs(run_id, offset=-21).text


def test_log__of_a_working_run_is_never_complete(store: Stores) -> None:
    run_id = claimed(store).run_id
    store.records.append_log(run_id, 1, "a")
    page = store.history.logs(run_id)
    assert (page.text, page.next_offset, page.complete) == ("a", 1, False)
    assert store.history.logs(run_id, offset=10_000).next_offset == 1


# -------------------------------------------------------------------------- state machine


#: Which attempt writes, beside the newest: mostly that one, at times an old one or none yet.
OFF = st.sampled_from([0, 0, 0, -1, 1])


class Life(RuleBasedStateMachine):
    """Any order of submits, claims, writes, cancels, losses, drains and retries.

    A model of what each run's holder is stands beside the store; nothing that the holder did not
    do may change a run's numbers, and nothing ends twice.
    """

    runs = Bundle("runs")
    store: Stores

    def __init__(self) -> None:
        super().__init__()
        self.holder: dict[str, int | None] = {}
        self.attempts: dict[str, int] = {}
        self.cancelled: set[str] = set()
        self.ended: dict[str, str] = {}
        self.steps: dict[str, list[int]] = {}
        self.losses: dict[str, int] = {}
        self.queued: set[str] = set()

    @initialize()
    def begin(self) -> None:
        with writing(self.store.engine) as connection:
            connection.execute(text("DELETE FROM runs"))

    @rule(target=runs)
    def submit(self) -> str:
        run_id = self.store.runs.submit(spec_of(), max_attempts=2)
        self.holder[run_id], self.attempts[run_id] = None, 0
        self.steps[run_id], self.losses[run_id] = [], 0
        self.queued.add(run_id)
        return run_id

    @rule(run_id=runs)
    def claim(self, run_id: str) -> None:
        # A worker learned of the run by a message, so the relay has sent it.
        for row in self.store.doorbells.unsent(1000):
            if row.run_id == run_id:
                self.store.doorbells.mark_sent(row.id)
        claim = self.store.claims.claim(run_id, **WORKER)
        assert (claim is not None) == (run_id in self.queued)
        if claim is not None:
            self.attempts[run_id] += 1
            assert claim.attempt == self.attempts[run_id]
            self.holder[run_id] = claim.attempt
            self.queued.discard(run_id)

    @rule(run_id=runs, off=OFF)
    def write(self, run_id: str, off: int) -> None:
        attempt = self.attempts[run_id] + off
        step = len(self.steps[run_id]) + 1
        held = self.holder[run_id] == attempt
        assert self.store.records.record(run_id, attempt, [metric(step)]) is held
        assert self.store.claims.heartbeat(run_id, attempt, ttl_s=60).held is held
        if held:
            self.steps[run_id].append(step)

    @rule(run_id=runs, off=OFF, phase=st.sampled_from(["SUCCEEDED", "FAILED"]))
    def finish(self, run_id: str, off: int, phase: Any) -> None:
        attempt = self.attempts[run_id] + off
        held = self.holder[run_id] == attempt
        assert self.store.claims.finish(run_id, attempt, phase=phase) is held
        if held:
            self.ended[run_id] = phase
            self.holder[run_id] = None

    @rule(run_id=runs, off=OFF)
    def drain(self, run_id: str, off: int) -> None:
        attempt = self.attempts[run_id] + off
        held = self.holder[run_id] == attempt
        assert self.store.claims.requeue(run_id, attempt) is held
        if held:
            self.holder[run_id] = None
            self._queue_or_end(run_id)

    def _queue_or_end(self, run_id: str) -> None:
        if run_id in self.cancelled:
            self.ended[run_id] = "CANCELLED"
        else:
            self.queued.add(run_id)

    @rule(run_id=runs)
    def lose_worker(self, run_id: str) -> None:
        if self.holder[run_id] is None:
            return
        expire(self.store, run_id)
        (swept,) = [s for s in self.store.sweeper.sweep() if s.action != "redispatched"]
        self.holder[run_id] = None
        self.losses[run_id] += 1
        if run_id not in self.cancelled and self.losses[run_id] >= 2:
            self.ended[run_id] = "FAILED"
            assert swept.action == "failed"
        else:
            self._queue_or_end(run_id)

    @rule(run_id=runs)
    def cancel(self, run_id: str) -> None:
        self.store.runs.request_cancel(run_id)
        if run_id in self.ended:
            return
        self.cancelled.add(run_id)
        if run_id in self.queued:
            self.queued.discard(run_id)
            self.ended[run_id] = "CANCELLED"

    @precondition(lambda self: self.ended)
    @rule(run_id=runs)
    def retry(self, run_id: str) -> None:
        if self.ended.get(run_id) not in ("FAILED", "CANCELLED"):
            return
        self.store.runs.retry(run_id)
        del self.ended[run_id]
        self.cancelled.discard(run_id)
        self.losses[run_id] = 0
        self.queued.add(run_id)

    @invariant()
    def agrees(self) -> None:
        rung = {row.run_id for row in self.store.doorbells.unsent(1000)}
        for run_id, holder in self.holder.items():
            run = self.store.runs.get(run_id)
            if run_id in self.ended:
                assert run.phase == self.ended[run_id]
                assert run.phase in TERMINAL_PHASES
                assert run.finished_at is not None
            elif run_id in self.queued:
                assert run.phase == "QUEUED"
                assert run_id in rung, "a waiting run without a doorbell is lost"
            else:
                assert holder is not None
                assert run.phase in WORKING_PHASES
                assert (run.phase == "CANCELLING") == (run_id in self.cancelled)
            assert steps(self.store, run_id) == self.steps[run_id]
            ids = [e.id for e in self.store.history.events_after(run_id)[0]]
            assert ids == list(range(1, len(ids) + 1))


def test_life__any_order_of_events_keeps_the_rules(store: Stores) -> None:
    Life.store = store
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=60 if CI else 20,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
