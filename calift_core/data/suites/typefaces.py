"""Typefaces: letters and digits of free fonts, drawn by `research/make_typefaces.py`. Torch-free.

A suite with something to forget: its model has seen letters of seven genres, fine-tuning sees those
of sans-serif fonts alone, and the other six genres are the shifts. No family of fonts is in two
parts. O and 0, l and I, c and C are as alike as their fonts have them.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from calift_core.checks import Check, State
from calift_core.data.glyphs import Glyphs, read_glyphs
from calift_core.data.images import ImageSet
from calift_core.data.names import Names
from calift_core.data.suites.base import (
    LoadedSuite,
    Published,
    SuiteFamily,
    SuiteRequest,
    SuiteSizes,
    suite_folder,
)
from calift_core.errors import DataError

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
#: The genres that fine-tuning does not see.
SHIFTS = ("serif", "mono", "handwriting", "blackletter", "display", "pixel")
_PARTS = ("train", "validation", "calibration", "test")
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

STORED = Path(__file__).with_name("typefaces.xz")
#: What the package holds is this file.
STORED_SHA256 = "6e26a8894c9574ffd1184abcaf42ec5295ec0e54c934c3f64ef33c75d21b0d31"
#: The part that does not travel; `make_typefaces.py` draws it.
PRETRAIN = "typefaces-pretrain.xz"


def _class(character: str) -> str:
    kind = "digit" if character.isdigit() else "capital" if character.isupper() else "small"
    return f"{kind} {character.lower()}"


def _name(character: str) -> str:
    if character.isdigit():
        return f"digit {_DIGITS[int(character)]}"
    return f"{'capital' if character.isupper() else 'small'} letter {character.lower()}"


@lru_cache(maxsize=2)
def _read(path: Path, _size: int, _mtime_ns: int) -> Glyphs:
    return read_glyphs(path)


def _glyphs(path: Path) -> Glyphs:
    state = path.stat()
    return _read(path, state.st_size, state.st_mtime_ns)


def _part(glyphs: Glyphs, part: str) -> ImageSet:
    indices = np.flatnonzero(glyphs.parts == part).astype(np.int64)
    fonts = [
        "/".join((font["genre"], font["family"], font["file"])) for font in glyphs.about["fonts"]
    ]
    ids = Names.of(
        f"{fonts[glyphs.fonts[i]]}/{_class(CHARACTERS[glyphs.labels[i]])}/{glyphs.draws[i]}"
        for i in indices
    )
    return ImageSet(part, glyphs, ids, glyphs.labels[indices].astype(np.int64), indices)


class Typefaces(SuiteFamily):
    """Letters and digits; sans-serif fonts are ID."""

    name = "typefaces"
    title = "Typefaces (letters and digits of free fonts, 32 × 32 pixels, 62 classes)"
    how_to_get = (
        "It comes with calift. Its pre-training part does not: `python "
        "research/make_typefaces.py --out FOLDER` draws it on Debian; name the folder in "
        "CALIFT_TYPEFACES or as typefaces:FOLDER."
    )
    parts: Mapping[str, int] = {
        "train": 10416, "validation": 1674, "calibration": 1736, "test": 3472,
        "serif": 3100, "mono": 3100, "handwriting": 3100, "blackletter": 1240, "display": 3100,
        "pixel": 1736,
    }  # fmt: skip
    shifts = SHIFTS
    learned = "genres"
    vague_names = ("letter", "character")

    @property
    def classes(self) -> tuple[str, ...]:
        """In label order: A to Z, a to z, 0 to 9."""
        return tuple(map(_class, CHARACTERS))

    @property
    def coarse_names(self) -> Mapping[str, str]:
        """A letter without its case; digits have none."""
        return {_class(c): f"letter {c.lower()}" for c in CHARACTERS if c.isalpha()}

    def find(self, path: Path | None) -> Path:
        """The folder of the part that does not travel, else where the others are."""
        folder = suite_folder(self.name, path)
        return folder if path is not None or folder.is_dir() else STORED.parent

    def missing(self, path: Path | None) -> list[str]:
        return [] if STORED.is_file() else [f"no file {STORED.name} beside calift's own"]

    def load(self, request: SuiteRequest) -> LoadedSuite:
        """Its own parts, whatever the fractions; pre-training's where its file is in the folder.

        A folder that holds another draw of the letters (`typefaces.xz`) takes the place of what
        comes with calift.
        """
        self.require_present(None, self.missing(request.path))
        folder = self.find(request.path)
        file = next(f for f in (folder / STORED.name, STORED) if f.is_file())
        stored = _glyphs(file)
        if file == STORED and stored.key != STORED_SHA256:
            raise DataError(
                f"{str(STORED)!r} must have the SHA-256 {STORED_SHA256}, it has {stored.key}",
                hint="Install calift anew.",
            )
        parts = {part: _part(stored, part) for part in _PARTS}
        pretrain = folder / PRETRAIN
        if pretrain.is_file():
            parts = {"pretrain": _part(_glyphs(pretrain), "pretrain"), **parts}
        elif request.path is not None and file == STORED:
            self.require_present(request.path, [f"no file {PRETRAIN} and none {STORED.name}"])
        shifts = {name: _part(stored, name) for name in SHIFTS if name not in request.turned_off}
        return LoadedSuite(self.name, self.classes, tuple(map(_name, CHARACTERS)), parts, shifts)

    def published(self, request: SuiteRequest) -> SuiteSizes:
        parts = {part: n for part, n in self.parts.items() if part in _PARTS}
        shifts = {name: self.parts[name] for name in SHIFTS if name not in request.turned_off}
        return SuiteSizes(parts, shifts, classes=self.classes)

    def inspect(self, path: Path | None, published: Published) -> Iterator[Check]:
        """The file by its hash, and whether pre-training's is there."""
        found = _glyphs(STORED).key if STORED.is_file() else "no file"
        state: State = "ok" if found == STORED_SHA256 else "fail"
        yield Check(
            STORED.name, state, f"SHA-256 {found[:12]}, as published is {STORED_SHA256[:12]}"
        )
        pretrain = self.find(path) / PRETRAIN
        if pretrain.is_file():
            yield Check(PRETRAIN, "ok", f"{len(_glyphs(pretrain)):,} images")
