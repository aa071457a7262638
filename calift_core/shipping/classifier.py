"""A finished or exported model that answers: images in, calibrated probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from calift_core.analysis.choosing import INITIAL_NAME, calibrated, read_choice
from calift_core.analysis.report import read_report
from calift_core.calibration import Calibrator
from calift_core.data.decode import decode, pixels_of
from calift_core.data.images import Pixels
from calift_core.data.loader import Normalise
from calift_core.errors import DataError, SpecError
from calift_core.methods.base import Classifier
from calift_core.models.clip import Clip
from calift_core.models.finished import is_exported, load_finished
from calift_core.models.precision import Precision, autocast, resolve_device, resolve_precision
from calift_core.shipping.folder import read_exported
from calift_core.shipping.initial_model import reads_initial
from calift_core.shipping.none_of_these import NoneOfThese, none_of_these
from calift_core.shipping.promises import Promises

BATCH_SIZE = 64


@dataclass(frozen=True)
class Answers:
    """What a model says of N images, in their order.

    Attributes:
        probs: (N, C) calibrated probabilities, rows sum to one.
        logits: (N, C) float32, before the calibrator.
        initial: (N, C) float32, logits of the initial model where the calibrator reads them.
    """

    classes: tuple[str, ...]
    probs: NDArray[np.float64]
    logits: NDArray[np.float32]
    initial: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.probs)

    def of(self, rows: NDArray[np.int64]) -> Answers:
        """Those for some of the images."""
        initial = None if self.initial is None else self.initial[rows]
        return Answers(self.classes, self.probs[rows], self.logits[rows], initial)

    @property
    def indices(self) -> NDArray[np.int64]:
        """(N,) the predicted classes."""
        found: NDArray[np.int64] = self.probs.argmax(axis=1)
        return found

    @property
    def labels(self) -> list[str]:
        """N names of the predicted classes."""
        return [self.classes[i] for i in self.indices]

    @property
    def confidences(self) -> NDArray[np.float64]:
        """(N,) probabilities of the predicted classes."""
        found: NDArray[np.float64] = self.probs.max(axis=1)
        return found

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k likeliest classes of each image with their probabilities, the likeliest first."""
        order = np.argsort(-self.probs, axis=1, kind="stable")[:, :k]
        return [
            [(self.classes[j], float(row[j])) for j in own]
            for row, own in zip(self.probs, order, strict=True)
        ]


class CalibratedClassifier:
    """A CLIP model with its head and its calibrator.

    Attributes:
        classes: C names, in the order of the logits.
        calibrator: None where the model's own probabilities are used.
        promises: thresholds and prediction sets of an exported model, if it has.
        notes: sentences on what its calibrator had too few images for.
        initial: the model that this one started from, where the calibrator reads its logits: then
            every image passes through both.
    """

    def __init__(
        self,
        clip: Clip,
        classifier: Classifier,
        classes: Sequence[str],
        calibrator: Calibrator | None,
        *,
        precision: Precision = "fp32",
        promises: Promises | None = None,
        initial: CalibratedClassifier | None = None,
        notes: Sequence[str] = (),
        unlike: Callable[[], NoneOfThese | None] = lambda: None,
    ) -> None:
        self.clip, self.classifier = clip.eval(), classifier
        self.classes, self.calibrator = tuple(classes), calibrator
        self.notes, self._unlike = tuple(notes), unlike
        self.device = clip.net.logit_scale.device
        self.precision, self.promises, self.initial = precision, promises, initial
        self._normalise = Normalise(
            clip.mean, clip.std, self.device, channels_last=clip.channels_last
        )

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str = "auto", precision: str = "tf32"
    ) -> CalibratedClassifier:
        """Open an exported folder, or that of a finished run with the calibrator chosen for it.

        Args:
            folder: of `calift export`, or of a run.
            device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
            precision: of the forward passes: `tf32` (fp32 on a CPU), `fp32`, `fp16`, `bf16`,
                `auto`.

        Raises:
            CheckpointError: there is no model, or it is damaged.
            DataError: the calibrator is damaged.
        """
        path, where = Path(folder), resolve_device(device)
        promises, unlike = None, partial(_of_run, path)
        if is_exported(path):
            exported = read_exported(path)
            choice, promises = exported.choice, exported.promises
            unlike = partial(getattr, exported, "none_of_these")
        else:
            choice = read_choice(path)
        calibrator = None if choice is None else choice.fitted()
        passes = resolve_precision(precision, where)
        initial = None
        if reads_initial(calibrator):
            initial = cls(*_tower(path / INITIAL_NAME, where), None, precision=passes)
        return cls(
            *_tower(path, where),
            calibrator,
            precision=passes,
            promises=promises,
            initial=initial,
            notes=() if choice is None else choice.notes,
            unlike=unlike,
        )

    def promised(self) -> Promises:
        """Thresholds and prediction sets.

        Raises:
            SpecError: there are none.
        """
        if self.promises is None:
            raise SpecError(
                "nothing is promised of this model: it is a run, or has no ID validation part.",
                hint="`calift export RUN FOLDER` writes a model with its promises.",
            )
        return self.promises

    @cached_property
    def none_of_these(self) -> NoneOfThese | None:
        """Thresholds for images unlike the ID data; of a run they are found when first asked."""
        return self._unlike()

    def tells_unlike(self) -> NoneOfThese:
        """As `none_of_these`.

        Raises:
            SpecError: there are none.
        """
        if self.none_of_these is None:
            raise SpecError(
                "this model has no threshold for images unlike its ID data: it was exported before "
                "there were any, or its run has no ID validation part.",
                hint="`calift export RUN FOLDER` writes a model with it.",
            )
        return self.none_of_these

    def __repr__(self) -> str:
        kind = "no calibrator" if self.calibrator is None else self.calibrator.kind
        return f"CalibratedClassifier({self.clip.name}, {len(self.classes)} classes, {kind})"

    def predict(self, images: Any, *, batch_size: int = BATCH_SIZE) -> Answers:
        """Answer for images.

        Args:
            images: one image, or any number: paths, PIL images, arrays (H, W, 3) or (H, W) of
                uint8 or of floats in [0, 1], or tensors (3, H, W) of either.

        Raises:
            UnreadableImageError: a file cannot be decoded.
            DataError: something is no image; says which and what it is.
        """
        parts = list(self.answers(_listed(images), batch_size=batch_size))
        return together(self.classes, parts)

    def answers(self, images: Iterable[Any], *, batch_size: int = BATCH_SIZE) -> Iterator[Answers]:
        """`predict`, a batch at a time: memory holds one, however many images come."""
        waiting, start = iter(images), 0
        while batch := list(islice(waiting, batch_size)):
            yield self.answer(np.stack([self.fit(x, at=start + i) for i, x in enumerate(batch)]))
            start += len(batch)

    def fit(self, image: Any, *, at: int = 0) -> Pixels:
        """An image as the model sees it: (S, S, 3) uint8.

        Args:
            image: as for `predict`.
        """
        return self.clip.preprocess.fit(as_pixels(image, at=at))

    def answer(self, pixels: Pixels) -> Answers:
        """Answer for images that are fitted already: (B, S, S, 3) uint8."""
        return self.encode(pixels)[1]

    def encode(self, pixels: Pixels) -> tuple[NDArray[np.float32], Answers]:
        """L2-normalised features (B, D) of fitted images, and the answers that they lead to."""
        features, logits = self._pass(pixels)
        first = None if self.initial is None else self.initial._pass(pixels)[1]
        probs = calibrated(logits, self.calibrator, first)
        return features, Answers(self.classes, probs, logits, first)

    @torch.inference_mode()
    def encode_text(self, text: str) -> NDArray[np.float32]:
        """L2-normalised features (D,) of a text as it is typed, by the model's own text tower."""
        return self.clip.encode_text(self.clip.tokenizer([text]))[0].cpu().numpy()

    @torch.inference_mode()
    def _pass(self, pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features (B, D) and logits (B, C) of this model alone."""
        batch = self._normalise(torch.from_numpy(pixels))
        with autocast(self.device, self.precision):
            features = self.clip.encode_image(batch)
        logits = self.classifier.logits(features).cpu().numpy()
        return features.cpu().numpy(), logits


def _of_run(folder: Path) -> NoneOfThese | None:
    return none_of_these(folder, read_report(folder))


def _tower(folder: Path, where: torch.device) -> tuple[Clip, Classifier, list[str]]:
    """A finished or exported model, its head, and its class names."""
    clip, tensors, description = load_finished(folder)
    head = Classifier.of(tensors, float(description["logit_scale"]), where)
    return clip.to(where), head, description["classes"]


def together(classes: Sequence[str], parts: Sequence[Answers]) -> Answers:
    """Answers one after the other; no part is answers for no image."""
    empty = np.empty((0, len(classes)))
    initial = [part.initial for part in parts if part.initial is not None]
    return Answers(
        tuple(classes),
        np.concatenate([empty, *(part.probs for part in parts)]),
        np.concatenate([empty.astype(np.float32), *(part.logits for part in parts)]),
        np.concatenate(initial) if initial else None,
    )


def _listed(images: Any) -> Iterable[Any]:
    """One image or many, as an iterable of images."""
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if hasattr(images, "ndim"):
        # (3, H, W) tensors and (H, W, 3) arrays are one image; with a fourth axis they are many.
        return images if images.ndim == 4 else [images]
    return images  # type: ignore[no-any-return]


def as_pixels(image: Any, *, at: int = 0) -> Pixels:
    """(H, W, 3) uint8 of a path, a PIL image, an array or a tensor.

    Raises:
        UnreadableImageError: a file cannot be decoded.
        DataError: it is none of these, or its values are none of an image's.
    """
    if isinstance(image, str | Path):
        return decode(image)
    if isinstance(image, Image.Image):
        return pixels_of(image, f"image {at}")
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise DataError(
                f"image {at} must be a tensor (3, H, W), got the shape {tuple(image.shape)}"
            )
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    elif not isinstance(image, np.ndarray):
        raise DataError(
            f"image {at} must be a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W), "
            f"got {type(image).__name__}"
        )
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise DataError(f"image {at} must be an array (H, W, 3), got the shape {image.shape}")
    if np.issubdtype(image.dtype, np.floating):
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise DataError(
                f"floats of image {at} must lie in [0, 1], got {image.min():g} … {image.max():g}",
                hint="Images come as they are, before a model's normalisation.",
            )
        image = np.rint(image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise DataError(f"image {at} must hold uint8 or floats in [0, 1], it holds {image.dtype}")
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
