"""Faults against a whole service, one after the other, then everything at once.

Those that `tests/worker` has on both kinds of database are left to it here, for processor time is
dear; `make chaos` strikes with every kind on both, at random; see `docs/reliability.md`. Curves,
ends, files, processes and the database are judged when the house has been stopped.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.chaos import Chaos, Plan
from tests.chaos.faults import FAULTS
from tests.chaos.house import House
from tests.chaos.verify import Figures
from tests.conftest import postgres_binaries, unavailable

pytestmark = [pytest.mark.service, pytest.mark.timeout(1800)]

#: Long steps cost time and no processor.
PLAN = Plan(jobs=3, steps=100, step_s=0.05)
STRUCK = {
    "sqlite": ["commit", "leap", "stop", "lock", "away", "everything"],
    "postgres": [
        "runner", "checkpoint", "commit", "leap", "broker", "flush", "duplicates", "database",
        "away", "everything",
    ],
}  # fmt: skip


@pytest.fixture(scope="module", params=list(STRUCK))
def chaos(request: pytest.FixtureRequest) -> Iterator[Chaos]:
    """A house that the faults of this module strike in turn."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CALIFT_HOME", "CALIFT_DATABASE_URL", "CALIFT_BROKER_URL"):
            patch.delenv(name, raising=False)
        if request.param == "postgres" and postgres_binaries() is None:
            unavailable("no Postgres server binaries on this machine")
        house = House(request.param, workers=2)
        try:
            made = Chaos(house, PLAN)
            made.begin()
            yield made
        finally:
            house.remove()


def test_faults__nothing_is_lost_done_twice_torn_or_left(chaos: Chaos) -> None:
    kinds = STRUCK[chaos.house.database.kind]
    for kind in kinds:
        chaos.strike(kind)
        chaos.recover()
    chaos.settle()
    figures = chaos.end()
    assert figures.faulty() == [], figures.line()
    assert figures.by_kind == dict.fromkeys(kinds, 1)
    assert figures.jobs >= PLAN.jobs
    assert {kind for kind, times in figures.recovery_s.items() if times} == set(kinds)


def test_kinds__are_struck_here_or_where_the_document_says() -> None:
    elsewhere = {"worker", "drain", "clock", "api"}
    assert {k for kinds in STRUCK.values() for k in kinds} | elsewhere == {*FAULTS, "everything"}


def test_figures__say_what_is_wrong() -> None:
    figures = Figures("sqlite", jobs=2, faults=1, lost=["a is gone"], wasted=0.25)
    assert figures.faulty() == ["lost: a is gone"]
    assert figures.line() == (
        "jobs=2 faults=1 lost=1 finished_twice=0 orphans=0 curve_holes=0 wasted=25.0%"
    )
