"""An S3-compatible server of its own: Ceph's radosgw on its stand-alone `dbstore` backend.

It answers in two seconds without a cluster. What it cannot do is itself a test: its multipart
upload gives back other bytes than were put.
"""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.conftest import free_port, until

_CONFIG = """[global]
rgw_backend_store = dbstore
rgw_config_store = dbstore
dbstore_db_dir = {folder}
dbstore_config_uri = file:{folder}/config.db
rgw_frontends = beast endpoint=127.0.0.1:{port}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
admin_socket = {folder}/admin.sock
log_file = {folder}/log
run_dir = {folder}
"""


@dataclass(frozen=True)
class Server:
    """Where it answers, and the keys of its one user."""

    url: str
    key: str = "calift-access"
    secret: str = "calift-secret"


def missing() -> str:
    """Why no server can be started here; empty where one can."""
    lacking = [name for name in ("radosgw", "radosgw-admin") if shutil.which(name) is None]
    if lacking:
        return f"{' and '.join(lacking)} not installed (Debian: apt-get install radosgw)"
    return ""


@contextmanager
def radosgw() -> Iterator[Server]:
    """A server with a user, gone with all that it stored when the block ends."""
    with tempfile.TemporaryDirectory(prefix="calift-rgw-") as name:
        folder, server = Path(name), Server(f"http://127.0.0.1:{free_port()}")
        config = folder / "ceph.conf"
        config.write_text(_CONFIG.format(folder=folder, port=server.url.rpartition(":")[2]))
        options = ["-c", str(config), "-n", "client.rgw", "--no-mon-config"]
        about = ["--uid", "calift", "--display-name", "calift"]
        about += ["--access-key", server.key, "--secret-key", server.secret]
        with (folder / "output").open("wb") as output, (folder / "user").open("wb") as words_shown:
            _make_user(["radosgw-admin", *options, "user", "create", *about], words_shown, output)
            process = subprocess.Popen(
                ["radosgw", *options, "-f"],
                stdout=output,
                stderr=output,
                env=os.environ | {"HOME": name},
            )
        try:
            until(lambda: _answers(process, server), what="radosgw to answer", timeout_s=240)
            yield server
        finally:
            process.kill()
            process.wait()


def _make_user(command: list[str], said: IO[bytes], output: IO[bytes]) -> None:
    """Wait until the user is there, and not for the program: on a busy machine it does not end."""
    process = subprocess.Popen(command, stdout=said, stderr=output)
    try:
        path = Path(said.name)
        made = lambda: b'"access_key"' in path.read_bytes()  # noqa: E731
        until(lambda: made() or process.poll() is not None, timeout_s=120, what="a user")
        assert made(), f"radosgw-admin ended with {process.poll()}"
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
    finally:
        process.kill()
        process.wait()


def _answers(process: subprocess.Popen[bytes], server: Server) -> bool:
    assert process.poll() is None, "radosgw has ended"
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(server.url.rpartition(":")[2]))) == 0
