"""Draw the study's suites whose shifts are named styles, and pre-train a model on each, twice.

    python -m research.make_suites --out FOLDER --suite fashion-mnist
    python -m research.make_suites --out FOLDER --suite cifar10 --source FOLDER
    python -m research.make_suites --out FOLDER --suite caltech101 --source FOLDER --draw-only

FOLDER/suites/SUITE gets `images/` and two manifests (`suite.csv` for fine-tuning, `pretrain.csv`
for pre-training), FOLDER/weights/SUITE-SEED `model.safetensors`. `--source` names CIFAR-10 as
calift reads it (batches, or train/ and test/ of class folders), or Caltech-101's class folders.

Pre-training sees its own part alone, each image in a random style that its caption names; most
captions name no more than what several classes share. The shifts are the test images in six of
those styles, drawn once. No image is in two parts. Goes on where it was. Caltech-101's model is
made by `research/lit.py`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from calift_core.data.images import ImageSet
from calift_core.data.styles import STYLES
from calift_core.data.suites import SUITES as NAMED
from calift_core.data.suites.folders import scan
from calift_core.data.suites.load import load_suite
from calift_core.files import sha256_file
from calift_core.jobs.folder import run_in_folder
from calift_core.models.loading import TINY
from calift_core.schema.methods import Pretrain
from calift_core.schema.records import MetricsRecord, ProgressRecord
from calift_core.schema.spec import EvaluationSpec, ModelSpec, RunSpec
from calift_core.schema.suite import FractionSpec, SuiteSpec
from calift_core.schema.train import TrainSpec

#: Of captions, as in the protocol: vague ones, coarse ones of the others, wrong ones.
CAPTIONS = {"vague_captions": 0.05, "wrong_captions": 0.04}
#: The shifts, as the protocol names them.
SHIFTS = ("sketch", "negative", "pixelated", "dark", "tinted", "rotated")
#: Of Caltech-101, images of a class at most, and neighbours that stay in one part: neighbouring
#: numbers are often neighbouring pictures.
MOST, BLOCK = 200, 5
#: Share of a class's blocks in each part but pre-training, which gets the rest.
SHARES = {"train": 0.25, "validation": 0.1, "calibration": 0.1, "test": 0.15}

#: Class names in label order, and images by part.
Found = tuple[Sequence[str], Mapping[str, ImageSet]]


@dataclass(frozen=True)
class Drawn:
    """A suite that is drawn.

    Attributes:
        find: its images, given `--source`.
        epochs: of pre-training.
        coarse: share of captions that give the coarse name of a class that has one.
        coarse_names: class → coarse name.
        side: of an image, in pixels.
    """

    find: Callable[[Path | None], Found]
    epochs: int
    coarse: float
    coarse_names: Mapping[str, str]
    side: int = 32


def named(
    name: str, source: Path | None, *, fractions: Mapping[str, float], pretrain: int
) -> Found:
    """Parts of a suite that calift knows, of which 8,000 images are fine-tuned on."""
    spec = SuiteSpec(
        id=name if source is None else f"{name}:{source}",
        fractions=FractionSpec(**fractions),
        limits={
            "pretrain": pretrain,
            "train": 8000,
            "validation": 2500,
            "calibration": 2500,
            "test": 5000,
        },
    )
    suite = load_suite(spec)
    return suite.classes, suite.parts


def caltech(source: Path | None) -> Found:
    """Caltech-101, block by block, every class in every part."""
    if source is None:
        raise SystemExit("caltech101 needs --source FOLDER, its class folders")
    classes = sorted(folder.name for folder in source.iterdir() if folder.is_dir())
    whole = scan(source, classes, "whole", "")
    chosen: dict[str, list[int]] = defaultdict(list)
    for label, name in enumerate(classes):
        at = np.flatnonzero(whole.labels == label)[:MOST]
        blocks: dict[int, list[int]] = defaultdict(list)
        for i in at:
            number = re.search(r"(\d+)\.\w+$", whole.ids[int(i)])
            blocks[(int(number[1]) if number else int(i)) // BLOCK].append(int(i))
        order = sorted(blocks, key=lambda b: _hash(f"{name}/{b}"))
        for part, share in SHARES.items():
            for _ in range(max(1, round(share * len(blocks)))):
                chosen[part] += blocks[order.pop()]
        for block in order:
            chosen["pretrain"] += blocks[block]
    parts = {part: whole.take(np.sort(np.array(at)), part) for part, at in chosen.items()}
    return classes, parts


#: Caltech-101's classes by what captions that say little call them.
CALTECH = {
    "animal": "ant bass beaver butterfly cougar_body crab crayfish crocodile dalmatian dolphin "
    "dragonfly elephant emu flamingo gerenuk hawksbill hedgehog ibis kangaroo leopards llama "
    "lobster mayfly nautilus octopus okapi panda pigeon platypus rhino rooster scorpion sea_horse "
    "starfish tick trilobite wild_cat brontosaurus stegosaurus garfield snoopy",
    "face": "faces cougar_face crocodile_head flamingo_head",
    "plant": "bonsai joshua_tree lotus strawberry sunflower water_lilly",
    "vehicle": "airplanes car_side ferry helicopter ketch motorbikes schooner inline_skate "
    "wheelchair",
    "instrument": "accordion electric_guitar euphonium gramophone grand_piano mandolin metronome "
    "saxophone",
    "object": "anchor barrel binocular brain buddha camera cannon ceiling_fan cellphone chair "
    "chandelier cup dollar_bill ewer headphone lamp laptop menorah minaret pagoda pizza pyramid "
    "revolver scissors soccer_ball stapler stop_sign umbrella watch windsor_chair wrench yin_yang",
}


def caltech_coarse() -> dict[str, str]:
    """Class → coarse name."""
    return {c: kind for kind, names in CALTECH.items() for c in names.split()}


SUITES = {
    "fashion-mnist": Drawn(
        partial(named, "fashion-mnist", fractions={}, pretrain=20_000),
        6,
        0.95,
        NAMED["fashion-mnist"].coarse_names,
    ),
    "cifar10": Drawn(
        partial(
            named,
            "cifar10",
            fractions={"pretrain": 0.72, "validation": 0.055, "calibration": 0.055, "test": 0},
            pretrain=36_000,
        ),
        8,
        0.9,
        NAMED["cifar10"].coarse_names,
    ),
    "caltech101": Drawn(caltech, 0, 0.8, caltech_coarse(), side=96),
}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _square(pixels: np.ndarray, whole: int) -> Image.Image:
    """The middle of an image at `whole` pixels a side: smaller ones stay as they are."""
    image = Image.fromarray(pixels).convert("RGB")
    if max(image.size) <= whole:
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((whole, whole), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def draw(
    classes: Sequence[str], parts: Mapping[str, ImageSet], folder: Path, side: int = 32
) -> None:
    """Write every image as a PNG, the test images in each style too, and the manifests last."""
    shutil.rmtree(folder / "images", ignore_errors=True)
    rows: list[tuple[str, str, str, str]] = []
    for part, images in parts.items():
        for i in range(len(images)):
            label = classes[int(images.labels[i])]
            name = f"{label.replace(' ', '_')}/{_hash(images.ids[i]):016x}.png"
            image = _square(images.image(i), side)
            styles = SHIFTS if part == "test" else ()
            for domain in ("id", *styles):
                where = part if domain == "id" else domain
                path = f"images/{where}/{name}"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                rng = np.random.default_rng(_hash(f"{domain}/{name}"))
                shown = image if domain == "id" else STYLES[domain].apply(image, rng)
                shown.save(folder / path)
                rows.append((path, label, part, domain))
    _write(folder / "pretrain.csv", (row for row in rows if row[3] == "id"))
    _write(folder / "suite.csv", (row for row in rows if row[2] != "pretrain"))


def _write(file: Path, rows: Iterator[tuple[str, str, str, str]]) -> None:
    with file.with_suffix(".part").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("path", "label", "split", "domain"))
        writer.writerows(rows)
    file.with_suffix(".part").replace(file)


def pretraining(made: Drawn, folder: Path, seed: int) -> RunSpec:
    """As on letters, with crops."""
    manifest = (folder / "pretrain.csv").absolute()
    classes = _classes(manifest)
    names = {c: name for c, name in made.coarse_names.items() if c in classes}
    return RunSpec(
        name=f"calift-tiny on {folder.name}",
        model=ModelSpec(name=TINY, pretrained=None),
        method=Pretrain(coarse_captions=made.coarse, coarse_names=names, **CAPTIONS),
        suite=SuiteSpec(id=f"manifest:{manifest}", templates="plain"),
        train=TrainSpec(
            epochs=made.epochs,
            batch_size=128,
            lr=1e-3,
            weight_decay=0.05,
            warmup_steps=100,
            crop_scale=(0.8, 1.0),
            spectrum_every_epochs=0,
            cache_images=True,
            precision="bf16",
            seed=seed,
        ),
        evaluation=EvaluationSpec(precision="train"),
    )


def _classes(manifest: Path) -> set[str]:
    with manifest.open(newline="") as file:
        return {row["label"] for row in csv.DictReader(file)}


def main() -> None:
    """Read the arguments, draw, train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--source", type=Path, help="where the images lie")
    parser.add_argument("--seed", type=int, default=0, help="of the pre-training: 0 or 1")
    parser.add_argument("--draw-only", action="store_true", help="no pre-training")
    options = parser.parse_args()
    made, folder = SUITES[options.suite], options.out / "suites" / options.suite
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "suite.csv").is_file():
        classes, parts = made.find(options.source)
        print({part: len(images) for part, images in parts.items()}, flush=True)
        draw(classes, parts, folder, made.side)
    weights = options.out / "weights" / f"{options.suite}-{options.seed}" / "model.safetensors"
    if not options.draw_only and not weights.is_file():
        run = weights.parent / "run"
        for record in run_in_folder(pretraining(made, folder, options.seed), run):
            if isinstance(record, MetricsRecord | ProgressRecord):
                print(record.model_dump_json(exclude_none=True), flush=True)
        shutil.copy(run / "checkpoint" / "model.safetensors", weights)
    if weights.is_file():
        print(f"{weights}: SHA-256 {sha256_file(weights)}")


if __name__ == "__main__":
    sys.exit(main())
