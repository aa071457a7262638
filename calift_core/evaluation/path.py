"""The straight path between two models (WiSE-FT): every mixture of them evaluated in one pass."""

import copy
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calift_core.analysis.report import group_mean, ood_groups
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
from calift_core.data.images import ImageSet
from calift_core.data.suites.load import Suite
from calift_core.errors import InterruptedRunError
from calift_core.evaluation.forward import Forward, PlacedModel, forward_all
from calift_core.evaluation.items import (
    EvaluationSettings,
    Item,
    classifier_sha256,
    items_of,
    n_images_of,
    pass_key,
)
from calift_core.evaluation.partial import SHARD_BATCHES, Shards
from calift_core.evaluation.progress import EvaluationProgress
from calift_core.methods.base import Classifier, zero_shot_classifier
from calift_core.methods.merge import check_alike, interpolate
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.loading import weights_sha256
from calift_core.schema.records import PhaseRecord, Record
from calift_core.schema.report import EvaluationReport, FrontierPoint, FrontierSet
from calift_core.schema.spec import EvaluationSpec

#: `prompts`: made of prompts by the text tower; `linear`: trained weights.
Head = Literal["prompts", "linear"]


def fold_scale(classifier: Classifier) -> dict[str, Tensor]:
    """The weights that give the same logits with a scale of 1, and a bias."""
    weights = classifier.scale * classifier.weights.float()
    bias = classifier.bias
    return {
        "weight": weights,  # (C, D)
        "bias": weights.new_zeros(len(weights)) if bias is None else bias.float(),
    }


def unfold_scale(head: Mapping[str, Tensor]) -> Classifier:
    """The classifier that `fold_scale` took apart, with a scale of 1."""
    return Classifier(head["weight"], 1.0, head["bias"])


class WeightPath:
    """The models between two: both ends and one working copy, on one device.

    Args:
        initial: θ₀; `settle` changes it.
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
        return unfold_scale(interpolate(fold_scale(self._start), fold_scale(self._end), alpha))

    def settle(self, alpha: float) -> Classifier:
        """Give the initial model the weights at α and return its classifier. The path ends here."""
        state = interpolate(self.initial.net.state_dict(), self.tuned.net.state_dict(), alpha)
        self.initial.net.load_state_dict(state)
        if self.head == "prompts":
            return zero_shot_classifier(self.initial, self.captions)
        return self.classifier(alpha)


@dataclass
class _SetTotals:
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


class _SetSweep:
    """The path's models on one set, while they are measured.

    Attributes:
        numbers: of each model, if the set was finished by an earlier attempt.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], n_models: int) -> None:
        self.shards = Shards(folder, key)
        self.tallies = [_SetTotals() for _ in range(n_models)]
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
        """Write the batches since the last shard; every model must have seen the same ones."""
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


@dataclass(frozen=True)
class PathSweep:
    """How models along a path are measured.

    Attributes:
        folder: of the run; keeps what was measured, so that a stopped walk goes on.
    """

    path: WeightPath
    settings: EvaluationSettings
    folder: Path

    def _models(self, alphas: Sequence[float]) -> tuple[list[PlacedModel], dict[str, Any]]:
        """Models at each α, and what names them."""
        path = self.path
        models = [
            PlacedModel(partial(path.move, alpha, tower_only=True), path.classifier(alpha))
            for alpha in alphas
        ]
        described = {
            "sweep": list(alphas),
            "models": [weights_sha256(path.initial.net), weights_sha256(path.tuned.net)],
            "classifiers": [classifier_sha256(model.classifier) for model in models],
        }
        return models, described

    def _measured(
        self,
        item: Item,
        models: Sequence[PlacedModel],
        described: Mapping[str, Any],
        progress: EvaluationProgress,
    ) -> Generator[Record, None, list[dict[str, float]]]:
        """Numbers of each model on one set; every image is decoded once for all of them."""
        images = item.images
        key = pass_key(self.path.working, item, self.settings)
        swept = _SetSweep(self.folder, {**described, **key}, len(models))
        done = swept.position if swept.numbers is None else len(images)
        progress.skip(len(models) * done)
        batches: Iterable[Forward] = ()
        if swept.numbers is None:
            _stop_if_requested(swept, images, self.settings.stop)
            batches = forward_all(
                models,
                images,
                self.settings,
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
                _stop_if_requested(swept, images, self.settings.stop)
            if progress.is_due():
                yield progress.record(f"{images.name}, every α")
        numbers = swept.finish(self.settings.spec)
        yield progress.record(f"{images.name}, every α")
        return numbers

    def sweep(
        self, alphas: Sequence[float], suite: Suite
    ) -> Generator[Record, None, list[FrontierPoint]]:
        """Measure models along the path; every image is decoded and corrupted once for all of them.

        What the shifts show is for looking at. An α is chosen before, as the spec does, or on the
        ID validation split (`val_…` of each point), never on a shift.

        Args:
            suite: ID validation and test split, shifts and corruptions.

        Returns:
            One point per α, in order; nothing is read where there is no α.

        Raises:
            InterruptedRunError: `stop` returned true; what was measured is kept.
            OutOfMemoryError: the device has no memory left.
            UnreadableImageError: a file cannot be decoded.
        """
        if not alphas:
            return []
        yield PhaseRecord(phase="evaluating", detail=f"{len(alphas)} models between the two")
        suite = replace(suite, ood={})  # there is nothing to measure on them
        models, described = self._models(alphas)
        selection: list[dict[str, float]] = [{} for _ in alphas]
        per_alpha: list[list[FrontierSet]] = [[] for _ in alphas]
        progress = EvaluationProgress(len(alphas) * n_images_of(suite, ("validation",)))
        for item in items_of(suite, ("validation",)):
            measured = yield from self._measured(item, models, described, progress)
            for index, numbers in enumerate(measured):
                if item.role == "validation":
                    selection[index] = {f"val_{name}": value for name, value in numbers.items()}
                else:
                    per_alpha[index].append(
                        FrontierSet.model_validate(
                            {
                                "dataset": item.images.name,
                                "role": item.role,
                                "n": len(item.images),
                                "corruption": item.corruption,
                                "severity": item.severity,
                                **numbers,
                            }
                        )
                    )
        return [_point(alpha, selection[i], per_alpha[i]) for i, alpha in enumerate(alphas)]

    def choose(
        self, alphas: Sequence[float], suite: Suite
    ) -> Generator[Record, None, tuple[float, list[float]]]:
        """Choose α on ID validation accuracy by `one_standard_error`.

        Returns:
            The α, and the validation accuracy at each.

        Raises:
            DataError: the suite has no validation split.
            InterruptedRunError: `stop` returned true; what was measured is kept.
        """
        images = suite.part("validation")
        yield PhaseRecord(phase="evaluating", detail=f"{len(alphas)} models on ID validation")
        models, described = self._models(alphas)
        item = Item(images, suite.class_names, "validation")
        progress = EvaluationProgress(len(alphas) * len(images))
        measured = yield from self._measured(item, models, described, progress)
        accuracies = [numbers["accuracy"] for numbers in measured]
        return one_standard_error(alphas, accuracies, len(images)), accuracies


def one_standard_error(alphas: Sequence[float], accuracies: Sequence[float], n: int) -> float:
    """The smallest α whose accuracy is within one binomial standard error of the best.

    After Breiman et al. 1984, section 3.4.3: of models that the data cannot tell apart, the
    simplest, which here is the one nearest to the initial weights.
    """
    best = max(accuracies)
    enough = best - (best * (1 - best) / n) ** 0.5
    return next(a for a, accuracy in zip(alphas, accuracies, strict=True) if accuracy >= enough)


def _stop_if_requested(swept: _SetSweep, images: ImageSet, stop: Callable[[], bool]) -> None:
    if stop():
        swept.save()
        raise InterruptedRunError(
            f"stopped while sweeping α on {images.name}, after {swept.position:,} of its "
            f"{len(images):,} images; they are kept"
        )


def point_of(
    alpha: float, evaluations: Sequence[EvaluationReport], selection: Mapping[str, Any]
) -> FrontierPoint:
    """The point of a model that was evaluated as any other: its own numbers, measured once.

    Args:
        evaluations: of the ID test split, shifts and corruptions.
        selection: ID parts as in a report; the validation split may be missing.
    """
    sets = [
        FrontierSet(
            dataset=one.dataset,
            role=one.role,
            n=one.n,
            accuracy=one.accuracy,
            ece=one.ece.value,
            ece_floor=one.ece.null_mean,
            nll=one.nll,
            corruption=one.corruption,
            severity=one.severity,
        )
        for one in evaluations
    ]
    of_validation = selection.get("validation", {})
    chosen = {k: v for k, v in of_validation.items() if k.startswith("val_")}
    return _point(alpha, chosen, sets)


def _point(
    alpha: float, selection: Mapping[str, float], per_alpha: Sequence[FrontierSet]
) -> FrontierPoint:
    own = next(item for item in per_alpha if item.role == "id")
    groups = ood_groups(per_alpha)
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
        datasets=list(per_alpha),
        **selection,
    )
