"""Predictions files of this machine, as the explorer finds them: a file, or a folder of a run."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from calift_core.analysis.calibrators import is_perturbed
from calift_core.analysis.choosing import INITIAL_NAME, Choice, read_choice
from calift_core.analysis.draws import DEFAULT_DRAWS, Draws
from calift_core.analysis.feature_map import Points, laid_out
from calift_core.analysis.library import (
    FitSet,
    Memory,
    Plain,
    PredictionsFile,
    Subject,
    no_prompts,
    open_predictions,
)
from calift_core.analysis.report import read_report
from calift_core.calibration import Binning
from calift_core.errors import DataError, NotFoundError
from calift_core.predictions.prompts import PROMPTS
from calift_core.predictions.read import read_metadata
from calift_core.predictions.rows import read_features
from calift_core.predictions.training import (
    TRAINING_IMAGES,
    TrainingImages,
    read_training_images,
)
from calift_core.predictions.types import PredictionsMetadata
from calift_core.schema.report import EvaluationReport, Report
from calift_core.schema.wire.results import Evaluation, Source
from calift_core.schema.wire.runs import RunSummary

_ORDER = ("calibration", "validation", "id", "shift", "corruption", "far")


class FolderLibrary:
    """Targets are predictions files, runs are folders of them or of a run.

    What was evaluated how is read from the run's report, where a file lies in a run's folder.

    Args:
        initial: the folder of the zero-shot run that the others started from, for calibrators that
            read its predictions too.
    """

    def __init__(self, initial: Path | None = None) -> None:
        self.initial = initial

    @cached_property
    def memory(self) -> Memory:
        """Kept as long as the library."""
        return Plain()

    def subject(self, target: str) -> Subject:
        """One predictions file.

        Raises:
            DataError: a folder, predictions of another format, or of a far set.
            PredictionsError: the file breaks its contract.
        """
        path = Path(target)
        if path.is_dir():
            raise DataError(f"{target!r} must be a predictions file, got a folder.")
        if path.suffix.lower() in (".npz", ".csv"):
            raise DataError(
                f"{target!r} must be a predictions file of calift (Parquet), got {path.suffix}.",
                hint=f"`calift import-predictions {path} --out FOLDER` makes one of it.",
            )
        file = self._open(path)
        metadata = file.metadata
        if metadata.role == "far":
            raise DataError(
                f"{target!r} must have labels, got the far set {metadata.dataset!r}.",
                hint="`calift analyse ood RUN` holds it against the ID test images.",
            )
        own = _reported(path, metadata.dataset)
        return Subject(
            target=target,
            source=Source(run_name=path.name, dataset=metadata.dataset, role=metadata.role),
            n=len(file),
            binning=Binning() if own is None else Binning(own.ece.n_bins, own.ece.scheme),
            draws=DEFAULT_DRAWS if own is None else Draws(own.ece.n_resamples, own.ece.seed),
            temperature=metadata.temperature if own is None else own.temperature,
            open=lambda: file,
        )

    def run(self, run: str) -> Source:
        """A folder by its name."""
        return Source(run_name=Path(run).name)

    def summaries(self, run_ids: Sequence[str]) -> list[RunSummary]:
        """Folders of finished runs, in this order; a run's id is its folder as it was named.

        Raises:
            DataError: one is no such folder.
        """
        return [_summary(run, read_report(Path(run))) for run in run_ids]

    def spec(self, run_id: str) -> Mapping[str, Any]:
        """What the run in a folder was asked for."""
        return read_report(Path(run_id)).spec

    def evaluations(self, run_id: str) -> list[Evaluation]:
        """What the run in a folder was tested on."""
        report = read_report(Path(run_id))
        run = _summary(run_id, report)
        return [
            Evaluation(
                id=f"{run_id}/{e.dataset}",
                run_id=run_id,
                run_name=run.name,
                method=run.method,
                created_at=run.created_at,
                **e.model_dump(),
            )
            for e in report.evaluations
        ]

    def subject_of(self, evaluation: Evaluation) -> Subject:
        """The predictions of an evaluation in a folder.

        Raises:
            NotFoundError: they are not there.
        """
        for path, metadata in _files(Path(evaluation.run_id)):
            if (metadata.dataset, metadata.role) == (evaluation.dataset, evaluation.role):
                return self.subject(str(path))
        raise NotFoundError(
            f"{evaluation.run_id!r} holds no predictions of {evaluation.dataset!r}."
        )

    def tested(self, run: str) -> list[Subject]:
        """The files of a folder but those of the calibration and validation splits and far sets.

        Raises:
            DataError: the folder holds no predictions file.
        """
        return [
            self.subject(str(path))
            for path, metadata in _files(Path(run))
            if metadata.role not in ("calibration", "validation", "far")
        ]

    def far(self, run: str) -> list[PredictionsFile]:
        """The files of the far sets of its suite."""
        return [self._open(path) for path, m in _files(Path(run)) if m.role == "far"]

    def peers(self, subject: Subject) -> list[Subject]:
        """None: a folder knows no other runs."""
        return []

    def untested(self, run: str) -> NotFoundError:
        """A folder of corruptions alone."""
        return NotFoundError(
            f"{run!r} holds no predictions of ID data or a shift.",
            hint="Corruptions are named with --dataset.",
        )

    def fit_set(
        self, subject: Subject, kind: str, fit_on: Sequence[str], *, oracle: bool
    ) -> FitSet:
        """The files that are named, or the ID calibration split beside the subject.

        Whether named files may be fitted on is for the calibrator to say, which sees their split.
        """
        if fit_on:
            return FitSet([self.subject(target).open() for target in fit_on])
        folder = Path(subject.target).parent
        found = [(path, m) for path, m in _files(folder) if m.role == "calibration"]
        clean = [path for path, m in found if not is_perturbed(m)]
        if not clean:
            raise NotFoundError(
                f"{str(folder)!r} holds no predictions of an ID calibration split.",
                hint="Name a file with --fit-on; anything but that split needs --oracle.",
            )
        noisy = [path for path, m in found if is_perturbed(m)] if kind == "tsp" else []
        return FitSet([self._open(path) for path in clean[:1] + noisy])

    def validation(self, subject: Subject) -> PredictionsFile | None:
        """The file of the ID validation part beside the subject."""
        for path, metadata in _files(Path(subject.target).parent):
            if metadata.role == "validation":
                return self._open(path)
        return None

    def choice(self, subject: Subject) -> Choice | None:
        """What `calift calibrate` left in the folder of the subject's run."""
        return read_choice(_run_of(subject))

    def training_images(self, run: str) -> tuple[str, TrainingImages] | None:
        """Beside the model in the run's folder."""
        path = Path(run) / "checkpoint" / TRAINING_IMAGES
        return (str(path.resolve()), read_training_images(path)) if path.is_file() else None

    def prompts(self, subject: Subject) -> tuple[str, Path]:
        """Beside the model of the run whose predictions these are."""
        path = _run_of(subject) / "checkpoint" / PROMPTS
        if not path.is_file():
            raise no_prompts(subject)
        return str(path), path

    def tags(self, file: PredictionsFile) -> None:
        """None: a service keeps them."""

    def points(self, file: PredictionsFile) -> Points | None:
        """Made here, in seconds to minutes."""
        features = read_features(file.path)
        if features is None:
            return None
        return self.memory.remember("fits", ("map", file.digest), lambda: laid_out(features))

    def initial_predictions(self, subject: Subject, file: PredictionsFile) -> PredictionsFile:
        """The file of the same data set in the initial model's folder, or in the run's own copy."""
        wanted = (file.metadata.dataset, file.metadata.role)
        initial = self.initial or _run_of(subject) / INITIAL_NAME
        if self.initial is not None or initial.is_dir():
            for path, metadata in _files(initial):
                if (metadata.dataset, metadata.role) == wanted:
                    return self._open(path)
        raise NotFoundError(
            f"there are no predictions of the initial model on {wanted[0]!r}.",
            hint="Name the folder of the zero_shot run of the same suite with --initial.",
        )

    def _open(self, path: Path) -> PredictionsFile:
        digest = str(path.resolve())
        return self.memory.remember("files", digest, lambda: open_predictions(path, digest))


def _run_of(subject: Subject) -> Path:
    return Path(subject.target).resolve().parent.parent


def _summary(run: str, report: Report) -> RunSummary:
    spec: Mapping[str, Any] = report.spec
    model = spec.get("model") or {}
    return RunSummary(
        id=run,
        name=report.name,
        phase="SUCCEEDED",
        method=str((spec.get("method") or {}).get("kind", "imported")),
        model="/".join(str(model[k]) for k in ("name", "pretrained") if model.get(k)),
        suite=str((spec.get("suite") or {}).get("id", "")),
        seed=int((spec.get("train") or {}).get("seed", 0)),
        tags=[],
        created_at=datetime.fromtimestamp((Path(run) / "report.json").stat().st_mtime, UTC),
        summary=report.summary,
    )


def _files(folder: Path) -> list[tuple[Path, PredictionsMetadata]]:
    """Predictions files of a folder or of a run's, test sets in the order of their roles."""
    inner = folder / "predictions"
    paths = sorted((inner if inner.is_dir() else folder).glob("*.parquet"))
    if not paths:
        raise DataError(f"{str(folder)!r} must hold predictions files (.parquet), got none.")
    found = [(path, read_metadata(path)) for path in paths]
    return sorted(found, key=lambda item: (_ORDER.index(item[1].role), item[1].dataset))


def _reported(path: Path, dataset: str) -> EvaluationReport | None:
    try:
        text = (path.resolve().parent.parent / "report.json").read_bytes()
        report = Report.model_validate_json(text)
    except (OSError, ValidationError):
        return None
    return next((e for e in report.evaluations if e.dataset == dataset), None)
