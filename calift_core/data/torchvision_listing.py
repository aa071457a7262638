"""A process that lists a data set of torchvision: `python -m … NAME ROOT FOLDER`.

It alone loads torchvision. It writes what it found into a folder, so that nothing else has to:
`listing.npz` with the classes and, of each part, labels and the images' files; images that are in
one array go into `PART.npy`. Nothing is downloaded.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.data.suites.torchvision import KINDS
from calift_core.errors import DataError


def open_part(name: str, root: Path, options: Mapping[str, Any]) -> Any:
    """The data set of one part, as torchvision opens it."""
    from torchvision import datasets

    return getattr(datasets, name)(str(root), **options)


def files_of(found: Any) -> tuple[list[str], list[int]] | None:
    """Files of the images and their labels; None where they are in an array."""
    if hasattr(found, "index") and hasattr(found, "categories"):  # Caltech-101
        folder = Path(found.root) / "101_ObjectCategories"
        names = [found.categories[label] for label in found.y]
        files = [
            str(folder / name / f"image_{number:04d}.jpg")
            for name, number in zip(names, found.index, strict=True)
        ]
        return files, list(found.y)
    for attribute in ("samples", "_samples"):
        if hasattr(found, attribute):
            pairs = getattr(found, attribute)
            return [str(path) for path, _ in pairs], [int(label) for _, label in pairs]
    for attribute in ("_image_files", "_images"):
        if hasattr(found, attribute):
            return [str(p) for p in getattr(found, attribute)], [int(y) for y in found._labels]
    return None


def pixels_of(found: Any) -> tuple[NDArray[np.uint8], list[int]]:
    """Images (N, H, W, 3) uint8 that are in an array, and their labels.

    Raises:
        DataError: they are not.
    """
    pixels = np.asarray(getattr(found, "data", None))
    labels = np.asarray(getattr(found, "targets", getattr(found, "labels", None)))
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or len(pixels) != len(labels):
        raise DataError(f"{type(found).__name__} keeps its images in a way that is not known here")
    if pixels.ndim == 3:
        pixels = np.repeat(pixels[..., None], 3, axis=3)
    elif pixels.shape[1] == 3:
        pixels = pixels.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), labels.astype(np.int64).tolist()


def classes_of(name: str, found: Any) -> list[str]:
    """Names of the classes, as torchvision gives them.

    Raises:
        DataError: it gives none.
    """
    for names in (
        KINDS[name].classes,
        *(getattr(found, a, None) for a in ("classes", "categories")),
    ):
        if names:
            return [" ".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in names]
    raise DataError(f"torchvision has no names for the classes of {name}")


def write_listing(name: str, root: Path, folder: Path) -> None:
    """List every part of a data set into a folder."""
    arrays: dict[str, Any] = {}
    for part, options in KINDS[name].parts.items():
        found = open_part(name, root, options)
        listed = files_of(found)
        if listed is None:
            pixels, labels = pixels_of(found)
            np.save(folder / f"{part}.npy", pixels)
        else:
            files, labels = listed
            arrays[f"{part}_files"] = np.array([str(Path(f).relative_to(root)) for f in files])
        arrays[f"{part}_labels"] = np.array(labels, dtype=np.int64)
        arrays.setdefault("classes", np.array(classes_of(name, found)))
    np.savez(folder / "listing.npz", **arrays)


if __name__ == "__main__":
    try:
        write_listing(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    except Exception as error:  # of torchvision, each data set has its own
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
