"""Stored files: whole or absent, verified when read, collected by reference."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from backend.storage.artifacts import ArtifactStore, check_name, publish_artifact
from backend.store.engine import writing
from backend.store.stores import Stores
from calift_core.errors import DiskFullError, NotFoundError, SpecError, StorageError
from tests.conftest import spec_of


@pytest.fixture
def artifacts(tmp_path):
    return ArtifactStore(tmp_path / "artifacts")


def files(artifacts: ArtifactStore) -> list[Path]:
    return [p for p in artifacts.root.rglob("*") if p.is_file()]


@given(data=st.binary(max_size=2000))
def test_put__file_and_bytes_lie_under_the_same_hash(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("put")
    artifacts = ArtifactStore(folder / "a")
    (folder / "file").write_bytes(data)
    blob = artifacts.put_file(folder / "file")
    assert artifacts.put_bytes(data) == blob
    assert len(files(artifacts)) == 1
    digest = hashlib.sha256(data).hexdigest()
    assert (blob.sha256, blob.size_bytes) == (digest, len(data))
    path = artifacts.verified(digest)
    assert path == artifacts.root / "sha256" / digest[:2] / digest[2:4] / digest
    assert path.read_bytes() == data


def test_put__below_the_free_space_floor_is_refused_and_tears_nothing(artifacts, tmp_path):
    source = tmp_path / "file"
    source.write_bytes(b"x" * 1000)
    full = ArtifactStore(artifacts.root, free_space_floor_bytes=1 << 60)
    for put in (lambda: full.put_file(source), lambda: full.put_bytes(b"x" * 1000)):
        with pytest.raises(DiskFullError, match="must stay free"):
            put()
    assert files(artifacts) == []
    blob = artifacts.put_file(source)
    assert full.put_file(source) == blob, "what is here already needs no space"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_put__no_space_left_is_a_disk_full_error(artifacts, tmp_path, monkeypatch):
    source = tmp_path / "file"
    source.write_bytes(b"x" * 100_000)
    opened = Path.open

    def on_a_full_device(self, *args, **kwargs):
        self.touch()
        return opened(Path("/dev/full") if self.suffix == ".tmp" else self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", on_a_full_device)
    with pytest.raises(DiskFullError):
        artifacts.put_file(source)
    monkeypatch.undo()
    assert files(artifacts) == []


def test_place__gives_the_content_and_outlives_its_collection(artifacts, store, tmp_path):
    blob = artifacts.put_bytes(b"weights")
    target = tmp_path / "job" / "inputs" / "model"
    artifacts.place(blob.sha256, target)
    assert target.read_bytes() == b"weights"
    assert artifacts.collect(store.files, grace_s=0) == [blob.sha256]
    assert target.read_bytes() == b"weights"
    with pytest.raises(NotFoundError):
        artifacts.place(blob.sha256, tmp_path / "other")


def test_place__copies_where_links_do_not_work(artifacts, tmp_path, monkeypatch):
    def another_device(*_, **__):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", another_device)
    blob = artifacts.put_bytes(b"weights")
    artifacts.place(blob.sha256, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == b"weights"
    assert (tmp_path / "model").stat().st_ino != artifacts.path(blob.sha256).stat().st_ino


def test_put__links_and_folders_are_refused(artifacts, tmp_path):
    (tmp_path / "secret").write_text("s")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    for source in (tmp_path / "link", tmp_path):
        with pytest.raises(StorageError, match="regular file"):
            artifacts.put_file(source)
    with pytest.raises(StorageError):
        artifacts.put_file(tmp_path / "missing")


def test_verified__damage_is_found(artifacts):
    blob = artifacts.put_bytes(b"content")
    path = artifacts.verified(blob.sha256)
    path.write_bytes(b"cOntent")
    with pytest.raises(StorageError, match="damaged"):
        artifacts.verified(blob.sha256)
    path.unlink()
    with pytest.raises(NotFoundError):
        artifacts.verified(blob.sha256)


def test_verified__planted_link_is_refused(artifacts, tmp_path):
    (tmp_path / "secret").write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    path = artifacts.path(digest)
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError, match="regular file"):
        artifacts.verified(digest)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_path__takes_nothing_but_a_hash(artifacts, digest):
    with pytest.raises(SpecError):
        artifacts.path(digest)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/../b", "/a", "a/", "a//b", ".hidden", "a/.b", "a\\b", "a b", "ü", "a\n",
     "a" * 301, "a\x00", "~", "-rf"],
)  # fmt: skip
def test_name__that_is_not_allowed(name):
    with pytest.raises(SpecError, match="artifact's name"):
        check_name(name)


@pytest.mark.parametrize("name", ["report.json", "predictions/fog-3.parquet", "a/b/c_1.2+x=y@z"])
def test_name__that_is_allowed(name):
    assert check_name(name) == name


def run_with(store: Stores, artifacts: ArtifactStore, source: Path, name: str = "a") -> str:
    run_id = store.runs.submit(spec_of())
    assert store.claims.claim(run_id, worker_id="w", ttl_s=60) is not None
    assert publish_artifact(store.files, artifacts, run_id, 1, name=name, kind="other", path=source)
    assert store.claims.finish(run_id, 1, phase="SUCCEEDED")
    return run_id


def test_publish__fenced_off_attempt_names_nothing(store, artifacts, tmp_path):
    (tmp_path / "file").write_text("x")
    run_id = run_with(store, artifacts, tmp_path / "file")
    assert not publish_artifact(
        store.files, artifacts, run_id, 1, name="late", kind="other", path=tmp_path / "file"
    )
    assert [a.name for a in store.files.of_run(run_id)] == ["a"]


def test_collect__by_reference(store, artifacts, tmp_path):
    for name in ("shared", "own"):
        (tmp_path / name).write_text(name)
    first = run_with(store, artifacts, tmp_path / "shared")
    second = run_with(store, artifacts, tmp_path / "shared")
    lone = run_with(store, artifacts, tmp_path / "own")
    stray = artifacts.put_bytes(b"stray").sha256
    assert artifacts.collect(store.files, grace_s=3600) == []
    assert artifacts.collect(store.files, grace_s=0) == [stray]
    assert artifacts.collect(store.files, grace_s=0, digests=store.runs.delete(first)) == []
    gone = store.runs.delete(lone)
    assert artifacts.collect(store.files, grace_s=0, digests=gone) == gone
    shared = store.runs.delete(second)
    assert artifacts.collect(store.files, grace_s=0, digests=shared) == shared
    assert files(artifacts) == []


def test_collect__storing_again_renews_the_grace(store, artifacts):
    digest = artifacts.put_bytes(b"x").sha256
    os.utime(artifacts.path(digest), (1, 1))
    artifacts.put_bytes(b"x")
    assert artifacts.collect(store.files, grace_s=60) == []
    os.utime(artifacts.path(digest), (1, 1))
    assert artifacts.collect(store.files, grace_s=60) == [digest]


@pytest.mark.parametrize("named", [True, False])
def test_collect__what_a_killed_process_left(store, artifacts, tmp_path, named):
    source = tmp_path / "file"
    source.write_bytes(b"content")
    run_id = store.runs.submit(spec_of())
    assert store.claims.claim(run_id, worker_id="w", ttl_s=60) is not None
    assert publish_artifact(
        store.files, artifacts, run_id, 1, name="checkpoint/a", kind="checkpoint", path=source
    )
    # Killed while it stored the next file: the real names, made by a real kill.
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(artifacts.root), str(source)],
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert killed.returncode == -signal.SIGKILL
    # Killed while it deleted one.
    path = artifacts.path(hashlib.sha256(b"content").hexdigest())
    gone = path.with_name(f".{path.name}.0a1b2c3d.gone")
    path.rename(gone)
    if not named:
        with writing(store.engine) as connection:
            connection.execute(text("DELETE FROM artifacts"))
    left = [p for p in files(artifacts) if p.name.startswith(".")]
    assert len(left) == 2
    artifacts.collect(store.files, grace_s=0.0)
    assert [p for p in files(artifacts) if p.name.startswith(".")] == left, "it may be in use"
    for found in left:
        os.utime(found, (1.0, 1.0))
    artifacts.collect(store.files, grace_s=0.0)
    assert files(artifacts) == ([path] if named else [])


_KILLED = """
import os, signal, sys
from pathlib import Path
from backend.storage import artifacts

class Digest:
    def update(self, piece):
        os.kill(os.getpid(), signal.SIGKILL)

store = artifacts.ArtifactStore(Path(sys.argv[1]))
source = Path(sys.argv[2]).with_name("other")
source.write_bytes(b"another content")
artifacts.hashlib.sha256 = Digest
store.put_file(source)
"""
