"""Whether the service can do its work: its parts answer, and its disk takes what is written."""

import logging
from collections.abc import Callable

from celery import Celery
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from backend.dispatch.queue import broker_answers
from backend.storage.artifacts import ArtifactStore
from backend.storage.health import StorageHealth
from backend.store import migrations
from backend.store.engine import database_file, schema_revision, seconds_now
from backend.store.errors import OTHER_SCHEMA, UNAVAILABLE, fault_of
from calift_core.errors import CaliftError, DiskFullError

CHECKS = ("database", "schema", "broker", "artifacts", "disk")

_log = logging.getLogger(__name__)


class Readiness:
    """Looks at everything, and logs what changes.

    Args:
        free_space_floor_bytes: what must be free on the devices of files and database.
    """

    def __init__(
        self,
        engine: Engine,
        celery: Celery,
        artifacts: ArtifactStore,
        *,
        free_space_floor_bytes: int,
    ) -> None:
        self._engine, self._celery, self._artifacts = engine, celery, artifacts
        folders = [artifacts.root]
        if (file := database_file(engine)) is not None:
            folders.append(file.parent)
        self._disk = StorageHealth(dict.fromkeys(folders, free_space_floor_bytes))
        self._failing: dict[str, str] = {}

    def lacking(self) -> dict[str, str]:
        """Check → a sentence for strangers, of those that fail now."""
        found: dict[str, str] = {}
        details: dict[str, str] = {}

        def look(check: str, question: Callable[[], str]) -> None:
            try:
                answer = detail = question()
            except SQLAlchemyError as error:
                answer, detail = (fault_of(error) or UNAVAILABLE).message, str(error)
            except CaliftError as error:
                # Its own sentence names paths, which are for the log.
                full = isinstance(error, DiskFullError)
                answer = f"the {check} {'has no room' if full else 'cannot be used'}."
                detail = str(error)
            if answer:
                found[check], details[check] = answer, detail

        look("database", self._database)
        if "database" not in found:
            look("schema", self._schema)
        look("broker", self._broker)
        look("artifacts", self._store)
        if "artifacts" not in found:
            look("disk", self._room)
        for check in details.keys() - self._failing.keys():
            _log.warning("not ready, %s: %s", check, details[check])
        for check in self._failing.keys() - details.keys():
            _log.info("ready again: %s", check)
        self._failing = details
        return found

    def _database(self) -> str:
        seconds_now(self._engine)
        return ""

    def _schema(self) -> str:
        current = schema_revision(self._engine) == migrations.newest_revision()
        return "" if current else OTHER_SCHEMA.message

    def _broker(self) -> str:
        return "" if broker_answers(self._celery) else "the broker does not answer."

    def _store(self) -> str:
        self._artifacts.probe()
        return ""

    def _room(self) -> str:
        if trouble := self._disk.problem():
            raise DiskFullError(trouble)
        return ""
