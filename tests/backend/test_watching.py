"""Many who watch cost the database what one does."""

from contextlib import ExitStack

import anyio
import pytest

from backend.http.authentication import Principal
from backend.services.watching import Watch
from backend.store.history import History, Position
from calift_core.errors import CaliftError
from tests.conftest import spec_of, until


class Counting:
    """An authenticator that says yes and counts."""

    asked = 0

    async def holds(self, principal: Principal) -> bool:
        self.asked += 1
        return principal.name == "ada"


def test_watch__asks_the_database_once_for_all(store, monkeypatch):
    requested = []
    positions = History.positions

    def counted(self, run_ids):
        requested.append(sorted(run_ids))
        return positions(self, run_ids)

    monkeypatch.setattr(History, "positions", counted)
    runs = sorted(store.runs.submit(spec_of()) for _ in range(20))
    authenticator = Counting()
    watch = Watch(store.history, authenticator, poll_s=0.0)
    found = []

    async def look(run_id):
        found.append(await watch.position(run_id))

    async def main():
        with ExitStack() as watched:
            for run_id in runs * 10:
                watched.enter_context(watch.of(run_id))
            await watch.position(runs[0])
            async with anyio.create_task_group() as group:
                for run_id in runs * 10:
                    group.start_soon(look, run_id)
            store.runs.request_cancel(runs[3])
            assert await watch.position(runs[3]) == Position("CANCELLED", 2)
            store.runs.delete(runs[3])
            assert await watch.position(runs[3]) is None
        assert watch._watched == {}
        assert watch._positions == {}
        for name, good in (("ada", True), ("bob", False)):
            who = Principal(name, "read", name, token_sha256=name)
            assert [await watch.holds(who, 60.0) for _ in range(50)] == [good] * 50
            assert await watch.holds(who, 0.0) is good

    anyio.run(main)
    # Two hundred looks at one moment are one question, about all that are watched.
    assert found == [Position("QUEUED", 1)] * 200
    assert len(requested) <= 5
    assert all(run_ids == runs for run_ids in requested)
    assert authenticator.asked == 4


def test_stream__of_a_run_that_is_deleted_ends(client, app):
    run_id = client.submit(spec_of()).id
    events = client.events(run_id)
    assert next(events).kind == "state"
    app.state.services.store.runs.delete(run_id)
    # The stream ends; the client takes it up again and hears why.
    with pytest.raises(CaliftError, match="there is no run"):
        list(events)
    until(lambda: app.state.services.limits["streams"].admitted == 0, what="the stream to close")


def test_total__is_counted_so_far_and_no_further(store, monkeypatch):
    monkeypatch.setattr("backend.store.cursors.COUNTED", 3)
    for expected in (1, 2, 3, 4, 4, 4):
        store.runs.submit(spec_of())
        items, cursor, total = store.runs.page(limit=2)
        assert total == expected
        assert len(items) == min(2, expected)
    assert store.runs.page(limit=2, cursor=cursor)[2] == 4
