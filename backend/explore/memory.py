"""What was computed of stored predictions, kept between requests: a permalink costs once.

What is kept of a file is seven numbers a sample per temperature or calibrator, never its logits.
"""

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TypeVar

from cachetools import LRUCache

from calift_core.analysis.library import Kind
from calift_core.files.disk_cache import DiskCache

_COUNT = 2000
_SCORE_BYTES = 192 << 20
_INDEX_BYTES = 96 << 20
#: Raise it with any change of what is computed: older answers are then asked for no more.
_EDITION = 2
T = TypeVar("T")


def _one(_: Any) -> int:
    return 1


def _bytes(value: Any) -> int:
    return int(value.nbytes)


class Remembered:
    """Bounded least-recently-used memories, one a kind, for many threads.

    Args:
        kept: where answers outlive the process, as JSON; None: nowhere.
    """

    def __init__(self, kept: DiskCache | None = None) -> None:
        self._beyond = kept
        self._lock, self._this_thread = threading.Lock(), threading.local()
        self._asked_at = -math.inf
        self._kept: dict[Kind, LRUCache[Hashable, Any]] = {
            "numbers": _memory(_COUNT, _one),
            "answers": _memory(10 * _COUNT, _one),
            "fits": _memory(_COUNT, _one),
            "files": _memory(_INDEX_BYTES, _bytes),
            "scores": _memory(_SCORE_BYTES, _bytes),
        }
        # Heavy work one at a time: the event loop and small requests keep a core. What takes
        # seconds (fits, class-wise errors) waits in a line of its own. Who has the long slot may
        # take the short one, never the other way round, or two requests wait for each other.
        self._short_slot = threading.RLock()
        self._long_slot = threading.RLock()

    @contextmanager
    def unasked(self) -> Iterator[None]:
        """What this thread looks up meanwhile, nobody has asked for."""
        self._this_thread.unasked = True
        try:
            yield
        finally:
            self._this_thread.unasked = False

    def asked_within(self, seconds: float) -> bool:
        """Whether somebody has asked for anything in the last seconds."""
        return time.monotonic() - self._asked_at < seconds

    def get(self, kind: Kind, key: Hashable) -> Any | None:
        """What is kept, or None."""
        if not getattr(self._this_thread, "unasked", False):
            self._asked_at = time.monotonic()
        with self._lock:
            return self._kept[kind].get(key)

    def put(self, kind: Kind, key: Hashable, value: Any) -> None:
        """Keep a value; what was not asked for longest makes room."""
        with self._lock:
            self._kept[kind][key] = value

    def remember(
        self, kind: Kind, key: Hashable, make: Callable[[], T], *, long: bool = False
    ) -> T:
        """What is kept; where nothing is, what `make` gives, made by one thread at a time."""
        known: T | None = self.get(kind, key)
        if known is None:
            with self._long_slot if long else self._short_slot:
                known = self.get(kind, key)
                if known is None:
                    known = self._kept_or_made(key, make) if kind == "answers" else make()
                    self.put(kind, key, known)
        return known

    def _kept_or_made(self, key: Hashable, make: Callable[[], T]) -> T:
        if self._beyond is None:
            return make()
        name = hashlib.sha256(repr((_EDITION, key)).encode()).hexdigest()
        with suppress(ValueError):  # one that cannot be read is none
            kept: T | None = json.loads(self._beyond.get(name) or b"null")
            if kept is not None:
                return kept
        made = make()
        self._beyond.put(name, json.dumps(made).encode())
        return made

    def long_slot(self) -> AbstractContextManager[Any]:
        """Held by whoever makes several things that take seconds."""
        return self._long_slot


def _memory(capacity: int, weight: Callable[[Any], int]) -> LRUCache[Hashable, Any]:
    # What alone is heavier than all that may be kept takes the whole place, for once.
    return LRUCache(capacity, lambda value: min(capacity, weight(value)))
