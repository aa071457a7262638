"""Many who watch runs, one who asks the database: where each watched run is.

An event stream sleeps and asks here; the events themselves are read only when there are new ones.
Used from the event loop alone.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi.concurrency import run_in_threadpool

from backend.http.authentication import Authenticator, Principal
from backend.store.history import History, Position

#: Answers about tokens that are kept at most, a little while each.
_KEPT = 1000


class Watch:
    """Where watched runs are, as it was at most `poll_s` ago.

    Args:
        authenticator: knows whether a token is still good.
    """

    def __init__(
        self, history: History, authenticator: Authenticator, *, poll_s: float = 0.5
    ) -> None:
        self._history, self._authenticator, self._poll_s = history, authenticator, poll_s
        self._watched: Counter[str] = Counter()
        self._positions: dict[str, Position] = {}
        self._looked_at = 0.0
        self._looking = False
        self._good: dict[tuple[str, str], tuple[float, bool]] = {}

    @contextmanager
    def of(self, run_id: str) -> Iterator[None]:
        self._watched[run_id] += 1
        try:
            yield
        finally:
            self._watched[run_id] -= 1
            if not self._watched[run_id]:
                del self._watched[run_id]
                self._positions.pop(run_id, None)

    async def position(self, run_id: str) -> Position | None:
        """Where a watched run is. None: it is there no more."""
        old = time.monotonic() - self._looked_at >= self._poll_s
        # While somebody asks, the others go on with the last answer.
        if run_id not in self._positions or (old and not self._looking):
            await self._look()
        return self._positions.get(run_id)

    async def _look(self) -> None:
        self._looking = True
        try:
            wanted = list(self._watched)
            self._positions = await run_in_threadpool(self._history.positions, wanted)
            self._looked_at = time.monotonic()
        finally:
            self._looking = False

    async def holds(self, principal: Principal, max_age_s: float) -> bool:
        """Whether what a request came with is still good, as it was at most `max_age_s` ago."""
        key = principal.session.id if principal.session else "", principal.token_sha256
        asked_at, good = self._good.get(key, (None, False))
        now = time.monotonic()
        if asked_at is None or now - asked_at >= max_age_s:
            good = await self._authenticator.holds(principal)
            if len(self._good) >= _KEPT:
                self._good.clear()
            self._good[key] = now, good
        return good
