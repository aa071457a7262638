"""Decodes what strangers send, in a process that may take little memory and holds nothing.

`python -m calift_core.shipping.decoder PREPROCESS MAX_PIXELS MEMORY_BYTES` answers each question,
image files (`pack_images`), with the pixels that the model takes, (S, S, 3) uint8 each, or why
there are none (`unpack_pixels`). Torch-free.
"""

import io
import json
import sys
import warnings

from calift_core.child_process import HEAD, LENGTH, answer_all, limit
from calift_core.data.decode import open_image, pixels_of
from calift_core.data.preprocess import Preprocess
from calift_core.errors import UnreadableImageError


def fitted(data: bytes, preprocess: Preprocess, max_pixels: int) -> bytes:
    """An image file as the model sees it, S · S · 3 bytes.

    Raises:
        UnreadableImageError: it is no image, damaged, or has more pixels than it may.
    """
    with open_image("the image", io.BytesIO(data), max_pixels=max_pixels) as image:
        try:
            return preprocess.fit(pixels_of(image, "the image")).tobytes()
        except MemoryError:
            raise UnreadableImageError("the image takes too much memory") from None


def decode_images(question: bytes, preprocess: Preprocess, max_pixels: int) -> bytes:
    """What `unpack_pixels` reads, for what `pack_images` wrote."""
    at, parts = 0, []
    while at < len(question):
        start = at + LENGTH.size
        at = start + LENGTH.unpack_from(question, at)[0]
        try:
            refused, body = 0, fitted(question[start:at], preprocess, max_pixels)
        except UnreadableImageError as error:
            refused, body = 1, f"{error.message} {error.hint}".strip().encode()
        parts += [HEAD.pack(refused, len(body)), body]
    return b"".join(parts)


def main(argv: list[str]) -> None:
    """Limit this process, and answer."""
    from PIL import Image

    preprocess, max_pixels, memory = Preprocess.of(json.loads(argv[0])), int(argv[1]), int(argv[2])
    warnings.simplefilter("ignore")  # what is odd about a stranger's file would fill the log
    Image.init()
    limit(memory, writes=False)
    answer_all(b"{}", lambda question: decode_images(question, preprocess, max_pixels))


if __name__ == "__main__":
    main(sys.argv[1:])
