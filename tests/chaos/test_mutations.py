"""The list of `make mutations` follows the tree: every text is there once, and so are its tests."""

from pathlib import Path

import pytest

from tests.chaos.mutations import MUTATIONS, ROOT


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation__finds_its_text_and_its_tests(name):
    mutation = MUTATIONS[name]
    assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.old) == 1
    assert mutation.old != mutation.new
    files = [word for word in mutation.tests if word.startswith("tests/")]
    assert files
    assert all((ROOT / Path(file.partition("::")[0])).is_file() for file in files)
