"""A run in the trackers that people have, while it trains: each a file over its own library.

The tracker's own settings hold: `WANDB_MODE=offline`, `WANDB_PROJECT`, `MLFLOW_TRACKING_URI`,
`TRACKIO_DIR`, and so on. No failure of a tracker stops a run: it is said once, and that tracker
hears no more. A run that goes on is gone on with there too.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from calift_core.installed import install_extra
from calift_core.schema.records import (
    DoneRecord,
    EvaluationRecord,
    LogRecord,
    MetricsRecord,
    Record,
)

Outcome = Literal["finished", "failed", "interrupted"]
PROJECT = "calift"
#: Of an evaluated data set, what is sent: fractions, and NLL in nats.
_NUMBERS = ("accuracy", "nll", "brier", "mean_confidence")


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        id: the same for every attempt.
        folder: of the run; a tracker that writes files of its own writes them below it, unless its
            own settings name a place.
        settings: flat, `train.lr` → value.
        resumed: whether an earlier attempt began it.
    """

    id: str
    name: str
    folder: Path
    settings: Mapping[str, Any]
    resumed: bool


class Tracker(Protocol):
    """A run that is open in a tracker. Any call may raise anything."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers at an optimiser step."""

    def end(self, outcome: Outcome, numbers: Mapping[str, float]) -> None:
        """Close the run with the numbers of its evaluations."""


def start_tracker(name: str, run: TrackedRun) -> Tracker:
    """Open a run in a tracker by its name, as in `train.trackers`."""
    module = importlib.import_module(f"calift_core.trackers.{name}_tracker")
    tracker: Tracker = module.start(run)
    return tracker


class LiveTrackers:
    """The trackers of a run, which hear its records.

    Args:
        names: as in `train.trackers`; none costs nothing.
        describe: says what the run is; asked at the first record.
    """

    def __init__(self, names: tuple[str, ...], describe: Callable[[], TrackedRun]) -> None:
        self._waiting, self._describe = names, describe
        self._open: dict[str, Tracker] = {}
        self._numbers: dict[str, float] = {}
        self._outcome: Outcome = "failed"
        self._notes: list[LogRecord] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        from calift_core.errors import InterruptedRunError

        if isinstance(error, InterruptedRunError | KeyboardInterrupt | GeneratorExit):
            self._outcome = "interrupted"
        self._end()

    def take(self, record: Record) -> Iterator[LogRecord]:
        """Tell every tracker; what went wrong comes back as warnings."""
        if self._waiting:
            names, self._waiting = self._waiting, ()
            run = self._describe()
            for name in names:
                self._try(name, partial(self._begin, name, run))
        if isinstance(record, MetricsRecord):
            self._log(record.values, record.step)
        elif isinstance(record, EvaluationRecord):
            self._numbers |= numbers_of(record)
        elif isinstance(record, DoneRecord):
            self._outcome = "finished"
            self._end()
        yield from self._notes
        self._notes = []

    def _begin(self, name: str, run: TrackedRun) -> None:
        self._open[name] = start_tracker(name, run)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.log, values, step))

    def _end(self) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.end, self._outcome, self._numbers))
        self._open = {}

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever a library of others raises: the run goes on
            self._open.pop(name, None)
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, ModuleNotFoundError):
                why = f"it is not installed. {install_extra(name)}"
            message = f"{name} hears no more of this run: {why[:500]}"
            self._notes.append(LogRecord(level="warning", message=message))


def numbers_of(record: EvaluationRecord) -> dict[str, float]:
    """What is sent of an evaluated data set; the calibration error with its floor."""
    found = record.evaluation
    of = {f"{found.dataset}/{name}": float(getattr(found, name)) for name in _NUMBERS}
    return of | {
        f"{found.dataset}/ece": found.ece.value,
        f"{found.dataset}/ece_floor": found.ece.null_mean,
    }


def flat(value: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Settings as `train.lr` → value: numbers and texts as they are, lists as JSON."""
    for key, inner in value.items():
        name = f"{place}.{key}" if place else str(key)
        if isinstance(inner, Mapping):
            yield from flat(inner, name)
        elif inner not in (None, ""):
            yield name, inner if isinstance(inner, str | int | float) else json.dumps(inner)
