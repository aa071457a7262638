"""A manifest of a suite's image files, some of them under other labels. Torch-free."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calift_core.data.images import ImageSet
from calift_core.data.manifest import read_manifest
from calift_core.data.matching import plain_form
from calift_core.data.sources import FileSource
from calift_core.data.suites import named_suite, parse_suite_id
from calift_core.errors import DataError, SpecError
from calift_core.files import atomic_path
from calift_core.schema.suite import SuiteSpec
from calift_core.untrusted import unmark_formula

_COLUMNS = ("path", "label", "split", "domain", "group")


@dataclass(frozen=True)
class Correction:
    """What a person says of an image.

    Attributes:
        label: its class as it was when the list was made; "" where the list does not say.
        suggested: its right class; "" leaves the image out.
    """

    sample: str
    label: str
    suggested: str


@dataclass(frozen=True)
class _Row:
    sample: str
    file: Path
    label: str
    split: str = ""
    domain: str = ""
    group: str = ""


def read_corrections(path: Path) -> list[Correction]:
    """A list as `calift data doubtful` writes it, after somebody has looked at it.

    Raises:
        DataError: it is no such list, or names a sample twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text, strict=True)
            have = reader.fieldnames or ()
            if not {"sample", "suggested"} <= set(have):
                raise DataError(
                    f"{path.name} must have the columns sample and suggested, its columns are "
                    f"{', '.join(have) or 'none'}"
                )
            rows = [
                Correction(
                    *(unmark_formula(row.get(n) or "") for n in ("sample", "label", "suggested"))
                )
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path.name} is not readable as CSV: {error}") from None
    seen: set[str] = set()
    for row in rows:
        if row.sample in seen:
            raise DataError(f"{path.name}: {row.sample!r} is there twice")
        seen.add(row.sample)
    return rows


@dataclass(frozen=True)
class Corrected:
    """A corrected manifest.

    Attributes:
        folder: that it belongs into: all its images are below.
    """

    folder: Path
    text: str
    changed: int
    dropped: int


def corrected(source: str, corrections: Sequence[Correction]) -> Corrected:
    """A manifest of a suite's images with corrected labels, not written anywhere.

    Args:
        source: as for `relabel`.

    Raises:
        DataError: the corrections are for other data or name other classes, or the images are no
            files, or none is left.
    """
    rows, changed, dropped = _corrected(source, corrections)
    if not rows:
        raise DataError("a corrected manifest must have at least one image, all were left out")
    folder = Path(os.path.commonpath([row.file.absolute().parent for row in rows]))
    return Corrected(folder, _text(rows, folder), changed, dropped)


def relabel(source: str, corrections: list[Correction], out: Path) -> tuple[int, int]:
    """Write a manifest of a suite's images with corrected labels.

    Args:
        source: `folder:PATH`, `manifest:FILE`, or another suite whose images are files.
        out: a `.csv`, in a folder that all images are below.

    Returns:
        How many images have another label, and how many were left out.

    Raises:
        SpecError: `out` is no CSV.
        DataError: the corrections are for other data or name other classes, or the images are no
            files below the folder of `out`.
    """
    if out.suffix.lower() != ".csv":
        raise SpecError(f"the corrected manifest ends in .csv, got {out.name!r}")
    rows, changed, dropped = _corrected(source, corrections)
    text = _text(rows, out.absolute().parent)
    with atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
    return changed, dropped


def _corrected(source: str, corrections: Sequence[Correction]) -> tuple[list[_Row], int, int]:
    rows = list(_rows(source))
    by_sample = {one.sample: one for one in corrections}
    strange = sorted(by_sample.keys() - {row.sample for row in rows})
    if strange:
        raise DataError(
            f"{len(strange):,} of the {len(by_sample):,} corrections are of no image of "
            f"{source!r}, the first is {strange[0]!r}"
        )
    # A run says `flamingo head` of what is `flamingo_head` here.
    classes = {plain_form(row.label): row.label for row in rows} | {r.label: r.label for r in rows}
    changed = dropped = 0
    kept = []
    for row in rows:
        one = by_sample.get(row.sample)
        if one is None:
            kept.append(row)
            continue
        if one.label and plain_form(one.label) != plain_form(row.label):
            raise DataError(
                f"{row.sample!r} is {row.label!r} in {source!r} and {one.label!r} in the list: it "
                "was made for other data, or these labels are corrected already"
            )
        if not one.suggested:
            dropped += 1
            continue
        right = classes.get(one.suggested) or classes.get(plain_form(one.suggested))
        if right is None:
            raise DataError(
                f"{row.sample!r} cannot be {one.suggested!r}: the classes are "
                f"{', '.join(sorted(set(classes.values()))[:20])}"
            )
        changed += right != row.label
        kept.append(replace(row, label=right))
    return kept, changed, dropped


def _rows(source: str) -> Iterator[_Row]:
    suite = parse_suite_id(source)
    if suite.name == "manifest":
        assert suite.path is not None
        yield from _rows_of_manifest(suite.path)
        return
    family, request = named_suite(SuiteSpec(id=source))
    found = family.load(request)
    everything = [("", part, images) for part, images in found.parts.items()]
    everything += [(shift, "", images) for shift, images in found.shifts.items()]
    for domain, split, images in everything:
        if images.classes is not None or not isinstance(images.source, FileSource):
            raise DataError(
                f"the images of {source!r} are not files of one list of classes, which a manifest "
                "is about"
            )
        yield from _rows_of(images, images.source, found.classes, split, domain)


def _rows_of(
    images: ImageSet, source: FileSource, classes: tuple[str, ...], split: str, domain: str
) -> Iterator[_Row]:
    for sample, label, index in zip(images.ids, images.labels, images.indices, strict=True):
        yield _Row(sample, source.path(int(index)), classes[int(label)], split, domain)


def _rows_of_manifest(file: Path) -> Iterator[_Row]:
    whole = read_manifest(file)
    columns = (whole.labels, whole.splits, whole.domains, whole.groups)
    for at, path in enumerate(whole.paths):
        cells = [c.names[code] if (code := int(c.codes[at])) >= 0 else "" for c in columns]
        yield _Row(path, file.parent / path, *cells)


def _text(rows: list[_Row], folder: Path) -> str:
    """The manifest of rows, as it lies in a folder."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(_COLUMNS)
    for row in rows:
        where = row.file.absolute()
        if not where.is_relative_to(folder):
            raise DataError(
                f"{str(where)!r} is not below {str(folder)!r}: a manifest lies in a folder "
                "that all its images are below.",
                hint="Name another place with --out.",
            )
        cells: Mapping[str, str] = {
            "path": where.relative_to(folder).as_posix(), "label": row.label,
            "split": row.split, "domain": row.domain, "group": row.group,
        }  # fmt: skip
        writer.writerow([cells[name] for name in _COLUMNS])
    return file.getvalue()
