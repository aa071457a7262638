"""Faults against a whole service on Postgres, one after the other, then everything at once.

Those that `tests/worker` and `tests/backend` have are left to them here, for processor time is
dear; `make chaos` strikes with every kind on both databases, each in turn and then at random; see
`docs/reliability.md`. Curves, ends, files, processes and the database are judged when the house has
been stopped.
"""

from pathlib import Path

import pytest

from tests.chaos.chaos import Chaos, Plan
from tests.chaos.faults import FAULTS
from tests.chaos.house import House
from tests.chaos.verify import Figures
from tests.conftest import postgres_binaries, unavailable

pytestmark = [pytest.mark.service, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
#: Long steps cost time and no processor.
PLAN = Plan(jobs=3, steps=60, step_s=0.05)
STRUCK = ["checkpoint", "commit", "database", "everything"]
#: Struck by a test of its own, which says how it ends.
ELSEWHERE = {
    "runner": "tests/worker/test_supervisor.py::test_supervise__a_real_run_ends_on_another_machine",
    "worker": "tests/worker/test_worker.py::test_worker__sigkill_takes_the_runner_along",
    "stop": "tests/worker/test_worker.py::test_worker__a_frozen_worker_that_wakes_up",
    "drain": "tests/worker/test_worker.py::test_worker__sigterm_drains",
    "duplicates": "tests/worker/test_worker.py::test_worker__a_submitted_run_is_sent_claimed",
    "broker": "tests/worker/test_worker.py::test_worker__a_broker_that_is_emptied_or_dies",
    "flush": "tests/worker/test_worker.py::test_worker__a_broker_that_is_emptied",
    "api": "tests/backend/test_embedded.py::test_stack__what_dies_is_started_again",
    "away": "tests/worker/test_supervisor.py::test_supervise__an_unreachable_database_ends",
    "clock": "tests/backend/store/test_reaper.py::test_lease__is_by_the_databases_clock",
    "leap": "tests/worker/test_supervisor.py::test_supervise__another_attempt_fences_this_one_off",
    "lock": "tests/worker/test_tail.py::test_rest__is_stored_once_the_database_is_back",
}


@pytest.fixture(scope="module")
def chaos():
    """A house that the faults of this module strike in turn."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CALIFT_HOME", "CALIFT_DATABASE_URL", "CALIFT_BROKER_URL"):
            patch.delenv(name, raising=False)
        if postgres_binaries() is None:
            unavailable("no Postgres server binaries on this machine")
        house = House("postgres", workers=2)
        try:
            made = Chaos(house, PLAN)
            made.begin()
            yield made
        finally:
            house.remove()


def test_faults__nothing_is_lost_done_twice_torn_or_left(chaos):
    for kind in STRUCK:
        chaos.strike(kind)
        chaos.recover()
    chaos.settle()
    figures = chaos.end()
    assert figures.faulty() == [], figures.line()
    assert figures.by_kind == dict.fromkeys(STRUCK, 1)
    assert figures.jobs >= PLAN.jobs
    assert {kind for kind, times in figures.recovery_s.items() if times} == set(STRUCK)


def test_kinds__are_struck_here_or_by_a_test_of_their_own():
    assert {*STRUCK, *ELSEWHERE} == {*FAULTS, "everything"}
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / file).read_text(), test


def test_figures__say_what_is_wrong():
    figures = Figures("sqlite", jobs=2, faults=1, lost=["a is gone"], wasted=0.25)
    assert figures.faulty() == ["lost: a is gone"]
    assert figures.line() == (
        "jobs=2 faults=1 lost=1 finished_twice=0 orphans=0 curve_holes=0 wasted=25.0%"
    )
