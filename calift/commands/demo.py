"""`calift demo`: the whole path on real data, through the real service.

A run is used again only if its spec, the source that decides its numbers, the images and the
weights that it starts from are the very same: each is part of a key that the run carries as a tag.
So old and new results never stand in one table.
"""

import ast
import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

from rich.table import Table

import calift_core
from calift.commands.console import err, out, percent, sigma_text
from calift.commands.demo_story import DemoModel, DemoRow, read_models, sentences, table_rows
from calift.commands.service import follow_runs
from calift.commands.stack import dashboard_link
from calift_core import __version__
from calift_core.client import Client
from calift_core.errors import CaliftError
from calift_core.home import calift_home
from calift_core.schema.spec import RunSpec, parse_spec
from calift_core.schema.wire.runs import RunDetail
from calift_core.threads import usable_cores
from calift_core.words import nats

#: One rate for both; a study chooses each method's own on ID validation.
RATES = {"flyp": 3e-4, "carot": 3e-4}

#: One model more, of two at use (calibrated ensemble, Kumar 2022): name, its run, the calibrator.
RECIPE = ("FLYP + zero-shot ensemble", "FLYP", "ensemble")

NOTE = (
    "calift-tiny on typefaces, one seed, stated as one seed: intervals are over families of fonts, "
    "not over trainings. Fine-tuning sees sans-serif fonts alone. ID: sans-serif fonts that no "
    "part of training has seen; shift: the mean of serif, monospaced, handwritten, blackletter, "
    "decorative and pixel fonts. ECE: top label, 15 equal-mass bins, whole test set; in brackets "
    "its floor, what a perfectly calibrated model would show at this n. The last row is the mean "
    "of FLYP's and zero-shot's probabilities, each after a temperature fitted on ID calibration "
    "images. What several seeds say stands in docs/results.md."
)

#: The shift whose reliability diagram is drawn, named before any number was seen.
DIAGRAM = "display"


def demo_specs() -> list[RunSpec]:
    """Zero-shot, FLYP and CaRot on typefaces."""
    named = {"zero_shot": "Zero-shot", "flyp": "FLYP", "carot": "CaRot"}
    return [
        parse_spec(
            {
                "name": label,
                "model": {"name": "calift-tiny", "pretrained": "typefaces"},
                "method": {"kind": kind},
                "suite": {"id": "typefaces"},
                "train": {
                    "epochs": 2,
                    "keep_features": 500,  # enough to look at, and seconds less a run
                    "batch_size": 64,
                    "lr": RATES.get(kind),
                    "crop_scale": [1.0, 1.0],  # the letters are of all sizes already
                    "seed": 0,
                },
            }
        )
        for kind, label in named.items()
    ]


def path_spec(flyp: str, like: RunSpec) -> RunSpec:
    """The one-standard-error weight path of the finished FLYP run; nothing is trained for it."""
    method = {"kind": "wise_ft", "choose": "one_se", "alpha": 1.0, "sweep": [], "run": flyp}
    return parse_spec(like.model_dump(mode="json") | {"name": "FLYP path", "method": method})


#: Libraries whose arithmetic is in every number.
_LIBRARIES = ("torch", "torchvision", "open_clip_torch", "numpy", "scipy", "pillow")


def source_key(root: Path | None = None) -> str:
    """Hash of the source that decides a run's numbers, and of the libraries behind it.

    That is what a runner can load: `calift_core.jobs` and what it imports, inside functions too,
    and the data files beside them. Comments, docstrings and layout do not count.

    Args:
        root: the folder of `calift_core`; none: that of the installed one.
    """
    root = root or Path(calift_core.__file__).parent
    digest = hashlib.sha256(__version__.encode())
    for library in _LIBRARIES:
        digest.update(f"{library} {metadata.version(library)}\n".encode())
    for path, tree in sorted(deciding_files(root).items()):
        digest.update(f"{path.relative_to(root).as_posix()}\n{ast.dump(tree)}\n".encode())
    for path in sorted(root.rglob("*.json")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


#: Imported for the names of what the API answers; no number comes from there.
_ANSWERS = "schema.wire"


def deciding_files(root: Path) -> dict[Path, ast.Module]:
    """The files that `calift_core.jobs` imports, itself among them, without their docstrings."""
    found: dict[Path, ast.Module] = {}
    names = ["jobs.__main__"]
    while names:
        name = names.pop()
        if name.startswith(_ANSWERS):
            continue
        # A module's packages are run before it.
        names += {name.rpartition(".")[0]} - {"", name}
        folder = root.joinpath(*name.split("."))
        for path in (folder.with_suffix(".py"), folder / "__init__.py"):
            if path not in found and path.is_file():
                found[path] = tree = ast.parse(path.read_text(encoding="utf-8"))
                names += _imports(tree)
                _drop_docstrings(tree)
    return found


def _imports(tree: ast.Module) -> Iterator[str]:
    """Names within `calift_core` that a file imports; some of them are not modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (n.removeprefix("calift_core.") for n in names if n.startswith("calift_core."))


def _drop_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]


def demo_tag(spec: RunSpec, source: str, data: str) -> str:
    """The tag that the demo finds a run by: equal only where the result must be equal.

    Args:
        source: from `source_key`.
        data: hashes of the images and of the weights that the run starts from.
    """
    text = f"{spec.content_hash()}:{source}:{data}"
    return f"demo-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def run_demo(folder: Path, *, headless: bool, api_port: int, dashboard_port: int) -> None:
    """Run the demo and write its report.

    Raises:
        CaliftError: anything that stands in the way, in a sentence.
    """
    timings: dict[str, float] = {}
    began = time.monotonic()

    def lap(name: str) -> None:
        timings[name] = time.monotonic() - began - sum(timings.values())

    with _stack(api_port, dashboard_port) as (client, urls, keep_up):
        lap("starting the stack")
        err.print(
            f"The dashboard while the runs go on: {dashboard_link(client, urls['dashboard'])}",
            markup=False,
            soft_wrap=True,
        )
        runs, new = _finish_runs(client, lap)
        models = _models(client, runs[:3])  # the path is there to be looked at
        rows, findings = table_rows(models), sentences(models)
        out.print(_table(rows))
        for sentence in findings:
            out.print(f"• {sentence}", markup=False)
        out.print(NOTE, style="dim", markup=False)
        lap("reading predictions")
        page = _write_report(client, runs[:3], rows, findings, folder, timings)
        lap("writing the report")
        _show_timings(timings, runs, new)
        out.print(f"Report: {page}", markup=False)
        if not headless:
            where = dashboard_link(client, urls["dashboard"])
            out.print(f"Dashboard: {where}", markup=False, soft_wrap=True)
            out.print("Ctrl-C stops everything.")
            keep_up()


def _show_timings(timings: dict[str, float], runs: list[RunDetail], new: set[str]) -> None:
    table = Table(title="What took how long", title_justify="left")
    table.add_column("part")
    table.add_column("seconds", justify="right")
    for name, seconds in timings.items():
        table.add_row(name, f"{seconds:.0f}")
        for run in runs if name == "the runs" else ():  # some of them at the same time
            if run.id in new and run.started_at and run.finished_at:
                took = (run.finished_at - run.started_at).total_seconds()
                table.add_row(f"  {run.name}", f"({took:.0f})", style="dim")
    table.add_row("all", f"{sum(timings.values()):.0f}")
    out.print(table)
    if reused := len(runs) - len(new):
        out.print(f"{reused} runs were finished already, with the same spec, source and images.")


def _finish_runs(client: Client, lap: Callable[[str], None]) -> tuple[list[RunDetail], set[str]]:
    """Submit what is not finished, follow it; the finished runs in order, and which are new."""
    from calift_core.data.suites.load import load_suite
    from calift_core.jobs.tiny import tiny_sha256

    specs = demo_specs()
    suite = load_suite(specs[0].suite)
    sets = {**suite.parts, **suite.shifts}
    images = ":".join(sets[name].sha256 for name in sorted(sets))
    source = source_key()
    lap("finding the data")
    data = f"{images}:{tiny_sha256('typefaces')}"
    ids: list[str] = []
    new: set[str] = set()

    def find_or_submit(spec: RunSpec) -> str:
        tag = demo_tag(spec, source, data)
        found = client.runs(tag=[tag], phase=["SUCCEEDED"], limit=1).items
        if found:
            return found[0].id
        run = client.submit(spec.model_copy(update={"tags": ("demo", tag)}))
        new.add(run.id)
        return run.id

    def path_of(run: RunDetail) -> list[str]:
        """FLYP's path is asked for as soon as FLYP is there, whatever the others do."""
        if run.method != "flyp" or run.phase != "SUCCEEDED":
            return []
        run_id = find_or_submit(path_spec(run.id, specs[1]))
        ids.append(run_id)
        return [run_id] if run_id in new else []

    ids.extend(find_or_submit(spec) for spec in specs)
    waiting = [run_id for run_id in ids if run_id in new]
    if ids[1] not in new:
        waiting += path_of(client.run(ids[1]))
    if waiting:
        _require_success(follow_runs(client, waiting, then=path_of))
    if new:
        lap("the runs")
    return [client.run(run_id) for run_id in ids], new


def _models(client: Client, runs: Sequence[RunDetail]) -> list[DemoModel]:
    """Score what the runs predicted, and the recommended recipe."""
    with tempfile.TemporaryDirectory() as scratch:
        files = {}
        for run in runs:
            folder = Path(scratch) / run.id
            folder.mkdir()
            files[run.name] = [
                client.download_artifact(run.id, a.name, folder / Path(a.name).name)
                for a in client.artifacts(run.id)
                if a.kind == "predictions"
            ]
        sigma = {run.name: run.summary.sigma_min if run.summary else None for run in runs}
        return read_models(files, sigma, RECIPE)


def _table(rows: Sequence[DemoRow]) -> Table:
    """The screen's table: a model a row."""
    table = Table(title="Typefaces, calift-tiny, seed 0", title_justify="left")
    table.add_column("model")
    for part in ("ID", "shift"):
        for name in ("accuracy", "ECE (floor)", "NLL"):
            table.add_column(f"{part} {name}", justify="right")
    table.add_column("σ_min", justify="right")
    for row in rows:
        cells = []
        for found in (row.id, row.shift):
            cells += [
                percent(found.accuracy),
                f"{percent(found.ece)} ({100 * found.floor:.1f})",
                nats(found.nll),
            ]
        table.add_row(row.model, *cells, sigma_text(row.sigma_min))
    return table


def _write_report(
    client: Client,
    runs: Sequence[RunDetail],
    rows: Sequence[DemoRow],
    findings: list[str],
    folder: Path,
    timings: dict[str, float],
) -> Path:
    """The report of the runs, which begins with the story; its page."""
    from frontend.reports.contents import Listing, contents
    from frontend.reports.files import write_folder
    from frontend.reports.gathered import from_service
    from frontend.tables import Column
    from frontend.tables import Table as Rows

    made = contents(
        from_service(client, [run.id for run in runs]),
        title="calift demo: what fine-tuning does to one model",
        note=NOTE,
        datasets=[DIAGRAM],
        timings=timings,
    )
    kinds = {"accuracy": "percent", "ece": "percent", "floor": "percent", "nll": "number"}
    columns = [
        Column(f"{part}_{key}", f"{title} {label}", kinds[key])
        for part, title in (("id", "ID"), ("shift", "Shift"))
        for key, label in zip(kinds, ("accuracy", "ECE", "floor", "NLL"), strict=True)
    ]
    cells = [
        {"model": row.model, "sigma_min": row.sigma_min}
        | {f"id_{key}": value for key, value in asdict(row.id).items()}
        | {f"shift_{key}": value for key, value in asdict(row.shift).items()}
        for row in rows
    ]
    story = Listing(
        "story",
        "Four models",
        Rows([Column("model", "Model"), *columns, Column("sigma_min", "σ_min", "number")], cells),
        NOTE,
    )
    made = replace(made, answers=findings, listings=[story, *made.listings])
    return write_folder(made, folder, lambda sentence: err.print(sentence, markup=False))


def _require_success(runs: list[RunDetail]) -> None:
    failed = [run for run in runs if run.phase != "SUCCEEDED"]
    if failed:
        run = failed[0]
        raise CaliftError(
            f"the run {run.name!r} ended {run.phase} ({run.reason}): {run.message}",
            hint=run.hint or f"`calift runs logs {run.id}` shows its log.",
        )


def _runs_at_once() -> int:
    """Two where a processor does the work: two threads make a run of this size little faster."""
    has_gpu = sys.platform == "darwin" or shutil.which("nvidia-smi") is not None
    return 1 if has_gpu else min(2, usable_cores())


@contextmanager
def _stack(
    api_port: int, dashboard_port: int
) -> Iterator[tuple[Client, dict[str, str], Callable[[], None]]]:
    """The embedded stack: the one that is up already for this home, else a new one."""
    from backend.stack import EmbeddedStack

    home = calift_home()
    home.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(home).free < 2**30:
        err.print("Less than 1 GiB is free; the demo needs about that much.", style="yellow")
    running = EmbeddedStack.running(home)
    if running is not None:
        with Client(running["api"]) as client:
            err.print(
                f"Using the stack that is up already at {running['dashboard']}.", markup=False
            )
            yield client, running, lambda: None
        return
    with EmbeddedStack(
        home, api_port=api_port, dashboard_port=dashboard_port, workers=_runs_at_once()
    ) as stack:
        stack.wait_ready()
        with Client(stack.urls["api"]) as client:
            yield client, stack.urls, stack.run_forever
