"""Runs made from finished runs: what WiSE-FT and Model Stock need around `methods.merge`.

A classifier made of prompts belongs to its text tower, so it is made anew from the merged one. A
trained head has nothing to be made from: its scale is folded in (`W = s·W`), and it is merged like
any other weight, with the zero-shot classifier (no bias) as its initial value.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from calift_core.data.suites.load import Suite
from calift_core.errors import (
    CheckpointError,
    DataError,
    InterruptedRunError,
    ModelError,
    SpecError,
    reason_of,
)
from calift_core.evaluation.forward import Mixture
from calift_core.evaluation.items import EvaluationSettings
from calift_core.evaluation.mixtures import mix
from calift_core.evaluation.path import Head, PathSweep, WeightPath, fold_scale, unfold_scale
from calift_core.methods.base import Classifier, zero_shot_classifier
from calift_core.methods.merge import model_stock
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.finished import differences, load_finished
from calift_core.models.loading import weights_sha256
from calift_core.schema.methods import METHOD_SPECS, ModelStock, WiseFt
from calift_core.schema.methods.merge import ONE_SE_PATH
from calift_core.schema.places import expanded
from calift_core.schema.records import PhaseRecord, Record
from calift_core.schema.report import FrontierPoint, Report
from calift_core.schema.spec import RunSpec


@dataclass(frozen=True)
class Mixed:
    """Two models that answer together.

    Attributes:
        kind: `vrf` or `dawin`.
        tuned: the fine-tuned one of them, whose weights are kept.
    """

    kind: str
    mixture: Mixture
    tuned: Clip
    sha256: str


@dataclass(frozen=True)
class Merged:
    """What a merge gives beside the weights, which are the model's by then.

    Attributes:
        frontier: the path of WiSE-FT, without the model that the weights are of.
        mixed: where it is two models that answer together.
    """

    classifier: Classifier
    resolved: dict[str, Any]
    frontier: list[FrontierPoint] | None = None
    mixed: Mixed | None = None


@dataclass(frozen=True)
class FinishedInput:
    """A finished run, on the CPU."""

    name: str
    clip: Clip
    classifier: Classifier
    head: Head
    report: Report

    @property
    def method(self) -> str:
        """Its method's kind."""
        return str(self.report.spec["method"]["kind"])

    @property
    def epochs(self) -> int:
        """How often it has seen its training images, with the run that it began with."""
        kind = METHOD_SPECS.get(self.method)
        own = int(self.report.spec["train"]["epochs"]) if kind and kind.trains else 0
        return own + int(self.report.resolved.get("epochs_before", 0))

    @property
    def weights(self) -> tuple[dict[str, Tensor], Classifier]:
        """Of its towers, and its classifier."""
        return self.clip.net.state_dict(), self.classifier

    def described(self) -> dict[str, str]:
        """What a run that is made from it says of it."""
        return {
            "run": self.name,
            "name": self.report.name,
            "method": self.method,
            "sha256": self.report.model["sha256"],
        }


def merge_runs(
    spec: RunSpec,
    clip: Clip,
    captions: Captions,
    suite: Suite,
    settings: EvaluationSettings,
    *,
    start_sha256: str,
    inputs: Mapping[str, Path] | None,
    folder: Path,
) -> Generator[Record, None, Merged]:
    """Merge the runs that a spec's method names.

    Args:
        spec: whose method is of the family `merge`.
        clip: the initial model on its device; receives the merged weights.
        suite: what the path of WiSE-FT is measured on.
        inputs: folders of the finished runs by the names that the method uses; a name that is
            absent is a folder itself.
        folder: of the run that is made; keeps what was measured of a path.

    Raises:
        CheckpointError: a folder holds no finished run, or a damaged one.
        ModelError: a run started from other weights.
        DataError: a run has other classes than the suite.
        SpecError: Model Stock is given runs with different kinds of classifiers.
        InterruptedRunError: `settings.stop` said so; what was measured of a path is kept.
    """
    method = spec.method
    names = method.input_runs
    yield PhaseRecord(phase="loading", detail=f"{len(names)} finished run(s)")
    found = []
    for name in names:
        found.append(load_input(name, inputs, spec, suite, clip, start_sha256))
        if settings.stop():
            raise InterruptedRunError("stopped while loading finished runs")
    resolved: dict[str, Any] = {
        "head": found[0].head,
        "inputs": [item.described() for item in found],
        "precision": settings.precision,
        "device": str(settings.device),
    }
    if isinstance(method, ModelStock):
        return _stock(clip, captions, found, resolved)
    tuned = found[0].clip.to(settings.device)
    path = WeightPath(clip, tuned, found[0].classifier, found[0].head, captions)
    if not isinstance(method, WiseFt):
        mixture = yield from mix(method.kind, path, suite, settings)
        fitted = mixture.resolved()
        sha256 = mixture.ends.sha256(f"{method.kind}:{fitted}")
        mixed = Mixed(method.kind, mixture, path.tuned, sha256)
        return Merged(mixture.ends.end, {**fitted, **resolved}, mixed=mixed)
    walk = PathSweep(path, settings, folder)
    alpha = method.alpha
    if method.choose == "one_se":
        alpha, accuracies = yield from walk.choose(ONE_SE_PATH, suite)
        resolved |= {"chosen_on": "id_val", "val_accuracies": accuracies}
    # The model at α is evaluated as any other, and so gives its point.
    frontier = yield from walk.sweep(sorted({*method.sweep} - {alpha}), suite)
    classifier = path.settle(alpha)
    return Merged(classifier, {"alpha": alpha, **resolved}, frontier)


def load_input(
    name: str,
    inputs: Mapping[str, Path] | None,
    spec: RunSpec,
    suite: Suite,
    start: Clip,
    start_sha256: str,
) -> FinishedInput:
    """A finished run that began with a model and has a suite's classes.

    Args:
        name: of the run, which `inputs` has a folder for, or the folder.
        start: the initial model, of the SHA-256 `start_sha256`.

    Raises:
        CheckpointError, ModelError, DataError: as `merge_runs`.
    """
    folder = (inputs or {}).get(name) or expanded(name)
    clip, tensors, description = load_finished(folder)
    try:
        report = Report.model_validate_json((folder / "report.json").read_bytes())
        kind = str(report.spec["method"]["kind"])
        started, ended = str(report.model["start_sha256"]), str(report.model["sha256"])
    except FileNotFoundError:
        raise CheckpointError(f"{str(folder)!r} holds no finished run: no report.json") from None
    except (OSError, ValidationError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the report in {str(folder)!r} is damaged: {reason_of(error)}"
        ) from None
    if started != start_sha256:
        model, theirs = spec.model, report.spec.get("model", {})
        hint = f"Name the model that the run was started from: {theirs}."
        if model.pretrained is None:
            hint = "Random weights depend on train.seed: it must be that of the run as well."
        elif theirs == model.model_dump(mode="json"):
            hint = "Other weights go by that name today: fine-tune again from them."
        raise ModelError(
            f"the run {name!r} ({report.name}) must have started from {model.name} with the "
            f"weights {model.pretrained} (SHA-256 {start_sha256[:12]}…), it started from others "
            f"({started[:12]}…)",
            hint=hint,
        )
    differs = differences(clip.model_config, start.model_config)
    if differs:
        raise ModelError(
            f"the run {name!r} ({report.name}) and {spec.model.name} with the weights "
            f"{spec.model.pretrained} must be made alike to be merged, they differ in {differs}",
            hint="The model's configuration has changed since: fine-tune again.",
        )
    found = weights_sha256(clip.net)
    if found != ended:
        raise CheckpointError(
            f"the weights in {str(folder)!r} must be those of its report (SHA-256 {ended[:12]}…), "
            f"they are others ({found[:12]}…)"
        )
    if list(suite.classes) != description["classes"]:
        raise DataError(
            f"the run {name!r} was trained on the classes {description['classes']}, the suite "
            f"{suite.name!r} has {list(suite.classes)}",
            hint="A classifier can only be evaluated on the classes that it has.",
        )
    scale = float(description["logit_scale"])
    classifier = Classifier.of(tensors, scale, start.net.logit_scale.device)
    if classifier.cache is not None:
        raise ModelError(
            f"the run {name!r} ({report.name}) answers from a cache of images beside the weights "
            "of its head, and a cache has no points between itself and the initial model",
            hint="Its towers are the initial model's: there is nothing of them to merge.",
        )
    return FinishedInput(name, clip, classifier, _head_of(name, kind, report), report)


def _head_of(name: str, kind: str, report: Report) -> Head:
    family = METHOD_SPECS[kind].family if kind in METHOD_SPECS else None
    head = report.resolved.get("head") if family == "merge" else None
    if family == "supervised" or head == "linear":
        return "linear"
    if family in ("contrastive", "none") or head == "prompts":
        return "prompts"
    raise CheckpointError(f"the run {name!r} is of a method that cannot be merged: {kind!r}")


def _stock(
    clip: Clip, captions: Captions, found: Sequence[FinishedInput], resolved: dict[str, Any]
) -> Merged:
    heads = {item.head for item in found}
    if len(heads) > 1:
        listed = ", ".join(f"{item.name} ({item.method})" for item in found)
        raise SpecError(
            "model_stock merges classifiers of one kind, and these runs have both: those that "
            f"are made of prompts and trained heads: {listed}",
            hint="Merge contrastive runs with contrastive ones, supervised with supervised ones.",
        )
    start = zero_shot_classifier(clip, captions)
    state, ratios = model_stock(
        clip.net.state_dict(), [item.clip.net.state_dict() for item in found]
    )
    clip.net.load_state_dict(state)
    if found[0].head == "linear":
        head, head_ratios = model_stock(
            fold_scale(start), [fold_scale(item.classifier) for item in found]
        )
        classifier = unfold_scale(head)
        ratios |= {f"head.{name}": ratio for name, ratio in head_ratios.items()}
    else:
        classifier = zero_shot_classifier(clip, captions)
    values = list(ratios.values())
    means = {
        "t_mean": float(np.mean(values)) if values else None,
        "t_min": min(values, default=None),
        "t_max": max(values, default=None),
        "tensors_changed": len(values),
    }
    return Merged(classifier, {**means, **resolved})
