"""What models are evaluated on, in which way, and the key that names a pass over it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from calift_core.data.images import ImageSet
from calift_core.data.suites.load import Suite
from calift_core.evaluation.forward import ForwardSettings
from calift_core.evaluation.subjects import EvaluationSubject
from calift_core.methods.base import Classifier
from calift_core.models.clip import Clip
from calift_core.predictions.types import Role
from calift_core.schema.spec import EvaluationSpec

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(ForwardSettings):
    """How models are evaluated, the same for all of them.

    Attributes:
        templates: that classifiers were made of, for the record.
    """

    spec: EvaluationSpec
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One data set that models are evaluated on.

    Attributes:
        class_names: C names of the suite's classes, for the record.
        corruption: name of the corruption, where it is one.
        source: name of the set that its images were made of, where they were.
        noise: standard deviation of the noise, of a perturbed copy.
        copies: how many corrupted sets are made of the same images: of many large ones only the
            largest logits are stored.
    """

    images: ImageSet
    class_names: tuple[str, ...]
    role: Role
    corruption: str | None = None
    severity: int | None = None
    source: str | None = None
    noise: float | None = None
    copies: int = 1


ID_PARTS: tuple[Role, ...] = ("validation", "calibration")


def items_of(suite: Suite, parts: Sequence[Role] = ID_PARTS) -> Iterator[Item]:
    """ID parts, what the suite evaluates on, and far sets; corrupted sets are made in turn."""
    for part in parts:
        if len(suite.parts.get(part, ())):
            yield Item(suite.parts[part], suite.class_names, part)
    for images, role, corruption, severity in suite.evaluations():
        source = f"{suite.name}/test" if role == "corruption" else None
        copies = len(suite.corruption_plan) if role == "corruption" else 1
        yield Item(images, suite.class_names, role, corruption, severity, source, copies=copies)
    for images in suite.ood.values():
        yield Item(images, suite.class_names, "far")


def n_images_of(suite: Suite, parts: Sequence[Role] = ID_PARTS) -> int:
    """Images of all the sets of `items_of`, none of which is made for that."""
    sets = [suite.parts.get(part, ()) for part in parts]
    sets += [suite.part("test"), *suite.shifts.values(), *suite.ood.values()]
    n_plain = sum(map(len, sets))
    n_corrupted = len(suite.part("test").limited(suite.corruption_limit))
    return n_plain + n_corrupted * len(suite.corruption_plan)


def key(subject: EvaluationSubject, item: Item, settings: EvaluationSettings) -> dict[str, Any]:
    """Everything that decides what a pass of a model over a set gives."""
    clip = subject.placed.place()
    return {
        "model": subject.sha256,
        "classifier": classifier_sha256(subject.placed.classifier),
        "templates": settings.templates,
        **pass_key(clip, item, settings),
    }


def pass_key(clip: Clip, item: Item, settings: EvaluationSettings) -> dict[str, Any]:
    """What decides the result of a pass beside the weights, as JSON knows it."""
    return {
        **encoding_key(clip, item.images, settings),
        "role": [item.role, item.corruption, item.severity, item.source, item.noise],
        "class_names": item.class_names,
    }


def encoding_key(clip: Clip, images: ImageSet, settings: EvaluationSettings) -> dict[str, Any]:
    """What decides the features of a set beside the weights, as JSON knows it.

    Batch size, precision and kind of device are in it: the same bytes are promised.
    """
    held = {"source", "ids", "labels", "indices"}  # in the set's own hash
    return {
        "format": _FORMAT,
        "input": clip.model_config.described(),
        "data": images.sha256,
        "set": {f.name: getattr(images, f.name) for f in fields(images) if f.name not in held},
        "evaluation": settings.spec.model_dump(mode="json"),
        "precision": settings.precision,
        "device": settings.device.type,
    }


def classifier_sha256(classifier: Classifier) -> str:
    """SHA-256 (hex) of a classifier: weights, scale, bias and cache."""
    digest = hashlib.sha256(repr(classifier.scale).encode())
    for tensor in classifier.tensors().values():
        array = tensor.detach().float().cpu().contiguous()
        digest.update(f"{tuple(array.shape)};".encode() + array.numpy().tobytes())
    return digest.hexdigest()
