"""Predictions once per data set; every number is then computed from the predictions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from calift_core.calibration import evaluate_all, softmax
from calift_core.clip import Clip
from calift_core.data.images import ImageSet
from calift_core.data.loader import Normalise, eval_batches
from calift_core.errors import InterruptedRunError, OutOfMemoryError, reason_of
from calift_core.methods.base import Classifier
from calift_core.predictions import Predictions, PredictionsMetadata, Role, write_predictions
from calift_core.schema.report import EvaluationReport, Summary
from calift_core.schema.spec import EvaluationSpec
from calift_core.spectrum import Covariance
from calift_core.train import Precision, autocast


@torch.inference_mode()
def predict(
    clip: Clip,
    classifier: Classifier,
    images: ImageSet,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    precision: Precision,
    covariance: Covariance | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float32]:
    """One pass over a set, in its order, in eval mode.

    Args:
        clip: the model.
        classifier: C classes on its features.
        images: N images. Where they have fewer classes than the classifier, only those columns are
            returned (the ImageNet-R and -A protocol: select logits, then softmax).
        batch_size: images at once.
        workers: processes that decode.
        device: where the model is.
        precision: of the forward pass; logits are float32 always.
        covariance: takes in the L2-normalised features if given.
        progress: called with the number of images done.

    Returns:
        Logits (N, C), scale included.

    Raises:
        OutOfMemoryError: the device has no memory left.
        UnreadableImageError: a file cannot be decoded.
    """
    was_training = clip.training
    clip.eval()
    normalise = Normalise(clip.mean, clip.std, device)
    parts: list[NDArray[np.float32]] = []
    done = 0
    try:
        for batch in eval_batches(
            images,
            size=clip.image_size,
            batch_size=batch_size,
            workers=workers,
            normalise=normalise,
        ):
            with autocast(device, precision):
                features = clip.encode_image(batch)  # (B, D)
            logits = classifier.logits(features)  # (B, C)
            if images.classes is not None:
                logits = logits[:, list(images.classes)]
            if covariance is not None:
                covariance.add(features.cpu().numpy())
            parts.append(logits.cpu().numpy())
            done += len(batch)
            progress(done)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"the device ran out of memory while evaluating {images.name}: {reason_of(error)}",
            hint="Lower evaluation.batch_size.",
        ) from None
    finally:
        clip.train(was_training)
    return np.concatenate(parts)


@torch.no_grad()
def encode(
    clip: Clip,
    images: ImageSet,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    precision: Precision,
    stop: Callable[[], bool] = lambda: False,
) -> torch.Tensor:
    """L2-normalised features of a set, in its order, in eval mode, without augmentation.

    Returns:
        (N, D), float32, on the device.

    Raises:
        InterruptedRunError: `stop` returned true between two batches.
        UnreadableImageError: a file cannot be decoded.
    """
    was_training = clip.training
    clip.eval()
    parts: list[torch.Tensor] = []
    try:
        for batch in eval_batches(
            images,
            size=clip.image_size,
            batch_size=batch_size,
            workers=workers,
            normalise=Normalise(clip.mean, clip.std, device),
        ):
            if stop():
                raise InterruptedRunError(f"stopped while encoding {images.name}")
            with autocast(device, precision):
                parts.append(clip.encode_image(batch))
    finally:
        clip.train(was_training)
    return torch.cat(parts)


def labels_in_logits(images: ImageSet) -> NDArray[np.int64]:
    """Labels (N,) as columns of the logits that `predict` returns for the set."""
    if images.classes is None:
        return images.labels
    return np.searchsorted(np.array(images.classes), images.labels)


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
) -> Predictions:
    """Put logits together with ids, labels and where they come from."""
    labels = labels_in_logits(images)
    if images.classes is not None:
        class_names = [class_names[c] for c in images.classes]
    ids = np.array(images.ids)
    return Predictions(
        ids=ids,
        labels=labels,
        logits=logits,
        metadata=PredictionsMetadata(
            dataset=images.name,
            role=role,
            class_names=tuple(class_names),
            logit_scale=classifier.scale,
            templates=tuple(templates),
            source_dataset=source_dataset,
            model_sha256=model_sha256,
            dataset_sha256=images.sha256,
        ),
        clusters=ids if role == "corruption" else None,
    )


def evaluation_report(
    predictions: Predictions,
    spec: EvaluationSpec,
    *,
    corruption: str | None = None,
    severity: int | None = None,
    sha256: str = "",
    began: float | None = None,
) -> EvaluationReport:
    """Every number of one data set, from its predictions alone."""
    numbers = evaluate_all(
        softmax(predictions.logits),
        predictions.labels,
        n_bins=spec.n_bins,
        scheme=spec.scheme,
        seed=spec.seed,
        n_resamples=spec.n_resamples,
    )
    return EvaluationReport.model_validate(
        {
            **numbers,
            "dataset": predictions.metadata.dataset,
            "role": predictions.metadata.role,
            "n_classes": predictions.logits.shape[1],
            "corruption": corruption,
            "severity": severity,
            "predictions_sha256": sha256,
            "seconds": 0.0 if began is None else time.monotonic() - began,
        }
    )


def store(folder: Path, predictions: Predictions) -> tuple[str, str]:
    """Write predictions under `folder/predictions`. Returns the relative path and the SHA-256."""
    name = predictions.metadata.dataset.replace("/", "_")
    relative = f"predictions/{name}.parquet"
    return relative, write_predictions(folder / relative, predictions)


class Judged(Protocol):
    """What the numbers of one data set are grouped by."""

    @property
    def dataset(self) -> str:
        """Its name."""

    @property
    def role(self) -> str:
        """`id`, `shift` or `corruption`."""

    @property
    def corruption(self) -> str | None:
        """The corruption's name, where it is one."""


J = TypeVar("J", bound=Judged)


def ood_groups(evaluations: Iterable[J]) -> dict[str, list[J]]:
    """What an OOD mean is taken over: the shifts, or the corruptions where there are no shifts.

    A corruption's severities are one group, so that a mean of means counts each name once.
    """
    found = list(evaluations)
    chosen = [e for e in found if e.role == "shift"] or [e for e in found if e.role == "corruption"]
    groups: dict[str, list[J]] = {}
    for evaluation in chosen:
        groups.setdefault(evaluation.corruption or evaluation.dataset, []).append(evaluation)
    return groups


def group_mean(groups: Mapping[str, Sequence[J]], value: Callable[[J], float]) -> float | None:
    """Unweighted mean over the groups of the means within them; None without groups."""
    if not groups:
        return None
    return float(np.mean([np.mean([value(e) for e in group]) for group in groups.values()]))


def summarise(evaluations: Sequence[EvaluationReport], sigma_min: float | None) -> Summary:
    """The headline numbers.

    OOD values are unweighted means over the shifts; where a suite has none, over the corruptions
    (each name a mean over its severities first).
    """
    groups = ood_groups(evaluations)
    in_distribution = next((e for e in evaluations if e.role == "id"), None)

    def mean(value: Callable[[EvaluationReport], float]) -> float | None:
        return group_mean(groups, value)

    accuracies = {
        name: float(np.mean([e.accuracy for e in group])) for name, group in groups.items()
    }
    worst = min(accuracies, key=lambda name: accuracies[name]) if accuracies else None
    return Summary(
        id_accuracy=in_distribution.accuracy if in_distribution else None,
        id_ece=in_distribution.ece.value if in_distribution else None,
        id_ece_floor=in_distribution.ece.null_mean if in_distribution else None,
        id_nll=in_distribution.nll if in_distribution else None,
        ood_accuracy=mean(lambda e: e.accuracy),
        ood_ece=mean(lambda e: e.ece.value),
        ood_ece_floor=mean(lambda e: e.ece.null_mean),
        ood_nll=mean(lambda e: e.nll),
        sigma_min=sigma_min,
        worst_shift=worst,
        worst_shift_accuracy=accuracies[worst] if worst else None,
    )
