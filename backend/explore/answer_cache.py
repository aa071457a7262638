"""Small answers that outlive the process: one JSON file each, found by what it is an answer to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from calift_core.errors import StorageError
from calift_core.files import atomic_write_bytes

#: Answers that are kept; the ones that were made first go.
_MOST = 50_000
#: Answers that are written between two looks at how many there are.
_LOOK_EVERY = 500
#: Raise it with any change of what is computed: older answers are then asked for no more.
_EDITION = 2


class AnswerCache:
    """A folder of answers. It may be emptied at any time: what is missing is computed again.

    Args:
        folder: made when it is first written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written = 0

    def get(self, key: Hashable) -> Any | None:
        """The answer, or None; one that cannot be read is none."""
        try:
            return json.loads(self._place(key).read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def put(self, key: Hashable, answer: Any) -> None:
        """Keep an answer. A full disk is no reason to fail: it is computed again."""
        place = self._place(key)
        try:
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            atomic_write_bytes(place, json.dumps(answer).encode())
        except (OSError, StorageError):
            return
        self._written += 1
        if self._written % _LOOK_EVERY == 0:
            self._make_room()

    def _place(self, key: Hashable) -> Path:
        digest = hashlib.sha256(repr((_EDITION, key)).encode()).hexdigest()
        return self._folder / digest[:2] / f"{digest[2:]}.json"

    def _make_room(self) -> None:
        found = list(self._folder.glob("??/*.json"))
        if len(found) <= _MOST:
            return
        for old in sorted(found, key=_age)[: len(found) - _MOST * 9 // 10]:
            old.unlink(missing_ok=True)


def _age(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # another process was first
        return 0.0
