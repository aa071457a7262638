"""What a run has to do and how long that takes: one count, one pace. Torch-free.

The form, the API and the command ask here, so that they say the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from calift_core.data.counting import SuiteCounts, count_suite
from calift_core.data.listing import Budget, steps_per_epoch
from calift_core.errors import CaliftError
from calift_core.schema.spec import RunSpec


@dataclass(frozen=True)
class Pace:
    """How fast a machine is at a kind of run.

    Attributes:
        trained_per_s: training images a second, forward, backward and update.
        evaluated_per_s: images a second that a finished model predicts.
        basis: where the figures come from, as the end of a sentence.
    """

    trained_per_s: float | None
    evaluated_per_s: float | None
    basis: str


@dataclass(frozen=True)
class Workload:
    """What a run has to do.

    Attributes:
        counts: images of the suite by what they are for.
        train_images: images that are trained on, None where unknown or nothing is trained.
        steps: optimiser steps.
        evaluation_images: images predicted by finished models, each as often as it is.
        passes: training images times the epochs that they are seen in.
        missing: sentences about data that is not here.
        problems: pointer and sentence of what is here and cannot be used.
    """

    counts: SuiteCounts
    train_images: int | None = None
    steps: int | None = None
    evaluation_images: int | None = None
    passes: int = 0
    on_features: bool = False
    missing: tuple[str, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()

    def seconds(self, pace: Pace) -> float | None:
        """Time of training and evaluation; None where a part of it is unknown."""
        if self.evaluation_images is None:
            return None
        total = 0.0
        for images, per_s in (
            (self.evaluation_images, pace.evaluated_per_s),
            (self.passes, pace.evaluated_per_s if self.on_features else pace.trained_per_s),
        ):
            if images and not per_s:
                return None
            total += images / per_s if per_s else 0.0
        return total


def count_images(spec: RunSpec, budget: Budget | None = None) -> Workload:
    """What a run of this spec has to do, without opening an image.

    Args:
        spec: the run.
        budget: how much of the disk may be looked at.
    """
    try:
        counts = count_suite(spec.suite, budget)
    except CaliftError as error:
        return Workload(SuiteCounts(basis="unknown"), problems=(("#/suite/id", str(error)),))
    problems = [(absent.pointer, absent.message) for absent in counts.problems]
    method = spec.method
    train = steps = None
    passes = 0
    if method.trains and counts.parts:
        part = "pretrain" if method.kind == "pretrain" else "train"
        train = counts.parts.get(part, 0)
        if train == 0:
            problems.append(("#/suite", f"no images in {part}"))
        else:
            per_epoch = steps_per_epoch(train, spec.train.batch_size)
            steps = 0 if method.solved_at_once else spec.train.epochs * per_epoch
            # On features every image is encoded once; the steps on them cost next to nothing.
            passes = train if method.on_features else steps * spec.train.batch_size
    evaluated = None
    if counts.evaluated is not None and counts.selection is not None:
        evaluated = (counts.evaluated + counts.selection) * method.judged_models
    return Workload(
        counts,
        train_images=train,
        steps=steps,
        evaluation_images=evaluated,
        passes=passes,
        on_features=method.on_features,
        missing=tuple(absent.message for absent in counts.absent),
        problems=tuple(problems),
    )
