"""Labels as people have them: class indices, names, or any values that a list of classes orders."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from calift_core.calibration.bins import check_labels
from calift_core.errors import PredictionsError


def class_indices(
    labels: Any, n: int, n_classes: int, *, classes: Any = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Labels as indices of columns.

    Args:
        labels: (N,) integers or strings.
        n: how many there must be.
        n_classes: columns C of the probabilities.
        classes: (C,) labels in the order of the columns; None: 0 to C − 1 for integers, the sorted
            labels for strings, as scikit-learn orders them.

    Returns:
        (N,) int64 in [0, C), and the (C,) labels that they stand for.

    Raises:
        PredictionsError: a label is no class, or the classes are not as many as the columns.
    """
    found = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
    if found.dtype.kind == "O":
        found = found.astype(np.str_)
    if found.dtype.kind == "b":
        found = found.astype(np.int64)
    if classes is None and found.dtype.kind != "U":
        return check_labels(found, n, n_classes), np.arange(n_classes)
    names = np.unique(found) if classes is None else np.asarray(classes)
    if names.ndim != 1 or len(names) != n_classes or len(np.unique(names)) != n_classes:
        got = ", ".join(map(str, names.ravel()[:5].tolist()))
        raise PredictionsError(
            f"there must be {n_classes} different classes, one a column, got {names.size}: {got}",
            hint="classes=[…] names them in the order of the columns.",
        )
    if found.shape != (n,):
        raise PredictionsError(f"labels must be as many as the samples ({n}), got {found.shape}")
    place = {name: index for index, name in enumerate(names.tolist())}
    values = found.tolist()
    unknown = [value for value in values if value not in place]
    if unknown:
        raise PredictionsError(
            f"labels must be among the {n_classes} classes, got {unknown[0]!r}",
            hint="classes=[…] names them in the order of the columns.",
        )
    return np.array([place[value] for value in values], dtype=np.int64), names
