# ruff: noqa: B023  what a loop measures is called before the loop goes on
"""How milliseconds, bytes and memory grow with what there is more of, fitted over several sizes.

    python benchmarks/scale.py                     # the table
    python benchmarks/scale.py --write             # and put it into docs/scale.md
    python benchmarks/scale.py --only workers users
    python benchmarks/scale.py --half              # half of every size: a quick look

Times are processor milliseconds of this process, the median of several calls. The database is
SQLite, which works in this process, so that its work is counted and what else the machine does is
not. The statements are the service's own (`backend.store`), on rows as runs leave them
(`benchmarks/filled.py`).

Each line is the best of three fits over at least four sizes: a constant, a + b·log₂(x), a + b·x.
`flat` is what changes by less than a third from the smallest size to the largest, which is the
noise of a machine that others use.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filled import add_runs

from backend.http.authentication import Authenticator
from backend.services.watching import Watch
from backend.store.engine import open_engine
from backend.store.migrations import upgrade
from backend.store.stores import Stores
from calift_core.calibration import evaluate_all
from calift_core.calibration.scores import score_samples
from calift_core.predictions.types import Predictions, PredictionsMetadata
from calift_core.predictions.write import write_predictions
from calift_core.schema import records as r
from calift_core.schema.spec import parse_spec

DOCUMENT = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- scale.py: begin -->", "<!-- scale.py: end -->"
#: Less growth than this from the smallest size to the largest is no growth.
FLAT = 1.33
SPEC = parse_spec({"name": "simulated", "method": {"kind": "flyp"}})


@dataclass
class Series:
    """One thing that was measured at several sizes.

    Attributes:
        of: what there is more of: `runs`.
        what: what was measured: `list, first page`.
        unit: of the values: `ms`.
        sizes, values: pairs.
    """

    of: str
    what: str
    unit: str
    sizes: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Fit:
    """How a series grows: `kind` is flat, log or linear; `slope` per doubling or per one more."""

    kind: str
    slope: float


def fit(sizes: Sequence[float], values: Sequence[float]) -> Fit:
    """The simplest law that fits.

    Raises:
        ValueError: there are fewer than four sizes.
    """
    if len(sizes) < 4:
        raise ValueError(f"a fit needs at least four sizes, got {len(sizes)}")
    x, y = np.asarray(sizes, float), np.asarray(values, float)
    found = []
    for kind, of in (("log", np.log2(x)), ("linear", x)):
        slope, start = np.polyfit(of, y, 1)
        grown = float(slope * (of[-1] - of[0]))
        found.append((float(((start + slope * of - y) ** 2).sum()), kind, float(slope), grown))
    _, kind, slope, grown = min(found)
    # What gets cheaper with more of it does not: that is noise, too.
    if grown <= (FLAT - 1) * y[0]:
        return Fit("flat", 0.0)
    return Fit(kind, slope)


def cpu_ms(call: Callable[[], Any], times: int = 9) -> float:
    """Processor milliseconds of a call: the median of several, after one that warms up."""
    call()
    took = []
    for _ in range(times):
        began = time.process_time()
        call()
        took.append(1e3 * (time.process_time() - began))
    return statistics.median(took)


class Measured:
    """Series by what they are of and what was measured, in the order of their first value."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], Series] = {}

    def add(self, of: str, size: float, what: str, value: float, unit: str = "ms") -> None:
        """One value at one size."""
        one = self.series.setdefault((of, what), Series(of, what, unit))
        one.sizes.append(size)
        one.values.append(value)


@contextmanager
def database() -> Iterator[tuple[Stores, Path]]:
    """An empty database."""
    with tempfile.TemporaryDirectory(prefix="calift-scale-") as name:
        path = Path(name) / "calift.db"
        engine = open_engine(f"sqlite:///{path}")
        upgrade(engine)
        stores = Stores.on(engine)
        try:
            yield stores, path
        finally:
            stores.close()


def stored_bytes(stores: Stores) -> int:
    """What the database's pages hold, free ones left out."""
    with stores.engine.connect() as connection:
        pages, free, size = (
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("page_count", "freelist_count", "page_size")
        )
    return int((pages - free) * size)


# ------------------------------------------------------------------------------- what grows


def runs(measured: Measured, scale: float) -> None:
    """Finished runs with eight evaluations each, as the lists of a lab that ran for long."""
    with database() as (stores, _):
        done = 0
        for size in _sizes((250, 500, 1000, 2000), scale):
            add_runs(stores.engine, done, size)
            done = size
            page = stores.runs.page
            for what, call in (
                ("list, first page", lambda: page()),
                ("filter by phase and method", lambda: page(method=("flyp",))),
                ("filter by tag", lambda: page(tag=("tag 3",))),
                ("search, few hits", lambda: page(q=f"wide {done - 3}")),
                ("sort by OOD accuracy", lambda: page(sort="-ood_accuracy")),
            ):
                measured.add("runs", size, what, cpu_ms(call))
            evaluations = stores.results.list_evaluations
            for what, call in (
                ("list, first page", lambda: evaluations()),
                ("filter by data set", lambda: evaluations(datasets=("sketch",))),
            ):
                measured.add("evaluations", 8 * size, what, cpu_ms(call))
            measured.add("runs", size, "database, 8 evaluations each", stored_bytes(stores), "B")


def points(measured: Measured, scale: float) -> None:
    """Points of a run's curves: what a worker writes and what the page of the run reads."""
    with database() as (stores, _):
        run_id = stores.runs.submit(SPEC)
        assert stores.claims.claim(run_id, worker_id="w", ttl_s=1e6)
        done = 0
        for size in _sizes((1_000, 4_000, 8_000, 16_000), scale):
            while done < size:
                stores.records.record(run_id, 1, _hundred(done))
                done += 100
            metrics = stores.history.metrics
            newest = done - 10
            measured.add("curve points", size, "database", stored_bytes(stores), "B")
            read = cpu_ms(lambda: metrics(run_id, max_points=500), 3)
            measured.add("curve points", size, "whole curve, thinned to 500", read)
            tail = cpu_ms(lambda newest=newest: metrics(run_id, since_step=newest))
            measured.add("curve points", size, "what is new in it", tail)

            def write(at: list[int] = [done]) -> None:  # noqa: B006
                stores.records.record(run_id, 1, _hundred(at[0]))
                at[0] += 100

            measured.add("curve points", size, "100 more from a worker", cpu_ms(write))
            done += 1000


def queue(measured: Measured, scale: float) -> None:
    """Runs that wait."""
    with database() as (stores, _):
        stores.workers.seen("w", host="h", queues=("gpu",), device="GPU", run_id="x")
        done = 0
        for size in _sizes((500, 1_000, 4_000, 16_000), scale):
            add_runs(stores.engine, done, size, evaluations=0, phase="QUEUED", token="t")
            done = size
            _calls_of_the_queue(measured, "waiting runs", size, stores)


def users(measured: Measured, scale: float) -> None:
    """Owners of 2,000 runs that wait."""
    n = int(2000 * scale)
    for size in _sizes((1, 10, 100, 1000), scale):
        with database() as (stores, _):
            stores.workers.seen("w", host="h", queues=("gpu",), device="GPU", run_id="x")
            add_runs(stores.engine, 0, n, evaluations=0, phase="QUEUED", owners=size, token="t")
            _calls_of_the_queue(measured, "users who wait", size, stores)


def _calls_of_the_queue(measured: Measured, of: str, size: int, stores: Stores) -> None:
    names = iter(range(10**6))
    for what, call in (
        (
            "claim",
            lambda: stores.claims.claim_next(
                ("gpu",), message_run=None, worker_id=f"w{next(names)}", ttl_s=60
            ),
        ),
        (
            "submit",
            lambda: stores.runs.submit(
                SPEC, token_id="mine", submitted_by="owner 1", max_queued=10**9
            ),
        ),
        ("relay, 100 messages", lambda: stores.outbox.take(100)),
        ("sweep", lambda: stores.reaper.sweep()),
    ):
        measured.add(of, size, what, cpu_ms(call))


def workers(measured: Measured, scale: float) -> None:
    """Workers, all at work, in front of 2,000 runs that wait."""
    with database() as (stores, _):
        add_runs(stores.engine, 0, int(2000 * scale), evaluations=0, phase="QUEUED", token="t")
        waits = stores.runs.submit(SPEC)
        done = 0
        for size in _sizes((30, 100, 300, 1000), scale):
            for n in range(done, size):
                name = f"worker {n}"
                claim = stores.claims.claim_next(
                    ("gpu",), message_run=None, worker_id=name, ttl_s=1e6
                )
                assert claim is not None
                _report(stores, name, claim.run_id)
                held = claim.run_id
            done = size
            add_runs(stores.engine, 10**6 + size, 10**6 + size + 20, evaluations=0, phase="QUEUED")
            names = iter(range(10**6))
            for what, call in (
                (
                    "claim",
                    lambda: stores.claims.claim_next(
                        ("gpu",), message_run=None, worker_id=f"more {next(names)}", ttl_s=1e6
                    ),
                ),
                ("heartbeat", lambda: stores.claims.heartbeat(held, 1, ttl_s=1e6)),
                ("report that it is there", lambda: _report(stores, f"worker {size // 2}", held)),
                ("whether to sweep", lambda: stores.reaper.due(3600.0)),
                ("sweep", lambda: stores.reaper.sweep()),
                ("page of a run that waits", lambda: stores.runs.get(waits)),
                ("page of the workers", lambda: stores.workers.recent()),
            ):
                measured.add("workers", size, what, cpu_ms(call))


def _report(stores: Stores, name: str, run_id: str) -> None:
    stores.workers.seen(name, host="rack", queues=("gpu", "cpu"), device="GPU", run_id=run_id)


def watchers(measured: Measured, scale: float) -> None:
    """Event streams, each of a run of its own: one look of all, of which two come a second."""
    with database() as (stores, _):
        ids = [stores.runs.submit(SPEC) for _ in range(int(400 * scale))]
        watch = Watch(stores.history, Authenticator("a.secret", stores), poll_s=0.0)

        async def look(some: Sequence[str]) -> None:
            watch._looked_at, watch._poll_s = 0.0, 1e-9
            await watch.position(some[0])
            watch._poll_s = 1e9
            await asyncio.gather(*(watch.position(run_id) for run_id in some))

        for size in _sizes((25, 50, 100, 200, 400), scale):
            with ExitStack() as watched, asyncio.Runner() as runner:
                for run_id in ids[:size]:
                    watched.enter_context(watch.of(run_id))
                some = ids[:size]
                took = cpu_ms(lambda: runner.run(look(some)))
                measured.add("watchers", size, "a look for all, twice a second", took)


def images(measured: Measured, scale: float) -> None:
    """Images of an evaluation with 100 classes: judged, stored, explored."""
    for size in _sizes((1_000, 2_000, 4_000, 8_000), scale):
        _evaluation(measured, "images (100 classes)", size, n=size, n_classes=100)


def classes(measured: Measured, scale: float) -> None:
    """Classes of an evaluation of 2,000 images."""
    for size in _sizes((25, 50, 100, 200), scale):
        _evaluation(measured, "classes (2,000 images)", size, n=2_000, n_classes=size)


def _evaluation(measured: Measured, of: str, size: int, *, n: int, n_classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(n_classes, size=n)
    logits = rng.standard_normal((n, n_classes), dtype=np.float32) * 2
    logits[np.arange(n), labels] += rng.normal(4.0, 3.0, n).astype(np.float32)
    made = Predictions(
        ids=np.array([f"{i:08d}.jpg" for i in range(n)]),
        labels=labels,
        logits=logits,
        metadata=PredictionsMetadata(
            dataset="id",
            role="id",
            class_names=tuple(f"class {c}" for c in range(n_classes)),
            logit_scale=1.0,
        ),
    )
    probs = made.probs()
    measured.add(of, size, "every measure", cpu_ms(lambda: evaluate_all(probs, labels), 1))
    scored = cpu_ms(lambda: score_samples(logits, labels), 3)
    measured.add(of, size, "scores for the explorer", scored)
    gc.collect()
    tracemalloc.start()
    evaluate_all(probs, labels, n_resamples=2)
    measured.add(of, size, "memory of that at its peak", tracemalloc.get_traced_memory()[1], "B")
    tracemalloc.stop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.parquet"
        write_predictions(path, made)
        measured.add(of, size, "predictions file", path.stat().st_size, "B")


def _sizes(full: Sequence[int], scale: float) -> list[int]:
    return [max(1, int(size * scale)) for size in full]


def _hundred(first: int) -> list[Any]:
    return [
        r.MetricsRecord(step=first + k, epoch=0.0, values={"loss": 1.0 / (first + k + 1)})
        for k in range(100)
    ]


# ------------------------------------------------------------------------------- what is said

PARTS: dict[str, Callable[[Measured, float], None]] = {
    "runs": runs,
    "points": points,
    "queue": queue,
    "workers": workers,
    "users": users,
    "watchers": watchers,
    "images": images,
    "classes": classes,
}


def table(measured: Measured) -> list[str]:
    """Markdown, a line for each series."""
    lines = ["| more | what | from | to | grows | slope |", "|---|---|---|---|---|---|"]
    of = ""
    for one in measured.series.values():
        law = fit(one.sizes, one.values)
        ends = [
            f"{_amount(value, one.unit)} at {size:,.0f}"
            for size, value in (
                (one.sizes[0], one.values[0]),
                (one.sizes[-1], one.values[-1]),
            )
        ]
        slope = {
            "flat": "",
            "log": f"{_amount(law.slope, one.unit)} per doubling",
            "linear": f"{_amount(1000 * law.slope, one.unit)} per 1,000",
        }[law.kind]
        name, of = (one.of if one.of != of else ""), one.of
        lines.append(f"| {name} | {one.what} | {ends[0]} | {ends[1]} | {law.kind} | {slope} |")
    return lines


def _amount(value: float, unit: str) -> str:
    if unit == "B":
        for name, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if abs(value) >= size:
                return f"{_short(value / size)} {name}"
        return f"{_short(value)} B"
    return f"{_short(value)} {unit}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def put(
    lines: Sequence[str], path: Path = DOCUMENT, *, marks: tuple[str, str] = (BEGIN, END)
) -> None:
    """Replace what stands between the marks of a document.

    Raises:
        ValueError: the document has no such marks.
    """
    body = path.read_text(encoding="utf-8")
    head, begin, rest = body.partition(marks[0])
    _, end, tail = rest.partition(marks[1])
    if not (begin and end):
        raise ValueError(f"{path} must hold {marks[0]} and {marks[1]}")
    path.write_text("\n".join([head + begin, *lines, end + tail]), encoding="utf-8")


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), help="these parts")
    parser.add_argument("--half", action="store_true", help="half of every size")
    parser.add_argument("--write", action="store_true", help=f"into {DOCUMENT.name}")
    options = parser.parse_args()
    if options.write and (options.only or options.half):
        parser.error("--write takes the whole table: leave --only and --half out")
    measured = Measured()
    began = time.process_time()
    for name in options.only or PARTS:
        start = time.process_time()
        PARTS[name](measured, 0.5 if options.half else 1.0)
        print(f"{name}: {time.process_time() - start:,.1f} s of processor time", flush=True)
    lines = table(measured)
    print("\n".join(lines))
    print(f"{time.process_time() - began:,.0f} s of processor time in all")
    if options.write:
        put(lines)


if __name__ == "__main__":
    main()
