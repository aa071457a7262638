"""Files that are either the old version or the new one, never something between; and locks."""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from calift_core.errors import DiskFullError, StorageError

#: Bytes that must be free where a run is to start: less is certain not to hold its checkpoints.
FREE_SPACE_FLOOR = 256 * 2**20

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FOLDER_SYNC_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})


def storage_error(error: OSError, path: str | os.PathLike[str], action: str) -> StorageError:
    """Name an operating-system error in calift's tree.

    Args:
        action: a verb for the sentence, such as `write` or `read`.

    Returns:
        DiskFullError when no space or quota is left, StorageError otherwise.
    """
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return DiskFullError(
            f"cannot {action} {os.fspath(path)}: {reason}",
            hint="Free some space on that device and try again; what was there before is intact.",
        )
    return StorageError(f"cannot {action} {os.fspath(path)}: {reason}")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Lend a temporary name in the folder of `path`; publish it when the block ends well.

    Missing parent folders are made. When the block raises, the temporary file is removed and
    `path` stays as it was.

    Args:
        path: final name of one file (not of a folder).

    Yields:
        The temporary path, which does not exist yet; the block must create a file there.

    Raises:
        DiskFullError: no space or quota is left.
        StorageError: any other failure of the file system, from the block or from publishing.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name[:180]}.{secrets.token_hex(6)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
        finally:
            # After the rename nothing of that name is left, so this only clears a failed attempt.
            temporary.unlink(missing_ok=True)
        sync_folder(target.parent)
    except OSError as error:
        raise storage_error(error, target, "write") from error


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the content of `path` by `data`, durably and all at once.

    Raises:
        DiskFullError: no space or quota is left.
        StorageError: any other failure of the file system.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Replace the content of `path` by `obj` as indented UTF-8 JSON that ends in a newline.

    NaN and infinities are not JSON: write None where a number does not exist.

    Raises:
        TypeError: `obj` holds something that JSON does not know; nothing was written.
        ValueError: `obj` holds a NaN or an infinity; nothing was written.
        DiskFullError: no space or quota is left.
        StorageError: any other failure of the file system.
    """
    atomic_write_bytes(path, json_bytes(obj))


def json_bytes(obj: object) -> bytes:
    """Indented UTF-8 JSON that ends in a newline.

    Raises:
        TypeError: `obj` holds something that JSON does not know.
        ValueError: `obj` holds a NaN or an infinity.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content as 64 lower-case hex digits.

    Raises:
        StorageError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise storage_error(error, path, "read") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk, where the file system can: a rename is durable then."""
    if os.name == "nt":  # Windows has no handle on a folder that could be flushed.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems refuse to flush a folder; the rename itself has succeeded.
        if error.errno not in _FOLDER_SYNC_UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


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
