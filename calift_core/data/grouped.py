"""Parts that tear no group apart. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from calift_core.data.images import ImageSet, split_by_hash
from calift_core.data.listing import unit_hash
from calift_core.errors import DataError, SpecError


@dataclass(frozen=True)
class Groups:
    """What N images belong to.

    Attributes:
        codes: (N,) positions in `names`; -1 for an image that is alone.
    """

    codes: NDArray[np.int32]
    names: Sequence[str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Groups:
        """Of each image's group; "" for one that is alone."""
        known: dict[str, int] = {}
        codes = [known.setdefault(text, len(known)) if text else -1 for text in texts]
        return cls(np.array(codes, dtype=np.int32), tuple(known))


class PathPattern:
    """Finds an image's group in its path: `patient{}_*`, `*/scene{}/*`.

    `{}` is the group, of one character at least, and `*` any text; each takes as little as it may.
    A pattern without `/` is about the file's name, one with it about the whole path below the data.
    No regular expression: a path is looked through once, whatever a stranger writes.

    Raises:
        SpecError: there is not one `{}`, or two of `{}` and `*` have nothing between them.
    """

    def __init__(self, pattern: str) -> None:
        self._text, self._whole = pattern, "/" in pattern
        self._pieces = [piece for piece in re.split(r"(\{\}|\*)", pattern) if piece]
        wild = [piece in ("{}", "*") for piece in self._pieces]
        if self._pieces.count("{}") != 1 or any(a and b for a, b in pairwise(wild)):
            raise SpecError(
                "a pattern for groups must have one {} for the group, and text between it and any "
                f"*, such as patient{{}}_* or */scene{{}}/*, got {pattern!r}"
            )

    def group(self, path: str) -> str:
        """The group that a path names; empty where the pattern does not fit."""
        text = path if self._whole else path.rpartition("/")[2]
        at, waiting, found = 0, "", ""
        for index, piece in enumerate(self._pieces):
            if piece in ("{}", "*"):
                waiting = piece
                continue
            last = index == len(self._pieces) - 1
            least = at + (waiting == "{}")
            if not waiting:
                begin = at if text.startswith(piece, at) else -1
            elif last:
                begin = len(text) - len(piece) if text.endswith(piece) else -1
            else:
                begin = text.find(piece, least)
            if begin < least:
                return ""
            found = text[at:begin] if waiting == "{}" else found
            at, waiting = begin + len(piece), ""
        if waiting == "{}":
            return text[at:]
        return found if waiting or at == len(text) else ""


def groups_by(pattern: str, paths: Sequence[str], what: str) -> Groups:
    """The groups that a pattern finds in paths; those that it does not fit are alone.

    Raises:
        SpecError: it is no pattern.
        DataError: it fits no path, or makes one group of all.
    """
    reader = PathPattern(pattern)
    groups = Groups.of(map(reader.group, paths))
    example = f", the first of which is {paths[0]!r}" if len(paths) else ""
    if not groups.names:
        raise DataError(
            f"{what}: the pattern {pattern!r} for groups must fit paths of images, it fits none of "
            f"{len(paths):,}{example}"
        )
    if len(groups.names) == 1 and len(paths) > 1 and (groups.codes == 0).all():
        raise DataError(
            f"{what}: the pattern {pattern!r} must tell groups apart, all {len(paths):,} images "
            f"are in the group {groups.names[0]!r}"
        )
    return groups


def split_whole(
    images: ImageSet, groups: Groups | None, fractions: Mapping[str, float], rest: str
) -> dict[str, ImageSet]:
    """Split a set by its groups, or image by image where it has none (`split_by_hash`).

    Args:
        groups: of them; an image without one is its own.
        fractions: part → share in [0, 1).
    """
    if groups is None or not len(groups.names):
        return split_by_hash(images, dict(fractions), rest)
    codes = groups.codes.astype(np.int64)
    names = [f"group:{name}" for name in groups.names]
    alone = np.flatnonzero(codes < 0)
    codes[alone] = len(names) + np.arange(len(alone))
    names += [f"image:{images.ids[int(i)]}" for i in alone]
    used, members = np.unique(codes, return_inverse=True)
    cut = split_groups(
        [names[int(i)] for i in used], members.astype(np.int64), images.labels, fractions, rest
    )
    return {part: images.take(positions, part) for part, positions in cut.items()}


def require_whole_groups(parts: Mapping[str, Groups], what: str) -> None:
    """See that no group is in two parts.

    Raises:
        DataError: one is; names it.
    """
    where: dict[str, list[str]] = {}
    for part, groups in parts.items():
        for code in np.unique(groups.codes[groups.codes >= 0]).tolist():
            where.setdefault(groups.names[code], []).append(part)
    torn = {name: found for name, found in where.items() if len(found) > 1}
    if torn:
        named = "; ".join(
            f"the group {name!r} is in {' and '.join(torn[name])}" for name in sorted(torn)[:3]
        )
        more = f"; {len(torn) - 3:,} more groups are torn" if len(torn) > 3 else ""
        raise DataError(
            f"{what}: {named}{more}. A group must be in one split alone: its images in training "
            "tell about those in testing"
        )


def split_groups(
    groups: Sequence[str],
    members: NDArray[np.int64],
    labels: NDArray[np.int64],
    fractions: Mapping[str, float],
    rest: str,
) -> dict[str, NDArray[np.int64]]:
    """Positions of each part, in order; groups stay together and classes in proportion.

    Groups are dealt out one by one, those with most images first and then by a hash of their names,
    each to the part that is furthest from its share of the classes that the group has. The result
    depends on names, labels and sizes alone, not on the order of the images.

    Args:
        members: (N,) which group each image is in.
        labels: (N,).
        fractions: part → share in [0, 1).
    """
    names = [*fractions, rest]
    shares = np.array([*fractions.values(), 1 - sum(fractions.values())])
    totals = np.bincount(labels)
    have = np.zeros((len(names), len(totals)))
    by_group = np.argsort(members, kind="stable")
    starts = np.searchsorted(members[by_group], np.arange(len(groups) + 1))
    sizes = np.diff(starts)
    order = sorted(range(len(groups)), key=lambda g: (-sizes[g], unit_hash("group", groups[g])))
    part_of = np.zeros(len(groups), dtype=np.int64)
    for group in order:
        mine = labels[by_group[starts[group] : starts[group + 1]]]
        classes, counts = np.unique(mine, return_counts=True)
        target = shares[:, None] * totals[classes]
        before = have[:, classes] - target
        after = before + counts
        # Each class's misses count by its own size, so that rare ones are dealt out as evenly.
        cost = ((after**2 - before**2) / totals[classes]).sum(axis=1)
        cost[shares <= 0] = np.inf
        best = int(np.argmin(cost))
        part_of[group] = best
        have[best, classes] += counts
    chosen = part_of[members]
    return {name: np.flatnonzero(chosen == at) for at, name in enumerate(names)}
