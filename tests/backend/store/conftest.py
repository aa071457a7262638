"""The store's tests run on each kind of database; those of what is built on it run on SQLite."""

import pytest

from tests.conftest import as_admin


@pytest.fixture
def database_url(each_database):
    """A database of each kind."""
    return each_database


@pytest.fixture
def bare(settings):
    """As admin; server errors come as answers."""
    with as_admin(settings, raise_server_exceptions=False) as caller:
        yield caller
