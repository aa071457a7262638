"""Which columns of a table hold what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calift_core.errors import PredictionsError
from calift_core.predictions.foreign.source import Kind, pick_kind

_SINGULAR = {"labels": "label", "ids": "id", "clusters": "cluster"}


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are what.

    `values` is one list column, C numbered or named ones, or one of a binary probability; `classes`
    are the names where columns have some.
    """

    labels: str
    kind: Kind
    values: tuple[str, ...]
    ids: str | None
    clusters: str | None
    classes: tuple[str, ...] | None = None

    @property
    def all(self) -> list[str]:
        """The names of all of them."""
        return [self.labels, *self.values, *(c for c in (self.ids, self.clusters) if c)]


def find_columns(path: Path, names: Sequence[str], *, lists: bool) -> Columns:
    """Which columns hold what.

    Raises:
        PredictionsError: one is missing, named twice or left out of a numbered row.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise PredictionsError(f"{path} must name each column once, got {twice!r} twice")
    numbered: dict[str, dict[int, str]] = {"probs": {}, "logits": {}}
    named: dict[str, dict[str, str]] = {"probs": {}, "logits": {}}
    for name in names:
        stem, _, ending = name.partition("_")
        if stem in numbered and re.fullmatch(r"0|[1-9][0-9]{0,6}", ending):
            numbered[stem][int(ending)] = name
        elif stem in named and ending:
            named[stem][ending] = name
    # One column of numbers is the probability of the second of two classes.
    alone = {"probs": "probs" in names, "logits": lists and "logits" in names}
    has = {stem: bool(numbered[stem] or named[stem] or alone[stem]) for stem in numbered}
    kind = pick_kind(path, has["probs"], has["logits"], names)
    found = {
        plural: next((name for name in (plural, singular) if name in names), None)
        for plural, singular in _SINGULAR.items()
    }
    if found["labels"] is None:
        raise PredictionsError(f"{path} must have a column labels, got {', '.join(names[:12])}")
    columns = numbered[kind]
    if not columns and len(named[kind]) > 1:
        classes = tuple(named[kind])
        return Columns(
            found["labels"],
            kind,
            tuple(named[kind].values()),
            found["ids"],
            found["clusters"],
            classes,
        )
    missing = [index for index in range(len(columns)) if index not in columns]
    if missing:
        raise PredictionsError(
            f"{path} must have the columns {kind}_0 to {kind}_{max(columns)}, got no "
            f"{kind}_{missing[0]}"
        )
    values = tuple(columns[index] for index in range(len(columns))) or (kind,)
    return Columns(found["labels"], kind, values, found["ids"], found["clusters"])
