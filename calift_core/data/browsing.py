"""Folders below allowed roots, one level at a time: names and numbers, no file is opened.

Torch-free.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from calift_core.data.listing import EXTENSIONS, ScanBudget, TooManyFilesError
from calift_core.errors import NotFoundError
from calift_core.schema.wire.service import FolderInside, FolderList

#: Folders that are named, what is looked at in all of them, and in one.
_SHOWN, _ENTRIES, _LEAST, _SECONDS = 200, 40_000, 200, 1.0
#: Entries of one folder that are read to find the folders in it.
_READ = 100_000


def browse(path: Path, roots: Sequence[Path]) -> FolderList:
    """The folders in a folder, and what each seems to hold.

    Links are followed where they lead to another place below a root; others are left out.

    Raises:
        NotFoundError: there is no such folder, or it lies outside the roots.
    """
    real_roots = [Path(os.path.realpath(root)) for root in roots]
    with _opened(path, real_roots) as (handle, real):
        names, images, whole = _entries(handle)
        inside = [name for name in names if _leads_inside(real / name, real_roots)]
    shown = sorted(inside)[:_SHOWN]
    each = ScanBudget(max(_LEAST, _ENTRIES // max(1, len(shown))), _SECONDS)
    return FolderList(
        path=str(path),
        parent=None if real in real_roots else str(path.parent),
        folders=[_seen(path / name, each) for name in shown],
        images=images,
        whole=whole and len(shown) == len(inside),
    )


@contextmanager
def _opened(path: Path, real_roots: Sequence[Path]) -> Iterator[tuple[int, Path]]:
    """A folder's handle and where it really is, checked after it was opened: links may change."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError):
        raise NotFoundError(f"there is no folder {str(path)!r} that can be read.") from None
    try:
        at = f"/proc/self/fd/{handle}"
        real = Path(os.readlink(at) if os.path.islink(at) else os.path.realpath(path))
        if not _is_below(real, real_roots):
            raise NotFoundError(f"{str(path)!r} lies outside the registered folders.")
        yield handle, real
    finally:
        os.close(handle)


def _is_below(real: Path, real_roots: Sequence[Path]) -> bool:
    return any(real.is_relative_to(root) for root in real_roots)


def _leads_inside(path: Path, real_roots: Sequence[Path]) -> bool:
    return not path.is_symlink() or _is_below(Path(os.path.realpath(path)), real_roots)


def _entries(handle: int) -> tuple[list[str], int, bool]:
    names, images = list[str](), 0
    with os.scandir(handle) as entries:
        for seen, entry in enumerate(entries):
            if seen >= _READ:
                return names, images, False
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                names.append(entry.name)
            else:
                images += entry.name.lower().endswith(EXTENSIONS)
    return names, images, True


def _seen(path: Path, each: ScanBudget) -> FolderInside:
    """What a folder seems to hold; links in it are not followed."""
    budget = ScanBudget(each.entries)
    budget.deadline = each.deadline
    folders = images = 0
    whole = True
    try:
        for where, inner, files in os.walk(path):
            inner[:] = [name for name in inner if not name.startswith(".")]
            folders += len(inner) if where == os.fspath(path) else 0
            images += sum(
                name.lower().endswith(EXTENSIONS) and not name.startswith(".") for name in files
            )
            budget.take(1 + len(inner) + len(files))
    except TooManyFilesError:
        whole = False
    return FolderInside(name=path.name, path=str(path), folders=folders, images=images, whole=whole)
