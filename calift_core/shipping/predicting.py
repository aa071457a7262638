"""Answers for many images, to a file that a stopped command goes on with."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from calift_core.analysis.ood import OodImages
from calift_core.data.listing import EXTENSIONS, UNREAD_PICTURES, SkippedFiles, images_below
from calift_core.data.manifest import SUFFIXES, read_manifest
from calift_core.errors import DataError, InterruptedRunError, UnreadableImageError
from calift_core.files import atomic_path
from calift_core.shipping.classifier import (
    BATCH_SIZE,
    Answers,
    CalibratedClassifier,
    together,
)
from calift_core.untrusted import mark_formula

FORMATS = (".parquet", ".csv", ".jsonl", ".ndjson")
Row = dict[str, Any]


def image_paths(
    sources: Sequence[str], stdin: TextIO | None = None, skipped: SkippedFiles | None = None
) -> list[str]:
    """The image files that sources name, in their order, each once.

    Args:
        sources: image files, folders (all images below), manifests (`manifest:FILE`, or a table's
            ending), or `-` for a path a line.
        stdin: where `-` reads.
        skipped: receives the files of folders that are no pictures.

    Raises:
        DataError: a source is nothing of these, or none names an image.
        DataUnavailableError: a manifest is missing or damaged.
    """
    found: dict[str, None] = {}
    for source in sources:
        found.update(dict.fromkeys(_of(source, stdin or sys.stdin, skipped)))
    if not found:
        raise DataError(
            f"there must be at least one image, {', '.join(sources)} has none "
            f"({', '.join(EXTENSIONS)})."
        )
    return list(found)


def _of(source: str, stdin: TextIO, skipped: SkippedFiles | None) -> Iterable[str]:
    if source == "-":
        return [line.rstrip("\r\n") for line in stdin if line.strip()]
    path = Path(source.removeprefix("manifest:"))
    if source.startswith("manifest:") or path.suffix.lower() in SUFFIXES:
        return [str(path.parent / name) for name in read_manifest(path).paths]
    if path.is_dir():
        endings = (*EXTENSIONS, *UNREAD_PICTURES)  # these have an error for an answer
        return [str(path / name) for name in images_below(path, None, skipped, endings)]
    if path.is_file():
        return [str(path)]
    raise DataError(f"{source!r} must be an image, a folder, a manifest or -, nothing is there.")


def predict_files(
    model: CalibratedClassifier,
    paths: Sequence[str],
    *,
    top: int = 5,
    errors: float | None = None,
    coverage: float | None = None,
    false_alarms: float | None = None,
    done: int = 0,
    batch_size: int = BATCH_SIZE,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[list[Row]]:
    """Rows of image files, a batch at a time; one that cannot be read has an `error` instead.

    Args:
        errors: say whether each is `kept` with at most this share of errors promised; None of
            all where that cannot be promised.
        coverage: give each the `set` of classes of this promised coverage.
        false_alarms: say which are `none_of_these`, which is wrong of this share of ID images; None
            of all where that cannot be kept to.

    Raises:
        InterruptedRunError: `stop` said so.
        SpecError: the model promises no such thing.
    """
    query = PromiseQuery.of(model, errors, coverage, false_alarms)
    for start in range(done, len(paths), batch_size):
        if stop():
            raise InterruptedRunError(f"stopped behind {start:,} of {len(paths):,} images")
        batch = paths[start : start + batch_size]
        fitted, failed = [], {}
        for at, path in enumerate(batch):
            try:
                fitted.append(model.fit(path))
            except UnreadableImageError as error:
                failed[at] = error.message
        answers = model.answer(np.stack(fitted)) if fitted else None
        answered_rows = iter([] if answers is None else rows_of(answers, top, query))
        yield [
            {"path": path, **(_failed(failed[at]) if at in failed else next(answered_rows))}
            for at, path in enumerate(batch)
        ]


def encoded(model: CalibratedClassifier, source: str) -> OodImages:
    """What a model makes of the images that a source names; what cannot be read is left out.

    Raises:
        DataError: the source has no image, or none that can be read.
    """
    ids, features, answers = [], [], []
    paths = image_paths([source])
    for start in range(0, len(paths), BATCH_SIZE):
        pixels = []
        for path in paths[start : start + BATCH_SIZE]:
            with suppress(UnreadableImageError):
                pixels.append(model.fit(path))
                ids.append(path)
        if pixels:
            found, answer = model.encode(np.stack(pixels))
            features.append(found)
            answers.append(answer)
    if not ids:
        raise DataError(f"{source!r} must have an image that can be read, it has none.")
    joined = together(model.classes, answers)
    return OodImages(np.array(ids), joined.confidences, [joined.logits], np.concatenate(features))


@dataclass(frozen=True)
class PromiseQuery:
    """Which of a model's promises rows tell.

    Attributes:
        threshold: the least confidence that is kept; None: none can be promised.
        sets: gives the sets of probabilities; None: not asked.
        alarms: says of logits which images are none of the classes; None: not asked.
    """

    errors: bool = False
    threshold: float | None = None
    sets: Callable[[NDArray[np.float64]], NDArray[np.bool_]] | None = None
    alarms: Callable[[NDArray[np.float32]], NDArray[np.bool_] | None] | None = None

    @classmethod
    def of(
        cls,
        model: CalibratedClassifier,
        errors: float | None,
        coverage: float | None,
        false_alarms: float | None,
    ) -> PromiseQuery:
        """What is asked of a model.

        Raises:
            SpecError: it promises no such thing.
        """
        threshold = None if errors is None else model.promised().threshold(errors)
        alarms = None
        if false_alarms is not None:
            unlike = model.tells_unlike()
            unlike.threshold(false_alarms)  # whether there is such a rate
            alarms = partial(unlike.alarms, false_alarms=false_alarms)
        if coverage is None:
            return cls(errors is not None, threshold, alarms=alarms)
        promises = model.promised()
        promises.inside(np.full((1, len(model.classes)), 1 / len(model.classes)), coverage)
        return cls(
            errors is not None, threshold, lambda probs: promises.inside(probs, coverage), alarms
        )


def rows_of(answers: Answers, top: int, query: PromiseQuery = PromiseQuery()) -> list[Row]:  # noqa: B008 frozen
    """What is told of each image: label, confidence, the likeliest classes, and what is asked."""
    sets = None if query.sets is None else query.sets(answers.probs)
    alarms = None if query.alarms is None else query.alarms(answers.logits)
    rows: list[Row] = []
    for i, best in enumerate(answers.top(max(1, top))):
        row = {"label": best[0][0], "confidence": best[0][1], "top": dict(best), "error": None}
        if query.errors:
            row["kept"] = None if query.threshold is None else best[0][1] >= query.threshold
        if sets is not None:
            row["set"] = [answers.classes[j] for j in np.flatnonzero(sets[i])]
        if query.alarms is not None:
            row["none_of_these"] = None if alarms is None else bool(alarms[i])
        rows.append(row)
    return rows


def _failed(message: str) -> Row:
    return {"label": None, "confidence": None, "top": None, "error": message}


class AnswerFile:
    """A file of rows that is there when all are: until then they lie in `NAME.part.jsonl`.

    Args:
        path: its ending says the format: Parquet, CSV or JSON lines.
        query: what decides the rows, model and images: only then is a started file gone on with.

    Raises:
        DataError: the ending is none of these.
    """

    def __init__(self, path: Path, query: Sequence[str]) -> None:
        if path.suffix.lower() not in FORMATS:
            raise DataError(f"the result must end in {', '.join(FORMATS)}, got {path.name!r}")
        self.path = path
        self.part = path.with_name(f"{path.name}.part.jsonl")
        self.key = hashlib.sha256("\0".join(query).encode("utf-8", "surrogatepass")).hexdigest()

    def rows(self) -> list[Row]:
        """The rows that an earlier command left; none where it was asked something else."""
        try:
            first, *lines = self.part.read_text(encoding="utf-8").splitlines(keepends=True)
            if json.loads(first) != {"query": self.key}:
                return []
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except (OSError, ValueError):
            return []

    def write(self, known: Sequence[Row], batches: Iterable[list[Row]]) -> list[Row]:
        """Write the rows of batches behind those that are known, then the file itself; all rows."""
        rows = list(known)
        self.part.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.part) as fresh:
            fresh.write_text(json.dumps({"query": self.key}) + "\n" + _lines(rows))
        with self.part.open("a", encoding="utf-8") as part:
            for batch in batches:
                part.write(_lines(batch))
                part.flush()
                rows += batch
        with atomic_path(self.path) as whole:
            _WRITERS[self.path.suffix.lower()](whole, rows)
        os.unlink(self.part)
        return rows


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _json_lines(path: Path, rows: Sequence[Row]) -> None:
    path.write_text(_lines(rows), encoding="utf-8")


def _csv(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = ["path", "label", "confidence", *_promised_columns(rows), "error"]
    writer.writerow(names)
    writer.writerows([_cell(_said(row, name)) for name in names] for row in rows)
    path.write_text(text.getvalue(), encoding="utf-8", newline="")


_PROMISED = ("kept", "set", "none_of_these")
#: What is said of a yes or no where no threshold can be promised.
NOT_PROMISED = "not promised"


def _said(row: Row, name: str) -> Any:
    yes_or_no = name in ("kept", "none_of_these")
    return NOT_PROMISED if yes_or_no and row.get(name, "") is None else row.get(name)


def _promised_columns(rows: Sequence[Row]) -> list[str]:
    return [name for name in _PROMISED if any(name in row for row in rows)]


def _cell(value: Any) -> Any:
    return (
        " ".join(json.dumps(v, ensure_ascii=False) for v in value)
        if isinstance(value, list)
        else mark_formula(value)
    )


def _parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tops = [list((row["top"] or {}).items()) for row in rows]
    kinds = {"kept": pa.bool_(), "set": pa.list_(pa.string()), "none_of_these": pa.bool_()}
    pq.write_table(
        pa.table(
            {
                "path": pa.array([row["path"] for row in rows], pa.string()),
                "label": pa.array([row["label"] for row in rows], pa.string()),
                "confidence": pa.array([row["confidence"] for row in rows], pa.float64()),
                "top_labels": pa.array([[n for n, _ in t] for t in tops], pa.list_(pa.string())),
                "top_probs": pa.array([[p for _, p in t] for t in tops], pa.list_(pa.float64())),
                **{
                    name: pa.array([row.get(name) for row in rows], kinds[name])
                    for name in _promised_columns(rows)
                },
                "error": pa.array([row["error"] for row in rows], pa.string()),
            }
        ),
        path,
    )


_WRITERS: dict[str, Callable[[Path, Sequence[Row]], None]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}
