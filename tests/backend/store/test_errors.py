"""A database error says what it is, and nothing of the statement that met it."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.testclient import TestClient

from backend.store.engine import open_engine, reading, writing
from backend.store.errors import fault_of
from backend.store.stores import Stores
from tests.backend.test_api import SPEC, problem, submit
from tests.conftest import free_port

on_sqlite = pytest.mark.parametrize("each_database", ["sqlite"], indirect=True)
on_postgres = pytest.mark.parametrize("each_database", ["postgres"], indirect=True)


@pytest.fixture
def engine(bare):
    return bare.app.state.services.store.engine


def refused(bare: TestClient, status: int, code: str) -> None:
    response = bare.post("/api/v1/runs", json={"spec": SPEC | {"notes": "a secret note"}})
    found = problem(response, status, code)
    assert found.hint
    for leak in ("SQL", "INSERT", "sqlite3", "psycopg", "runs", "secret note", "sqlalche.me"):
        assert leak not in found.detail, leak
        assert leak not in response.text.replace(found.hint, ""), leak


def each_connection(engine: Any, *, sqlite: str, postgres: str = "") -> None:
    """Set something on connections that are opened from now on."""
    words = f"PRAGMA {sqlite}" if engine.dialect.name == "sqlite" else f"SET {postgres}"

    def set_it(connection: Any, _record: Any) -> None:
        connection.execute(words)
        connection.commit()

    event.listen(engine, "connect", set_it)
    engine.dispose()


def test_fault__busy(bare, engine):
    each_connection(engine, sqlite="busy_timeout=1", postgres="lock_timeout = 1")
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":  # a writer of SQLite locks the whole file
            connection.execute(text("LOCK TABLE runs"))
        refused(bare, 503, "DATABASE_BUSY")
    submit(bare)


def test_fault__every_connection_in_use(bare, engine):
    engine.pool._timeout = 0.01
    with contextlib.ExitStack() as stack:
        for _ in range(engine.pool.size() + engine.pool._max_overflow):
            stack.enter_context(reading(engine))
        refused(bare, 503, "DATABASE_BUSY")
    submit(bare)


@on_sqlite
def test_fault__disk_full(bare, engine):
    with reading(engine) as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
    each_connection(engine, sqlite=f"max_page_count={pages}")
    run_ids = []
    for _ in range(500):
        response = bare.post("/api/v1/runs", json={"spec": SPEC})
        if response.status_code != 202:
            break
        run_ids.append(response.json()["id"])
    problem(response, 507, "DATABASE_FULL")
    refused(bare, 507, "DATABASE_FULL")
    # What was taken before is whole.
    assert bare.get("/api/v1/runs").json()["total"] == len(run_ids)


def test_fault__read_only(bare, engine):
    each_connection(engine, sqlite="query_only=ON", postgres="default_transaction_read_only = on")
    refused(bare, 503, "DATABASE_READ_ONLY")
    assert bare.get("/api/v1/runs").status_code == 200


@pytest.mark.parametrize(
    "change", ["ALTER TABLE runs RENAME TO r", "ALTER TABLE runs RENAME COLUMN notes TO n"]
)
def test_fault__other_schema(bare, engine, change):
    back = change.replace("runs RENAME TO r", "r RENAME TO runs").replace(
        "notes TO n", "n TO notes"
    )
    with writing(engine) as connection:
        connection.execute(text(change))
    try:
        refused(bare, 503, "DATABASE_SCHEMA")
    finally:
        with writing(engine) as connection:
            connection.execute(text(back))
    submit(bare)


@on_sqlite
def test_fault__damaged(bare, engine, tmp_path):
    submit(bare)
    engine.dispose()
    file = Path(engine.url.database)
    for name in ("-wal", "-shm"):
        file.with_name(file.name + name).unlink(missing_ok=True)
    file.write_bytes(b"nothing that SQLite knows" * 1000)
    refused(bare, 500, "DATABASE_DAMAGED")


@on_postgres
@pytest.mark.parametrize(
    ("state", "status", "code"),
    [("disk_full", 507, "DATABASE_FULL"), ("data_corrupted", 500, "DATABASE_DAMAGED")],
)
def test_fault__as_the_server_says(bare, engine, state, status, code):
    with writing(engine) as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"RAISE EXCEPTION 'a secret note of runs' USING ERRCODE = '{state}'; END $$;"
            "CREATE TRIGGER fail BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION fail()"
        )
    try:
        refused(bare, status, code)
        assert bare.get("/api/v1/runs").json()["total"] == 0
    finally:
        with writing(engine) as connection:
            connection.exec_driver_sql("DROP FUNCTION fail CASCADE")
    submit(bare)


def test_fault__no_server_answers(bare):
    dead = open_engine(f"postgresql://calift:hunter2@127.0.0.1:{free_port()}/calift")
    object.__setattr__(bare.app.state.services, "store", Stores.on(dead))
    response = bare.get("/api/v1/runs")
    found = problem(response, 503, "DATABASE_UNAVAILABLE")
    assert response.headers["retry-after"]
    assert "hunter2" not in response.text
    assert "127.0.0.1" not in found.detail


def wrapped(cause: Exception) -> DBAPIError:
    return ProgrammingError("SELECT 1", {}, cause)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (pg.ConnectionFailure("x"), "DATABASE_UNAVAILABLE"),
        (pg.AdminShutdown("x"), "DATABASE_UNAVAILABLE"),
        (pg.CannotConnectNow("x"), "DATABASE_UNAVAILABLE"),
        (psycopg.OperationalError("connection refused"), "DATABASE_UNAVAILABLE"),
        (pg.DiskFull("x"), "DATABASE_FULL"),
        (pg.TooManyConnections("x"), "DATABASE_BUSY"),
        (pg.DeadlockDetected("x"), "DATABASE_BUSY"),
        (pg.SerializationFailure("x"), "DATABASE_BUSY"),
        (pg.QueryCanceled("x"), "DATABASE_BUSY"),
        (pg.ReadOnlySqlTransaction("x"), "DATABASE_READ_ONLY"),
        (pg.InvalidPassword("x"), "DATABASE_REFUSED"),
        (pg.InvalidCatalogName("x"), "DATABASE_REFUSED"),
        (pg.InsufficientPrivilege("x"), "DATABASE_REFUSED"),
        (pg.UndefinedTable("x"), "DATABASE_SCHEMA"),
        (pg.UndefinedColumn("x"), "DATABASE_SCHEMA"),
        (pg.DataCorrupted("x"), "DATABASE_DAMAGED"),
        (pg.SyntaxError("x"), None),
        (pg.NumericValueOutOfRange("x"), None),
        (psycopg.ProgrammingError("x"), None),
        (sqlite3.ProgrammingError("x"), None),
    ],
)
def test_fault__by_what_the_driver_says(error, code):
    found = fault_of(wrapped(error))
    assert (found.code if found else None) == code


def test_fault__of_the_pool():
    found = fault_of(PoolTimeoutError("QueuePool limit of size 5 overflow 10 reached"))
    assert found.code == "DATABASE_BUSY"


def test_fault__mistake_of_ours_is_500_without_the_statement(bare, engine, monkeypatch):
    def wrong():
        with reading(engine) as connection:
            connection.execute(text("SELEKT a secret"))

    monkeypatch.setattr(bare.app.state.services.store.workers, "recent", wrong)
    response = bare.get("/api/v1/workers")
    problem(response, 500, "INTERNAL")
    assert "SELEKT" not in response.text
