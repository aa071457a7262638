"""Files of runs, stored by content: `sha256/ab/cd/abcd…`, written whole or not at all.

A file is written under a temporary name, flushed, renamed, and only then named in the database:
a row never points at half a file. What no row names is collected after a grace period, during which
a row may still be on its way. Nothing here follows a symbolic link or takes a path from outside.

`ArtifactStore` is all that the rest of the service knows about storage (put, has, verified,
collect); `backend.storage.bucket` has the same for an object store.
"""

import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cachetools import LRUCache

from backend.store.files import Files
from calift_core.errors import DiskFullError, NotFoundError, SpecError, StorageError
from calift_core.files import atomic_path, sha256_file, storage_error

ArtifactKind = Literal["report", "predictions", "checkpoint", "metrics", "log", "other"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
#: What a process that was killed leaves beside the contents: a copy not yet renamed (see
#: `calift_core.files.atomic_path`), a content on its way out (see `_delete`).
_LEFT_BEHIND = re.compile(r"\.([0-9a-f]{64})\.[0-9a-f]+\.(tmp|gone)")
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=@-]*")
#: Whoever writes a file writes to it more often than that.
LEFT_S = 600.0
_COPY_BYTES = 1 << 20
_REMEMBERED = 4096


@dataclass(frozen=True)
class Blob:
    """A stored file's content."""

    sha256: str
    size_bytes: int


def check_name(name: str) -> str:
    """Return an artifact's name when it is one: segments of plain characters joined by `/`.

    Raises:
        SpecError: it is too long or holds anything else, `..` among them.
    """
    if len(name) > 300 or not all(_SEGMENT.fullmatch(part) for part in name.split("/")):
        raise SpecError(
            "an artifact's name has at most 300 letters, digits or . _ + = @ - in segments joined "
            f"by '/', none of which starts with a dot, got {name!r}"
        )
    return name


def hashed(source: Path) -> Blob:
    """Hash and size of a regular file.

    Raises:
        StorageError: it is none, or cannot be read.
    """
    try:
        information = source.lstat()
    except OSError as error:
        raise storage_error(error, source, "read") from error
    if not stat.S_ISREG(information.st_mode):
        raise StorageError(f"{source} must be a regular file, not a link or a folder.")
    return Blob(sha256_file(source), information.st_size)


class ArtifactStore:
    """Content-addressed files in one local folder.

    Args:
        root: the folder; it is made when it is not there.
        free_space_floor_bytes: no file is stored that would leave less than this on the device.
    """

    def __init__(self, root: Path, *, free_space_floor_bytes: int = 0) -> None:
        self.root = root
        self._floor = free_space_floor_bytes
        self._verified: LRUCache[tuple[str, int, int], bool] = LRUCache(_REMEMBERED)
        self._lock = threading.Lock()

    def path(self, sha256: str) -> Path:
        """Where a content lies or would lie.

        Raises:
            SpecError: this is no SHA-256.
        """
        if not _SHA256.fullmatch(sha256):
            raise SpecError(f"a SHA-256 has 64 lower-case hex digits, got {sha256!r}")
        return self.root / "sha256" / sha256[:2] / sha256[2:4] / sha256

    def free_bytes(self) -> int:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(self.root).free
        except OSError as error:
            raise storage_error(error, self.root, "read") from error

    def probe(self) -> None:
        """See whether the store answers.

        Raises:
            StorageError: it does not.
        """
        self.free_bytes()

    def has(self, sha256: str) -> bool:
        """Whether the content is here, by its name alone."""
        return self.path(sha256).exists()

    def keep(self, sha256: str) -> None:
        """See to it that the path that `verified` named still holds the content."""

    def put_file(self, source: str | os.PathLike[str], *, link: bool = False) -> Blob:
        """Store a file's content; storing the same content again costs no space.

        Args:
            link: nobody will change the file in place, so that the stored content may be the file
                itself, where the file system can do that.

        Raises:
            DiskFullError: no space, or less than the floor, would be left; nothing is torn.
            StorageError: `source` is not a regular file, changed meanwhile, or cannot be read.
        """
        source = Path(source)
        blob = hashed(source)
        target = self.path(blob.sha256)
        if self._renew(target, blob.size_bytes):
            return blob
        if link and self._link(source, target):
            return blob
        self._check_space(blob.size_bytes)
        digest, size = hashlib.sha256(), 0
        try:
            descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError as error:
            raise storage_error(error, source, "read") from error
        with (
            os.fdopen(descriptor, "rb") as file,
            atomic_path(target) as temporary,
            temporary.open("wb") as copy,
        ):
            while piece := file.read(_COPY_BYTES):
                digest.update(piece)
                size += len(piece)
                copy.write(piece)
            if digest.hexdigest() != blob.sha256:
                raise StorageError(f"{source} changed while it was being stored.")
        return Blob(blob.sha256, size)

    def put_bytes(self, data: bytes) -> Blob:
        """Store bytes.

        Raises:
            DiskFullError: no space, or less than the floor, would be left.
            StorageError: any other failure of the file system.
        """
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        target = self.path(blob.sha256)
        if not self._renew(target, blob.size_bytes):
            self._check_space(blob.size_bytes)
            with atomic_path(target) as temporary:
                temporary.write_bytes(data)
        return blob

    def _link(self, source: Path, target: Path) -> bool:
        try:
            with atomic_path(target) as temporary:
                os.link(source, temporary, follow_symlinks=False)
                os.utime(temporary)  # its age in the store begins now
        except StorageError:  # another device, or a file system without links
            return False
        return True

    def _renew(self, target: Path, size: int) -> bool:
        """Whether the content is here already; its age starts anew, so that it is not collected."""
        try:
            if target.stat(follow_symlinks=False).st_size != size:
                return False  # torn by something outside; the rename replaces it
            os.utime(target, follow_symlinks=False)
        except OSError:
            return False
        return True

    def _check_space(self, size: int) -> None:
        free = self.free_bytes()
        if free - size < self._floor:
            raise DiskFullError(
                f"storing {size} bytes would leave {max(0, free - size)} on the device of "
                f"{self.root}, and at least {self._floor} must stay free.",
                hint="Delete runs, free some space, or lower CALIFT_FREE_SPACE_FLOOR_BYTES.",
            )

    def verified(self, sha256: str) -> Path:
        """The path of a content after its bytes were found to have this hash.

        A file is hashed again only after it was touched.

        Raises:
            NotFoundError: the content is not here.
            StorageError: the bytes are not what was stored.
        """
        path = self.path(sha256)
        try:
            information = path.stat(follow_symlinks=False)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"the stored file {sha256[:12]}… is not on this machine.",
                hint="The API and the workers must share CALIFT_HOME/artifacts.",
            ) from error
        except OSError as error:
            raise storage_error(error, path, "read") from error
        if not stat.S_ISREG(information.st_mode) or not path.resolve().is_relative_to(
            self.root.resolve()
        ):
            raise StorageError(f"{path} is not a regular file of the artifact store.")
        key = (sha256, information.st_size, information.st_mtime_ns)
        with self._lock:
            if self._verified.get(key):
                return path
        found = sha256_file(path)
        if found != sha256:
            raise StorageError(
                f"the stored file {sha256[:12]}… is damaged: its bytes hash to {found[:12]}….",
                hint="Run it again, or restore the file from a copy.",
            )
        with self._lock:
            self._verified[key] = True
        return path

    def check(self, sha256: str) -> None:
        """Read a content once and hash it.

        Raises:
            NotFoundError: it is not here.
            StorageError: the bytes are not what was stored.
        """
        with self._lock:
            self._verified.clear()
        self.verified(sha256)

    def export(self, sha256: str, target: Path) -> None:
        """Copy a content to a path, hashing it on the way; nothing is left of one that is damaged.

        Raises:
            NotFoundError: the content is not here.
            DiskFullError: no space is left.
            StorageError: the content is damaged, or the path cannot be written.
        """
        source = self.verified(sha256)
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
            if sha256_file(temporary) != sha256:
                raise StorageError(f"the stored file {sha256[:12]}… changed while it was copied.")

    def place(self, sha256: str, target: Path) -> None:
        """Put a stored content at a path, without a copy where the file system allows it.

        The file may be the stored one itself: read it, do not write to it.

        Raises:
            NotFoundError: the content is not here.
            DiskFullError: no space is left for a copy.
            StorageError: the content is damaged, or the path cannot be written.
        """
        source = self.verified(sha256)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target, follow_symlinks=False)
            except FileNotFoundError:
                raise
            except OSError:  # another device, or a file system without links
                shutil.copyfile(source, target)
        except FileNotFoundError as error:
            raise NotFoundError(f"the stored file {sha256[:12]}… was deleted meanwhile.") from error
        except OSError as error:
            raise storage_error(error, target, "write") from error

    def walk(self) -> Iterator[tuple[str, float]]:
        base = self.root / "sha256"
        now = time.time()
        for path in base.glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/*"):
            if _SHA256.fullmatch(path.name):
                try:
                    yield path.name, now - path.stat(follow_symlinks=False).st_mtime
                except FileNotFoundError:
                    continue  # collected by somebody else

    def collect(
        self, files: Files, *, grace_s: float, digests: Sequence[str] | None = None
    ) -> list[str]:
        """Delete the contents that no run names; the deleted ones.

        Args:
            grace_s: younger contents stay: their row may still be on its way.
            digests: look at these alone; None: at every stored content.
        """
        if digests is None:
            self._clear(files)
        ages = dict(self.walk()) if digests is None else dict(self._ages(digests))
        old = [digest for digest, age in ages.items() if age >= grace_s]
        named = files.referenced(old)
        return [d for d in old if d not in named and self._delete(files, d)]

    def _clear(self, files: Files) -> None:
        """Remove what killed processes left, once nobody has written to it for long."""
        for path in (self.root / "sha256").glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/.*"):
            match = _LEFT_BEHIND.fullmatch(path.name)
            if match is None:
                continue
            try:
                if time.time() - path.stat(follow_symlinks=False).st_mtime < LEFT_S:
                    continue
                if match[2] == "gone" and files.referenced([match[1]]):
                    os.replace(path, self.path(match[1]))
                else:
                    path.unlink()
            except FileNotFoundError:
                continue  # somebody else's turn
            except OSError as error:
                raise storage_error(error, path, "delete") from error

    def _ages(self, digests: Sequence[str]) -> Iterator[tuple[str, float]]:
        for digest in digests:
            try:
                yield digest, time.time() - self.path(digest).stat(follow_symlinks=False).st_mtime
            except FileNotFoundError:
                continue

    def _delete(self, files: Files, digest: str) -> bool:
        # Moved aside first and looked up once more: a run that named the content meanwhile gets
        # it back.
        path = self.path(digest)
        aside = path.with_name(f".{digest}.{secrets.token_hex(4)}.gone")
        try:
            os.replace(path, aside)
            os.utime(aside)  # it is ours for the moment, and not left behind by anybody
            if files.referenced([digest]):
                os.replace(aside, path)
                return False
            aside.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise storage_error(error, path, "delete") from error
        return True


def publish_artifact(
    files: Files,
    artifacts: ArtifactStore,
    run_id: str,
    attempt: int,
    *,
    name: str,
    kind: ArtifactKind,
    path: str | os.PathLike[str],
) -> bool:
    """Store a file and name it as the run's. False: fenced off, and the run names nothing new.

    Raises:
        SpecError: the name is not allowed.
        DiskFullError: no space is left.
        StorageError: the file cannot be read or stored.
    """
    check_name(name)
    blob = artifacts.put_file(path)
    named = files.add(
        run_id, attempt, name=name, kind=kind, sha256=blob.sha256, size_bytes=blob.size_bytes
    )
    if named and not artifacts.has(blob.sha256):
        # Collected in the moment between the two; now that a row names it, it stays.
        artifacts.put_file(path)
    return named
