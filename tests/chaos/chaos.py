"""Jobs, faults at random moments, and what came of it.

A run is *hit* by a fault when it was at work on what the fault struck. Its recovery ends when the
database has something new of it: a point of its curve, of the next attempt where the fault ends
one, or its end. Where a fault hits no run, such as the death of the broker, recovery ends when any
worker begins a run.
"""

import json
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from calift_core.client import Client
from calift_core.errors import CaliftError
from tests.chaos.faults import FAULTS, AtWork
from tests.chaos.house import TOKEN, House
from tests.chaos.verify import Figures, damaged_artifacts, examine
from tests.conftest import spec_of

log = logging.getLogger(__name__)

#: Nothing ended and nothing moved for so long: what is left is lost.
_STALLED_S = 600.0
_TERMINAL = ("SUCCEEDED", "FAILED", "CANCELLED")


@dataclass
class Plan:
    """How much there is to do.

    Attributes:
        jobs: at least so many; more are submitted while there are faults left.
        faults: so many, power cuts among them.
        power_cuts: everything is killed at once so many times, and verified each time.
        minutes: faults go on until then; 0: until there were as many as asked for.
        seed: of kinds and moments.
        pause_s: mean time between two faults.
        steps: of a job.
        step_s: how long each takes.
        checkpoint_every: steps between two checkpoints.
    """

    jobs: int = 60
    faults: int = 120
    power_cuts: int = 10
    minutes: float = 0.0
    seed: int = 0
    pause_s: float = 2.0
    steps: int = 60
    step_s: float = 0.05
    checkpoint_every: int = 7


@dataclass
class Row:
    """What the database says of a run."""

    run_id: str
    phase: str
    attempt: int
    owner: str | None
    #: Attempt and number of the points of its curve.
    points: tuple[int, int]


@dataclass
class Recovery:
    """A fault whose end is waited for."""

    kind: str
    at: float
    hit: dict[str, tuple[int, int]]
    attempts: int


class Feeder(threading.Thread):
    """Submits jobs over the API, so that some always wait; says which were accepted."""

    def __init__(self, house: House, plan: Plan) -> None:
        super().__init__(name="feeder", daemon=True)
        self._house, self._plan = house, plan
        self.accepted: list[str] = []
        self.ended = 0
        self.wanted = plan.jobs
        #: A job was sent and its answer has not come: it may be queued, so it is sent again.
        self.unanswered = False
        self.refused = ""
        self.over = threading.Event()

    def run(self) -> None:
        with Client(self._house.address, TOKEN, timeout_s=15) as client:
            while not self.over.wait(0.1):
                waiting = len(self.accepted) - self.ended
                room = waiting < len(self._house.workers) + 2
                if self.unanswered or (len(self.accepted) < self.wanted and room):
                    self.unanswered = True
                    try:
                        self.accepted.append(self._submit(client))
                        self.unanswered = False
                    except CaliftError as error:  # the API, or what it needs, may be away
                        self.refused = error.message

    def _submit(self, client: Client) -> str:
        plan = {
            "steps": self._plan.steps,
            "step_s": self._plan.step_s,
            "checkpoint_every": self._plan.checkpoint_every,
            "ledger": str(self._house.folder / "ledger"),
            "traps": str(self._house.traps),
        }
        name = f"job-{len(self.accepted)}"
        spec = spec_of(name=name, notes=json.dumps(plan))
        # The same key until it is accepted: an answer that was lost makes no second run.
        return client.submit(spec, max_attempts=20, idempotency_key=name).id


@dataclass
class Chaos:
    """One house under a plan."""

    house: House
    plan: Plan
    counted: Counter[str] = field(default_factory=Counter)
    recovered: dict[str, list[float]] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.plan.seed)
        self._feeder = Feeder(self.house, self.plan)
        self._reader = self.house.database.reader()
        self._rows: dict[str, Row] = {}
        self._open: list[Recovery] = []
        self._moved_at = self._began = time.monotonic()

    # -- the course

    def begin(self) -> None:
        """Bring up the house and let jobs come."""
        self.house.start()
        self._feeder.start()

    def run(self) -> Figures:
        """Strike until the plan is met and every job has ended; the figures come whatever happens.

        Raises:
            KeyboardInterrupt: after what there is has been said.
        """
        try:
            self.begin()
            for kind in self._kinds():
                self.strike(kind)
                self.go_on(self._rng.uniform(0, 2 * self.plan.pause_s))
                self._say()
            self.settle()
        finally:
            figures = self.end()
            log.info("%s: %s", self.house.database.kind, figures.line())
        return figures

    def _kinds(self) -> Iterator[str]:
        """Each kind in turn, then by chance; power cuts evenly between."""
        kinds = list(FAULTS)
        every = max(1, self.plan.faults // max(1, self.plan.power_cuts))
        deadline = time.monotonic() + 60 * self.plan.minutes
        for index in range(10**9):
            over = index >= self.plan.faults
            if (time.monotonic() >= deadline) if self.plan.minutes else over:
                return
            cuts = self.counted["everything"]
            if index % every == every - 1 and cuts < self.plan.power_cuts:
                yield "everything"
            else:
                at = index - cuts
                yield kinds[at] if at < len(kinds) else self._rng.choice(kinds)

    def strike(self, kind: str) -> None:
        """Wait until there is something to strike at, and strike."""
        deadline = time.monotonic() + _STALLED_S
        while True:
            at_work = self._at_work()
            if kind == "everything":
                hit: list[str] | None = self._cut_power() if at_work else None
            else:
                hit = FAULTS[kind](self.house, self._rng, at_work) if at_work else None
            if hit is not None:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"nothing to strike at with {kind!r} for {_STALLED_S:g} s; the last submit "
                    f"that was refused: {self._feeder.refused or 'none'}"
                )
            self._feeder.wanted = max(self._feeder.wanted, self._feeder.ended + 4)
            self.go_on(0.1)
        self.counted[kind] += 1
        now = time.monotonic()
        self._look()  # what was said before the blow is no recovery
        points = {i: self._rows[i].points for i in hit if i in self._rows}
        self._open.append(Recovery(kind, now, points, self._attempts()))
        log.debug("%s at %s", kind, hit)

    def _cut_power(self) -> list[str]:
        """kill -9 of everything at once, then look at every table and every file."""
        hit = [run.run_id for run in self._at_work()]
        self.house.kill_everything()
        self._open.clear()
        self.orphans += self.house.left()
        if self.house.database.kind == "postgres":
            self.house.start_database()
        self.damage += self.house.database.damage()
        self.damage += damaged_artifacts(self.house)
        self.house.start()
        return hit

    def recover(self, timeout_s: float = _STALLED_S) -> None:
        """Wait until what was struck works again.

        Raises:
            TimeoutError: it does not.
        """
        deadline = time.monotonic() + timeout_s
        while self._open:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no recovery in {timeout_s:g} s: {self._open}")
            self._feeder.wanted = max(self._feeder.wanted, self._feeder.ended + 4)
            self.go_on(0.1)

    def settle(self, timeout_s: float = _STALLED_S) -> None:
        """Wait until every job has ended, or nothing moves any more."""
        self._feeder.wanted = max(self.plan.jobs, len(self._feeder.accepted))
        while time.monotonic() < self._moved_at + timeout_s:
            self.go_on(0.2)
            if self._feeder.unanswered or len(self._feeder.accepted) < self._feeder.wanted:
                continue
            if self._rows and self._feeder.ended >= len(self._feeder.accepted):
                return

    def end(self) -> Figures:
        """Stop everything and judge what is left."""
        self._feeder.over.set()
        if self._feeder.is_alive():
            self._feeder.join(30)
        self._reader.dispose()
        self.house.stop()
        self.orphans += self.house.left()
        try:
            figures = examine(self.house, self._feeder.accepted, self.plan.steps)
        except Exception as error:  # what could not be judged is damage, and no reason to be silent
            log.exception("what is left cannot be judged")
            figures = Figures(self.house.database.kind, jobs=len(self._feeder.accepted))
            figures.damage.append(f"what is left cannot be judged: {error}")
        figures.faults = self.counted.total()
        figures.by_kind = dict(self.counted)
        figures.recovery_s = self.recovered
        figures.orphans += self.orphans
        figures.damage += self.damage
        figures.seconds = time.monotonic() - self._began
        return figures

    # -- what is seen

    def go_on(self, seconds: float) -> None:
        """Let time pass: what is due is done, what happens is noticed."""
        deadline = time.monotonic() + seconds
        look_at = 0.0
        while True:
            self.house.tend()
            if time.monotonic() >= look_at:
                self._look()
                look_at = time.monotonic() + 0.2
            if time.monotonic() >= deadline:
                return
            time.sleep(0.02)

    def _at_work(self) -> Sequence[AtWork]:
        return [AtWork(r.run_id, r.owner) for r in self._rows.values() if r.phase == "RUNNING"]

    def _attempts(self) -> int:
        return sum(row.attempt for row in self._rows.values())

    def _look(self) -> None:
        """Read what the database says; it may not answer."""
        try:
            self._read()
        except SQLAlchemyError as error:
            log.debug("the database does not answer: %s", error)
            return
        self._feeder.ended = sum(row.phase in _TERMINAL for row in self._rows.values())
        self._close_recoveries()

    def _read(self) -> None:
        known = [i for i, row in self._rows.items() if row.phase in _TERMINAL]
        with self._reader.connect() as connection:
            rows = connection.execute(text("SELECT id, phase, attempt, owner FROM runs")).all()
            points = {
                run_id: (attempt, count)
                for run_id, attempt, count in connection.execute(
                    text(
                        "SELECT run_id, max(metrics.attempt), count(*) FROM metrics"
                        " JOIN runs ON runs.id = run_id WHERE metrics.name = 'loss'"
                        " AND finished_at IS NULL GROUP BY run_id"
                    )
                )
            }
        for run_id, phase, attempt, owner in rows:
            if run_id not in known:
                row = Row(run_id, phase, attempt, owner, points.get(run_id, (0, 0)))
                if row != self._rows.get(run_id):
                    self._moved_at = time.monotonic()
                self._rows[run_id] = row

    def _close_recoveries(self) -> None:
        now = time.monotonic()
        for recovery in list(self._open):
            if recovery.hit:
                lives_on = recovery.kind in ("lock", "database", "away")
                over = all(
                    self._goes_on(i, points, again=not lives_on)
                    for i, points in recovery.hit.items()
                )
            else:
                over = self._attempts() > recovery.attempts
                if recovery.kind == "api":
                    over = over and self.house.api_answers()
            if over:
                self._open.remove(recovery)
                self.recovered.setdefault(recovery.kind, []).append(now - recovery.at)

    def _goes_on(self, run_id: str, points: tuple[int, int], *, again: bool) -> bool:
        """Whether there is something new of a run; `again`: of another attempt than before."""
        row = self._rows[run_id]
        moved = row.points[0] > points[0] if again else row.points != points
        return row.phase in _TERMINAL or (row.points[1] > 0 and moved)

    def _say(self) -> None:
        done = self.counted.total()
        if done % 10 == 0:
            log.info(
                "%s: %d faults, %d of %d jobs ended, %.0f s",
                self.house.database.kind,
                done,
                self._feeder.ended,
                len(self._feeder.accepted),
                time.monotonic() - self._began,
            )
