"""Batches for training and evaluation.

Randomness is a function of (seed, epoch, image): the same image is cropped the same way whatever
the order, the number of workers or the step at which a run was resumed.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from calift_core.data.batch import Batch
from calift_core.data.crops import random_resized_crop
from calift_core.data.image_cache import ImageCache
from calift_core.data.images import ImageSet
from calift_core.data.listing import steps_per_epoch
from calift_core.data.preprocess import Preprocess
from calift_core.data.ranks import ALONE, Ranks
from calift_core.data.styles import LEARNED
from calift_core.data.weak_captions import WeakCaptions
from calift_core.errors import UnreadableImageError

Sample = tuple[NDArray[np.uint8], int, int]
Collated = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class TrainView(Dataset[Sample]):
    """Training images as the model sees them: augmented, with a random caption of their class.

    Attributes:
        n_templates: P; caption `c * P + p` is template p with class c.
        learned: for pre-training, what shows or draws each image's style and has the templates
            that tell of it, a key of `LEARNED`.
        captions: what they call an image; None: by its class. `c` is then a position among its
            names.
    """

    images: ImageSet
    preprocess: Preprocess
    n_templates: int
    seed: int
    crop_scale: tuple[float, float]
    flip: bool
    learned: str | None = None
    captions: WeakCaptions | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """(epoch, index) → image (S, S, 3) uint8, label, caption."""
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        pixels, label = self.images.image(index), int(self.images.labels[index])
        pixels = random_resized_crop(
            pixels, self.preprocess, rng=rng, scale=self.crop_scale, flip=self.flip
        )
        if self.learned is not None:
            pixels, template = LEARNED[self.learned].show(pixels, self.images.ids[index], rng)
        else:
            template = int(rng.integers(self.n_templates))
        name = label if self.captions is None else self.captions.name_of(label, rng)
        return pixels, label, name * self.n_templates + template


@dataclass(frozen=True)
class EvalView(Dataset[Sample]):
    """Images as an evaluation sees them: resized and cropped, nothing random."""

    images: ImageSet
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Image (S, S, 3) uint8, label, 0."""
        pixels = self.preprocess.fit(self.images.image(index))
        return pixels, int(self.images.labels[index]), 0


def collate(samples: Sequence[Sample]) -> Collated:
    """Stack to images (B, S, S, 3) uint8, labels (B,), captions (B,)."""
    pixels, labels, captions = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(pixels)), torch.tensor(labels), torch.tensor(captions)


def epoch_order(n: int, *, seed: int, epoch: int) -> NDArray[np.int32]:
    """A permutation of n (N,) that depends on seed and epoch alone; 4 bytes an image."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n, generator=generator, dtype=torch.int64).numpy().astype(np.int32)


@dataclass(frozen=True)
class Steps:
    """The images of steps `start` … `stop` − 1, an epoch's order at a time.

    Attributes:
        batch_size: images in a step, of all ranks together.
        start: the first step.
        stop: the step after the last one.
    """

    n: int
    seed: int
    batch_size: int
    start: int
    stop: int

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Epoch and positions (B,) of each step."""
        per_epoch = steps_per_epoch(self.n, self.batch_size)
        order, made_for = np.zeros(0, np.int32), -1
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, per_epoch)
            if epoch != made_for:
                order, made_for = epoch_order(self.n, seed=self.seed, epoch=epoch), epoch
            yield epoch, order[position * self.batch_size : (position + 1) * self.batch_size]


@dataclass(frozen=True)
class _Keys:
    """What `TrainView` is asked for, step by step: this rank's share of each batch."""

    steps: Steps
    ranks: Ranks

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch, rows in self.steps:
            yield [(epoch, int(index)) for index in self.ranks.share(rows)]


@dataclass(frozen=True)
class Normalise:
    """uint8 pixels (B, S, S, 3) → the model's input (B, 3, S, S) on its device.

    Attributes:
        channels_last: leave the channels of a pixel together, as convolutions like them and as
            decoded images have them already.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    channels_last: bool = False

    def __call__(self, pixels: Tensor) -> Tensor:
        """Scale to [0, 1], subtract the mean, divide by the deviation."""
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        mean = torch.tensor(self.mean, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=self.device).view(1, 3, 1, 1)
        images = (images - mean) / std
        if self.channels_last:
            return images.contiguous(memory_format=torch.channels_last)
        return images.contiguous()


def _load_serially(loader: Iterable[Collated]) -> Iterator[Collated]:
    """A loader's batches; an error from a worker process loses the traceback in its sentence."""
    try:
        yield from loader
    except UnreadableImageError as error:
        sentence = error.message.strip().rpartition(f"{UnreadableImageError.__name__}: ")[2]
        raise UnreadableImageError(sentence) from error


def train_batches(
    view: TrainView,
    *,
    batch_size: int,
    start_step: int,
    total_steps: int,
    workers: int,
    normalise: Normalise,
    ranks: Ranks = ALONE,
) -> Iterator[Batch]:
    """The batches of steps `start_step` … `total_steps` − 1, epoch after epoch.

    The batch of a step depends on the seed and the step alone, so a resumed run sees what it would
    have seen. Ranks take consecutive shares of that very batch, however many they are.
    """
    steps = Steps(len(view), view.seed, batch_size, start_step, total_steps)
    loader: DataLoader[Sample] = DataLoader(
        view,
        batch_sampler=_Keys(steps, ranks),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=normalise.device.type == "cuda",
        prefetch_factor=4 if workers else None,
        # Without one of its own a loader draws from the global generator, and the dropout of a
        # resumed run would differ.
        generator=torch.Generator(),
    )

    def placed(collated: Collated) -> Batch:
        pixels, labels, captions = collated
        return Batch(
            normalise(pixels),
            labels.to(normalise.device, non_blocking=True),
            captions,
            ranks=ranks,
            total=0 if ranks.world == 1 else min(batch_size, len(view)),
        )

    yield from _prefetched(_load_serially(loader), placed, normalise.device)


def _prefetched(
    loaded: Iterator[Collated], placed: Callable[[Collated], Batch], device: torch.device
) -> Iterator[Batch]:
    """Batches on their device; on CUDA the next is copied and normalised while one is used.

    That has a stream of its own: the copy waits for no kernel of the step, and none waits for it.
    """
    if device.type != "cuda":
        yield from map(placed, loaded)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ready: deque[tuple[Batch, torch.cuda.Event]] = deque()
    for collated in loaded:
        with torch.cuda.stream(stream):
            ready.append((placed(collated), stream.record_event()))
        if len(ready) > 1:
            yield _to_device(*ready.popleft())
    while ready:
        yield _to_device(*ready.popleft())


def _to_device(batch: Batch, event: torch.cuda.Event) -> Batch:
    """A batch that the current stream may use."""
    current = torch.cuda.current_stream(batch.images.device)
    current.wait_event(event)
    for tensor in (batch.images, batch.labels):
        tensor.record_stream(current)  # so that its memory is not given away before
    return batch


def feature_batches(
    features: Tensor,
    labels: Tensor,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    total_steps: int,
) -> Iterator[Batch]:
    """`train_batches` over features that are encoded already, in the same order.

    Args:
        features: (N, D).
        labels: (N,).
        start_step: the first step.
        total_steps: the step after the last one.
    """
    for _, chosen in Steps(len(features), seed, batch_size, start_step, total_steps):
        rows = torch.from_numpy(chosen).long().to(features.device)
        yield Batch(features[rows], labels[rows], torch.zeros(len(rows), dtype=torch.long))


def eval_batches(
    images: ImageSet,
    *,
    preprocess: Preprocess,
    batch_size: int,
    workers: int,
    normalise: Normalise,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Tensor]:
    """Inputs (B, 3, S, S) of a set, in its order.

    Args:
        batch_size: images at once; the last batch may be smaller.
        normalise: makes inputs of pixels.
        start: the first image; a multiple of `batch_size` leaves all batches as they are.
        stop: the image after the last one; None: all of them. Likewise.
    """
    stop = len(images) if stop is None else stop

    def made() -> Iterator[Tensor]:
        loader: DataLoader[Sample] = DataLoader(
            EvalView(images, preprocess),
            sampler=range(start, stop),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=normalise.device.type == "cuda",
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),
        )
        for pixels, _, _ in _load_serially(loader):
            yield pixels

    kept = ImageCache.of(images, preprocess, start, stop)
    if kept is None:
        yield from map(normalise, made())
        return
    for pixels in kept.batches(batch_size, lambda: (p.numpy() for p in made())):
        yield normalise(torch.from_numpy(pixels))
