"""What the processes of `trying` and `decoder` are asked. Torch-free."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from calift_core.child_process import HEAD, LENGTH

OPEN: Literal["open"] = "open"
ASK: Literal["ask"] = "ask"
EMBED: Literal["embed"] = "embed"
FORGET: Literal["forget"] = "forget"


def question(
    do: Literal["open", "ask", "embed", "forget"], folder: Path, kept: Path, body: bytes = b""
) -> bytes:
    """A question about a run.

    Args:
        do: open the run's model and say what it takes, answer about a picture, embed a text, or
            forget the run.
        body: the picture as the model takes it, (S, S, 3) uint8, or the text in UTF-8.
    """
    head = json.dumps({"do": do, "folder": str(folder), "kept": str(kept)}).encode()
    return LENGTH.pack(len(head)) + head + body


def pack_images(images: Sequence[bytes]) -> bytes:
    """The question to a decoder about image files."""
    return b"".join(LENGTH.pack(len(image)) + image for image in images)


def unpack_pixels(answer: bytes) -> Iterator[bytes | str]:
    """A decoder's answer: of each file its pixels, (S, S, 3) uint8, or why there are none."""
    at = 0
    while at < len(answer):
        refused, length = HEAD.unpack_from(answer, at)
        body = answer[at + HEAD.size : (at := at + HEAD.size + length)]
        yield body.decode() if refused else body
