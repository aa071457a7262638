"""A thousand workers and a hundred thousand runs, simulated against the real queue.

    python -m research.measurements.fleet  # 1,000 workers, 100,000 runs, SQLite
    python -m research.measurements.fleet --workers 50 --runs 2000
    python -m research.measurements.fleet --database postgresql://…   # an empty database of its own

What is real: the database and every statement of submit, relay, claim, lease, finish and sweep
(`backend.store`). What is simulated: time, the workers, their broker and their faults. The
database's own clock is turned: SQLite's `unixepoch` and Postgres' `clock_timestamp` are replaced by
functions that answer with the simulation's time, so that leases end when their time has come and a
day passes in minutes.

Workers die without a word, freeze for longer than their lease and then go on writing; the broker
loses messages and delivers some twice; the cluster loses a tenth of its workers at one moment.
At the end every run must have succeeded exactly once, or failed because it lost three workers.

One person has nine tenths of the runs and submits first; the others come later, one run in a
hundred each. `waits` says how long a run stood in the queue, for the many and for the few.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, text

from backend.store.engine import open_engine
from backend.store.migrations import upgrade
from backend.store.stores import Stores
from calift_core.schema.spec import parse_spec

_HOUR = 3600.0
#: Nothing ended for so long: nothing will.
_STUCK_S = 6 * _HOUR


@dataclass(frozen=True)
class Plan:
    """What is simulated. Times are seconds of the turned clock.

    Attributes:
        workers: processes that take runs, one at a time each.
        runs: in all.
        mean_run_s: of a run's work; exponential.
        deaths_per_hour: of one worker, without a word.
        freezes_per_hour: of one worker, for three leases; then it goes on as if nothing was.
        lost_messages: share of the broker's messages that never arrive.
        doubled_messages: share that arrive twice.
        restart_s: until a worker that died is there again, under a new name.
        ttl_s, heartbeat_s, sweep_s, relay_s, redispatch_s: as the service's settings.
        presence_s: between two reports of a worker that it is there.
        seed: of everything.
    """

    workers: int = 1000
    runs: int = 100_000
    mean_run_s: float = 300.0
    deaths_per_hour: float = 0.05
    freezes_per_hour: float = 0.02
    lost_messages: float = 0.01
    doubled_messages: float = 0.01
    restart_s: float = 60.0
    ttl_s: float = 60.0
    heartbeat_s: float = 30.0
    sweep_s: float = 5.0
    relay_s: float = 1.0
    redispatch_s: float = 120.0
    presence_s: float = 45.0
    seed: int = 0


class TurnedClock:
    """A clock that the simulation turns, in the place of the database's own."""

    def __init__(self) -> None:
        self.now = 1.8e9

    def rule(self, engine: Engine) -> None:
        """Answer for this engine's database from now on."""
        if engine.dialect.name == "sqlite":

            def connected(connection: Any, _record: Any) -> None:
                connection.create_function("unixepoch", -1, lambda *_: self.now)

            event.listen(engine, "connect", connected)
            return
        with engine.begin() as connection:
            connection.execute(text("CREATE SCHEMA IF NOT EXISTS turned"))
            connection.execute(
                text(
                    "CREATE OR REPLACE FUNCTION turned.clock_timestamp() RETURNS timestamptz "
                    "LANGUAGE sql VOLATILE AS $$ "
                    "SELECT to_timestamp(current_setting('turned.now')::float8) $$"
                )
            )

        def checked_out(connection: Any, _record: Any, _proxy: Any) -> None:
            # pg_catalog is looked at first unless it is named later.
            connection.execute("SET search_path TO turned, pg_catalog, public")
            connection.execute(f"SET turned.now TO '{self.now!r}'")

        event.listen(engine, "checkout", checked_out)


class Timed:
    """Wall milliseconds of each kind of call."""

    def __init__(self) -> None:
        self.ms: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call, and remember how long it took."""
        begun = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            self.ms[name].append((time.perf_counter() - begun) * 1e3)

    def table(self) -> dict[str, dict[str, float]]:
        """Calls, median and 99th percentile of each kind."""
        return {
            name: {
                "calls": len(values),
                "p50_ms": round(statistics.median(values), 3),
                "p99_ms": round(sorted(values)[int(0.99 * (len(values) - 1))], 3),
                "sum_s": round(sum(values) / 1e3, 1),
            }
            for name, values in sorted(self.ms.items())
        }


@dataclass
class _Worker:
    name: str
    run_id: str | None = None
    attempt: int = 0
    alive: bool = True
    frozen_until: float = 0.0


@dataclass
class Outcome:
    """What came of a simulation.

    Attributes:
        hours: of the turned clock, from the first submit to the last end.
        succeeded, given_up, lost, finished_twice: runs; one is given up, and says so, when it has
            lost three workers.
        deaths, freezes, fenced: faults, and attempts that were told to stop.
        takeover_s: from a worker's death to the next claim of its run: median, 99th percentile.
        waits_s: median time in the queue, of the one person with many runs and of the others.
        messages: sent by the relay; `idle_messages` found nothing to do.
        busy_share: of the workers' time until the queue was empty.
        calls: wall milliseconds of each kind of statement.
    """

    hours: float = 0.0
    succeeded: int = 0
    given_up: int = 0
    lost: int = 0
    finished_twice: int = 0
    deaths: int = 0
    freezes: int = 0
    fenced: int = 0
    takeover_s: dict[str, float] = field(default_factory=dict)
    waits_s: dict[str, float] = field(default_factory=dict)
    messages: int = 0
    idle_messages: int = 0
    busy_share: float = 0.0
    calls: dict[str, dict[str, float]] = field(default_factory=dict)


class Fleet:
    """The simulation.

    Args:
        stores: of a database that `clock` rules.
        clock: turned by `play`.
        plan: what is simulated.
        say: told of the progress.
    """

    def __init__(
        self,
        stores: Stores,
        clock: TurnedClock,
        plan: Plan,
        *,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.stores, self.clock, self.plan, self._say = stores, clock, plan, say
        self._random = random.Random(plan.seed)
        self._timed = Timed()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._broker: list[tuple[int, int, str]] = []
        self._idle: dict[str, _Worker] = {}
        self._workers: dict[str, _Worker] = {}
        self._names = 0
        self._submitted: dict[str, tuple[float, bool]] = {}
        self._claimed_at: dict[str, float] = {}
        self._bereft: dict[str, float] = {}
        self._ends: dict[str, int] = defaultdict(int)
        self._takeovers: list[float] = []
        self._busy_s = 0.0
        self._last_end = clock.now
        self.outcome = Outcome()

    # ------------------------------------------------------------------------------- time

    def _at(self, delay_s: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.clock.now + delay_s, self._count, action))

    def play(self) -> Outcome:
        """Simulate until every run has ended; what came of it."""
        begun = self.clock.now
        self._submit_all()
        for _ in range(self.plan.workers):
            self._at(self._random.uniform(0, 30), self._appear)
        self._at(0, self._relay)
        self._at(self.plan.sweep_s, self._sweep)
        # A rack goes: a tenth of the workers at one moment, a third of the way through.
        expected_s = self.plan.runs * self.plan.mean_run_s / self.plan.workers
        self._at(expected_s / 3, self._lose_a_rack)
        while len(self._ends) < self.plan.runs:
            if self.clock.now - self._last_end > _STUCK_S:
                break  # what is left is lost
            moment, _, action = heapq.heappop(self._events)
            self.clock.now = max(moment, self.clock.now)
            action()
        self.outcome.hours = round((self.clock.now - begun) / _HOUR, 3)
        return self._conclude()

    # ------------------------------------------------------------------------------- people

    def _submit_all(self) -> None:
        spec = parse_spec({"name": "simulated", "method": {"kind": "flyp"}})
        few = self.plan.runs // 10
        for index in range(self.plan.runs - few):
            self._submit(spec, "many")
            if index % 10_000 == 9_999:
                self._say(f"{index + 1:,} runs submitted")
        for index in range(few):
            person = f"few-{index % 10}"
            self._at(_HOUR / 4 + index * 0.01, lambda person=person: self._submit(spec, person))

    def _submit(self, spec: Any, person: str) -> None:
        run_id = self._timed(
            "submit", self.stores.runs.submit, spec, token_id=person, submitted_by=person
        )
        self._submitted[run_id] = (self.clock.now, person == "many")

    # ------------------------------------------------------------------------------- broker

    def _relay(self) -> None:
        while taken := self._timed("relay", self.stores.outbox.take):
            for message in taken:
                self._timed("mark sent", self.stores.outbox.mark_sent, message.id)
                self.outcome.messages += 1
                chance = self._random.random()
                copies = 0 if chance < self.plan.lost_messages else 1
                copies += chance > 1 - self.plan.doubled_messages
                for _ in range(copies):
                    self._count += 1
                    heapq.heappush(self._broker, (-message.priority, self._count, message.run_id))
            if len(self._broker) > 2 * self.plan.workers:
                break  # the rest of a long queue in the next second
        self._deliver()
        self._at(self.plan.relay_s, self._relay)

    def _deliver(self) -> None:
        while self._broker and self._idle:
            _, _, run_id = heapq.heappop(self._broker)
            name = next(iter(self._idle))
            worker = self._idle.pop(name)
            # The broker's answer waits in the socket of one that is frozen until it wakes.
            asleep_s = worker.frozen_until - self.clock.now
            if asleep_s > 0:
                self._at(asleep_s, lambda w=worker, r=run_id: self._wake(w, r))
            else:
                self._take(worker, run_id)

    def _wake(self, worker: _Worker, run_id: str) -> None:
        if worker.alive:
            self._take(worker, run_id)

    def _sweep(self) -> None:
        for swept in self._timed(
            "sweep", self.stores.reaper.sweep, redispatch_s=self.plan.redispatch_s
        ):
            if swept.action == "failed":  # it lost as many workers as it may
                self.outcome.given_up += 1
                self._ends[swept.run_id] += 1
                self._last_end = self.clock.now
        self._at(self.plan.sweep_s, self._sweep)

    # ------------------------------------------------------------------------------- workers

    def _appear(self) -> None:
        self._names += 1
        worker = _Worker(f"worker-{self._names}")
        self._workers[worker.name] = worker
        self._idle[worker.name] = worker
        self._report_in(worker)
        for rate, fault in (
            (self.plan.deaths_per_hour, self._die),
            (self.plan.freezes_per_hour, self._freeze),
        ):
            if rate:
                self._at(
                    self._random.expovariate(rate / _HOUR),
                    lambda fault=fault: fault(worker),
                )
        self._deliver()

    def _report_in(self, worker: _Worker) -> None:
        if not worker.alive:
            return
        if worker.frozen_until <= self.clock.now:
            self._timed(
                "presence",
                self.stores.workers.seen,
                worker.name,
                host="rack",
                queues=("gpu",),
                device="a GPU",
                run_id=worker.run_id,
            )
        self._at(self.plan.presence_s, lambda: self._report_in(worker))

    def _take(self, worker: _Worker, message_run: str | None) -> None:
        """What `WorkerService.answer` does: take the first in line, until none is left."""
        claim = self._timed(
            "claim",
            self.stores.claims.claim_next,
            ("gpu",),
            message_run=message_run,
            worker_id=worker.name,
            ttl_s=self.plan.ttl_s,
        )
        if claim is None:
            self.outcome.idle_messages += message_run is not None
            worker.run_id = None
            self._idle[worker.name] = worker
            return
        worker.run_id, worker.attempt = claim.run_id, claim.attempt
        self._claimed_at.setdefault(claim.run_id, self.clock.now)
        if claim.run_id in self._bereft:
            self._takeovers.append(self.clock.now - self._bereft.pop(claim.run_id))
        ends_at = self.clock.now + self._random.expovariate(1 / self.plan.mean_run_s)
        self._beat(worker, claim.run_id, claim.attempt, ends_at)

    def _beat(self, worker: _Worker, run_id: str, attempt: int, ends_at: float) -> None:
        """Look again at the next heartbeat or at the end of the work, whatever comes first."""
        pause = min(self.plan.heartbeat_s, max(0.0, ends_at - self.clock.now))
        self._busy_s += pause
        self._at(pause, lambda: self._go_on(worker, run_id, attempt, ends_at))

    def _go_on(self, worker: _Worker, run_id: str, attempt: int, ends_at: float) -> None:
        if not worker.alive:
            return
        if worker.frozen_until > self.clock.now:
            self._at(
                worker.frozen_until - self.clock.now,
                lambda: self._go_on(worker, run_id, attempt, ends_at),
            )
            return
        if self.clock.now >= ends_at:
            held = self._timed(
                "finish", self.stores.claims.finish, run_id, attempt, phase="SUCCEEDED"
            )
            if held:
                self._ends[run_id] += 1
                self._last_end = self.clock.now
                if len(self._ends) % 10_000 == 0:
                    self._say(f"{len(self._ends):,} runs ended")
        else:
            lease = self._timed(
                "heartbeat", self.stores.claims.heartbeat, run_id, attempt, ttl_s=self.plan.ttl_s
            )
            held = lease.held
            if held:
                self._beat(worker, run_id, attempt, ends_at)
                return
        self.outcome.fenced += not held
        self._take(worker, None)

    # ------------------------------------------------------------------------------- faults

    def _die(self, worker: _Worker) -> None:
        if not worker.alive:
            return
        worker.alive = False
        self.outcome.deaths += 1
        self._idle.pop(worker.name, None)
        self._workers.pop(worker.name, None)
        if worker.run_id is not None:
            self._bereft[worker.run_id] = self.clock.now
        self._at(self.plan.restart_s, self._appear)

    def _lose_a_rack(self) -> None:
        for name in sorted(self._workers)[: self.plan.workers // 10]:
            self._die(self._workers[name])

    def _freeze(self, worker: _Worker) -> None:
        if not worker.alive:
            return
        self.outcome.freezes += 1
        worker.frozen_until = self.clock.now + 3 * self.plan.ttl_s
        self._at(
            self._random.expovariate(self.plan.freezes_per_hour / _HOUR),
            lambda: self._freeze(worker),
        )

    # ------------------------------------------------------------------------------- the end

    def _conclude(self) -> Outcome:
        outcome = self.outcome
        with self.stores.engine.connect() as connection:
            phases = dict(
                connection.execute(text("SELECT phase, count(*) FROM runs GROUP BY phase")).all()
            )
            twice = connection.execute(
                text(
                    "SELECT count(*) FROM (SELECT run_id FROM events WHERE kind = 'state' AND "
                    + _phase_of(self.stores.engine)
                    + " = 'SUCCEEDED' GROUP BY run_id HAVING count(*) > 1) AS twice"
                )
            ).scalar_one()
        outcome.succeeded = phases.get("SUCCEEDED", 0)
        outcome.lost = self.plan.runs - outcome.succeeded - phases.get("FAILED", 0)
        outcome.finished_twice = twice + sum(n > 1 for n in self._ends.values())
        outcome.takeover_s = _spread(self._takeovers)
        for who, many in (("many", True), ("few", False)):
            waits = [
                self._claimed_at[run_id] - at
                for run_id, (at, is_many) in self._submitted.items()
                if is_many is many and run_id in self._claimed_at
            ]
            outcome.waits_s[who] = round(statistics.median(waits), 1) if waits else 0.0
        outcome.busy_share = round(self._busy_s / (outcome.hours * _HOUR * self.plan.workers), 3)
        outcome.calls = self._timed.table()
        return outcome


def _phase_of(engine: Engine) -> str:
    return (
        "data->>'phase'" if engine.dialect.name == "postgresql" else "json_extract(data, '$.phase')"
    )


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "p50": round(statistics.median(ordered), 1),
        "p99": round(ordered[int(0.99 * (len(ordered) - 1))], 1),
    }


def simulate(url: str, plan: Plan, *, say: Callable[[str], None] = lambda line: None) -> Outcome:
    """Simulate on an empty database; its tables are made here."""
    engine = open_engine(url)
    upgrade(engine)
    engine.dispose()
    engine = open_engine(url)
    clock = TurnedClock()
    clock.rule(engine)
    stores = Stores.on(engine)
    try:
        return Fleet(stores, clock, plan, say=say).play()
    finally:
        stores.close()


def main() -> None:
    """Read the command line, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=Plan.workers)
    parser.add_argument("--runs", type=int, default=Plan.runs)
    parser.add_argument("--mean-run-s", type=float, default=Plan.mean_run_s)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", help="of an empty database; default: a new SQLite file")
    options = parser.parse_args()
    plan = Plan(
        workers=options.workers,
        runs=options.runs,
        mean_run_s=options.mean_run_s,
        seed=options.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        url = options.database or f"sqlite:///{Path(folder) / 'fleet.db'}"
        begun = time.perf_counter()
        outcome = simulate(url, plan, say=print)
    print(f"{time.perf_counter() - begun:,.0f} s of wall time")
    print(json.dumps({"plan": asdict(plan), **asdict(outcome)}, indent=1))
    if outcome.lost or outcome.finished_twice:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
