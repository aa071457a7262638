"""Samples that two models were both evaluated on."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from calift_core.errors import UnpairedError
from calift_core.predictions.types import PredictionsMetadata, Strings


class Indexed(Protocol):
    """What tells whose predictions these are: those themselves, or a file's index."""

    @property
    def metadata(self) -> PredictionsMetadata:
        """What the file says about itself."""

    @property
    def ids(self) -> Strings:
        """(N,) unique names of the samples."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) true classes."""

    def __len__(self) -> int:
        """Return N."""


def shared_samples(a: Indexed, b: Indexed) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the samples that two models were both evaluated on, for a paired comparison.

    Returns:
        Indices (M,) into `a` and (M,) into `b` of the same samples, in the order of `a`.

    Raises:
        UnpairedError: the class names differ, no sample is shared, or a shared sample carries
            two labels.
    """
    if a.metadata.class_names != b.metadata.class_names:
        raise UnpairedError(
            "paired predictions must have the same class names, got "
            f"{len(a.metadata.class_names)} and {len(b.metadata.class_names)} that differ"
        )
    shared, in_a, in_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    if not len(shared):
        raise UnpairedError(
            f"paired predictions must share samples, got {len(a)} and {len(b)} with no common id",
            hint="Compare evaluations of the same data set, made from the same files.",
        )
    order = np.argsort(in_a)
    in_a, in_b = in_a[order].astype(np.int64), in_b[order].astype(np.int64)
    clash = np.flatnonzero(a.labels[in_a] != b.labels[in_b])
    if len(clash):
        raise UnpairedError(
            f"sample {str(a.ids[in_a[clash[0]]])!r} must have one label, got "
            f"{a.labels[in_a[clash[0]]]} and {b.labels[in_b[clash[0]]]}"
        )
    return in_a, in_b
