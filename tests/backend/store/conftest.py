"""The store's tests run on each kind of database; those of what is built on it run on SQLite."""

import pytest


@pytest.fixture
def database_url(each_database):
    """A database of each kind."""
    return each_database
