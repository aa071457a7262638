"""Near-copies that were planted between two parts: how many are found, and how many are no copies.

    python -m research.measurements.copies --source FOLDER    # class folders, such as Caltech-101's

Of the folder's images, `--train` are one part and `--test` others are another. 200 images of the
first are changed and put among the second: a sixth each cropped to 90 % of their sides, made half
as large, saved as JPEG of quality 40, brightened by 30 %, turned by 5 degrees, and mirrored. Then
both parts are looked at by the difference hash, and by the hash and a model's features. What the
folder itself has twice counts as a false alarm here, so those are an upper bound.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from calift_core.data.alike import RATIO, alike
from calift_core.data.decode import decode
from calift_core.data.duplicates import overlap, perceptual_hashes
from calift_core.data.images import ImageSet
from calift_core.data.suites.folders import scan
from calift_core.evaluation.forward import ForwardSettings, encode
from calift_core.models.loading import load_clip

N = 200


def _cropped(image: Image.Image) -> Image.Image:
    w, h = image.size
    return image.crop((round(0.05 * w), round(0.05 * h), round(0.95 * w), round(0.95 * h)))


def _resized(image: Image.Image) -> Image.Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)))


def _saved(image: Image.Image) -> Image.Image:
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=40)
    return Image.open(out).convert("RGB")


def _brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.3)


def _turned(image: Image.Image) -> Image.Image:
    return image.rotate(5, resample=Image.Resampling.BICUBIC)


def _mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "crop of 90 %": _cropped,
    "half the size": _resized,
    "JPEG 40": _saved,
    "brightness + 30 %": _brighter,
    "turned by 5°": _turned,
    "mirrored": _mirrored,
}


def main() -> None:
    """Plant, look, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="Of a calift-tiny; else the shipped ones.")
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=1000)
    asked = parser.parse_args()
    weights = str(asked.weights) if asked.weights else "typefaces"
    clip = load_clip("calift-tiny", weights)
    with tempfile.TemporaryDirectory() as folder:
        sets, copies = plant(asked.source, Path(folder), asked.train, asked.test)
        seen = {name: perceptual_hashes(images) for name, images in sets.items()}
        o = overlap(seen["test"], seen["train"])
        settings = ForwardSettings(
            batch_size=64, workers=0, device=torch.device("cpu"), precision="fp32"
        )
        features = {name: encode(clip, images, settings).numpy() for name, images in sets.items()}
    test, train = sets["test"], sets["train"]
    by_hash = set(o.exact + o.near)
    ways = {"hash": by_hash}
    for ratio in (1.0, RATIO):
        said = alike(features["test"], features["train"], test.labels, train.labels, ratio=ratio)
        by_features = {(test.ids[a], train.ids[b]) for a, b, _ in said.pairs}
        ways |= {
            f"features, ratio {ratio:g}": by_features,
            f"hash and features, ratio {ratio:g}": by_hash | by_features,
        }
    answer = {
        "source": asked.source.name,
        "weights": weights,
        "train": len(train),
        "test": len(test),
        "threshold": said.threshold,
        "pairs_of_different_classes": said.n_different,
        "ways": {name: _counted(pairs, copies) for name, pairs in ways.items()},
    }
    print(json.dumps(answer, indent=1))


def plant(
    source: Path, target: Path, n_train: int, n_test: int
) -> tuple[dict[str, ImageSet], dict[str, tuple[str, str]]]:
    """Lay out both parts; copies are told as id in test → (id in train, what was done to it)."""
    classes = sorted(one.name for one in source.iterdir() if one.is_dir())
    whole = scan(source, classes, "source", "")
    rng = np.random.default_rng(0)
    order = rng.permutation(len(whole))
    names, copies = list(CHANGES), {}
    for part, chosen in (
        ("train", order[:n_train]),
        ("test", order[n_train : n_train + n_test]),
    ):
        for at in chosen:
            link = target / part / whole.ids[int(at)]
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((source / whole.ids[int(at)]).resolve())
    for i, at in enumerate(order[:N]):
        name = whole.ids[int(at)]
        change = names[i % len(names)]
        image = Image.fromarray(decode(source / name))
        copy = Path(name).with_name(f"planted_{i}.png")
        (target / "test" / copy).parent.mkdir(parents=True, exist_ok=True)
        CHANGES[change](image).save(target / "test" / copy)
        copies[str(copy)] = (name, change)
    sets = {part: scan(target / part, classes, part, "") for part in ("train", "test")}
    return sets, copies


def _counted(
    pairs: set[tuple[str, str]], copies: Mapping[str, tuple[str, str]]
) -> dict[str, object]:
    right = [copies[a][1] for a, b in pairs if a in copies and copies[a][0] == b]
    of = Counter(change for _, change in copies.values())
    found = Counter(right)
    return {
        "found": f"{len(right)} of {len(copies)}",
        "false": len(pairs) - len(right),
        "by_change": {name: f"{found[name]} of {of[name]}" for name in of},
    }


if __name__ == "__main__":
    main()
