"""What tests of the store do to runs and read of them."""

from typing import Any

from sqlalchemy import text

from backend.store.claims import Claim
from backend.store.engine import writing
from backend.store.stores import Stores
from calift_core.schema import records as r
from tests.conftest import spec_of

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


def send_all(store: Stores) -> None:
    for row in store.outbox.unsent(1000):
        store.outbox.mark_sent(row.id)
