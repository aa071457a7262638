"""What the process of `calift_core.shipping.trying` is asked. Torch-free."""

import json
from pathlib import Path
from typing import Literal

from calift_core.child_process import LENGTH

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
