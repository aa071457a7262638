"""`calift analyse`: what stored predictions say, of a file on this machine or over the API.

A target that exists as a path is read here, without any service; anything else is an id that the
service is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from calift.analyse_files import (
    NormName,
    SchemeName,
    among,
    as_evaluated,
    calibration_files,
    fit,
    measure_set,
    read_samples,
    reliability_of,
    slices_of_folder,
    transfer_of_folder,
)
from calift.analyse_tables import (
    show_budget,
    show_effect,
    show_measures,
    show_slices,
    show_transfer,
)
from calift.console import JsonFlag
from calift_core.errors import DataError, ServiceError, SpecError
from calift_core.schema.wire.results import AskedBinning, CalibratorEffect, SlicePage

if TYPE_CHECKING:
    from calift_core.analysis.draws import Draws
    from calift_core.calibration import Binning
    from calift_core.client import Client

analyse_app = typer.Typer(
    no_args_is_help=True,
    help="Measures, slices, estimators and calibrators of stored predictions: of a file here "
    "or of an id of the service.",
)

_AS_EVALUATED = "as evaluated"
#: Evaluations that a hint names at most.
_MOST_TOLD = 20

Target = Annotated[
    str, typer.Argument(help="A predictions file (.parquet), or an EVALUATION_ID of the service.")
]
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
        from calift_core.analysis import measures as analysis_measures

        binning, draws, degrees = as_evaluated(Path(target), asked, temperature)
        samples, source, metadata = read_samples(target, degrees)
        extra = (
            analysis_measures.classwise_measure(target, binning, draws, temperature=degrees)
            if classwise and metadata.storage == "full"
            else None
        )
        found = measure_set(
            source,
            samples,
            degrees,
            draws,
            analysis_measures.measures_of(
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
    show_measures(found, as_json)


@analyse_app.command("audit")
def analyse_audit(
    target: Target, temperature: Temperature = None, as_json: JsonFlag = False
) -> None:
    """The same predictions under the estimators in use: why published numbers differ."""
    if _is_local(target):
        from calift_core.analysis import draws as analysis_draws
        from calift_core.analysis import measures as analysis_measures
        from calift_core.calibration import Binning

        degrees = as_evaluated(Path(target), temperature=temperature).temperature
        samples, source, metadata = read_samples(target, degrees)
        classwise = [
            analysis_measures.classwise_measure(target, binning, temperature=degrees)
            for binning in (Binning(scheme="equal_width"), Binning(scheme="equal_mass"))
            if metadata.storage == "full"
        ]
        found = measure_set(
            source,
            samples,
            degrees,
            analysis_draws.DEFAULT_DRAWS,
            analysis_measures.audit_of(samples.scores, classwise=classwise),
        )
    else:
        with _of_evaluation(target) as client:
            found = client.audit(target, temperature=temperature)
    show_measures(found, as_json, notes=True)


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
        page = slices_of_folder(
            Path(target),
            lambda path: as_evaluated(path, asked, temperature),
            where,
            min_n,
            offset,
            limit,
        )
    else:
        from calift_core.analysis import slices

        binning, draws, degrees = as_evaluated(Path(target), asked, temperature)
        samples, source, _ = read_samples(target, degrees)
        page = slices.slice_page(
            samples, source, binning, draws, by=by, where=where, sort=sort, descending=descending,
            min_n=min_n, offset=offset, limit=limit, temperature=degrees,
        )  # fmt: skip
    show_slices(page, as_json)


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
        from calift_core.analysis import calibrators

        given = given or calibration_files(Path(target).parent, kind)
        own = as_evaluated(Path(target), asked)
        calibrator, fitted = fit(kind, given, oracle=oracle)
        samples, source, _ = read_samples(target, 1.0)
        (after,) = calibrators.calibrated_scores(target, [calibrator])
        effect = CalibratorEffect(
            calibrator=fitted,
            before=reliability_of(samples.scores, source, own, None),
            after=reliability_of(after, source, own, fitted, in_sample=among(Path(target), given)),
        )
    show_effect(effect, as_json)


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
        matrix = transfer_of_folder(
            Path(target),
            kind,
            list(dataset or ()),
            lambda path: as_evaluated(path, asked),
        )
    else:
        with _client() as client:
            matrix = client.transfer(target, kind, dataset=list(dataset or ()), binning=asked)
    show_transfer(matrix, as_json)


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
        from calift_core.analysis import budget
        from calift_core.predictions.read import read_predictions, shared_samples

        samples, source, _ = read_samples(target, 1.0)
        scores, clusters, other, other_source = samples.scores, samples.clusters, None, None
        if against is not None:
            beside, other_source, _ = read_samples(against, 1.0)
            in_a, in_b = shared_samples(read_predictions(target), read_predictions(against))
            scores, other = scores.take(in_a), beside.scores.take(in_b)
            clusters = None if clusters is None else clusters[in_a]
        found = budget.budget_of(
            scores, source, metric=metric, difference=difference, against=other,
            against_source=other_source, clusters=clusters, level=level, power=power,
        )  # fmt: skip
    else:
        with _of_evaluation(target, *([against] if against else [])) as client:
            found = client.budget(
                target, difference, metric=metric, against=against, level=level, power=power
            )
    show_budget(found, as_json)


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


class Evaluated(NamedTuple):
    """How a file's numbers are made."""

    binning: Binning
    draws: Draws
    temperature: float


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
