"""Postgres answers what is asked often through an index, and never by reading a whole table."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from backend.store.engine import open_engine
from backend.store.stores import Stores
from tests.conftest import fresh_postgres

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from filled import add_runs  # noqa: E402

#: Tables that grow with use. The others hold tens of rows, where a scan is the best plan.
LARGE = {"runs", "evaluations", "events", "outbox", "metrics", "run_tags"}

Statement = tuple[str, Any]


@pytest.fixture(scope="module")
def engine(postgres):
    """2,000 finished runs with their evaluations and 300 that wait, with statistics."""
    with fresh_postgres(postgres) as url:
        engine = open_engine(url)
        add_runs(engine, 0, 2000, evaluations=4, points=20)
        add_runs(engine, 2000, 2300, phase="QUEUED")
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        yield engine
        engine.dispose()


@contextmanager
def statements(engine: Engine) -> Iterator[list[Statement]]:
    """What is sent meanwhile."""
    sent: list[Statement] = []

    def keep(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", keep)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", keep)


def scanned(engine: Engine, statement: Statement) -> set[str]:
    """Large tables that no plan of a statement reads but from end to end.

    A small table is read whole because that is quickest, so such plans are made dear first: one
    that is left has no index to use.
    """
    sql, parameters = statement
    with engine.connect() as connection:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        found = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sql}", parameters).scalar_one()
        connection.rollback()
    tables = set()
    waiting = [found if isinstance(found, list) else json.loads(found)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            if node.get("Node Type") in ("Seq Scan", "Parallel Seq Scan"):
                tables.add(node["Relation Name"])
            waiting += [v for v in node.values() if isinstance(v, dict | list)]
    return tables & LARGE


#: The sweep is not here: it looks at every message that was not sent yet (docs/scale.md).
ASKED: dict[str, Callable[[Stores, str], Any]] = {
    "newest runs": lambda s, run: s.runs.page(),
    "a run": lambda s, run: s.runs.get(run),
    "a run's evaluations": lambda s, run: s.results.run_evaluations(run),
    "newest evaluations": lambda s, run: s.results.list_evaluations(),
    "a data set's evaluations": lambda s, run: s.results.list_evaluations(datasets=["sketch"]),
    "a run's events": lambda s, run: s.history.events_after(run, 0),
    "a run's curves": lambda s, run: s.history.metrics(run),
    "a claim": lambda s, run: s.claims.claim_next(
        ["auto", "cpu"], message_run=None, worker_id="w", ttl_s=60
    ),
    "messages to send": lambda s, run: s.outbox.take(),
    "the queue": lambda s, run: s.runs.queue_depth(),
}


@pytest.mark.parametrize("what", ASKED)
def test_plan__has_an_index_for_every_large_table(engine, what):
    stores = Stores.on(engine)
    finished = stores.runs.page(phase=("SUCCEEDED",), limit=1)[0][0].id
    with statements(engine) as sent:
        ASKED[what](stores, finished)
    verbs = ("SELECT", "UPDATE", "DELETE", "WITH")
    requested = [one for one in sent if one[0].lstrip().upper().startswith(verbs)]
    assert requested
    slow = {sql: tables for sql, params in requested if (tables := scanned(engine, (sql, params)))}
    assert slow == {}
