"""What a foreign file holds, before it is checked, and how much of it is taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from calift_core.errors import PredictionsError
from calift_core.untrusted import parse_json

#: Bytes of one file's arrays once unpacked: 50,000 × 1,000 in float64 take 400 MB.
MAX_BYTES = 1 << 30
MAX_CLASSES = 100_000
HEADER_BYTES = 16 << 20

Array = npt.NDArray[Any]
Kind = Literal["probs", "logits"]


@dataclass
class ForeignSource:
    """What a file holds, before any of it is believed."""

    labels: Array
    values: Array
    kind: Kind
    ids: Array | None = None
    clusters: Array | None = None
    class_names: Sequence[str] | None = None
    described: Mapping[str, Any] | None = None


def too_large(path: Path, got: int, most: int) -> PredictionsError:
    """The error for a file that unpacks to more than `most` bytes."""
    return PredictionsError(
        f"{path} must unpack to at most {most:,} bytes, it declares {got:,}.",
        hint="Store float32 in place of float64, or import the set in parts.",
    )


def pick_kind(path: Path, has_probs: bool, has_logits: bool, names: Sequence[str]) -> Kind:
    """Whether a file holds probabilities or logits.

    Raises:
        PredictionsError: it holds both or neither.
    """
    if has_probs and has_logits:
        raise PredictionsError(
            f"{path} must hold either probs or logits, got both.", hint="Leave one of them out."
        )
    if not (has_probs or has_logits):
        raise PredictionsError(
            f"{path} must hold probs or logits, got {', '.join(names[:12]) or 'nothing'}"
        )
    return "probs" if has_probs else "logits"


def damaged_file(path: Path, kind: str, error: BaseException) -> PredictionsError:
    """The error for a file that cannot be read to its end."""
    return PredictionsError(
        f"{path} must be a readable {kind} file, got: {str(error) or type(error).__name__}",
        hint="It is damaged or cut short; make it again.",
    )


def json_of(path: Path, text: str) -> dict[str, Any]:
    """The metadata that calift wrote into a foreign file.

    Raises:
        PredictionsError: they are not a JSON object.
    """
    try:
        found = parse_json(text)
    except ValueError as error:
        raise PredictionsError(f"calift metadata of {path} must be JSON, got: {error}") from error
    if not isinstance(found, dict):
        raise PredictionsError(
            f"calift metadata of {path} must be an object, got {type(found).__name__}"
        )
    return found
