"""`calift analyse`: what stored predictions say, of a file on this machine or over the API.

A target that exists as a path is read here, without any service; anything else is an id that the
service is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calift.commands.analyse_tables import (
    show_budget,
    show_decision,
    show_effect,
    show_ledger,
    show_measures,
    show_ood,
    show_search,
    show_slices,
    show_tags,
    show_transfer,
    write_map,
)
from calift.commands.console import JsonFlag, make_client, require_torch
from calift.commands.query_options import takes
from calift.commands.shipping import folder_of
from calift_core.errors import DataError, LeakageError, NotFoundError, ServiceError, SpecError
from calift_core.schema.wire.queries import (
    AuditQuery,
    BudgetQuery,
    CalibratorQuery,
    DecisionQuery,
    LedgerQuery,
    MetricsQuery,
    OodQuery,
    Query,
    RunSlicesQuery,
    SampleFilter,
    SamplesQuery,
    SlicesQuery,
    TransferQuery,
)
from calift_core.schema.wire.results import SamplePage, SlicePage

if TYPE_CHECKING:
    from calift_core.analysis.explorer import Explorer
    from calift_core.analysis.folder import FolderLibrary
    from calift_core.analysis.ood import OodImages
    from calift_core.client import Client

analyse_app = typer.Typer(
    no_args_is_help=True,
    help="Measures, slices, estimators and calibrators of stored predictions: of a file here "
    "or of an id of the service.",
)

#: Evaluations that a hint names at most.
_MOST_TOLD = 20

Target = Annotated[
    str, typer.Argument(help="A predictions file (.parquet), or an EVALUATION_ID of the service.")
]
RunTarget = Annotated[
    str, typer.Argument(help="A folder of predictions files (or of a run), or a RUN_ID.")
]
Initial = Annotated[
    Path | None,
    typer.Option(
        "--initial",
        help="Folder of the zero_shot run that the other began with, for calibrators that read "
        "its predictions; the service finds it by itself.",
    ),
]


@analyse_app.command("metrics")
@takes(MetricsQuery)
def analyse_metrics(target: Target, query: MetricsQuery, as_json: JsonFlag = False) -> None:
    """Every measure with its floor and interval."""
    show_measures(_of_evaluation("measures", target, query), as_json)


@analyse_app.command("audit")
@takes(AuditQuery)
def analyse_audit(target: Target, query: AuditQuery, as_json: JsonFlag = False) -> None:
    """The same predictions under the estimators in use: why published numbers differ."""
    show_measures(_of_evaluation("audit", target, query), as_json, notes=True)


@analyse_app.command("slices")
@takes(SlicesQuery)
def analyse_slices(
    target: Annotated[
        str,
        typer.Argument(
            help="A predictions file or an EVALUATION_ID; a folder of them or a RUN_ID gives one "
            "slice per data set."
        ),
    ],
    query: SlicesQuery,
    as_json: JsonFlag = False,
) -> None:
    """Calibration by class, confidence, source or data set, of samples that meet a condition."""
    of_run = RunSlicesQuery(**query.model_dump(include=set(RunSlicesQuery.model_fields)))
    if not _is_local(target):
        with make_client() as client:
            page = _slices_of_id(
                target,
                lambda: client.slices(target, query),
                lambda: client.run_slices(target, of_run),
            )
    else:
        explorer, library = _explorer()
        if Path(target).is_dir():
            page = explorer.run_slices(target, of_run)
        else:
            page = explorer.slices(library.subject(target), query)
    show_slices(page, as_json)


@analyse_app.command("calibrators")
@takes(CalibratorQuery, without=("fit_on",))
def analyse_calibrators(
    target: Target,
    query: CalibratorQuery,
    fit_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fit-on",
            help="The predictions file of the ID calibration split (for tsp: and of its perturbed "
            "copies); with --oracle any other file, or EVALUATION_ID of the same run.",
        ),
    ] = None,
    initial: Initial = None,
    as_json: JsonFlag = False,
) -> None:
    """Fit a calibrator and show the errors before and after it."""
    fit_ids = list(fit_on or ())
    if not _is_local(target):
        if len(fit_ids) > 1:
            raise SpecError(f"--fit-on takes one EVALUATION_ID of the service, got {len(fit_ids)}")
        with _evaluation_client(target, *fit_ids) as client:
            effect = client.calibrate(
                target, CalibratorQuery.of(query, {"fit_on": (*fit_ids, None)[0]})
            )
    else:
        explorer, library = _explorer(initial)
        try:
            effect = explorer.calibrate(library.subject(target), query, fit_on=fit_ids)
        except LeakageError as error:
            hint = "Pass --oracle to fit it all the same; it then counts as an oracle."
            raise LeakageError(error.message, hint=hint) from error
    show_effect(effect, as_json)


@analyse_app.command("transfer")
@takes(TransferQuery)
def analyse_transfer(
    target: RunTarget, query: TransferQuery, initial: Initial = None, as_json: JsonFlag = False
) -> None:
    """A calibrator fitted on A and tested on B, for every pair of data sets."""
    show_transfer(_of_run("transfer", target, query, initial), as_json)


@analyse_app.command("ledger")
@takes(LedgerQuery, arguments=("against",))
def analyse_ledger(target: RunTarget, query: LedgerQuery, as_json: JsonFlag = False) -> None:
    """What a run has gained and forgotten against another, data set by data set."""
    show_ledger(_of_run("ledger", target, query), as_json)


@analyse_app.command("threshold")
@takes(DecisionQuery)
def analyse_threshold(target: RunTarget, query: DecisionQuery, as_json: JsonFlag = False) -> None:
    """A confidence from which on predictions may be kept, and what that gives on every shift."""
    show_decision(_of_run("decision", target, query), as_json)


@analyse_app.command("ood", epilog="Example: calift analyse ood RUN ~/other/pictures")
@takes(OodQuery)
def analyse_ood(
    target: RunTarget,
    query: OodQuery,
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FOLDERS",
            help="Folders of other images, which need no labels: the run's model is asked here.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """How well scores tell ID images from each shift, and from folders of other images."""
    if folders:
        folder = str(folder_of(Path(target)))
        found = _explorer()[0].ood(folder, query, _encoded(folder, folders))
    else:
        found = _of_run("ood", target, query)
    show_ood(found, as_json)


def _encoded(run: str, folders: list[str]) -> dict[str, OodImages]:
    """What a run's model makes of the images below each folder."""
    require_torch()
    from calift_core.shipping.classifier import CalibratedClassifier
    from calift_core.shipping.predicting import encoded

    model = CalibratedClassifier.load(run)
    return {Path(one).name: encoded(model, one) for one in folders}


@analyse_app.command("search", epilog='Example: calift analyse search RUN "red letters on white"')
@takes(
    SamplesQuery,
    arguments=("text",),
    without=("sort", "descending", "n_bins", "scheme", "norm", "top"),
)
def analyse_search(
    target: Annotated[
        str, typer.Argument(help="A run's folder or RUN_ID; of one data set a file or its id.")
    ],
    query: SamplesQuery,
    as_json: JsonFlag = False,
) -> None:
    """Images most like a text, or with --like ID most like one of them, by the run's own towers."""
    if query.text is None and query.like is None:
        raise SpecError("a search must have a TEXT, or --like with an image's id, got neither")
    if _is_local(target):
        explorer, library = _explorer()
        path = Path(target)
        tested = library.tested(target) if path.is_dir() else [library.subject(target)]
        vector = None if query.text is None else _text_features(path, query.text)
        pages = _searched(partial(explorer.samples, s, query, text_features=vector) for s in tested)
    else:
        with make_client() as client:
            of_run = client.evaluations(run_id=[target], role=["id", "shift"], limit=200).items
            sets = of_run or [client.evaluation(target)]
            pages = _searched(partial(client.samples, one.id, query) for one in sets)
    show_search(pages, query.limit, as_json)


@analyse_app.command("tags", epilog="Example: calift analyse tags EVALUATION_ID a.jpg --add blurry")
def analyse_tags(
    target: Annotated[str, typer.Argument(help="An EVALUATION_ID of the service.")],
    images: Annotated[list[str] | None, typer.Argument(help="Ids of images to tag.")] = None,
    where: Annotated[
        str | None, typer.Option(help="Instead of ids, the images that meet a condition.")
    ] = None,
    add: Annotated[list[str] | None, typer.Option(help="Put on these images.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="Take off them.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write all tags of the data as CSV.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tags on images, which stay with the data: shown, changed, written as CSV."""
    with _evaluation_client(target) as client:
        if add or remove:
            chosen = None if images else SampleFilter.of(params={"where": where})
            if not images and where is None:
                raise SpecError("which images are meant? Name them, or say --where.")
            found = client.tag_images(
                target, images or None, where=chosen, add=add or (), remove=remove or ()
            )
        else:
            found = client.image_tags(target)
    show_tags(found, out, as_json)


@analyse_app.command("map", epilog="Example: calift analyse map EVALUATION_ID map.csv")
def analyse_map(
    target: Target,
    out: Annotated[Path, typer.Argument(help="CSV of the images with their place in the plane.")],
) -> None:
    """Image features laid out in a plane by t-SNE: near images are alike to the model."""
    if _is_local(target):
        explorer, library = _explorer()
        found = explorer.feature_map(library.subject(target))
    else:
        with _evaluation_client(target) as client:
            if client.feature_map(target).state != "ready":
                client.make_feature_map(target)
            while (found := client.feature_map(target)).state == "making":
                time.sleep(1.0)
        if found.state != "ready":
            raise DataError(f"the map was not made: {found.reason}")
    assert found is not None
    write_map(found, out)


def _searched(asks: Iterable[Callable[[], SamplePage]]) -> list[SamplePage]:
    """Those of the data sets that can be searched: not all have features, or the image."""
    pages, missing = [], None
    for ask in asks:
        try:
            pages.append(ask())
        except (NotFoundError, ServiceError) as error:
            if getattr(error, "status", 404) != 404:
                raise
            missing = error
    if missing is not None and not pages:
        raise missing
    return pages


def _text_features(path: Path, text: str) -> Any:
    """By the model of the run that a folder or a file in it is of."""
    require_torch()
    from calift_core.shipping.classifier import CalibratedClassifier

    folder = path if path.is_dir() else path.resolve().parent.parent
    return CalibratedClassifier.load(folder).encode_text(text)


@analyse_app.command("budget")
@takes(BudgetQuery)
def analyse_budget(target: Target, query: BudgetQuery, as_json: JsonFlag = False) -> None:
    """How many samples a difference needs."""
    others = [query.against] if query.against else []
    show_budget(_of_evaluation("budget", target, query, *others), as_json)


# ---- Files here, or a service ------------------------------------------------------------------


def _of_evaluation(question: str, target: str, query: Query, *others: str) -> Any:
    """The answer to a question that explorer and client know by one name."""
    if _is_local(target):
        explorer, library = _explorer()
        return getattr(explorer, question)(library.subject(target), query)
    with _evaluation_client(target, *others) as client:
        return getattr(client, question)(target, query)


def _of_run(question: str, target: str, query: Query, initial: Path | None = None) -> Any:
    """The same, asked of a run or of a folder."""
    if _is_local(target):
        return getattr(_explorer(initial)[0], question)(target, query)
    with make_client() as client:
        return getattr(client, question)(target, query)


def _explorer(initial: Path | None = None) -> tuple[Explorer, FolderLibrary]:
    """Of files on this machine."""
    from calift_core.analysis.explorer import Explorer
    from calift_core.analysis.folder import FolderLibrary

    library = FolderLibrary(initial)
    return Explorer(library), library


@contextmanager
def _evaluation_client(*targets: str) -> Iterator[Client]:
    """A client for a question about evaluations; who names a run is told the evaluations it has."""
    with make_client() as client:
        try:
            yield client
        except ServiceError as error:
            if error.status != 404:
                raise
            for target in targets:
                found = client.evaluations(run_id=[target], limit=_MOST_TOLD)
                if found.items:
                    evaluations = ", ".join(f"{e.id} ({e.dataset})" for e in found.items)
                    raise DataError(
                        f"{target!r} is a run, and this is asked of one of its evaluations.",
                        hint=f"It has {evaluations}{' and more' if found.next_cursor else ''}.",
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
