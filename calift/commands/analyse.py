"""`calift analyse`: what stored predictions say, of a file on this machine or over the API.

A target that exists as a path is read here, without any service; anything else is an id that the
service is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from calift.commands.analyse_tables import (
    show_budget,
    show_decision,
    show_effect,
    show_ledger,
    show_measures,
    show_slices,
    show_transfer,
)
from calift.commands.console import JsonFlag
from calift_core.errors import DataError, LeakageError, ServiceError, SpecError
from calift_core.schema.wire.results import AskedBinning, SlicePage

if TYPE_CHECKING:
    from calift_core.analysis.explorer import Explorer
    from calift_core.analysis.folder import FolderLibrary
    from calift_core.client import Client

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
        "--temperature",
        min=0.01,
        max=100,
        help="Number that the logits are divided by before anything is measured.",
        show_default=_AS_EVALUATED,
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        "--where", help="A condition: 'confidence >= 0.9 and not correct and label in (3, 5)'."
    ),
]
Kind = Annotated[
    str,
    typer.Option(
        "--kind",
        help="temperature, ets, vector, svs, sms, histogram, isotonic, tsp; or disagreement, "
        "cautious, sals, ensemble, which read the initial model's predictions too.",
    ),
]
Initial = Annotated[
    Path | None,
    typer.Option(
        "--initial",
        help="Folder of the zero_shot run that the other began with, for calibrators that read "
        "its predictions; the service finds it by itself.",
    ),
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
    how: dict[str, Any] = {"temperature": temperature, "classwise": classwise}
    if _is_local(target):
        explorer, library = _explorer()
        found = explorer.measures(library.subject(target), asked, **how)
    else:
        with _evaluation_client(target) as client:
            found = client.measures(target, binning=asked, **how)
    show_measures(found, as_json)


@analyse_app.command("audit")
def analyse_audit(
    target: Target, temperature: Temperature = None, as_json: JsonFlag = False
) -> None:
    """The same predictions under the estimators in use: why published numbers differ."""
    if _is_local(target):
        explorer, library = _explorer()
        found = explorer.audit(library.subject(target), temperature=temperature)
    else:
        with _evaluation_client(target) as client:
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
        Literal["all", "class", "predicted", "confusion", "confidence", "cluster"],
        typer.Option(help="What makes a slice of one data set."),
    ] = "class",
    where: Where = None,
    sort: Annotated[
        Literal["key", "n", "accuracy", "gap", "ece"], typer.Option(help="Order of the slices.")
    ] = "key",
    descending: Annotated[bool, typer.Option("--descending", help="Largest first.")] = False,
    min_n: Annotated[
        int, typer.Option("--min-n", min=10, help="A slice with fewer samples gets no ECE.")
    ] = 30,
    n_bins: Bins = None,
    scheme: SchemeOption = None,
    norm: NormOption = "l1",
    temperature: Temperature = None,
    offset: Annotated[
        int,
        typer.Option(min=0, help="How many slices to skip, to read on where the last page ended."),
    ] = 0,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many slices to show.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """Calibration by class, confidence, source or data set, of samples that meet a condition."""
    asked = AskedBinning(n_bins=n_bins, scheme=scheme, norm=norm)
    of_run: dict[str, Any] = {
        "where": where, "min_n": min_n, "temperature": temperature, "offset": offset,
        "limit": limit,
    }  # fmt: skip
    of_one = of_run | {"by": by, "sort": sort, "descending": descending}
    if not _is_local(target):
        with _client() as client:
            page = _slices_of_id(
                target,
                lambda: client.slices(target, binning=asked, **of_one),
                lambda: client.run_slices(target, binning=asked, **of_run),
            )
    else:
        explorer, library = _explorer()
        if Path(target).is_dir():
            page = explorer.run_slices(target, asked, **of_run)
        else:
            page = explorer.slices(library.subject(target), asked, **of_one)
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
    initial: Initial = None,
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
        with _evaluation_client(target, *given) as client:
            effect = client.calibrate(
                target, kind, fit_on=given[0] if given else None, oracle=oracle, binning=asked
            )
    else:
        explorer, library = _explorer(initial)
        try:
            effect = explorer.calibrate(
                library.subject(target), kind, asked, fit_on=given, oracle=oracle
            )
        except LeakageError as error:
            hint = "Pass --oracle to fit it all the same; it then counts as an oracle."
            raise LeakageError(error.message, hint=hint) from error
    show_effect(effect, as_json)


@analyse_app.command("transfer")
def analyse_transfer(
    target: Annotated[
        str, typer.Argument(help="A folder of predictions files (or of a run), or a RUN_ID.")
    ],
    kind: Kind = "temperature",
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            help="Names of the data sets to take; without any: the ID data and the shifts.",
        ),
    ] = None,
    initial: Initial = None,
    n_bins: Bins = None,
    scheme: SchemeOption = None,
    norm: NormOption = "l1",
    as_json: JsonFlag = False,
) -> None:
    """A calibrator fitted on A and tested on B, for every pair of data sets."""
    asked = AskedBinning(n_bins=n_bins, scheme=scheme, norm=norm)
    named = list(dataset or ())
    if _is_local(target):
        matrix = _explorer(initial)[0].transfer(target, kind, asked, datasets=named)
    else:
        with _client() as client:
            matrix = client.transfer(target, kind, dataset=named, binning=asked)
    show_transfer(matrix, as_json)


@analyse_app.command("ledger")
def analyse_ledger(
    target: Annotated[
        str, typer.Argument(help="A folder of predictions files (or of a run), or a RUN_ID.")
    ],
    against: Annotated[str, typer.Argument(help="The same of another run, such as zero-shot.")],
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="Names of data sets; without any: all.")
    ] = None,
    step: Annotated[
        float, typer.Option(min=0, max=1, help="A confidence that moved by no more has not moved.")
    ] = 0.1,
    as_json: JsonFlag = False,
) -> None:
    """What a run has gained and forgotten against another, data set by data set."""
    named = list(dataset or ())
    if _is_local(target):
        found = _explorer()[0].ledger(target, against, datasets=named, step=step)
    else:
        with _client() as client:
            found = client.ledger(target, against, datasets=named, step=step)
    show_ledger(found, as_json)


@analyse_app.command("threshold")
def analyse_threshold(
    target: Annotated[
        str, typer.Argument(help="A folder of predictions files (or of a run), or a RUN_ID.")
    ],
    risk: Annotated[
        float, typer.Option(help="Largest share of errors among what is kept: 0.05 is 5 %.")
    ] = 0.05,
    level: Annotated[float, typer.Option(help="How often the promise holds.")] = 0.95,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="Names of data sets; without any: all.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """A confidence from which on predictions may be kept, and what that gives on every shift."""
    named = list(dataset or ())
    if _is_local(target):
        found = _explorer()[0].decide(target, risk=risk, level=level, datasets=named)
    else:
        with _client() as client:
            found = client.decision(target, risk=risk, level=level, datasets=named)
    show_decision(found, as_json)


@analyse_app.command("budget")
def analyse_budget(
    target: Target,
    difference: Annotated[
        float, typer.Option(help="Difference to be shown, in the metric's unit: 0.01 is one point.")
    ],
    metric: Annotated[
        Literal["accuracy", "ece", "nll", "brier", "confidence"], typer.Option()
    ] = "ece",
    against: Annotated[
        str | None,
        typer.Option(help="Another model's predictions of the same samples, file or id."),
    ] = None,
    level: Annotated[float, typer.Option(help="Significance level of the two-sided test.")] = 0.95,
    power: Annotated[
        float,
        typer.Option(help="Power: how often the difference should be found where it is real."),
    ] = 0.8,
    as_json: JsonFlag = False,
) -> None:
    """How many samples a difference needs."""
    how: dict[str, Any] = {"metric": metric, "level": level, "power": power}
    if _is_local(target):
        explorer, library = _explorer()
        other = library.subject(against) if against is not None else None
        found = explorer.budget(
            library.subject(target), difference=difference, against=other, **how
        )
    else:
        with _evaluation_client(target, *([against] if against else [])) as client:
            found = client.budget(target, difference, against=against, **how)
    show_budget(found, as_json)


# ---- Files here, or a service ------------------------------------------------------------------


def _explorer(initial: Path | None = None) -> tuple[Explorer, FolderLibrary]:
    """Of files on this machine."""
    from calift_core.analysis.explorer import Explorer
    from calift_core.analysis.folder import FolderLibrary

    library = FolderLibrary(initial)
    return Explorer(library), library


def _client() -> Client:
    from calift_core.client import Client

    return Client()


@contextmanager
def _evaluation_client(*targets: str) -> Iterator[Client]:
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
