"""What a run has to do and how long that takes: one count, one pace. Torch-free.

The form, the API and the command ask here, so that they say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from calift_core.data.counting import SuiteCounts, count_suite
from calift_core.data.listing import Budget, steps_per_epoch
from calift_core.errors import CaliftError
from calift_core.schema.spec import ConfidenceSpec, RunSpec
from calift_core.schema.wire.runs import Estimate

#: TS-P: levels including the clean one, as published; images and bisections that find them.
NOISE_LEVELS, NOISE_IMAGES, NOISE_STEPS = 10, 512, 10
#: Fewer steps of training than this are warned of.
FEW_STEPS = 20
#: Finished runs that a pace is the median of, at most.
PACE_RUNS = 10


@dataclass(frozen=True)
class Pace:
    """How fast a machine is at a kind of run.

    Attributes:
        trained_per_s: images a second in training steps: forward, backward and update.
        predicted_per_s: images a second that a model predicts.
        basis: what the figures are of, as a part of a sentence.
    """

    trained_per_s: float | None
    predicted_per_s: float | None
    basis: str


@dataclass(frozen=True)
class Workload:
    """What a run has to do; None where it cannot be known here.

    Attributes:
        counts: images of the suite by what they are for.
        train_images: images that are trained on, None too where nothing is trained.
        steps: optimiser steps.
        trained: images in all the steps together.
        evaluation_images: test, shifts and corruptions, once for each model that is judged.
        selection_images: ID validation and calibration, once for each model that is judged.
        other_images: predicted besides: at the ends of epochs, before the first step, noisy copies.
        problems: pointer and sentence of what is here and cannot be used.
        warnings: sentences on what is valid and hardly meant.
    """

    counts: SuiteCounts
    train_images: int | None = None
    steps: int | None = None
    trained: int = 0
    evaluation_images: int | None = None
    selection_images: int | None = None
    other_images: int = 0
    problems: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Sentences on data that is not here."""
        return [item.message for item in self.counts.absent]

    @property
    def blocking(self) -> list[str]:
        """Of the sentences in `missing`, those on data that no run downloads by itself."""
        return [item.message for item in self.counts.absent if not item.fetched]

    def seconds(self, pace: Pace) -> float | None:
        """Time of training and predicting; None where a part of it is unknown."""
        if self.evaluation_images is None or self.selection_images is None:
            return None
        predicted = self.evaluation_images + self.selection_images + self.other_images
        total = 0.0
        for images, per_s in (
            (self.trained, pace.trained_per_s),
            (predicted, pace.predicted_per_s),
        ):
            if images and not per_s:
                return None
            total += images / per_s if per_s else 0.0
        return total

    def estimate(self, pace: Pace | None = None, **more: Any) -> Estimate:
        """The cost in numbers, with the time if a pace is known.

        Args:
            pace: of runs like this one.
            **more: other fields.
        """
        seconds = None if pace is None else self.seconds(pace)
        trained_per_s = None if pace is None or not self.trained else pace.trained_per_s
        told = "" if pace is None or seconds is None else f"; time {pace.basis}"
        return Estimate(
            train_images=self.train_images,
            steps=self.steps,
            evaluation_images=self.evaluation_images,
            selection_images=self.selection_images,
            parts=dict(self.counts.parts),
            shifts=dict(self.counts.shifts),
            corrupted_images=self.counts.corrupted,
            seconds=seconds,
            train_seconds_per_1000=1000 / trained_per_s if trained_per_s else None,
            basis=f"images: {self.counts.basis}{told}",
            **more,
        )


def count_images(
    spec: RunSpec, budget: Budget | None = None, counts: SuiteCounts | None = None
) -> Workload:
    """What a run of this spec has to do, without opening an image.

    Args:
        spec: the run.
        budget: how much of the disk may be looked at.
        counts: of its suite, where they are known already.
    """
    try:
        counts = counts or count_suite(spec.suite, budget)
    except CaliftError as error:
        return Workload(SuiteCounts(basis="unknown"), problems=(("#/suite/id", str(error)),))
    problems = [(absent.pointer, absent.message) for absent in counts.problems]
    method, train = spec.method, spec.train
    n_validation = counts.parts.get("validation", 0)
    n_train = steps = None
    trained = other = 0
    warnings = list(counts.warnings)
    if method.trains and counts.parts:
        part = "pretrain" if method.kind == "pretrain" else "train"
        n_train = counts.parts.get(part, 0)
        if n_train == 0:
            problems.append(("#/suite", f"no images in {part}"))
        per_epoch = steps_per_epoch(n_train, train.batch_size)
        steps = 0 if method.solved_at_once or n_train == 0 else train.epochs * per_epoch
        trained = steps * min(train.batch_size, n_train)
        if method.encodes_first:
            other += n_train + (n_validation if method.solved_at_once else 0)
        if steps and train.spectrum_every_epochs:
            watched = sum(min(train.watch_shifts, n or 0) for n in counts.shifts.values())
            other += (n_validation + watched) * (train.epochs // train.spectrum_every_epochs)
        if 0 < steps < FEW_STEPS:
            warnings.append(_few(steps, n_train, spec))
    if spec.evaluation.perturbed_calibration:
        n = counts.parts.get("calibration", 0)
        searched = min(n, NOISE_IMAGES) * (1 + (NOISE_LEVELS - 1) * NOISE_STEPS)
        other += n * (NOISE_LEVELS - 1) + searched
    if method.keeps_features:
        other += min(train.keep_features, counts.parts.get("train", 0))
    other += 2 * sum(counts.parts.get(part, 0) for part in method.fitted_on)
    other += method.chosen_among * n_validation
    judged = method.judged_models
    selection = None
    if counts.selection is not None:  # a path is not measured on the calibration images
        selection = counts.selection + (judged - 1) * n_validation
    return Workload(
        counts,
        train_images=n_train,
        steps=steps,
        trained=trained,
        evaluation_images=None if counts.evaluated is None else counts.evaluated * judged,
        selection_images=selection,
        other_images=other,
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _few(steps: int, n_train: int, spec: RunSpec) -> str:
    batch, epochs = spec.train.batch_size, spec.train.epochs
    words = f"{steps} step{'' if steps == 1 else 's'} of training"
    at = f"{n_train:,} images in batches of {batch:,}"
    return (
        f"Only {words} ({at}, {epochs} epoch{'' if epochs == 1 else 's'}): the model will hardly "
        "change. A smaller batch or more epochs give more."
    )


def recorded_pace(reports: Iterable[Mapping[str, Any]], spec: RunSpec) -> Pace | None:
    """The pace that finished runs tell, for a run like them.

    Predicting is as fast as in any run of the same model on the same kind of device; training, as
    in those of the same method with the same options of `train.confidence` and `train.adapt` too.

    Args:
        reports: `report.json` of finished runs or the parts `spec`, `environment` and `speeds` of
            it, the newest first.
        spec: the run to be. Where its device is `auto`, that of the newest run like it is taken.
    """
    model = spec.model.model_dump(mode="json")
    alike = [r for r in reports if r.get("speeds") and r["spec"].get("model") == model]
    if spec.train.precision != "auto":
        alike = [r for r in alike if r["environment"].get("precision") == spec.train.precision]
    if not alike:
        return None
    kind = spec.train.device.partition(":")[0]
    if kind == "auto":
        kind = _device(alike[0])
    alike = [r for r in alike if _device(r) == kind]
    same = [r for r in alike if _trains_as(r, spec)]
    trained = [r["speeds"]["training"] for r in same if r["speeds"].get("training")][:PACE_RUNS]
    predicted = [r["speeds"]["evaluating"] for r in alike if r["speeds"].get("evaluating")]
    predicted = predicted[:PACE_RUNS]
    if not trained and not predicted:
        return None
    n = len(trained) if spec.method.trains else len(predicted)
    of = f"{spec.model.name} with {spec.method.kind}" if spec.method.trains else spec.model.name
    runs = f"of {n} finished runs" if n > 1 else "of a finished run"
    return Pace(
        median(trained) if trained else None,
        median(predicted) if predicted else None,
        f"at the {'median ' if n > 1 else ''}pace {runs} of {of} on {kind}",
    )


def _device(report: Mapping[str, Any]) -> str:
    return str(report["environment"].get("device", "")).partition(":")[0]


def _trains_as(report: Mapping[str, Any], spec: RunSpec) -> bool:
    theirs = report["spec"]
    options = ConfidenceSpec.model_validate(theirs.get("train", {}).get("confidence") or {})
    return (
        theirs.get("method", {}).get("kind") == spec.method.kind
        and options.active() == spec.train.confidence.active()
        and theirs.get("train", {}).get("adapt", "full") == spec.train.adapt
    )
