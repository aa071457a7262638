"""The simulated fleet: a turned clock rules the real queue, and the simulation can fail."""

import pytest

from backend.store.claims import Claims
from backend.store.engine import open_engine, seconds_now
from research.measurements import fleet

#: Every fault several times within minutes.
HARSH = fleet.Plan(
    workers=8,
    runs=60,
    mean_run_s=90.0,
    deaths_per_hour=4.0,
    freezes_per_hour=4.0,
    lost_messages=0.2,
    doubled_messages=0.2,
)


def test_fleet__every_run_succeeds_once_whatever_fails(database_url):
    outcome = fleet.simulate(database_url, HARSH)
    assert outcome.deaths > 0
    assert outcome.freezes > 0
    assert outcome.fenced > 0
    assert outcome.takeover_s["n"] > 0
    # A lease, the lease reaper's pause, and the wait for a worker that is free.
    assert outcome.takeover_s["p50"] >= HARSH.ttl_s - HARSH.heartbeat_s
    assert (outcome.lost, outcome.finished_twice) == (0, 0)
    assert outcome.succeeded + outcome.given_up == HARSH.runs
    assert outcome.succeeded > HARSH.runs / 2


def test_clock__is_the_databases_own(database_url):
    engine = open_engine(database_url)
    clock = fleet.TurnedClock()
    clock.rule(engine)
    for moment in (1.9e9, 1.9e9 + 0.25):
        clock.now = moment
        assert seconds_now(engine) == pytest.approx(moment, abs=1e-3)
    engine.dispose()


def test_fleet__sees_a_queue_without_a_fence(sqlite_url, monkeypatch):
    finish = Claims.finish

    def unfenced(self, run_id, attempt, **how):
        with self._engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE runs SET phase = 'RUNNING', attempt = ? WHERE id = ?", (attempt, run_id)
            )
        return finish(self, run_id, attempt, **how)

    monkeypatch.setattr(Claims, "finish", unfenced)
    assert fleet.simulate(sqlite_url, HARSH).finished_twice > 0
