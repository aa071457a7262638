"""How many expensive requests are answered at once, and the share of them that an owner may have.

A request is admitted while fewer than the capacity are answered or wait, and else refused with 503
and `Retry-After`. Its work then waits for a slot, which go to owners round-robin: who has
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

#: A block that runs in a slot of its owner.
Slot = Callable[[], AbstractAsyncContextManager[None]]
Kind = Literal[
    "analyses", "pictures", "thumbnails", "scans", "copies", "uploads", "downloads", "exports",
    "streams",
]  # fmt: skip


@dataclass(frozen=True)
class Admission:
    """An owner's request that was admitted."""

    slot: Slot


class FairLimiter:
    """Bounds the requests of one kind, in all and of each owner. Used from the event loop alone.

    Args:
        what: the requests, as in "64 analyses".
        concurrency: requests that are answered at once; None: all that are admitted.
        concurrency_each: of one owner; None: all of them.
        state: what those that are admitted do, for the refusal.
    """

    def __init__(
        self,
        what: str,
        *,
        capacity: int,
        capacity_each: int,
        concurrency: int | None = None,
        concurrency_each: int | None = None,
        state: str = "are answered or wait",
        code: str = "BUSY",
        hint: str = "Try again.",
        retry_s: int = 2,
    ) -> None:
        self._what, self._state = what, state
        self._code, self._hint, self._retry_s = code, hint, retry_s
        self._capacity, self._capacity_each = capacity, capacity_each
        self._concurrency = capacity if concurrency is None else concurrency
        self._concurrency_each = self._concurrency if concurrency_each is None else concurrency_each
        self._admitted: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        #: Owner → the number of its last slot, while something of it runs or waits.
        self._last: dict[str, int] = {}
        self._numbers = count(1)

    @property
    def admitted(self) -> int:
        return self._admitted.total()

    @contextmanager
    def admit(self, owner: str) -> Iterator[Admission]:
        """Admit a request while the block runs.

        Raises:
            HttpError: 503, the owner has its share already, or the capacity is reached.
        """
        own = self._admitted[owner]
        if own >= self._capacity_each or self.admitted >= self._capacity:
            which = f"{own} of your" if own >= self._capacity_each else f"{self.admitted}"
            raise HttpError(
                503,
                self._code,
                f"{which} {self._what} {self._state}, and no more may at once.",
                hint=self._hint,
                headers={"Retry-After": str(self._retry_s)},
            )
        self._admitted[owner] += 1
        try:
            yield Admission(partial(self.slot, owner))
        finally:
            _less(self._admitted, owner)

    @asynccontextmanager
    async def slot(self, owner: str) -> AsyncIterator[None]:
        """Wait for a slot, which owners get round-robin, and hold it while the block runs."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(future)
        self._grant()
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():  # it was given in the moment in which the caller gave up
                self._release(owner)
            raise
        try:
            yield
        finally:
            self._release(owner)

    def _release(self, owner: str) -> None:
        _less(self._running, owner)
        if owner not in self._running and owner not in self._waiting:
            self._last.pop(owner, None)
        self._grant()

    def _grant(self) -> None:
        while self._running.total() < self._concurrency:
            may = [o for o in self._waiting if self._running[o] < self._concurrency_each]
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
        # Most of their work is done one by one (`backend.explore.memory`): more slots only let
        # remembered answers pass.
        "analyses": FairLimiter(
            "analyses", capacity=64, capacity_each=16, concurrency=8, concurrency_each=4
        ),
        # The page asks four runs about a picture.
        "pictures": FairLimiter("pictures to try", capacity=16, capacity_each=6, concurrency=1),
        # A browser asks for six images at a time.
        "thumbnails": FairLimiter("thumbnails", capacity=256, capacity_each=64, concurrency=2),
        "scans": FairLimiter(
            "looks at data", capacity=16, capacity_each=4, concurrency=4, concurrency_each=2
        ),
        "copies": FairLimiter(
            "searches for copies", capacity=1, capacity_each=1, hint="Try again later.", retry_s=30
        ),
        "uploads": FairLimiter(
            "uploads", capacity=16, capacity_each=4, concurrency=2, concurrency_each=1
        ),
        # Until the file is at hand and its hash known, not while it is sent.
        "downloads": FairLimiter(
            "downloads", capacity=64, capacity_each=32, concurrency=8, concurrency_each=4
        ),
        "exports": FairLimiter("exports", capacity=8, capacity_each=4, concurrency=1),
        "streams": FairLimiter(
            "event streams",
            capacity=max_streams,
            capacity_each=max(1, max_streams // 2),
            state="are open",
            code="TOO_MANY_STREAMS",
            hint="Close one, or poll /events/history.",
            retry_s=10,
        ),
    }
