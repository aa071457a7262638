"""YAML and JSON of people: read safely, with errors that name the file."""

import re
from pathlib import Path
from typing import Any

import yaml

from calift_core.errors import SpecError
from calift_core.untrusted import TOO_DEEP, check_depth


def load_document(path: str | Path, what: str) -> Any:
    """Read a YAML or JSON file.

    Args:
        path: of the file.
        what: it is to be, for errors.

    Raises:
        SpecError: the file is missing, or is neither.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the {what} {str(path)!r}: {error}") from error
    return read_document(text, repr(str(path)))


def read_document(text: str, what: str) -> Any:
    """Decode YAML or JSON.

    Args:
        text: of the document.
        what: it is, for errors.

    Raises:
        SpecError: it is neither.
    """
    try:
        return check_depth(yaml.load(text, Loader=_Loader))  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise SpecError(f"{what} is neither YAML nor JSON: {error}") from error
    except RecursionError:
        raise SpecError(f"{what}: {TOO_DEEP}") from None
    except ValueError as error:
        raise SpecError(f"{what}: {error}") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-5` as a number, as YAML 1.2 and everybody's intuition do."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)
