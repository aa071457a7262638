"""A report as files: one HTML page, a PDF, or a folder with pictures, tables and the JSON."""

from collections.abc import Callable, Sequence
from pathlib import Path

import plotly.graph_objects as go

from calift_core.errors import CaliftError, SpecError, StorageError
from calift_core.files import atomic_write_bytes, atomic_write_json
from frontend import pictures, tables, text
from frontend.figures.style import captioned
from frontend.reports import document
from frontend.reports.contents import Contents, Picture

Say = Callable[[str], None]

#: Everything that a report writes into its folder; nothing else there is touched.
FILES = ("report.json", "index.html", "report.pdf")
FOLDERS = {"figures": ("*.svg", "*.png", "captions.md", "figures.tex"),
           "tables": tuple(f"*.{kind}" for kind in document.KINDS)}  # fmt: skip


def write(made: Contents, target: Path, say: Say = lambda sentence: None) -> Path:
    """Write a report to a file ending in `.html` or `.pdf`, or into a folder.

    Args:
        target: what an earlier report left there is replaced.

    Returns:
        What to open: the page.

    Raises:
        SpecError: the file ends in something else.
        StorageError: a file cannot be written.
        CaliftError: a PDF was asked for, and there is no Chrome that could make one.
    """
    match target.suffix.lower():
        case ".html" | ".htm":
            atomic_write_bytes(target, document.to_html(made).encode())
            return target
        case ".pdf":
            atomic_write_bytes(target, to_pdf(made))
            return target
        case "":
            return write_folder(made, target, say)
    raise SpecError(f"a report is a folder, or a file .html or .pdf; got {target.name!r}")


def to_pdf(made: Contents) -> bytes:
    """The report as a PDF, its figures as vectors.

    Raises:
        CaliftError: there is no Chrome, no kaleido, or they failed.
    """
    svg = _draw([(p.figure, "svg") for p in made.pictures])
    if isinstance(svg, str):
        raise CaliftError(f"no PDF: {svg}", hint="The HTML page prints as well.")
    return _printed(made, svg)


def _printed(made: Contents, svg: Sequence[bytes]) -> bytes:
    """The PDF, with its figures as they were drawn."""
    drawn = {p.name: one for p, one in zip(made.pictures, svg, strict=True)}
    page = document.to_html(made, drawn)
    try:
        return pictures.printed(page)
    except Exception as error:  # the browser fails in many types
        raise CaliftError(
            f"no PDF: {pictures.reason_of(error)}", hint="The HTML page prints as well."
        ) from error


def write_folder(made: Contents, folder: Path, say: Say) -> Path:
    """Everything into a folder, whatever its name ends in; as `write`."""
    clear(folder)
    atomic_write_json(folder / "report.json", document.body_json(made))
    for name, table, caption in document.every_table(made):
        for kind in document.KINDS:
            written = document.written(table, kind, caption)
            atomic_write_bytes(folder / "tables" / f"{name}.{kind}", written.encode())
    page = folder / "index.html"
    atomic_write_bytes(page, document.to_html(made).encode())
    alone = [captioned(p.figure, p.caption) for p in made.pictures]
    kinds = ("svg", "png")
    # Those of the PDF have their captions beside them. One browser draws all: it is slow to start.
    drawn = _draw(
        [(figure, kind) for figure in alone for kind in kinds]
        + [(p.figure, "svg") for p in made.pictures]
    )
    if isinstance(drawn, str):
        say(f"No figures as SVG and PNG, no PDF: {drawn} The HTML page has them all.")
        return page
    names = [f"{p.name}.{kind}" for p in made.pictures for kind in kinds]
    for name, content in zip(names, drawn, strict=False):
        atomic_write_bytes(folder / "figures" / name, content)
    captions = "".join(
        f"## {text.md(p.name)}\n\n{text.md(tables.visible(p.caption))}\n\n" for p in made.pictures
    )
    atomic_write_bytes(folder / "figures" / "captions.md", captions.encode())
    atomic_write_bytes(folder / "figures" / "figures.tex", _latex(made.pictures).encode())
    try:
        atomic_write_bytes(folder / "report.pdf", _printed(made, drawn[len(names) :]))
    except CaliftError as error:
        say(error.message)
    return page


def _latex(made: list[Picture]) -> str:
    """A float for each figure, with its caption."""
    return "% needs \\usepackage{graphicx}\n" + "".join(
        "\\begin{figure}\n\\centering\n"
        f"\\includegraphics[width=\\linewidth]{{{p.name}.png}}\n"
        f"\\caption{{{tables.tex(p.caption)}}}\n\\end{{figure}}\n\n"
        for p in made
    )


def clear(folder: Path) -> None:
    """Remove an earlier report, so that old and new are never mixed."""
    try:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        for name, patterns in FOLDERS.items():
            for pattern in patterns:
                for file in (folder / name).glob(pattern):
                    file.unlink()
    except OSError as error:
        raise StorageError(f"cannot replace the report in {str(folder)!r}: {error}") from error


def _draw(wanted: Sequence[tuple[go.Figure, str]]) -> list[bytes] | str:
    """Pictures in their order, or a sentence on why there are none."""
    try:
        return pictures.draw_all(wanted)
    except ImportError:
        return "`kaleido` is not installed."
    except Exception as error:  # kaleido and the browser fail in many types
        return f"they need an installed Chrome or Chromium ({pictures.reason_of(error)})."
