"""Figures as pictures and pages as PDF, by an installed Chrome; the only place that knows how."""

import json
import logging
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import plotly.graph_objects as go

from frontend.figures.style import CONFIG

WIDTH, HEIGHT = 1000, 480
#: A browser takes a few hundred megabytes, and `quiet` changes what the whole process logs.
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to themselves what the drawing libraries log: what fails is raised, and told then.

    When Chrome ends, the reader of its pipe takes the last word of the pipe's other end for a
    message that is no JSON, ignores it, and logs a traceback that looks like a failure.
    """
    loggers = [logging.getLogger(name) for name in ("choreographer", "kaleido", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def draw_all(wanted: Sequence[tuple[go.Figure, str]]) -> list[bytes]:
    """Pictures of figures, in their order, all drawn by one browser.

    Args:
        wanted: each figure with a kind: `svg`, `pdf` or `png`.

    Raises:
        ImportError: kaleido is not installed.
        Exception: kaleido and the browser fail in many types.
    """
    import kaleido

    if not wanted:
        return []
    with _ONE_AT_A_TIME, tempfile.TemporaryDirectory(prefix="calift-pictures-") as folder, quiet():
        paths = [Path(folder) / f"{number}.{kind}" for number, (_, kind) in enumerate(wanted)]
        requests = [
            {
                "fig": figure,
                "path": path,
                "opts": {
                    "format": kind,
                    "width": figure.layout.width or WIDTH,
                    "height": figure.layout.height or HEIGHT,
                    "scale": 2 if kind == "png" else 1,
                },
            }
            for path, (figure, kind) in zip(paths, wanted, strict=True)
        ]
        # kaleido leaves out a figure's configuration, so its page has the locale.
        locale = Path(folder) / "locale.js"
        named = {"moduleType": "locale", "name": "en-US", **CONFIG["locales"]["en-US"]}
        locale.write_text(f"Plotly.register({json.dumps(named)})")
        # Its fonts for formulas would come from another machine, and no figure has formulas.
        page = kaleido.PageGenerator(mathjax=False, others=[locale])
        kaleido.write_fig_from_object_sync(requests, kopts={"page_generator": page})
        return [path.read_bytes() for path in paths]


def draw(figures: Mapping[str, go.Figure], kind: str = "svg") -> dict[str, bytes]:
    """Pictures of one kind, by the names of the figures; see `draw_all`."""
    drawn = draw_all([(figure, kind) for figure in figures.values()])
    return dict(zip(figures, drawn, strict=True))


def one(figure: go.Figure, kind: str) -> bytes:
    return draw({"figure": figure}, kind)["figure"]


#: What Chrome is called where it is installed.
_NAMES = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser", "chrome")
#: Seconds that a page may take to be printed.
_PRINT_S = 120


def browser() -> str | None:
    """The Chrome that draws: that of `BROWSER_PATH`, else the installed one; None where is none."""
    named = os.environ.get("BROWSER_PATH")
    if named:
        return named if Path(named).exists() else None
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


def printed(page: str) -> bytes:
    """A page as PDF, in the size that its style asks for.

    Raises:
        FileNotFoundError: no Chrome is installed.
        RuntimeError: it printed nothing.
        subprocess.TimeoutExpired: it took too long.
    """
    chrome = browser()
    if chrome is None:
        raise FileNotFoundError("no Chrome or Chromium is installed")
    with _ONE_AT_A_TIME, tempfile.TemporaryDirectory(prefix="calift-print-") as folder:
        source, target = Path(folder) / "page.html", Path(folder) / "page.pdf"
        source.write_text(page, encoding="utf-8")
        flags = [
            "--headless", "--disable-gpu", "--no-first-run", "--no-pdf-header-footer",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folder}/profile",
        ]  # fmt: skip
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chrome refuses to start otherwise
        done = subprocess.run(
            [chrome, *flags, f"--print-to-pdf={target}", source.as_uri()],
            capture_output=True,
            text=True,
            timeout=_PRINT_S,
            check=False,
        )
        if done.returncode or not target.is_file():
            raise RuntimeError(f"{chrome} printed nothing (exit status {done.returncode})")
        return target.read_bytes()


def reason_of(error: Exception) -> str:
    """A failure of the drawing libraries in one line."""
    message = str(error).strip()
    first = message.splitlines()[0][:160] if message else ""
    return f"{type(error).__name__}: {first}"
