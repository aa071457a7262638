"""The first run in line: the same as by looking at all of them, and no dearer when many wait."""

import random
from collections.abc import Callable
from typing import Any

from sqlalchemy import func, insert, select, update

from backend.store.engine import NOW, open_engine, reading, seconds_now, writing
from backend.store.line import first_in_line
from backend.store.models import Outbox, Run, Turn, Worker
from backend.store.stores import Stores
from tests.conftest import spec_of

OWNERS = (None, "ada", "bob", "eve", "zoe")
QUEUES = ("auto", "cpu", "gpu", "gpu-multi-2")
WORKING = ("STARTING", "RUNNING", "CANCELLING")


def a_run(number: int, **values: Any) -> dict[str, Any]:
    """A row of `runs`, with what a claim looks at in `values`."""
    spec = spec_of()
    return {
        "id": f"{number:012x}",
        "name": spec.name,
        "spec": spec.model_dump(mode="json"),
        "spec_sha256": "",
        "method": "carot",
        "model": "m",
        "suite": "s",
        "seed": 0,
        "created_at": 1.0,
        "queued_at": 1.0,
        "event_seq": 1,
        "phase": "QUEUED",
        "queue": "gpu",
        "line_at": float(number),
        "priority": 0,
        "submitted_by": "ada",
    } | values


def by_hand(rows, turns, served, message_run, quota):
    """The next run by the rule's own words."""

    def at_work(row):
        owner = row["submitted_by"] or ""
        return sum(r["phase"] in WORKING and (r["submitted_by"] or "") == owner for r in rows)

    able = [
        row
        for row in rows
        if row["phase"] == "QUEUED"
        and (row["queue"] in served or row["id"] == message_run)
        and not (quota and at_work(row) >= quota)
    ]
    able.sort(
        key=lambda row: (
            -row["priority"],
            at_work(row),
            turns.get(row["submitted_by"] or "", 0.0),
            row["line_at"],
            row["id"],
        )
    )
    return able[0]["id"] if able else None


def test_line__first_is_the_one_that_a_look_at_all_finds(store):
    chance = random.Random(7)
    for _ in range(15):
        rows = [
            a_run(
                number,
                phase=chance.choice(("QUEUED", "QUEUED", "QUEUED", "SUCCEEDED", *WORKING)),
                queue=chance.choice(QUEUES),
                line_at=float(chance.randrange(6)),
                priority=chance.choice((-1, 0, 0, 3)),
                submitted_by=chance.choice(OWNERS),
            )
            for number in range(chance.randrange(12))
        ]
        turns = {
            owner or "": float(chance.randrange(3)) for owner in OWNERS if chance.random() < 0.6
        }
        with writing(store.engine) as connection:
            connection.exec_driver_sql("DELETE FROM runs")
            connection.exec_driver_sql("DELETE FROM turns")
            if rows:
                connection.execute(insert(Run), rows)
            if turns:
                values = [{"owner": owner, "at": at} for owner, at in turns.items()]
                connection.execute(insert(Turn), values)
        for _ in range(3):
            served = chance.sample(QUEUES, chance.randrange(1, 4))
            message_run = f"{chance.randrange(12):012x}"
            quota = chance.choice((0, 0, 1, 2))
            with writing(store.engine) as connection:
                found = first_in_line(
                    connection, served, message_run=message_run, quota_running=quota
                )
            expected = by_hand(rows, turns, served, message_run, quota)
            assert (found.id if found else None) == expected, (
                rows,
                turns,
                served,
                message_run,
                quota,
            )


def steps(store: Stores, call: Callable[[], Any]) -> int:
    """What a call costs SQLite, in hundreds of steps of its machine: no clock is in it."""
    counted = 0

    def tick() -> int:
        nonlocal counted
        counted += 1
        return 0

    with reading(store.engine) as connection:
        driver = connection.connection.driver_connection
        driver.set_progress_handler(tick, 100)
    # The pool hands out the connection that came back last.
    try:
        call()
    finally:
        driver.set_progress_handler(None, 0)
    return counted


def fill(store: Stores, first: int, last: int) -> None:
    """Queue runs, most of one owner, with their messages; as many have succeeded."""
    with writing(store.engine) as connection:
        rows = [
            a_run(n, submitted_by="ada" if n % 10 else "bob", token_id=f"token {n % 500}")
            for n in range(first, last)
        ]
        connection.execute(insert(Run), rows)
        ended = [row | {"id": f"e{row['id'][1:]}", "phase": "SUCCEEDED"} for row in rows]
        connection.execute(insert(Run), ended)
        messages = [{"run_id": row["id"], "created_at": 1.0} for row in rows]
        connection.execute(insert(Outbox), messages)


def test_line__costs_the_same_whatever_waits(sqlite_url):
    store = Stores.on(open_engine(sqlite_url))
    store.workers.seen("w", host="h", queues=("gpu",), device="GPU", run_id="x")
    claims = 0

    def claim():
        nonlocal claims
        claims += 1
        taken = store.claims.claim_next(
            ("gpu",), message_run=None, worker_id=f"w{claims}", ttl_s=60
        )
        assert taken is not None

    def submit():
        store.runs.submit(spec_of(), token_id="token 1", submitted_by="ada", max_queued=1_000_000)

    calls = {"claim": claim, "submit": submit, "messages": lambda: store.outbox.take(20)}
    fill(store, 0, 200)
    few = {name: steps(store, call) for name, call in calls.items()}
    fill(store, 200, 6_000)
    many = {name: steps(store, call) for name, call in calls.items()}
    assert min(few.values()) > 0
    for name in calls:
        # Thirty times the rows; a look at each of them would be thirty times the steps.
        assert many[name] <= 2 * few[name] + 5, (few, many)


def test_sweep__is_due_for_one_of_many(store):
    others = [Stores.on(store.engine) for _ in range(3)]
    assert [one.reaper.due(60.0) for one in (store, *others)] == [True, False, False, False]
    assert not store.reaper.due(60.0)
    assert others[0].reaper.due(0.0)
    # A database whose clock was set back is swept all the same.
    with writing(store.engine) as connection:
        connection.exec_driver_sql(f"UPDATE chores SET at = {seconds_now(store.engine) + 3600}")
    assert others[1].reaper.due(60.0)


def test_workers__that_are_alike_are_counted_and_those_out_are_named(store):
    for n in range(3):
        store.workers.seen(f"a{n}", host=f"h{n}", queues=("gpu", "cpu"), device="GPU")
    store.workers.seen("b", host="h3", queues=("gpu",), device="GPU", run_id="x")
    for_gpu, waits = spec_of(train={"device": "cuda"}), "All 2 workers that could take it are busy."
    assert store.workers.why_waits(for_gpu) == ""
    for n in range(3):
        store.workers.drain(f"a{n}", by="ada")
    assert store.workers.why_waits(for_gpu) == "The worker that could take it is busy."
    store.workers.seen("c", host="h4", queues=("gpu",), device="GPU", run_id="y")
    assert store.workers.why_waits(for_gpu) == waits
    with writing(store.engine) as connection:
        connection.execute(update(Worker).values(trouble="no room."))
    assert "h3: no room." in store.workers.why_waits(for_gpu)
    with writing(store.engine) as connection:
        connection.execute(update(Worker).values(seen_at=NOW - 3600))
    assert "No worker has reported in lately" in store.workers.why_waits(for_gpu)
    assert len(store.workers.recent()) == 5
    store.reaper.sweep()
    assert len(store.workers.recent()) == 5
    with writing(store.engine) as connection:
        connection.execute(update(Worker).values(seen_at=NOW - 2 * 86_400))
    assert store.workers.recent() == []
    store.reaper.sweep()
    with reading(store.engine) as connection:
        assert connection.execute(select(func.count()).select_from(Worker)).scalar_one() == 0
