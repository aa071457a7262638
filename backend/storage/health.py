"""Whether this machine can store what runs make.

A worker that cannot takes no run, and an API that cannot is not ready.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from calift_core.errors import CaliftError, DiskFullError, StorageError

log = logging.getLogger(__name__)

_PROBE = b"\0" * 4096
_MIB = 1 << 20


class StorageHealth:
    """Looks at the folders that a process writes to.

    Args:
        floors: folder → bytes that must be free on its device.
        probe: raises a CaliftError while the artifact store takes nothing.
    """

    def __init__(
        self, floors: Mapping[Path, int], *, probe: Callable[[], None] = lambda: None
    ) -> None:
        self._floors, self._probe = dict(floors), probe

    def problem(self) -> str:
        """What is wrong, in a sentence; empty when there is room and a file can be written."""
        for folder, floor in self._floors.items():
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                free = shutil.disk_usage(folder).free
                if free < floor:
                    return (
                        f"{free // _MIB:,} MiB are free on the disk of {folder}, and at least "
                        f"{floor // _MIB:,} must be."
                    )
                _try_to_write(folder)
            except OSError as error:
                return f"nothing can be written to {folder}: {error.strerror or error}."
        try:
            self._probe()
        except CaliftError as error:
            return error.message
        return ""

    def is_to_blame(self, code: str) -> bool:
        """Whether a run that ended with this code failed because of the machine.

        A full disk always is. Another failure of storage may be about a file that the run names, so
        the machine is only blamed when it cannot store anything of its own.
        """
        if code == DiskFullError.code:
            return True
        return code == StorageError.code and bool(self.problem())


def _try_to_write(folder: Path) -> None:
    path = folder / f".probe-{os.getpid()}"
    try:
        with path.open("wb") as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)
