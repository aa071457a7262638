"""The suites of the third study, and their images in memory.

What is on disk lies below one folder, `--out`: `letters/study` (drawn letters), `suites/NAME`
(drawn images of the other suites), `weights/NAME-0` and `-1` (two pre-trainings each).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.data.images import ImageSet
from calift_core.data.loader import EvalView
from calift_core.data.preprocess import Preprocess
from calift_core.data.sources import ArraySource
from calift_core.data.suites.load import Suite, load_suite
from calift_core.schema.spec import RunSpec, parse_spec

#: The letters of the second study: a model that had seen exact captions, and so can only forget.
EXACT = Path(__file__).with_name("exact")
#: The second family of shifts: ID test images under these, computed.
CORRUPTIONS = {
    "names": [
        "gaussian_noise",
        "gaussian_blur",
        "contrast",
        "brightness",
        "pixelate",
        "jpeg_compression",
    ],
    "severities": [3],
    "limit": 1000,
}


@dataclass(frozen=True)
class Bench:
    """A suite, and how models are fine-tuned on it.

    Attributes:
        name: of the suite.
        suite: as in a spec; `{out}` stands for `--out`.
        model: name, as in a spec.
        epochs: of fine-tuning.
        rates: the ladder before it is extended.
        train: further options of `train`.
        clustered: whether images come in groups (fonts of a family), by the head of their ids.
    """

    name: str
    suite: Mapping[str, Any]
    model: str
    epochs: int
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    train: Mapping[str, Any] | None = None
    clustered: bool = False

    def weights(self, pretraining: int, out: Path) -> Path:
        """The file of a pre-training."""
        return out / "weights" / f"{self.name}-{pretraining}" / "model.safetensors"

    def spec(
        self,
        out: Path,
        method: Mapping[str, Any],
        *,
        lr: float | None,
        seed: int,
        pretraining: int,
        confidence: Mapping[str, Any] | None = None,
    ) -> RunSpec:
        """What a fine-tuning is asked."""
        place = str(out.absolute())
        train = {
            "epochs": self.epochs,
            "batch_size": 64,
            "lr": lr,
            "seed": seed,
            "crop_scale": [1.0, 1.0],
            "precision": "fp32",
            "confidence": confidence or {},
            **(self.train or {}),
        }
        weights = str(self.weights(pretraining, out).absolute())
        return parse_spec(
            {
                "name": self.name,
                "model": {"name": self.model.format(out=place), "pretrained": weights},
                "method": dict(method),
                "suite": {**self.suite, "id": self.suite["id"].format(out=place)},
                "train": train,
            }
        )


def _styled(name: str) -> Bench:
    return Bench(
        name,
        {
            "id": "manifest:{out}/suites/" + name + "/suite.csv",
            "templates": "plain",
            "corruptions": CORRUPTIONS,
        },
        "calift-tiny",
        epochs=2,
        train={"crop_scale": [0.8, 1.0]},
    )


BENCHES = {
    "letters": Bench(
        "letters",
        {
            "id": "typefaces:{out}/letters/study",
            "templates": "letters",
            "corruptions": CORRUPTIONS,
            "limits": {"train": 8320},
        },
        "calift-tiny",
        epochs=2,
        clustered=True,
    ),
    "letters-exact": Bench(
        "letters-exact",
        {"id": f"typefaces:{EXACT}", "templates": "letters", "corruptions": CORRUPTIONS},
        "calift-tiny",
        epochs=2,
        clustered=True,
    ),
    "fashion-mnist": _styled("fashion-mnist"),
    "cifar10": _styled("cifar10"),
    "caltech101": replace(
        _styled("caltech101"),
        model="{out}/suites/caltech101/lit.json",
        epochs=4,
        train={"batch_norm": "frozen", "crop_scale": [0.8, 1.0]},
    ),
}


@dataclass(frozen=True)
class Data:
    """Everything that a suite's runs look at, as the model takes it.

    Attributes:
        suite: class names and parts.
        train: fine-tuning images, in memory.
        pixels: set → (N, S, S, 3) uint8; `validation`, `calibration`, `test`, each shift, each
            corruption.
        labels: set → (N,).
        groups: set → (N,) which images belong together.
        kinds: set → `id`, `shift` or `corruption`.
    """

    suite: Suite
    train: ImageSet
    pixels: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[np.int64]]
    groups: dict[str, NDArray[np.int64]]
    kinds: dict[str, str]


def load(bench: Bench, out: Path, preprocess: Preprocess, *, id_only: bool = False) -> Data:
    """Read a suite.

    Args:
        bench: which.
        out: folder of what is on disk.
        preprocess: of the model.
        id_only: leave shifts and corruptions alone, as whoever chooses settings must.
    """
    spec = bench.spec(out, {"kind": "zero_shot"}, lr=None, seed=0, pretraining=0).suite
    suite = load_suite(spec)
    own = suite.part("train")
    raw = np.stack([own.image(i) for i in range(len(own))]) if bench.clustered else None
    train = own if raw is None else replace(
        own, source=ArraySource(raw, own.sha256), indices=np.arange(len(own))
    )  # fmt: skip
    sets = {part: (suite.part(part), "id") for part in ("validation", "calibration", "test")}
    if not id_only:
        sets |= {name: (images, "shift") for name, images in suite.shifts.items()}
        sets |= {f"{name}/{level}": (i, "corruption") for i, name, level in suite.corrupted()}
    view = {name: EvalView(images, preprocess) for name, (images, _) in sets.items()}
    return Data(
        suite,
        train,
        {name: np.stack([one[i][0] for i in range(len(one))]) for name, one in view.items()},
        {name: images.labels for name, (images, _) in sets.items()},
        {name: np.array(list(_groups(bench, images))) for name, (images, _) in sets.items()},
        {name: kind for name, (_, kind) in sets.items()},
    )


def _groups(bench: Bench, images: ImageSet) -> Iterator[int]:
    """Which group each image is of: the family of its font, else the image itself."""
    known: dict[str, int] = {}
    for name in images.ids:
        head = "/".join(name.split("/")[:2]) if bench.clustered else name
        yield known.setdefault(head, len(known))
