"""A tiny CLIP, a tiny folder suite and the specs that put them together."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip import factory
from PIL import Image

from calift_core.methods import Batch
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.loading import load_clip
from calift_core.schema.spec import parse_spec

#: The real tokenizer has 49,408 tokens, so the vocabulary stays whole.
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": TEXT,
}
RESNET = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": TEXT,
}
TIMM = {
    "embed_dim": 16,
    "custom_text": True,
    "vision_cfg": {
        "timm_model_name": "resnet10t", "timm_model_pretrained": False, "timm_pool": "avg",
        "timm_proj": "linear", "image_size": 32,
    },
    "text_cfg": TEXT,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {"vit": VIT, "resnet": RESNET, "timm": TIMM}

COLOURS = {"blue_thing": (40, 60, 200), "green_thing": (50, 190, 60), "red_thing": (200, 50, 50)}
CLASSES = tuple(COLOURS)
PHOTO = ("a photo of a {}.", "a picture of the {}.", "one {}.")


@pytest.fixture(scope="session")
def one_thread():
    """The order of additions, and so every bit, depends on the number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def configs(tmp_path_factory, one_thread):
    """Config files of the tiny models by name."""
    folder = tmp_path_factory.mktemp("configs")
    paths = {}
    for name, config in CONFIGS.items():
        paths[name] = folder / f"{name}.json"
        paths[name].write_text(json.dumps(config))
    return paths


@pytest.fixture(scope="session")
def originals(configs):
    """One model of each kind with fixed random weights: not to be changed."""
    return {
        name: load_clip(str(path), None, generator=torch.Generator().manual_seed(7))
        for name, path in configs.items()
    }


@pytest.fixture
def vit(originals):
    return copy.deepcopy(originals["vit"])


@pytest.fixture
def resnet(originals):
    return copy.deepcopy(originals["resnet"])


@pytest.fixture(params=["vit", "resnet"])
def clip(request, originals):
    """Each kind of tower in turn."""
    return copy.deepcopy(originals[request.param])


@pytest.fixture(scope="session")
def captions(originals):
    names = [name.replace("_", " ") for name in CLASSES]
    return Captions.make(names, PHOTO, originals["vit"].tokenizer)


@contextmanager
def known_to_open_clip(folder: Path) -> Iterator[None]:
    """The config files of a folder are open_clip's own architectures of these names."""
    open_clip.add_model_config(folder)
    try:
        yield
    finally:
        factory._MODEL_CONFIG_PATHS.remove(folder)
        factory._MODEL_CONFIGS.clear()
        factory._rescan_model_configs()


def random_batch(clip: Clip, n: int = 8, seed: int = 0) -> Batch:
    """Random pixels with labels and captions of three classes and three templates."""
    generator = torch.Generator().manual_seed(seed)
    side = clip.image_size
    labels = torch.randint(3, (n,), generator=generator)
    templates = torch.randint(3, (n,), generator=generator)
    images = torch.randn(n, 3, side, side, generator=generator)
    return Batch(images, labels, labels * 3 + templates)


def write_classes(root, classes=CLASSES, *, n=40, seed=0, gain=1.0):
    """One folder a class, each with n noisy PNGs of the class's colour."""
    rng = np.random.default_rng(seed)
    for position, name in enumerate(classes):
        colour = COLOURS.get(name, (60 * position % 256, 128, 90))
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            noise = rng.normal(0, 40, size=(20, 18, 3))
            pixels = np.clip((np.array(colour) + noise) * gain, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:03d}.png")
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """120 images of three classes: not to be changed."""
    return write_classes(tmp_path_factory.mktemp("suite") / "photos")


@pytest.fixture(scope="session")
def paintings(tmp_path_factory):
    """The same classes, darker: a shift. Not to be changed."""
    return write_classes(tmp_path_factory.mktemp("shift") / "paintings", n=8, seed=1, gain=0.5)


def tiny_spec(
    kind, configs, photos, *, tower="vit", method=None, suite=None, train=None, **changes
):
    """A RunSpec of a tiny model on the tiny suite; `train`, `suite` and `method` are merged.

    72 of the 120 images are trained on or so: 9 steps in two epochs at a batch size of 16.
    """
    return parse_spec(
        {
            "name": f"tiny {kind}",
            "model": {"name": str(configs[tower]), "pretrained": None},
            "method": {"kind": kind} | (method or {}),
            "suite": {"id": f"folder:{photos}", "templates": list(PHOTO)} | (suite or {}),
            "train": {"epochs": 2, "batch_size": 16, "lr": 1e-3, "device": "cpu"}
            | {"log_every_steps": 1}
            | (train or {}),
            "evaluation": {"n_resamples": 20, "batch_size": 64},
        }
        | changes
    )


@pytest.fixture
def run_spec(configs, photos):
    """Make a RunSpec of a tiny model on the tiny suite: `tiny_spec`."""

    def make(kind="carot", **changes):
        return tiny_spec(kind, configs, photos, **changes)

    return make


def environment(home: Path, **changes: str) -> dict[str, str]:
    """A child's environment: no calift setting from outside, one thread, no network of hubs."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CALIFT_")}
    own = {"CALIFT_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return kept | own | {"COLUMNS": "200", "NO_COLOR": "1"} | changes


def calift(*arguments: str, home: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a process of its own, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "calift", *arguments], capture_output=True, text=True, timeout=120,
        env=environment(home), check=False, **options,
    )  # fmt: skip


def python(*arguments: object, **options: Any) -> tuple[str, str]:
    """Standard output and error of a Python process that must succeed."""
    argv = [sys.executable, *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=400, check=False, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout, done.stderr
