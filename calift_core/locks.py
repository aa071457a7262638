"""Locks between processes of one machine, on every operating system."""

from __future__ import annotations

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from calift_core.errors import StorageError
from calift_core.files import storage_error


def try_lock(path: Path, *, patience_s: float = 0.0) -> BaseFileLock | None:
    """Take a lock that the operating system drops when this process ends, however it ends.

    Args:
        path: the lock's file; it stays when the lock is released.
        patience_s: how long to wait for another holder, in seconds.

    Returns:
        The lock, held until its `release` is called or nothing refers to it any more; None when
        somebody else holds it.

    Raises:
        StorageError: the file cannot be made, or its file system knows no locks.
    """
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=patience_s, poll_interval=0.01 if patience_s < 0.1 else 0.1)
    except Timeout:
        return None
    except NotImplementedError as error:
        raise StorageError(
            f"{path} must lie on a file system that knows locks: {error}",
            hint="Set CALIFT_HOME to a folder on a local disk.",
        ) from error
    except OSError as error:
        raise storage_error(error, path, "lock") from error
    return lock
