"""`calift calibrate`, `export`, `push`, `predict`, `serve`: from a run to answers."""

import importlib.util
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from calift.commands.console import (
    JsonFlag,
    err,
    make_client,
    out,
    percent,
    print_json,
    require_torch,
)
from calift.commands.local import stop_on_signal
from calift_core.errors import SpecError
from calift_core.home import calift_home
from calift_core.installed import install_extra
from calift_core.words import nats

RunFolder = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A finished run: its folder, or its id at the service."),
]
ModelFolder = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="An exported folder, or a run: its folder or its id."),
]
#: Ids as the service makes them.
_RUN_ID = re.compile(r"[0-9a-f]{12}")
FORMATS = ("open_clip", "onnx")


def folder_of(source: Path) -> Path:
    """The folder itself; of the id of a run of the service, one with the run's files.

    They are fetched to `CALIFT_HOME/fetched` and stay there, with the calibrator that is chosen.
    """
    if source.exists() or not _RUN_ID.fullmatch(str(source)):
        return source
    with make_client() as client:
        return client.download_run(
            str(source),
            calift_home() / "fetched" / source,
            lambda one: err.print(
                f"fetching {one.name}, {one.size_bytes:,} bytes", markup=False, style="dim"
            ),
        )


def calibrate(
    run: RunFolder,
    kind: Annotated[
        str,
        typer.Option(
            "--with",
            help="auto, none, temperature, ets, svs, vector, sms, histogram, isotonic, tsp for "
            "runs with perturbed calibration copies; disagreement, cautious, sals, ensemble with "
            "--initial.",
        ),
    ] = "auto",
    initial: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="The zero-shot run of the model that RUN started from: two towers are shipped.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Choose the calibrator that a run is exported and used with.

    It is fitted on the run's ID calibration part. auto takes the simplest one within a standard
    error of the lowest negative log likelihood on the ID validation part, none included; where
    images are few it takes temperature or none, and says so. With --initial it is the
    ensemble of both models.
    """
    from calift_core.recommendation import RECOMMENDED
    from calift_core.shipping.choosing import choose_calibrator, save_choice

    folder = folder_of(run)
    if initial is not None:
        require_torch()
    first = None if initial is None else folder_of(initial)
    choice = choose_calibrator(folder, kind, initial=first)
    path = save_choice(folder, choice, initial=first)
    if as_json:
        print_json(choice)
        return
    if choice.chosen_on is not None:
        table = Table(
            "calibrator", "NLL", "Brier", "ECE", title=f"{choice.chosen_on.dataset}, "
            f"{choice.chosen_on.n:,} images", title_justify="left"
        )  # fmt: skip
        for one in choice.candidates:
            mark = " ←" if one.kind == choice.kind else ""
            table.add_row(one.kind + mark, nats(one.nll), f"{one.brier:.3f}", percent(one.ece))
        out.print(table)
    for note in choice.notes:
        err.print(note, markup=False)
    on = choice.fitted_on
    phrase = (
        "The model's own probabilities are used"
        + (": no calibrator was better." if len(choice.candidates) > 1 else ".")
        if choice.kind == "none"
        else f"{choice.kind}, fitted on {on.n:,} images of {on.dataset}."
    )
    out.print(f"{phrase} It is in {path}.", markup=False)
    if kind == "auto" and initial is None:
        err.print(
            f"Fitted on ID images alone. Where data may shift: {RECOMMENDED.recipe} (--with "
            f"{RECOMMENDED.calibrator}; --initial ZERO_SHOT_RUN) {RECOMMENDED.evidence} "
            f"{RECOMMENDED.limits}",
            markup=False,
        )


def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="New folder for the model.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="open_clip, or onnx for a graph from pixels to calibrated probabilities as well.",
        ),
    ] = "open_clip",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an exported model that is there.")
    ] = False,
    license: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The model's licence for its card, as a hub writes it: mit, apache-2.0, other.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a run as a folder that stands alone: model, head, calibrator and model card.

    open_clip loads it by local-dir:FOLDER. The calibrator is that of `calift calibrate`; without
    one the probabilities are the model's own.
    """
    if form not in FORMATS:
        raise SpecError(f"--format must be one of {', '.join(FORMATS)}, got {form!r}")
    require_torch()
    from calift_core.shipping.export import export_run

    def on_message(message: str) -> None:
        err.print(message, markup=False, style="dim")

    shipped = export_run(
        folder_of(run),
        folder,
        onnx=form == "onnx",
        overwrite=overwrite,
        license=license,
        on_message=on_message,
    )
    if as_json:
        print_json(shipped.exported)
        return
    if shipped.exported.choice is None:
        err.print(
            f"There is no calibrator: `calift calibrate {run}` chooses one, then export again.",
            markup=False,
        )
    for note in shipped.notes:
        err.print(note, markup=False)
    out.print(f"The model is in {folder}; README.md there is its card.", markup=False)


def to_hub(folder: Path, repository: str, *, public: bool, yes: bool, as_json: bool) -> None:
    """Say what of an exported model would be sent to the hub, and send it with `yes`."""
    require_torch()
    from calift_core.shipping.push import prepare_upload
    from calift_core.shipping.push import push as send

    what = prepare_upload(folder, repository, private=not public)
    if as_json:
        body = {"repository": repository, "private": what.private, "endpoint": what.endpoint}
        print_json({**body, "files": what.files, "bytes": what.size, "kept": what.kept})
    else:
        seen = "seen by its owner alone" if what.private else "seen by everybody"
        table = Table("file", "bytes", title_justify="left",
                      title=f"{what.endpoint}/{repository}, {seen}")  # fmt: skip
        for name, size in what.files.items():
            table.add_row(name, f"{size:,}")
        table.add_row(f"{len(what.files)} files", f"{what.size:,}")
        out.print(table)
        for name in what.kept:
            out.print(f"{name} is not of the export and stays here.", markup=False)
    if not yes:
        err.print("Nothing was sent; --yes sends it.", markup=False)
        return
    url = send(what)
    err.print(f"It is at {url}.", markup=False)


def predict(
    model: ModelFolder,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Image files, folders, manifests (CSV, Parquet, JSON lines), or - for a path a "
            "line.",
        ),
    ],
    file: Annotated[
        Path | None,
        typer.Option("--out", help="Write .parquet, .csv or .jsonl; goes on where it was stopped."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Likeliest classes to tell of each image.")] = 5,
    errors: Annotated[
        float | None,
        typer.Option(
            help="Say which answers are kept if at most this share of them may be wrong: 0.01, "
            "0.02, 0.05 or 0.1."
        ),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(help="Give each image the set of classes that holds the true one: 0.9, 0.95."),
    ] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(
            help="Say which images are none of the classes, wrongly so of this share of images "
            "like the ID data: 0.01, 0.05 or 0.1."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Say what a model sees in images, with calibrated probabilities.

    Exit status 1 if an image could not be read; all others are answered.
    """
    require_torch()
    from calift_core.shipping.classifier import CalibratedClassifier
    from calift_core.shipping.predicting import AnswerFile, predict_files

    model, paths = folder_of(model), paths_with_notes(images)
    classifier = CalibratedClassifier.load(model, device=device)
    if errors is not None and (why := classifier.promised().why_not(errors)):
        err.print(why, markup=False)
    if false_alarms is not None and (why := classifier.tells_unlike().why_not(false_alarms)):
        err.print(why, markup=False)
    for note in classifier.notes:
        err.print(f"calibrator: {note}", markup=False)
    target = (
        None
        if file is None
        else AnswerFile(
            file, (str(model.resolve()), str((top, errors, coverage, false_alarms)), *paths)
        )
    )
    known = [] if target is None else target.rows()[: len(paths)]
    if known:
        err.print(f"Going on behind {len(known):,} of {len(paths):,} images.", markup=False)
    n_wrong = 0
    with stop_on_signal() as stop:
        batches = predict_files(
            classifier,
            paths,
            top=top,
            errors=errors,
            coverage=coverage,
            false_alarms=false_alarms,
            done=len(known),
            batch_size=batch_size,
            stop=stop,
        )
        shown = _with_progress(batches, len(paths), len(known))
        if target is not None:
            rows = target.write(known, shown)
            n_wrong = sum(row["error"] is not None for row in rows)
            err.print(f"{len(rows):,} answers are in {file}.", markup=False)
        else:
            for batch in shown:
                n_wrong += sum(row["error"] is not None for row in batch)
                _say(batch, as_json)
    if n_wrong:
        err.print(f"{n_wrong:,} of {len(paths):,} images could not be read.", markup=False)
        raise typer.Exit(1)


def paths_with_notes(images: Sequence[str]) -> list[str]:
    """The image files that are meant; what is passed over is told."""
    from calift_core.data.listing import SkippedFiles
    from calift_core.shipping.predicting import image_paths

    skipped = SkippedFiles()
    paths = image_paths(images, skipped=skipped)
    for note in skipped.notes:
        err.print(note, markup=False)
    return paths


def _say(rows: Iterable[dict[str, Any]], as_json: bool) -> None:
    import json

    for row in rows:
        if as_json:
            typer.echo(json.dumps(row, ensure_ascii=False))
        elif row["error"] is not None:
            err.print(row["error"], markup=False)
        else:
            kept = {True: "kept", False: "not kept", None: "not promised"}
            more = [kept[row["kept"]]] if "kept" in row else []
            more += [", ".join(row["set"])] if "set" in row else []
            more += ["none of these"] if row.get("none_of_these") else []
            typer.echo("\t".join([row["path"], row["label"], f"{row['confidence']:.4f}", *more]))


def _with_progress(
    batches: Iterator[list[dict[str, Any]]], total: int, done: int
) -> Iterator[list[dict[str, Any]]]:
    """The same batches, with a bar on a terminal's error stream."""
    with progress_bar(total, done) as tell:
        for batch in batches:
            yield batch
            done += len(batch)
            tell(done)


@contextmanager
def progress_bar(total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's error stream; gives what is told how many are done."""
    count = TextColumn("{task.completed:,} of {task.total:,}")
    columns = (count, BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task("", total=total, completed=done)
        yield lambda now: bars.update(task, completed=now)


def serve(
    model: ModelFolder,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes a free one.")
    ] = 8080,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that hold the model, each with a copy.")
    ] = 1,
    decoders: Annotated[int, typer.Option(min=1, help="Processes that decode images.")] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="CALIFT_SERVE_TOKEN",
            help="What requests must carry as Authorization: Bearer; best set in the environment.",
        ),
    ] = None,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Megabytes of one image's file.")] = 20,
    max_pixels: Annotated[
        int, typer.Option(min=1, max=100_000_000, help="Pixels of one image.")
    ] = 50_000_000,
) -> None:
    """Answer over HTTP: POST an image to /predict, get labels with calibrated probabilities.

    Requests that come at once share a pass. Nothing is fetched; /docs describes it.
    """
    require_torch()
    if importlib.util.find_spec("fastapi") is None:
        raise SpecError(
            "serving needs fastapi, which is not installed.", hint=install_extra("serve")
        )
    import uvicorn

    from calift.serving.app import Limits, Server, make_app

    if host not in ("127.0.0.1", "localhost", "::1") and not token:
        raise SpecError(
            f"--host {host} lets others in, and there is no token for them.",
            hint="Set CALIFT_SERVE_TOKEN.",
        )
    listener = _listener(host, port)  # before the model is loaded, which takes its time
    limits = Limits(image_bytes=int(max_mb * 1_000_000), pixels=max_pixels)
    server = Server(
        folder_of(model), device=device, workers=workers, decoders=decoders, limits=limits
    )
    config = uvicorn.Config(make_app(server, token), log_level="warning", http="h11")
    with listener:
        at = f"[{host}]" if ":" in host else host
        err.print(f"http://{at}:{listener.getsockname()[1]} answers once the model is loaded.")
        uvicorn.Server(config).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    listener = None
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise SpecError(
            f"--host {host} --port {port} cannot be listened on: {error.strerror}.",
            hint="--port 0 takes a free one.",
        ) from None
    return listener
