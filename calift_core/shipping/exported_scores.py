"""What an exported model gives on the data that its run was tested on, from stored predictions.

An exported model answers with the likeliest class of its calibrated probabilities, so that is what
is scored here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calift_core.analysis.choosing import INITIAL_NAME
from calift_core.analysis.deciding import answer_scores
from calift_core.calibration import (
    Binning,
    Calibrator,
    SampleScores,
    accuracy,
    brier,
    ece_report,
    nll,
    reliability_curve,
)
from calift_core.calibration.diagrams import ReliabilityCurve
from calift_core.predictions.read import read_metadata, read_predictions
from calift_core.predictions.types import Predictions, predictions_name
from calift_core.schema.report import EceReport, EvaluationReport, Report
from calift_core.shipping.initial_model import initial_predictions_path, reads_initial


@dataclass(frozen=True)
class UncalibratedScores:
    """What the run's own probabilities gave, before the calibrator."""

    accuracy: float
    nll: float
    brier: float
    ece: float


@dataclass(frozen=True)
class DatasetScores:
    """One data set. Errors are fractions, NLL is in nats.

    Attributes:
        role: `id`, `shift` or `corruption`.
        calibrated: whether the numbers are those after the calibrator; of predictions that keep the
            largest logits alone they are the run's own.
        curve: its reliability diagram, where `calibrated`.
        before: the calibrator, where there is one and `calibrated`.
    """

    dataset: str
    role: str
    n: int
    calibrated: bool
    accuracy: float
    nll: float
    brier: float
    ece: EceReport
    curve: ReliabilityCurve | None = None
    before: UncalibratedScores | None = None


def exported_scores(
    folder: Path, report: Report, calibrator: Calibrator | None
) -> Iterator[DatasetScores]:
    """Every data set that a run was tested on, in the report's order.

    Args:
        calibrator: that its probabilities go through; None: as they are.

    Raises:
        PredictionsError: a predictions file is missing or damaged.
    """
    for evaluation in report.evaluations:
        path = folder / predictions_name(evaluation.dataset)
        if calibrator is not None and read_metadata(path).storage == "top_k":
            yield DatasetScores(
                evaluation.dataset,
                evaluation.role,
                evaluation.n,
                False,
                evaluation.accuracy,
                evaluation.nll,
                evaluation.brier,
                evaluation.ece,
            )
            continue
        row = _row(evaluation, scores_of(path, folder / INITIAL_NAME, calibrator))
        yield row if calibrator is None else replace(row, before=_before(evaluation))


def stored_tests(
    folder: Path, report: Report, *, roles: Sequence[str]
) -> Iterator[tuple[EvaluationReport, Predictions]]:
    """What a run was tested on in these roles, where all logits are stored.

    Raises:
        PredictionsError: a predictions file is missing or damaged.
    """
    for evaluation in report.evaluations:
        path = folder / predictions_name(evaluation.dataset)
        if evaluation.role in roles and read_metadata(path).storage == "full":
            yield evaluation, read_predictions(path)


def scores_of(path: Path, initial: Path, calibrator: Calibrator | None) -> SampleScores:
    """Scores of a run's predictions file as its model answers.

    Args:
        initial: folder of the initial model, for calibrators that read its logits.
        calibrator: of the run; None: its own probabilities.
    """
    first = None
    if reads_initial(calibrator):
        first = initial_predictions_path(initial, read_metadata(path).dataset)
    return answer_scores(path, calibrator, initial=first)


def _before(evaluation: EvaluationReport) -> UncalibratedScores:
    return UncalibratedScores(
        evaluation.accuracy, evaluation.nll, evaluation.brier, evaluation.ece.value
    )


def _row(evaluation: EvaluationReport, scores: SampleScores) -> DatasetScores:
    own_ece = evaluation.ece
    binning = Binning(own_ece.n_bins, own_ece.scheme)
    found = ece_report(scores, binning, n_resamples=own_ece.n_resamples, seed=own_ece.seed)
    return DatasetScores(
        evaluation.dataset,
        evaluation.role,
        len(scores),
        True,
        accuracy(scores),
        nll(scores),
        brier(scores),
        EceReport.model_validate(found),
        reliability_curve(scores, binning, n_resamples=own_ece.n_resamples, seed=own_ece.seed),
    )
