"""Small pictures of samples, drawn in processes that may take little and reach nothing else.

`python -m calift_core.data.thumbnails BYTES` answers requests, JSON each. It lists folders itself
and leaves every decoder to a child that it forks for one image: with limits on memory, processor
time and files, without its parent's pipes. A file that ends, hangs or takes over a decoder costs
that one image. Torch-free.

An answer is a JSON line with `type`, or `code` and `message`, and then the picture.
"""

import io
import json
import math
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from calift_core.child_process import answer_all, error_payload, limit
from calift_core.data.corrupted import CorruptedSource
from calift_core.data.corruptions import corrupt, image_seed
from calift_core.data.duplicates import perceptual_hash
from calift_core.data.finding import Finder, ImagePlace, ThumbnailRequest
from calift_core.data.images import ImageSet, Pixels
from calift_core.data.listing import EXTENSIONS
from calift_core.data.sources import FileSource, NpySource
from calift_core.data.suites.torchvision import listings
from calift_core.errors import CaliftError, DataError, NotFoundError, UnreadableImageError

#: Seconds of a processor that one image may take, and of a clock: others may need the processor.
_CPU_SECONDS, _SECONDS = 10, 30
_MAX_FILE_BYTES = 256 << 20
_MAX_ANSWER_BYTES = 4 << 20
#: Pictures up to this long are enlarged by whole factors, pixel by pixel.
_TINY = 64
_MEASURED_SIDE = 128


# ---- Drawing -----------------------------------------------------------------------------------


def thumbnail(pixels: Pixels, size: int) -> tuple[str, bytes]:
    """Media type and bytes of a picture whose longer side is at most `size`.

    Tiny images are enlarged by a whole factor and stay exact (PNG); others are only made smaller
    (JPEG).

    Args:
        pixels: (H, W, 3) uint8.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    longer = max(image.size)
    written = io.BytesIO()
    if longer <= _TINY:
        factor = max(1, size // longer)
        whole = (image.width * factor, image.height * factor)
        image.resize(whole, Image.Resampling.NEAREST).save(written, "PNG")
        return "image/png", written.getvalue()
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    image.save(written, "JPEG", quality=88)
    return "image/jpeg", written.getvalue()


def picture(pixels: Pixels, size: int) -> tuple[dict[str, Any], bytes]:
    """A thumbnail as it is answered."""
    kind, body = thumbnail(pixels, size)
    return {"type": kind}, body


def measured(pixels: Pixels) -> tuple[dict[str, Any], bytes]:
    """How an image (H, W, 3) uint8 looks: three numbers and a perceptual hash, in hex.

    Of its luminance in [0, 1], where the longer side is at most 128 pixels, so that images of all
    sizes compare: mean, standard deviation, and standard deviation of the Laplacian.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("L")
    image.thumbnail((_MEASURED_SIDE, _MEASURED_SIDE), Image.Resampling.BOX)
    y = np.asarray(image, dtype=np.float64) / 255
    inner = y[1:-1, 1:-1]
    laplacian = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * inner
    header = {
        "brightness": float(y.mean()),
        "contrast": float(y.std()),
        "sharpness": float(laplacian.std()) if laplacian.size else 0.0,
        "hash": perceptual_hash(pixels).tobytes().hex(),
    }
    return header, b""


def pixels_of(place: ImagePlace, roots: Sequence[Path], size: int) -> Pixels:
    """A sample's pixels as the model's preprocessing was given them: (H, W, 3) uint8.

    Args:
        roots: folders that files may lie in beside the data's own.
        size: of the thumbnail; a JPEG may be decoded smaller as long as it stays larger than that.

    Raises:
        NotFoundError: its file is gone, or lies outside those folders.
        UnreadableImageError: it cannot be decoded.
    """
    return _pixels(place.images, place.position, place.folder, roots, size)


def _pixels(
    images: ImageSet, position: int, folder: Path | None, roots: Sequence[Path], size: int
) -> Pixels:
    source, index = images.source, int(images.indices[position])
    if isinstance(source, CorruptedSource):
        clean = _pixels(source.base, index, folder, roots, 0)
        seed = image_seed(source.seed, source.base.ids[index], source.name, source.severity)
        return corrupt(clean, source.name, source.severity, seed=seed)
    if isinstance(source, FileSource):
        with opened(source.path(index), [folder or source.root, *roots]) as path:
            side = 0 if source.border else size
            return replace(source, paths=[path], root=Path(), side=side).image(0)
    if isinstance(source, NpySource):
        near = [folder or source.path.parent, listings(), *roots]
        with opened(source.path, near, limited=False) as path:
            return np.array(NpySource(Path(path), source.start).image(index))
    return source.image(index)


@contextmanager
def opened(path: Path, folders: Sequence[Path], *, limited: bool = True) -> Iterator[str]:
    """Open a plain file that lies in one of the folders; gives a path to what was opened.

    The file is evaluated after it was opened, by where it really is: neither a link in its name nor
    one that is put there meanwhile leads out.

    Raises:
        NotFoundError: there is no such file, or it lies elsewhere.
        UnreadableImageError: it is no plain file, or a very large one.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        raise NotFoundError("the image's file is not on this machine.") from None
    try:
        is_at = f"/proc/self/fd/{handle}"
        real = Path(os.readlink(is_at) if os.path.islink(is_at) else os.path.realpath(path))
        if not any(real.is_relative_to(os.path.realpath(folder)) for folder in folders):
            raise NotFoundError(
                "the image's file lies outside the folders of its data.",
                hint="Name the folder that its link leads to in CALIFT_DATA_ROOTS.",
            )
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise UnreadableImageError("the image must be a plain file, it is none")
        if limited and about.st_size > _MAX_FILE_BYTES:
            raise UnreadableImageError(
                f"the image's file must have at most {_MAX_FILE_BYTES:,} bytes, it has "
                f"{about.st_size:,}"
            )
        yield f"/dev/fd/{handle}"
    finally:
        os.close(handle)


def pixels_below(sample: str, roots: Sequence[Path], size: int) -> Pixels:
    """The image that an imported sample's id names: a path below one of the registered folders.

    Raises:
        NotFoundError: there is none.
        UnreadableImageError: it cannot be decoded.
    """
    if not sample.lower().endswith(EXTENSIONS) or "\0" in sample:
        raise NotFoundError("no image is known of this sample: its id names no image file.")
    for root in roots:
        try:
            with opened(root / sample, roots) as path:
                return FileSource([path], side=size).image(0)
        except NotFoundError:
            continue
    raise NotFoundError(
        "no image is known of this sample: no registered folder has a file of that name.",
        hint="Imported samples are looked for by their ids below CALIFT_DATA_ROOTS.",
    )


# ---- The process that answers ------------------------------------------------------------------


class Answerer:
    """Answers requests; each image is drawn in a child of its own."""

    def __init__(self) -> None:
        self._finder = Finder()

    def answer(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Header and bytes of one answer."""
        roots = [Path(root) for root in request["roots"]]
        size = int(request["size"])
        make = measured if request.get("measure") else partial(picture, size=size)
        try:
            if request["imported"]:
                return _forked(lambda: make(pixels_below(request["image"]["sample"], roots, size)))
            place = self._finder.find(ThumbnailRequest(**request["image"]))
            _make_ready(place)
            return _forked(lambda: make(pixels_of(place, roots, size)))
        except CaliftError as error:
            return error_payload(error), b""


def _make_ready(place: ImagePlace) -> None:
    """Let an image's corruption make here what it keeps (textures, tables): children inherit it.

    With the image's seed, which chooses among textures, and on pixels of our own: no file is opened
    in this process. Images up to 32 pixels have tables of their own.
    """
    source, index = place.images.source, int(place.images.indices[place.position])
    if isinstance(source, CorruptedSource):
        seed = image_seed(source.seed, source.base.ids[index], source.name, source.severity)
        for side in (32, 33):
            blank = np.zeros((side, side, 3), np.uint8)
            corrupt(blank, source.name, source.severity, seed=seed)


_Made = tuple[dict[str, Any], bytes]


def _forked(make: Callable[[], _Made]) -> _Made:
    """Decode in a child with limits."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _make_and_end(make, writer)
    os.close(writer)
    try:
        answer = _read_all(reader, time.monotonic() + _SECONDS)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    line, _, body = answer.partition(b"\n")
    try:
        return dict(json.loads(line)), body
    except (ValueError, TypeError):
        error = UnreadableImageError(
            "the image cannot be drawn within the memory and the time that one may take"
        )
        return error_payload(error), b""


def _make_and_end(make: Callable[[], _Made], writer: int) -> None:
    """The child: one image, then the end, whatever happens."""
    try:
        for standard in (0, 1, 2):
            os.close(standard)
        _limit_image()
        try:
            header, body = make()
        except CaliftError as error:
            header, body = error_payload(_without_path(error)), b""
        except MemoryError:
            header, body = (
                error_payload(UnreadableImageError("the image takes too much memory")),
                b"",
            )
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(header).encode() + b"\n" + body)
    finally:
        os._exit(0)


def _without_path(error: CaliftError) -> CaliftError:
    """An error that does not say where files lie."""
    if isinstance(error, UnreadableImageError) and "/dev/fd/" in error.message:
        _, _, what = error.message.partition("' ")
        return UnreadableImageError(f"the image {what}")
    return error


def _limit_image() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read_all(reader: int, deadline: float) -> bytes:
    """What comes through a pipe until its end, the deadline or too much."""
    found = bytearray()
    poll = select.poll()
    poll.register(reader, select.POLLIN | select.POLLHUP)
    while (left := deadline - time.monotonic()) > 0 and poll.poll(math.ceil(left * 1000)):
        piece = os.read(reader, 1 << 16)
        found += piece
        if not piece or len(found) > _MAX_ANSWER_BYTES:
            break
    return bytes(found) if len(found) <= _MAX_ANSWER_BYTES else b""


def answer(answerer: Answerer, question: bytes) -> bytes:
    """The answer to one request, which must not end the others."""
    try:
        header, body = answerer.answer(json.loads(question))
    except MemoryError:
        header, body = (
            error_payload(DataError("the data has too many files to find its images")),
            b"",
        )
    except Exception as error:
        header, body = {"code": "CALIFT_ERROR", "hint": "", "message": type(error).__name__}, b""
    return json.dumps(header).encode() + b"\n" + body


def main(memory_bytes: int) -> None:
    """Limit the memory of this process and its children, and serve."""
    limit(memory_bytes)
    Image.init()  # every decoder is imported here, once, and not by the child of each image
    answer_all(b"{}", partial(answer, Answerer()))


if __name__ == "__main__":
    main(int(sys.argv[1]))
