"""How a run trains: batches of its suite, and what is measured at the end of epochs."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from calift_core.data.cache import available_memory, cached_in_memory
from calift_core.data.crops import smallest_side
from calift_core.data.loader import Normalise, TrainView, feature_batches, train_batches
from calift_core.data.sources import with_draft_decoding
from calift_core.data.suites.load import Suite
from calift_core.evaluation.forward import encode, predict, validation_values
from calift_core.evaluation.items import EvaluationSettings
from calift_core.evaluation.spectrum import Covariance, spectrum_of
from calift_core.evaluation.subjects import classifier_of, weak_captions
from calift_core.methods import Batch, Method
from calift_core.methods.base import Features
from calift_core.methods.confidence import mix
from calift_core.models.captions import Captions
from calift_core.models.zeroshot import resolve_templates
from calift_core.schema.methods import Pretrain
from calift_core.schema.records import MetricsRecord, Record, SpectrumRecord
from calift_core.schema.spec import RunSpec
from calift_core.training.checkpoint import TrainState
from calift_core.training.loop import train
from calift_core.training.plan import TrainingPlan


class Training:
    """The training of one run.

    Args:
        captions: of the suite's templates, which validation classifies by.
        settings: of the run's evaluation; forward passes during training have the plan's precision.
        epochs_before: that the model was trained for when the run began; None: it is a new one.
    """

    def __init__(
        self,
        spec: RunSpec,
        suite: Suite,
        method: Method,
        captions: Captions,
        plan: TrainingPlan,
        settings: EvaluationSettings,
        folder: Path,
        epochs_before: int | None = None,
    ) -> None:
        self._spec, self._suite, self._method, self._captions = spec, suite, method, captions
        self._plan, self._settings, self._folder = plan, settings, folder
        self._epochs_before = epochs_before
        self._device, self._ranks = settings.device, settings.ranks
        self._forward = replace(settings, precision=plan.precision)

    def run(self, state: TrainState | None) -> Iterator[Record]:
        """Train from a saved state, or from the start."""
        method, plan, view = self._method, self._plan, self._view()
        normalise = Normalise(method.clip.mean, method.clip.std, self._device)
        features = self._features()
        if state is None and self._epochs_before is None:
            yield from method.prepare(features)  # on each rank alike; the first one's counts
        spec = self._spec
        seen = plan.steps_per_epoch * (self._epochs_before or 0)

        def batches(start: int) -> Iterator[Batch]:
            start += seen  # what an epoch draws depends on how many went before
            schedule: dict[str, int] = {
                "batch_size": spec.train.batch_size,
                "start_step": start,
                "total_steps": seen + plan.total_steps,
            }
            if spec.method.on_features:
                x, y = features("train")
                return feature_batches(x, y, seed=spec.train.seed, **schedule)
            loaded = train_batches(
                view,
                workers=self._settings.workers,
                normalise=normalise,
                ranks=self._ranks,
                **schedule,
            )
            return self._mixed(loaded, start) if spec.train.confidence.mixup_alpha else loaded

        def at_epoch_end(step: int) -> Iterator[Record]:
            every = spec.train.spectrum_every_epochs
            if every and step // plan.steps_per_epoch % every == 0:
                if len(self._suite.parts.get("validation", ())):
                    yield from self._validate(step)
                if spec.train.watch_shifts:
                    yield from self._watch(step)

        records = train(
            method,
            batches,
            plan,
            device=self._device,
            folder=self._folder,
            resume=state,
            stop=self._settings.stop,
            at_epoch_end=at_epoch_end,
            ranks=self._ranks,
        )
        del state  # `train` lets it go once it is restored
        yield from records

    def _view(self) -> TrainView:
        spec, suite, preprocess = self._spec, self._suite, self._method.clip.preprocess
        pretrain = spec.method if isinstance(spec.method, Pretrain) else None
        images = suite.part("train" if pretrain is None else "pretrain")
        if spec.train.draft_decoding:
            images = with_draft_decoding(images, smallest_side(preprocess, spec.train.crop_scale))
        if spec.train.cache_images:  # the ranks of a host share its memory out among them
            available = available_memory() // self._ranks.local_world
            images = cached_in_memory(images, available=available)
        learned = None if pretrain is None else suite.learned
        return TrainView(
            images=images,
            preprocess=preprocess,
            n_templates=len(
                resolve_templates(spec.suite.templates if learned is None else learned)
            ),
            seed=spec.train.seed,
            crop_scale=spec.train.crop_scale,
            flip=spec.train.horizontal_flip,
            learned=learned,
            captions=None if pretrain is None else weak_captions(pretrain, suite),
        )

    def _features(self) -> Features:
        """Features of the image tower as it is now; a part is encoded when it is first asked for.

        Only methods that leave the tower as it is ask later than before the first step.
        """

        @cache
        def features(part: Literal["train", "validation"]) -> tuple[Tensor, Tensor]:
            images = self._suite.part(part)
            encoded = encode(self._method.clip, images, self._forward)
            return encoded, torch.as_tensor(images.labels, device=self._device)

        return features

    def _mixed(self, batches: Iterator[Batch], start: int) -> Iterator[Batch]:
        """Mixup; the draw of a step depends on the seed and the step alone."""
        for step, batch in enumerate(batches, start=start):
            generator = torch.Generator().manual_seed(self._spec.train.seed * 1_000_003 + step)
            yield mix(batch, self._spec.train.confidence.mixup_alpha, generator)

    def _validate(self, step: int) -> Iterator[Record]:
        """ID validation during training: accuracy, NLL, ECE and the spectrum."""
        clip, images = self._method.clip, self._suite.part("validation")
        classifier = classifier_of(self._method, self._captions)
        covariance = Covariance(classifier.weights.shape[1])
        logits = predict(clip, classifier, images, self._forward, covariance=covariance)
        values = validation_values(logits, images.labels, self._spec.evaluation)
        spectrum = spectrum_of(clip, covariance, f"{self._suite.name}/validation")
        if spectrum is not None:
            if spectrum.sigma_min is not None:
                values["sigma_min"] = spectrum.sigma_min
            values["effective_rank"] = spectrum.effective_rank
            yield SpectrumRecord(step=step, spectrum=spectrum)
        yield MetricsRecord(step=step, epoch=step / self._plan.steps_per_epoch, values=values)

    def _watch(self, step: int) -> Iterator[Record]:
        """A few images of each shift during training, for looking at: nothing is chosen on them."""
        classifier = classifier_of(self._method, self._captions)
        values: dict[str, float] = {}
        for name, images in self._suite.shifts.items():
            some = images.limited(self._spec.train.watch_shifts)
            logits = predict(self._method.clip, classifier, some, self._forward)
            found = validation_values(logits, some.labels, self._spec.evaluation)
            values |= {f"shift/{name}/{k.removeprefix('val_')}": v for k, v in found.items()}
        if values:
            yield MetricsRecord(step=step, epoch=step / self._plan.steps_per_epoch, values=values)
