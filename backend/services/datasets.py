"""Zips of images that somebody brings: looked through, then kept in the home as suites.

Nothing is unpacked. A zip is refused by its table, before any image is read; images are decoded by
the processes of `backend.services.thumbnails` and by runners alone, one by one.
"""

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.children.model_process import look_through
from backend.http.authentication import Principal
from backend.http.problems import HttpError
from backend.services.imports import Upload
from backend.settings import Settings
from backend.store.stores import Stores
from calift_core.child_process import ChildTimeoutError
from calift_core.errors import NotFoundError, SpecError
from calift_core.files import atomic_write_bytes, storage_error
from calift_core.schema.wire.service import DatasetInfo, UploadedData

_NAME = 80
#: What looking through a zip's table may take; one of 200,000 names takes about a second.
_LOOK_S = 60.0
MAX_ZIP_FILES = 200_000
_ABOUT = "about.json"


class Datasets:
    """Takes zips in, lists and removes them. Safe to share between threads."""

    def __init__(self, settings: Settings, store: Stores) -> None:
        self._settings, self._store = settings, store
        self._turn = threading.Lock()

    def take(self, upload: Upload, name: str, *, owner: str) -> UploadedData:
        """Keep a received zip; the same one is kept once for an owner.

        Raises:
            HttpError: 422, it is no zip of class folders or made to harm; 413, its owner has too
                much here already.
            StorageError: it cannot be kept.
        """
        named = upload.folder / file_name(name)
        # Sentences then say the name that its owner knows.
        os.rename(upload.folder / "upload", named)
        n_classes, images = self._counted(named)
        size = named.stat().st_size
        home = self._settings.datasets_dir / _folder_of(owner)
        with self._turn:
            place = home / upload.sha256[:16]
            kept = next(place.glob("*.zip"), None)
            if kept is None:
                self._require_room(home, size)
                kept = place / named.name
                about = {
                    "owner": owner, "sha256": upload.sha256, "n_classes": n_classes,
                    "images": images,
                }  # fmt: skip
                try:
                    place.mkdir(parents=True, exist_ok=True, mode=0o700)
                    atomic_write_bytes(place / _ABOUT, json.dumps(about).encode())
                    os.replace(named, kept)
                except OSError as error:
                    raise storage_error(error, place, "write") from error
        return UploadedData(
            suite=f"zip:{kept}",
            name=kept.name,
            sha256=upload.sha256,
            size_bytes=size,
            n_classes=n_classes,
            images=images,
        )

    def _counted(self, file: Path) -> tuple[int, int]:
        """Classes and images of a zip, by a process of its own: it may be made to harm."""
        params = {"zip": str(file), "max_files": MAX_ZIP_FILES}
        try:
            counts = look_through(params, settings=self._settings, timeout_s=_LOOK_S)
        except SpecError as error:
            raise HttpError(422, "ZIP_REFUSED", error.message, hint=error.hint) from error
        except ChildTimeoutError:
            raise HttpError(
                422, "ZIP_REFUSED", f"{file.name} took more than {_LOOK_S:g} s to look through."
            ) from None
        return counts["n_classes"], counts["images"]

    def _require_room(self, home: Path, size: int) -> None:
        most = self._settings.quota_data_bytes
        held = sum(file.stat().st_size for file in home.glob("*/*.zip")) if most else 0
        if most and held + size > most:
            raise HttpError(
                413,
                "DATA_QUOTA",
                f"your zips take {held:,} bytes here, with this one {held + size:,}; at most "
                f"{most:,} are kept for an owner.",
                hint="Delete some on Data and models, or ask whoever runs the service to raise "
                "CALIFT_QUOTA_DATA_BYTES.",
            )

    def remove(self, suite: str, principal: Principal) -> None:
        """Delete a zip that was brought. Finished runs keep their numbers, and lose its images.

        Args:
            suite: as it is listed, `zip:FILE`.
            principal: who asks; its owner or an admin.

        Raises:
            NotFoundError: none of that name was brought.
            HttpError: 403, it is another's; 409, a run, an evaluation job or a sweep that is not
                over needs it.
            StorageError: it cannot be deleted.
        """
        place = next((f.parent for f in self._files() if f"zip:{f}" == suite), None)
        if place is None:
            raise NotFoundError(
                f"no zip {suite!r} was brought to this service.",
                hint="`calift list datasets` names those that were.",
            )
        owner = str(_about(place).get("owner", ""))
        if not principal.owns(owner or None):
            raise HttpError(
                403,
                "NOT_YOURS",
                f"this zip was brought by {owner or 'nobody known'}, and you are "
                f"{principal.name}: a token of scope submit deletes its own zips alone.",
                hint="Ask its owner, or an admin.",
            )
        with self._turn:
            # Both names are hexadecimal, so that they stand in a spec's JSON as they are.
            users = self._store.runs.unfinished_with(f"/{place.parent.name}/{place.name}/")
            if users:
                more = f" and {len(users) - 3} more" if len(users) > 3 else ""
                raise HttpError(
                    409,
                    "DATA_IN_USE",
                    f"{', '.join(users[:3])}{more} still need this zip.",
                    hint="Cancel them, or wait for their ends.",
                )
            try:
                shutil.rmtree(place)
            except OSError as error:
                raise storage_error(error, place, "delete") from error

    def _files(self) -> Iterator[Path]:
        return self._settings.datasets_dir.glob("*/*/*.zip")

    def infos(self) -> list[DatasetInfo]:
        """What was brought, by name."""
        return sorted(self._each(), key=lambda info: info.title)

    def _each(self) -> Iterator[DatasetInfo]:
        for file in self._files():
            about = _about(file.parent)
            try:
                detail = (
                    f"brought by {about['owner']}: {int(about['images']):,} images of "
                    f"{int(about['n_classes']):,} classes"
                )
            except (ValueError, KeyError, TypeError):
                detail = "brought by the browser or the API"
            yield DatasetInfo(
                id=f"zip:{file}",
                title=file.stem,
                available=True,
                detail=detail,
                brought_by=str(about.get("owner", "")),
            )


def _about(place: Path) -> dict[str, Any]:
    """What was written down when a zip was brought; empty where it cannot be read."""
    try:
        found = json.loads((place / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def file_name(given: str) -> str:
    """A plain file name of what somebody called a zip."""
    stem = re.split(r"[\\/]", given)[-1]
    stem = stem[:-4] if stem.lower().endswith(".zip") else stem
    plain = re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip("-.")[:_NAME]
    return f"{plain or 'images'}.zip"


def _folder_of(owner: str) -> str:
    """A folder's name that any owner's name gives, and no other's."""
    return hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:16]
