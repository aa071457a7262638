"""Whether the service can do its work: its database, tables, broker and artifact store answer."""

from __future__ import annotations

import logging
from collections.abc import Callable

from celery import Celery
from sqlalchemy.exc import SQLAlchemyError

from backend import migrations
from backend.artifacts import ArtifactStore
from backend.database_errors import OTHER_SCHEMA, UNAVAILABLE, fault_of
from backend.queue import broker_answers
from backend.store import Store
from calift_core.errors import CaliftError

CHECKS = ("database", "schema", "broker", "artifacts")

_log = logging.getLogger(__name__)


def lacking(store: Store, celery: Celery, artifacts: ArtifactStore) -> dict[str, str]:
    """Look at everything: check → a sentence for strangers, of those that fail."""
    found: dict[str, str] = {}

    def look(check: str, question: Callable[[], str]) -> None:
        try:
            answer = question()
        except SQLAlchemyError as error:
            answer = (fault_of(error) or UNAVAILABLE).message
            _log.warning("%s: %s", check, error)
        except CaliftError as error:
            # Its own sentence names paths, which are for the log.
            answer = f"the {check} cannot be used."
            _log.warning("%s: %s", check, error)
        if answer:
            found[check] = answer

    look("database", lambda: _database(store))
    if "database" not in found:
        look("schema", lambda: _schema(store))
    look("broker", lambda: "" if broker_answers(celery) else "the broker does not answer.")
    look("artifacts", lambda: _artifacts(artifacts))
    return found


def _database(store: Store) -> str:
    store.now()
    return ""


def _schema(store: Store) -> str:
    current = migrations.current_revision(store.engine) == migrations.newest_revision()
    return "" if current else OTHER_SCHEMA.message


def _artifacts(artifacts: ArtifactStore) -> str:
    artifacts.free_bytes()
    return ""
