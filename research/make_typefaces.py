"""Draw the suite `typefaces` from free fonts: the file that calift ships, and those it does not.

    python research/make_typefaces.py --out FOLDER

On Debian: the packages that `research/typefaces.txt` names are downloaded with `apt-get` (120 MB)
and unpacked into a folder of their own; nothing is installed. Then FOLDER holds

- `typefaces.xz`, every part but pre-training's, which `calift_core/data/suites/` has a copy of;
- `study/typefaces.xz`, the same fonts with about 5,000 images a shift (CALIFT_TYPEFACES);
- `study/typefaces-pretrain.xz`, which `calift-tiny` is pre-trained on;
- `typefaces.json`, packages with versions and licences, and which font is in which part; `docs/`
  has a copy.

The same fonts and the same Pillow give the same bytes. A letter's size, place, tilt, ink, ground
and noise are drawn from a hash of its font's file name, the letter and the number of the draw.

Fonts are split by family. A family's styles stay together, and so do families that only differ in
words such as Condensed or Display; at most four styles of one are kept. 40 % of each genre's fonts
are for pre-training. The rest of sans is ID data, with the packages that the list has for that
alone, and the rest of every other genre is a shift.

ID families are dealt to fine-tuning, validation, calibration and test such that the last three are
exchangeable: of many random deals that one is taken in which the parts' mean weight, width,
likeness of letters that are easily confused, and distance to the fonts of pre-training differ
least. All four are measured on outlines; no model is asked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from calift_core.data.glyphs import FULL, SIDE, pack
from calift_core.data.suites.typefaces import CHARACTERS, SHIFTS

LIST = Path(__file__).with_name("typefaces.txt")
#: Pixels are drawn this many times smaller than stored ones.
FINE = 4
MAX_STYLES = 4
#: A font that draws fewer different pictures of these is no alphabet.
TELLING, MIN_PICTURES = "AagQR57lI0O", 6


@dataclass(frozen=True)
class Size:
    """How much of a file is drawn.

    Attributes:
        draws: how often each letter of a font is drawn, by part.
        per_class: images of a class that a shift has at most.
        max_draws: how often one letter of a font is drawn for it.
    """

    draws: Mapping[str, int]
    per_class: int
    max_draws: int


SHIPPED = Size({"pretrain": 3, "train": 3, "validation": 1, "calibration": 1, "test": 2}, 50, 4)
STUDY = Size({"train": 3, "validation": 2, "calibration": 2, "test": 3}, 81, 12)

#: Share of each genre's fonts that is for pre-training.
PRETRAIN = 0.4
#: ID parts and their share of the families; fine-tuning has the rest.
DEALT = {"validation": 0.21, "calibration": 0.21, "test": 0.21}
DEALS = 20_000
#: Letters that are easily confused when their size is not known.
CONFUSED = ("Cc", "Oo", "O0", "Ss", "Vv", "Ww", "Xx", "Zz", "Il", "l1", "Uu", "Pp")
#: Pixels of a side of the pictures that fonts are compared by.
COMPARED = 16
#: Words that do not make another family.
_SAME = frozenset((
    "std", "pro", "adf", "brk", "gwf", "display", "text", "caption", "narrow", "condensed", "cn",
    "light", "medium", "thin", "bold", "italic", "italics", "demi", "demibold", "no2", "no3",
    "nf", "pl", "nl", "code", "mono", "semi", "semi-condensed", "extended", "wide", "half",
    "thick", "outline", "inline", "style", "alternates", "classic", "tt", "ttf", "regular",
    "upright", "inclined", "retina", "minus", "oblique", "series", "eem", "em", "alt", "math",
))  # fmt: skip


@dataclass(frozen=True)
class Font:
    """A font file that is kept."""

    genre: str
    package: str
    file: Path
    family: str
    style: str


def main() -> None:
    """Read the arguments, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument("--debs", type=Path, help="keep the packages in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        debs = options.debs or Path(scratch) / "debs"
        wanted = list(_wanted())
        versions = fetch([package for _, package, _ in wanted], debs)
        root = Path(scratch) / "root"
        for deb in sorted(debs.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
        fonts = find_fonts(wanted, versions, debs, root)
        parts = split_by_family(fonts)
        licences = {package: licences_of(root, package) for package in versions}
        write(options.out, root, parts, versions, licences)


def _wanted() -> Iterator[tuple[str, str, str]]:
    """(genre, package, pattern over file names) of the list."""
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            genre, _, rest = line.partition(":")
            for word in rest.split():
                package, _, pattern = word.partition(":")
                yield genre, f"fonts-{package}", pattern


def fetch(packages: Sequence[str], folder: Path) -> dict[str, str]:
    """Download packages that are not in the folder yet; package → version."""
    folder.mkdir(parents=True, exist_ok=True)
    here = {deb.name.partition("_")[0] for deb in folder.glob("*.deb")}
    absent = sorted(set(packages) - here)
    if absent:
        command = ["apt-get", "--quiet=2", "download", *absent]
        subprocess.run(command, cwd=folder.resolve(), check=True)
    found = sorted(folder.glob("*.deb"))
    names = [deb.name.split("_")[:2] for deb in found]
    return {name: version for name, version in names if name in set(packages)}


def find_fonts(
    wanted: Sequence[tuple[str, str, str]], versions: dict[str, str], debs: Path, root: Path
) -> list[Font]:
    """Fonts of the list that draw an alphabet; of equal pictures the first alone."""
    files: dict[str, list[Path]] = defaultdict(list)
    for package in versions:
        (deb,) = debs.glob(f"{package}_*.deb")
        listed = subprocess.run(
            ["dpkg-deb", "-c", deb], capture_output=True, text=True, check=True
        ).stdout
        for line in listed.splitlines():
            name = line.split(maxsplit=5)[5]
            if not line.startswith("l") and name.lower().endswith((".ttf", ".otf", ".ttc")):
                files[package].append(root / name)
    fonts, seen = [], set()
    for genre, package, pattern in wanted:
        for file in sorted(files[package]):
            if pattern and not re.search(pattern, file.name):
                continue
            picture = telling_picture(file)
            if picture is None or picture in seen:
                continue
            seen.add(picture)
            family, style = ImageFont.truetype(file, 40).getname()
            fonts.append(Font(genre, package, file, family or file.stem, style or ""))
    return fonts


def telling_picture(file: Path) -> str | None:
    """Hash of what a font draws; None if that is no alphabet."""
    try:
        font = ImageFont.truetype(file, 40, layout_engine=ImageFont.Layout.BASIC)
        missing = _picture(font, "\uffff")
        pictures = [_picture(font, c) for c in CHARACTERS]
    except (OSError, ValueError):
        return None
    if any(p is None or p == missing for p in pictures):
        return None
    of = dict(zip(CHARACTERS, pictures, strict=True))
    if len({of[c] for c in TELLING}) < MIN_PICTURES:
        return None
    return hashlib.sha256("".join(str(p) for p in pictures).encode()).hexdigest()


def _picture(font: ImageFont.FreeTypeFont, character: str) -> str | None:
    mask = font.getmask(character, "L")
    if 0 in mask.size or mask.getbbox() is None:
        return None
    return hashlib.sha256(bytes(mask) + str(mask.size).encode()).hexdigest()


def family_words(name: str) -> tuple[str, ...]:
    """What names a family, without the words that only name its widths, weights and makers."""
    words = re.findall(r"[^\W_]+(?:-[^\W_]+)?", name.lower())
    kept = [w for w in words if w not in _SAME and (len(w) > 2 or w == words[0])]
    return tuple(kept) or tuple(words)


def split_by_family(fonts: Sequence[Font]) -> dict[str, list[Font]]:
    """Part or shift → fonts. What is for pre-training depends on a hash of the family's name."""
    parts: dict[str, list[Font]] = defaultdict(list)
    dealt: list[list[Font]] = []
    for genre in dict.fromkeys(font.genre for font in fonts):
        kept = families_of([font for font in fonts if font.genre == genre])
        if genre == "sans-id":
            dealt += kept.values()
            continue
        order = sorted(kept, key=lambda key: _hash("family", genre, *key))
        n, before = sum(map(len, kept.values())), 0
        for key in order:
            if before / n < PRETRAIN:
                parts["pretrain"] += kept[key]
            elif genre == "sans":
                dealt.append(kept[key])
            else:
                parts[genre] += kept[key]
            before += len(kept[key])
    for part, families in deal(dealt, parts["pretrain"]).items():
        parts[part] = [font for family in families for font in family]
    return dict(parts)


def families_of(fonts: Sequence[Font]) -> dict[tuple[str, ...], list[Font]]:
    """What names a family → its fonts, at most four."""
    families: dict[tuple[str, ...], list[Font]] = defaultdict(list)
    keys = sorted({family_words(font.family) for font in fonts}, key=len)
    for font in fonts:
        words = family_words(font.family)
        families[next(k for k in keys if words[: len(k)] == k)].append(font)
    return {key: _spread(group) for key, group in families.items()}


def deal(families: Sequence[list[Font]], known: Sequence[Font]) -> dict[str, list[list[Font]]]:
    """ID part → families, by what fonts look like.

    Args:
        families: the fonts of each.
        known: those of pre-training.
    """
    reference = np.stack([pictures(font.file) for font in known])
    looks = np.array([np.mean([look(f.file, reference) for f in own], 0) for own in families])
    looks = (looks - looks.mean(axis=0)) / looks.std(axis=0)
    sizes = np.array([len(own) for own in families], float)
    looks = np.column_stack([looks, (sizes - sizes.mean()) / sizes.std()])
    n = len(families)
    counts = {part: round(share * n) for part, share in DEALT.items()}
    rng = np.random.default_rng(_hash("deal"))
    best, least = np.arange(n), math.inf
    for _ in range(DEALS):
        order = rng.permutation(n)
        means, at = [], 0
        for count in counts.values():
            mine = order[at : at + count]
            means.append(np.average(looks[mine], axis=0, weights=sizes[mine]))
            at += count
        # Whole-number ranges: the same deal whatever the last bit of a mean is.
        apart = round(float(np.ptp(np.stack(means), axis=0).max()) * 1000)
        if apart < least:
            best, least = order, apart
    found, at = {"train": [families[i] for i in np.sort(best[sum(counts.values()) :])]}, 0
    for part, count in counts.items():
        found[part] = [families[i] for i in np.sort(best[at : at + count])]
        at += count
    print(f"ID parts differ by at most {least / 1000} standard deviations of a family")
    return found


def pictures(file: Path) -> NDArray[np.float32]:
    """(62, 16 · 16) coverage of each character, cut to what is drawn and squeezed to a square."""
    font = ImageFont.truetype(file, 64, layout_engine=ImageFont.Layout.BASIC)
    found = []
    for character in CHARACTERS:
        mask = font.getmask(character, "L")
        image = Image.frombytes("L", mask.size, bytes(mask))
        image = image.crop(image.getbbox()).resize((COMPARED, COMPARED), Image.Resampling.BOX)
        found.append(np.asarray(image, dtype=np.float32).reshape(-1) / 255)
    return np.stack(found)


def look(file: Path, reference: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Weight, width, distance of confusable letters, distance to the nearest known font."""
    own = pictures(file)
    font = ImageFont.truetype(file, 64, layout_engine=ImageFont.Layout.BASIC)
    boxes = np.array([font.getbbox(c) for c in CHARACTERS])
    width = np.median((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]))
    pairs = [(CHARACTERS.index(a), CHARACTERS.index(b)) for a, b in CONFUSED]
    alike = np.mean([np.abs(own[a] - own[b]).mean() for a, b in pairs])
    nearest = np.abs(reference - own).mean(axis=2).min(axis=0).mean()
    return float(own.mean()), float(width), float(alike), float(nearest)


def _spread(group: list[Font]) -> list[Font]:
    """At most four styles of a family, spread over its file names."""
    ordered = sorted(group, key=lambda font: (font.file.name, str(font.file)))
    if len(ordered) <= MAX_STYLES:
        return ordered
    step = (len(ordered) - 1) / (MAX_STYLES - 1)
    return [ordered[round(i * step)] for i in range(MAX_STYLES)]


def _hash(*words: str) -> int:
    digest = hashlib.sha256("\n".join(("typefaces", *words)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def draw(
    font: Font, character: str, number: int, cap_height: float
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """One letter: coverage (32, 32) of 0 … 15, and its ink, ground and noise."""
    seed = _hash("draw", font.package, font.file.name, character, str(number))
    rng = np.random.default_rng(seed)
    size = rng.uniform(13, 22) / cap_height
    angle = rng.uniform(-12, 12)
    across, down = rng.uniform(0, 1, 2)
    canvas = _tilted(font.file, character, size, angle)
    room = (SIDE - 1) * FINE
    if max(canvas.size) > room:  # a broad or tall letter is drawn smaller
        size *= room / max(canvas.size)
        canvas = _tilted(font.file, character, size * 0.99, angle)
    side = SIDE * FINE
    at = (
        round(across * max(0, side - canvas.width)),
        round(down * max(0, side - canvas.height)),
    )
    tile = Image.new("L", (side, side))
    tile.paste(canvas, at)
    small = np.asarray(tile.reduce(FINE), dtype=np.int32)
    ink, ground = _colours(rng)
    more = {"ink": ink, "ground": ground, "noise": int(rng.integers(2, 25))}
    return ((small * FULL + 127) // 255).astype(np.uint8), more


def _tilted(file: Path, character: str, size: float, angle: float) -> Image.Image:
    """A letter at `size` stored pixels an em, tilted, cut to what is drawn."""
    pixels = max(size * FINE, 4.0)
    font = ImageFont.truetype(file, pixels, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = font.getbbox(character)
    margin = math.ceil(max(right - left, bottom - top) * 0.25) + 2
    canvas = Image.new(
        "L", (math.ceil(right - left) + 2 * margin, math.ceil(bottom - top) + 2 * margin)
    )
    ImageDraw.Draw(canvas).text((margin - left, margin - top), character, fill=255, font=font)
    turned = canvas.rotate(angle, Image.Resampling.BICUBIC)
    return turned.crop(turned.getbbox() or (0, 0, 1, 1))


def _colours(rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """A dark ink and a light ground, of any hue."""
    return rng.integers(0, 111, 3).tolist(), rng.integers(150, 256, 3).tolist()


def cap_height_of(file: Path) -> float:
    """Median height of the capitals, in ems."""
    font = ImageFont.truetype(file, 200, layout_engine=ImageFont.Layout.BASIC)
    boxes = [font.getbbox(c) for c in CHARACTERS[:26]]
    return float(np.median([bottom - top for _, top, _, bottom in boxes])) / 200


def drawn(part: str, fonts: Sequence[Font], size: Size) -> Iterator[tuple[int, int, int]]:
    """(font, class, draw) of a part, fonts in their order."""
    n = size.draws.get(part) or min(size.max_draws, math.ceil(size.per_class / len(fonts)))
    every = [(f, c, k) for f in range(len(fonts)) for c in range(len(CHARACTERS)) for k in range(n)]
    if part in size.draws:
        yield from every
        return
    rank = {one: _hash("kept", fonts[one[0]].file.name, *map(str, one[1:])) for one in every}
    for label in range(len(CHARACTERS)):
        mine = sorted((one for one in every if one[1] == label), key=rank.__getitem__)
        yield from sorted(mine[: size.per_class])


def write(
    out: Path,
    root: Path,
    parts: dict[str, list[Font]],
    versions: dict[str, str],
    licences: dict[str, list[str]],
) -> None:
    """Draw all parts and write the files."""
    (out / "study").mkdir(parents=True, exist_ok=True)
    listing: dict[str, Any] = {
        "pillow": PIL.__version__,
        "freetype": features.version("freetype2"),
        "packages": {},
    }
    judged = ["train", "validation", "calibration", "test", *SHIFTS]
    for name, chosen, size in (
        ("study/typefaces-pretrain.xz", ["pretrain"], SHIPPED),
        ("study/typefaces.xz", judged, STUDY),
        ("typefaces.xz", judged, SHIPPED),
    ):
        arrays: dict[str, list[Any]] = defaultdict(list)
        described: list[dict[str, str]] = []
        for part in chosen:
            fonts = parts[part]
            heights = [cap_height_of(font.file) for font in fonts]
            first = len(described)
            described += [
                {
                    "part": part,
                    "genre": font.genre.partition("-")[0],
                    "package": font.package,
                    "family": font.family,
                    "style": font.style,
                    "file": font.file.name,
                }
                for font in fonts
            ]
            for f, label, number in drawn(part, fonts, size):
                cover, more = draw(fonts[f], CHARACTERS[label], number, heights[f])
                flat = cover.reshape(-1)
                arrays["coverage"].append(flat[0::2] << 4 | flat[1::2])
                arrays["ink"].append(more["ink"])
                arrays["ground"].append(more["ground"])
                arrays["noise"].append(more["noise"])
                arrays["labels"].append(label)
                arrays["fonts"].append(first + f)
                arrays["draws"].append(number)
            print(f"{part}: {len(fonts)} fonts, {len(arrays['labels'])} images so far", flush=True)
        typed = {
            key: np.array(values, dtype=np.uint16 if key == "fonts" else np.uint8)
            for key, values in arrays.items()
        }
        packed = pack(typed, {"fonts": described, "characters": CHARACTERS})
        (out / name).write_bytes(packed)
        listing[name] = {
            "sha256": hashlib.sha256(packed).hexdigest(),
            "bytes": len(packed),
            "families": by_family(described),
        }
        if size is STUDY:  # the fonts of what ships
            del listing[name]["families"]
        print(f"{name}: {len(packed):,} bytes")
    used = {font.package for fonts in parts.values() for font in fonts}
    listing["packages"] = {
        package: {"version": version, "licences": licences[package]}
        for package, version in sorted(versions.items())
        if package in used
    }
    (out / "typefaces.json").write_text(json.dumps(listing, indent=1, sort_keys=True) + "\n")


def by_family(described: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Part → genre → family → package → files."""
    found: dict[str, Any] = {}
    for font in described:
        at = found.setdefault(font["part"], {}).setdefault(font["genre"], {})
        at.setdefault(font["family"], {}).setdefault(font["package"], []).append(font["file"])
    return found


def licences_of(root: Path, package: str) -> list[str]:
    """The licences that a package's copyright file names, in its order."""
    file = root / "usr" / "share" / "doc" / package / "copyright"
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    named = re.findall(r"^Licen[sc]e: *(\S.*)$", text, re.MULTILINE)
    named = [name.strip() for name in named if "packaging" not in name.lower()]
    if not named:  # a copyright file of free form
        known = ("SIL Open Font License", "GNU General Public License", "Public Domain")
        plain = " ".join(text.lower().split())
        named = [licence for licence in known if licence.lower() in plain]
    return list(dict.fromkeys(named))


if __name__ == "__main__":
    sys.exit(main())
