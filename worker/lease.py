"""A lease: renewed while its run works, given up in time when the database is silent.

Every write after the claim carries the attempt number. Two things say that the attempt is no longer
the current one: the database, or its silence: once it has been out of reach for 80 % of the lease,
another worker may hold the run (*self-fencing*, by the monotonic clock, so that no wall clock
matters).
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Self, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from backend.store.claims import Claim, Claims
from backend.store.errors import database_away
from calift_core.schema.wire.runs import Progress
from worker.limits import Limits

log = logging.getLogger(__name__)


#: Part of the lease after which an attempt that cannot reach the database gives itself up.
_SELF_FENCE = 0.8


T = TypeVar("T")


class FencedError(Exception):
    """The attempt is no longer ours."""


class LeaseKeeper:
    """Keeps a claim alive, and says when it is over.

    Two threads, because a heartbeat can block in a network or a lock for longer than the lease
    lives: `beat` renews, `guard` watches the deadline and needs nothing but a clock.

    Args:
        claimed_at: `time.monotonic()` from *before* the claim was asked for.
        on_lost: called when somebody else may hold the run; kills the runner.
    """

    def __init__(
        self,
        claims: Claims,
        claim: Claim,
        limits: Limits,
        *,
        claimed_at: float,
        on_lost: Callable[[], None],
    ) -> None:
        self.progress: Progress | None = None
        self.cancel = claim.cancel_requested
        self._claims = claims
        self._claim = claim
        self._limits = limits
        self._on_lost = on_lost
        self._deadline = claimed_at + _SELF_FENCE * limits.ttl_s
        self._over = threading.Event()
        self._lost = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"lease-{target.__name__}", daemon=True)
            for target in (self._beat, self._guard)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=1.0)

    @property
    def lost(self) -> bool:
        """Whether somebody else may hold the run."""
        return self._lost.is_set()

    def call_with_retries(self, call: Callable[[], T]) -> T:
        """Call until the database answers or the lease is over.

        Raises:
            FencedError: it is over.
        """
        while not self.lost:
            try:
                return call()
            except SQLAlchemyError as error:
                if not database_away(error):
                    raise
                log.warning("run %s: the database is away: %s", self._claim.run_id, error)
            time.sleep(0.5)
        raise FencedError

    def hold(self, write: Callable[[], bool]) -> None:
        """Repeat a write until the database answers; the fence must let it through.

        Raises:
            FencedError: it did not, or the lease is over.
        """
        if not self.call_with_retries(write):
            raise FencedError

    def _beat(self) -> None:
        beat_at = time.monotonic() + self._limits.heartbeat_s
        while not self._over.wait(min(self._limits.cancel_poll_s, self._limits.heartbeat_s)):
            asked_at = time.monotonic()
            try:
                if asked_at < beat_at:
                    if not self.cancel:
                        self.cancel = self._claims.phase(self._claim.run_id) == "CANCELLING"
                    continue
                lease = self._claims.heartbeat(
                    self._claim.run_id,
                    self._claim.attempt,
                    ttl_s=self._limits.ttl_s,
                    progress=self.progress,
                )
            except Exception as error:  # the guard decides how long this may go on
                log.warning("run %s: no heartbeat: %s", self._claim.run_id, error)
                continue
            if not lease.held:
                self._lose()
                return
            # From before the question: the lease cannot have begun earlier than that.
            self._deadline = asked_at + _SELF_FENCE * self._limits.ttl_s
            self.cancel = self.cancel or lease.cancel_requested
            beat_at = asked_at + self._limits.heartbeat_s

    def _guard(self) -> None:
        while not self._over.wait(max(0.01, self._deadline - time.monotonic())):
            if time.monotonic() >= self._deadline:
                self._lose()
                return

    def _lose(self) -> None:
        if not self._over.is_set():
            self._lost.set()
            self._on_lost()
