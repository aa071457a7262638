"""Whether the service can do its work: its database, tables, broker and artifact store answer."""

from __future__ import annotations

import logging
from collections.abc import Callable

from celery import Celery
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from backend import migrations
from backend.artifacts import ArtifactStore
from backend.queue import broker_answers
from backend.store.engine import schema_revision, seconds_now
from backend.store.errors import OTHER_SCHEMA, UNAVAILABLE, fault_of
from calift_core.errors import CaliftError

CHECKS = ("database", "schema", "broker", "artifacts")

_log = logging.getLogger(__name__)


class Readiness:
    """Looks at everything, and logs what changes."""

    def __init__(self, engine: Engine, celery: Celery, artifacts: ArtifactStore) -> None:
        self._engine, self._celery, self._artifacts = engine, celery, artifacts
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
                answer, detail = f"the {check} cannot be used.", str(error)
            if answer:
                found[check], details[check] = answer, detail

        look("database", self._database)
        if "database" not in found:
            look("schema", self._schema)
        look("broker", self._broker)
        look("artifacts", self._store)
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
