"""The store's tests run on each kind of database; those of what is built on it run on SQLite."""

from __future__ import annotations

import pytest


@pytest.fixture
def database_url(each_database: str) -> str:
    """A database of each kind."""
    return each_database
