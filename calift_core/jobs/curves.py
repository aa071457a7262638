"""The curves of a run on disk: the truth of what was measured, over all of its attempts.

::

    metrics.jsonl    one line per logged step, and one per validation
    spectra.jsonl    one line per spectrum of the validation features

A later attempt takes them over up to the step that it goes on from, so that nobody needs to have
heard of a point for it to be kept.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from calift_core.files import atomic_write_bytes, storage_error
from calift_core.schema.records import (
    CheckpointRecord,
    MetricsRecord,
    Record,
    ResumedRecord,
    SpectrumRecord,
)

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
SPECTRA = "spectra.jsonl"

#: Files of the curves, by name.
FILES = (METRICS, SPECTRA)


class JsonlAppender:
    """A JSONL file that is appended to, whole line by whole line.

    Nothing is buffered here, so that an error shows where it happens and only once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        try:
            self.file = self.path.open("ab+", buffering=0)
            self.file.seek(0)
            whole = self.file.read()
            self.file.truncate(whole.rfind(b"\n") + 1)  # a killed process may leave half a line
        except OSError as error:
            raise storage_error(error, self.path, "open") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, line: str) -> None:
        """Append one line.

        Raises:
            DiskFullError: no space is left.
            StorageError: the file cannot be written.
        """
        data = memoryview((line + "\n").encode())
        try:
            while data:
                data = data[self.file.write(data) :]
        except OSError as error:
            raise storage_error(error, self.path, "write") from error

    def sync(self) -> None:
        """Force to disk."""
        os.fsync(self.file.fileno())

    def keep_until(self, step: int) -> None:
        """Drop the lines of later steps."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        if len(kept) < len(lines):
            self.file.close()
            atomic_write_bytes(self.path, "".join(line + "\n" for line in kept).encode())
            self._open()


class Curves:
    """Writes the curves of a run as they are told. A context manager.

    Args:
        resume_from: of an earlier one, whose curves are taken over.

    Raises:
        DiskFullError, StorageError: the files cannot be written.
    """

    def __init__(self, folder: Path, resume_from: Path | None = None) -> None:
        if resume_from is not None:
            for name in FILES:
                source, target = resume_from / name, folder / name
                if source.is_file() and not target.is_file():
                    atomic_write_bytes(target, source.read_bytes())
        self._metrics, self._spectra = (
            JsonlAppender(folder / METRICS),
            JsonlAppender(folder / SPECTRA),
        )
        self._begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.file.close()
        self._spectra.file.close()

    def take(self, record: Record) -> None:
        """Keep a record, if it is a point of a curve or says where the curves go on.

        Raises:
            DiskFullError, StorageError: the files cannot be written.
        """
        match record:
            case ResumedRecord():
                self._go_on_from(record.step)
            case MetricsRecord():
                self._go_on_from(0)  # where no checkpoint said otherwise
                line = {"step": record.step, "epoch": record.epoch, **record.values}
                self._metrics.add(json.dumps(line))
            case SpectrumRecord() if not record.final:
                self._go_on_from(0)
                self._spectra.add(record.model_dump_json(exclude={"kind", "final"}))
            case CheckpointRecord():
                self._metrics.sync()
                self._spectra.sync()

    def _go_on_from(self, step: int) -> None:
        if not self._begun:
            self._begun = True
            for lines in (self._metrics, self._spectra):
                lines.keep_until(step)


def read_curves(folder: Path, *, until: int) -> list[MetricsRecord | SpectrumRecord]:
    """The points up to a step, as they were told. A damaged line is passed over.

    Args:
        until: the last step.

    Raises:
        StorageError: a file is there and cannot be read.
    """
    found: list[MetricsRecord | SpectrumRecord] = []
    kinds: dict[str, Callable[[Any], MetricsRecord | SpectrumRecord]] = {
        METRICS: _metrics,
        SPECTRA: SpectrumRecord.model_validate,
    }
    for name, parse in kinds.items():
        for line in _lines(folder / name):
            try:
                record = parse(json.loads(line))
            except ValueError:
                log.warning(
                    "%s holds a line that is none of a curve: %r", folder / name, line[:200]
                )
                continue
            if record.step <= until:
                found.append(record)
    return found


def _metrics(line: Any) -> MetricsRecord:
    if not isinstance(line, dict):
        raise ValueError(f"expected an object, got {line!r}")
    return MetricsRecord(step=line.pop("step", None), epoch=line.pop("epoch", None), values=line)


def _lines(path: Path) -> Iterator[bytes]:
    """Whole lines: what follows the last one may still be written."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return iter(())
    except OSError as error:
        raise storage_error(error, path, "read") from error
    return (line for line in data.split(b"\n")[:-1] if line.strip())
