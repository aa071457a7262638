"""How many expensive requests are answered at once, and the share of them that an owner may have.

A request takes a place, which counts those that are answered and those that wait; without one it is
refused with 503 and `Retry-After`. Its work then waits for a turn, and owners take turns: who has
asked for much waits behind who has asked for little. The event loop does the waiting, so that the
threads, and look-ups of log-ins in them, are left to everybody else.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Literal

from backend.http.problems import HttpError

#: A block that runs when it is its owner's turn.
Turn = Callable[[], AbstractAsyncContextManager[None]]
Kind = Literal[
    "analyses", "pictures", "thumbnails", "scans", "copies", "uploads", "downloads", "exports",
    "streams",
]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A place of an owner's request, for as long as the request holds it."""

    turn: Turn


class FairLimiter:
    """Bounds the requests of one kind, in all and of each owner. Used from the event loop alone.

    Args:
        what: the requests, as in "64 analyses".
        turns: requests that are answered at once; None: all that have a place.
        turns_each: of one owner; None: all of them.
        state: what those with a place do, for the refusal.
    """

    def __init__(
        self,
        what: str,
        *,
        places: int,
        places_each: int,
        turns: int | None = None,
        turns_each: int | None = None,
        state: str = "are answered or wait",
        code: str = "BUSY",
        hint: str = "Try again.",
        retry_s: int = 2,
    ) -> None:
        self._what, self._state = what, state
        self._code, self._hint, self._retry_s = code, hint, retry_s
        self._places, self._places_each = places, places_each
        self._turns = places if turns is None else turns
        self._turns_each = self._turns if turns_each is None else turns_each
        self._held: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        #: Owner → the number of its last turn, while something of it runs or waits.
        self._last: dict[str, int] = {}
        self._numbers = count(1)

    @property
    def held(self) -> int:
        return self._held.total()

    @contextmanager
    def place(self, owner: str) -> Iterator[Place]:
        """Hold a place while the block runs.

        Raises:
            HttpError: 503, the owner has its share already, or all places are taken.
        """
        own = self._held[owner]
        if own >= self._places_each or self.held >= self._places:
            which = f"{own} of your" if own >= self._places_each else f"{self.held}"
            raise HttpError(
                503,
                self._code,
                f"{which} {self._what} {self._state}, and no more may at once.",
                hint=self._hint,
                headers={"Retry-After": str(self._retry_s)},
            )
        self._held[owner] += 1
        try:
            yield Place(partial(self.turn, owner))
        finally:
            _less(self._held, owner)

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Wait until it is the owner's turn, and have it while the block runs."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(future)
        self._give_turns()
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():  # it was given in the moment in which the caller gave up
                self._end_turn(owner)
            raise
        try:
            yield
        finally:
            self._end_turn(owner)

    def _end_turn(self, owner: str) -> None:
        _less(self._running, owner)
        if owner not in self._running and owner not in self._waiting:
            self._last.pop(owner, None)
        self._give_turns()

    def _give_turns(self) -> None:
        while self._running.total() < self._turns:
            may = [o for o in self._waiting if self._running[o] < self._turns_each]
            if not may:
                return
            owner = min(may, key=lambda o: (self._running[o], self._last.get(o, 0)))
            future = self._waiting[owner].popleft()
            if not self._waiting[owner]:
                del self._waiting[owner]
            if not future.done():
                self._running[owner] += 1
                self._last[owner] = next(self._numbers)
                future.set_result(None)


def _less(counts: Counter[str], owner: str) -> None:
    counts[owner] -= 1
    if not counts[owner]:
        del counts[owner]


def limiters(max_streams: int) -> Mapping[Kind, FairLimiter]:
    """The limits of a service's expensive requests.

    Args:
        max_streams: event streams that may be open at once; an owner has half of them.
    """
    return {
        # Most of their work is done one by one (`backend.explore.memory`): more turns only let
        # remembered answers pass.
        "analyses": FairLimiter("analyses", places=64, places_each=16, turns=8, turns_each=4),
        # The page asks four runs about a picture.
        "pictures": FairLimiter("pictures to try", places=16, places_each=6, turns=1),
        # A browser asks for six images at a time.
        "thumbnails": FairLimiter("thumbnails", places=256, places_each=64, turns=2),
        "scans": FairLimiter("looks at data", places=16, places_each=4, turns=4, turns_each=2),
        "copies": FairLimiter(
            "searches for copies", places=1, places_each=1, hint="Try again later.", retry_s=30
        ),
        "uploads": FairLimiter("uploads", places=16, places_each=4, turns=2, turns_each=1),
        # Until the file is at hand and its hash known, not while it is sent.
        "downloads": FairLimiter("downloads", places=64, places_each=32, turns=8, turns_each=4),
        "exports": FairLimiter("exports", places=8, places_each=4, turns=1),
        "streams": FairLimiter(
            "event streams",
            places=max_streams,
            places_each=max(1, max_streams // 2),
            state="are open",
            code="TOO_MANY_STREAMS",
            hint="Close one, or poll /events/history.",
            retry_s=10,
        ),
    }
