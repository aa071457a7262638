"""Rows that are made of finished FLYP runs, without training: of the runs' weights and logits."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from calift_core.calibration.bins import softmax
from calift_core.calibration.calibrators import fit_temperature
from calift_core.data.loader import Normalise
from calift_core.evaluation.forward import ForwardSettings, Mixture
from calift_core.evaluation.mixtures import mix
from calift_core.evaluation.path import WeightPath
from calift_core.methods.base import zero_shot_classifier
from calift_core.methods.merge import model_stock
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from research.benches import Data
from research.training import CPU, ask

Logits = dict[str, NDArray[np.float32]]

#: Rows in the order in which they are made.
DERIVED = ("seed-ensemble", "wise-ft", "model-stock", "vrf", "dawin")
#: Rows that need two FLYP runs or three; the others need one.
NEEDED = {"seed-ensemble": 3, "model-stock": 2}


@dataclass(frozen=True)
class Finished:
    """What a FLYP run left beside its scores.

    Attributes:
        weights: its weights.
        logits: set → (N, C).
    """

    weights: Path
    logits: Path

    def read(self) -> Logits:
        """The logits."""
        with np.load(self.logits) as stored:
            return {name.replace("@", "/"): stored[name].astype(np.float32) for name in stored}


def save_logits(file: Path, logits: Logits) -> None:
    """In half precision: a few thousandths of a logit."""
    arrays: dict[str, Any] = {k.replace("/", "@"): v.astype(np.float16) for k, v in logits.items()}
    with file.open("wb") as out:
        np.savez(out, **arrays)


def peers(seed: int, n_seeds: int) -> tuple[int, int, int]:
    """A seed and the next two of the same pre-training."""
    return seed, (seed + 2) % n_seeds, (seed + 4) % n_seeds


def made(name: str, runs: list[Finished], initial: Clip, captions: Captions, data: Data) -> Logits:
    """The logits of a row.

    Args:
        name: of `DERIVED`.
        runs: FLYP's, that of the seed first, then its peers.
        initial: the model that they started from.
        captions: its classifier's.
        data: the suite.
    """
    if name == "seed-ensemble":
        return ensemble([run.read() for run in runs], data.labels["calibration"])
    states = [load_file(run.weights) for run in runs[: NEEDED.get(name, 1)]]
    clip = captured(initial, states[0])
    if name != "model-stock":
        end = zero_shot_classifier(clip, captions)
        path = WeightPath(initial, clip, end, "prompts", captions)
        if name == "wise-ft":
            return ask(path.move(0.5), path.classifier(0.5), data, list(data.pixels))
        return mixed(name, path, data)
    state, _ = model_stock(initial.net.state_dict(), states)
    clip.net.load_state_dict(state)
    return ask(clip, zero_shot_classifier(clip, captions), data, list(data.pixels))


def mixed(kind: str, path: WeightPath, data: Data) -> Logits:
    """The logits of two models that are mixed image by image.

    Args:
        kind: `vrf` or `dawin`.
        path: between the two.
        data: the suite.
    """
    settings = ForwardSettings(batch_size=256, workers=0, device=CPU, precision="bf16")
    steps = mix(kind, path, data.suite, settings)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            mixture: Mixture = end.value
            break
    normalise = Normalise(path.initial.mean, path.initial.std, CPU, path.initial.channels_last)
    found: Logits = {}
    with torch.no_grad():
        for name, pixels in data.pixels.items():
            batches = (torch.from_numpy(pixels[i : i + 256]) for i in range(0, len(pixels), 256))
            logits = [mixture(normalise(images), features)[0].float() for images in batches]
            found[name] = torch.cat(logits).numpy()
    return found


def features(clip: Clip, images: Tensor) -> Tensor:
    """Features (B, D), L2-normalised, in bfloat16 products."""
    with torch.autocast("cpu", torch.bfloat16):
        return clip.encode_image(images)


def captured(initial: Clip, state: dict[str, Any]) -> Clip:
    """A copy of a model with other weights."""
    clip = copy.deepcopy(initial).eval()
    clip.net.load_state_dict(state)
    return clip


def ensemble(members: list[Logits], labels: NDArray[np.int64]) -> Logits:
    """Log of the mean of the members' probabilities, each after its own temperature."""
    warm = [fit_temperature(own["calibration"], labels) for own in members]
    found: Logits = {}
    for name in members[0]:
        probs = [softmax(own[name], t) for own, t in zip(members, warm, strict=True)]
        mean = np.mean(probs, axis=0, dtype=np.float64)
        found[name] = np.log(np.maximum(mean, 1e-30)).astype(np.float32)
    return found
