"""`calift analyse` on files of this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from calift.analyse import Evaluated
from calift_core.errors import DataError, LeakageError, SpecError, UnknownNameError
from calift_core.schema.wire.results import (
    AS_EVALUATED,
    AskedBinning,
    FittedCalibrator,
    Measure,
    MeasureSet,
    Reliability,
    SlicePage,
    Source,
    TransferCell,
    TransferMatrix,
    TransferRow,
)

if TYPE_CHECKING:
    from calift_core.analysis.condition import Samples
    from calift_core.analysis.draws import Draws
    from calift_core.calibration import Calibrator, SampleScores
    from calift_core.predictions.types import PredictionsMetadata
    from calift_core.schema.report import EvaluationReport

SchemeName = Literal["equal_mass", "equal_width"]
NormName = Literal["l1", "l2", "max"]


def _demand_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{str(path)!r} must be a predictions file, got a folder.")
    if path.suffix.lower() in (".npz", ".csv"):
        raise DataError(
            f"{str(path)!r} must be a predictions file of calift (Parquet), got {path.suffix}.",
            hint=f"`calift import-predictions {path} --out FOLDER` makes one of it.",
        )


def read_samples(path: str, temperature: float) -> tuple[Samples, Source, PredictionsMetadata]:
    """A file's samples at a temperature, where they come from, and what it says of itself."""
    from calift_core.analysis.condition import Samples
    from calift_core.predictions.read import read_index, read_metadata, read_scores

    metadata = read_metadata(path)
    ids, _, clusters = read_index(path)
    samples = Samples(
        scores=read_scores(path, temperature),
        ids=ids,
        class_names=metadata.class_names,
        clusters=clusters,
    )
    source = Source(run_name=Path(path).name, dataset=metadata.dataset, role=metadata.role)
    return samples, source, metadata


def as_evaluated(
    path: Path, asked: AskedBinning = AS_EVALUATED, temperature: float | None = None
) -> Evaluated:
    """How a file's errors are measured, and at which temperature: what is None is as evaluated.

    That is what the run's report says, where the file lies in a run's folder.
    """
    from calift_core.analysis.draws import DEFAULT_DRAWS, Draws
    from calift_core.predictions.read import read_metadata

    _demand_file(path)
    metadata = read_metadata(path)
    own = _reported(path, metadata.dataset)
    degrees = metadata.temperature if own is None else own.temperature
    return Evaluated(
        asked.over(None if own is None else own.ece),
        DEFAULT_DRAWS if own is None else Draws(own.ece.n_resamples, own.ece.seed),
        degrees if temperature is None else temperature,
    )


def _reported(path: Path, dataset: str) -> EvaluationReport | None:
    """What the report of the run that a predictions file lies in says of its data set."""
    from calift_core.schema.report import Report

    try:
        text = (path.resolve().parent.parent / "report.json").read_bytes()
        report = Report.model_validate_json(text)
    except (OSError, ValidationError):
        return None
    return next((e for e in report.evaluations if e.dataset == dataset), None)


def measure_set(
    source: Source,
    samples: Samples,
    temperature: float,
    draws: Draws,
    measures: list[Measure],
) -> MeasureSet:
    """Measures with what they are of."""
    return MeasureSet(
        source=source,
        n=len(samples.scores),
        n_classes=len(samples.class_names),
        temperature=temperature,
        n_resamples=draws.n_resamples,
        seed=draws.seed,
        measures=measures,
    )


def _files(folder: Path) -> list[tuple[Path, PredictionsMetadata]]:
    """Predictions files of a folder or of a run's, test sets in the order of their roles."""
    from calift_core.predictions.read import read_metadata

    inner = folder / "predictions"
    paths = sorted((inner if inner.is_dir() else folder).glob("*.parquet"))
    if not paths:
        raise DataError(f"{str(folder)!r} must hold predictions files (.parquet), got none.")
    order = ("calibration", "validation", "id", "shift", "corruption")
    found = [(path, read_metadata(path)) for path in paths]
    return sorted(found, key=lambda item: (order.index(item[1].role), item[1].dataset))


def calibration_files(folder: Path, kind: str) -> list[str]:
    """The predictions files of a folder that a kind of calibrator is fitted on.

    Raises:
        SpecError: the folder holds no predictions of an ID calibration split.
    """
    from calift_core.analysis.calibrators import is_perturbed

    found = [(path, m) for path, m in _files(folder) if m.role == "calibration"]
    clean = [str(path) for path, m in found if not is_perturbed(m)]
    if not clean:
        raise SpecError(
            f"{str(folder)!r} holds no predictions of an ID calibration split.",
            hint="Name a file with --fit-on; anything but that split needs --oracle.",
        )
    noisy = [str(path) for path, m in found if is_perturbed(m)]
    return clean[:1] + (noisy if kind == "tsp" else [])


def fit(kind: str, paths: Sequence[str], *, oracle: bool) -> tuple[Calibrator, FittedCalibrator]:
    """A calibrator of a kind, fitted on predictions files, and what is told of it.

    Raises:
        LeakageError: a file is not of the ID calibration split and `oracle` is off.
    """
    from calift_core.analysis.calibrators import fit_calibrator, read_to_fit

    try:
        parts = [read_to_fit(path, n_files=len(paths)) for path in paths]
        return fit_calibrator(kind, parts, oracle=oracle)
    except LeakageError as error:
        raise LeakageError(
            error.message, hint="Pass --oracle to fit it all the same; it then counts as an oracle."
        ) from error


def among(path: Path, paths: Sequence[str]) -> bool:
    """Whether a file is one of some files, however it is named."""
    return any(path.resolve() == Path(other).resolve() for other in paths)


def reliability_of(
    scores: SampleScores,
    source: Source,
    own: Evaluated,
    fitted: FittedCalibrator | None,
    *,
    in_sample: bool = False,
) -> Reliability:
    """The reliability diagram of scores; `fitted` is the calibrator they went through."""
    from calift_core.analysis import reliability

    assert source.dataset is not None
    assert source.role is not None
    return Reliability(
        evaluation_id="",
        run_id="",
        run_name=source.run_name,
        method="",
        dataset=source.dataset,
        role=source.role,
        temperature=1.0,
        calibrator=fitted,
        in_sample=in_sample,
        **reliability.reliability_numbers(
            scores, own.binning, own.draws, smooth=reliability.smooth_curve(scores)
        ),
    )


def slices_of_folder(
    folder: Path,
    evaluated: Callable[[Path], Evaluated],
    where: str | None,
    min_n: int,
    offset: int,
    limit: int,
) -> SlicePage:
    """Each evaluation of a folder as one slice, those below `min_n` samples left out."""
    from calift_core.analysis import draws as analysis_draws
    from calift_core.analysis import slices
    from calift_core.calibration import Binning

    files = [f for f in _files(folder) if f[1].role not in ("calibration", "validation")]
    nothing = Evaluated(Binning(), analysis_draws.DEFAULT_DRAWS, 1.0)
    first = evaluated(files[0][0]) if files else nothing
    items, n = [], 0
    for path, metadata in files[offset : offset + limit]:
        binning, draws, temperature = evaluated(path)
        samples, _, _ = read_samples(str(path), temperature)
        n += len(samples.scores)
        one = slices.slice_of_set(
            samples, binning, draws, title=metadata.dataset, where=where, min_n=min_n
        )
        if one is not None:
            items.append(one.model_copy(update={"role": metadata.role}))
    return SlicePage(
        source=Source(run_name=folder.name),
        by="dataset",
        where=where or "",
        sort="key",
        descending=False,
        min_n=min_n,
        scheme=first.binning.scheme,
        norm=first.binning.norm,
        temperature=first.temperature,
        n=n,
        n_matching=sum(one.n for one in items),
        total=len(files),
        offset=offset,
        items=items,
    )


def transfer_of_folder(
    folder: Path, kind: str, datasets: list[str], evaluated: Callable[[Path], Evaluated]
) -> TransferMatrix:
    """A calibrator fitted on each data set of a folder and tested on each."""
    from calift_core.analysis import calibrators
    from calift_core.analysis import draws as analysis_draws
    from calift_core.calibration import Binning
    from calift_core.predictions.read import read_scores

    tested = [f for f in _files(folder) if f[1].role not in ("calibration", "validation")]
    names = [metadata.dataset for _, metadata in tested]
    for name in datasets:
        if name not in names:
            raise UnknownNameError("data set of this folder", name, names)
    chosen = [
        (path, m)
        for path, m in tested
        if (m.dataset in datasets if datasets else m.role != "corruption")
    ]
    nothing = Evaluated(Binning(), analysis_draws.DEFAULT_DRAWS, 1.0)
    binning, draws, _ = evaluated(chosen[0][0]) if chosen else nothing
    notes: list[str] = []
    fits: list[tuple[Calibrator, FittedCalibrator]] = []
    seen: list[list[str]] = [[]]  # what each row was fitted on
    try:
        fitted_on = calibration_files(folder, kind)
        fits.append(fit(kind, fitted_on, oracle=False))
        seen.append(fitted_on)
    except SpecError as error:
        if kind == "tsp":
            raise
        notes.append(f"{error.message} Every row here is an oracle.")
    if kind != "tsp":
        fits += [fit(kind, [str(path)], oracle=True) for path, _ in chosen]
        seen += [[str(path)] for path, _ in chosen]
    columns: list[list[TransferCell]] = []
    for path, metadata in chosen:
        every = [read_scores(path)]
        every += calibrators.calibrated_scores(path, [calibrator for calibrator, _ in fits])
        numbers = [calibrators.transfer_numbers(scores, binning, draws) for scores in every]
        columns.append(
            [
                TransferCell(
                    dataset=metadata.dataset,
                    role=metadata.role,
                    n=len(every[0]),
                    in_sample=among(path, files),
                    **calibrators.gains(numbers[0], one),
                    **one,
                )
                for files, one in zip(seen, numbers, strict=True)
            ]
        )
    told: list[FittedCalibrator | None] = [None, *(fitted for _, fitted in fits)]
    return TransferMatrix(
        source=Source(run_name=folder.name),
        kind=kind,
        n_bins=binning.n_bins,
        scheme=binning.scheme,
        norm=binning.norm,
        rows=[
            TransferRow(calibrator=fitted, cells=[column[i] for column in columns])
            for i, fitted in enumerate(told)
        ],
        notes=notes,
    )
