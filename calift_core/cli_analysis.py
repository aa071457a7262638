"""`calift analyse`: what stored predictions say, of a file on this machine or over the API.

A target that exists as a path is read here, without any service; anything else is an id that the
service is asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from calift_core.errors import (
    DataError,
    LeakageError,
    ServiceError,
    SpecError,
    UnknownNameError,
)
from calift_core.schema.wire import (
    AS_EVALUATED,
    AskedBinning,
    Budget,
    CalibratorEffect,
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
    from calift_core.analysis import Draws
    from calift_core.calibration import Binning, Calibrator, SampleScores
    from calift_core.client import Client
    from calift_core.predictions import PredictionsMetadata
    from calift_core.schema.report import EvaluationReport
    from calift_core.slices import Samples

analyse_app = typer.Typer(
    no_args_is_help=True,
    help="Measures, slices, estimators and calibrators of stored predictions: of a file here "
    "or of an id of the service.",
)

SchemeName = Literal["equal_mass", "equal_width"]
NormName = Literal["l1", "l2", "max"]

_AS_EVALUATED = "as evaluated"
#: Evaluations that a hint names at most.
_MOST_TOLD = 20

Target = Annotated[
    str, typer.Argument(help="A predictions file (.parquet), or an EVALUATION_ID of the service.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
Bins = Annotated[
    int | None,
    typer.Option(
        "--bins", min=1, max=1000, help="Bins of every binned error.", show_default=_AS_EVALUATED
    ),
]
SchemeOption = Annotated[
    SchemeName | None,
    typer.Option("--scheme", help="How bins are cut.", show_default=_AS_EVALUATED),
]
NormOption = Annotated[
    NormName, typer.Option("--norm", help="Mean gap, root mean square, largest.")
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", min=0.01, max=100, help="Divides the logits.", show_default=_AS_EVALUATED
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        "--where", help="A condition: 'confidence >= 0.9 and not correct and label in (3, 5)'."
    ),
]
Kind = Annotated[
    str, typer.Option("--kind", help="temperature, vector, histogram, isotonic or tsp.")
]
Oracle = Annotated[
    bool,
    typer.Option("--oracle", help="Allow data other than the ID calibration split, and say so."),
]


@analyse_app.command("metrics")
def analyse_metrics(
    target: Target,
    n_bins: Bins = None,
    scheme: SchemeOption = None,
    norm: NormOption = "l1",
    temperature: Temperature = None,
    classwise: Annotated[
        bool, typer.Option(help="With the class-wise error, which takes all logits.")
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Every measure with its floor and interval."""
    asked = AskedBinning(n_bins=n_bins, scheme=scheme, norm=norm)
    if _is_local(target):
        from calift_core import analysis

        binning, draws, degrees = _evaluated(Path(target), asked, temperature)
        samples, source, metadata = _read(target, degrees)
        extra = (
            analysis.classwise_measure(target, binning, draws, temperature=degrees)
            if classwise and metadata.storage == "full"
            else None
        )
        found = _measure_set(
            source,
            samples,
            degrees,
            draws,
            analysis.measures_of(
                samples.scores,
                binning,
                draws,
                n_classes=len(metadata.class_names),
                classwise=extra,
            ),
        )
    else:
        with _of_evaluation(target) as client:
            found = client.measures(
                target, binning=asked, temperature=temperature,
                classwise=classwise,
            )  # fmt: skip
    _show_measures(found, as_json)


@analyse_app.command("audit")
def analyse_audit(
    target: Target, temperature: Temperature = None, as_json: JsonFlag = False
) -> None:
    """The same predictions under the estimators in use: why published numbers differ."""
    if _is_local(target):
        from calift_core import analysis
        from calift_core.calibration import Binning

        degrees = _evaluated(Path(target), temperature=temperature).temperature
        samples, source, metadata = _read(target, degrees)
        classwise = [
            analysis.classwise_measure(target, binning, temperature=degrees)
            for binning in (Binning(scheme="equal_width"), Binning(scheme="equal_mass"))
            if metadata.storage == "full"
        ]
        found = _measure_set(
            source,
            samples,
            degrees,
            analysis.DEFAULT_DRAWS,
            analysis.audit_of(samples.scores, classwise=classwise),
        )
    else:
        with _of_evaluation(target) as client:
            found = client.audit(target, temperature=temperature)
    _show_measures(found, as_json, notes=True)


@analyse_app.command("slices")
def analyse_slices(
    target: Annotated[
        str,
        typer.Argument(
            help="A predictions file or an EVALUATION_ID; a folder of them or a RUN_ID gives one "
            "slice per data set."
        ),
    ],
    by: Annotated[
        Literal["all", "class", "predicted", "confidence", "cluster"],
        typer.Option(help="What makes a slice of one data set."),
    ] = "class",
    where: Where = None,
    sort: Annotated[
        Literal["key", "n", "accuracy", "gap", "ece"], typer.Option(help="Order of the slices.")
    ] = "key",
    descending: Annotated[bool, typer.Option("--descending", help="Largest first.")] = False,
    min_n: Annotated[
        int, typer.Option("--min-n", min=10, help="Fewest samples that an ECE is given for.")
    ] = 30,
    n_bins: Bins = None,
    scheme: SchemeOption = None,
    norm: NormOption = "l1",
    temperature: Temperature = None,
    offset: Annotated[int, typer.Option(min=0, help="Slices left out at the front.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most slices shown.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """Calibration by class, confidence, source or data set, of samples that meet a condition."""
    asked = AskedBinning(n_bins=n_bins, scheme=scheme, norm=norm)
    if not _is_local(target):
        with _client() as client:
            page = _slices_of_id(
                target,
                lambda: client.slices(
                    target, by=by, where=where, sort=sort, descending=descending, min_n=min_n,
                    binning=asked, temperature=temperature,
                    offset=offset, limit=limit,
                ),
                lambda: client.run_slices(
                    target, where=where, min_n=min_n, binning=asked,
                    temperature=temperature, offset=offset, limit=limit,
                ),
            )  # fmt: skip
    elif Path(target).is_dir():
        page = _slices_of_folder(
            Path(target),
            lambda path: _evaluated(path, asked, temperature),
            where,
            min_n,
            offset,
            limit,
        )
    else:
        from calift_core import analysis

        binning, draws, degrees = _evaluated(Path(target), asked, temperature)
        samples, source, _ = _read(target, degrees)
        page = analysis.slice_page(
            samples, source, binning, draws, by=by, where=where, sort=sort, descending=descending,
            min_n=min_n, offset=offset, limit=limit, temperature=degrees,
        )  # fmt: skip
    _show_slices(page, as_json)


@analyse_app.command("calibrators")
def analyse_calibrators(
    target: Target,
    kind: Kind = "temperature",
    fit_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fit-on",
            help="The predictions file of the ID calibration split (for tsp: and of its perturbed "
            "copies); with --oracle any other file, or EVALUATION_ID of the same run.",
        ),
    ] = None,
    oracle: Oracle = False,
    n_bins: Bins = None,
    scheme: SchemeOption = None,
    norm: NormOption = "l1",
    as_json: JsonFlag = False,
) -> None:
    """Fit a calibrator and show the errors before and after it."""
    asked = AskedBinning(n_bins=n_bins, scheme=scheme, norm=norm)
    given = list(fit_on or ())
    if not _is_local(target):
        if len(given) > 1:
            raise SpecError(f"--fit-on takes one EVALUATION_ID of the service, got {len(given)}")
        with _of_evaluation(target, *given) as client:
            effect = client.calibrate(
                target, kind, fit_on=given[0] if given else None, oracle=oracle, binning=asked,
            )  # fmt: skip
    else:
        from calift_core import analysis

        given = given or _calibration_files(Path(target).parent, kind)
        own = _evaluated(Path(target), asked)
        calibrator, fitted = _fit(kind, given, oracle=oracle)
        samples, source, _ = _read(target, 1.0)
        (after,) = analysis.calibrated_scores(target, [calibrator])
        effect = CalibratorEffect(
            calibrator=fitted,
            before=_reliability(samples.scores, source, own, None),
            after=_reliability(after, source, own, fitted, in_sample=_among(Path(target), given)),
        )
    _show_effect(effect, as_json)


@analyse_app.command("transfer")
def analyse_transfer(
    target: Annotated[
        str, typer.Argument(help="A folder of predictions files (or of a run), or a RUN_ID.")
    ],
    kind: Kind = "temperature",
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", help="Only these; none: the ID data and the shifts."),
    ] = None,
    n_bins: Bins = None,
    scheme: SchemeOption = None,
    norm: NormOption = "l1",
    as_json: JsonFlag = False,
) -> None:
    """A calibrator fitted on A and tested on B, for every pair of data sets."""
    asked = AskedBinning(n_bins=n_bins, scheme=scheme, norm=norm)
    if _is_local(target):
        matrix = _transfer_of_folder(
            Path(target),
            kind,
            list(dataset or ()),
            lambda path: _evaluated(path, asked),
        )
    else:
        with _client() as client:
            matrix = client.transfer(target, kind, dataset=list(dataset or ()), binning=asked)
    _show_transfer(matrix, as_json)


@analyse_app.command("budget")
def analyse_budget(
    target: Target,
    difference: Annotated[
        float, typer.Option(help="To be shown, in the metric's unit: 0.01 is one point.")
    ],
    metric: Annotated[
        Literal["accuracy", "ece", "nll", "brier", "confidence"], typer.Option()
    ] = "ece",
    against: Annotated[
        str | None,
        typer.Option(help="Another model's predictions of the same samples, file or id."),
    ] = None,
    level: Annotated[float, typer.Option(help="Of the two-sided test.")] = 0.95,
    power: Annotated[float, typer.Option(help="Chance to show it when it is real.")] = 0.8,
    as_json: JsonFlag = False,
) -> None:
    """How many samples a difference needs."""
    if _is_local(target):
        from calift_core import analysis
        from calift_core.predictions import read_predictions, shared_samples

        samples, source, _ = _read(target, 1.0)
        scores, clusters, other, other_source = samples.scores, samples.clusters, None, None
        if against is not None:
            beside, other_source, _ = _read(against, 1.0)
            in_a, in_b = shared_samples(read_predictions(target), read_predictions(against))
            scores, other = scores.take(in_a), beside.scores.take(in_b)
            clusters = None if clusters is None else clusters[in_a]
        found = analysis.budget_of(
            scores, source, metric=metric, difference=difference, against=other,
            against_source=other_source, clusters=clusters, level=level, power=power,
        )  # fmt: skip
    else:
        with _of_evaluation(target, *([against] if against else [])) as client:
            found = client.budget(
                target, difference, metric=metric, against=against, level=level, power=power
            )
    _show_budget(found, as_json)


# ---- Files on this machine ---------------------------------------------------------------------


def _client() -> Client:
    from calift_core.client import Client

    return Client()


@contextmanager
def _of_evaluation(*targets: str) -> Iterator[Client]:
    """A client for a question about evaluations; who names a run is told the evaluations it has."""
    with _client() as client:
        try:
            yield client
        except ServiceError as error:
            if error.status != 404:
                raise
            for target in targets:
                found = client.evaluations(run_id=[target], limit=_MOST_TOLD)
                if found.items:
                    told = ", ".join(f"{e.id} ({e.dataset})" for e in found.items)
                    raise DataError(
                        f"{target!r} is a run, and this is asked of one of its evaluations.",
                        hint=f"It has {told}{' and more' if found.next_cursor else ''}.",
                    ) from error
            raise


def _is_local(target: str) -> bool:
    if Path(target).exists():
        return True
    if target.endswith(".parquet") or "/" in target:
        raise DataError(f"there is no file {target!r}.", hint="An id of the service has no '/'.")
    return False


def _demand_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{str(path)!r} must be a predictions file, got a folder.")
    if path.suffix.lower() in (".npz", ".csv"):
        raise DataError(
            f"{str(path)!r} must be a predictions file of calift (Parquet), got {path.suffix}.",
            hint=f"`calift import-predictions {path} --out FOLDER` makes one of it.",
        )


def _read(path: str, temperature: float) -> tuple[Samples, Source, PredictionsMetadata]:
    from calift_core.predictions import read_index, read_metadata, read_scores
    from calift_core.slices import Samples

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


class _Evaluated(NamedTuple):
    """How a file's numbers are made."""

    binning: Binning
    draws: Draws
    temperature: float


def _evaluated(
    path: Path, asked: AskedBinning = AS_EVALUATED, temperature: float | None = None
) -> _Evaluated:
    """How a file's errors are measured, and at which temperature: what is None is as evaluated.

    That is what the run's report says, where the file lies in a run's folder.
    """
    from calift_core.analysis import DEFAULT_DRAWS, Draws
    from calift_core.predictions import read_metadata

    _demand_file(path)
    metadata = read_metadata(path)
    own = _reported(path, metadata.dataset)
    degrees = metadata.temperature if own is None else own.temperature
    return _Evaluated(
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


def _slices_of_id(
    target: str, of_evaluation: Callable[[], SlicePage], of_run: Callable[[], SlicePage]
) -> SlicePage:
    """Ask the service what an id is of, rather than guess it from how it is written."""
    for ask in (of_evaluation, of_run):
        try:
            return ask()
        except ServiceError as error:
            if error.status != 404 or error.problem.get("code") != "NOT_FOUND":
                raise
    raise ServiceError(
        f"there is no evaluation and no run {target!r}.",
        status=404,
        hint="`calift runs list` shows the runs.",
    )


def _measure_set(
    source: Source,
    samples: Samples,
    temperature: float,
    draws: Draws,
    measures: list[Measure],
) -> MeasureSet:
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
    from calift_core.predictions import read_metadata

    inner = folder / "predictions"
    paths = sorted((inner if inner.is_dir() else folder).glob("*.parquet"))
    if not paths:
        raise DataError(f"{str(folder)!r} must hold predictions files (.parquet), got none.")
    order = ("calibration", "validation", "id", "shift", "corruption")
    found = [(path, read_metadata(path)) for path in paths]
    return sorted(found, key=lambda item: (order.index(item[1].role), item[1].dataset))


def _calibration_files(folder: Path, kind: str) -> list[str]:
    from calift_core.analysis import is_perturbed

    found = [(path, m) for path, m in _files(folder) if m.role == "calibration"]
    clean = [str(path) for path, m in found if not is_perturbed(m)]
    if not clean:
        raise SpecError(
            f"{str(folder)!r} holds no predictions of an ID calibration split.",
            hint="Name a file with --fit-on; anything but that split needs --oracle.",
        )
    noisy = [str(path) for path, m in found if is_perturbed(m)]
    return clean[:1] + (noisy if kind == "tsp" else [])


def _fit(kind: str, paths: Sequence[str], *, oracle: bool) -> tuple[Calibrator, FittedCalibrator]:
    from calift_core.analysis import fit_calibrator, read_to_fit

    try:
        parts = [read_to_fit(path, n_files=len(paths)) for path in paths]
        return fit_calibrator(kind, parts, oracle=oracle)
    except LeakageError as error:
        raise LeakageError(
            error.message, hint="Pass --oracle to fit it all the same; it then counts as an oracle."
        ) from error


def _among(path: Path, paths: Sequence[str]) -> bool:
    """Whether a file is one of some files, however it is named."""
    return any(path.resolve() == Path(other).resolve() for other in paths)


def _reliability(
    scores: SampleScores,
    source: Source,
    own: _Evaluated,
    fitted: FittedCalibrator | None,
    *,
    in_sample: bool = False,
) -> Reliability:
    from calift_core import analysis

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
        **analysis.reliability_numbers(
            scores, own.binning, own.draws, smooth=analysis.smooth_curve(scores)
        ),
    )


def _slices_of_folder(
    folder: Path,
    evaluated: Callable[[Path], _Evaluated],
    where: str | None,
    min_n: int,
    offset: int,
    limit: int,
) -> SlicePage:
    from calift_core import analysis
    from calift_core.calibration import Binning

    files = [f for f in _files(folder) if f[1].role not in ("calibration", "validation")]
    nothing = _Evaluated(Binning(), analysis.DEFAULT_DRAWS, 1.0)
    first = evaluated(files[0][0]) if files else nothing
    items, n = [], 0
    for path, metadata in files[offset : offset + limit]:
        binning, draws, temperature = evaluated(path)
        samples, _, _ = _read(str(path), temperature)
        n += len(samples.scores)
        one = analysis.slice_of_set(
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


def _transfer_of_folder(
    folder: Path, kind: str, datasets: list[str], evaluated: Callable[[Path], _Evaluated]
) -> TransferMatrix:
    from calift_core import analysis
    from calift_core.calibration import Binning
    from calift_core.predictions import read_scores

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
    nothing = _Evaluated(Binning(), analysis.DEFAULT_DRAWS, 1.0)
    binning, draws, _ = evaluated(chosen[0][0]) if chosen else nothing
    notes: list[str] = []
    fits: list[tuple[Calibrator, FittedCalibrator]] = []
    seen: list[list[str]] = [[]]  # what each row was fitted on
    try:
        fitted_on = _calibration_files(folder, kind)
        fits.append(_fit(kind, fitted_on, oracle=False))
        seen.append(fitted_on)
    except SpecError as error:
        if kind == "tsp":
            raise
        notes.append(f"{error.message} Every row here is an oracle.")
    if kind != "tsp":
        fits += [_fit(kind, [str(path)], oracle=True) for path, _ in chosen]
        seen += [[str(path)] for path, _ in chosen]
    columns: list[list[TransferCell]] = []
    for path, metadata in chosen:
        every = [read_scores(path)]
        every += analysis.calibrated_scores(path, [calibrator for calibrator, _ in fits])
        numbers = [analysis.transfer_numbers(scores, binning, draws) for scores in every]
        columns.append(
            [
                TransferCell(
                    dataset=metadata.dataset,
                    role=metadata.role,
                    n=len(every[0]),
                    in_sample=_among(path, files),
                    **analysis.gains(numbers[0], one),
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


# ---- Tables for people -------------------------------------------------------------------------


def _say(shown: Table | str) -> None:
    from calift_core.cli import out

    if isinstance(shown, str):
        out.print(shown, markup=False)
    else:
        out.print(shown)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _range(interval: tuple[float, float] | None, scale: float = 100.0) -> str:
    return "–" if interval is None else f"{scale * interval[0]:.2f} … {scale * interval[1]:.2f}"


def _of(source: Source) -> str:
    where = f"{source.run_name} on {source.dataset}" if source.dataset else source.run_name
    return f"{where} ({source.role})" if source.role else where


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=index >= left)
    return table


def _show_measures(found: MeasureSet, as_json: bool, *, notes: bool = False) -> None:
    if as_json:
        _print_json(found.model_dump(mode="json"))
        return
    title = f"{_of(found.source)}, n = {found.n:,}, T = {found.temperature:g}"
    names = ["measure", "value", "floor", "floor, 95 %", "95 % interval", "debiased"]
    table = _table(title, *names, *(["reads"] if notes else []))
    if notes:
        table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
    for m in found.measures:
        fraction = m.unit == "fraction"
        value = "–" if m.value is None else _percent(m.value) if fraction else f"{m.value:.4f}"
        table.add_row(
            Text(m.title),
            value,
            _percent(m.null_mean),
            _percent(m.null_q95),
            _range(m.interval) if fraction else _range(m.interval, 1.0),
            _percent(m.debiased),
            *([Text(m.note)] if notes else []),
        )
    _say(table)
    _say("Floor: what a perfectly calibrated model would read on average, and at most 19 times in "
         "20.")  # fmt: skip


def _show_slices(page: SlicePage, as_json: bool) -> None:
    if as_json:
        _print_json(page.model_dump(mode="json"))
        return
    title = f"{_of(page.source)}, by {page.by}, T = {page.temperature:g}"
    if page.where:
        title += f", where {page.where}"
    table = _table(
        title, "slice", "n", "accuracy", "confidence", "gap", "95 %", "ECE", "floor, 95 %", "",
    )  # fmt: skip
    for s in page.items:
        verdict = "too small"
        if s.ece is not None and s.null_q95 is not None:
            verdict = "above floor" if s.ece > s.null_q95 else "not above"
        table.add_row(
            Text(s.title), f"{s.n:,}", _percent(s.accuracy), _percent(s.mean_confidence),
            f"{100 * s.gap:+.2f}", _range(s.gap_interval), _percent(s.ece),
            _percent(s.null_q95), verdict,
        )  # fmt: skip
    _say(table)
    _say(
        f"{page.n_matching:,} of {page.n:,} samples, slices {page.offset + 1 if page.items else 0} "
        f"to {page.offset + len(page.items)} of {page.total}. Gap: confidence minus accuracy. One "
        "in twenty calibrated slices is above its floor by chance."
    )


def _show_effect(effect: CalibratorEffect, as_json: bool) -> None:
    if as_json:
        _print_json(effect.model_dump(mode="json"))
        return
    c = effect.calibrator
    table = _table(
        f"{c.kind}, fitted on {_fitted_on(c)}", "", "accuracy", "confidence", "ECE", "floor",
        "95 % interval", "NLL", "Brier",
    )  # fmt: skip
    for name, d in (("before", effect.before), ("after", effect.after)):
        table.add_row(
            name, _percent(d.accuracy), _percent(d.mean_confidence), _percent(d.ece),
            "in-sample" if d.in_sample else _percent(d.null_mean),
            "–" if d.in_sample else _range(d.interval), f"{d.nll:.4f}", f"{d.brier:.4f}",
        )  # fmt: skip
    _say(table)
    before, after = effect.before, effect.after
    _say(
        f"Taken off by it: NLL {before.nll - after.nll:+.4f}, Brier "
        f"{before.brier - after.brier:+.4f}. {_PROPER}"
    )
    if after.in_sample:
        _say(_IN_SAMPLE)
    if "temperature" in c.parameters:
        _say(f"T = {c.parameters['temperature']:.4f}")
    if c.oracle:
        _say(_ORACLE)


_PROPER = "Judge a calibrator by these two: an ECE also falls where confidence says less."
_IN_SAMPLE = (
    "in-sample: fitted on the very samples it is shown on. Its error reads too low, about 0 after "
    "isotonic or histogram, so that floor and interval do not hold."
)
_ORACLE = (
    "oracle: fitted on data other than the ID calibration split, which nobody has before the shift."
)


def _fitted_on(c: FittedCalibrator) -> str:
    return f"{c.fitted_on.dataset} (n = {c.fitted_on.n:,}){', ORACLE' if c.oracle else ''}"


def _show_transfer(matrix: TransferMatrix, as_json: bool) -> None:
    if as_json:
        _print_json(matrix.model_dump(mode="json"))
        return
    datasets = [cell.dataset for cell in matrix.rows[0].cells]
    name = matrix.source.run_name
    shown: tuple[tuple[str, Callable[[TransferCell], str]], ...] = (
        ("ECE (floor)", lambda c: f"{_percent(c.ece)} "
         f"({'in-sample' if c.in_sample else f'{100 * c.null_mean:.2f}'})"),
        ("NLL (taken off)", lambda c: f"{c.nll:.4f} ({c.nll_gain:+.4f})"),
        ("Brier (taken off)", lambda c: f"{c.brier:.4f} ({c.brier_gain:+.4f})"),
    )  # fmt: skip
    for title, say in shown:
        table = _table(
            f"{matrix.kind}: {title} of {name}, fitted on the row, tested on the column",
            "fitted on", *datasets,
        )  # fmt: skip
        for row in matrix.rows:
            fitted = "nothing" if row.calibrator is None else _fitted_on(row.calibrator)
            table.add_row(Text(fitted), *(say(cell) for cell in row.cells))
        _say(table)
    _say(_PROPER)
    if any(cell.in_sample for row in matrix.rows for cell in row.cells):
        _say(_IN_SAMPLE)
    for note in matrix.notes:
        _say(note)
    if any(row.calibrator is not None and row.calibrator.oracle for row in matrix.rows):
        _say(_ORACLE)


def _show_budget(found: Budget, as_json: bool) -> None:
    if as_json:
        _print_json(found.model_dump(mode="json"))
        return
    kind = "in pairs, on the same samples" if found.paired else "each model on samples of its own"
    squared = found.metric == "ece"
    what = "L2 calibration error" if squared else found.metric
    _say(
        f"{_of(found.source)}: a difference of {found.difference:g} in {what} takes "
        f"{found.needed:,} samples ({kind}; level {found.level:g}, power {found.power:g})."
    )
    said = "enough" if found.enough else "too few"
    least = "none" if found.detectable is None else f"{found.detectable:.4g}"
    _say(f"There are {found.n:,}: {said}. They show a difference of {least}.")
    if found.observed is not None:
        _say(f"Observed: {found.observed:+.4g}.")
    if squared:
        _say("Two models' calibration is compared by their debiased squared L2 errors; this is how "
             "many samples that takes.")  # fmt: skip
