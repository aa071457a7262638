"""One model of the study: fine-tuned, walked along its weight path, and asked about every set."""

from __future__ import annotations

import copy
import time
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from calift_core.calibration.bins import softmax
from calift_core.calibration.calibrators import fit_temperature
from calift_core.data.loader import Normalise, TrainView, train_batches
from calift_core.evaluation.path import Head, WeightPath
from calift_core.evaluation.spectrum import Covariance, spectrum_of
from calift_core.evaluation.subjects import classifier_of
from calift_core.methods import Classifier, RunLength, finish_training, make_method
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.loading import load_clip
from calift_core.models.zeroshot import resolve_templates
from calift_core.schema.spec import RunSpec
from calift_core.training.loop import prepare_for_training
from calift_core.training.plan import make_plan
from calift_core.training.schedule import learning_rate
from calift_core.training.step import make_optimizer, optimiser_step
from research.benches import Data

CPU = torch.device("cpu")
#: Where on a path the model is looked for.
ALPHAS = tuple(round(i / 20, 2) for i in range(1, 21))
#: Share of its own gain that the model on the path must keep.
KEPT = 0.9

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model.

    Attributes:
        clip: its towers.
        classifier: its own.
        head: what the classifier is made of.
        seconds: processor seconds of the training.
    """

    clip: Clip
    classifier: Classifier
    head: Head
    seconds: float


def start(spec: RunSpec) -> Clip:
    """The pre-trained model of a spec."""
    return load_clip(spec.model.name, spec.model.pretrained).eval()


def captions_of(spec: RunSpec, data: Data, clip: Clip) -> Captions:
    """What its classifier is made of."""
    templates = resolve_templates(spec.suite.templates)
    return Captions.make(data.suite.class_names, templates, clip.tokenizer)


def encode(clip: Clip, pixels: NDArray[np.uint8], *, batch_size: int = 256) -> Tensor:
    """Features (N, D), L2-normalised, in bfloat16 products: what all models are judged on."""
    normalise = Normalise(clip.mean, clip.std, CPU, clip.channels_last)
    parts = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for at in range(0, len(pixels), batch_size):
            images = normalise(torch.from_numpy(pixels[at : at + batch_size]))
            parts.append(F.normalize(clip.encode_image(images).float(), dim=-1))
    return torch.cat(parts)


def ask(clip: Clip, classifier: Classifier, data: Data, sets: list[str]) -> dict[str, Logits]:
    """Logits (N, C) of each set."""
    return {
        name: classifier.logits(encode(clip, data.pixels[name])).detach().numpy() for name in sets
    }


def tune(spec: RunSpec, data: Data, initial: Clip) -> Tuned:
    """Fine-tune a copy of the initial model."""
    began = time.process_time()
    clip = copy.deepcopy(initial)
    captions = captions_of(spec, data, clip)
    plan = make_plan(spec, len(data.train), CPU, clip)
    torch.manual_seed(spec.train.seed)
    length = RunLength(total_steps=plan.total_steps, seed=spec.train.seed)
    method = make_method(
        spec.method,
        clip,
        captions,
        length=length,
        confidence=spec.train.confidence,
        train=spec.train,
    )

    @cache
    def features(part: Literal["train", "validation"]) -> tuple[Tensor, Tensor]:
        view = TrainView(data.train, clip.preprocess, 1, 0, (1.0, 1.0), flip=False)
        pixels = np.stack([view[(0, i)][0] for i in range(len(view))])
        return encode(clip, pixels), torch.from_numpy(data.train.labels)

    deque(method.prepare(features), maxlen=0)
    view = TrainView(
        data.train,
        clip.preprocess,
        len(captions.templates),
        spec.train.seed,
        spec.train.crop_scale,
        flip=spec.train.horizontal_flip,
    )
    optimizer, scaler = make_optimizer(method, plan), torch.amp.GradScaler("cpu", enabled=False)
    deque(prepare_for_training(method, plan), maxlen=0)
    batches = train_batches(
        view,
        batch_size=spec.train.batch_size,
        start_step=0,
        total_steps=plan.total_steps,
        workers=0,
        normalise=Normalise(clip.mean, clip.std, CPU, clip.channels_last),
    )
    for step, batch in enumerate(batches):
        rate = learning_rate(
            step, peak=plan.lr, total_steps=plan.total_steps, warmup_steps=plan.warmup_steps
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimiser_step(method, batch, optimizer, scaler, plan, CPU)
        method.after_step(step + 1)
    finish_training(method)
    clip.eval()
    head: Head = "linear" if spec.method.family == "supervised" else "prompts"
    return Tuned(clip, classifier_of(method, captions), head, time.process_time() - began)


def is_finite(tuned: Tuned) -> bool:
    """Whether it did not diverge."""
    return all(bool(p.isfinite().all()) for p in tuned.clip.net.parameters())


def validation_nll(logits: Logits, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """NLL (N,) after the temperature that fits these very images best: one parameter of many."""
    probs = softmax(logits, fit_temperature(logits, labels))
    own = probs[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.maximum(own, 1e-30))


@dataclass(frozen=True)
class OnPath:
    """The model that is taken from a weight path.

    Attributes:
        alpha: where it is.
        nll: its ID validation NLL, after a temperature.
        end: that of the path's end, the fine-tuned model.
        begin: that of the initial model.
        accuracy: ID validation accuracy: of the initial model, the one at `alpha`, the end's.
        images: (N,) what `end` is the mean of.
    """

    alpha: float
    nll: float
    end: float
    begin: float
    accuracy: tuple[float, float, float]
    images: NDArray[np.float64]


def walk(path: WeightPath, data: Data) -> OnPath:
    """The smallest α that keeps 90 % of the end's gain in ID validation NLL, by bisection.

    A path whose end gains nothing is left at its end: there is no gain to keep.
    """
    pixels, labels = data.pixels["validation"], data.labels["validation"]
    scores: dict[float, tuple[float, float]] = {}
    by_image: dict[float, NDArray[np.float64]] = {}

    def at(alpha: float) -> float:
        if alpha not in scores:
            classifier = path.classifier(alpha)
            logits = classifier.logits(encode(path.move(alpha), pixels)).detach().numpy()
            right = float((logits.argmax(axis=1) == labels).mean())
            by_image[alpha] = validation_nll(logits, labels)
            scores[alpha] = float(by_image[alpha].mean()), right
        return scores[alpha][0]

    begin, end = at(0.0), at(1.0)
    enough = begin - KEPT * (begin - end)
    low, high = -1, len(ALPHAS) - 1  # ALPHAS[high] is enough, ALPHAS[low] is not
    while end < begin and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at(ALPHAS[middle]) <= enough else (middle, high)
    chosen = ALPHAS[high]
    accuracy = scores[0.0][1], scores[chosen][1], scores[1.0][1]
    return OnPath(chosen, scores[chosen][0], end, begin, accuracy, by_image[1.0])


def sigma_min(clip: Clip, data: Data) -> float:
    """Smallest singular value of the standardised ID test features."""
    features = encode(clip, data.pixels["test"])
    covariance = Covariance(features.shape[1])
    covariance.add(features.numpy())
    found = spectrum_of(clip, covariance, "test")
    return float("nan") if found is None or found.sigma_min is None else found.sigma_min
