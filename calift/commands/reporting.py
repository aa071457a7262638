"""`calift report`: finished runs as one page, a PDF, pictures and tables."""

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer

from calift.commands.console import JsonFlag, err, make_client, of_folders, out, print_json
from calift_core.errors import SpecError
from calift_core.installed import install_extra


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Ids of finished runs, or folders of such."),
    ],
    target: Annotated[
        Path, typer.Option("--out", help="FILE.html, FILE.pdf, or a folder for everything.")
    ] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading (default: names the runs).")] = "",
    note: Annotated[str, typer.Option(help="A paragraph under the heading.")] = "",
    baseline: Annotated[
        str | None,
        typer.Option(help="The run that differences are to (default: zero-shot, else the first)."),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Draw the reliability diagram of this data set; repeatable (default: ID data, the "
            "worst shifts, the worst corruption)."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a report of finished runs that needs nothing else to be read.

    One HTML page with charts that can be used offline; a PDF; or a folder with both, every figure
    as SVG and PNG, every table as CSV, JSON, Markdown and LaTeX, and the numbers behind them.
    """
    if importlib.util.find_spec("plotly") is None:
        raise SpecError(
            "reports need plotly, which is not installed.", hint=install_extra("dashboard")
        )
    from frontend.reports.contents import contents
    from frontend.reports.files import write
    from frontend.reports.gathered import from_folders, from_service

    options: dict[str, Any] = {"title": title, "note": note, "datasets": dataset or ()}
    if of_folders(runs):
        made = contents(from_folders([Path(run) for run in runs], baseline=baseline), **options)
    else:
        with make_client() as client:
            made = contents(from_service(client, runs, baseline=baseline), **options)
    page = write(made, target, lambda sentence: err.print(sentence, markup=False))
    if as_json:
        print_json({"path": str(page), "runs": [t.run.id for t in made.gathered.runs]})
    else:
        out.print(f"wrote {page}", markup=False, soft_wrap=True)
