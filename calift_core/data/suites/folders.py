"""Class folders as a suite or as a shift. Torch-free."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from calift_core.data.grouped import (
    Groups,
    PathPattern,
    groups_by,
    require_whole_groups,
    split_whole,
)
from calift_core.data.images import ImageSet
from calift_core.data.listing import (
    ScanBudget,
    SkippedFiles,
    class_folders,
    folder_layout,
    images_by_class,
    require_classes,
    require_folder,
    shares_of,
    shift_folder,
)
from calift_core.data.matching import plain_form
from calift_core.data.sources import FileSource
from calift_core.data.suites.base import LoadedSuite, ShiftRequest, SuiteFamily, SuiteRequest
from calift_core.schema.suite import FractionSpec


def scan(
    root: Path,
    classes: Sequence[str],
    name: str,
    prefix: str,
    *,
    border: int = 0,
    budget: ScanBudget | None = None,
    skipped: SkippedFiles | None = None,
) -> ImageSet:
    """The images of a tree of class folders; ids are paths relative to `root` under `prefix`."""
    paths, labels = images_by_class(root, classes, name, budget, skipped, prefix)
    return ImageSet(
        name=name,
        source=FileSource(paths, root, border),
        ids=paths.below(prefix),
        labels=labels,
        indices=np.arange(len(paths), dtype=np.int64),
    )


def load_folder(
    root: Path,
    fractions: FractionSpec,
    budget: ScanBudget | None = None,
    group_by: str | None = None,
    n_classes: int | None = None,
) -> LoadedSuite:
    """A folder of class folders, or of part folders of them.

    Args:
        group_by: finds in a path what must not be torn apart; see `PathPattern`.
        n_classes: where it is known; see `folder_layout`.
    """
    train, classes, others = folder_layout(root, n_classes)
    skipped = SkippedFiles()
    skipped.add_files_of(root)
    parts: dict[str, ImageSet] = {}
    for part, where in others.items():
        prefix = f"{where.name}/"
        skipped.add_files_of(where, prefix)
        parts[part] = scan(where, classes, part, prefix, budget=budget, skipped=skipped)
    prefix = "" if train == root else f"{train.name}/"
    if prefix:
        skipped.add_files_of(train, prefix)
    whole = scan(train, classes, "train", prefix, budget=budget, skipped=skipped)
    groups = None
    if group_by is not None:
        found = {part: _groups(group_by, images) for part, images in parts.items()}
        groups = groups_by(group_by, whole.ids, root.name)
        require_whole_groups({"train": groups, **found}, root.name)
    parts |= split_whole(whole, groups, shares_of(fractions, parts), "train")
    notes = skipped.notes
    if train != root:
        strange = sorted(
            set(class_folders(root)) - {train.name, *(p.name for p in others.values())}
        )
        notes += (f"no part is called {', '.join(strange)}: left out",) if strange else ()
    names = tuple(c.replace("_", " ") for c in classes)
    return LoadedSuite(root.name, classes, names, parts, notes=notes)


def _groups(group_by: str, images: ImageSet) -> Groups:
    """The groups of a part that is there already; perhaps the pattern fits none of its paths."""
    return Groups.of(map(PathPattern(group_by).group, images.ids))


def shift_in(
    name: str, root: Path, classes: Sequence[str], budget: ScanBudget | None = None
) -> ImageSet:
    """The shift in a folder, which must have the suite's classes.

    Raises:
        DataError: it has others.
    """
    root = shift_folder(root)
    skipped = SkippedFiles()
    skipped.add_files_of(root, f"{name}/")
    folders = _folders_of(root, classes, name)
    found = scan(root, folders, name, f"{name}/", budget=budget, skipped=skipped)
    return replace(found, notes=tuple(f"the shift {name!r}: {n}" for n in skipped.notes))


def _folders_of(root: Path, classes: Sequence[str], name: str) -> Sequence[str]:
    """The folder of each class: `Faces_easy` may be called `faces easy` elsewhere."""
    plain = {plain_form(folder): folder for folder in class_folders(root)}
    forms = [plain_form(c) for c in classes]
    if plain.keys() == set(forms) and len(plain) == len(forms):
        return [plain[form] for form in forms]
    require_classes(root, classes, f"the shift {name!r}")
    return classes


class Folder(SuiteFamily):
    """Any folder of class folders: `folder:PATH`."""

    name = "folder"

    def missing(self, path: Path | None) -> list[str]:
        return []

    def load(self, request: SuiteRequest) -> LoadedSuite:
        """The folder's parts; what it lacks is split off."""
        assert request.path is not None
        return load_folder(request.path, request.fractions, request.budget, request.group_by)

    def shift(self, request: ShiftRequest) -> ImageSet:
        """The images of its class folders, or of those in its test/."""
        root, classes = require_folder(request.path), request.classes
        known = class_folders(shift_folder(root)) if classes is None else classes
        return shift_in(request.name, root, known, request.budget)
