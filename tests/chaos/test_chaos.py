"""Each kind of fault once, then everything at once, on each kind of database.

`make chaos` and `make soak` do the same for longer, at random; see `docs/reliability.md`. Curves,
ends, files, processes and the database are judged after each module's house is stopped.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.chaos import Chaos, Plan
from tests.chaos.faults import FAULTS
from tests.chaos.house import House
from tests.chaos.verify import Figures
from tests.conftest import postgres_binaries, unavailable

pytestmark = [pytest.mark.service, pytest.mark.timeout(900)]

#: Without power to spare each step of a job is long, and few jobs are enough.
PLAN = Plan(jobs=3, faults=len(FAULTS) + 1, power_cuts=1, pause_s=0.3, steps=100, step_s=0.05)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def chaos(request: pytest.FixtureRequest) -> Iterator[Chaos]:
    """A house that every fault of this module strikes in turn."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CALIFT_HOME", "CALIFT_DATABASE_URL", "CALIFT_BROKER_URL"):
            patch.delenv(name, raising=False)
        if request.param == "postgres" and postgres_binaries() is None:
            unavailable("no Postgres server binaries on this machine")
        house = House(request.param, workers=2)
        made = Chaos(house, PLAN)
        try:
            made.begin()
            yield made
        finally:
            house.remove()


@pytest.mark.parametrize("kind", [*FAULTS, "everything"])
def test_fault__is_survived(chaos: Chaos, kind: str) -> None:
    chaos.strike(kind)
    chaos.recover()
    assert chaos.damage == []


def test_faults__nothing_is_lost_done_twice_torn_or_left(chaos: Chaos) -> None:
    chaos.settle()
    figures = chaos.end()
    assert figures.faulty() == [], figures.line()
    assert figures.jobs >= PLAN.jobs
    assert figures.faults >= 1


def test_figures__say_what_is_wrong() -> None:
    figures = Figures("sqlite", jobs=2, faults=1, lost=["a is gone"], wasted=0.25)
    assert figures.faulty() == ["lost: a is gone"]
    assert figures.line() == (
        "jobs=2 faults=1 lost=1 finished_twice=0 orphans=0 curve_holes=0 wasted=25.0%"
    )
