"""A whole service as one folder, and back.

::

    DEST/manifest.json       what is in it; written last, so a folder without it is no backup
    DEST/database.sqlite     or database.dump, from one moment while everything went on
    DEST/artifacts/sha256/…  every file that the database of that moment names, hashed on the way
    DEST/token               the embedded stack's token, which sessions and cursors hang on

Files that an earlier backup in the same folder left are hashed and not copied again. With
`by_reference` none is copied: the manifest says where they lie, and each is read and hashed there.
"""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from backend.settings import Settings
from backend.storage.artifacts import ArtifactStore
from backend.storage.bucket import open_artifacts
from backend.store import migrations
from backend.store.dump import dump, is_empty, look_into, others, restore
from backend.store.engine import open_engine
from backend.store.files import Files
from calift_core import __version__
from calift_core.client import running_stack
from calift_core.errors import NotFoundError, SpecError, StorageError
from calift_core.files import atomic_path, atomic_write_json, sha256_file, storage_error
from calift_core.schema.base import Frozen

#: (done, of how many, what is done now)
Progress = Callable[[int, int, str], None]


class Manifest(Frozen):
    """`manifest.json` of a backup.

    Attributes:
        kind: `sqlite` or `postgresql`.
        revision: of the database's tables.
        contents: SHA-256 → bytes of every stored file that it names.
        by_reference: where they lie; empty: in the backup.
        missing: those of runs that were deleted while the backup was made.
    """

    format: int = 1
    version: str
    made_at: datetime
    kind: str
    revision: str
    database: str
    database_sha256: str
    runs: int
    contents: dict[str, int]
    by_reference: str = ""
    missing: list[str] = []

    @property
    def size_bytes(self) -> int:
        return sum(self.contents.values())


def back_up(
    settings: Settings,
    target: Path,
    *,
    by_reference: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> Manifest:
    """Write a backup to a folder, while the service goes on.

    Args:
        target: an empty folder, or one with an earlier backup of the same service.
        by_reference: copy no stored file; hash each where it lies.

    Raises:
        SpecError: the folder holds something else, or a tool is not installed.
        StorageError: a stored file is damaged or missing, or something cannot be written.
    """
    _check_target(target)
    engine = open_engine(settings.database_url)
    try:
        kind = engine.dialect.name
        name = "database.sqlite" if kind == "sqlite" else "database.dump"
        progress(0, 1, "the database")
        if kind == "sqlite" and not _sqlite_file(settings).is_file():
            raise NotFoundError(f"there is no database at {_sqlite_file(settings)}.")
        (target / "manifest.json").unlink(missing_ok=True)
        held = dump(engine, target / name)
        artifacts = open_artifacts(settings)
        missing = []
        for index, digest in enumerate(sorted(held.contents)):
            progress(index, len(held.contents), f"file {digest[:12]}…")
            try:
                _keep(artifacts, digest, None if by_reference else target)
            except NotFoundError:
                if Files(engine).referenced([digest]):
                    raise
                missing.append(digest)
        _copy_token(settings, target)
    finally:
        engine.dispose()
    manifest = Manifest(
        version=__version__,
        made_at=datetime.now(UTC),
        kind=kind,
        revision=held.revision,
        database=name,
        database_sha256=sha256_file(target / name),
        runs=held.runs,
        contents=held.contents,
        by_reference=_place_of(settings) if by_reference else "",
        missing=missing,
    )
    atomic_write_json(target / "manifest.json", manifest.model_dump(mode="json"))
    progress(1, 1, "done")
    return manifest


def put_back(
    settings: Settings,
    source: Path,
    *,
    replace: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> Manifest:
    """Make a service what a backup holds: its files first, its database last.

    Args:
        settings: of the service, which must not run.
        source: of `back_up`.
        replace: whether what the database holds may be lost.

    Raises:
        SpecError: the backup is of a newer version or another kind of database, the service runs,
            or its database is not empty and `replace` was not said.
        StorageError: something in the backup is damaged, or cannot be written. The database is as
            it was.
    """
    manifest = read_manifest(source)
    engine = open_engine(settings.database_url)
    try:
        _check_fits(settings, manifest, engine.dialect.name)
        if running_stack() is not None:
            raise SpecError("a calift stack is up here; stop it before its home is replaced.")
        if (sessions := others(engine)) > 0:
            raise SpecError(
                f"{sessions} other sessions use the database.",
                hint="Stop the API and the workers first.",
            )
        if not replace and _holds_something(settings, engine):
            raise SpecError(
                "the database here holds runs or tokens, which would be lost.",
                hint="Restore into an empty CALIFT_HOME or database, or say --replace.",
            )
        database = source / manifest.database
        if sha256_file(database) != manifest.database_sha256:
            raise StorageError(f"{database} is damaged: its SHA-256 is not that of the manifest.")
        _put_files_back(settings, source, manifest, progress)
        progress(0, 1, "the database")
        if manifest.kind == "sqlite":
            engine.dispose()
            _put_sqlite_back(database, _sqlite_file(settings))
        else:
            restore(engine, database)
        _put_token_back(settings, source)
        migrations.upgrade(engine)
    finally:
        engine.dispose()
    progress(1, 1, "done")
    return manifest


def read_manifest(source: Path) -> Manifest:
    """What a backup says it holds.

    Raises:
        SpecError: the folder is no whole backup, or one of a newer version.
    """
    try:
        found: Any = json.loads((source / "manifest.json").read_bytes())
        if isinstance(found, dict) and int(found.get("format", 0)) > 1:
            raise SpecError(
                f"{source} was made by calift {found.get('version')}, whose backups this version "
                f"({__version__}) cannot read.",
                hint="Restore it with that version or a newer one.",
            )
        manifest = Manifest.model_validate(found)
    except OSError as error:
        raise SpecError(
            f"{source} is no whole backup: it has no manifest.json.",
            hint="`calift backup` writes it last.",
        ) from error
    except (ValueError, TypeError, RecursionError, ValidationError) as error:
        raise SpecError(f"{source / 'manifest.json'} is no manifest of a backup.") from error
    migrations.check_known(manifest.revision, str(source))
    return manifest


def _check_target(target: Path) -> None:
    known = {"manifest.json", "database.sqlite", "database.dump", "artifacts", "token"}
    try:
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        there = {path.name for path in target.iterdir()}
    except OSError as error:
        raise storage_error(error, target, "write") from error
    foreign = sorted(name for name in there - known if not name.startswith("."))
    if foreign:
        raise SpecError(
            f"{target} must be empty or hold an earlier backup, got {', '.join(foreign[:5])}."
        )


def _keep(artifacts: ArtifactStore, digest: str, target: Path | None) -> None:
    """See that a content is whole where it lies, or in the backup.

    Raises:
        NotFoundError: it is not stored.
        StorageError: it is damaged.
    """
    if target is None:
        artifacts.check(digest)
        return
    copy = _copy_of(target, digest)
    if not copy.is_file() or sha256_file(copy) != digest:
        artifacts.export(digest, copy)


def _copy_of(folder: Path, digest: str) -> Path:
    return ArtifactStore(folder / "artifacts").path(digest)


def _put_files_back(
    settings: Settings, source: Path, manifest: Manifest, progress: Progress
) -> None:
    artifacts = open_artifacts(settings)
    wanted = sorted(manifest.contents.keys() - set(manifest.missing))
    for index, digest in enumerate(wanted):
        progress(index, len(wanted), f"file {digest[:12]}…")
        if manifest.by_reference:
            try:
                artifacts.check(digest)
            except NotFoundError as error:
                raise StorageError(
                    f"the backup refers to files in {manifest.by_reference}, and {digest[:12]}… "
                    f"is not in {_place_of(settings)}.",
                    hint="Set CALIFT_ARTIFACTS to the store that the backup was made with.",
                ) from error
            continue
        copy = _copy_of(source, digest)
        if not copy.is_file() or sha256_file(copy) != digest:
            state = "damaged" if copy.is_file() else "missing"
            raise StorageError(f"the backup's file {digest[:12]}… is {state}: {copy}")
        if artifacts.put_file(copy).sha256 != digest:
            raise StorageError(f"the backup's file {digest[:12]}… changed while it was read.")


def _check_fits(settings: Settings, manifest: Manifest, kind: str) -> None:
    if kind != manifest.kind:
        raise SpecError(
            f"the backup is of a {manifest.kind} database, and CALIFT_DATABASE_URL names a {kind} "
            "one.",
            hint="Restore it into a database of its own kind.",
        )


def _holds_something(settings: Settings, engine: Any) -> bool:
    if engine.dialect.name == "sqlite" and not _sqlite_file(settings).is_file():
        return False
    return not is_empty(engine)


def _sqlite_file(settings: Settings) -> Path:
    return Path(settings.database_url.removeprefix("sqlite:///"))


def _place_of(settings: Settings) -> str:
    return settings.artifacts_url or str(settings.artifacts_dir)


def _put_sqlite_back(source: Path, target: Path) -> None:
    look_into(source)
    if target.is_file():
        # What the write-ahead log holds belongs to the file that goes.
        with closing(sqlite3.connect(target)) as old:
            old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for end in ("-wal", "-shm"):
        target.with_name(target.name + end).unlink(missing_ok=True)
    with atomic_path(target) as temporary:
        temporary.touch(mode=0o600)
        shutil.copyfile(source, temporary)


def _copy_token(settings: Settings, target: Path) -> None:
    path = settings.token_file
    if settings.token is None and path is not None and path.is_file():
        _copy_private(path, target / "token")


def _put_token_back(settings: Settings, source: Path) -> None:
    path = settings.token_file
    if settings.token is None and path is not None and (source / "token").is_file():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _copy_private(source / "token", path)


def _copy_private(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(source.read_bytes())
