"""How calift is installed here, for sentences that say what to type.

No package index has calift: it is installed from its checkout or from a wheel, most often into a
`.venv` that is not on the shell's path. A hint that does not work is worse than none.
"""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

#: Module → the extra that brings it.
_EXTRA_OF = (
    dict.fromkeys(("pyarrow", "scipy", "PIL"), "analysis")
    | {"httpx2": "client"}
    | dict.fromkeys(("torch", "torchvision", "open_clip", "timm", "safetensors"), "train")
    | dict.fromkeys(("plotly", "streamlit"), "dashboard")
    | dict.fromkeys(("fastapi", "sqlalchemy", "pydantic_settings", "celery"), "api")
)

_CHECKOUT = Path(__file__).resolve().parents[1]
_TYPED = re.compile(r"`calift(?= [a-z-])")


def command() -> str:
    """What a shell here starts `calift` with: its name where the shell finds it, else its path."""
    script = Path(sys.executable).with_name("calift.exe" if os.name == "nt" else "calift")
    found = shutil.which("calift")
    if not script.is_file() or (found is not None and os.path.samefile(found, script)):
        return "calift"
    return _shown(script)


def as_typed(text: str) -> str:
    """A text with each `` `calift … ``, in backticks, as it must be typed here."""
    return _TYPED.sub(lambda _: f"`{command()}", text) if "`calift " in text else text


def pip_install(requirement: str) -> str:
    """The command that installs a requirement beside calift."""
    return f"{_shown(Path(sys.executable))} -m pip install {shlex.quote(requirement)}"


def install_extra(extra: str) -> str:
    """The command that installs one of calift's extras here."""
    if (_CHECKOUT / "pyproject.toml").is_file():
        here = "." if Path.cwd() == _CHECKOUT else str(_CHECKOUT)
        return pip_install(f"{here}[{extra}]").replace("pip install ", "pip install -e ", 1)
    from importlib import metadata  # loads much that a start can do without

    try:
        text = metadata.distribution("calift").read_text("direct_url.json")
        source = json.loads(text or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        source = {}
    if "vcs_info" in source:
        return pip_install(f"calift[{extra}] @ {source['vcs_info']['vcs']}+{source['url']}")
    if "archive_info" in source:
        # pip keeps the calift that is there, whatever wheel it came from, and adds what is missing.
        return pip_install(f"calift[{extra}]")
    return f"In calift's checkout: {pip_install(f'.[{extra}]')}"


def missing_extra(error: ModuleNotFoundError) -> tuple[str, str] | None:
    """What a missing module means and the command that installs it; None where no extra has it."""
    module = (error.name or "").partition(".")[0]
    extra = _EXTRA_OF.get(module)
    if extra is None:
        return None
    return f"this needs {module}, which is not installed.", install_extra(extra)


def _shown(path: Path) -> str:
    """A path as a shell takes it, from the current folder where it lies below that."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
