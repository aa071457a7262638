"""What copies between parts are worth: a run's accuracy with and without the images concerned."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calift_core.errors import DataError
from calift_core.predictions.read import read_index, read_metadata, read_scores


@dataclass(frozen=True)
class CopiesEffect:
    """A run's accuracy on a set, and without some of its images; fractions.

    Attributes:
        without: on those that are no copies; None where all are.
        on_copies: on the copies; None where there are none.
    """

    n: int
    copies: int
    accuracy: float
    without: float | None
    on_copies: float | None


def evaluated_sets(run: Path) -> dict[str, Path]:
    """What a run has predictions of: `test`, `validation`, `calibration` and shifts by name.

    Raises:
        DataError: it has none.
    """
    found: dict[str, Path] = {}
    for path in sorted((run / "predictions").glob("*.parquet")):
        about = read_metadata(path)
        if about.role not in ("corruption", "far"):
            found[{"id": "test", "shift": about.dataset}.get(about.role, about.role)] = path
    # The report comes last: without it some sets may not be predicted yet.
    if not found or not (run / "report.json").is_file():
        raise DataError(
            f"{str(run)!r} has no report and predictions: expected the folder of a finished run.",
            hint="`calift train SPEC --out FOLDER` leaves one.",
        )
    return found


def copies_effect(predictions: Path, copies: Collection[str]) -> CopiesEffect:
    """What a set's copies are worth.

    Args:
        copies: ids of its images that another part has too.

    Raises:
        DataError: the run was evaluated on other images.
    """
    ids, correct = read_index(predictions)[0], read_scores(predictions).correct
    is_copy = np.isin(ids, list(copies))
    if copies and not is_copy.any():
        raise DataError(
            f"{predictions.name} has none of these images, it has {str(ids[0])!r} and "
            f"{len(ids) - 1:,} more: the run was evaluated on other data"
        )
    return CopiesEffect(
        n=len(ids),
        copies=int(is_copy.sum()),
        accuracy=float(correct.mean()),
        without=None if is_copy.all() else float(correct[~is_copy].mean()),
        on_copies=float(correct[is_copy].mean()) if is_copy.any() else None,
    )
