"""Paths as people write them."""

import os
from pathlib import Path

from calift_core.errors import SpecError


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` and `~user` replaced by a home folder.

    Raises:
        SpecError: this machine has no such user.
    """
    given = Path(path)
    try:
        return given.expanduser()
    except RuntimeError:
        user = given.parts[0].removeprefix("~")
        raise SpecError(
            f"no user {user[:100]!r} on this machine: {str(given)[:200]!r}",
            hint="Name the folder by its whole path, or ./~… where its name begins with ~.",
        ) from None
