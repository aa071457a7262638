"""Labelled images: the one shape in which every data set reaches training and evaluation.

An `ImageSet` gives pixels one image at a time, as `(H, W, 3)` uint8, so that a loader can decode in
worker processes and nothing is held that need not be.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calift_core.data.corruptions import corrupt, image_seed
from calift_core.data.listing import split_names, unit_hash
from calift_core.errors import DataError, StorageError, UnreadableImageError, reason_of
from calift_core.files import atomic_path, atomic_write_bytes
from calift_core.home import cache_dir
from calift_core.preprocess import Preprocess

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

#: What an image file may be. Everything else is refused before a decoder sees it.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
#: Larger pictures are refused: a small file can decode to gigabytes.
MAX_PIXELS = 100_000_000


class PixelSource(Protocol):
    """Pixels by position."""

    def __len__(self) -> int:
        """Number of images."""

    def image(self, index: int) -> Pixels:
        """(H, W, 3) uint8."""

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """What the images at these positions hold: equal for copies, other for other pixels."""


@dataclass(frozen=True)
class MergedClasses:
    """Classes of a set that each stand for one or more of the suite's (ObjectNet).

    Attributes:
        names: K names, for people.
        groups: K groups of positions in the suite's class list; no position is in two of them.
    """

    names: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ImageSet:
    """N labelled images of C classes.

    Attributes:
        name: what the set is called in reports.
        source: where pixels come from.
        ids: N stable names, unique within the set.
        labels: (N,) int64, positions in the suite's class list.
        indices: (N,) positions in `source`.
        classes: positions of the suite's classes that this set has, or None for all. A set with
            fewer classes is judged on those logits only (the ImageNet-R and -A protocol); one with
            merged classes on the largest logit of each group (the ObjectNet protocol). A label is
            then any member of its group.
    """

    name: str
    source: PixelSource
    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    classes: tuple[int, ...] | MergedClasses | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def columns(self) -> NDArray[np.int64] | None:
        """Which of the suite's C logits each of the set's K classes is read from, or None for all.

        (K, M): class k has the largest logit of row k, where shorter groups repeat a member.
        """
        if self.classes is None:
            return None
        if not isinstance(self.classes, MergedClasses):
            return np.array(self.classes, dtype=np.int64)[:, None]
        widest = max(map(len, self.classes.groups))
        rows = [group + group[:1] * (widest - len(group)) for group in self.classes.groups]
        return np.array(rows, dtype=np.int64)

    @cached_property
    def own_labels(self) -> NDArray[np.int64]:
        """Labels (N,) among the set's own K classes.

        Raises:
            DataError: a label is of no class that the set has.
        """
        columns = self.columns
        if columns is None:
            return self.labels
        row_of = np.full(max(columns.max(), self.labels.max(initial=0)) + 1, -1, dtype=np.int64)
        row_of[columns] = np.arange(len(columns))[:, None]
        own = row_of[self.labels]
        if (own < 0).any():
            strange = sorted(set(self.labels[own < 0].tolist()))[:5]
            raise DataError(
                f"{self.name}: labels must be among the classes of the set, got {strange}"
            )
        return own

    def own_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names of the set's own K classes, given those of the suite's C."""
        if self.classes is None:
            return tuple(names)
        if isinstance(self.classes, MergedClasses):
            return self.classes.names
        return tuple(names[c] for c in self.classes)

    def image(self, index: int) -> Pixels:
        """Pixels of image `index`: (H, W, 3) uint8.

        Raises:
            UnreadableImageError: the file cannot be decoded.
        """
        return self.source.image(int(self.indices[index]))

    def take(self, positions: Sequence[int] | NDArray[np.int64], name: str) -> ImageSet:
        """The images at these positions, as a set of its own."""
        positions = np.asarray(positions, dtype=np.int64)
        return replace(
            self,
            name=name,
            ids=tuple(self.ids[i] for i in positions),
            labels=self.labels[positions],
            indices=self.indices[positions],
        )

    def limited(self, limit: int | None, name: str | None = None) -> ImageSet:
        """At most `limit` images: those whose ids hash lowest, so more images keep the fewer."""
        if limit is None or limit >= len(self):
            return self
        order = sorted(range(len(self)), key=lambda i: unit_hash("limit", self.ids[i]))
        return self.take(sorted(order[:limit]), name or self.name)

    @cached_property
    def sha256(self) -> str:
        """Hash (hex) of what the set holds: pixel source, ids and labels."""
        digest = hashlib.sha256(self.source.fingerprint(self.indices).encode())
        digest.update("\n".join(self.ids).encode())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def split_by_hash(images: ImageSet, fractions: dict[str, float], rest: str) -> dict[str, ImageSet]:
    """Split a set by a hash of each image's id.

    An image's part depends on its id alone: adding or removing images moves no other. Parts are
    disjoint and cover the set.

    Args:
        images: what to split.
        fractions: part → share in [0, 1), in the order in which they are cut.
        rest: the part that receives what is left.
    """
    return {
        part: images.take(np.array(positions, dtype=np.int64), part)
        for part, positions in split_names(images.ids, fractions, rest).items()
    }


@dataclass(frozen=True)
class ArraySource:
    """Images held in one array: (N, H, W, 3), or (N, H, W) for grey ones; a memory map, perhaps."""

    array: Pixels
    key: str

    def __len__(self) -> int:
        return len(self.array)

    def image(self, index: int) -> Pixels:
        """(H, W, 3) uint8; grey images get three equal channels."""
        pixels = np.asarray(self.array[index])
        if pixels.ndim == 2:
            return np.repeat(pixels[:, :, None], 3, axis=2)
        return pixels

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """The key the array was given: a hash of its content."""
        return self.key


@dataclass(frozen=True)
class NpySource:
    """Images in one NumPy file (N, H, W, 3) uint8, mapped into memory when first asked for.

    Attributes:
        path: the file.
        start: its position that counts as 0.
    """

    path: Path
    start: int = 0

    @cached_property
    def array(self) -> Pixels:
        """The memory map.

        Raises:
            DataError: it is no such file.
        """
        return _mapped(self.path)

    def __reduce__(self) -> tuple[type[NpySource], tuple[Path, int]]:
        return NpySource, (self.path, self.start)  # a memory map would travel as a whole array

    def __len__(self) -> int:
        return len(self.array) - self.start

    def image(self, index: int) -> Pixels:
        """(H, W, 3) uint8."""
        return np.asarray(self.array[self.start + index])

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """Hash of the whole file and of which of its images are taken."""
        digest = hashlib.sha256(content_key([self.path], whole=True).encode())
        digest.update((np.asarray(indices, dtype="<i8") + self.start).tobytes())
        return digest.hexdigest()


def _mapped(path: Path) -> Pixels:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{str(path)!r} is not a readable NumPy file: {reason_of(error)}") from None
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
        raise DataError(
            f"{str(path)!r} must hold (N, H, W, 3) uint8, it holds {array.shape} {array.dtype}"
        )
    return array  # type: ignore[no-any-return]


@dataclass(frozen=True)
class FileSource:
    """Images in files.

    Attributes:
        paths: one per image, absolute or below `root`. Sets of the same file names under several
            roots share one tuple.
        root: what relative paths start from.
        border: pixels cut off at each side: data sets mark their test images with a frame.
    """

    paths: tuple[Path | str, ...]
    root: Path = Path()
    border: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """Where image `index` is."""
        return self.root / self.paths[index]

    def image(self, index: int) -> Pixels:
        """Decode one file to (H, W, 3) uint8, upright by its EXIF orientation, without its border.

        Raises:
            UnreadableImageError: it cannot be decoded, or is all border.
        """
        pixels = decode(self.path(index))
        if self.border == 0:
            return pixels
        if min(pixels.shape[:2]) <= 2 * self.border:
            raise UnreadableImageError(
                f"{str(self.path(index))!r} must be larger than its border of {self.border} "
                f"pixels at each side, it has {pixels.shape[1]} × {pixels.shape[0]}"
            )
        inside = slice(self.border, -self.border)
        return pixels[inside, inside]

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """Hash of what the files hold, and of the border; see `content_key`."""
        key = content_key([self.path(int(i)) for i in indices])
        return key if self.border == 0 else f"{key}:border {self.border}"


#: Files up to this many bytes are hashed whole; of longer ones three pieces that add up to it.
_HASHED_BYTES = 48 * 1024
#: Where more bytes than these are to be hashed, the result is kept in the cache folder.
_UNCACHED_BYTES = 16 * 2**20


def content_key(paths: Sequence[Path], *, whole: bool = False, folder: Path | None = None) -> str:
    """SHA-256 (hex) of what files hold, in their order; the same for copies of them elsewhere.

    Each file counts with its size and its bytes: all of them up to 48 KiB, else 16 KiB each from
    the start, the middle and the end. So an encoded image that was changed between these, to
    exactly as many bytes, is not told from the original. The key of a large set is kept under the
    names, sizes and times of its files: the next time only these are looked at.

    Args:
        paths: the files.
        whole: hash all bytes of every file: arrays are not encoded.
        folder: of the cache; `CALIFT_HOME/cache` if left out.

    Raises:
        UnreadableImageError: a file is gone or cannot be opened.
    """
    state, to_read = hashlib.sha256(str(whole).encode()), 0
    try:
        for path in paths:
            stat = path.stat()
            state.update(f"{path}:{stat.st_size}:{stat.st_mtime_ns};".encode())
            to_read += stat.st_size if whole else min(stat.st_size, _HASHED_BYTES)
        if to_read <= _UNCACHED_BYTES:
            return _hash_of_files(paths, whole)
        kept = (folder or cache_dir()) / "fingerprints" / state.hexdigest()
        if kept.is_file() and len(key := kept.read_text("ascii")) == 64:
            return key
        key = _hash_of_files(paths, whole)
    except OSError as error:
        raise UnreadableImageError(f"{error.filename!r} cannot be read: {error.strerror}") from None
    try:
        atomic_write_bytes(kept, key.encode("ascii"))
    except StorageError as error:
        log.info("the key of %d files is not kept: %s", len(paths), error)
    return key


def _hash_of_files(paths: Sequence[Path], whole: bool) -> str:
    def one(path: Path) -> bytes:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(size.to_bytes(8, "big"))
            if whole:
                while block := file.read(2**20):
                    digest.update(block)
            elif size <= _HASHED_BYTES:
                digest.update(file.read())
            else:
                piece = _HASHED_BYTES // 3
                for at in (0, (size - piece) // 2, size - piece):
                    file.seek(at)
                    digest.update(file.read(piece))
            return digest.digest()

    def several(start: int) -> bytes:
        return b"".join(map(one, paths[start : start + 256]))

    total = hashlib.sha256()
    with ThreadPoolExecutor(4) as pool:
        for part in pool.map(several, range(0, len(paths), 256)):
            total.update(part)
    return total.hexdigest()


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path, formats=FORMATS)
    except Exception as error:  # a damaged file makes decoders raise a dozen types
        raise UnreadableImageError(
            f"{str(path)!r} is not an image that can be read "
            f"({', '.join(FORMATS)}): {reason_of(error)}"
        ) from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise UnreadableImageError(
            f"{str(path)!r} has {image.width} × {image.height} pixels, "
            f"at most {MAX_PIXELS:,} are read"
        )
    if image.mode in ("I", "F") and not _is_16_bit(image):
        image.close()
        raise UnreadableImageError(
            f"{str(path)!r} has grey levels of 32 bits, and nothing tells which of them is white",
            hint="Save it with 8 or 16 bits.",
        )
    return image


def decode(path: Path) -> Pixels:
    """Decode a file to (H, W, 3) uint8.

    Raises:
        UnreadableImageError: it is not an image of a known format, is cut short or too large.
    """
    with _open(path) as image:
        try:
            image.load()  # before the tag is read: Pillow turns TIFFs upright here, tag and all
            orientation = image.getexif().get(0x0112, 1)
            rgb = _rgb(image)
        except Exception as error:
            raise UnreadableImageError(f"{str(path)!r} is damaged: {reason_of(error)}") from None
    pixels = np.asarray(rgb)
    if orientation != 1:
        pixels = np.ascontiguousarray(_upright(pixels, orientation))
    return pixels


def _rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits.

    `Image.convert` would cut 16-bit grey levels off at 255 and leave nearly all of a picture white.
    Colours of 16 bits are scaled to 8 by Pillow itself when it reads a file.
    """
    if _is_16_bit(image):
        levels = np.rint(np.asarray(image) / np.float32(257)).astype(np.uint8)
        return Image.fromarray(levels).convert("RGB")
    return image.convert("RGB")


def _is_16_bit(image: Image.Image) -> bool:
    """Whether grey levels reach from 0 to 65,535."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation (2 to 8)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


#: Larger sets have this many of their files looked at, evenly spread.
_HEADERS_READ = 5_000


def check_headers(images: ImageSet) -> None:
    """Open the files of a folder set and read their headers: a bad one is named at the start.

    Raises:
        UnreadableImageError: names the first files that are no images, and counts the rest.
    """
    if not isinstance(images.source, FileSource):
        return

    def problem(path: Path) -> str | None:
        try:
            _open(path).close()
        except UnreadableImageError as error:
            return error.message
        return None

    step = -(-len(images) // _HEADERS_READ) or 1
    paths = [images.source.path(int(i)) for i in images.indices[::step]]
    with ThreadPoolExecutor(4) as pool:
        bad = [message for message in pool.map(problem, paths) if message]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UnreadableImageError(f"{images.name}: " + "; ".join(bad[:3]) + more)


@dataclass(frozen=True)
class CorruptedSource:
    """Another source's images under one corruption, computed when asked for."""

    base: ImageSet
    name: str
    severity: int
    seed: int

    def __len__(self) -> int:
        return len(self.base)

    def image(self, index: int) -> Pixels:
        """The corrupted image; the same bytes whatever the order and number of workers."""
        seed = image_seed(self.seed, self.base.ids[index], self.name, self.severity)
        return corrupt(self.base.image(index), self.name, self.severity, seed=seed)

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """Hash of the base and the corruption."""
        text = f"{self.base.sha256}:{self.name}:{self.severity}:{self.seed}:{CORRUPTION_VERSION}"
        return hashlib.sha256(text.encode()).hexdigest()


#: Changes when the pixels of any corruption change, so that cached ones are made anew.
CORRUPTION_VERSION = 2


def corrupted(base: ImageSet, name: str, severity: int, *, seed: int) -> ImageSet:
    """`base` under a corruption, lazily."""
    return ImageSet(
        name=f"{name}/{severity}",
        source=CorruptedSource(base, name, severity, seed),
        ids=base.ids,
        labels=base.labels,
        indices=np.arange(len(base), dtype=np.int64),
        classes=base.classes,
    )


#: Sets that decode to no more than this are kept as one array in the cache folder.
CACHE_LIMIT_BYTES = 256 * 2**20


def cached(images: ImageSet, *, folder: Path | None = None) -> ImageSet:
    """The same set, read from an array in the cache where all images have one size and are small.

    The array is made on first use and found again by a hash of what it holds. A set that is too
    large or of mixed sizes is returned as it is.
    """
    if isinstance(images.source, ArraySource) or len(images) == 0:
        return images
    first = images.image(0)
    if first.nbytes * len(images) > CACHE_LIMIT_BYTES:
        return images
    path = (folder or cache_dir()) / "images" / f"{images.sha256}.npy"
    if not path.is_file():
        array = np.empty((len(images), *first.shape), dtype=np.uint8)
        for i in range(len(images)):
            pixels = images.image(i)
            if pixels.shape != first.shape:
                return images
            array[i] = pixels
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array)
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"the cached images {path.name} are damaged: {error}", hint="Delete the file."
        ) from None
    return replace(
        images,
        source=ArraySource(array, images.source.fingerprint(images.indices)),
        indices=np.arange(len(images), dtype=np.int64),
    )


class MemorySource:
    """Images in files, each decoded once and kept in memory.

    The memory is one anonymous map, which loader processes that are forked share with each other:
    whoever decodes an image first keeps it for all. A process that is started afresh (spawned)
    fills a map of its own.

    Args:
        files: where images come from at first.
        sizes: (N,) bytes that each image has when it is decoded.
    """

    def __init__(self, files: FileSource, sizes: NDArray[np.int64]) -> None:
        self.files, self.sizes = files, sizes
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        table = 2 * np.dtype(np.int64).itemsize * len(sizes)
        shared = mmap.mmap(-1, max(1, table + int(self.starts[-1])))
        # Height and width of each image; 0 while it is not there.
        self.shapes = np.frombuffer(shared, np.int64, 2 * len(sizes)).reshape(-1, 2)
        self.pixels = np.frombuffer(shared, np.uint8, int(self.starts[-1]), table)

    def __reduce__(self) -> tuple[type[MemorySource], tuple[FileSource, NDArray[np.int64]]]:
        return MemorySource, (self.files, self.sizes)

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Pixels:
        """(H, W, 3) uint8, from memory if it was asked for before."""
        height, width = (int(n) for n in self.shapes[index])
        slot = self.pixels[self.starts[index] : self.starts[index + 1]]
        if height:
            return slot.reshape(height, width, 3)
        pixels = self.files.image(index)
        if pixels.nbytes == len(slot):  # else the file has changed since its header was read
            slot[:] = pixels.reshape(-1)
            self.shapes[index] = pixels.shape[:2]  # last: it says that the pixels are there
        return pixels

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """That of the files."""
        return self.files.fingerprint(indices)


#: Share of the memory that is free which decoded images may take: the run needs some itself.
CACHE_SHARE = 0.7
#: Files whose headers tell about how large a set is.
_SIZE_SAMPLE = 512


def kept_in_memory(images: ImageSet, *, available: int | None = None) -> ImageSet:
    """The same set, whose images are decoded when they are first asked for and kept.

    A set that is an array already is returned as it is.

    Args:
        images: N images.
        available: bytes of free memory; asked of the system if left out.

    Raises:
        DataError: the decoded images do not fit; says both sizes.
        UnreadableImageError: a file is no image.
    """
    if not isinstance(images.source, FileSource) or len(images) == 0:
        return images
    files = replace(images.source, paths=tuple(images.source.paths[int(i)] for i in images.indices))
    paths = [files.path(i) for i in range(len(files))]
    border = files.border

    def size(path: Path) -> int:
        return _decoded_size(path, border)

    room = int((available_memory() if available is None else available) * CACHE_SHARE)
    step = max(1, len(paths) // _SIZE_SAMPLE)
    some = [size(path) for path in paths[::step]]
    _demand_room(images, sum(some) * len(paths) // len(some), room)  # before all files are opened
    with ThreadPoolExecutor(4) as pool:
        sizes = np.fromiter(pool.map(size, paths), dtype=np.int64, count=len(paths))
    _demand_room(images, int(sizes.sum()), room)
    return replace(
        images,
        source=MemorySource(files, sizes),
        indices=np.arange(len(images), dtype=np.int64),
    )


def _decoded_size(path: Path, border: int) -> int:
    with _open(path) as image:
        return 3 * max(0, image.width - 2 * border) * max(0, image.height - 2 * border)


def _demand_room(images: ImageSet, needed: int, room: int) -> None:
    if needed > room:
        raise DataError(
            f"the {len(images):,} images of {images.name} take about {needed / 2**20:,.0f} MiB "
            f"when they are decoded, at most {room / 2**20:,.0f} MiB of the free memory may go "
            "to them",
            hint="Set train.cache_images to false.",
        )


def available_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its control group."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
    except OSError:
        pass  # not Linux
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        free.append(limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no control group, or one without a limit ("max")
    return max(0, min(free))


def random_resized_crop(
    pixels: Pixels,
    preprocess: Preprocess,
    *,
    rng: np.random.Generator,
    scale: tuple[float, float],
    flip: bool = False,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Pixels:
    """A random part of the image, resized to the model's input by its own interpolation.

    Where no part is chosen (`scale` of 1) or none fits in ten trials, it is the image as an
    evaluation sees it.

    Args:
        pixels: (H, W, 3) uint8.
        preprocess: of the model.
        rng: source of randomness.
        scale: range of the part's share of the area.
        flip: mirror half of the images.
        ratio: range of width over height, drawn log-uniformly.

    Returns:
        (S, S, 3) uint8.
    """
    height, width = pixels.shape[:2]
    if scale == (1.0, 1.0):
        out = preprocess.fit(pixels)
    else:
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            aspect = float(np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1]))))
            w, h = (area * aspect) ** 0.5, (area / aspect) ** 0.5
            if w <= width and h <= height:
                left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
                out = _resize(pixels, (left, top, left + w, top + h), preprocess)
                break
        else:
            out = preprocess.fit(pixels)
    if flip and rng.random() < 0.5:
        out = np.ascontiguousarray(out[:, ::-1])
    return out


def _resize(
    pixels: Pixels, box: tuple[float, float, float, float], preprocess: Preprocess
) -> Pixels:
    side = (preprocess.size, preprocess.size)
    return np.asarray(Image.fromarray(pixels).resize(side, preprocess.resample, box=box))
