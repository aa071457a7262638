"""What a run is about: the ID data, its shifts and corruptions, and how data are named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from calift_core.errors import UnknownNameError
from calift_core.schema.base import Frozen, Positive, Seed, option
from calift_core.schema.places import expanded

#: Suites that `calift-tiny` has weights for by their name, the embedded default first.
TINY_SUITES = ("typefaces", "fashion-mnist")
_SHIFT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BARE_PATH = re.compile(r"^(/|~|\.{1,2}/|[A-Za-z]:[\\/])")


#: What a path is behind, and the endings of files by which a bare path is told.
_PLACES = ("folder:", "manifest:", "wds:", "zip:", "hf:")
_MANIFEST = re.compile(r"\.(csv|jsonl|ndjson|parquet)(#[^/]*)?$", re.IGNORECASE)


def as_uri(value: str) -> str:
    """A bare path with its kind: what begins with `/`, `~`, `./`, `../` or a drive's letter.

    A table's is `manifest:FILE`, a zip's `zip:FILE`, any other `folder:PATH`.
    """
    if not _BARE_PATH.match(value):
        return value
    if value.lower().endswith(".zip"):
        return f"zip:{value}"
    return f"manifest:{value}" if _MANIFEST.search(value) else f"folder:{value}"


def absolute_uri(value: str) -> str:
    """The same data, named so that it is found from any folder."""
    uri = as_uri(value)
    kind, _, path = uri.partition(":")
    if kind == "torchvision":
        name, _, root = path.partition(":")
        return f"{kind}:{name}:{expanded(root).absolute()}" if root else uri
    if f"{kind}:" not in _PLACES or not path:
        return uri  # a named suite
    is_folder = _BARE_PATH.match(path) or Path(path.partition("#")[0]).is_dir()
    if kind == "hf" and not is_folder:
        return uri  # a name of the hub
    return f"{kind}:{expanded(path).absolute()}"


def name_of_uri(uri: str) -> str:
    """What a shift is called where only its place is said: its domain, or its folder or file."""
    kind, _, path = uri.partition(":")
    if kind == "torchvision":
        return path.partition(":")[0].lower()
    if f"{kind}:" not in _PLACES:
        return PurePath(uri).name
    place, _, domain = path.partition("#") if kind in ("manifest", "hf") else (path, "", "")
    if kind == "hf":  # behind `#` are columns, and perhaps a split
        chosen = dict(one.partition("=")[::2] for one in domain.split(","))
        domain = chosen.get("split", "")
    return domain or (PurePath(place).stem if kind in ("manifest", "zip") else PurePath(place).name)


def shift_names(shifts: dict[str, str], what: str = "shift") -> dict[str, str]:
    """Return shifts by name with their sources as URIs, else raise ValueError."""
    for name in shifts:
        if not _SHIFT_NAME.fullmatch(name):
            raise ValueError(
                f"a {what}'s name has 1 to 64 letters, digits, '.', '_' or '-', got {name!r}"
            )
        if name in ("id", "train", "validation", "calibration", "test"):
            raise ValueError(f"{name!r} names an ID split and cannot name a {what}")
    return {name: as_uri(uri) for name, uri in shifts.items()}


#: The 15 corruptions that ImageNet-C and CIFAR-C are averaged over, and the 4 that came with them.
BENCHMARK_CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


class CorruptionSpec(Frozen):
    """Synthetic shifts of the ID test images, seeded per image."""

    names: Literal["all", "benchmark"] | tuple[str, ...] = option(
        (), "Corruptions", "'all' (19), 'benchmark' (the 15 of ImageNet-C) or a list of names"
    )
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = option(
        (1, 3, 5), "Severities", "1 (mild) to 5 (harsh)"
    )
    limit: Positive | None = option(
        None,
        "Images per corruption",
        "Use at most this many test images (a fixed, seeded subset); none: all",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, title="Corruption seed")

    @field_validator("names")
    @classmethod
    def _known(cls, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        known = (*BENCHMARK_CORRUPTIONS, *EXTRA_CORRUPTIONS)
        for name in names if isinstance(names, tuple) else ():
            if name in ("all", "benchmark"):
                raise ValueError(f"{name!r} stands for several corruptions and goes without others")
            if name not in known:
                raise ValueError(UnknownNameError("corruption", name, known).message)
        return names

    @property
    def chosen(self) -> tuple[str, ...]:
        """The corruptions by name, each once; a set's in the order of the paper."""
        if self.names == "benchmark":
            return BENCHMARK_CORRUPTIONS
        if self.names == "all":
            return (*BENCHMARK_CORRUPTIONS, *EXTRA_CORRUPTIONS)
        return tuple(dict.fromkeys(self.names))

    @field_validator("severities")
    @classmethod
    def _distinct(cls, severities: tuple[int, ...]) -> tuple[int, ...]:
        if not severities or len(set(severities)) != len(severities):
            raise ValueError(f"severities must be distinct and not empty, got {list(severities)}")
        return tuple(sorted(severities))


class FractionSpec(Frozen):
    """How parts that a suite lacks on disk are split off, by a hash of each image's path.

    `train` receives what is left. The fractions are of the images of the part that is split:
    `pretrain`, `validation` and `calibration` come off the training images; `test` too when the
    suite has no test folder.
    """

    pretrain: float = Field(default=0.0, ge=0.0, lt=1.0, title="Pre-training share")
    validation: float = Field(default=0.1, ge=0.0, lt=1.0, title="Validation share")
    calibration: float = Field(default=0.1, ge=0.0, lt=1.0, title="Calibration share")
    test: float = Field(default=0.2, ge=0.0, lt=1.0, title="Test share")

    @model_validator(mode="after")
    def _leave_some(self) -> FractionSpec:
        total = self.pretrain + self.validation + self.calibration + self.test
        if total >= 1:
            raise ValueError(f"the fractions must leave training images, they sum to {total:g}")
        return self


class SuiteSpec(Frozen):
    """The ID data, its shifts, and how classes are named to the text tower."""

    id: Annotated[str, AfterValidator(as_uri)] = option(
        TINY_SUITES[0],
        "ID data",
        "A named suite (typefaces, imagenet, pacs:photo, …), NAME:PATH where it "
        "lies elsewhere, folder:PATH with class folders, manifest:FILE (CSV, Parquet or JSON "
        "lines), wds:FOLDER with shards, zip:FILE, hf:FOLDER or hf:NAME (Hugging Face), "
        "torchvision:NAME:ROOT, or domains:PATH#DOMAIN",
        min_length=1,
    )
    shifts: Annotated[dict[str, str], AfterValidator(shift_names)] = Field(
        default_factory=dict,
        title="Shifts",
        description="name → folder:PATH, manifest:FILE, wds:FOLDER, zip:FILE, hf:FOLDER or "
        "torchvision:NAME:ROOT of the same classes under another distribution; none: do without a "
        "shift that the suite has itself",
    )
    ood: Annotated[dict[str, str], AfterValidator(partial(shift_names, what="far set"))] = Field(
        default_factory=dict,
        title="Far sets",
        description="name → the same, of images of none of the classes: scores of OOD detection "
        "are held against them, and nothing else is. folder:PATH takes every image below it",
    )
    corruptions: CorruptionSpec = Field(default_factory=CorruptionSpec, title="Corruptions")
    class_names: dict[str, str] = Field(
        default_factory=dict,
        title="Class names",
        description="Folder name → the words the text tower should read; * → a named set for all "
        "(suite, folder, openai_imagenet, wordnet)",
    )
    templates: str | tuple[str, ...] = option(
        "openai_imagenet",
        "Prompt templates",
        "A named set (openai_imagenet, simple, cifar, photo, plain, letters, styles, "
        "genres) or sentences with {}; where nothing is said, typefaces has letters",
    )
    fractions: FractionSpec = Field(default_factory=FractionSpec, title="Splits")
    group_by: str | None = option(
        None,
        "Group by path",
        "What belongs together and is not torn apart by splits, found in the path of "
        "each image: patient{}_* looks at file names, */scene{}/* at whole paths; * is any text, "
        "{} the group. For folder: and manifest: without a column of groups",
        min_length=2,
        max_length=200,
        pattern=r"^[^{}]*\{\}[^{}]*$",
    )
    limits: dict[
        Literal["pretrain", "train", "validation", "calibration", "test"],
        Annotated[int, Field(ge=1)],
    ] = Field(
        default_factory=dict,
        title="Limits",
        description="At most this many images of a part, a fixed subset by path hash",
    )
    n_shot: int | None = option(
        None,
        "Training images per class",
        "Train on at most this many images of each class, the same ones for every "
        "method; none: all",
        ge=1,
        le=1_000_000,
    )
    n_shot_seed: Seed = option(0, "Seed of those images", "Another seed takes other images")

    @model_validator(mode="before")
    @classmethod
    def _read_as_learned(cls, value: Any) -> Any:
        is_open = isinstance(value, Mapping) and "templates" not in value
        if is_open and value.get("id", TINY_SUITES[0]) == "typefaces":
            return {**value, "templates": "letters"}
        return value

    @model_validator(mode="after")
    def _distinct_names(self) -> SuiteSpec:
        for name in self.ood.keys() & self.shifts.keys():
            raise ValueError(f"{name!r} names a shift and a far set (ood); rename one of them")
        return self

    @field_validator("group_by", mode="before")
    @classmethod
    def _one_group(cls, pattern: object) -> object:
        # In words, before the pattern of the schema says the same as a regular expression.
        if isinstance(pattern, str) and (
            pattern.count("{}") != 1 or set(pattern.replace("{}", "")) & set("{}")
        ):
            raise ValueError(
                "group_by must have {} once, where the group stands in a path, as patient{}_* has, "
                f"got {pattern!r}"
            )
        return pattern

    @field_validator("class_names", mode="before")
    @classmethod
    def _named_set(cls, names: Any) -> Any:
        return {"*": names} if isinstance(names, str) else names

    @field_validator("templates")
    @classmethod
    def _has_slot(cls, templates: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(templates, tuple):
            if not templates:
                raise ValueError("templates must name a set or list at least one sentence")
            for template in templates:
                if template.count("{}") != 1:
                    raise ValueError(f"a template holds exactly one {{}}, got {template!r}")
        return templates
