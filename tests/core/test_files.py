"""Atomic files: the old version or the new one, and nothing left behind."""

import errno
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calift_core.errors import DiskFullError, StorageError
from calift_core.files import atomic_path, atomic_write_bytes, atomic_write_json, sha256_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@settings(deadline=None)
@given(first=st.binary(max_size=64), second=st.binary(max_size=64))
def test_atomic_write_bytes__last_write_wins_and_leaves_one_file(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("files")
    target = folder / "a" / "b.bin"
    atomic_write_bytes(target, first)
    atomic_write_bytes(target, second)
    assert target.read_bytes() == second
    assert names(target.parent) == ["b.bin"]
    assert sha256_file(target) == hashlib.sha256(second).hexdigest()


def test_atomic_path__target_is_untouched_until_the_block_ends(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == target.parent
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt])
def test_atomic_path__a_block_that_raises_leaves_the_old_file_and_no_temporary(
    tmp_path, interruption
):
    target = tmp_path / "x.txt"
    target.write_text("old")

    def write():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise interruption

    with pytest.raises(interruption):
        write()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_atomic_path__a_block_that_writes_nothing_is_an_error_and_long_names_fit(tmp_path):
    with pytest.raises(StorageError, match=r"x\.txt"), atomic_path(tmp_path / "x.txt"):
        pass
    assert names(tmp_path) == []
    target = tmp_path / ("n" * 250)
    atomic_write_bytes(target, b"1")
    assert target.read_bytes() == b"1"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_atomic_path__no_space_left_is_a_disk_full_error(tmp_path):
    def write():
        with atomic_path(tmp_path / "x.bin") as temporary:
            temporary.write_bytes(b"half")
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(b"rest")

    with pytest.raises(DiskFullError) as caught:
        write()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert caught.value.code == "DISK_FULL"
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_atomic_write_bytes__a_write_cut_short_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")
    script = """
import resource, sys
from calift_core.errors import StorageError
from calift_core.files import atomic_write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    atomic_write_bytes(sys.argv[1], b"x" * 100_000)
except StorageError as error:
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert done.returncode == 7
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["x.bin"]


def test_atomic_write_bytes__a_file_where_a_folder_should_be_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        atomic_write_bytes(tmp_path / "file" / "x", b"")
    assert not isinstance(caught.value, DiskFullError)


def test_atomic_write_json__reads_back_and_ends_in_a_newline(tmp_path):
    target = tmp_path / "x.json"
    value = {"name": "réseau", "values": [1, 0.1, None, True]}
    atomic_write_json(target, value)
    text = target.read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n")
    assert "réseau" in text


@pytest.mark.parametrize(
    ("value", "error"), [(float("nan"), ValueError), ({"x": object()}, TypeError)]
)
def test_atomic_write_json__what_is_not_json_writes_nothing(tmp_path, value, error):
    target = tmp_path / "x.json"
    atomic_write_json(target, 1)
    with pytest.raises(error):
        atomic_write_json(target, value)
    assert names(tmp_path) == ["x.json"]
    assert target.read_text() == "1\n"


def test_sha256_file__a_missing_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot read"):
        sha256_file(tmp_path / "absent")
