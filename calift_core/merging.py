"""Runs made from finished runs: what WiSE-FT and Model Stock need around `methods.merge`.

A classifier made of prompts belongs to its text tower, so it is made anew from the merged one. A
trained head has nothing to be made from: its scale is folded in (`W = s·W`), and it is merged like
any other weight, with the zero-shot classifier (no bias) as its initial value.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from calift_core.calibration import (
    Binning,
    TopLabel,
    accuracy,
    ece,
    nll,
    null_floor,
    score_probs,
    softmax,
)
from calift_core.clip import Captions, Clip, differences, load_finished, weights_sha256
from calift_core.data.images import ImageSet
from calift_core.data.suites import Suite
from calift_core.errors import (
    CheckpointError,
    DataError,
    InterruptedRunError,
    ModelError,
    SpecError,
    reason_of,
)
from calift_core.evaluate import Forward, Placed, forward_all
from calift_core.judging import (
    SHARD_BATCHES,
    Progress,
    classifier_sha256,
    items_of,
    n_images_of,
    pass_key,
)
from calift_core.methods.base import Classifier, zero_shot_classifier
from calift_core.methods.merge import check_alike, interpolate, model_stock
from calift_core.reporting import group_mean, ood_groups
from calift_core.schema.methods import METHOD_SPECS, ModelStock, WiseFt
from calift_core.schema.records import PhaseRecord, Record
from calift_core.schema.report import FrontierPoint, FrontierSet, Report
from calift_core.schema.spec import EvaluationSpec, RunSpec
from calift_core.shards import Shards
from calift_core.train import Precision

#: `prompts`: made of prompts by the text tower; `linear`: trained weights.
Head = Literal["prompts", "linear"]


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
    folder: Path,
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
        folder: of the run that is made; keeps what was measured of a path.
        device: where the model is.
        precision: of forward passes.
        stop: true to stop.

    Raises:
        CheckpointError: a folder holds no finished run, or a damaged one.
        ModelError: a run started from other weights.
        DataError: a run has other classes than the suite.
        SpecError: Model Stock is given runs with different kinds of classifiers.
        InterruptedRunError: `stop` said so; what was measured of a path is kept.
    """
    method = spec.method
    names = method.input_runs
    yield PhaseRecord(phase="loading", detail=f"{len(names)} finished run(s)")
    found = []
    for name in names:
        at = (inputs or {}).get(name) or Path(name).expanduser()
        found.append(_load(name, at, spec, suite, clip, start_sha256))
        if stop():
            raise InterruptedRunError("stopped while loading finished runs")
    resolved: dict[str, Any] = {
        "head": found[0].head,
        "inputs": [
            {
                "run": item.name,
                "name": item.report.name,
                "method": _method_of(item),
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
    path = WeightPath(clip, found[0].clip.to(device), found[0].classifier, found[0].head, captions)
    frontier = yield from sweep(
        path,
        sorted({*method.sweep, method.alpha}),
        suite,
        spec.evaluation,
        folder=folder,
        workers=spec.train.workers,
        device=device,
        precision=precision,
        stop=stop,
    )
    classifier = path.settle(method.alpha)
    return Merged(classifier, {"alpha": method.alpha, **resolved}, frontier)


# ------------------------------------------------------------------------------------ inputs


def _load(
    name: str, folder: Path, spec: RunSpec, suite: Suite, start: Clip, start_sha256: str
) -> _Input:
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
    differs = differences(clip.made, start.made)
    if differs:
        raise ModelError(
            f"the run {name!r} ({report.name}) and {spec.model.name} with the weights "
            f"{spec.model.pretrained} must be made alike to be merged, they differ in {differs}",
            hint="Models of earlier versions keep what they were trained with: fine-tune again.",
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
            hint="A classifier can only be judged on the classes that it has.",
        )
    classifier = Classifier(
        tensors["weights"], float(description["logit_scale"]), tensors.get("bias")
    )
    return _Input(name, clip, classifier, _head_of(name, kind, report), report)


def _head_of(name: str, kind: str, report: Report) -> Head:
    family = METHOD_SPECS[kind].family if kind in METHOD_SPECS else None
    head = report.resolved.get("head") if family == "merge" else None
    if family == "supervised" or head == "linear":
        return "linear"
    if family in ("contrastive", "none") or head == "prompts":
        return "prompts"
    raise CheckpointError(f"the run {name!r} is of a method that cannot be merged: {kind!r}")


def _method_of(item: _Input) -> str:
    return str(item.report.spec["method"]["kind"])


def _folded(classifier: Classifier) -> dict[str, Tensor]:
    """The weights that give the same logits with a scale of 1, and a bias."""
    weights = classifier.scale * classifier.weights.float()
    bias = classifier.bias
    return {
        "weight": weights,  # (C, D)
        "bias": weights.new_zeros(len(weights)) if bias is None else bias.float(),
    }


def _unfolded(head: Mapping[str, Tensor]) -> Classifier:
    return Classifier(head["weight"], 1.0, head["bias"])


# ------------------------------------------------------------------------------- Model Stock


def _stock(
    clip: Clip, captions: Captions, found: Sequence[_Input], resolved: dict[str, Any]
) -> Merged:
    heads = {item.head for item in found}
    if len(heads) > 1:
        listed = ", ".join(f"{item.name} ({_method_of(item)})" for item in found)
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
            _folded(start), [_folded(item.classifier) for item in found]
        )
        classifier = _unfolded(head)
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


# ----------------------------------------------------------------------------------- WiSE-FT


class WeightPath:
    """The models between two: both ends and one working copy, on one device.

    Args:
        initial: θ₀; `settle` changes it.
        tuned: θ₁ of the same architecture.
        end: the classifier of `tuned`.
        head: whether `end` was made of prompts.
        captions: class names × templates; they make the classifier of θ₀, and every one where
            classifiers are made of prompts.

    Raises:
        ModelError: the two are not of one architecture.
    """

    def __init__(
        self, initial: Clip, tuned: Clip, end: Classifier, head: Head, captions: Captions
    ) -> None:
        self.initial, self.tuned, self.head, self.captions = initial, tuned, head, captions
        self.working = copy.deepcopy(initial).eval()
        ends = initial.net.state_dict(), tuned.net.state_dict()
        check_alike(*ends)
        self._all = self._triples(*ends, prefix="")
        self._tower = self._triples(*ends, prefix="visual.")
        device = initial.logit_scale.device
        self._start = zero_shot_classifier(initial, captions)
        self._end = Classifier(
            end.weights.to(device), end.scale, None if end.bias is None else end.bias.to(device)
        )

    def _triples(
        self, start: Mapping[str, Tensor], end: Mapping[str, Tensor], *, prefix: str
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Start, end and working tensors of equal names; counters have no part in a forward."""
        here = self.working.net.state_dict()
        names = [
            name
            for name, tensor in start.items()
            if name.startswith(prefix) and tensor.is_floating_point()
        ]
        return [start[n] for n in names], [end[n] for n in names], [here[n] for n in names]

    @torch.no_grad()
    def move(self, alpha: float, *, tower_only: bool = False) -> Clip:
        """Put the working copy at α; with `tower_only`, the image tower alone."""
        start, end, here = self._tower if tower_only else self._all
        # Not in place: tied weights stand in these lists more than once.
        torch._foreach_copy_(here, torch._foreach_lerp(start, end, alpha))
        return self.working

    def classifier(self, alpha: float) -> Classifier:
        """The classifier at α. At 0 it is the zero-shot one, at 1 that of the finished run."""
        if self.head == "prompts":
            return zero_shot_classifier(self.move(alpha), self.captions)
        if alpha in (0, 1):
            return self._end if alpha else self._start
        return _unfolded(interpolate(_folded(self._start), _folded(self._end), alpha))

    def settle(self, alpha: float) -> Classifier:
        """Give the initial model the weights at α; its classifier. The path ends here."""
        state = interpolate(self.initial.net.state_dict(), self.tuned.net.state_dict(), alpha)
        self.initial.net.load_state_dict(state)
        if self.head == "prompts":
            return zero_shot_classifier(self.initial, self.captions)
        return self.classifier(alpha)


@dataclass
class _Tally:
    """What the numbers of one model on one set are computed from."""

    confidences: list[NDArray[np.float64]] = field(default_factory=list)
    correct: list[NDArray[np.bool_]] = field(default_factory=list)
    nll_sum: float = 0.0

    def add(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        scores = score_probs(softmax(logits), labels)
        self.confidences.append(scores.confidences)
        self.correct.append(scores.correct)
        self.nll_sum += nll(scores) * len(labels)

    def numbers(self, spec: EvaluationSpec) -> dict[str, float]:
        scores = TopLabel(np.concatenate(self.confidences), np.concatenate(self.correct))
        binning = Binning(spec.n_bins, spec.scheme)
        floor = null_floor(scores, binning, n_resamples=spec.n_resamples, seed=spec.seed)
        return {
            "accuracy": accuracy(scores),
            "ece": ece(scores, binning),
            "ece_floor": floor.mean,
            "nll": self.nll_sum / len(scores.correct),
        }


class _Sweep:
    """The path's models on one set, while they are measured.

    Attributes:
        numbers: of each model, if the set was finished by an earlier attempt.
        position: images done by all models.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], n_models: int) -> None:
        self.shards = Shards(folder, key)
        self.tallies = [_Tally() for _ in range(n_models)]
        finished = self.shards.finished()
        self.numbers: list[dict[str, float]] | None = finished["numbers"] if finished else None
        self.position = self.saved = self.saved_batches = 0
        for shard in self.shards.load() if self.numbers is None else ():
            self.position = self.saved = shard.stop
            self.saved_batches += 1
            for index, tally in enumerate(self.tallies):
                tally.confidences.append(shard.tensors["confidences"][index].numpy())
                tally.correct.append(shard.tensors["correct"][index].numpy())
                tally.nll_sum = float(shard.tensors["nll_sum"][index])

    @property
    def n_unsaved(self) -> int:
        """Batches that no shard holds."""
        return len(self.tallies[0].confidences) - self.saved_batches

    def save(self) -> None:
        """Keep what was done since the last shard; every model must have seen the same batches."""
        if not self.n_unsaved:
            return
        new = slice(self.saved_batches, None)
        confidences = np.stack([np.concatenate(t.confidences[new]) for t in self.tallies])
        correct = np.stack([np.concatenate(t.correct[new]) for t in self.tallies])
        self.shards.save(
            self.saved,
            self.position,
            {
                "confidences": torch.from_numpy(confidences),  # (A, n)
                "correct": torch.from_numpy(correct),  # (A, n)
                "nll_sum": torch.tensor([t.nll_sum for t in self.tallies], dtype=torch.float64),
            },
        )
        self.saved, self.saved_batches = self.position, len(self.tallies[0].confidences)

    def finish(self, spec: EvaluationSpec) -> list[dict[str, float]]:
        """The numbers of each model."""
        if self.numbers is None:
            self.numbers = [tally.numbers(spec) for tally in self.tallies]
            self.shards.finish({"numbers": self.numbers})
        return self.numbers


def sweep(
    path: WeightPath,
    alphas: Sequence[float],
    suite: Suite,
    spec: EvaluationSpec,
    *,
    folder: Path,
    workers: int,
    device: torch.device,
    precision: Precision,
    stop: Callable[[], bool],
) -> Generator[Record, None, list[FrontierPoint]]:
    """Measure models along the path; every image is decoded and corrupted once for all of them.

    What the shifts show is for looking at. An α is chosen before, as the spec does, or on the ID
    validation split (`val_…` of each point), never on a shift.

    Args:
        path: the models.
        alphas: where to measure, ascending.
        suite: ID validation and test split, shifts and corruptions.
        spec: bins, resamples and batch size, as for a run's own evaluation.
        folder: of the run; keeps what was measured, so that a stopped sweep goes on.
        workers: processes that decode ahead.
        device: where the models are.
        precision: of the forward passes; logits are float32 always.
        stop: asked between batches.

    Returns:
        One point per α, in order.

    Raises:
        InterruptedRunError: `stop` returned true; what was measured is kept.
        OutOfMemoryError: the device has no memory left.
        UnreadableImageError: a file cannot be decoded.
    """
    yield PhaseRecord(phase="evaluating", detail=f"{len(alphas)} models between the two")
    models = [
        Placed(partial(path.move, alpha, tower_only=True), path.classifier(alpha))
        for alpha in alphas
    ]
    described = {
        "sweep": list(alphas),
        "models": [weights_sha256(path.initial.net), weights_sha256(path.tuned.net)],
        "classifiers": [classifier_sha256(model.classifier) for model in models],
    }
    selection: list[dict[str, float]] = [{} for _ in alphas]
    judged: list[list[FrontierSet]] = [[] for _ in alphas]
    progress = Progress(len(alphas) * n_images_of(suite, ("validation",)))
    for item in items_of(suite, ("validation",)):
        images = item.images
        key = pass_key(path.working, item, spec, precision=precision, device=device)
        swept = _Sweep(folder, described | key, len(alphas))
        done = swept.position if swept.numbers is None else len(images)
        progress.skip(len(alphas) * done)
        batches: Iterable[Forward] = ()
        if swept.numbers is None:
            _stop_if_asked(swept, images, stop)
            batches = forward_all(
                models,
                images,
                batch_size=spec.batch_size,
                workers=workers,
                device=device,
                precision=precision,
                starts=[swept.position] * len(models),
            )
        for batch in batches:
            end = batch.start + len(batch.logits)
            swept.tallies[batch.model].add(batch.logits, images.own_labels[batch.start : end])
            progress.add(len(batch.logits))
            if batch.model < len(models) - 1:
                continue
            swept.position = end
            if end < len(images):
                if swept.n_unsaved >= SHARD_BATCHES:
                    swept.save()
                _stop_if_asked(swept, images, stop)
            if progress.is_due():
                yield progress.record(f"{images.name}, every α")
        for index, numbers in enumerate(swept.finish(spec)):
            if item.role == "validation":
                selection[index] = {f"val_{name}": value for name, value in numbers.items()}
            else:
                judged[index].append(
                    FrontierSet.model_validate(
                        {
                            "dataset": images.name,
                            "role": item.role,
                            "n": len(images),
                            "corruption": item.corruption,
                            "severity": item.severity,
                            **numbers,
                        }
                    )
                )
        yield progress.record(f"{images.name}, every α")
    return [_point(alpha, selection[index], judged[index]) for index, alpha in enumerate(alphas)]


def _stop_if_asked(swept: _Sweep, images: ImageSet, stop: Callable[[], bool]) -> None:
    if stop():
        swept.save()
        raise InterruptedRunError(
            f"stopped while sweeping α on {images.name}, after {swept.position:,} of its "
            f"{len(images):,} images; they are kept"
        )


def _point(
    alpha: float, selection: Mapping[str, float], judged: Sequence[FrontierSet]
) -> FrontierPoint:
    own = next(item for item in judged if item.role == "id")
    groups = ood_groups(judged)
    return FrontierPoint(
        alpha=alpha,
        id_accuracy=own.accuracy,
        id_ece=own.ece,
        id_ece_floor=own.ece_floor,
        id_nll=own.nll,
        ood_accuracy=group_mean(groups, lambda item: item.accuracy),
        ood_ece=group_mean(groups, lambda item: item.ece),
        ood_ece_floor=group_mean(groups, lambda item: item.ece_floor),
        ood_nll=group_mean(groups, lambda item: item.nll),
        datasets=list(judged),
        **selection,
    )
