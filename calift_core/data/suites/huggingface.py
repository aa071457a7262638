"""A data set of `datasets`, as a suite or as a shift: `hf:FOLDER` or `hf:NAME`. Torch-free.

`hf:FOLDER` is what `save_to_disk` wrote, `hf:NAME` one of the hub that `load_dataset` has put into
its cache. Both are Arrow files, read where they lie and without `datasets`; that is asked for what
the cache lacks alone (`fetch_dataset`, by a run and never by a dry run).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from calift_core.data.arrow import ArrowSource, encoded_column, features_of, open_table
from calift_core.data.grouped import Groups, require_whole_groups, split_whole
from calift_core.data.images import ImageSet
from calift_core.data.listing import PARTS, ScanBudget, part_named, shares_of
from calift_core.data.matching import match_classes, relabelled, require_every_class
from calift_core.data.names import Names
from calift_core.data.suites.base import AtPath, LoadedSuite, ShiftRequest, SuiteRequest
from calift_core.errors import DataError, DataUnavailableError, SpecError, reason_of
from calift_core.home import cache_dir
from calift_core.installed import install_extra
from calift_core.untrusted import parse_json

_DICT, _INFO, _STATE = "dataset_dict.json", "dataset_info.json", "state.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_LAYOUT = (
    "hf:FOLDER is a folder that `save_to_disk` wrote; hf:NAME a data set of the hub, as "
    "`load_dataset` names it."
)
#: What may stand behind `#`.
_CHOICES = ("image", "label", "id", "group", "split", "config")


@dataclass(frozen=True)
class HubChoice:
    """Columns and rows of a data set that its name chooses; "" where it says nothing.

    Attributes:
        config: one of several under a name of the hub.
    """

    image: str = ""
    label: str = ""
    id: str = ""
    group: str = ""
    split: str = ""
    config: str = ""

    @classmethod
    def of(cls, text: str | None) -> HubChoice:
        """Of `image=photo,label=species`.

        Raises:
            SpecError: it is something else.
        """
        found: dict[str, str] = {}
        for one in (text or "").split(",") if text else ():
            name, _, value = one.partition("=")
            if name not in _CHOICES or not value or name in found:
                raise SpecError(
                    f"behind # a data set's name has {', '.join(f'{c}=…' for c in _CHOICES)}, each "
                    f"once, got {text!r}"
                )
            found[name] = value
        return cls(**found)


@dataclass(frozen=True)
class Rows:
    """One split.

    Attributes:
        labels: (N,) positions in `names`.
        names: of the classes: in the order of their numbers, else sorted.
        groups: what belongs together, where a column was named.
    """

    name: str
    source: ArrowSource
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    ids: Names
    groups: Groups | None

    def image_set(self, name: str, prefix: str, labels: NDArray[np.int64]) -> ImageSet:
        """All of them, with ids under a prefix."""
        at = np.arange(len(self.labels), dtype=np.int64)
        return ImageSet(name, self.source, self.ids.below(prefix), labels, at)


class HuggingFace(AtPath):
    """Any data set of `datasets` with a column of images: `hf:FOLDER`, `hf:NAME`."""

    name = "hf"
    has_domains = True  # what is chosen behind `#`

    def find(self, path: Path | None) -> Path | None:
        """The folder of its Arrow files, or the cache that would hold it."""
        if path is None or not is_hub_name(path):
            return path
        places = [place / _cached_as(path) for place in _caches()]
        return next((place for place in places if place.is_dir()), places[0])

    def fetchable(self, path: Path | None) -> str | None:
        return self.name if path is not None and is_hub_name(path) else None

    def load(self, request: SuiteRequest) -> LoadedSuite:
        """Its splits as parts; what they lack is split off the training images."""
        assert request.path is not None
        choice, place = HubChoice.of(request.domain), str(request.path)
        if choice.split:
            raise SpecError(f"{place!r}: split= is for shifts; ID data has its splits as parts")
        files, notes = _splits(request.path, choice.config), list[str]()
        named = {split: part_named(split) for split in files}
        unused = [split for split, part in named.items() if part is None]
        if unused:
            notes.append(f"{place!r}: the splits {', '.join(unused)} are no part and are left out")
        if "train" not in named.values():
            raise DataError(
                f"{place!r} has the splits {', '.join(files)} and no train.",
                hint=_LAYOUT + " Images that are for testing alone can be a shift.",
            )
        rows: dict[str, Rows] = {}
        for split, part in named.items():
            if part is None:
                continue
            found = _rows(split, files[split], choice, place, request.budget)
            if found is None:
                notes.append(f"{place!r}: the split {split!r} has no labels and is left out")
            elif part in rows:
                raise DataError(f"{place!r}: {rows[part].name!r} and {split!r} are both {part}")
            else:
                rows[part] = found
        return _loaded(request, rows, place, tuple(notes))

    def shift(self, request: ShiftRequest) -> ImageSet:
        """The images of the split that is named, else of test, else of its only one."""
        choice, what, name = HubChoice.of(request.domain), request.what, request.name
        files = _splits(request.path, choice.config)
        split = choice.split or ("test" if "test" in files or len(files) > 1 else next(iter(files)))
        if split not in files:
            raise DataError(
                f"{what} has no split {split!r}, its splits are {', '.join(files)}.",
                hint="Name one with #split=.",
            )
        rows = _rows(split, files[split], choice, str(request.path), request.budget)
        if rows is None:
            raise DataError(f"{what}: the split {split!r} has no labels")
        images = rows.image_set(name, "" if choice.id else f"{name}/", rows.labels)
        return relabelled(images, rows.names, request.classes, what)


def is_hub_name(path: Path) -> bool:
    """Whether what stands behind `hf:` is a name of the hub: a folder that is there is none."""
    return _HUB_NAME.fullmatch(str(path)) is not None and not path.is_dir()


def hub_name_of(uri: str) -> str | None:
    """The name of the hub in `hf:NAME`; None in anything else."""
    kind, _, rest = uri.partition(":")
    name = rest.partition("#")[0]
    return name if kind == "hf" and is_hub_name(Path(name)) else None


def _loaded(
    request: SuiteRequest, rows: dict[str, Rows], place: str, notes: tuple[str, ...]
) -> LoadedSuite:
    assert request.path is not None
    if "train" not in rows:
        raise DataError(f"{place!r}: the split train has no labels")
    has_ids = bool(HubChoice.of(request.domain).id)
    train_rows, names = rows["train"], rows["train"].names
    if len(names) < 2:
        raise DataError(f"{place!r} must have at least 2 classes, it has {list(names)}")
    parts = {}
    for part, found in rows.items():
        at = match_classes(found.names, names, f"{place!r}: the split {found.name!r}")
        labels = at[found.labels]
        require_every_class(labels, names, f"{place!r}: the split {found.name!r}")
        parts[part] = found.image_set(part, "" if has_ids else f"{found.name}/", labels)
    grouped = {part: found.groups for part, found in rows.items() if found.groups is not None}
    require_whole_groups(grouped, repr(place))
    train = parts.pop("train")
    shares = shares_of(request.fractions, parts)
    parts |= split_whole(train, train_rows.groups, shares, "train")
    parts = {part: parts[part] for part in PARTS if part in parts}
    words = tuple(name.replace("_", " ") for name in names)
    return LoadedSuite(request.path.name, names, words, parts, notes=notes)


def _rows(
    split: str, files: Sequence[Path], choice: HubChoice, place: str, budget: ScanBudget | None
) -> Rows | None:
    """One split; None where no row has a label."""
    table, what = open_table(files), f"{place!r}: the split {split!r}"
    n = table.num_rows
    if budget is not None:
        budget.take(n)
    if n == 0:
        raise DataError(f"{what} has no rows")
    features = features_of(table)
    image = _column(table, choice.image, [c for c, f in features.items() if f["_type"] == "Image"],
                    f"{what}: which column holds the images? Expected #image=COLUMN")  # fmt: skip
    label = _column(table, choice.label, _label_columns(table, features),
                    f"{what}: which column holds the labels? Expected #label=COLUMN")  # fmt: skip
    encoded_column(table, image, what)
    coded = _labels(table.column(label), features.get(label, {}), f"{what}: the column {label!r}")
    if coded is None:
        return None
    rows = np.arange(n, dtype=np.int64)
    groups = None
    if choice.group:
        groups = Groups.of(_texts(table, choice.group, what, may_lack=True))
    return Rows(
        split, ArrowSource(tuple(files), image, rows, f"{place}#{split}"), *coded,
        _ids(table, image, choice.id, what), groups,
    )  # fmt: skip


def _column(table: pa.Table, chosen: str, likely: Sequence[str], question: str) -> str:
    have = ", ".join(table.column_names)
    if chosen:
        if chosen not in table.column_names:
            raise SpecError(f"{question}, got {chosen!r}; the columns are {have}")
        return chosen
    if len(likely) != 1:
        raise SpecError(f"{question}; the columns are {have}")
    return likely[0]


def _label_columns(table: pa.Table, features: Mapping[str, Mapping[str, Any]]) -> list[str]:
    labels = [name for name, about in features.items() if about["_type"] == "ClassLabel"]
    return labels or [name for name in ("label", "labels") if name in table.column_names]


def _labels(
    column: pa.ChunkedArray, about: Mapping[str, Any], what: str
) -> tuple[NDArray[np.int64], tuple[str, ...]] | None:
    """Labels (N,) and the classes; None where all are missing."""
    values = np.asarray(column.to_pylist(), dtype=object)
    known = about.get("names")
    is_missing = np.array([v is None or (known is not None and v == -1) for v in values])
    if is_missing.all():
        return None
    if is_missing.any():
        first = int(np.flatnonzero(is_missing)[0])
        raise DataError(
            f"{what} has no label in {int(is_missing.sum()):,} of {len(values):,} rows, the first "
            f"is row {first}"
        )
    if known is not None:
        numbers = values.astype(np.int64)
        wrong = np.flatnonzero((numbers < 0) | (numbers >= len(known)))
        if len(wrong):
            raise DataError(
                f"{what}: row {int(wrong[0])} has the label {numbers[wrong[0]]}, there are the "
                f"classes 0 to {len(known) - 1}"
            )
        return numbers, tuple(map(str, known))
    kinds = {type(v) for v in values}
    if kinds not in ({str}, {int}):
        raise DataError(
            f"{what} must hold texts, whole numbers or a ClassLabel, it holds {column.type}"
        )
    names = sorted(set(values.tolist()))
    position = {name: i for i, name in enumerate(names)}
    labels = np.fromiter((position[v] for v in values), np.int64, len(values))
    return labels, tuple(map(str, names))


def _texts(table: pa.Table, column: str, what: str, *, may_lack: bool) -> list[str]:
    if column not in table.column_names:
        raise SpecError(
            f"{what} has no column {column!r}, its columns are {', '.join(table.column_names)}"
        )
    found = ["" if v is None else v for v in table.column(column).to_pylist()]
    for row, value in enumerate(found):
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise DataError(f"{what}: {column} must be texts or numbers, row {row} has {value!r}")
        if value == "" and not may_lack:
            raise DataError(f"{what}: row {row} has no {column}")
    return [str(v) for v in found]


def _ids(table: pa.Table, image: str, chosen: str, what: str) -> Names:
    """From the column that is named, else the images' own file names, else the rows' numbers."""
    n = table.num_rows
    if chosen:
        texts = _texts(table, chosen, what, may_lack=False)
        if len(set(texts)) < n:
            twice = next(t for i, t in enumerate(texts) if t in set(texts[:i]))
            raise DataError(f"{what}: {chosen} must name each image once, {twice!r} comes twice")
        return Names.of(texts)
    kind = table.column(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        at = kind.get_field_index("path")
        paths = [p for chunk in table.column(image).chunks for p in chunk.flatten()[at].to_pylist()]
        if all(isinstance(p, str) and p for p in paths) and len(set(paths)) == n:
            return Names.of(paths)
    return Names.of(f"{row:07d}" for row in range(n))


# ---- Where the files are -----------------------------------------------------------------------


def _splits(path: Path, config: str) -> dict[str, tuple[Path, ...]]:
    if is_hub_name(path):
        return _cached_splits(path, config)
    if not path.is_dir():
        raise DataUnavailableError(f"there is no folder {str(path)!r}.", hint=_LAYOUT)
    if (path / _STATE).is_file():
        return {"train": _saved_files(path)}
    if not (path / _DICT).is_file():
        raise DataError(
            f"{str(path)!r} has neither {_DICT} nor {_STATE}: it is no data set on disk.",
            hint=f"{_LAYOUT} Class folders are folder:./{path}."
            if not path.is_absolute()
            else f"{_LAYOUT} Class folders are folder:{path}.",
        )
    splits = _json(path / _DICT).get("splits")
    if not isinstance(splits, list) or not all(isinstance(s, str) for s in splits) or not splits:
        raise DataError(f"{str(path / _DICT)!r} names no splits")
    if any("/" in split or split.startswith(".") for split in splits):
        raise DataError(f"{str(path / _DICT)!r} names splits that are no folders of it")
    return {split: _saved_files(path / split) for split in splits}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {reason_of(error)}") from None
    if not isinstance(found, dict):
        raise DataError(f"{str(path)!r} must hold an object, got {type(found).__name__}")
    return found


def _saved_files(folder: Path) -> tuple[Path, ...]:
    try:
        names = [str(one["filename"]) for one in _json(folder / _STATE)["_data_files"]]
    except (KeyError, TypeError):
        raise DataError(f"{str(folder / _STATE)!r} names no files") from None
    files = tuple(folder / name for name in names)
    for file in files:
        if file.parent != folder or not file.is_file():
            raise DataUnavailableError(
                f"{str(folder / _STATE)!r} names {file.name!r}, which is not beside it."
            )
    return files


def _caches() -> tuple[Path, Path]:
    """Where data sets of the hub are fetched to, and where `datasets` keeps what others loaded."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    theirs = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
    ours = theirs if os.environ.get("HF_DATASETS_CACHE") else _hub_files().with_name("datasets")
    return ours, theirs


def _hub_files() -> Path:
    return cache_dir() / "huggingface" / "hub"


def _cached_as(path: Path) -> str:
    return str(path).replace("/", "___").lower()


def is_cached(name: str, config: str = "") -> bool:
    """Whether a data set of the hub is on this machine."""
    return bool(_cached_configs(Path(name), config))


def _cached_configs(path: Path, config: str) -> dict[str, Path]:
    """Config → the folder of its newest copy in the cache."""
    places = [place for place in _caches() if place.is_dir()]
    roots = [p for place in places for p in place.iterdir() if p.name.lower() == _cached_as(path)]
    found = [about.parent for root in roots for about in root.glob(f"*/*/*/{_INFO}")]
    found.sort(key=lambda folder: folder.stat().st_mtime)
    # A config that was loaded with options has a hash of them behind its name.
    copies = {folder.parents[1].name: folder for folder in found}
    return {name: folder for name, folder in copies.items() if not config or name == config}


def _cached_splits(path: Path, config: str) -> dict[str, tuple[Path, ...]]:
    configs = _cached_configs(path, config)
    if not configs:
        of = f" (config {config!r})" if config else ""
        raise DataUnavailableError(
            f"the data set {str(path)!r}{of} of the hub is not in the cache {str(_caches()[0])!r}.",
            hint="A run fetches it where it has a network and `datasets`; else load it once with "
            "`datasets.load_dataset`. If a folder is meant, there is none of this name here: "
            f"hf:./{path}, or its whole path, names what `save_to_disk` wrote.",
        )
    if len(configs) > 1:
        raise SpecError(
            f"the data set {str(path)!r} is here as {', '.join(sorted(configs))}: name one with "
            "#config="
        )
    (folder,) = configs.values()
    splits = _json(folder / _INFO).get("splits")
    if not isinstance(splits, dict) or not splits:
        raise DataError(f"{str(folder / _INFO)!r} names no splits")
    found = {}
    for split, about in splits.items():
        files = sorted(
            f
            for f in folder.glob("*.arrow")
            if re.fullmatch(rf".*-{re.escape(split)}(-\d{{5}}-of-\d{{5}})?\.arrow", f.name)
        )
        n = sum(open_table([f]).num_rows for f in files)
        if n != about.get("num_examples"):
            raise DataUnavailableError(
                f"{str(folder)!r} has {n:,} rows of the split {split!r}, its {_INFO} says "
                f"{about.get('num_examples'):,}."
            )
        found[split] = tuple(files)
    return found


def fetch_dataset(path: Path, chosen: str | None) -> None:
    """Have `datasets` fetch a data set of the hub to the cache; nothing where it is there.

    Raises:
        DataUnavailableError: it cannot be had.
    """
    config = HubChoice.of(chosen).config
    if is_cached(str(path), config):
        return
    problem = f"the data set {str(path)!r} of the hub is not on this machine"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise DataUnavailableError(
            f"{problem}, and nothing is fetched here (HF_HUB_OFFLINE).",
            hint="Load it once with `datasets.load_dataset` where there is a network, or name what "
            "`save_to_disk` wrote as hf:FOLDER.",
        )
    try:
        import datasets
        from huggingface_hub import constants
    except ImportError:
        raise DataUnavailableError(
            f"{problem}, and `datasets`, which fetches it, is not installed.",
            hint=install_extra("hf"),
        ) from None
    shared = constants.HF_HUB_CACHE
    try:
        # `cache_dir` is of the prepared data alone; the files they are made of have no such option.
        constants.HF_HUB_CACHE = str(_hub_files())
        datasets.load_dataset(str(path), config or None, cache_dir=str(_caches()[0]))
    except Exception as error:  # network, hub and builders each have their own
        raise DataUnavailableError(
            f"{problem} and could not be fetched ({type(error).__name__}: {reason_of(error)}).",
            hint=_LAYOUT,
        ) from None
    finally:
        constants.HF_HUB_CACHE = shared
