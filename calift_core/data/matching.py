"""Classes of one set of images by those of another. Torch-free."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calift_core.data.images import ImageSet
from calift_core.errors import DataError


def plain_form(name: str) -> str:
    """What two spellings of a class have in common: `Faces_easy` and `faces easy` are one."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def match_classes(names: Sequence[str], classes: Sequence[str], what: str) -> NDArray[np.int64]:
    """Which of the ID data's classes each name is: as it is written, else in its plain form.

    Args:
        classes: of the ID data, in label order.

    Returns:
        (len(names),) positions in `classes`.

    Raises:
        DataError: a sentence for each name that is none of them, or that is another's as well.
    """
    exact = {name: i for i, name in enumerate(classes)}
    plain: dict[str, list[int]] = {}
    for i, name in enumerate(classes):
        plain.setdefault(plain_form(name), []).append(i)
    found, wrong = np.full(len(names), -1, dtype=np.int64), list[str]()
    taken: dict[int, str] = {}
    for at, name in enumerate(names):
        near = plain.get(plain_form(name), [])
        if name not in exact and len(near) != 1:
            several = " or ".join(repr(classes[i]) for i in near)
            wrong.append(
                f"{name!r} may be {several}" if near else f"{name!r} is no class of the ID data"
            )
            continue
        index = exact[name] if name in exact else near[0]
        if index in taken:
            wrong.append(f"{name!r} and {taken[index]!r} are both {classes[index]!r}")
        taken[index], found[at] = name, index
    if wrong:
        more = [f"and {len(wrong) - 8} more"] if len(wrong) > 8 else []
        shown = ", ".join(map(repr, classes[:20])) + (", …" if len(classes) > 20 else "")
        raise DataError(f"{what}: {'; '.join(wrong[:8] + more)}.", hint=f"The ID data has {shown}.")
    return found


def relabelled(
    images: ImageSet, names: Sequence[str], classes: Sequence[str] | None, what: str
) -> ImageSet:
    """Images whose labels, positions in `names`, become positions in the ID data's classes.

    Args:
        classes: of the ID data; None: the labels stay.

    Raises:
        DataError: as `match_classes`; names without an image may be any.
    """
    if classes is None:
        return images
    used, own = np.unique(images.labels, return_inverse=True)
    return replace(images, labels=match_classes([names[i] for i in used], classes, what)[own])


def require_every_class(labels: NDArray[np.int64], classes: Sequence[str], what: str) -> None:
    """See that a part has images of every class.

    Raises:
        DataError: it has none of some; names them.
    """
    have = np.bincount(labels, minlength=len(classes))
    lacking = [classes[int(i)] for i in np.flatnonzero(have == 0)]
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise DataError(
            f"{what} has no image of the {'class' if len(lacking) == 1 else 'classes'} "
            f"{', '.join(map(repr, lacking[:5]))}{more}; every part needs every class"
        )
