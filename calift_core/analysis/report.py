"""From predictions to a report: every number of a data set, and the headline. Torch-free."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from pydantic import ValidationError

from calift_core.calibration import Binning, evaluate_all, evaluate_scores, softmax
from calift_core.errors import DataError
from calift_core.predictions.types import Predictions, TopKPredictions
from calift_core.schema.report import EvaluationReport, Report, Summary
from calift_core.schema.spec import EvaluationSpec


def read_report(folder: Path) -> Report:
    """The report of a finished run.

    Raises:
        DataError: it is no folder of a finished run.
    """
    path = folder / "report.json"
    try:
        return Report.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{str(folder)!r} must be the folder of a finished run, got one without report.json.",
            hint="`calift train SPEC --out FOLDER` makes one.",
        ) from None
    except (OSError, ValidationError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}") from None


def run_id_of(folder: Path) -> str:
    """The id of the run in a folder that no service knows: its report's, else a new one."""
    try:
        return read_report(folder).run_id
    except DataError:
        return secrets.token_hex(6)


def evaluation_report(
    predictions: Predictions | TopKPredictions,
    spec: EvaluationSpec,
    *,
    corruption: str | None = None,
    severity: int | None = None,
    sha256: str = "",
    began: float | None = None,
) -> EvaluationReport:
    """Every number of one data set, from its predictions alone."""
    n_classes = len(predictions.metadata.class_names)
    binning = Binning(spec.n_bins, spec.scheme)
    draws = {"seed": spec.seed, "n_resamples": spec.n_resamples}
    numbers = (
        evaluate_all(softmax(predictions.logits), predictions.labels, binning, **draws)
        if isinstance(predictions, Predictions)
        else evaluate_scores(predictions.scores(), n_classes, binning, **draws)
    )
    return EvaluationReport.model_validate(
        {
            **numbers,
            "dataset": predictions.metadata.dataset,
            "role": predictions.metadata.role,
            "n_classes": n_classes,
            "corruption": corruption,
            "severity": severity,
            "predictions_sha256": sha256,
            "seconds": 0.0 if began is None else time.monotonic() - began,
        }
    )


class DatasetNumbers(Protocol):
    """What the numbers of one data set are grouped by."""

    @property
    def dataset(self) -> str:
        """Its name."""

    @property
    def role(self) -> str:
        """`id`, `shift` or `corruption`."""

    @property
    def corruption(self) -> str | None:
        """The corruption's name, where it is one."""


J = TypeVar("J", bound=DatasetNumbers)


def ood_groups(evaluations: Iterable[J]) -> dict[str, list[J]]:
    """What an OOD mean is taken over: the shifts, or the corruptions where there are no shifts.

    A corruption's severities are one group, so that a mean of means counts each name once.
    """
    found = list(evaluations)
    chosen = [e for e in found if e.role == "shift"] or [e for e in found if e.role == "corruption"]
    groups: dict[str, list[J]] = {}
    for evaluation in chosen:
        groups.setdefault(evaluation.corruption or evaluation.dataset, []).append(evaluation)
    return groups


def group_mean(groups: Mapping[str, Sequence[J]], value: Callable[[J], float]) -> float | None:
    """Unweighted mean over the groups of the means within them; None without groups."""
    if not groups:
        return None
    return float(np.mean([np.mean([value(e) for e in group]) for group in groups.values()]))


def summarise(evaluations: Sequence[EvaluationReport], sigma_min: float | None) -> Summary:
    """The headline numbers.

    OOD values are unweighted means over the shifts; where a suite has none, over the corruptions
    (each name a mean over its severities first).
    """
    groups = ood_groups(evaluations)
    in_distribution = next((e for e in evaluations if e.role == "id"), None)

    def mean(value: Callable[[EvaluationReport], float]) -> float | None:
        return group_mean(groups, value)

    evaluated = [evaluation for group in groups.values() for evaluation in group]
    worst = min(evaluated, key=lambda e: e.accuracy, default=None)
    return Summary(
        id_accuracy=in_distribution.accuracy if in_distribution else None,
        id_ece=in_distribution.ece.value if in_distribution else None,
        id_ece_floor=in_distribution.ece.null_mean if in_distribution else None,
        id_nll=in_distribution.nll if in_distribution else None,
        ood_accuracy=mean(lambda e: e.accuracy),
        ood_ece=mean(lambda e: e.ece.value),
        ood_ece_floor=mean(lambda e: e.ece.null_mean),
        ood_nll=mean(lambda e: e.nll),
        sigma_min=sigma_min,
        worst_shift=(worst.corruption or worst.dataset) if worst else None,
        worst_shift_accuracy=worst.accuracy if worst else None,
        worst_severity=worst.severity if worst else None,
    )
