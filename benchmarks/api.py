"""What the analysis API takes to answer, over real HTTP, of a large stored evaluation.

    python benchmarks/api.py                        # a table, 50,000 samples × 1,000 classes
    python benchmarks/api.py --json                 # its last line holds the numbers
    python benchmarks/api.py --samples 5000 --classes 100 --requests 10

Predictions of a simulated over-confident model are stored as a run stores them, the service is
started as a process of its own on SQLite, and the typed client asks it one request after another.
Times are those of the client, JSON read and checked. What is asked:

- **first**: the first diagram of an evaluation: the file is verified, read and scored.
- **new bins**: a diagram at a number of bins that nobody asked for before: recomputed from the
  scores with its floor, interval, band and smooth curve.
- **new temperature**: one pass over all logits.
- **remembered**: the same diagram again.
- **slices**: a page of 50 classes under a new condition.
- **measures**, **audit**, **calibrator**, **transfer**: each once, and once more remembered.

`cpu_ms` is the processor time that the service's process took per request, which does not count
what else the machine does; `peak_mb` its largest resident memory (VmHWM) at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from backend.settings import Settings
from backend.storage.artifacts import ArtifactStore, publish_artifact
from backend.store.engine import open_engine
from backend.store.migrations import upgrade
from backend.store.stores import Stores
from calift_core import __version__
from calift_core.calibration import evaluate_all
from calift_core.client import Client
from calift_core.errors import ServiceUnavailableError
from calift_core.predictions.types import Predictions, PredictionsMetadata
from calift_core.predictions.write import write_predictions
from calift_core.schema import records as r
from calift_core.schema.report import EvaluationReport, Report, Summary
from calift_core.schema.spec import parse_spec


def simulated(name: str, role: Any, *, n: int, n_classes: int, seed: int) -> Predictions:
    """Logits of an over-confident model that is right about three times in four."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=n)
    logits = rng.standard_normal((n, n_classes), dtype=np.float32) * 2
    logits[np.arange(n), labels] += rng.normal(9.0, 3.0, n).astype(np.float32)
    return Predictions(
        ids=np.array([f"{name}/{i:06d}.jpg" for i in range(n)]),
        labels=labels,
        logits=logits,
        metadata=PredictionsMetadata(
            dataset=name,
            role=role,
            class_names=tuple(f"class {c}" for c in range(n_classes)),
            logit_scale=1.0,
        ),
    )


def fill(settings: Settings, folder: Path, *, n: int, n_classes: int) -> tuple[str, str]:
    """Store a finished run with an ID evaluation, a shift and a calibration split.

    Returns:
        The run's id and that of its ID evaluation.
    """
    store = Stores.on(open_engine(settings.database_url))
    upgrade(store.engine)
    artifacts = ArtifactStore(settings.artifacts_dir)
    spec = parse_spec({"name": "simulated", "method": {"kind": "flyp"}})
    run_id = store.runs.submit(spec)
    claim = store.claims.claim(run_id, worker_id="benchmark", ttl_s=3600)
    assert claim is not None
    said: list[Any] = [r.PhaseRecord(phase="evaluating")]
    reports = []
    sets = (
        ("test", "id", n),
        ("shift", "shift", max(1, n // 5)),
        ("calibration", "calibration", max(1, n // 5)),
    )
    for seed, (name, role, size) in enumerate(sets):
        made = simulated(name, role, n=size, n_classes=n_classes, seed=seed)
        path = folder / f"{name}.parquet"
        digest = write_predictions(path, made)
        assert publish_artifact(
            store.files, artifacts, run_id, claim.attempt,
            name=f"predictions/{path.name}", kind="predictions", path=path,
        )  # fmt: skip
        if role != "calibration":
            reports.append(
                EvaluationReport.model_validate(
                    evaluate_all(made.probs(), made.labels)
                    | {
                        "dataset": name,
                        "role": role,
                        "n_classes": n_classes,
                        "predictions_sha256": digest,
                    }
                )
            )
            said.append(
                r.EvaluationRecord(evaluation=reports[-1], predictions=f"predictions/{path.name}")
            )
        path.unlink()
    said.append(r.DoneRecord(summary=Summary(), steps=1))
    assert store.records.record(run_id, claim.attempt, said)
    report = Report(
        run_id=run_id, name="simulated", spec={}, spec_sha256="", resolved={}, summary=Summary(),
        evaluations=reports, spectrum=None, selection={}, model={}, data={}, timings_s={},
        environment={},
    )  # fmt: skip
    body = report.model_dump(mode="json")
    assert store.claims.finish(run_id, claim.attempt, phase="SUCCEEDED", report=body)
    evaluation = store.results.run_evaluations(run_id)[0]
    store.close()
    return run_id, evaluation.id


@contextmanager
def served(
    settings: Settings, port: int, variables: Mapping[str, str] | None = None
) -> Iterator[tuple[Client, int]]:
    """The service as a process of its own, with more settings; the client and the process id."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CALIFT_")}
    environ |= {
        "CALIFT_HOME": str(settings.home),
        "CALIFT_BROKER_URL": "memory://",
        "CALIFT_PORT": str(port),
    } | dict(variables or {})
    with (settings.home / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "backend"], env=environ, stdout=log, stderr=log
        )
        try:
            with Client(
                f"http://127.0.0.1:{port}", settings.admin_token(), timeout_s=600
            ) as client:
                deadline = time.monotonic() + 120
                while True:
                    try:
                        client.health()
                        break
                    except ServiceUnavailableError:
                        if process.poll() is not None or time.monotonic() > deadline:
                            raise
                        time.sleep(0.05)
                yield client, process.pid
        finally:
            process.terminate()
            process.wait(30)


def peak_mb(pid: int) -> float:
    """Largest resident memory of a process so far, in 2²⁰ bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} says nothing of its memory")


def processor_s(pid: int) -> float:
    """Processor time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def measure(
    client: Client, pid: int, run_id: str, evaluation_id: str, requests: int
) -> dict[str, Any]:
    """Ask everything; milliseconds by what was asked."""
    times: dict[str, list[float]] = {}
    processor: dict[str, float] = {}

    def ask(name: str, call: Callable[[], Any]) -> None:
        before = processor_s(pid)
        times.setdefault(name, []).append(timed(call))
        processor[name] = processor.get(name, 0.0) + processor_s(pid) - before

    ask("first", lambda: client.reliability(evaluation_id))
    for k in range(requests):
        ask(
            "new bins",
            lambda k=k: client.reliability(evaluation_id, n_bins=16 + k),
        )
    for k in range(requests):
        ask(
            "remembered",
            lambda k=k: client.reliability(evaluation_id, n_bins=16 + k),
        )
    for k in range(max(3, requests // 10)):
        ask(
            "new temperature",
            lambda k=k: client.reliability(evaluation_id, temperature=1.1 + 0.1 * k),
        )
    for k in range(max(3, requests // 10)):
        ask(
            "slices",
            lambda k=k: client.slices(evaluation_id, where=f"confidence > {0.01 + k / 1000}"),
        )
    for name, call in (
        ("measures without class-wise", lambda: client.measures(evaluation_id, classwise=False)),
        ("measures", lambda: client.measures(evaluation_id)),
        ("audit", lambda: client.audit(evaluation_id)),
        ("calibrator", lambda: client.calibrate(evaluation_id)),
        ("calibrator, isotonic", lambda: client.calibrate(evaluation_id, kind="isotonic")),
        ("transfer", lambda: client.transfer(run_id)),
    ):
        ask(name, call)
        ask(f"{name}, remembered", call)
    return {
        name: {
            "n": len(found),
            "p50_ms": round(statistics.median(found), 1),
            "p95_ms": round(float(np.quantile(found, 0.95)), 1),
            "cpu_ms": round(1e3 * processor[name] / len(found), 1),
        }
        for name, found in times.items()
    }


def main() -> None:
    """Store, serve, ask, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--json", action="store_true", help="the last line holds the numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        settings = Settings(home=home, broker_url="memory://", free_space_floor_bytes=0)
        settings.admin_token()
        run_id, evaluation_id = fill(settings, home, n=options.samples, n_classes=options.classes)
        with served(settings, options.port) as (client, pid):
            times = measure(client, pid, run_id, evaluation_id, options.requests)
            memory = peak_mb(pid)
    load = os.getloadavg()[0]
    print(f"{options.samples:,} samples × {options.classes:,} classes, load {load:.1f}")
    print(f"{'asked':40}{'n':>5}{'p50 ms':>11}{'p95 ms':>11}{'cpu ms':>11}")
    for asked, row in times.items():
        numbers = "".join(f"{row[key]:>11,.1f}" for key in ("p50_ms", "p95_ms", "cpu_ms"))
        print(f"{asked:40}{row['n']:>5}{numbers}")
    print(f"largest resident memory of the service: {memory:,.0f} MiB")
    if options.json:
        body = {
            "calift": __version__,
            "samples": options.samples,
            "classes": options.classes,
            "load_1min": load,
            "cores": os.cpu_count(),
            "peak_mb": round(memory),
            "times": times,
        }
        print(json.dumps(body))


if __name__ == "__main__":
    main()
