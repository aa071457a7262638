"""Files in an object store: the same promises as of a folder.

fsspec's memory is always tried, a real S3 server (Ceph's radosgw) where one is installed.
"""

import hashlib
import os
import random
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from backend.settings import Settings
from backend.storage.bucket import BucketStore, open_artifacts
from calift_core.errors import CaliftError, DiskFullError, NotFoundError, SpecError, StorageError
from tests.backend.test_artifacts import run_with
from tests.conftest import until
from tests.support.radosgw import Server, missing, radosgw

MIB = 1 << 20


@pytest.fixture(scope="module")
def s3_server():
    reason = missing()
    if reason:
        pytest.skip(reason)
    pytest.importorskip("s3fs")
    with radosgw() as server:
        yield server


def s3_settings(server: Server, home: Path, **values: Any) -> Settings:
    return Settings(
        home=home,
        artifacts=f"s3://calift-{uuid4().hex[:8]}/lab/runs",
        s3_endpoint_url=server.url,
        s3_access_key=server.key,
        s3_secret_key=server.secret,
        free_space_floor_bytes=0,
        **values,
    )


def opened(settings: Settings) -> BucketStore:
    made = open_artifacts(settings)
    assert isinstance(made, BucketStore)
    made._fs.mkdir(settings.artifacts_url.removeprefix("s3://").partition("/")[0])
    return made


@pytest.fixture(params=["memory", "s3"])
def make(request, tmp_path):
    """Stores on one bucket, as several machines have them: each with copies of its own."""
    fsspec = pytest.importorskip("fsspec")
    count = iter(range(100))
    if request.param == "s3":
        settings = s3_settings(request.getfixturevalue("s3_server"), tmp_path / "home")
        first = opened(settings)
        fs, where = first._fs, first._where
    else:
        fs, where = fsspec.filesystem("memory", skip_instance_cache=True), uuid4().hex

    def made(**options):
        cache = tmp_path / f"copies-{next(count)}"
        return BucketStore(fs, where, cache=cache, wait_s=0.0, **options)

    return made


@pytest.fixture
def bucket(make):
    return make()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def overwrite(store: BucketStore, digest: str, data: bytes) -> None:
    """What a broken disk of the object store would do."""
    store._fs.pipe_file(store._key(digest), data)


def test_put__another_machine_reads_it_by_its_hash(make, tmp_path):
    here, there = make(), make()
    blob = here.put_file(written(tmp_path / "file", b"content" * 1000), link=True)
    assert blob.sha256 == hashlib.sha256(b"content" * 1000).hexdigest()
    assert here.put_bytes(b"content" * 1000) == blob
    assert here.has(blob.sha256)
    assert dict(here.walk()).keys() == {blob.sha256}
    path = there.verified(blob.sha256)
    assert path.read_bytes() == b"content" * 1000
    assert path.is_relative_to(there.root)
    there.place(blob.sha256, tmp_path / "job" / "model")
    assert (tmp_path / "job" / "model").read_bytes() == b"content" * 1000


def test_read__damage_in_the_bucket_is_found_and_a_damaged_copy_is_fetched_anew(make):
    here, there = make(), make()
    blob = here.put_bytes(b"content")
    copy = here.verified(blob.sha256)
    copy.write_bytes(b"cOntent")
    assert here.verified(blob.sha256).read_bytes() == b"content"
    overwrite(here, blob.sha256, b"cOntent")
    with pytest.raises(StorageError, match="damaged"):
        there.verified(blob.sha256)
    assert not there.path(blob.sha256).exists(), "nothing damaged is left to be read"
    assert here.verified(blob.sha256).read_bytes() == b"content", "the copy is good"


def test_read__what_is_not_there(bucket, tmp_path):
    digest = hashlib.sha256(b"nothing").hexdigest()
    assert not bucket.has(digest)
    for read in (bucket.verified, bucket.keep, lambda d: bucket.place(d, tmp_path / "x")):
        with pytest.raises(NotFoundError, match="is not in"):
            read(digest)
    with pytest.raises(SpecError):
        bucket.has("../../etc/passwd")
    assert bucket.collect(_Nothing(), grace_s=0, digests=[digest]) == []


class _Nothing:
    def referenced(self, digests: list[str]) -> set[str]:
        return set()


def test_collect__by_reference_and_by_age(bucket, store, tmp_path):
    run_id = run_with(store, bucket, written(tmp_path / "own", b"own"))
    assert bucket.verified(store.files.get(run_id, "a").sha256).read_bytes() == b"own"
    stray = bucket.put_bytes(b"stray").sha256
    assert bucket.collect(store.files, grace_s=3600) == []
    assert bucket.collect(store.files, grace_s=-60) == [stray]
    digests = store.runs.delete(run_id)
    assert bucket.collect(store.files, grace_s=-60, digests=digests) == digests
    assert dict(bucket.walk()) == {}
    assert bucket._listed("gone") == []


@pytest.mark.parametrize("look", [1, 2])
def test_collect__a_run_that_names_it_in_that_moment_keeps_it(bucket, store, tmp_path, look):
    source = written(tmp_path / "file", b"content")
    digest = bucket.put_file(source).sha256
    requested = store.files.referenced
    publisher = threading.Thread(target=run_with, args=(store, bucket, source))
    looks = iter(range(1, 10))

    class Late:
        """A row that is written while the collector's first or second look is under way."""

        def referenced(self, digests):
            found = requested(digests)
            if next(looks) == look:
                publisher.start()
                until(lambda: requested([digest]), what="the row")
            return found

    gone = bucket.collect(Late(), grace_s=-60)
    publisher.join(60)
    assert not publisher.is_alive()
    assert gone == ([] if look == 1 else [digest])
    # Whichever came first: what is named is there.
    assert bucket.has(digest)
    assert bucket.verified(digest).read_bytes() == b"content"
    assert bucket._listed("gone") == []


def test_collect__mark_of_a_killed_collector_goes_when_it_is_old(bucket, store, monkeypatch):
    digest = hashlib.sha256(b"stray").hexdigest()
    bucket._fs.pipe_file(f"{bucket._where}/gone/{digest}.0a1b2c3d", b"collected")
    bucket.collect(store.files, grace_s=-60)
    assert len(bucket._listed("gone")) == 1, "it may be at work"
    monkeypatch.setattr("backend.storage.bucket.LEFT_S", -60.0)
    bucket.collect(store.files, grace_s=-60)
    assert bucket._listed("gone") == []


def test_copies__leave_when_they_are_too_many_and_come_back(make):
    store = make(cache_bytes=25)
    blobs = [store.put_bytes(bytes([i]) * 10) for i in range(4)]
    for age, blob in enumerate(blobs):
        os.utime(store.verified(blob.sha256), (10_000.0 + age, 10_000.0 + age))
    store.trim()
    assert [store.path(b.sha256).exists() for b in blobs] == [False, False, True, True]
    store.keep(blobs[0].sha256)
    assert store.path(blobs[0].sha256).read_bytes() == b"\0" * 10
    store.trim()
    assert store.path(blobs[0].sha256).exists(), "what was just fetched stays"


def test_copies__no_room_is_said_before_anything_is_fetched(make):
    blob = make().put_bytes(b"content")
    full = make(free_space_floor_bytes=1 << 60)
    with pytest.raises(DiskFullError, match="must stay free"):
        full.verified(blob.sha256)


class Flaky:
    """A file system of which some calls fail a few times, or write something else."""

    def __init__(self, fs: Any, **failures: int) -> None:
        self._fs, self.failures = fs, failures
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fs, name)
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            self.calls.append(name)
            if self.failures.get(name, 0) > 0:
                self.failures[name] -= 1
                raise OSError(f"{name}: connection reset")
            return found(*args, **options)

        return call


@pytest.mark.parametrize("call", ["info", "pipe_file", "get_file"])
def test_store__that_fails_now_and_then_is_asked_again(make, call):
    here, there = make(), make()
    for store in (here, there):
        store._fs = Flaky(store._fs, **{call: 3})
    blob = here.put_bytes(b"content")
    assert there.verified(blob.sha256).read_bytes() == b"content"
    assert here._fs.calls.count(call) >= 4


def test_store__that_is_away_is_a_sentence_and_a_worker_takes_no_run(make, tmp_path):
    from backend.storage.health import StorageHealth

    store = make()
    storage = StorageHealth({tmp_path: 0}, probe=store.probe)
    assert storage.problem() == ""
    store._probed_at = None
    fs, store._fs = store._fs, Flaky(store._fs, pipe_file=99, info=99)
    with pytest.raises(StorageError, match="4 times in a row: .*connection reset"):
        store.put_bytes(b"content")
    assert "cannot write in" in storage.problem()
    assert storage.is_to_blame("STORAGE_FAILED")
    store._fs = fs
    assert storage.problem() == ""


def test_put__store_that_keeps_other_bytes_is_refused_and_nothing_is_left(make, tmp_path):
    store = make()
    fs = store._fs

    class Liar(Flaky):
        def pipe_file(self, path, data, **_):
            fs.pipe_file(path, data[:-1] + b"?")

        def put_file(self, source, path, **_):
            self.pipe_file(path, Path(source).read_bytes())

    store._fs = Liar(fs)
    for put in (
        lambda: store.put_bytes(b"content"),
        lambda: store.put_file(written(tmp_path / "file", b"content")),
    ):
        with pytest.raises(StorageError, match="other bytes than it was given"):
            put()
        assert dict(store.walk()) == {}


@pytest.mark.service
def test_s3__multipart_that_gives_back_other_bytes_is_refused_and_whole_files_are_right(
    s3_server, tmp_path
):
    store = opened(s3_settings(s3_server, tmp_path / "home", s3_part_bytes=8 * MIB))
    data = random.Random(0).randbytes(20 * MIB)  # no part is like another
    source = written(tmp_path / "weights", data)
    refused = None
    try:
        blob = store.put_file(source)
    except StorageError as error:
        refused = error
    if refused is not None:  # as Debian 13's server has it, which may fail altogether
        assert "CALIFT_S3_PART_BYTES" in str(refused.hint) or "cannot write" in refused.message
        assert dict(store.walk()) == {}
        # What is left of its parts spoils that name in this server, so another content is sent.
        data = data[::-1]
        store = opened(s3_settings(s3_server, tmp_path / "other"))
        blob = store.put_file(written(source, data))
    assert store.verified(blob.sha256).read_bytes() == data


@pytest.mark.service
def test_s3__wrong_keys_and_a_server_that_is_away_are_sentences_without_the_secret(
    s3_server, tmp_path
):
    good = s3_settings(s3_server, tmp_path / "home")
    opened(good)
    wrong = good.model_copy(update={"s3_secret_key": type(good.s3_secret_key)("hunter2-hunter2")})
    away = good.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})
    for settings in (wrong, away):
        store = open_artifacts(settings)
        store._wait_s = 0.0
        with pytest.raises(StorageError) as caught:
            store.put_bytes(b"content")
        assert "s3://calift-" in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_settings__what_artifacts_may_be(home):
    assert Settings(artifacts="/mnt/shared").artifacts_dir == Path("/mnt/shared")
    assert Settings(artifacts="file:///mnt/shared").artifacts_dir == Path("/mnt/shared")
    bucket = Settings(artifacts="s3://lab/calift/")
    assert bucket.artifacts_url == "s3://lab/calift"
    assert bucket.artifacts_dir == home / "artifact-copies", "never where originals may lie"
    for wrong in ("s3://", "http://x/y", "gs://bucket"):
        with pytest.raises(ValueError, match="artifacts must be a folder"):
            Settings(artifacts=wrong)


def test_settings__by_file(home, monkeypatch, tmp_path):
    secret = written(tmp_path / "password", b"se/cret\n")
    monkeypatch.setenv("CALIFT_DATABASE_URL", "postgresql://calift@db:5432/calift")
    monkeypatch.setenv("CALIFT_DATABASE_PASSWORD_FILE", str(secret))
    monkeypatch.setenv("CALIFT_BROKER_URL", "rediss://cache:6379/0")
    monkeypatch.setenv("CALIFT_BROKER_PASSWORD_FILE", str(secret))
    monkeypatch.setenv("CALIFT_S3_SECRET_KEY_FILE", str(secret))
    found = Settings()
    assert found.database_url == "postgresql://calift:se%2Fcret@db:5432/calift"
    assert found.broker_url == "rediss://:se%2Fcret@cache:6379/0"
    assert found.s3_secret_key.get_secret_value() == "se/cret"
    monkeypatch.setenv("CALIFT_BROKER_PASSWORD", "given")
    assert "given@" in Settings().broker_url, "a variable counts before a file"
    monkeypatch.setenv("CALIFT_S3_ACCESS_KEY_FILE", str(tmp_path / "missing"))
    with pytest.raises(CaliftError, match="CALIFT_S3_ACCESS_KEY_FILE=.* cannot be read"):
        Settings()
