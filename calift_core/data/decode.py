"""An image file's pixels, upright and in RGB."""

import re
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from calift_core.data.images import Pixels
from calift_core.data.listing import UNREAD_PICTURES
from calift_core.errors import UnreadableImageError, reason_of

#: What an image file may be. Everything else is refused before a decoder sees it.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "PPM", "GIF")
#: Larger pictures are refused: a small file can decode to gigabytes.
MAX_PIXELS = 100_000_000
# Pillow warns where `MAX_PIXELS` has not been reached yet.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(
    path: Path | str, data: IO[bytes] | None = None, *, max_pixels: int | None = None
) -> Image.Image:
    """An image file whose header has been read.

    Args:
        path: where it is, or what errors call it.
        data: what it holds, where it is no file of its own.
        max_pixels: larger ones are refused; None: `MAX_PIXELS`.

    Raises:
        UnreadableImageError: it is not an image, or too large.
    """
    most = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        image = Image.open(path if data is None else data, formats=FORMATS)
    except Image.DecompressionBombError as error:  # more than Pillow opens; it says how many
        n = int(re.findall(r"\d+", str(error))[0])
        raise UnreadableImageError(
            f"{str(path)!r} has {n:,} pixels, at most {most:,} are read"
        ) from None
    except Exception as error:  # a damaged file makes decoders raise a dozen types
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "its content is of none of these formats" if unknown else reason_of(error)
        suffix = Path(str(path)).suffix.lower()
        if unknown and suffix in UNREAD_PICTURES:
            reason = f"{suffix} pictures must be saved as one of these first"
        raise UnreadableImageError(
            f"{str(path)!r} is not an image that can be read ({', '.join(FORMATS)}): {reason}"
        ) from None
    if image.width * image.height > most:
        image.close()
        raise UnreadableImageError(
            f"{str(path)!r} has {image.width} × {image.height} pixels, at most {most:,} are read"
        )
    if image.mode in ("I", "F") and not _is_16_bit(image):
        image.close()
        raise UnreadableImageError(
            f"{str(path)!r} has grey levels of 32 bits, and nothing tells which of them is white",
            hint="Save it with 8 or 16 bits.",
        )
    return image


def at_least(image: Image.Image, side: int) -> None:
    """Let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size where both sides stay `side` or more."""
    if side and image.format == "JPEG":
        image.draft(image.mode, (side, side))


def decode(path: Path | str, data: IO[bytes] | None = None, *, side: int = 0) -> Pixels:
    """Decode a file to (H, W, 3) uint8.

    Args:
        data: what it holds, where it is no file of its own.
        side: pixels that a side needs, see `at_least`; 0 decodes at full size.

    Raises:
        UnreadableImageError: it is not an image of a known format, is cut short or too large.
    """
    with open_image(path, data) as image:
        at_least(image, side)
        return pixels_of(image, str(path))


def pixels_of(image: Image.Image, name: str) -> Pixels:
    """An image's pixels, upright: (H, W, 3) uint8.

    Raises:
        UnreadableImageError: it is cut short or damaged.
    """
    try:
        image.load()  # before the tag is read: Pillow turns TIFFs upright here, tag and all
        orientation = image.getexif().get(0x0112, 1)
        rgb = _rgb(image)
    except Exception as error:
        raise UnreadableImageError(f"{name!r} is damaged: {reason_of(error)}") from None
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
