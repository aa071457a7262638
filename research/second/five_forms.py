"""One data set in five forms: the same images, the same zero-shot report to the last digit?

    python -m research.second.five_forms --source FOLDER    # class folders, such as Caltech-101's

The folder's images are put into parts by group: every five neighbouring numbers of a class are one,
as photographs that were taken one after another often are. Then the same parts are written as part
folders of class folders, as a manifest with splits and groups, as a zip, as what `save_to_disk` of
`datasets` writes, and as shards by `convert_dataset` of clip-benchmark's own webdataset_builder.
Each is read, its parts are held against those of the folders (ids, labels, the hash of the data
set; of shards, whose exporter gives ids of its own, the bytes of every image), and a zero-shot run
of calift-tiny is held to the folders' report. Its accuracy on photographs is that of chance; the
numbers are for comparing forms.

`datasets`, `clip-benchmark` and `webdataset` are needed and no part of calift: install them in an
environment that has calift too. Exit status 1 where a form differs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calift_core.catalogue import TINY
from calift_core.data.images import ImageSet
from calift_core.data.suites.load import Suite, load_suite
from calift_core.jobs.folder import run_in_folder
from calift_core.schema.spec import parse_spec
from calift_core.schema.suite import SuiteSpec

#: Neighbouring numbers that are one group.
NEIGHBOURS = 5
#: What a report says of a form, or of the clock, and not of the images.
_OWN = ("dataset", "dataset_sha256", "predictions_sha256", "seconds")


@dataclass(frozen=True)
class Picture:
    """An image with its part: its path below the part folders, its class, and its group."""

    path: str
    label: str
    part: str
    group: str


def split(source: Path, scratch: Path) -> list[Picture]:
    """Part, class and group of every image, the parts by group as calift makes them."""
    rows = []
    for folder in sorted(p for p in source.iterdir() if p.is_dir()):
        for at, file in enumerate(sorted(p for p in folder.iterdir() if p.is_file())):
            group = f"{folder.name}-{at // NEIGHBOURS:03d}"
            rows.append({"path": str(file.absolute()), "label": folder.name, "group": group})
    groups = {row["path"]: row["group"] for row in rows}
    # Paths of a manifest lie in its folder: links stand for the images.
    root = scratch / "whole"
    for row in rows:
        link = root / row["label"] / Path(row["path"]).name
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(row["path"], link)
    with (root / "all.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, ["path", "label", "group"])
        writer.writeheader()
        for row in rows:
            path = f"{row['label']}/{Path(row['path']).name}"
            writer.writerow({"path": path, "label": row["label"], "group": groups[row["path"]]})
    suite = load_suite(SuiteSpec(id=f"manifest:{root / 'all.csv'}"))
    found = []
    for part, images in suite.parts.items():
        for name, label in zip(images.ids, images.labels.tolist(), strict=True):
            inner = str(name).removeprefix(f"{part}/")
            group = groups[str((source / inner).absolute())]
            found.append(Picture(f"{part}/{inner}", suite.classes[label], part, group))
    return sorted(found, key=lambda one: one.path)


def class_folders(pictures: list[Picture], source: Path, root: Path) -> str:
    """Part folders of class folders."""
    for one in pictures:
        target = root / one.path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source / one.path.partition("/")[2], target)
    return f"folder:{root}"


def manifest(pictures: list[Picture], source: Path, root: Path) -> str:
    """The same tree, named by a table with splits and groups."""
    class_folders(pictures, source, root)
    with (root / "all.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["path", "label", "split", "group"])
        writer.writerows((one.path, one.label, one.part, one.group) for one in pictures)
    return f"manifest:{root / 'all.csv'}"


def zipped(pictures: list[Picture], source: Path, root: Path) -> str:
    """The tree as a zip."""
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
        for one in pictures:
            archive.write(source / one.path.partition("/")[2], one.path)
    return f"zip:{root.with_suffix('.zip')}"


def hugging_face(pictures: list[Picture], source: Path, root: Path) -> str:
    """What `save_to_disk` writes, with paths and groups as columns."""
    import datasets

    names = sorted({one.label for one in pictures})
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=names),
            "file": datasets.Value("string"),
            "group": datasets.Value("string"),
        }
    )
    made = {}
    for part in dict.fromkeys(one.part for one in pictures):
        own = [one for one in pictures if one.part == part]
        columns = {
            "image": [
                {"bytes": (source / one.path.partition("/")[2]).read_bytes(), "path": None}
                for one in own
            ],
            "label": [names.index(one.label) for one in own],
            "file": [one.path for one in own],
            "group": [one.group for one in own],
        }
        made[part] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(made).save_to_disk(str(root))
    return f"hf:{root}#id=file,group=group"


class _Files(list[tuple[str, int]]):
    """(path, label) as the exporter takes them, with the names of the classes."""

    classes: list[str]


def shards(pictures: list[Picture], source: Path, root: Path) -> str:
    """What clip-benchmark's exporter writes, part by part."""
    from clip_benchmark.webdataset_builder import convert_dataset, path_to_bytes

    names = sorted({one.label for one in pictures})
    for part in dict.fromkeys(one.part for one in pictures):
        own = _Files(
            (str(source / one.path.partition("/")[2]), names.index(one.label))
            for one in pictures
            if one.part == part
        )
        own.classes = names
        convert_dataset(own, part, str(root), transform=path_to_bytes, verbose=False)
    return f"wds:{root}"


FORMS: dict[str, Callable[[list[Picture], Path, Path], str]] = {
    "class folders": class_folders,
    "manifest with groups": manifest,
    "zip": zipped,
    "Hugging Face on disk": hugging_face,
    "shards of clip-benchmark": shards,
}


def contents(images: ImageSet) -> list[str]:
    """The hash of every image's pixels, in order."""
    return [hashlib.sha256(images.image(at).tobytes()).hexdigest() for at in range(len(images))]


def told(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What a report says of what it was tested on, less what names the form."""
    rows = [{k: v for k, v in one.items() if k not in _OWN} for one in report["evaluations"]]
    return [*rows, report["summary"]]


def judged(source: str, folder: Path) -> dict[str, Any]:
    """The report of a zero-shot run on a source."""
    spec = {
        "name": "form",
        "model": {"name": TINY, "pretrained": "typefaces"},
        "method": {"kind": "zero_shot"},
        "suite": {"id": source, "templates": ["a photo of a {}."]},
        "train": {"device": "cpu", "seed": 0},
    }
    list(run_in_folder(parse_spec(spec), folder))
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def main() -> int:
    """Write the forms, read them, judge on them, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="class folders of images")
    parser.add_argument("--scratch", type=Path, help="a folder on the source's file system")
    parser.add_argument("--json", action="store_true", help="the last line holds the numbers")
    options = parser.parse_args()
    source = options.source.absolute()
    with tempfile.TemporaryDirectory(prefix="five-forms-", dir=options.scratch) as name:
        scratch = Path(name)
        os.environ["CALIFT_HOME"] = str(scratch / "home")
        pictures = split(source, scratch)
        parts = {p: sum(one.part == p for one in pictures) for p in ("train", "validation",
                 "calibration", "test")}  # fmt: skip
        print(f"{len(pictures):,} images of {len({p.label for p in pictures}):,} classes in "
              f"{len({p.group for p in pictures}):,} groups; parts by group: "
              + ", ".join(f"{part} {n:,}" for part, n in parts.items()))  # fmt: skip
        print("written with " + ", ".join(
            f"{package} {version(package)}" for package in ("datasets", "clip-benchmark",
                                                            "webdataset")))  # fmt: skip
        rows = compared(pictures, source, scratch)
    print("\n| form | ids | labels | pixels | hash | zero-shot report | seconds |\n|" + "---|" * 7)
    for row in rows:
        print("| " + " | ".join(str(row[k]) for k in row if k != "report") + " |")
    first = rows[0]["report"]
    print(f"\nID accuracy {first['id_accuracy']!r}, ID ECE {first['id_ece']!r}, the same digits in "
          "all forms whose report is equal.")  # fmt: skip
    if options.json:
        print(json.dumps(rows))
    return 1 if any("differ" in row.values() for row in rows) else 0


def compared(pictures: list[Picture], source: Path, scratch: Path) -> list[dict[str, Any]]:
    """A row for each form, held against the first."""
    rows: list[dict[str, Any]] = []
    known: tuple[Suite, dict[str, list[str]], list[dict[str, Any]]] | None = None
    for at, (form, write) in enumerate(FORMS.items()):
        began = time.monotonic()
        with redirect_stdout(sys.stderr), redirect_stderr(sys.stderr):
            uri = write(pictures, source, scratch / f"form{at}")
        suite = load_suite(SuiteSpec(id=uri))
        pixels = {part: contents(images) for part, images in suite.parts.items()}
        report = judged(uri, scratch / f"run{at}")
        known = known or (suite, pixels, told(report))
        whole, kept = known[0].parts, suite.parts

        def word(equal: bool, *, own: bool = False) -> str:
            return "equal" if equal else "its own" if own else "differ"

        def same(what: Callable[[ImageSet], Any], a: Any = whole, b: Any = kept) -> bool:
            return set(a) == set(b) and all(what(a[part]) == what(b[part]) for part in a)

        theirs = form.startswith("shards")  # the exporter names images by their number
        rows.append({
            "form": form,
            "ids": word(same(lambda s: list(s.ids)), own=theirs),
            "labels": word(same(lambda s: s.labels.tolist())),
            "pixels": word(pixels == known[1]),
            "hash": word(same(lambda s: s.sha256), own=theirs),
            "zero-shot report": word(told(report) == known[2]),
            "seconds": round(time.monotonic() - began),
            "report": report["summary"],
        })  # fmt: skip
        print(f"{form}: {json.dumps(rows[-1])}", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
