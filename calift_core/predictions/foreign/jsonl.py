"""Predictions as JSON lines: an object a line."""

from pathlib import Path
from typing import Any

import numpy as np

from calift_core.errors import PredictionsError
from calift_core.predictions.foreign.source import ForeignSource, pick_kind, too_large
from calift_core.untrusted import parse_json

_SINGULAR = {"labels": "label", "ids": "id", "clusters": "cluster"}


def read_jsonl(path: Path, max_bytes: int) -> ForeignSource:
    """What a file of JSON lines holds.

    Raises:
        PredictionsError: it is too large, a line is no object or lacks what the first one has.
    """
    size = path.stat().st_size
    if size > 4 * max_bytes:  # a number takes some four times as many bytes as text
        raise too_large(path, size, 4 * max_bytes)
    rows = _rows(path)
    first = rows[0]
    kind = pick_kind(path, "probs" in first, "logits" in first, list(first))
    found = {
        plural: next((name for name in (plural, singular) if name in first), None)
        for plural, singular in _SINGULAR.items()
    }
    label = found["labels"]
    if label is None:
        raise PredictionsError(
            f"every line of {path} must have a label, got {', '.join(list(first)[:12])}"
        )
    values, classes = _values(path, rows, kind)
    return ForeignSource(
        labels=_column(path, rows, label),
        values=values,
        kind=kind,
        ids=_column(path, rows, found["ids"]) if found["ids"] else None,
        clusters=_column(path, rows, found["clusters"]) if found["clusters"] else None,
        class_names=classes,
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = parse_json(line)
                if not isinstance(row, dict):
                    raise PredictionsError(f"line {number} of {path} must be a JSON object")
                rows.append(row)
    except UnicodeDecodeError as error:
        raise PredictionsError(f"{path} must be UTF-8 text, got: {error}") from error
    except ValueError as error:
        raise PredictionsError(f"line {number} of {path} must be JSON, got: {error}") from error
    if not rows:
        raise PredictionsError(f"{path} must hold at least one sample, got none")
    return rows


def _get(path: Path, rows: list[dict[str, Any]], name: str) -> list[Any]:
    found = [row.get(name) for row in rows]
    if None in found:
        raise PredictionsError(
            f"every line of {path} must have {name!r}, sample {found.index(None) + 1} has none"
        )
    return found


def _column(path: Path, rows: list[dict[str, Any]], name: str) -> np.ndarray:
    found = _get(path, rows, name)
    if not all(type(one) in (str, int, bool) for one in found):
        raise PredictionsError(f"{name!r} of {path} must be a string or an integer in every line")
    if any(isinstance(one, str) for one in found):
        return np.array([str(one) for one in found], dtype=np.str_)
    return np.array(found, dtype=np.int64)


def _values(
    path: Path, rows: list[dict[str, Any]], kind: str
) -> tuple[np.ndarray, list[str] | None]:
    found, classes = _get(path, rows, kind), None
    if isinstance(found[0], dict):
        classes = list(found[0])
        if any(not isinstance(one, dict) or one.keys() != found[0].keys() for one in found):
            raise PredictionsError(f"{kind!r} of {path} must name the same classes in every line")
        found = [[one[name] for name in classes] for one in found]
    try:
        values = np.array(found, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PredictionsError(
            f"{kind!r} of {path} must be numbers, as many in every line, got: {error}"
        ) from error
    return values, classes
