"""A backup restores to the same service, on both databases; what does not fit is a sentence."""

import json
import os
from typing import Any

import pytest
from sqlalchemy import text

from backend.settings import Settings
from backend.storage.backup import back_up, put_back
from backend.storage.bucket import BucketStore, open_artifacts
from backend.store import migrations
from backend.store.dump import dump, others
from backend.store.engine import open_engine, writing
from backend.store.stores import Stores
from calift.commands.main import main
from calift_core.errors import CaliftError, SpecError, StorageError
from tests.conftest import fresh_postgres, postgres_binaries, spec_of


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    """Where no client of Postgres is installed, the one beside the server that tests start."""
    found = postgres_binaries()
    if found is not None:
        monkeypatch.setenv("PATH", f"{os.environ['PATH']}{os.pathsep}{found}")


@pytest.fixture
def database_url(each_database):
    return each_database


@pytest.fixture
def settings(make_settings, database_url):
    return make_settings(database_url=database_url)


@pytest.fixture
def elsewhere(request, make_settings, settings, tmp_path):
    """An empty home, with an empty database of the same kind."""
    other = tmp_path / "elsewhere"
    if settings.database_url.startswith("sqlite"):
        yield make_settings(home=other, database_url="")
    else:
        with fresh_postgres(request.getfixturevalue("postgres"), empty=True) as url:
            yield make_settings(home=other, database_url=url)


@pytest.fixture
def filled(settings, store, finished_run):
    """A service with a finished run, a waiting one and a token of its own."""
    settings.admin_token()
    run_id = finished_run(store, open_artifacts(settings))
    store.runs.submit(spec_of(name="waits"))
    return run_id


def rows(store: Stores) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    from backend.store.models import Base

    with store.engine.connect() as connection:
        return {
            table.name: sorted(
                (tuple(map(str, row)) for row in connection.execute(table.select())), key=str
            )
            for table in Base.metadata.sorted_tables
        }


@pytest.mark.parametrize("by_reference", [False, True], ids=["copied", "by reference"])
def test_restore__gives_every_row_and_every_file(
    settings, elsewhere, store, filled, tmp_path, by_reference
):
    before = rows(store)
    made = back_up(settings, tmp_path / "backup", by_reference=by_reference)
    assert (made.runs, len(made.contents)) == (2, 2)
    copies = [p for p in (tmp_path / "backup" / "artifacts").rglob("*") if p.is_file()]
    assert len(copies) == (0 if by_reference else 2)
    if by_reference:
        shared = {"artifacts": str(settings.artifacts_dir)}
        elsewhere = Settings(**{**elsewhere.model_dump(), **shared})
    put_back(elsewhere, tmp_path / "backup")
    assert elsewhere.admin_token() == settings.admin_token()
    other = Stores.on(open_engine(elsewhere.database_url))
    try:
        assert rows(other) == before
        for file in other.files.of_run(filled):
            assert open_artifacts(elsewhere).verified(file.sha256).stat().st_size == file.size_bytes
        assert other.runs.get(filled).phase == "SUCCEEDED"
    finally:
        other.close()
    # What is there by now is not lost by a slip.
    with pytest.raises(SpecError, match="holds runs or tokens, which would be lost"):
        put_back(elsewhere, tmp_path / "backup")
    put_back(elsewhere, tmp_path / "backup", replace=True)


def test_backup__again_into_the_same_folder_copies_what_is_new_and_heals_what_is_damaged(
    settings, store, filled, finished_run, tmp_path
):
    target = tmp_path / "backup"
    first = back_up(settings, target)
    copies = sorted(p for p in (target / "artifacts").rglob("*") if p.is_file())
    copies[0].write_bytes(b"damaged")
    kept = copies[1].stat().st_mtime_ns
    finished_run(store, open_artifacts(settings), seed=3)
    second = back_up(settings, target)
    assert (len(first.contents), len(second.contents)) == (2, 4)
    assert copies[1].stat().st_mtime_ns == kept
    if settings.database_url.startswith("postgres"):
        with pytest.raises(SpecError, match="other sessions use the database"):
            put_back(settings, target, replace=True)
    store.close()
    put_back(settings, target, replace=True)


def test_restore__waits_for_a_session_that_is_closing(settings, monkeypatch):
    asking, closing = open_engine(settings.database_url), open_engine(settings.database_url)
    held = closing.connect()
    requested = []

    def meanwhile(seconds):
        requested.append(seconds)
        held.close()
        closing.dispose()

    monkeypatch.setattr("backend.store.dump.time.sleep", meanwhile)
    assert others(asking) == 0
    assert bool(requested) == settings.database_url.startswith("postgres")
    closing.dispose()
    asking.dispose()


def test_backup__damage_is_found_before_anything_is_replaced(
    settings, elsewhere, filled, tmp_path, store
):
    target = tmp_path / "backup"
    back_up(settings, target)
    copy = next(p for p in (target / "artifacts").rglob("*") if p.is_file())
    content = copy.read_bytes()
    copy.write_bytes(b"x" * len(content))
    with pytest.raises(StorageError, match="is damaged"):
        put_back(elsewhere, target)
    copy.write_bytes(content)
    database = next(target.glob("database.*"))
    database.write_bytes(database.read_bytes() + b"\0")
    with pytest.raises(StorageError, match="damaged: its SHA-256"):
        put_back(elsewhere, target)
    # A file that is damaged where it lies is not backed up as if it were good.
    digest = store.files.of_run(filled)[0].sha256
    open_artifacts(settings).path(digest).write_bytes(b"damaged")
    with pytest.raises(StorageError, match="damaged"):
        back_up(settings, tmp_path / "another")
    assert not (tmp_path / "another" / "manifest.json").exists()


def test_restore__of_a_newer_version_or_of_no_backup_is_a_sentence(
    settings, elsewhere, filled, tmp_path
):
    target = tmp_path / "backup"
    with pytest.raises(SpecError, match="is no whole backup"):
        put_back(elsewhere, target)
    back_up(settings, target)
    manifest = json.loads((target / "manifest.json").read_text())
    for change, words in (
        ({"revision": "9999"}, "newer version of calift: its tables are of revision 9999"),
        ({"format": 2}, "whose backups this version"),
        ({"kind": "oracle"}, "is of a oracle database"),
    ):
        (target / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(SpecError, match=words):
            put_back(elsewhere, target)
    (target / "holiday.jpg").touch()
    with pytest.raises(SpecError, match=r"empty or hold an earlier backup, got holiday\.jpg"):
        back_up(settings, target)


def test_database__of_a_newer_version_is_refused_and_left_alone(settings, store):
    newest = migrations.newest_revision()
    with writing(store.engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    try:
        with pytest.raises(SpecError, match=f"9999, and this version .* up to {newest}"):
            migrations.upgrade(store.engine)
    finally:
        with writing(store.engine) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": newest})
    migrations.upgrade(store.engine)


def test_backup__from_a_bucket_reads_past_the_copies(
    make_settings, sqlite_url, finished_run, tmp_path, monkeypatch
):
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory", skip_instance_cache=True)
    settings = make_settings(database_url=sqlite_url)
    bucket = BucketStore(fs, "backed-up", cache=tmp_path / "copies")
    monkeypatch.setattr("backend.storage.backup.open_artifacts", lambda _: bucket)
    store = Stores.on(open_engine(sqlite_url))
    finished_run(store, bucket)
    store.close()
    made = back_up(settings, tmp_path / "backup")
    assert not (tmp_path / "copies" / "sha256").exists()
    for digest in made.contents:
        fs.rm_file(bucket._key(digest))
    put_back(settings, tmp_path / "backup", replace=True)
    assert dict(bucket.walk()).keys() == made.contents.keys()
    back_up(settings, tmp_path / "referring", by_reference=True)
    fs.pipe_file(bucket._key(next(iter(made.contents))), b"damaged")
    with pytest.raises(StorageError, match="damaged"):
        put_back(settings, tmp_path / "referring", replace=True)


def test_postgres__without_its_tools_is_a_sentence(monkeypatch, tmp_path, postgres_database):
    monkeypatch.setattr("backend.store.dump.Path.glob", lambda *_: iter(()))
    monkeypatch.setattr("backend.store.dump.shutil.which", lambda _: None)
    engine = open_engine(postgres_database)
    try:
        with pytest.raises(CaliftError, match="with pg_dump, which is not installed"):
            dump(engine, tmp_path / "dump")
    finally:
        engine.dispose()
    assert list(tmp_path.glob("dump*")) == []


def test_command__backs_up_and_restores_a_home(
    make_settings, sqlite_url, home, finished_run, tmp_path, monkeypatch, capsys
):
    store = Stores.on(open_engine(sqlite_url))
    settings = make_settings(database_url=sqlite_url)
    finished_run(store, open_artifacts(settings))
    store.close()

    def calift(status, *words):
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        answer = capsys.readouterr()
        assert ended.value.code == status, answer.err
        return answer

    monkeypatch.setenv("CALIFT_DATABASE_URL", sqlite_url)
    target = str(tmp_path / "backup")
    done = calift(0, "backup", target)
    assert "1 run and 2 files of" in " ".join(done.out.split())  # a narrow terminal wraps
    new = tmp_path / "new"
    monkeypatch.setenv("CALIFT_HOME", str(new))
    monkeypatch.setenv("CALIFT_DATABASE_URL", f"sqlite:///{new}/calift.db")
    assert json.loads(calift(0, "restore", target, "--json").out)["files"] == 2
    assert "say --replace" in " ".join(calift(1, "restore", target).err.split())
