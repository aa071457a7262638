"""Files of runs in an object store (`CALIFT_ARTIFACTS=s3://bucket/prefix`), through fsspec.

The keys are those of the folder (`sha256/ab/cd/abcd…`) and so is the discipline: a content is there
whole or not at all (a PUT is), it is named in the database only afterwards, and what no row names
is marked, looked up once more and only then deleted. What the store gave is read back and
hashed before anybody relies on it, and again when it is fetched: a store that lies is found out
while the original is still there.

What is read lies in a folder of this machine too, checked by its hash, the longest unread leaving
first when it grows too large.

Long, because all that is known of stores that lie is kept, and guarded against, in one place.
"""

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from backend.settings import Settings
from backend.storage.artifacts import LEFT_S, ArtifactStore, Blob, hashed
from backend.store.files import Files
from calift_core.errors import CaliftError, NotFoundError, SpecError, StorageError, reason_of
from calift_core.files import atomic_path, sha256_file, storage_error
from calift_core.installed import install_extra

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_TRIES = 4
#: Who named a content that is being collected waits so long; the collector gives up before that.
_MARK_HOLDS_S = 60.0
#: A probe that succeeded holds so long.
_PROBED_S = 30.0
#: What was fetched so recently may be about to be read.
_JUST_FETCHED_S = 600.0


class BucketStore(ArtifactStore):
    """Content-addressed files in a file system of fsspec, with a folder of copies of what is read.

    Args:
        fs: the file system; a put of it is seen whole or not at all.
        free_space_floor_bytes: no copy is made that would leave less than this on its device.
        cache_bytes: the copies that together are larger leave, the longest unread first.
        part_bytes: a file of twice this size or more goes in parts of this size.
        read_back: whether every upload is read once and hashed.
        wait_s: before the first repetition of what failed; doubles from one to the next.
    """

    def __init__(
        self,
        fs: Any,
        where: str,
        *,
        cache: Path,
        free_space_floor_bytes: int = 0,
        cache_bytes: int = 20 << 30,
        part_bytes: int = 50 << 20,
        read_back: bool = True,
        wait_s: float = 0.2,
    ) -> None:
        super().__init__(cache, free_space_floor_bytes=free_space_floor_bytes)
        self._fs, self._where = fs, where.strip("/")
        self._cache_bytes, self._part_bytes, self._read_back = cache_bytes, part_bytes, read_back
        self._wait_s = wait_s
        self._fetching = [threading.Lock() for _ in range(64)]
        self._probed_at: float | None = None

    @property
    def name(self) -> str:
        """The place, for people."""
        return f"{_protocols(self._fs)[0]}://{self._where}"

    # -- in the bucket

    def has(self, sha256: str) -> bool:
        """Whether the content is in the bucket to stay, by its name alone.

        Who has named it in the database asks this afterwards: a collector that had looked before
        may be about to delete it, and is waited for.

        Raises:
            StorageError: the store does not answer.
        """
        self.path(sha256)
        deadline = time.monotonic() + _MARK_HOLDS_S
        while self._is_marked(sha256) and time.monotonic() < deadline:
            time.sleep(self._wait_s)
        return self._size(sha256) is not None

    def put_file(self, source: str | os.PathLike[str], *, link: bool = False) -> Blob:
        """Store a file's content; storing the same content again costs one question.

        Raises:
            StorageError: `source` is not a regular file or changed meanwhile; the store does not
                answer, or gives back other bytes than it was given.
        """
        source = Path(source)
        blob = hashed(source)
        if self._size(blob.sha256) == blob.size_bytes:
            return blob
        key = self._key(blob.sha256)
        chunk = {"chunksize": self._part_bytes} if "s3" in _protocols(self._fs) else {}
        self._tried("write", lambda: self._fs.put_file(os.fspath(source), key, **chunk))
        if self._is_right(blob):
            return blob
        if hashed(source) != blob:
            self._discard(key)
            raise StorageError(f"{source} changed while it was being stored.")
        self._discard(key)
        raise self._lies(blob)

    def _made_root(self) -> Path:
        self.free_bytes()  # makes it, or says why it cannot be
        return self.root

    def put_bytes(self, data: bytes) -> Blob:
        """Store bytes.

        Raises:
            StorageError: the store does not answer, or gives back other bytes than it was given.
        """
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        if self._size(blob.sha256) != blob.size_bytes:
            key = self._key(blob.sha256)
            self._tried("write", lambda: self._fs.pipe_file(key, data))
            if not self._is_right(blob):
                self._discard(key)
                raise self._lies(blob)
        return blob

    def probe(self) -> None:
        """Write something small, to see whether the store takes anything.

        Raises:
            StorageError: it does not.
        """
        self.free_bytes()
        at = self._probed_at
        if at is None or time.monotonic() - at > _PROBED_S:
            self._tried("write", lambda: self._fs.pipe_file(f"{self._where}/probe", b"calift\n"))
            self._probed_at = time.monotonic()

    def walk(self) -> Iterator[tuple[str, float]]:
        """Every stored content with its age in seconds, by this machine's clock."""
        now = time.time()
        for path, about in self._listed("sha256"):
            digest = path.rsplit("/", 1)[-1]
            with contextlib.suppress(SpecError):
                self.path(digest)
                yield digest, now - _changed_at(about)

    def collect(
        self, files: Files, *, grace_s: float, digests: Sequence[str] | None = None
    ) -> list[str]:
        """Delete the contents that no run names, and copies of what was not read for long.

        Args:
            grace_s: younger contents stay: their row may still be on its way.
            digests: look at these alone; None: at every stored content.
        """
        gone = super().collect(files, grace_s=grace_s, digests=digests)
        if digests is None:
            self.trim()
        return gone

    def _ages(self, digests: Sequence[str]) -> Iterator[tuple[str, float]]:
        now = time.time()
        for digest in digests:
            about = self._about(digest)
            if about is not None:
                yield digest, now - _changed_at(about)

    def _delete(self, files: Files, digest: str) -> bool:
        # Marked first and looked up once more. Who names the content after that look finds the mark
        # (`has`), waits until it is gone, and stores the content again.
        mark = f"{self._where}/gone/{digest}.{secrets.token_hex(4)}"
        began = time.monotonic()
        self._tried("write", lambda: self._fs.pipe_file(mark, b"collected\n"))
        try:
            if files.referenced([digest]) or time.monotonic() - began > _MARK_HOLDS_S / 2:
                return False
            self._discard(self._key(digest))
            self.path(digest).unlink(missing_ok=True)
            return True
        finally:
            self._discard(mark)

    def _clear(self, files: Files) -> None:
        """Remove what killed collectors left."""
        super()._clear(files)
        for path, about in self._listed("gone"):
            if time.time() - _changed_at(about) > LEFT_S:
                self._discard(path)

    def _is_marked(self, sha256: str) -> bool:
        return any(path.rsplit("/", 1)[-1].startswith(sha256) for path, _ in self._listed("gone"))

    def _key(self, sha256: str) -> str:
        return f"{self._where}/{self.path(sha256).relative_to(self.root).as_posix()}"

    def _about(self, sha256: str) -> dict[str, Any] | None:
        key = self._key(sha256)
        try:
            found: dict[str, Any] = self._tried("read", lambda: self._fs.info(key))
        except FileNotFoundError:
            return None
        return found if found.get("type") == "file" else None

    def _size(self, sha256: str) -> int | None:
        about = self._about(sha256)
        return None if about is None else int(about["size"])

    def _listed(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        try:
            found: dict[str, dict[str, Any]] = self._tried(
                "list", lambda: self._fs.find(f"{self._where}/{folder}", detail=True)
            )
        except FileNotFoundError:
            return []
        return sorted(found.items())

    def _discard(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._tried("delete", lambda: self._fs.rm_file(key))

    def _is_right(self, blob: Blob) -> bool:
        if not self._read_back:
            return self._size(blob.sha256) == blob.size_bytes
        return self._hash(blob.sha256) == blob.sha256

    def _hash(self, sha256: str) -> str:
        with tempfile.TemporaryDirectory(dir=self._made_root()) as folder:
            target = Path(folder) / "content"
            return self._tried("read", lambda: self._download(sha256, target))

    def _damaged(self, sha256: str, found: str) -> StorageError:
        return StorageError(
            f"the stored file {sha256[:12]}… is damaged: what {self.name} gave hashes to "
            f"{found[:12]}….",
            hint="Run it again, or restore the file from a backup.",
        )

    def _lies(self, blob: Blob) -> StorageError:
        return StorageError(
            f"{self.name} gave back other bytes than it was given: {blob.size_bytes} bytes, "
            f"SHA-256 {blob.sha256[:12]}….",
            hint="Nothing was named in the database. If only large files fail, its multipart "
            "uploads are at fault: raise CALIFT_S3_PART_BYTES above their size.",
        )

    def _download(self, sha256: str, target: Path) -> str:
        """Read a content from the bucket into a file; what its bytes hash to.

        Raises:
            NotFoundError: it is not there.
            DiskFullError: no space is left for the file.
            StorageError: the store failed on the way; `_tried` begins again.
        """
        try:
            self._fs.get_file(self._key(sha256), os.fspath(target))
        except FileNotFoundError as error:
            raise self._missing(sha256) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise storage_error(error, target, "write") from error
            raise _FlakyError(reason_of(error)) from error
        except Exception as error:  # whatever the transport raises
            raise _FlakyError(reason_of(error)) from error
        return sha256_file(target)

    def _missing(self, sha256: str) -> NotFoundError:
        return NotFoundError(
            f"the stored file {sha256[:12]}… is not in {self.name}.",
            hint="The API and the workers must use the same CALIFT_ARTIFACTS.",
        )

    def _tried(self, what: str, action: Callable[[], _T]) -> _T:
        """Do something with the store, again if need be.

        Raises:
            FileNotFoundError: it is not there.
            StorageError: it failed for good.
        """
        for turn in range(1, _TRIES + 1):
            try:
                return action()
            except FileNotFoundError:
                raise
            except PermissionError as error:
                raise StorageError(
                    f"{self.name} refuses to let us {what}: {reason_of(error)}",
                    hint="Look at the bucket's name and rights and at the keys.",
                ) from error
            except Exception as error:  # whatever the transport raises
                if isinstance(error, CaliftError) and not isinstance(error, _FlakyError):
                    raise
                if turn == _TRIES:
                    raise StorageError(
                        f"cannot {what} in {self.name}, {_TRIES} times in a row: "
                        f"{reason_of(error)}",
                        hint="Is the object store up, and CALIFT_S3_ENDPOINT_URL its address?",
                    ) from error
                log.debug("%s: %s failed, try %d: %s", self.name, what, turn, error)
                time.sleep(self._wait_s * 2 ** (turn - 1))
        raise AssertionError

    # -- on this machine

    def verified(self, sha256: str) -> Path:
        """The path of a copy after its bytes were found to have this hash.

        Raises:
            NotFoundError: the content is not in the bucket.
            StorageError: the store does not answer, or its bytes are not what was stored.
        """
        path = self.path(sha256)
        with self._fetching[int(sha256[:8], 16) % len(self._fetching)]:
            if not self._is_fine(sha256):
                self._fetch(sha256, path)
            return super().verified(sha256)

    def keep(self, sha256: str) -> None:
        """See to it that the copy that `verified` named is still there.

        Raises:
            NotFoundError, StorageError: as `verified`.
        """
        if not self.path(sha256).exists():
            self.verified(sha256)

    def check(self, sha256: str) -> None:
        """Read a content in the bucket once and hash it.

        Raises:
            NotFoundError: it is not there.
            StorageError: the store does not answer, or its bytes are not what was stored.
        """
        size = self._size(sha256)
        if size is None:
            raise self._missing(sha256)
        digest = self._hash(sha256)
        if digest != sha256:
            raise self._damaged(sha256, digest)

    def export(self, sha256: str, target: Path) -> None:
        """Copy a content to a path, hashing it on the way.

        Raises:
            NotFoundError: the content is not in the bucket.
            DiskFullError: no space is left.
            StorageError: the store does not answer, the content is damaged, or the path cannot be
                written.
        """
        self._copy(sha256, target)

    def _is_fine(self, sha256: str) -> bool:
        path = self.path(sha256)
        try:
            if not stat.S_ISREG(path.stat(follow_symlinks=False).st_mode):
                path.unlink()  # planted; ours are regular files
                return False
            super().verified(sha256)
        except OSError:
            return False
        except StorageError:
            log.warning("the copy of %s… was damaged; it is fetched anew", sha256[:12])
            path.unlink(missing_ok=True)
            return False
        except NotFoundError:
            return False
        return True

    def _fetch(self, sha256: str, path: Path) -> None:
        about = self._about(sha256)
        if about is None:
            raise self._missing(sha256)
        self._check_space(int(about["size"]))
        self._copy(sha256, path)

    def _copy(self, sha256: str, path: Path) -> None:
        def copy() -> None:
            with atomic_path(path) as temporary:
                found = self._download(sha256, temporary)
                if found != sha256:
                    raise self._damaged(sha256, found)

        self._tried("read", copy)

    def trim(self) -> None:
        """Remove the copies that were not read for longest, until the rest is small enough."""
        copies = []
        for path in (self.root / "sha256").glob("*/*/[0-9a-f]*"):
            with contextlib.suppress(FileNotFoundError):
                about = path.stat(follow_symlinks=False)
                copies.append((max(about.st_atime, about.st_mtime), about.st_size, path))
        room = sum(size for _, size, _ in copies) - self._cache_bytes
        for used_at, size, path in sorted(copies):
            if room <= 0 or time.time() - used_at < _JUST_FETCHED_S:
                return
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(error, path, "delete") from error
            room -= size


class _FlakyError(StorageError):
    """The store failed in the middle of an answer."""


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _changed_at(about: dict[str, Any]) -> float:
    """When an object was written, by the store's clock, as fsspec's file systems name it."""
    found = next((about[k] for k in ("LastModified", "mtime", "created") if about.get(k)), 0.0)
    return found.timestamp() if isinstance(found, datetime) else float(found)


def open_artifacts(settings: Settings) -> ArtifactStore:
    """The store that the settings name: a folder of this machine, or a bucket.

    Raises:
        SpecError: what a bucket needs is not installed.
    """
    floor = settings.free_space_floor_bytes
    if not settings.artifacts_url:
        return ArtifactStore(settings.artifacts_dir, free_space_floor_bytes=floor)
    try:
        import s3fs
    except ImportError as error:
        raise SpecError(
            f"CALIFT_ARTIFACTS={settings.artifacts_url} needs s3fs, which is not installed.",
            hint=install_extra("s3"),
        ) from error
    place = urlsplit(settings.artifacts_url)
    given = {
        "key": settings.s3_access_key.get_secret_value() if settings.s3_access_key else None,
        "secret": settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else None,
        "endpoint_url": settings.s3_endpoint_url or None,
    }
    fs = s3fs.S3FileSystem(
        **{name: value for name, value in given.items() if value},
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": 5,
            "read_timeout": 60,
            "retries": {"max_attempts": 4, "mode": "standard"},
            # Ours are stronger, and servers that are not Amazon's trip over theirs.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            # A server of one's own has no name for every bucket.
            "s3": {"addressing_style": "path" if settings.s3_endpoint_url else "auto"},
        },
    )
    return BucketStore(
        fs,
        f"{place.netloc}{place.path}",
        cache=settings.artifacts_dir,
        free_space_floor_bytes=floor,
        cache_bytes=settings.artifacts_cache_bytes,
        part_bytes=settings.s3_part_bytes,
    )
