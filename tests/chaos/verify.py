"""What is left after chaos, judged: the rows, the curves, the files and the ledger.

The ledger is written by the runners themselves, a line for each step they really made, and nobody
else touches it: what was thrown away can be told only from there.
"""

import json
import statistics
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import text

from backend.storage.artifacts import ArtifactStore
from backend.store.engine import open_engine
from backend.store.stores import Stores
from calift_core.errors import CaliftError
from tests.chaos.house import House
from tests.support import recorded


@dataclass
class Figures:
    """What is counted. Only `jobs`, `faults`, `wasted`, `attempts` and times may be other than 0.

    Attributes:
        lost: jobs that were accepted and have not succeeded.
        finished_twice: runs with more than one end, and runs that nobody submitted.
        orphans: processes that were left.
        curve_holes: points of curves that are missing, wrong or there twice.
        damage: what is wrong with the database or with stored files.
        wasted: share of the runners' seconds whose work was thrown away or done again.
        recovery_s: by kind of fault, how long it took.
    """

    database: str
    jobs: int = 0
    faults: int = 0
    attempts: int = 0
    lost: list[str] = field(default_factory=list)
    finished_twice: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    curve_holes: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    wasted: float = 0.0
    seconds: float = 0.0
    by_kind: dict[str, int] = field(default_factory=dict)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)

    def line(self) -> str:
        """All in one line."""
        return (
            f"jobs={self.jobs} faults={self.faults} lost={len(self.lost)} "
            f"finished_twice={len(self.finished_twice)} orphans={len(self.orphans)} "
            f"curve_holes={len(self.curve_holes)} wasted={100 * self.wasted:.1f}%"
        )

    def faulty(self) -> list[str]:
        """What must not be."""
        return [
            f"{name}: {one}"
            for name in ("lost", "finished_twice", "orphans", "curve_holes", "damage")
            for one in getattr(self, name)
        ]

    def table(self) -> str:
        """Recovery by kind of fault, as a table of a document."""
        lines = ["| fault | times | recovered | p50 s | p99 s |", "|---|---|---|---|---|"]
        for kind, times in self.by_kind.items():
            took = sorted(self.recovery_s.get(kind, []))
            p50 = f"{statistics.median(took):.1f}" if took else ""
            p99 = f"{took[min(len(took) - 1, round(0.99 * len(took)))]:.1f}" if took else ""
            lines.append(f"| {kind} | {times} | {len(took)} | {p50} | {p99} |")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        return asdict(self)


def examine(house: House, accepted: list[str], steps: int) -> Figures:
    """Bring the database up once more and look at everything.

    Args:
        house: stopped.
        accepted: the runs that the API said it had taken.
        steps: that each run has.
    """
    figures = Figures(house.database.kind, jobs=len(accepted))
    house.database.start()
    figures.damage += house.database.damage()
    figures.damage += damaged_artifacts(house)
    store = Stores.on(open_engine(house.database.url))
    try:
        with store.engine.connect() as connection:
            rows = connection.execute(
                text("SELECT id, phase, attempt, reason, message FROM runs")
            ).all()
            events = connection.execute(
                text("SELECT run_id, data FROM events WHERE kind = 'state'")
            ).all()
        phases = {row.id: f"{row.phase} {row.reason} {row.message}" for row in rows}
        figures.attempts = sum(row.attempt for row in rows)
        figures.lost = [
            f"{run_id} is {phases.get(run_id, 'gone')}"
            for run_id in accepted
            if not phases.get(run_id, "").startswith("SUCCEEDED")
        ]
        ends: Counter[str] = Counter()
        for run_id, data in events:
            body = json.loads(data) if isinstance(data, str) else data
            ends[run_id] += body["phase"] in ("SUCCEEDED", "FAILED", "CANCELLED")
        figures.finished_twice = [f"{i} ended {n} times" for i, n in ends.items() if n > 1]
        figures.finished_twice += [f"{i} came from nowhere" for i in set(phases) - set(accepted)]
        for run_id in accepted:
            if phases.get(run_id, "").startswith("SUCCEEDED"):
                figures.curve_holes += holes(store, house, run_id, steps)
    finally:
        store.close()
        house.database.kill()
    figures.wasted = wasted(house)
    return figures


def holes(store: Stores, house: House, run_id: str, steps: int) -> list[str]:
    """Points of a run's curves that are not what its runners measured, each once."""
    found = []
    series = {
        s.name: dict(zip(s.steps, s.values, strict=True))
        for s in store.history.metrics(run_id).series
    }
    for step in range(1, steps + 1):
        for name, value in recorded.metrics(step, step / 10, loss=1 / step).values.items():
            got = series.get(name, {}).get(step)
            if got != value:
                found.append(f"{run_id} {name} of step {step} is {got}, not {value}")
    if any(len(points) > steps for points in series.values()):
        found.append(f"{run_id} has points beyond its last step")
    try:
        digest = store.files.get(run_id, "metrics.jsonl").sha256
        stored = ArtifactStore(house.artifacts).verified(digest).read_text()
    except CaliftError as error:
        return [*found, f"{run_id}: {error.message}"]
    lines = [json.loads(line)["step"] for line in stored.splitlines()]
    if lines != list(range(1, steps + 1)):
        found.append(f"{run_id}: metrics.jsonl has the steps {lines}")
    return found


def damaged_artifacts(house: House) -> list[str]:
    """Files that the database names and that are missing or not what their hash says."""
    artifacts = ArtifactStore(house.artifacts)
    engine = open_engine(house.database.url)
    found = []
    try:
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT run_id, name, sha256 FROM artifacts")).all()
        for run_id, name, digest in rows:
            try:
                artifacts.verified(digest)
            except CaliftError as error:
                found.append(f"{name} of {run_id}: {error.message}")
    finally:
        engine.dispose()
    return found


def wasted(house: House) -> float:
    """Share of the runners' seconds in steps that were made again, and in starting again."""
    path = house.folder / "ledger"
    if not path.exists():
        return 0.0
    total = kept = 0.0
    before: dict[tuple[str, int], float] = {}
    last: dict[tuple[str, int], float] = defaultdict(float)
    for line in path.read_text().splitlines():
        run_id, attempt, step, at = line.split()
        key = (run_id, int(attempt))
        if key in before:
            took = float(at) - before[key]
            total += took
            # The step that was made last is the one that counts; step 0 is the start.
            last[run_id, int(step)] = took if int(step) or int(attempt) == 1 else 0.0
        before[key] = float(at)
    kept = sum(last.values())
    return 1 - kept / total if total else 0.0
