"""Evaluate finished models: every data set predicted once, every number computed from that.

What a set has given so far is kept in shards, so that a killed or stopped evaluation goes on where
it was, and ends in the same bytes as one left alone.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calift_core.analysis.report import evaluation_report
from calift_core.data.images import ImageSet
from calift_core.data.suites.load import Suite
from calift_core.errors import InterruptedRunError, StorageError
from calift_core.evaluation.forward import (
    Forward,
    as_predictions,
    forward_all,
    share_of_batches,
    store,
    validation_values,
)
from calift_core.evaluation.items import EvaluationSettings, Item, items_of, key, n_images_of
from calift_core.evaluation.noise_levels import copy_of, noise_levels
from calift_core.evaluation.partial import SHARD_BATCHES, Shard, Shards
from calift_core.evaluation.progress import EvaluationProgress
from calift_core.evaluation.spectrum import Covariance, spectrum_of
from calift_core.evaluation.subjects import EvaluationSubject
from calift_core.files import sha256_file
from calift_core.methods.base import Classifier
from calift_core.schema.records import EvaluationRecord, PhaseRecord, Record
from calift_core.schema.report import EvaluationReport, SpectrumReport

#: Image features of a set are stored up to this size, whatever the number of classes.
FEATURES_BYTES = 64 * 2**20
#: Parts of the state of a `Covariance`.
_COVARIANCE = ("n", "origin", "total", "gram")


@dataclass
class EvaluationResult:
    """What evaluating gives for one model.

    Attributes:
        evaluations: the ID test split, shifts and corruptions, in order.
        selection: the ID parts that settings are chosen and calibrators fitted on.
    """

    evaluations: list[EvaluationReport] = field(default_factory=list)
    selection: dict[str, Any] = field(default_factory=dict)
    spectrum: SpectrumReport | None = None


def evaluate_models(
    subjects: Sequence[EvaluationSubject], suite: Suite, settings: EvaluationSettings
) -> Generator[Record, None, list[EvaluationResult]]:
    """Evaluate models on everything that a suite has; each image is decoded once for all of them.

    Returns:
        A verdict for each, in order; that of a rank that is not the first stays empty.

    Raises:
        InterruptedRunError: `settings.stop` returned true; what is done is kept.
        OutOfMemoryError: the device has no memory left.
        UnreadableImageError: a file cannot be decoded.
        DiskFullError, StorageError: predictions or shards cannot be written.
    """
    evaluation_results = [EvaluationResult() for _ in subjects]
    yield from _evaluate_sets(
        subjects, evaluation_results, items_of(suite), n_images_of(suite), settings
    )
    calibration = suite.parts.get("calibration")
    if settings.spec.perturbed_calibration and calibration is not None and len(calibration):
        for subject, evaluation_result in zip(subjects, evaluation_results, strict=True):
            yield PhaseRecord(phase="evaluating", detail="noise levels for TS-P")
            clean = Item(calibration, suite.class_names, "calibration")
            levels: list[float] = []
            if settings.ranks.first:
                levels = yield from noise_levels(subject, clean, settings)
            levels = settings.ranks.from_first(levels)
            copies = [copy_of(clean, level, subject, settings) for level in levels]
            total = len(calibration) * len(copies)
            evaluation_result.selection["perturbed_calibration"] = []
            yield from _evaluate_sets([subject], [evaluation_result], iter(copies), total, settings)
    return evaluation_results


def _evaluate_sets(
    subjects: Sequence[EvaluationSubject],
    evaluation_results: Sequence[EvaluationResult],
    items: Iterator[Item],
    n_images: int,
    settings: EvaluationSettings,
) -> Iterator[Record]:
    progress = EvaluationProgress(n_images * len(subjects))
    for item in items:
        yield from evaluate_set(subjects, evaluation_results, item, settings, progress)


def evaluate_set(
    subjects: Sequence[EvaluationSubject],
    evaluation_results: Sequence[EvaluationResult],
    item: Item,
    settings: EvaluationSettings,
    progress: EvaluationProgress,
) -> Iterator[Record]:
    """Evaluate models on one set, each image of which is decoded once for all of them.

    Args:
        verdicts: take in what comes of it, one for each model.

    Raises:
        InterruptedRunError: `settings.stop` returned true; what is done is kept.
        OutOfMemoryError: the device has no memory left.
        UnreadableImageError: a file cannot be decoded.
        DiskFullError, StorageError: predictions or shards cannot be written.
    """
    if settings.ranks.world > 1:
        before = progress.done
        yield from _predict_share(subjects, item, settings, progress)
        progress.done = before  # the shares of all count below
        if not settings.ranks.first:
            return
    works = [_Work(subject, item, settings) for subject in subjects]
    yield from _predict(works, item, settings, progress)
    for work, evaluation_result in zip(works, evaluation_results, strict=True):
        result = work.finish()
        evaluation = _take(result, item, evaluation_result)
        if evaluation is not None:
            path = "/".join(p for p in (work.subject.name, result["predictions"]) if p)
            yield EvaluationRecord(evaluation=evaluation, predictions=path, run=work.subject.run)
    yield progress.record(item.images.name)


def _predict_share(
    subjects: Sequence[EvaluationSubject],
    item: Item,
    settings: EvaluationSettings,
    progress: EvaluationProgress,
) -> Iterator[Record]:
    share = share_of_batches(len(item.images), settings.batch_size, settings.ranks)
    works = [_Work(subject, item, settings, share) for subject in subjects]
    stopped = None
    try:
        yield from _predict(works, item, settings, progress)
        for work in works:
            work.save()
    except InterruptedRunError as error:
        stopped = error
    settings.ranks.agree(stopped)


def _predict(
    works: Sequence[_Work], item: Item, settings: EvaluationSettings, progress: EvaluationProgress
) -> Iterator[Record]:
    """Predict what is missing of a set, keeping it in shards."""
    images = item.images
    open_works = [work for work in works if work.result is None]
    progress.skip(len(images) * (len(works) - len(open_works)))
    progress.skip(sum(work.position - work.start for work in open_works))
    if not open_works:
        return
    _stop_if_requested(open_works, settings, images)
    starts = [work.position for work in open_works]
    if any(starts):
        yield progress.record(images.name)  # where an earlier attempt was
    for batch in forward_all(
        [work.subject.placed for work in open_works],
        images,
        settings,
        starts=starts,
        stop=open_works[0].stop,
        features=item.role == "id" or any(work.keeps_features for work in open_works),
    ):
        work = open_works[batch.model]
        work.add(batch)
        progress.add(len(batch.logits) * (len(images) // (work.stop - work.start)))
        if work.position < work.stop:
            if len(work.unsaved) >= SHARD_BATCHES:
                work.save()
            _stop_if_requested(open_works, settings, images)
        if progress.is_due():
            yield progress.record(images.name)


def _stop_if_requested(
    works: Sequence[_Work], settings: EvaluationSettings, images: ImageSet
) -> None:
    if not settings.stop():
        return
    for work in works:
        work.save()
    done = min(work.position - work.start for work in works)
    of = works[0].stop - works[0].start
    whose = f"its {of:,} images" if of == len(images) else f"this process's {of:,} images"
    raise InterruptedRunError(
        f"stopped while evaluating {images.name}, after {done:,} of {whose}; they are kept"
    )


def _take(
    result: Mapping[str, Any], item: Item, evaluation_result: EvaluationResult
) -> EvaluationReport | None:
    """Put a set's result in the verdict; its evaluation, None of a part that is not evaluated."""
    if result.get("spectrum") is not None:
        evaluation_result.spectrum = SpectrumReport.model_validate(result["spectrum"])
    if result.get("evaluation") is not None:
        evaluation = EvaluationReport.model_validate(result["evaluation"])
        evaluation_result.evaluations.append(evaluation)
        return evaluation
    if item.role == "far":
        return None
    selection = dict(result["selection"])
    if item.noise is not None:
        evaluation_result.selection["perturbed_calibration"].append(selection)
    else:
        evaluation_result.selection[item.role] = selection
    return None


def keeps_features(item: Item, classifier: Classifier) -> bool:
    """Whether a set's image features are stored: they tell what other prompts would have said.

    Of ID data, shifts and far sets, as long as they take no more room than the logits or
    `FEATURES_BYTES`.
    """
    n_classes, width = classifier.weights.shape
    n_bytes = 2 * width * len(item.images)
    small = n_bytes <= max(FEATURES_BYTES, 4 * n_classes * len(item.images))
    return item.role in ("id", "shift", "far") and small


class _Work:
    """One model on one set, while it is predicted.

    Args:
        share: first image, and the one after the last, that this rank predicts; None: the set.

    Attributes:
        result: what `finish` returns, if the set was finished by an earlier attempt.
        start: the first image.
        stop: the image after the last one.
        unsaved: logits of the batches since the last shard.
        keeps_features: whether the features are stored beside the logits.
    """

    def __init__(
        self,
        subject: EvaluationSubject,
        item: Item,
        settings: EvaluationSettings,
        share: tuple[int, int] | None = None,
    ) -> None:
        self.subject, self.item, self.settings = subject, item, settings
        self.start, self.stop = share or (0, len(item.images))
        self.began = time.monotonic()
        self.shards = Shards(subject.folder, key(subject, item, settings))
        self.result = self._finished()
        self.covariance = Covariance(subject.placed.classifier.weights.shape[1])
        self.unsaved: list[NDArray[np.float32]] = []
        self.unsaved_features: list[NDArray[np.float16]] = []
        self.keeps_features = keeps_features(item, subject.placed.classifier)
        self.position = self.saved = self.start
        shards = [] if self.result is not None else self.shards.load(*(share or ()))
        if shards and (item.role != "id" or self._take_covariance(shards)):
            self.position = self.saved = shards[-1].stop

    def _take_covariance(self, shards: Sequence[Shard]) -> bool:
        """Take over the sums of shards; if they are not those of their images, drop the shards.

        Each shard has the sums over the images from the start of a share to its own end. Where an
        earlier attempt had another number of ranks, its shares may begin and end elsewhere.
        """
        ends: dict[int, dict[str, NDArray[np.float64]]] = {}
        for shard in shards:
            state = {name: shard.tensors[name].numpy() for name in _COVARIANCE}
            ends[shard.stop - int(state["n"][0])] = state
        seen = sum(int(state["n"][0]) for state in ends.values())
        if min(ends) != self.start or seen != shards[-1].stop - self.start:
            self.shards.drop(self.start, self.stop)
            return False
        self.covariance.merge(list(ends.values()))
        return True

    def _finished(self) -> dict[str, Any] | None:
        """An earlier attempt's result, if its predictions are still what it wrote."""
        result = self.shards.finished()
        if result is None:
            return None
        try:
            found = sha256_file(self.subject.folder / result["predictions"])
            return result if found == result["predictions_sha256"] else None
        except (KeyError, StorageError):
            return None

    def add(self, batch: Forward) -> None:
        """Keep the logits of a batch, and add its features to the spectrum's sums."""
        self.unsaved.append(batch.logits)
        if batch.features is not None and self.item.role == "id":
            self.covariance.add(batch.features)
        if batch.features is not None and self.keeps_features:
            self.unsaved_features.append(batch.features.astype(np.float16))
        self.position += len(batch.logits)

    def save(self) -> None:
        """Write the logits since the last shard to disk, as a shard of their own."""
        if not self.unsaved:
            return
        tensors = {"logits": torch.from_numpy(np.concatenate(self.unsaved))}
        if self.unsaved_features:
            tensors["features"] = torch.from_numpy(np.concatenate(self.unsaved_features))
        if self.item.role == "id":
            state = self.covariance.state()
            tensors |= {name: torch.from_numpy(state[name]) for name in _COVARIANCE}
        self.shards.save(self.saved, self.position, tensors)
        self.saved, self.unsaved, self.unsaved_features = self.position, [], []

    def _everything(self) -> tuple[NDArray[np.float32], NDArray[np.float16] | None]:
        """Logits (N, K), and features (N, D) where they are kept, from disk and memory."""
        shards = self.shards.load()
        parts = [shard.tensors["logits"].numpy() for shard in shards]
        logits = np.concatenate([*parts, *self.unsaved])
        if len(logits) != len(self.item.images):
            raise StorageError(
                f"the shards of {self.item.images.name} must hold {self.saved:,} images, they hold "
                f"{len(logits) - self.position + self.saved:,}: somebody changed the files in "
                f"{str(self.shards.folder)!r}",
                hint="Start again: what is missing is predicted anew.",
            )
        if not self.keeps_features:
            return logits, None
        kept = [shard.tensors["features"].numpy() for shard in shards]
        return logits, np.concatenate([*kept, *self.unsaved_features])

    def finish(self) -> dict[str, Any]:
        """Write the predictions and compute every number from them; from those of far sets none."""
        if self.result is not None:
            return self.result
        subject, item, settings = self.subject, self.item, self.settings
        logits, features = self._everything()
        predictions = as_predictions(
            logits,
            item.images,
            role=item.role,
            class_names=item.class_names,
            templates=settings.templates,
            classifier=subject.placed.classifier,
            model_sha256=subject.sha256,
            source_dataset=item.source,
            features=features,
        )
        path, sha256 = store(subject.folder, predictions, copies=item.copies)
        result: dict[str, Any] = {"predictions": path, "predictions_sha256": sha256}
        if item.role in ("validation", "calibration"):
            noise = {} if item.noise is None else {"dataset": item.images.name, "noise": item.noise}
            values = validation_values(
                predictions.logits, predictions.labels, settings.spec, floor=True
            )
            result["selection"] = {**noise, "n": len(item.images), **result, **values}
        elif item.role != "far":  # which has no labels
            evaluation = evaluation_report(
                predictions,
                settings.spec,
                corruption=item.corruption,
                severity=item.severity,
                sha256=sha256,
                began=self.began,
            )
            result["evaluation"] = evaluation.model_dump(mode="json")
        if item.role == "id":
            spectrum = spectrum_of(subject.placed.place(), self.covariance, item.images.name)
            result["spectrum"] = None if spectrum is None else spectrum.model_dump(mode="json")
        self.shards.finish(result)
        return result
