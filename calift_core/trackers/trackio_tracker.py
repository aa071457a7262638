"""Trackio: a database below `TRACKIO_DIR`, or a Space where `TRACKIO_SPACE_ID` names one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import trackio

from calift_core.trackers import PROJECT, Outcome, TrackedRun


class _Run:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def end(self, outcome: Outcome, numbers: Mapping[str, float]) -> None:
        if numbers:
            self._run.log({f"final/{name}": value for name, value in numbers.items()})
        with redirect_stdout(sys.stderr):
            self._run.finish()


def start(run: TrackedRun) -> _Run:
    """Open the run, or go on with it."""
    with redirect_stdout(sys.stderr):  # it greets
        opened = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run.name}-{run.id}",
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            config=dict(run.settings),
            resume="allow",
            embed=False,
        )
    return _Run(opened)
