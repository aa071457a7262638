"""`calift watch`: images without labels."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from calift.commands.console import JsonFlag, err, out, percent, print_json, require_torch
from calift.commands.local import stop_on_signal
from calift.commands.shipping import ModelFolder, folder_of, paths_with_notes, progress_bar

if TYPE_CHECKING:
    from calift_core.schema.unlabelled import FollowedBatch, Watched
    from calift_core.webhook import Webhook


def watch(
    model: ModelFolder,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Image files, folders, manifests, or -."),
    ],
    page: Annotated[
        Path | None, typer.Option("--out", help="Write an HTML page that stands alone.")
    ] = None,
    fail_below: Annotated[
        float | None,
        typer.Option(
            help="Exit status 3 where the expected accuracy is below this fraction, or unknown."
        ),
    ] = None,
    fail_on_drift: Annotated[
        float | None,
        typer.Option(min=0.001, help="Exit status 3 where the drift's p-value is below this."),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Go on: compare images as they arrive, a batch at a time, until Ctrl-C.",
        ),
    ] = False,
    batch: Annotated[int, typer.Option(min=20, help="Images that make a batch of --follow.")] = 200,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks of --follow.")] = 10,
    log: Annotated[
        Path | None,
        typer.Option(help="A line of JSON for each batch of --follow; goes on where it stopped."),
    ] = None,
    notify: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Address that alarms of --follow are sent to, signed with CALIFT_WEBHOOK_SECRET, "
            "in Slack's form where CALIFT_WEBHOOK_FORM=slack.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Say how right a model is likely to be on images without labels, and whether they drifted.

    Each way of estimating stands beside its own error on the shifts that the run was tested on.
    Images that are further off than those, or unlike them, have an unknown accuracy.
    """
    require_torch()
    from calift_core.files import atomic_write_bytes
    from calift_core.shipping import following, watching
    from calift_core.shipping.classifier import CalibratedClassifier
    from calift_core.shipping.reference import read_reference

    model = folder_of(model)
    title = f"{model.name} on {', '.join(images)[:80]}"
    if follow:
        _follow(
            model, images, page, title, device, as_json,
            batch=batch, log=log, fail_below=fail_below,
            fail_on_drift=following.FALSE_ALARMS if fail_on_drift is None else fail_on_drift,
            every=every, notify=notify,
        )  # fmt: skip
        return
    paths = paths_with_notes(images)
    reference = read_reference(model)
    classifier = CalibratedClassifier.load(model, device=device)
    with stop_on_signal() as stop, progress_bar(len(paths)) as done:
        found = watching.watch(classifier, reference, paths, on_progress=done, stop=stop)
    if page is not None:
        atomic_write_bytes(page, watching.report_html(found, title).encode())
    if as_json:
        print_json(found)
    else:
        _show_watched(found)
        if page is not None:
            out.print(f"The page is {page}.", markup=False)
    if alarms := following.alarms_of(found, fail_below, fail_on_drift):
        err.print("alarm: " + " and ".join(alarms), markup=False)
        raise typer.Exit(3)


def _follow(
    model: Path,
    images: list[str],
    page: Path | None,
    title: str,
    device: str,
    as_json: bool,
    *,
    log: Path | None,
    every: float,
    notify: str | None,
    **options: Any,
) -> None:
    """Compare what arrives until a signal; a line a batch, the page written anew after each."""
    from calift_core.errors import DataError
    from calift_core.files import atomic_write_bytes
    from calift_core.shipping import following
    from calift_core.shipping.classifier import CalibratedClassifier
    from calift_core.shipping.predicting import image_paths
    from calift_core.shipping.reference import read_reference

    webhook = None if notify is None else _webhook(notify)
    for place in images:
        if not Path(place).is_dir():
            raise DataError(f"--follow needs folders that images arrive in, {place!r} is none.")

    def arrived() -> list[str]:
        """Files that nobody has written to for two seconds, the oldest first."""
        try:
            paths = image_paths(images)
        except DataError:
            return []  # none yet
        ages = {path: os.stat(path).st_mtime for path in paths if os.path.exists(path)}
        return sorted((p for p, at in ages.items() if at < time.time() - 2), key=ages.__getitem__)

    batches = following.read_log(log) if log is not None else []
    reference, classifier = read_reference(model), CalibratedClassifier.load(model, device=device)
    err.print(f"Following {', '.join(images)}; Ctrl-C ends it.", markup=False)
    with stop_on_signal("Stopping after this batch.") as stop:

        def wait() -> bool:
            until = time.monotonic() + every
            while not stop() and time.monotonic() < until:
                time.sleep(min(0.2, every))
            return not stop()

        found = following.follow(classifier, reference, arrived, log=log, wait=wait, **options)
        for one in found:
            batches.append(one)
            if as_json:
                out.print(one.model_dump_json(), markup=False, soft_wrap=True)
            else:
                out.print(one.line, markup=False, soft_wrap=True)
            if page is not None:
                atomic_write_bytes(page, following.chart_html(batches, title).encode())
            if webhook is not None and one.alarms:
                _send_alarm(webhook, title, one)


def _webhook(url: str) -> Webhook:
    from calift_core.errors import SpecError
    from calift_core.webhook import Webhook

    form: Any = os.environ.get("CALIFT_WEBHOOK_FORM", "json")
    if form not in ("json", "slack"):
        raise SpecError(f"CALIFT_WEBHOOK_FORM must be json or slack, got {form!r}")
    return Webhook(url, os.environ.get("CALIFT_WEBHOOK_SECRET", ""), form, private=True)


def _send_alarm(webhook: Webhook, title: str, batch: FollowedBatch) -> None:
    from calift_core.webhook import Event, WebhookError, deliver

    at = batch.at.timestamp()
    data = batch.model_dump(mode="json", exclude={"images"})
    event = Event(f"calift-watch-{at:.0f}", "watch.alarm", at, f"{title}: {batch.line}", data)
    try:
        deliver(webhook, event, now=time.time())
    except WebhookError as error:
        err.print(f"the alarm was not sent: {error.message}", markup=False)


def _show_watched(found: Watched) -> None:
    out.print(f"{found.sentence} No measurement: labels of a few hundred would be.", markup=False)
    title = None if found.unknown is None else "not to be used, see above"
    table = Table("estimator", "expected", "95 %", "mean error on labelled shifts", title=title)
    for one in found.expected:
        mark = " ←" if one.estimator == found.recommended and found.unknown is None else ""
        error = "–" if one.mean_error is None else f"{100 * one.mean_error:.1f} points"
        ends = f"{100 * one.low:.1f} – {100 * one.high:.1f}"
        table.add_row(one.estimator.replace("_", " ") + mark, percent(one.value), ends, error)
    out.print(table)
    out.print(found.evidence, markup=False)
    for image in found.unusual[:3]:
        phrase = f"unusual: {image.path} ({image.label}, {percent(image.confidence)})"
        out.print(phrase, markup=False)
    if found.unreadable:
        err.print(f"{len(found.unreadable):,} images could not be read.", markup=False)
