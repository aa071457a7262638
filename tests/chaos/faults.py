"""What is done to a service. Each fault is a function of the house, chance and the runs at work.

It returns the runs that it hit, whose recovery is timed; an empty list where it hit none, and None
where there is nothing to strike at right now.
"""

import contextlib
import functools
import os
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import redis
from sqlalchemy import text

from backend.dispatch.queue import make_celery, publish
from backend.settings import Settings
from backend.store.engine import open_engine, writing
from tests.chaos.house import House


@dataclass(frozen=True)
class AtWork:
    """A run that a worker holds, by what the database says."""

    run_id: str
    owner: str | None


Hit = list[str] | None
Fault = Callable[[House, random.Random, Sequence[AtWork]], Hit]


def of_a_worker(strike: Callable[[House, random.Random, int], None]) -> Fault:
    """A fault of a worker that holds a run: it is given the worker's number."""

    @functools.wraps(strike)
    def fault(house: House, rng: random.Random, runs: Sequence[AtWork]) -> Hit:
        held = [(run, at) for run in runs if (at := house.worker_of(run.owner)) is not None]
        if not held:
            return None
        run, at = rng.choice(held)
        strike(house, rng, at)
        return [run.run_id]

    return fault


def runner(house: House, rng: random.Random, runs: Sequence[AtWork]) -> Hit:
    """kill -9 of a runner in the middle of its training."""
    for run in rng.sample(list(runs), len(runs)):
        pid = house.runner_of(run.run_id)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return [run.run_id]
    return None


def checkpoint(house: House, _: random.Random, runs: Sequence[AtWork]) -> Hit:
    """The next runner that writes a checkpoint is killed when half of it is there."""
    if not runs:
        return None
    (house.traps / "checkpoint").touch()
    return []


def commit(house: House, rng: random.Random, runs: Sequence[AtWork]) -> Hit:
    """The next worker that commits what a run said dies just before, or before it knows of it."""
    if not runs:
        return None
    (house.traps / rng.choice(["commit-before", "commit-after"])).touch()
    return []


@of_a_worker
def worker(house: House, rng: random.Random, at: int) -> None:
    """kill -9 of a worker; another is started in its place a little later."""
    house.kill_worker(at)
    house.later(rng.uniform(0, 1), lambda: house.start_worker(at))


@of_a_worker
def clock(house: House, rng: random.Random, at: int) -> None:
    """A worker dies and comes back with a clock that is two hours before or behind."""
    house.kill_worker(at)
    house.start_worker(at, clock_s=rng.choice([-7200.0, 7200.0]))


def leap(house: House, _: random.Random, runs: Sequence[AtWork]) -> Hit:
    """The database's own clock leaps two hours ahead: every lease is over, every holder alive."""
    if house.database_away or not runs:
        return None
    engine = open_engine(house.database.url)
    try:
        with writing(engine) as connection:
            connection.execute(
                text("UPDATE runs SET lease_expires = lease_expires - 7200 WHERE lease_expires > 0")
            )
    except Exception:  # the database is what is gone
        return None
    finally:
        engine.dispose()
    return [run.run_id for run in runs]


@of_a_worker
def stop(house: House, rng: random.Random, at: int) -> None:
    """SIGSTOP of a worker until another has its run, then it wakes up."""
    child = house.workers[at]
    os.kill(child.pid, signal.SIGSTOP)

    def wake() -> None:
        with contextlib.suppress(ProcessLookupError):
            if house.workers[at] is child:
                os.kill(child.pid, signal.SIGCONT)

    house.later(house.ttl_s * rng.uniform(1.2, 2.0), wake)


@of_a_worker
def drain(house: House, rng: random.Random, at: int) -> None:
    """SIGTERM to a worker: its runner saves, the run is queued, a new worker is started."""
    child = house.workers[at]
    child.terminate()  # `House.tend` starts another when it has ended


def api(house: House, rng: random.Random, _: Sequence[AtWork]) -> Hit:
    """kill -9 of the API, which also relays and sweeps."""
    if house.api is None:
        return None
    house.kill_api()
    house.later(rng.uniform(0, 1), house.start_api)
    return []


def broker(house: House, rng: random.Random, _: Sequence[AtWork]) -> Hit:
    """kill -9 of the broker, which is gone for a while."""
    if house.broker is None:
        return None
    house.kill_broker()
    house.later(rng.uniform(0, house.ttl_s), house.start_broker)
    return []


def flush(house: House, _: random.Random, __: Sequence[AtWork]) -> Hit:
    """FLUSHALL: every message that waits is gone."""
    if not house.broker_answers():
        return None
    with redis.Redis(unix_socket_path=str(house.socket)) as connection:
        connection.flushall()
    return []


def duplicates(house: House, _: random.Random, runs: Sequence[AtWork]) -> Hit:
    """Messages of runs that are at work already, three of each."""
    if not house.broker_answers() or not runs:
        return None
    app = make_celery(Settings(home=house.home, broker_url=house.broker_url))
    for run in [*runs] * 3:
        with contextlib.suppress(Exception):  # the broker may die meanwhile
            publish(app, run.run_id)
    return []


def lock(house: House, rng: random.Random, runs: Sequence[AtWork]) -> Hit:
    """The database hangs for a part of the lease."""
    return _lock(house, runs, house.ttl_s * rng.uniform(0.1, 0.6))


def _lock(house: House, runs: Sequence[AtWork], seconds: float) -> Hit:
    if house.database_away:
        return None
    try:
        house.lock()
    except Exception:  # somebody else holds it, or it is gone
        house.release()
        return None
    house.later(seconds, house.release)
    return [run.run_id for run in runs]


def database(house: House, rng: random.Random, runs: Sequence[AtWork]) -> Hit:
    """kill -9 of every process of the database, which is started again at once.

    SQLite has none: its writers are kept waiting.
    """
    if house.database.kind == "sqlite":
        return lock(house, rng, runs)
    if house.database_away:
        return None
    house.kill_database()
    house.later(rng.uniform(0, 1), house.start_database)
    return [run.run_id for run in runs]


def away(house: House, _: random.Random, runs: Sequence[AtWork]) -> Hit:
    """No database for longer than a lease: whoever works gives itself up before it is over."""
    if house.database.kind == "sqlite":
        return _lock(house, runs, house.ttl_s * 1.5)
    if house.database_away:
        return None
    house.kill_database()
    house.later(house.ttl_s * 1.5, house.start_database)
    return [run.run_id for run in runs]


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        runner, checkpoint, commit, worker, clock, leap, stop, drain, api, broker, flush,
        duplicates, lock, database, away,
    )
}  # fmt: skip
