"""Parts of a pass over a data set, so that a killed evaluation goes on where it was.

::

    FOLDER/evaluating/KEY/00000000-00004000-DIGEST.safetensors   what images 0 to 3,999 gave
    FOLDER/evaluating/KEY/done.json                              the set is finished: its numbers

KEY is a hash of everything that decides what is stored, so nothing stale is ever taken. DIGEST is a
hash of the range and the content. The folder is removed when the report is written.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from calift_core.files import atomic_write_bytes, atomic_write_json, sync_folder

log = logging.getLogger(__name__)

#: Batches between two shards of a set.
SHARD_BATCHES = 8
#: Folder of unfinished passes within the folder of a run.
EVALUATING = "evaluating"
_NAME = re.compile(r"(\d{8,})-(\d{8,})-([0-9a-f]{32})\.safetensors")


@dataclass(frozen=True)
class Shard:
    """What consecutive images gave.

    Attributes:
        start: position of the first image.
        stop: position after the last one.
    """

    start: int
    stop: int
    tensors: dict[str, Tensor]


class Shards:
    """The parts of one pass of one model over one data set.

    Args:
        key: everything that decides what the pass gives, as JSON knows it.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        text = json.dumps(key, sort_keys=True, default=str)
        self.folder = folder / EVALUATING / hashlib.sha256(text.encode()).hexdigest()[:32]

    def load(self, start: int = 0, stop: int | None = None) -> list[Shard]:
        """The shards from image `start` on, up to one that is missing or damaged.

        What lies behind a gap is removed: it is made again.

        Args:
            start: the first image of a share; 0 for the set.
            stop: the image after its last one; None for the set. What is not within is not looked
                at: it is another rank's.
        """
        shards: list[Shard] = []
        found = sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else []
        for path in found:
            if stop is not None and not _within(path, start, stop):
                continue
            at = shards[-1].stop if shards else start
            shard = _read(path)
            if shard is not None and shard.start == at and shard.stop > at:
                shards.append(shard)
                continue
            log.warning("the shard %s is damaged or out of place and is made again", path.name)
            path.unlink(missing_ok=True)
        return shards

    def drop(self, start: int = 0, stop: int | None = None) -> None:
        """Remove the shards of a share, or of the set."""
        for path in self.folder.glob("*.safetensors"):
            if stop is None or _within(path, start, stop):
                path.unlink(missing_ok=True)

    def save(self, start: int, stop: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep what images `start` … `stop` − 1 gave, durably.

        Raises:
            DiskFullError: no space is left; earlier shards are intact.
            StorageError: the file system refuses otherwise.
        """
        data = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        name = f"{start:08d}-{stop:08d}-{_digest(start, stop, data)}.safetensors"
        atomic_write_bytes(self.folder / name, data)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Say that the pass is complete, and drop its parts."""
        atomic_write_json(self.folder / "done.json", result)
        for path in self.folder.glob("*.safetensors"):
            path.unlink(missing_ok=True)

    def finished(self) -> dict[str, Any] | None:
        """What `finish` was given, or None if the pass is not complete."""
        try:
            result = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s is damaged, the set is evaluated again: %s", self.folder.name, error)
            return None
        return dict(result) if isinstance(result, dict) else None


def _within(path: Path, start: int, stop: int) -> bool:
    """Whether a shard, by its name, is of images `start` … `stop` − 1 alone."""
    match = _NAME.fullmatch(path.name)
    return match is not None and start <= int(match[1]) and int(match[2]) <= stop


def _digest(start: int, stop: int, data: bytes) -> str:
    return hashlib.sha256(f"{start}-{stop};".encode() + data).hexdigest()[:32]


def _read(path: Path) -> Shard | None:
    """A shard, or None if it is not what its name says."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    try:
        data = path.read_bytes()
        start, stop = int(match[1]), int(match[2])
        if _digest(start, stop, data) != match[3]:
            return None
        return Shard(start, stop, load(data))
    except (OSError, SafetensorError, ValueError):
        return None


def drop_shards(folder: Path) -> None:
    """Remove all that unfinished passes left in the folder of a run."""
    shutil.rmtree(folder / EVALUATING, ignore_errors=True)


def adopt_shards(source: Path, folder: Path) -> None:
    """Take over what an earlier attempt evaluated, unless there is something here already.

    Files are linked where the file system can: nobody changes them in place.
    """
    if (folder / EVALUATING).exists() or not (source / EVALUATING).is_dir():
        return
    link_tree(source / "predictions", folder / "predictions")
    link_tree(source / EVALUATING, folder / EVALUATING)


def link_tree(source: Path, target: Path) -> None:
    """Let `target` hold the finished files of `source`; it appears under its name at once.

    Does nothing where there is no `source` or where `target` is there already.
    """
    if target.exists() or not source.is_dir():
        return
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, copy_function=_link, ignore=shutil.ignore_patterns(".*.tmp"))
    temporary.rename(target)
    sync_folder(target.parent)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
