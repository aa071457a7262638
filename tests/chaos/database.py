"""The databases that chaos strikes: each can be killed, locked and verified."""

import contextlib
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Engine, create_engine, text

from backend.store.models import Base
from tests.conftest import postgres_binaries, until

#: Becomes a user, who need not be able to run our Python, and then dies with its parent: to change
#: the user would undo that (prctl(2)).
_TIED_AS = (
    "import ctypes,os,sys;user,group,*argv=sys.argv[1:];"
    "user and (os.setgroups([]),os.setgid(int(group)),os.setuid(int(user)));"
    "ctypes.CDLL(None).prctl(1,9,0,0,0);os.execv(argv[0],argv)"
)


class Database(Protocol):
    """What the harness does to a database."""

    kind: str
    url: str

    def start(self) -> None:
        """Bring it up, after whatever happened to it."""

    def kill(self) -> None:
        """SIGKILL to all of its processes."""

    def reader(self) -> Engine:
        """Connections that wait for nobody for long."""

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """While this is held nobody can write."""

    def damage(self) -> list[str]:
        """What is wrong with its files."""

    def remove(self) -> None:
        """Kill it and take its files away."""


class Sqlite:
    """A file; its processes are those of who uses it."""

    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "calift.db"
        self.url = f"sqlite:///{self.path}"

    def start(self) -> None:
        pass

    def kill(self) -> None:
        pass

    def remove(self) -> None:
        pass

    def reader(self) -> Engine:
        return create_engine(self.url, connect_args={"timeout": 1.0})

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=20.0)) as connection:
            connection.isolation_level = None
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    def damage(self) -> list[str]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=20.0)) as connection:
            found = [str(r[0]) for r in connection.execute("PRAGMA integrity_check")]
            keys = connection.execute("PRAGMA foreign_key_check").fetchall()
        return [line for line in found if line != "ok"] + [f"dangling {row}" for row in keys]


class Postgres:
    """A server of our own, on a socket in a folder of its own, with everything as delivered."""

    kind = "postgres"

    def __init__(self) -> None:
        binaries = postgres_binaries()
        if binaries is None:
            raise RuntimeError("there are no Postgres server binaries on this machine")
        self._binaries = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="calift-chaos-pg-"))
        self._data = self.folder / "data"
        self.url = f"postgresql+psycopg://postgres@/postgres?host={self.folder}"
        self._server: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {
            "cwd": self.folder,
            "env": {k: v for k, v in os.environ.items() if not k.startswith("PG")},
        }
        if os.geteuid() == 0:  # the server refuses to run as root
            account = pwd.getpwnam("nobody")
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        subprocess.run(
            [str(binaries / "initdb"), "-D", str(self._data), "-U", "postgres", "-A", "trust"]
            + ["--no-sync", "-E", "UTF8", "--locale=C"],
            stdout=subprocess.DEVNULL,
            check=True,
            **self._as,
        )

    def start(self) -> None:
        self.kill()
        with (self.folder / "log").open("ab") as output:
            self._server = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _TIED_AS, str(self._as.get("user", ""))]
                + [str(self._as.get("group", "")), str(self._binaries / "postgres")]
                + ["-D", str(self._data), "-k", str(self.folder), "-c", "listen_addresses="],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=self.folder,
                env=self._as["env"],
            )

    def answers(self) -> bool:
        engine = self.reader()
        try:
            with engine.connect() as connection:
                return connection.execute(text("SELECT 1")).scalar() == 1
        except Exception:  # whatever it says, it does not answer
            return False
        finally:
            engine.dispose()

    def kill(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

        # Its children are in sessions of their own, but all at home in its folder.
        def left() -> list[int]:
            return [pid for pid in pids() if _cwd(pid) == self._data]

        for pid in left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not left(), what="the server's processes to be gone")

    def reader(self) -> Engine:
        options = "-c statement_timeout=2000 -c lock_timeout=500"
        connect = {"connect_timeout": 2, "options": options}
        return create_engine(self.url, connect_args=connect)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        options = "-c lock_timeout=2000"
        engine = create_engine(self.url, connect_args={"connect_timeout": 2, "options": options})
        try:
            # It may be killed meanwhile; then nothing is held any more.
            with contextlib.suppress(Exception), engine.connect() as connection:
                # Not even reads: as when the server hangs.
                connection.execute(text("LOCK TABLE runs, metrics IN ACCESS EXCLUSIVE MODE"))
                yield
        finally:
            engine.dispose()

    def damage(self) -> list[str]:
        until(self.answers, what="Postgres to answer")
        checker = self._binaries / "pg_amcheck"
        if checker.exists():
            done = subprocess.run(
                [str(checker), "-h", str(self.folder), "-U", "postgres", "-d", "postgres"]
                + ["--install-missing", "--heapallindexed"],
                capture_output=True,
                text=True,
                check=False,
                **self._as,
            )
            if done.returncode != 0:
                return [(done.stdout + done.stderr).strip()[:2000]]
        engine = create_engine(self.url)
        try:
            with engine.connect() as connection:
                for table in Base.metadata.sorted_tables:
                    connection.execute(table.select()).all()
        except Exception as error:  # any that a full read gives is damage
            return [str(error)[:2000]]
        finally:
            engine.dispose()
        return []

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def pids() -> list[int]:
    """Everything that runs on this machine."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _cwd(pid: int) -> Path | None:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None
