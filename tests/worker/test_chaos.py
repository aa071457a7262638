"""Curves under real kills: whatever dies when, no point is lost and none is there twice.

`CALIFT_CHAOS_KILLS` (default 5) kills for each kind of database; the moments follow from
`CALIFT_CHAOS_SEED` (default 0). `make soak` does thirty.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from backend.artifacts import ArtifactStore
from backend.store.engine import writing
from backend.store.stores import Stores
from tests.conftest import spec_of, until
from tests.support import said
from tests.worker.conftest import Worker
from tests.worker.test_supervisor import alive, processes

log = logging.getLogger(__name__)

pytestmark = [pytest.mark.service, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("CALIFT_CHAOS_KILLS", "5"))
SEED = int(os.environ.get("CALIFT_CHAOS_SEED", "0"))
STEPS = 120
CHECKPOINT_EVERY = 7
#: Records reach the database this seldom, so that every kill falls between two groups.
GROUP_S = 0.7


@contextlib.contextmanager
def frozen(store: Stores) -> Iterator[None]:
    """Nobody else can write, or even read on Postgres, as when the server hangs."""
    with writing(store.engine) as connection:
        if store.engine.dialect.name == "postgresql":
            connection.execute(text("LOCK TABLE runs, metrics IN ACCESS EXCLUSIVE MODE"))
        yield


class Chaos:
    """One run after another on one worker, and what is killed meanwhile."""

    def __init__(
        self, store: Stores, home: Path, start: Callable[[], Worker], rng: random.Random
    ) -> None:
        self.store, self.home, self.start, self.rng = store, home, start, rng
        self.worker = start()
        self.runs: list[str] = []
        self.done: dict[str, int] = {"runner": 0, "worker": 0, "database": 0}

    def submit(self) -> str:
        plan = {"steps": STEPS, "step_s": 0.02, "checkpoint_every": CHECKPOINT_EVERY}
        run_id = self.store.runs.submit(spec_of(notes=json.dumps(plan)), max_attempts=1000)
        self.runs.append(run_id)
        return run_id

    def runner_of(self, run_id: str) -> int | None:
        mark = f"{self.home}/jobs/{run_id}/attempt-"
        for pid, argv in processes():
            if any(word.startswith(mark) for word in argv) and "-c" not in argv:
                return pid
        return None

    def hurt(self, fault: str) -> None:
        """Wait until a run works, let a random while go by, and strike; then all goes on."""
        runner = until(self.work, timeout_s=60, what="a runner at work")
        # The moment of the blow, and not a wait for anything.
        time.sleep(self.rng.uniform(0.0, 0.8 * STEPS * 0.02))
        self.done[fault] += 1
        with contextlib.suppress(ProcessLookupError):
            if fault == "runner":
                os.kill(runner, signal.SIGKILL)
            elif fault == "worker":
                self.worker.kill_hard()
                self.worker = self.start()
            else:
                with frozen(self.store):
                    until(lambda: not alive(runner), what="the runner to be fenced off or to end")

    def work(self) -> int | None:
        """The process of a runner that has got going; the next run is submitted if need be."""
        if not self.runs or self.store.claims.phase(self.runs[-1]) == "SUCCEEDED":
            self.submit()
        jobs = self.home / "jobs" / self.runs[-1]
        attempts = sorted(jobs.glob("attempt-*/records.jsonl"), key=lambda p: p.stat().st_mtime)
        if not any("progress" in path.read_text() for path in attempts[-1:]):
            return None
        return self.runner_of(self.runs[-1])


def test_chaos__no_point_of_a_curve_is_lost_or_there_twice(
    store: Stores,
    database_url: str,
    start_worker: Callable[..., Worker],
    home: Path,
) -> None:
    rng = random.Random(SEED)
    chaos = Chaos(store, home, lambda: start_worker(database_url, group_s=GROUP_S), rng)
    for index in range(KILLS):
        # Each kind in turn at least, then by chance.
        kinds = ("runner", "worker", "database")
        chaos.hurt(kinds[index] if index < 3 else rng.choice(kinds))
    for run_id in chaos.runs:
        until(
            lambda i=run_id: store.claims.phase(i) == "SUCCEEDED",
            timeout_s=120,
            what=f"{run_id} to end",
        )
    artifacts = ArtifactStore(home / "artifacts")
    holes: list[tuple[str, str, int]] = []
    wrong: list[tuple[str, str, int]] = []
    repeated: list[tuple[str, int]] = []
    for run_id in chaos.runs:
        series = {s.name: dict(zip(s.steps, s.values, strict=True))
                  for s in store.history.metrics(run_id).series}  # fmt: skip
        counted = {s.name: len(s.steps) for s in store.history.metrics(run_id).series}
        for step in range(1, STEPS + 1):
            expected = said.metrics(step, step / 10, loss=1 / step).values
            for name, value in expected.items():
                found = series.get(name, {}).get(step)
                if found is None:
                    holes.append((run_id, name, step))
                elif found != value:
                    wrong.append((run_id, name, step))
        assert all(count <= STEPS for count in counted.values()), counted
        stored = artifacts.verified(store.files.get(run_id, "metrics.jsonl").sha256)
        lines = [json.loads(line)["step"] for line in stored.read_text().splitlines()]
        repeated += [(run_id, step) for step in sorted(set(lines)) if lines.count(step) > 1]
        assert sorted(set(lines)) == list(range(1, STEPS + 1))
    attempts = sum(store.runs.get(run_id).attempt for run_id in chaos.runs)
    figures = (
        f"{chaos.done}, {len(chaos.runs)} runs, {attempts} attempts: "
        f"{len(holes)} holes, {len(repeated)} repeated, {len(wrong)} wrong"
    )
    log.info("%s: %s", store.engine.dialect.name, figures)
    assert (holes, repeated, wrong) == ([], [], []), figures
