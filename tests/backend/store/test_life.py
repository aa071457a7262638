"""A run from its queue to its end, in any order of events."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, settings
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

from backend.store.engine import writing
from backend.store.states import WORKING_PHASES
from backend.store.stores import Stores
from calift_core.schema import records as r
from calift_core.schema.wire.runs import TERMINAL_PHASES, Progress
from tests.backend.store.helpers import WORKER, expire, metric, steps
from tests.conftest import SEARCH, spec_of


def test_life__from_queue_to_success(store):
    run_id = store.runs.submit(spec_of(tags=["x"]), priority=3)
    waits = store.runs.get(run_id)
    assert (waits.phase, waits.fraction_done, waits.eta_seconds) == ("QUEUED", 0.0, None)
    (row,) = store.outbox.unsent()
    assert (row.run_id, row.queue, row.priority) == (run_id, "cpu", 3)
    store.outbox.mark_sent(row.id)
    assert store.outbox.unsent() == []

    claim = store.claims.claim(run_id, **WORKER)
    assert (claim.attempt, claim.previous_attempts) == (1, [])
    assert claim.spec["method"]["kind"] == "carot"
    assert store.runs.get(run_id).phase == "STARTING"
    assert store.records.record(run_id, 1, [r.PhaseRecord(phase="training")])
    assert store.runs.get(run_id).phase == "RUNNING"
    now = datetime.now(UTC)
    progress = Progress(
        phase="training", step=3, total_steps=9, run_fraction=0.4, run_eta_s=500, updated_at=now
    )
    assert store.claims.heartbeat(run_id, 1, ttl_s=60, progress=progress).held
    ((listed,), *_) = store.runs.page()
    for run in (store.runs.get(run_id), listed):
        assert (run.progress, run.fraction_done) == (progress, 0.4)
        assert 0 < (run.eta_seconds or 0) <= 500
    assert progress.eta_at(now + timedelta(seconds=200)) == 300
    assert progress.eta_at(now + timedelta(seconds=501)) == 0
    assert store.claims.finish(run_id, 1, phase="SUCCEEDED")
    run = store.runs.get(run_id)
    assert (run.phase, run.fraction_done, run.eta_seconds) == ("SUCCEEDED", 1.0, None)
    assert run.finished_at is not None
    states = [e.data["phase"] for e in store.history.events_after(run_id)[0] if e.kind == "state"]
    assert states == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]


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
        for row in self.store.outbox.unsent(1000):
            if row.run_id == run_id:
                self.store.outbox.mark_sent(row.id)
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
        (swept,) = [s for s in self.store.reaper.sweep() if s.action != "redispatched"]
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
        sent = {row.run_id for row in self.store.outbox.unsent(1000)}
        for run_id, holder in self.holder.items():
            run = self.store.runs.get(run_id)
            if run_id in self.ended:
                assert run.phase == self.ended[run_id]
                assert run.phase in TERMINAL_PHASES
                assert run.finished_at is not None
            elif run_id in self.queued:
                assert run.phase == "QUEUED"
                assert run_id in sent, "a waiting run without a message is lost"
            else:
                assert holder is not None
                assert run.phase in WORKING_PHASES
                assert (run.phase == "CANCELLING") == (run_id in self.cancelled)
            assert steps(self.store, run_id) == self.steps[run_id]
            ids = [e.id for e in self.store.history.events_after(run_id)[0]]
            assert ids == list(range(1, len(ids) + 1))


def test_life__any_order_of_events_keeps_the_rules(store):
    Life.store = store
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=500 if SEARCH else 8,
            stateful_step_count=30 if SEARCH else 20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
