"""Millions of names in two arrays instead of as many objects."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class Names(Sequence[str]):
    """N texts, one after the other in one block of bytes. They cannot be changed.

    A Python string takes 49 bytes beside its letters, and reading one writes to its counter of
    references, so that every process that was forked copies its page. Here a name takes its letters
    and 8 bytes, and all processes share them.

    Args:
        text: the texts' bytes.
        bounds: (N, 2) first byte, and the one after the last, of each.
    """

    __slots__ = ("bounds", "prefix", "text")

    def __init__(self, text: NDArray[np.uint8], bounds: NDArray[Any], prefix: str = "") -> None:
        self.text, self.bounds, self.prefix = text, bounds, prefix

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Pack names, which may come one by one."""
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode("utf-8", "surrogateescape")
            ends.append(len(text))
        at = np.frombuffer(ends, dtype=np.int64)
        kind = np.uint32 if len(text) < 2**32 else np.int64
        return cls(
            np.frombuffer(bytes(text), np.uint8), np.stack([at[:-1], at[1:]], 1).astype(kind)
        )

    def __len__(self) -> int:
        return len(self.bounds)

    def _name(self, index: int) -> str:
        start, stop = self.bounds[index]
        return self.prefix + self.text[start:stop].tobytes().decode("utf-8", "surrogateescape")

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: int | slice) -> str | Names:
        """A name, or those of a slice, which share the bytes."""
        if isinstance(index, slice):
            return Names(self.text, self.bounds[index], self.prefix)
        return self._name(index)

    def __iter__(self) -> Iterator[str]:
        return map(self._name, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list's: it may be equal to one

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3])) + (", …" if len(self) > 3 else "")
        return f"Names({len(self)}: {shown})"

    def take(self, positions: NDArray[np.integer[Any]]) -> Names:
        """The names at some positions; they share the bytes."""
        return Names(self.text, self.bounds[positions], self.prefix)

    def below(self, prefix: str) -> Names:
        """The same names behind a prefix; they share the bytes."""
        return Names(self.text, self.bounds, prefix + self.prefix)


def taken(names: Sequence[str], positions: NDArray[np.integer[Any]]) -> Sequence[str]:
    """The names at some positions, packed if they were."""
    if isinstance(names, Names):
        return names.take(positions)
    return tuple(names[int(i)] for i in positions)
