"""Predictions once per data set; every number is then computed from the predictions."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calift_core.calibration import Binning, accuracy, ece, nll, null_floor, score_probs, softmax
from calift_core.data.images import ImageSet
from calift_core.data.loader import Normalise, eval_batches
from calift_core.data.ranks import ALONE, Ranks
from calift_core.errors import InterruptedRunError, OutOfMemoryError, reason_of
from calift_core.evaluation.partial import SHARD_BATCHES, Shards
from calift_core.evaluation.spectrum import Covariance
from calift_core.methods.base import Classifier
from calift_core.models.clip import Clip
from calift_core.models.precision import Precision, autocast
from calift_core.predictions.types import Predictions, PredictionsMetadata, Role, predictions_name
from calift_core.predictions.write import write_predictions
from calift_core.schema.spec import EvaluationSpec

#: Images (B, 3, S, S) through a model's image tower: (B, D).
Encode = Callable[[Clip, Tensor], Tensor]
#: A batch (B, 3, S, S) answered by several models together: logits (B, C) and features (B, D).
Mixture = Callable[[Tensor, Encode], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class ForwardSettings:
    """How images go through models.

    Attributes:
        precision: of the forward passes; logits are float32 always.
        stop: asked between batches; what is done by then is kept.
        ranks: who evaluates with this process: each predicts a share of every set, in a folder that
            all of them see, and rank 0 puts the shares together.
    """

    batch_size: int
    workers: int
    device: torch.device
    precision: Precision
    stop: Callable[[], bool] = lambda: False
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class PlacedModel:
    """One of the models that a pass pushes every batch through.

    Attributes:
        place: puts its weights in place and returns the model. The models of a pass may share one
            network whose weights are exchanged.
        mixture: answers in its place, where it is a mixture of models.
    """

    place: Callable[[], Clip]
    classifier: Classifier
    mixture: Mixture | None = None


@dataclass(frozen=True)
class Forward:
    """What one model says of one batch.

    Attributes:
        start: position of the batch's first image in the set.
        logits: (B, C) float32, scale included.
        features: (B, D) float32, L2-normalised, if they were asked for.
    """

    model: int
    start: int
    logits: NDArray[np.float32]
    features: NDArray[np.float32] | None


def forward_all(
    models: Sequence[PlacedModel],
    images: ImageSet,
    settings: ForwardSettings,
    *,
    starts: Sequence[int] | None = None,
    stop: int | None = None,
    features: bool = False,
) -> Iterator[Forward]:
    """One pass over a set for all models, in its order, in eval mode: each image is decoded once.

    On an accelerator a batch's results are fetched when the next one is under way, so that the
    device does not wait for the copy.

    Args:
        images: N images. Where they have other classes than the classifier, the logits are those of
            their own classes (`ImageSet.classes`).
        starts: for each model, how many images it has seen already: a multiple of `batch_size`, or
            N. What all have seen is not decoded.
        stop: the image after the last one that is wanted; None: all of them.

    Yields:
        Batch after batch, for each model in turn.

    Raises:
        OutOfMemoryError: the device has no memory left.
        UnreadableImageError: a file cannot be decoded.
    """
    seen = list(starts) if starts is not None else [0] * len(models)
    at = min(seen)
    if at >= (len(images) if stop is None else stop):
        return
    clip = models[seen.index(at)].place()
    waiting: deque[tuple[int, int, Tensor, Tensor | None]] = deque()
    behind = 0 if settings.device.type == "cpu" else 1
    try:
        for batch in _inputs(images, clip, settings, start=at, stop=stop):
            for index, model in enumerate(models):
                if seen[index] > at:
                    continue
                tensors = _forward(model, batch, images, settings)
                waiting.append((index, at, tensors[0], tensors[1] if features else None))
                while len(waiting) > behind:
                    yield _fetched(*waiting.popleft())
            at += len(batch)
        while waiting:
            yield _fetched(*waiting.popleft())
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"the device ran out of memory while evaluating {images.name}: {reason_of(error)}",
            hint="Lower evaluation.batch_size.",
        ) from None


def _inputs(
    images: ImageSet,
    clip: Clip,
    settings: ForwardSettings,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Tensor]:
    """Images `start` to `stop` of a set as a model takes them: (B, 3, S, S) on its device."""
    return eval_batches(
        images,
        preprocess=clip.preprocess,
        batch_size=settings.batch_size,
        workers=settings.workers,
        normalise=Normalise(clip.mean, clip.std, settings.device, channels_last=clip.channels_last),
        start=start,
        stop=stop,
    )


def share_of_batches(n: int, batch_size: int, ranks: Ranks) -> tuple[int, int]:
    """First image, and the one after the last, that a rank predicts of n: whole batches."""
    start, stop = ranks.bounds(-(-n // batch_size))
    return min(n, start * batch_size), min(n, stop * batch_size)


@torch.inference_mode()
def _forward(
    model: PlacedModel, batch: Tensor, images: ImageSet, settings: ForwardSettings
) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and features (B, D) on the device."""
    clip = model.place()

    def encode(clip: Clip, batch: Tensor) -> Tensor:
        with autocast(settings.device, settings.precision):
            return clip.encode_image(batch)

    if model.mixture is not None:
        logits, features = model.mixture(batch, encode)
        return own_logits(logits, images), features
    features = encode(clip, batch)
    return own_logits(model.classifier.logits(features), images), features


def own_logits(logits: Tensor, images: ImageSet) -> Tensor:
    """Logits (N, K) of the classes that a set has, given those of the suite's (N, C)."""
    if images.columns is None:
        return logits
    columns = torch.as_tensor(images.columns, device=logits.device)  # (K, M)
    return logits[:, columns].amax(dim=-1)


def _fetched(index: int, start: int, logits: Tensor, features: Tensor | None) -> Forward:
    return Forward(
        index, start, logits.cpu().numpy(), None if features is None else features.cpu().numpy()
    )


def predict(
    clip: Clip,
    classifier: Classifier,
    images: ImageSet,
    settings: ForwardSettings,
    *,
    covariance: Covariance | None = None,
) -> NDArray[np.float32]:
    """`forward_all` for one model, its logits in one array. All ranks get all logits.

    Args:
        clip: the model; left in the mode it came in.
        covariance: takes in the L2-normalised features if given.

    Returns:
        Logits (N, C), scale included.

    Raises:
        OutOfMemoryError: the device has no memory left.
        UnreadableImageError: a file cannot be decoded.
    """
    was_training = clip.training
    clip.eval()
    parts: list[NDArray[np.float32]] = []
    ranks = settings.ranks
    start, stop = share_of_batches(len(images), settings.batch_size, ranks)
    try:
        for batch in forward_all(
            [PlacedModel(lambda: clip, classifier)],
            images,
            settings,
            starts=[start],
            stop=stop,
            features=covariance is not None,
        ):
            parts.append(batch.logits)
            if covariance is not None and batch.features is not None:
                covariance.add(batch.features)
    finally:
        clip.train(was_training)
    if ranks.world == 1:
        return np.concatenate(parts)
    if covariance is not None:
        covariance.merge(ranks.all_gather(covariance.state()))
    return np.concatenate([part for parts in ranks.all_gather(parts) for part in parts])


@torch.no_grad()
def encode(
    clip: Clip, images: ImageSet, settings: ForwardSettings, *, kept: Shards | None = None
) -> Tensor:
    """L2-normalised features of a set, in its order, in eval mode, without augmentation.

    Ranks encode a share each, and all of them get all features. What is encoded is kept in shards
    where there is a place for them (`kept`), and is not encoded again.

    Returns:
        (N, D), float32, on the device.

    Raises:
        InterruptedRunError: `settings.stop` returned true between two batches.
        UnreadableImageError: a file cannot be decoded.
        DiskFullError, StorageError: what was encoded cannot be kept.
    """
    was_training = clip.training
    clip.eval()
    device, ranks = settings.device, settings.ranks
    start, end = share_of_batches(len(images), settings.batch_size, ranks)

    def mine() -> list[Tensor]:
        shards = [] if kept is None else kept.load(start, end)
        parts = [shard.tensors["features"].to(device) for shard in shards]
        at, unsaved = shards[-1].stop if shards else start, list[Tensor]()

        def save() -> None:
            if kept is not None and unsaved:
                size = sum(map(len, unsaved))
                kept.save(at - size, at, {"features": torch.cat(unsaved)})
                unsaved.clear()

        for batch in _inputs(images, clip, settings, start=at, stop=end):
            if settings.stop():
                save()
                raise InterruptedRunError(
                    f"stopped while encoding {images.name}, after {at - start:,} of "
                    f"{end - start:,} images"
                )
            with autocast(device, settings.precision):
                parts.append(clip.encode_image(batch))
            at += len(batch)
            unsaved.append(parts[-1])
            if len(unsaved) >= SHARD_BATCHES:
                save()
        save()  # another rank may be stopped yet
        return parts

    try:
        parts = ranks.stop_together(mine)
    finally:
        clip.train(was_training)
    if ranks.world == 1:
        return torch.cat(parts)
    gathered = ranks.all_gather([part.cpu() for part in parts])
    return torch.cat([part for parts in gathered for part in parts]).to(device)


def as_predictions(
    logits: NDArray[np.float32],
    images: ImageSet,
    *,
    role: Role,
    class_names: Sequence[str],
    templates: Sequence[str],
    classifier: Classifier,
    model_sha256: str,
    source_dataset: str | None = None,
    features: NDArray[np.float16] | None = None,
) -> Predictions:
    """Put logits together with ids, labels and where they come from."""
    ids = np.array(list(images.ids))
    return Predictions(
        ids=ids,
        labels=images.own_labels,
        logits=logits,
        metadata=PredictionsMetadata(
            dataset=images.name,
            role=role,
            class_names=images.own_names(class_names),
            logit_scale=classifier.scale,
            templates=tuple(templates),
            source_dataset=source_dataset,
            model_sha256=model_sha256,
            dataset_sha256=images.sha256,
        ),
        clusters=ids if role == "corruption" or source_dataset is not None else None,
        features=features,
    )


def validation_values(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    spec: EvaluationSpec,
    *,
    floor: bool = False,
) -> dict[str, float]:
    """The few numbers of an ID part that settings are chosen on; with ECE's floor if asked."""
    scores, binning = score_probs(softmax(logits), labels), Binning(spec.n_bins, spec.scheme)
    values = {
        "val_accuracy": accuracy(scores),
        "val_nll": nll(scores),
        "val_ece": ece(scores, binning),
    }
    if floor:
        found = null_floor(scores, binning, n_resamples=spec.n_resamples, seed=spec.seed)
        values["val_ece_floor"] = found.mean
    return values


def store(folder: Path, predictions: Predictions, *, copies: int = 1) -> tuple[str, str]:
    """Write predictions under `folder/predictions`. Returns the relative path and the SHA-256.

    `copies` is how many sets of this size the model has, of `write_predictions`.
    """
    relative = predictions_name(predictions.metadata.dataset)
    return relative, write_predictions(folder / relative, predictions, copies=copies)
