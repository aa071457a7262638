"""Weights & Biases. Offline where `WANDB_MODE=offline` says so; `wandb sync` sends it later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import wandb

from calift_core.trackers import PROJECT, Outcome, TrackedRun


class _Run:
    def __init__(self, run: Any) -> None:
        self._run = run
        # Steps of its own cannot be repeated, and a run that goes on repeats some.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({"step": step, **values})

    def end(self, outcome: Outcome, numbers: Mapping[str, float]) -> None:
        self._run.summary.update(dict(numbers))
        self._run.finish(exit_code=int(outcome == "failed"))


def start(run: TrackedRun) -> _Run:
    """Open the run, or go on with it."""
    folder = os.environ.get("WANDB_DIR", str(run.folder))
    os.makedirs(folder, exist_ok=True)
    return _Run(
        wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            name=run.name,
            resume="allow",
            config=dict(run.settings),
            dir=folder,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
    )
