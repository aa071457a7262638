"""ObjectNet's classes as ImageNet's, read from the files that come with its images. Torch-free.

Barbu et al. 2019, "ObjectNet: A large-scale bias-controlled dataset".
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calift_core.errors import DataError, DataUnavailableError, reason_of
from calift_core.untrusted import parse_json

#: Files of ObjectNet's `mappings/` folder that say which of ImageNet's classes it has.
OBJECTNET_MAPPINGS = (
    "folder_to_objectnet_label.json",
    "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json",
    "imagenet_to_label_2012_v2",
)
#: Width in pixels of the red frame that marks every ObjectNet image as a test image.
OBJECTNET_BORDER = 2


@dataclass(frozen=True)
class ObjectNetClass:
    """One of the classes that ObjectNet shares with ImageNet.

    Attributes:
        indices: positions of the ImageNet classes that are this object, one or more.
    """

    folder: str
    label: str
    indices: tuple[int, ...]


def objectnet_classes(mappings: Path) -> tuple[ObjectNetClass, ...]:
    """The classes of ObjectNet that ImageNet has (113 as published), by folder name.

    Args:
        mappings: the `mappings/` folder that ObjectNet comes with. Its files chain folder →
            ObjectNet label → ImageNet labels → line in ILSVRC's own order → position in the
            order of WordNet ids, which is the label order of classifiers.

    Raises:
        DataUnavailableError: files are missing, says which.
        DataError: the files contradict each other.
    """
    missing = [name for name in OBJECTNET_MAPPINGS if not (mappings / name).is_file()]
    if missing:
        raise DataUnavailableError(
            f"ObjectNet's class mapping is not complete: {str(mappings)!r} lacks "
            f"{', '.join(missing)}.",
            hint="They come with ObjectNet, in its mappings/ folder.",
        )
    label_of, imagenet_of, line_of = (
        _read_object(mappings / name) for name in OBJECTNET_MAPPINGS[:3]
    )
    lines = _read(mappings / OBJECTNET_MAPPINGS[3]).splitlines()
    labels = [line.strip() for line in lines if line.strip()]
    position_of_line = _positions(line_of, len(labels))
    twice = {label for label, count in Counter(labels).items() if count > 1}
    line_of_label = {label: line for line, label in enumerate(labels)}
    folder_of = {label: folder for folder, label in label_of.items()}
    classes = []
    owner: dict[int, str] = {}
    for label, joined in imagenet_of.items():
        if label not in folder_of:
            raise _contradiction(f"no folder is known for {label!r}")
        indices = []
        for part in str(joined).split(";"):
            name = part.strip()
            if name not in line_of_label or name in twice:
                what = "names several classes" if name in twice else "is no label of ImageNet"
                raise _contradiction(f"{name!r} of {label!r} {what}")
            index = position_of_line[line_of_label[name]]
            if index in owner:
                raise _contradiction(f"{name!r} is both {owner[index]!r} and {label!r}")
            owner[index] = label
            indices.append(index)
        classes.append(ObjectNetClass(folder_of[label], label, tuple(sorted(indices))))
    return tuple(sorted(classes, key=lambda c: c.folder))


def _positions(line_of: dict[str, Any], n_lines: int) -> dict[int, int]:
    """Line number from 0 → position; the file may count lines from 0 or from 1."""
    try:
        found = {int(line): int(position) for position, line in line_of.items()}
    except (TypeError, ValueError):
        raise _contradiction(f"{OBJECTNET_MAPPINGS[2]} holds something else than numbers") from None
    first = min(found, default=0)
    if sorted(found) != list(range(first, first + n_lines)) or first not in (0, 1):
        raise _contradiction(
            f"{OBJECTNET_MAPPINGS[2]} must name each of the {n_lines} lines of "
            f"{OBJECTNET_MAPPINGS[3]} once, it names {len(found)} from {first} on"
        )
    if sorted(found.values()) != list(range(n_lines)):
        raise _contradiction(f"{OBJECTNET_MAPPINGS[2]} must number the classes 0 to {n_lines - 1}")
    return {line - first: position for line, position in found.items()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {reason_of(error)}") from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(_read(path))
    except ValueError as error:
        raise DataError(f"{str(path)!r} is not JSON: {reason_of(error)}") from None
    if not isinstance(found, dict):
        raise DataError(f"{str(path)!r} must hold an object, got {type(found).__name__}")
    return found


def _contradiction(what: str) -> DataError:
    return DataError(
        f"ObjectNet's mapping files contradict each other: {what}.",
        hint="Take the mappings/ folder as it comes with ObjectNet.",
    )
