"""The embedded stack: real processes, and what becomes of them."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2 as httpx
import pytest

from backend.stack import EmbeddedStack
from backend.stack.broker import broker_argv, broker_pings, socket_path
from backend.stack.services import Service, plan
from backend.stack.supervise import Supervisor
from calift.commands.main import main
from calift_core.client import Client
from calift_core.errors import ServiceError, SpecError, StorageError
from tests.conftest import free_port, until
from tests.worker.test_supervisor import alive

pytestmark = pytest.mark.service


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def test_stack__every_part_works(stack):
    assert set(stack.pids) == {"broker", "api", "worker", "worker-2", "dashboard"}
    assert answers(f"{stack.urls['dashboard']}/_stcore/health")
    token = (stack.home / "token").read_text().strip()
    with Client(stack.urls["api"], token) as client:
        stats = client.stats()
        assert stats.broker_ok
        assert [w.alive for w in stats.workers] == [True, True]
    state = json.loads((stack.home / "run" / "stack.json").read_text())
    assert state["pids"] == stack.pids
    assert state["urls"] == stack.urls


@pytest.mark.parametrize(
    ("workers", "said", "share"),
    [
        (1, {}, None),
        (2, {}, 4),
        (3, {}, 2),
        (12, {}, 1),
        (2, {"OMP_NUM_THREADS": "3"}, None),
        (2, {"MKL_NUM_THREADS": "3"}, None),
    ],
)
def test_plan__workers_share_the_cores_unless_somebody_has_said(
    home, monkeypatch, workers, said, share
):
    monkeypatch.setattr("backend.stack.services.usable_cores", lambda: 8)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    found = plan(home, {"api": 1}, {"api": "http://127.0.0.1:1"}, workers=workers).services
    at_work = [service for service in found if service.name.startswith("worker")]
    assert len({service.name for service in at_work}) == workers
    expected = {} if share is None else {"OMP_NUM_THREADS": str(share)}
    assert [service.beside for service in at_work] == [expected] * workers


def test_stack__only_the_owner_can_reach_the_broker(stack):
    path = socket_path(stack.home)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_ISSOCK(path.stat().st_mode)
    owner = stack.pids["broker"]
    listening = Path(f"/proc/{owner}/net/tcp").read_text().splitlines()[1:]
    inodes = {os.readlink(f) for f in Path(f"/proc/{owner}/fd").iterdir() if f.is_symlink()}
    assert not [line for line in listening if f"socket:[{line.split()[9]}]" in inodes]


def test_stack__a_second_one_on_the_same_home_refuses_and_says_where_the_first_is(stack):
    before = stack.pids
    second = EmbeddedStack(stack.home, api_port=0, dashboard=False)
    with pytest.raises(ServiceError) as caught:
        second.start()
    assert str(os.getpid()) in str(caught.value)
    assert stack.urls["api"] in str(caught.value)
    assert "CALIFT_HOME" in caught.value.hint
    second.stop()
    assert stack.pids == before
    assert answers(f"{stack.urls['api']}/api/v1/health")


def started_anew(stack: EmbeddedStack, names: tuple[str, ...], number: int) -> None:
    """Send parts a signal, all at once: each is started again, and no other part."""
    before = stack.pids
    for name in names:
        os.kill(before[name], number)
    for name in names:
        until(
            lambda name=name: stack.pids.get(name, before[name]) != before[name],
            what=f"the {name} to be started again",
        )
        assert not alive(before[name]), name
    until(lambda: broker_pings(socket_path(stack.home)), what="the broker to answer")
    until(lambda: answers(f"{stack.urls['api']}/api/v1/health"), what="the API to answer")
    others = {k: v for k, v in stack.pids.items() if k not in names}
    assert others == {k: v for k, v in before.items() if k not in names}


@pytest.mark.parametrize("names", [("broker", "worker-2"), ("api", "dashboard")], ids="+".join)
def test_stack__what_dies_is_started_again(stack, names):
    started_anew(stack, names, signal.SIGKILL)


def test_stack__what_hangs_is_killed_and_started_again(stack, monkeypatch):
    # What is not ready yet is given any time: it has not hung.
    until(lambda: all(s.well_at for s in stack._supervisor.services), what="all parts to work")
    monkeypatch.setattr(stack._supervisor, "_hang_s", 4.0)
    # A look at a part that hangs counts for a sixth of that, however long it takes.
    monkeypatch.setattr("backend.stack.services._LOOK_S", 0.6)
    started_anew(stack, ("worker", "api", "broker"), signal.SIGSTOP)


def test_stack__a_foreign_broker_replaces_the_embedded_one_and_may_be_away(
    home, monkeypatch, tmp_path
):
    path = socket_path(tmp_path / "b")
    path.parent.mkdir(parents=True, mode=0o700)
    broker = subprocess.Popen(
        broker_argv(path, tmp_path / "data"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: broker_pings(path), what="the broker to answer")
        monkeypatch.setenv("CALIFT_BROKER_URL", f"redis+socket://{path}?virtual_host=0")
        with EmbeddedStack(home, api_port=0, dashboard=False, workers=0, hang_s=1.0) as stack:
            stack.wait_ready(timeout_s=120)
            api, before = stack.urls["api"], stack.pids
            assert set(before) == {"api"}
            assert answers(f"{api}/api/v1/readyz")
            broker.kill()
            broker.wait()
            until(lambda: not answers(f"{api}/api/v1/readyz"), what="the API to notice")
            # An API that lives is not killed because its broker is away.
            service = next(s for s in stack._supervisor.services if s.name == "api")
            looked = service.looked_at
            until(lambda: service.looked_at > looked + 1.5, what="the API to be looked at")
            assert stack.pids == before
            assert service.silent_s == 0
            assert answers(f"{api}/api/v1/health")
            # As when it starts without one: it is not ready, and says why.
            service.is_ready, service.well_at = False, None
            with pytest.raises(ServiceError, match="not ready, broker: the broker does not answer"):
                stack.wait_ready(timeout_s=0.5)
    finally:
        broker.kill()
        broker.wait()


def test_service__a_life_that_did_its_work_forgets_earlier_deaths():
    crashing = Service("worker", [], lambda _: True)
    delays = [crashing.died(now=float(n)) for n in range(9)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    for n in range(9):  # killed from outside, again and again
        crashing.well_at = 100.0 * n
        assert crashing.died(now=100.0 * n + 20.0) == delays[0]
    crashing.well_at = 5000.0
    assert crashing.died(now=5000.1) == delays[1]


def test_stack__a_taken_port_is_named_with_the_way_to_change_it(home):
    for taken, flag, variable in (
        ("api_port", "--api-port", "CALIFT_PORT"),
        ("dashboard_port", "--dashboard-port", "CALIFT_DASHBOARD_PORT"),
    ):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            ports = {"api_port": 0, "dashboard_port": 0, taken: port}
            stack = EmbeddedStack(home, **ports)
            # The failed start holds nothing: the second gets as far as the first.
            with pytest.raises(SpecError) as caught:
                stack.start()
        assert str(port) in caught.value.message
        assert flag in caught.value.hint
        assert variable in caught.value.hint
        assert stack.pids == {}


def test_stack__a_wrong_setting_is_a_sentence_before_and_after_the_start(home, monkeypatch):
    monkeypatch.setattr("backend.stack.embedded._HOPELESS", 1)
    monkeypatch.setenv("CALIFT_DATABASE_URL", "mysql://nobody@127.0.0.1/x")
    with (
        EmbeddedStack(home, api_port=0, dashboard=False, workers=0) as stack,
        pytest.raises(ServiceError, match="database_url must be sqlite or postgresql"),
    ):
        stack.wait_ready(timeout_s=60)
    monkeypatch.setenv("CALIFT_LEASE_TTL_S", "soon")
    with pytest.raises(SpecError, match="lease_ttl_s"):
        EmbeddedStack(home, api_port=0, dashboard=False).start()


@contextlib.contextmanager
def broker_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """The supervisor of a stack of which the broker alone is started."""
    monkeypatch.setattr("backend.stack.services._FIRST_DELAY_S", 0.01)
    for folder in ("run", "logs"):
        (home / folder).mkdir(mode=0o700, exist_ok=True)
    made = plan(home, {"api": 0}, {"api": "http://127.0.0.1:1"}, workers=0)
    (broker,) = [service for service in made.services if service.name == "broker"]
    supervisor = Supervisor(replace(made, services=[broker]), home=home, urls={}, hang_s=60.0)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()


def test_stack__unreadable_broker_files_are_moved_aside(home, monkeypatch):
    data = home / "run" / "broker" / "appendonlydir"
    data.mkdir(parents=True)
    (data / "appendonly.aof.manifest").write_text("this is no manifest\n")
    with broker_alone(home, monkeypatch):
        until(lambda: broker_pings(socket_path(home)), what="a broker")
    assert list((home / "run").glob("broker.unreadable-*"))


def test_broker__comes_back_after_its_folders_were_deleted(home, monkeypatch):
    """By whoever tidies up: its files, and the socket's folder in the system's temporary one."""
    path = socket_path(home)
    with broker_alone(home, monkeypatch) as supervisor:
        for _ in range(3):  # after the second death it would move its files aside
            until(lambda: broker_pings(path), what="the broker to answer")
            pid = supervisor.pids["broker"]
            shutil.rmtree(home / "run" / "broker")
            shutil.rmtree(path.parent)
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: supervisor.pids.get("broker") != pid, what="the broker's end")
        until(lambda: broker_pings(path), what="the broker to answer again")


def test_socket_path__a_long_home_gets_a_short_private_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = tmp_path / ("x" * 120)
    path = socket_path(home)
    assert len(os.fsencode(path)) <= len(os.fsencode(tmp_path)) + 50
    assert path == socket_path(home)
    assert path != socket_path(tmp_path / ("y" * 120))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    folder = path.parent
    folder.chmod(0o755)
    with pytest.raises(StorageError, match="nobody else"):
        socket_path(home)
    folder.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    with pytest.raises(StorageError, match="nobody else"):
        socket_path(home)


def opened(link: str) -> tuple[int, str]:
    """The status and the cookie that a link gives."""
    answer = httpx.get(link, timeout=10)
    return answer.status_code, answer.headers.get("Set-Cookie", "")


#: A stack without a dashboard, held up until it is killed.
BARE = (
    "import os; from pathlib import Path; from backend.stack import EmbeddedStack\n"
    "with EmbeddedStack(Path(os.environ['CALIFT_HOME']), api_port=0, dashboard=False) as stack:\n"
    "    stack.run_forever()"
)


class Held:
    """A stack that a process of its own holds up: it is up when `parts` run and `said` is said."""

    def __init__(self, home, log, argv, parts, said=b""):
        self.home, self.log = home, log
        self.pids = {}
        root = Path(__file__).resolve().parents[2]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *argv],
                env=os.environ | {"PYTHONPATH": str(root)},
                stdout=file,
                stderr=file,
            )

        def up():
            assert self.process.poll() is None, log.read_text()
            with contextlib.suppress(OSError):
                state = json.loads((home / "run" / "stack.json").read_text())
                self.pids = state["pids"] if state["pid"] == self.process.pid else {}
            return set(self.pids) == parts and said in log.read_bytes()

        try:
            until(up, timeout_s=120, what=f"the stack to be up: {self.pids}")
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Leave nothing behind, whatever the test found."""
        self.process.kill()
        self.process.wait()
        for pid in self.pids.values():
            with contextlib.suppress(OSError):
                # Only what is still ours: the number may be somebody else's by now.
                if (
                    f"CALIFT_HOME={self.home}\0".encode()
                    in Path(f"/proc/{pid}/environ").read_bytes()
                ):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def hold(home, tmp_path, monkeypatch):
    """Start stacks in processes of their own, all on one home."""
    monkeypatch.setenv("CALIFT_TOKEN", "admin.0123456789abcdef0123")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    started = []

    def start(*arguments):
        started.append(Held(home, tmp_path / f"log-{len(started)}", *arguments))
        return started[-1]

    yield start
    for held in started:
        held.end()


def test_up__starts_after_a_killed_stack_logs_in_by_its_link_and_leaves_nothing(home, hold, capsys):
    killed = hold(["-c", BARE], {"broker", "api", "worker"})
    killed.process.kill()
    killed.process.wait()
    for name, pid in killed.pids.items():
        until(lambda pid=pid: not alive(pid), what=f"the {name} to die with its supervisor")
    assert (home / "run" / "stack.json").exists()  # nobody was there to clean up

    ports = [f"--{name}-port={free_port()}" for name in ("api", "dashboard")]
    parts = {"broker", "api", "worker", "dashboard"}
    up = hold(["-m", "calift", "up", *ports], parts, b"Ctrl-C")
    assert not set(up.pids.values()) & set(killed.pids.values())
    found = re.search(r"http://127\.0\.0\.1:\d+/enter\?code=\S+", up.log.read_text())
    assert found, up.log.read_text()
    status, cookie = opened(found[0])
    assert (status, "calift_session_" in cookie) == (303, True)
    assert opened(found[0]) == (403, "")
    with pytest.raises(SystemExit) as ended:
        main(["link"])
    assert ended.value.code == 0
    another = capsys.readouterr().out.strip()
    assert another != found[0]
    assert opened(another)[0] == 303
    if Path("/proc/self/environ").exists():
        seen = Path(f"/proc/{up.pids['dashboard']}/environ").read_bytes()
        names = {item.partition(b"=")[0] for item in seen.split(b"\0")}
        assert b"CALIFT_API_URL" in names
        assert b"CALIFT_TOKEN" not in names
        assert b"0123456789abcdef0123" not in seen
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) in (0, 130), up.log.read_text()
    assert not [pid for pid in up.pids.values() if alive(pid)]
    assert not (home / "run" / "stack.json").exists()
    assert not socket_path(home).exists()
    with pytest.raises(SystemExit) as ended:
        main(["link"])
    assert ended.value.code == 1
    assert "calift up" in capsys.readouterr().err
