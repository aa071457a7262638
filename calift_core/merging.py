"""Runs made from finished runs: what WiSE-FT and Model Stock need around `methods.merge`.

A classifier made of prompts belongs to its text tower, so it is made anew from the merged one. A
trained head has nothing to be made from: its scale is folded in (`W = s·W`), and it is merged like
any other weight, with the zero-shot classifier (no bias) as its initial value.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from calift_core.calibration import (
    ece_from_confidence,
    nll,
    null_floor_from_confidence,
    softmax,
    top_label,
)
from calift_core.clip import Captions, Clip, load_finished, weights_sha256
from calift_core.data.images import ImageSet
from calift_core.data.loader import Normalise, eval_batches
from calift_core.data.suites import Suite
from calift_core.errors import (
    CheckpointError,
    DataError,
    InterruptedRunError,
    ModelError,
    OutOfMemoryError,
    SpecError,
    reason_of,
)
from calift_core.evaluate import group_mean, labels_in_logits, ood_groups
from calift_core.methods.base import Classifier, zero_shot_classifier
from calift_core.methods.merge import check_alike, interpolate, model_stock
from calift_core.schema.methods import METHOD_SPECS, ModelStock, WiseFt
from calift_core.schema.records import PhaseRecord, ProgressRecord, Record
from calift_core.schema.report import FrontierPoint, FrontierSet, Report
from calift_core.schema.spec import EvaluationSpec, RunSpec
from calift_core.train import Precision, autocast

#: `prompts`: made of prompts by the text tower; `linear`: trained weights.
Head = Literal["prompts", "linear"]

#: Seconds between two signs of life within a data set.
_SAY_EVERY_S = 5.0


@dataclass(frozen=True)
class Merged:
    """What a merge gives beside the weights, which are the model's by then.

    Attributes:
        classifier: goes with the merged weights.
        resolved: for the report.
        frontier: the path, of WiSE-FT.
    """

    classifier: Classifier
    resolved: dict[str, Any]
    frontier: list[FrontierPoint] | None = None


@dataclass(frozen=True)
class _Input:
    """A finished run, on the CPU."""

    name: str
    clip: Clip
    classifier: Classifier
    head: Head
    report: Report


def merge_runs(
    spec: RunSpec,
    clip: Clip,
    captions: Captions,
    suite: Suite,
    *,
    start_sha256: str,
    inputs: Mapping[str, Path] | None,
    device: torch.device,
    precision: Precision,
    stop: Callable[[], bool],
) -> Generator[Record, None, Merged]:
    """Merge the runs that a spec's method names.

    Args:
        spec: whose method is of the family `merge`.
        clip: the initial model on its device; receives the merged weights.
        captions: the suite's class names × templates.
        suite: what the path of WiSE-FT is measured on.
        start_sha256: of the initial weights.
        inputs: folders of the finished runs by the names that the method uses; a name that is
            absent is a folder itself.
        device: where the model is.
        precision: of forward passes.
        stop: true to stop.

    Raises:
        CheckpointError: a folder holds no finished run, or a damaged one.
        ModelError: a run started from other weights.
        DataError: a run has other classes than the suite.
        SpecError: Model Stock is given runs with different kinds of classifiers.
        InterruptedRunError: `stop` said so; nothing is kept of a path.
    """
    method = spec.method
    names = method.input_runs
    yield PhaseRecord(phase="loading", detail=f"{len(names)} finished run(s)")
    found = []
    for name in names:
        folder = (inputs or {}).get(name) or Path(name).expanduser()
        found.append(_load(name, folder, spec, suite, start_sha256))
        if stop():
            raise InterruptedRunError("stopped while loading finished runs")
    resolved: dict[str, Any] = {
        "head": found[0].head,
        "inputs": [
            {
                "run": item.name,
                "name": item.report.name,
                "method": item.report.spec["method"]["kind"],
                "sha256": item.report.model["sha256"],
            }
            for item in found
        ],
        "precision": precision,
        "device": str(device),
    }
    if isinstance(method, ModelStock):
        return _stock(clip, captions, found, resolved)
    assert isinstance(method, WiseFt)
    path = Path_(clip, found[0].clip.to(device), captions, _on(found[0], device))
    alphas = sorted({*method.sweep, method.alpha})
    if method.sweep:
        yield PhaseRecord(phase="evaluating", detail=f"{len(alphas)} models between the two")
    frontier = yield from sweep(
        path,
        alphas,
        suite,
        spec.evaluation,
        workers=spec.train.workers,
        device=device,
        precision=precision,
        stop=stop,
    )
    classifier = path.finish(method.alpha)
    return Merged(classifier, {"alpha": method.alpha, **resolved}, frontier)
