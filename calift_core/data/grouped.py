"""Parts that tear no group apart. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from calift_core.data.listing import unit_hash


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
        groups: names.
        members: (N,) which group each image is in.
        labels: (N,).
        fractions: part → share in [0, 1).
        rest: the part that receives what is left.
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
