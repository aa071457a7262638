"""TensorBoard event files below `TENSORBOARD_LOGDIR`, or in the run's folder.

Scalars of event files are 32-bit floats.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from calift_core.trackers import Outcome, TrackedRun


class _Run:
    def __init__(self, writer: Any, resumed: bool) -> None:
        self._writer, self._purge, self._step = writer, resumed, 0

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = time.time()
        if self._purge:  # what an earlier attempt wrote from here on is void
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=now, step=step, session_log=start))
            self._purge = False
        self._step = step
        for name, value in values.items():
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            self._writer.add_event(Event(wall_time=now, step=step, summary=summary))
        self._writer.flush()

    def end(self, outcome: Outcome, numbers: Mapping[str, float]) -> None:
        self._purge = False
        self.log({f"final/{name}": value for name, value in numbers.items()}, self._step)
        self._writer.close()


def start(run: TrackedRun) -> _Run:
    """Open the run, or go on with it."""
    named = os.environ.get("TENSORBOARD_LOGDIR")
    folder = run.folder / "tensorboard" if named is None else Path(named) / f"{run.name}-{run.id}"
    return _Run(EventFileWriter(str(folder)), run.resumed)
