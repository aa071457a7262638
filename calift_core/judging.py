"""Judge finished models: every data set predicted once, every number computed from that.

What a set has given so far is kept in shards, so that a killed or stopped evaluation goes on where
it was, and ends in the same bytes as one left alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calift_core.calibration import perturbation_levels
from calift_core.clip import Clip
from calift_core.data.images import ImageSet
from calift_core.data.noise import perturbed, shrunk
from calift_core.data.suites import Suite
from calift_core.data.workload import NOISE_IMAGES, NOISE_LEVELS, NOISE_STEPS
from calift_core.errors import InterruptedRunError, ModelError, StorageError
from calift_core.evaluate import (
    Forward,
    Placed,
    as_predictions,
    forward_all,
    store,
    validation_values,
)
from calift_core.files import sha256_file
from calift_core.methods.base import Classifier
from calift_core.predictions import Role
from calift_core.reporting import evaluation_report
from calift_core.schema.records import EvaluationRecord, PhaseRecord, ProgressRecord, Record
from calift_core.schema.report import EvaluationReport, SpectrumReport
from calift_core.schema.spec import EvaluationSpec
from calift_core.shards import Shards
from calift_core.spectrum import Covariance, spectrum_report
from calift_core.train import Precision

#: Batches between two shards of a set.
SHARD_BATCHES = 8
#: Seconds between two signs of life within a data set.
SAY_EVERY_S = 2.0
#: Largest noise tried, as a share of the range of a pixel: little but black and white is left.
MAX_NOISE = 4.0
_FORMAT = 1
#: Parts of the state of a `Covariance`.
_COVARIANCE = ("n", "origin", "total", "gram")


@dataclass(frozen=True)
class Subject:
    """A model that is judged.

    Attributes:
        placed: the model and its classifier.
        sha256: of the model's weights.
        folder: receives `predictions/`, and shards meanwhile.
        name: folder that predictions are told under, where several models are judged.
    """

    placed: Placed
    sha256: str
    folder: Path
    name: str = ""


@dataclass(frozen=True)
class Settings:
    """How models are judged, the same for all of them.

    Attributes:
        spec: bins, resamples and batch size.
        templates: that classifiers were made of, for the record.
        workers: processes that decode ahead.
        device: where the models are.
        precision: of the forward passes; logits are float32 always.
        stop: asked between batches; what is done by then is kept.
    """

    spec: EvaluationSpec
    templates: tuple[str, ...]
    workers: int
    device: torch.device
    precision: Precision
    stop: Callable[[], bool]


@dataclass(frozen=True)
class Item:
    """One data set that models are judged on.

    Attributes:
        images: the set.
        class_names: C names of the suite's classes, for the record.
        role: what it is for.
        corruption: name of the corruption, where it is one.
        severity: of the corruption.
        source: name of the set that its images were made of, where they were.
        noise: standard deviation of the noise, of a perturbed copy.
    """

    images: ImageSet
    class_names: tuple[str, ...]
    role: Role
    corruption: str | None = None
    severity: int | None = None
    source: str | None = None
    noise: float | None = None


@dataclass
class Verdict:
    """What judging gives for one model.

    Attributes:
        evaluations: the ID test split, shifts and corruptions, in order.
        selection: the ID parts that settings are chosen and calibrators fitted on.
        spectrum: of the ID test features.
    """

    evaluations: list[EvaluationReport] = field(default_factory=list)
    selection: dict[str, Any] = field(default_factory=dict)
    spectrum: SpectrumReport | None = None


def judge(
    subjects: Sequence[Subject], suite: Suite, settings: Settings
) -> Generator[Record, None, list[Verdict]]:
    """Judge models on everything that a suite has; each image is decoded once for all of them.

    Args:
        subjects: models of one architecture and preprocessing.
        suite: ID parts, shifts and corruptions.
        settings: how.

    Returns:
        A verdict for each, in order.

    Raises:
        InterruptedRunError: `settings.stop` returned true; what is done is kept.
        OutOfMemoryError: the device has no memory left.
        UnreadableImageError: a file cannot be decoded.
        DiskFullError, StorageError: predictions or shards cannot be written.
    """
    verdicts = [Verdict() for _ in subjects]
    yield from _judge_sets(subjects, verdicts, items_of(suite), n_images_of(suite), settings)
    calibration = suite.parts.get("calibration")
    if settings.spec.perturbed_calibration and calibration is not None and len(calibration):
        for subject, verdict in zip(subjects, verdicts, strict=True):
            yield PhaseRecord(phase="evaluating", detail="noise levels for TS-P")
            clean = Item(calibration, suite.class_names, "calibration")
            levels = yield from _noise_levels(subject, clean, settings)
            copies = [_copy_of(clean, level, subject, settings) for level in levels]
            total = len(calibration) * len(copies)
            verdict.selection["perturbed_calibration"] = []
            yield from _judge_sets([subject], [verdict], iter(copies), total, settings)
    return verdicts


ID_PARTS: tuple[Role, ...] = ("validation", "calibration")


def items_of(suite: Suite, parts: Sequence[Role] = ID_PARTS) -> Iterator[Item]:
    """ID parts first, then what the suite judges on; corrupted sets are made when their turn is."""
    for part in parts:
        if len(suite.parts.get(part, ())):
            yield Item(suite.parts[part], suite.class_names, part)
    for images, role, corruption, severity in suite.evaluations():
        source = f"{suite.name}/test" if role == "corruption" else None
        yield Item(images, suite.class_names, role, corruption, severity, source)


def n_images_of(suite: Suite, parts: Sequence[Role] = ID_PARTS) -> int:
    """Images of all the sets of `items_of`, none of which is made for that."""
    sets = [suite.parts.get(part, ()) for part in parts]
    n_plain = sum(map(len, (*sets, suite.part("test"), *suite.shifts.values())))
    n_corrupted = len(suite.part("test").limited(suite.corruption_limit))
    return n_plain + n_corrupted * len(suite.corruption_plan)


class Progress:
    """Tells how far an evaluation is; what was done by an earlier attempt does not count as fast.

    Args:
        total: images times models.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done, self.done_here = total, 0, 0
        self.began = self.said = time.monotonic()

    def skip(self, n: int) -> None:
        """Count images that were predicted before."""
        self.done += n

    def add(self, n: int) -> None:
        """Count images that were predicted now."""
        self.done += n
        self.done_here += n

    def is_due(self) -> bool:
        """Whether nothing has been said for a while."""
        return time.monotonic() - self.said > SAY_EVERY_S

    def record(self, detail: str) -> ProgressRecord:
        """How far it is; `samples_per_s` counts each model's images."""
        self.said = time.monotonic()
        elapsed = self.said - self.began
        speed = self.done_here / elapsed if self.done_here and elapsed > 0 else None
        return ProgressRecord(
            phase="evaluating",
            step=self.done,
            total_steps=self.total,
            samples_per_s=speed,
            eta_s=None if speed is None else max(0, self.total - self.done) / speed,
            detail=detail,
        )


def _judge_sets(
    subjects: Sequence[Subject],
    verdicts: Sequence[Verdict],
    items: Iterator[Item],
    n_images: int,
    settings: Settings,
) -> Iterator[Record]:
    progress = Progress(n_images * len(subjects))
    for item in items:
        works = [_Work(subject, item, settings) for subject in subjects]
        yield from _predict(works, item, settings, progress)
        for work, verdict in zip(works, verdicts, strict=True):
            result = work.finish()
            evaluation = _take(result, item, verdict)
            if evaluation is not None:
                path = "/".join(p for p in (work.subject.name, result["predictions"]) if p)
                yield EvaluationRecord(evaluation=evaluation, predictions=path)
        yield progress.record(item.images.name)


def _predict(
    works: Sequence[_Work], item: Item, settings: Settings, progress: Progress
) -> Iterator[Record]:
    """Predict what is missing of a set, keeping it in shards."""
    images = item.images
    open_works = [work for work in works if work.result is None]
    progress.skip(len(images) * (len(works) - len(open_works)))
    progress.skip(sum(work.position for work in open_works))
    if not open_works:
        return
    _stop_if_asked(open_works, settings, images)
    starts = [work.position for work in open_works]
    for batch in forward_all(
        [work.subject.placed for work in open_works],
        images,
        batch_size=settings.spec.batch_size,
        workers=settings.workers,
        device=settings.device,
        precision=settings.precision,
        starts=starts,
        features=item.role == "id",
    ):
        work = open_works[batch.model]
        work.add(batch)
        progress.add(len(batch.logits))
        if work.position < len(images):
            if len(work.unsaved) >= SHARD_BATCHES:
                work.save()
            _stop_if_asked(open_works, settings, images)
        if progress.is_due():
            yield progress.record(images.name)


def _stop_if_asked(works: Sequence[_Work], settings: Settings, images: ImageSet) -> None:
    if not settings.stop():
        return
    for work in works:
        work.save()
    done = min(work.position for work in works)
    raise InterruptedRunError(
        f"stopped while evaluating {images.name}, after {done:,} of its {len(images):,} images; "
        "they are kept"
    )


def _take(result: Mapping[str, Any], item: Item, verdict: Verdict) -> EvaluationReport | None:
    """Put the result of a set where it belongs; the evaluation, where it is one."""
    if result.get("spectrum") is not None:
        verdict.spectrum = SpectrumReport.model_validate(result["spectrum"])
    if result.get("evaluation") is not None:
        evaluation = EvaluationReport.model_validate(result["evaluation"])
        verdict.evaluations.append(evaluation)
        return evaluation
    selection = dict(result["selection"])
    if item.noise is not None:
        verdict.selection["perturbed_calibration"].append(selection)
    else:
        verdict.selection[item.role] = selection
    return None


class _Work:
    """One model on one set, while it is predicted.

    Attributes:
        result: what `finish` returns, if the set was finished by an earlier attempt.
        position: images done.
        unsaved: logits of the batches since the last shard.
    """

    def __init__(self, subject: Subject, item: Item, settings: Settings) -> None:
        self.subject, self.item, self.settings = subject, item, settings
        self.began = time.monotonic()
        self.shards = Shards(subject.folder, _key(subject, item, settings))
        self.result = self._finished()
        self.covariance = Covariance(subject.placed.classifier.weights.shape[1])
        self.unsaved: list[NDArray[np.float32]] = []
        self.position = self.saved = 0
        shards = [] if self.result is not None else self.shards.load()
        if shards:
            self.position = self.saved = shards[-1].stop
            if item.role == "id":
                state = shards[-1].tensors
                self.covariance.load_state({name: state[name].numpy() for name in _COVARIANCE})

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
        """Take in a batch."""
        self.unsaved.append(batch.logits)
        if batch.features is not None:
            self.covariance.add(batch.features)
        self.position += len(batch.logits)

    def save(self) -> None:
        """Move what was done since the last shard to disk."""
        if not self.unsaved:
            return
        tensors = {"logits": torch.from_numpy(np.concatenate(self.unsaved))}
        if self.item.role == "id":
            state = self.covariance.state()
            tensors |= {name: torch.from_numpy(state[name]) for name in _COVARIANCE}
        self.shards.save(self.saved, self.position, tensors)
        self.saved, self.unsaved = self.position, []

    def _all_logits(self) -> NDArray[np.float32]:
        """(N, K), from disk and memory."""
        parts = [shard.tensors["logits"].numpy() for shard in self.shards.load()]
        logits = np.concatenate([*parts, *self.unsaved])
        if len(logits) != len(self.item.images):
            raise StorageError(
                f"the shards of {self.item.images.name} must hold {self.saved:,} images, they hold "
                f"{len(logits) - self.position + self.saved:,}: somebody changed the files in "
                f"{str(self.shards.folder)!r}",
                hint="Start again: what is missing is predicted anew.",
            )
        return logits

    def finish(self) -> dict[str, Any]:
        """Write the predictions and compute every number from them."""
        if self.result is not None:
            return self.result
        subject, item, settings = self.subject, self.item, self.settings
        predictions = as_predictions(
            self._all_logits(),
            item.images,
            role=item.role,
            class_names=item.class_names,
            templates=settings.templates,
            classifier=subject.placed.classifier,
            model_sha256=subject.sha256,
            source_dataset=item.source,
        )
        path, sha256 = store(subject.folder, predictions)
        result: dict[str, Any] = {"predictions": path, "predictions_sha256": sha256}
        if item.role in ("validation", "calibration"):
            noise = {} if item.noise is None else {"dataset": item.images.name, "noise": item.noise}
            values = validation_values(predictions.logits, predictions.labels, settings.spec)
            result["selection"] = {**noise, "n": len(item.images), **result, **values}
        else:
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


def spectrum_of(clip: Clip, covariance: Covariance, features: str) -> SpectrumReport | None:
    """The spectrum of a model's features; None of fewer than two."""
    if covariance.n < 2:
        return None
    try:
        projection = clip.image_projection().detach().float().cpu().numpy()
    except ModelError:
        projection = None
    return spectrum_report(covariance, projection=projection, features=features)


def _key(subject: Subject, item: Item, settings: Settings) -> dict[str, Any]:
    """Everything that decides what a pass of a model over a set gives."""
    clip = subject.placed.place()
    return {
        "model": subject.sha256,
        "classifier": classifier_sha256(subject.placed.classifier),
        "templates": settings.templates,
        **pass_key(clip, item, settings.spec, precision=settings.precision, device=settings.device),
    }


def pass_key(
    clip: Clip, item: Item, spec: EvaluationSpec, *, precision: Precision, device: torch.device
) -> dict[str, Any]:
    """What decides the result of a pass beside the weights, as JSON knows it.

    Batch size, precision and kind of device are in it: the same bytes are promised.
    """
    images = item.images
    held = {"source", "ids", "labels", "indices"}  # in the set's own hash
    return {
        "format": _FORMAT,
        "input": clip.made.described(),
        "data": images.sha256,
        "set": {f.name: getattr(images, f.name) for f in fields(images) if f.name not in held},
        "role": [item.role, item.corruption, item.severity, item.source, item.noise],
        "evaluation": spec.model_dump(mode="json"),
        "precision": precision,
        "device": device.type,
        "class_names": item.class_names,
    }


def classifier_sha256(classifier: Classifier) -> str:
    """SHA-256 (hex) of a classifier: weights, scale and bias."""
    digest = hashlib.sha256(repr(classifier.scale).encode())
    for tensor in (classifier.weights, classifier.bias):
        if tensor is not None:
            array = tensor.detach().float().cpu().contiguous()
            digest.update(f"{tuple(array.shape)};".encode() + array.numpy().tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------ copies for TS-P


def _noise_levels(
    subject: Subject, clean: Item, settings: Settings
) -> Generator[Record, None, list[float]]:
    """Noise levels above 0 at which accuracy falls in equal steps, found on some of the images."""
    search = {
        "levels": NOISE_LEVELS,
        "images": NOISE_IMAGES,
        "steps": NOISE_STEPS,
        "max": MAX_NOISE,
    }
    kept = Shards(subject.folder, _key(subject, clean, settings) | {"noise": search})
    earlier = kept.finished()
    if earlier is not None:
        return [float(level) for level in earlier["levels"]]
    preprocess = subject.placed.place().preprocess
    some = shrunk(clean.images.limited(NOISE_IMAGES), preprocess)
    known: dict[float, float] = {}
    progress = Progress((1 + (NOISE_LEVELS - 1) * NOISE_STEPS) * len(some))
    while True:
        try:
            levels = perturbation_levels(
                known.__getitem__,
                n_classes=len(clean.class_names),
                n_levels=NOISE_LEVELS,
                max_noise=MAX_NOISE,
                n_steps=NOISE_STEPS,
            )
            break
        except KeyError as unknown:  # the search is gone through again with one accuracy more
            sigma = float(unknown.args[0])
        images = perturbed(
            some, preprocess=preprocess, sigma=sigma, seed=settings.spec.seed, name="noise"
        )
        known[sigma] = _accuracy(subject, images, settings)
        progress.add(len(images))
        if progress.is_due():
            yield progress.record(f"noise levels for TS-P, σ = {sigma:.4f}")
    found = sorted(set(levels) - {0.0})
    kept.finish({"levels": found})
    return found


def _accuracy(subject: Subject, images: ImageSet, settings: Settings) -> float:
    n_correct = 0
    for batch in forward_all(
        [subject.placed],
        images,
        batch_size=settings.spec.batch_size,
        workers=0,
        device=settings.device,
        precision=settings.precision,
    ):
        if settings.stop():
            raise InterruptedRunError("stopped while searching noise levels for TS-P")
        own = images.own_labels[batch.start : batch.start + len(batch.logits)]
        n_correct += int((batch.logits.argmax(axis=1) == own).sum())
    return n_correct / len(images)


def _copy_of(clean: Item, sigma: float, subject: Subject, settings: Settings) -> Item:
    images = perturbed(
        clean.images,
        preprocess=subject.placed.place().preprocess,
        sigma=sigma,
        seed=settings.spec.seed,
        name=f"{clean.images.name}+noise/{sigma:.4f}",
    )
    return replace(clean, images=images, source=clean.images.name, noise=sigma)
