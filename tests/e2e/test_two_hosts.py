"""Two hosts with workers of their own, one Postgres, one broker and one bucket; one is cut off.

The hosts are network namespaces. Workers, Celery, Postgres, Valkey and Ceph's radosgw are real; the
runner is the stand-in of `tests/worker`, which checkpoints like the real one.
"""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url

from backend.children.process import ManagedProcess
from backend.settings import Settings
from backend.storage.bucket import BucketStore, open_artifacts
from backend.store.engine import open_engine
from backend.store.stores import Stores
from tests.conftest import fresh_postgres, spec_of, until
from tests.support import hosts, radosgw
from tests.support.hosts import Host, Relay
from tests.support.parts import Broker, environment_of, running_broker
from tests.worker.test_supervisor import processes

pytestmark = pytest.mark.service

ROOT = Path(__file__).parents[2]
#: Of the lease: short, so that the test is, and long enough for a machine that is busy.
TIMES = {"ttl_s": 6.0, "heartbeat_s": 0.5, "cancel_poll_s": 0.2, "group_s": 0.1}


@pytest.fixture(scope="module")
def s3():
    for reason in (hosts.missing(), radosgw.missing()):
        if reason:
            pytest.skip(reason)
    pytest.importorskip("s3fs")
    with radosgw.radosgw() as server:
        yield server


@pytest.fixture
def broker():
    with running_broker() as made:
        yield made


@pytest.fixture
def database(postgres):
    with fresh_postgres(postgres) as url:
        yield url


class Lab:
    """What both hosts share, and a worker on each."""

    def __init__(self, folder: Path, url: str, broker: Broker, s3: radosgw.Server) -> None:
        self.folder, self.url, self.broker, self.s3 = folder, url, broker, s3
        self._relays: list[Relay] = []
        self._children: list[ManagedProcess] = []

    def home(self, host: Host) -> Path:
        """What is the host's alone."""
        return self.folder / host.name

    def start_worker(self, host: Host) -> None:
        """A worker that reaches everything through the host's cable alone."""
        parsed = make_url(self.url)
        folder, port = parsed.query.get("host"), parsed.port or 5432
        servers: dict[str, str | tuple[str, int]] = {
            "database": f"{folder}/.s.PGSQL.{port}" if folder else (parsed.host or "", port),
            "broker": str(self.broker.socket),
            "s3": ("127.0.0.1", int(self.s3.url.rpartition(":")[2])),
        }
        ports = {}
        for name, to in servers.items():
            relay = Relay(host, to)
            self._relays.append(relay)
            ports[name] = relay.port
        over = parsed.set(host=host.address, port=ports["database"], query={})
        home = self.home(host)
        home.mkdir()
        environment = environment_of(
            home,
            artifacts="s3://two-hosts/lab",
            s3_access_key=self.s3.key,
            s3_secret_key=self.s3.secret,
            s3_endpoint_url=f"http://{host.address}:{ports['s3']}",
            database_url=over.render_as_string(hide_password=False),
            broker_url=f"redis://{host.address}:{ports['broker']}/0",
            redispatch_s=2,
        )
        worker = [sys.executable, str(ROOT / "tests/worker/standin_worker.py"), json.dumps(TIMES)]
        output = self.folder / f"{host.name}.log"
        self._children.append(
            ManagedProcess(host.argv(worker), output=output, environment=environment)
        )

    def logs(self) -> str:
        return "\n".join(p.read_text(errors="replace")[-3000:] for p in self.folder.glob("*.log"))

    def ends(self, store: Stores, *runs: str) -> None:
        """Wait until runs have succeeded."""
        for run_id in runs:
            until(
                lambda run_id=run_id: store.claims.phase(run_id) == "SUCCEEDED",
                timeout_s=180,
                what=f"{run_id} to end\n{self.logs()}",
            )

    def close(self) -> None:
        for child in self._children:
            child.reap()
        for relay in self._relays:
            relay.close()


def runners(home: Path) -> set[str]:
    """The runs whose runner is at work on a host."""
    mark = f"{home}/jobs/"
    return {
        word.removeprefix(mark).partition("/")[0]
        for _, argv in processes()
        for word in argv
        if word.startswith(mark)
    }


def test_host__reaches_this_machine_and_its_network_stays_as_it_was():
    if reason := hosts.missing():
        pytest.skip(reason)
    before = socket.if_nameindex()
    with socket.create_server(("127.0.0.1", 0)) as server, hosts.host(3) as host:
        relay = Relay(host, ("127.0.0.1", server.getsockname()[1]))
        assert socket.if_nameindex() == before  # a change ends every connection of a Chromium
        call = f"import socket; socket.create_connection(('{host.address}', {relay.port}))"
        subprocess.run(host.argv([sys.executable, "-c", call]), check=True)
        server.settimeout(10)
        server.accept()[0].close()
        relay.close()


def test_two_hosts__one_is_cut_off_and_its_run_goes_on_at_the_other(
    tmp_path, database, broker, s3, home
):
    store = Stores.on(open_engine(database))
    lab = Lab(tmp_path, database, broker, s3)
    settings = Settings(
        home=home,
        artifacts="s3://two-hosts/lab",
        s3_endpoint_url=s3.url,
        s3_access_key=s3.key,
        s3_secret_key=s3.secret,
    )
    artifacts = open_artifacts(settings)
    assert isinstance(artifacts, BucketStore)
    artifacts._fs.mkdir("two-hosts")
    gates = [tmp_path / "gate 0", tmp_path / "gate 1"]
    waits = [
        store.runs.submit(
            spec_of(notes=json.dumps({"steps": 20, "wait_at": 17, "wait_for": str(gate)}))
        )
        for gate in gates
    ]
    try:
        with hosts.host(1) as one, hosts.host(2) as two:
            for each in (one, two):
                lab.start_worker(each)

            def spread():
                """The run of the first host, once each has one."""
                at = [sorted(runners(lab.home(each))) for each in (one, two)]
                apart = [len(a) for a in at] == [1, 1] and sorted(at[0] + at[1]) == sorted(waits)
                return at[0][0] if apart else None

            mine = until(spread, timeout_s=240, what=f"a run on each host\n{lab.logs()}")
            until(
                lambda: "states/00000015/manifest.json" in stored(store, mine),
                timeout_s=120,
                what=f"the checkpoint in the bucket: {stored(store, mine)}\n{lab.logs()}",
            )
            one.cut()
            # It has no word from the database: it stops its runner before the lease is over.
            until(lambda: not runners(lab.home(one)), timeout_s=60, what="the cut host to stop")
            for gate in gates:
                gate.touch()
            lab.ends(store, *waits)
            resumed = [
                event.data["step"]
                for event in store.history.events_after(mine, 0)[0]
                if event.kind == "resumed"
            ]
            assert resumed == [15]
            assert store.runs.get(mine).lost_attempts == 1
            (curve,) = store.history.metrics(mine, names=["loss"]).series
            assert curve.steps == list(range(1, 21))
            (lab.home(one) / "jobs").rename(lab.folder / "what the cut host had")
            for kept in store.files.of_run(mine):
                assert artifacts.verified(kept.sha256).is_file()
            # The host comes back and takes runs again.
            one.mend()
            later = [
                store.runs.submit(
                    spec_of(notes=json.dumps({"wait_at": 3, "wait_for": str(tmp_path / "last")}))
                )
                for _ in range(2)
            ]
            until(
                lambda: len(runners(lab.home(one))) == 1 == len(runners(lab.home(two))),
                timeout_s=180,
                what=f"both hosts at work again\n{lab.logs()}",
            )
            (tmp_path / "last").touch()
            lab.ends(store, *later)
    finally:
        lab.close()
        store.close()


def stored(store: Stores, run_id: str) -> list[str]:
    """Names of the run's checkpoints in the bucket."""
    return [file.name for file in store.files.of_run(run_id, kind="state")]
