"""Checks of folders of class folders, for `SuiteFamily.inspect`. Torch-free."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calift_core.checks import Check
from calift_core.data.decode import decode
from calift_core.data.listing import class_folders, images_below
from calift_core.errors import CaliftError

#: Images of each part that are decoded, evenly spread.
_DECODED = 8


def check_tree(
    name: str,
    root: Path | None,
    expected_name: str,
    classes: Sequence[str] | int,
    published: Sequence[int],
) -> Check:
    """One folder of class folders.

    Args:
        root: the folder, None if it is not there.
        classes: the folders that it must have, or how many.
        published: numbers of images that it may have; any, if there are none.
    """
    if root is None or not root.is_dir():
        return Check(name, "fail", f"no folder {expected_name}/")
    have = class_folders(root)
    if isinstance(classes, int):
        lacking, needed = [], have
        if len(have) != classes:
            return Check(
                name, "fail", f"{root.name}/ has {len(have)} class folders, expected {classes}"
            )
    else:
        lacking, needed = sorted(set(classes) - set(have)), list(classes)
        if lacking:
            return Check(
                name, "fail", f"{root.name}/ lacks {len(lacking)} class folders{_some(lacking)}"
            )
    files = [f"{folder}/{path}" for folder in needed for path in images_below(root / folder)]
    full = {path.split("/", 1)[0] for path in files}
    empty = [folder for folder in needed if folder not in full]
    counted = f"{len(files):,} images in {len(needed):,} classes"
    if empty:
        return Check(name, "fail", f"{counted}, none in {len(empty)} of them{_some(empty)}")
    broken = _unreadable([root / path for path in files])
    if broken:
        return Check(name, "fail", f"{counted}; {broken}")
    if published and len(files) not in published:
        expected = " or ".join(f"{n:,}" for n in published)
        state = "fail" if len(files) < min(published) else "warn"
        return Check(name, state, f"{counted}, published are {expected}")  # type: ignore[arg-type]
    return Check(name, "ok", counted)


def _some(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def _unreadable(paths: Sequence[Path]) -> str:
    """What is wrong with the first of a few images that cannot be decoded, or nothing."""
    for at in np.linspace(0, len(paths) - 1, min(_DECODED, len(paths)), dtype=int):
        try:
            decode(paths[at])
        except CaliftError as error:
            return error.message
    return ""
