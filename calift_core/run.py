"""One job from its folder: what the worker's runner and `calift train` both call.

The folder of a run::

    spec.json  job.json          what is asked (job.json only under a worker)
    records.jsonl                everything that happened, in order, over all attempts
    metrics.jsonl spectra.jsonl  the curves: one line per logged step, none twice
    checkpoint/                  where a stopped run goes on; the finished model at the end
    predictions/*.parquet        per-sample predictions, one file per data set
    evaluating/                  where a stopped evaluation goes on; gone at the end
    report.json                  the numbers; written last
    result.json                  how the runner ended

`python -m calift_core.run FOLDER` runs it in this process and exits with 0, 1 (failed) or 75
(stopped on request, checkpoint saved).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from calift_core.checkpoint import TrainState, drop_states, newest_state, save_final
from calift_core.clip import TINY, Captions, Clip, outdated, weights_sha256
from calift_core.curves import Curves, Lines
from calift_core.data.images import kept_in_memory
from calift_core.data.listing import steps_per_epoch
from calift_core.data.loader import (
    Normalise,
    TrainView,
    feature_batches,
    train_batches,
)
from calift_core.data.suites import Suite, load_suite
from calift_core.environment import environment
from calift_core.errors import (
    CaliftError,
    CheckpointError,
    DiskFullError,
    InterruptedRunError,
    ModelUnavailableError,
    OutOfMemoryError,
    SpecError,
    StorageError,
)
from calift_core.evaluate import Placed, encode, predict, validation_values
from calift_core.files import (
    FREE_SPACE_FLOOR,
    atomic_write_bytes,
    atomic_write_json,
    sha256_file,
)
from calift_core.finished import Judged, Turns, classifier_of, load_begun, load_judged, load_like
from calift_core.heads import heads_dir
from calift_core.home import models_dir
from calift_core.judging import Settings, Subject, Verdict, judge, spectrum_of
from calift_core.locks import try_lock
from calift_core.merging import merge_runs
from calift_core.methods import Batch, Classifier, Method, RunLength, fitted, make_method
from calift_core.methods.base import Features
from calift_core.methods.confidence import mix
from calift_core.reporting import summarise
from calift_core.schedule import default_warmup
from calift_core.schema.methods import Pretrain
from calift_core.schema.records import (
    EXIT_INTERRUPTED,
    DoneRecord,
    EvaluationRecord,
    JobFile,
    JobResult,
    LogRecord,
    MetricsRecord,
    PhaseRecord,
    ProgressRecord,
    Record,
    ResumedRecord,
    SpectrumRecord,
)
from calift_core.schema.report import FrontierPoint, Report
from calift_core.schema.spec import ModelSpec, RunSpec, SuiteSpec, TrainSpec, load_spec
from calift_core.shards import adopt_shards, drop_shards, link_tree
from calift_core.spectrum import Covariance
from calift_core.train import Plan, Precision, resolve_device, resolve_precision, train
from calift_core.zeroshot import resolve_templates

log = logging.getLogger(__name__)

#: Seconds between two lines of progress in a run's log.
LINE_EVERY_S = 10.0

Stop = Callable[[], bool]


def never() -> bool:
    """The `stop` of a run that nobody may interrupt."""
    return False


def pretraining_spec(suite: str = "fashion-mnist") -> RunSpec:
    """How `calift-tiny` is pre-trained: three epochs, at most 2 minutes on 2 cores."""
    return RunSpec(
        name=f"calift-tiny on {suite}",
        model=ModelSpec(name=TINY, pretrained=None),
        method=Pretrain(),
        suite=SuiteSpec(id=suite, templates="plain"),
        train=TrainSpec(
            epochs=3,
            batch_size=256,
            lr=2e-3,
            weight_decay=0.05,
            crop_scale=(0.8, 1.0),
            spectrum_every_epochs=0,
        ),
    )


def _checkpoint_every(spec: RunSpec, steps_per_epoch: int) -> int:
    """Steps between checkpoints where the spec leaves them open.

    Four an epoch when a small model is pre-trained: somebody's first run waits for it, and what is
    written is little.
    """
    return max(1, steps_per_epoch // 4) if isinstance(spec.method, Pretrain) else steps_per_epoch


def make_plan(spec: RunSpec, n_train: int, device: torch.device, clip: Clip) -> Plan:
    """Fill in what the spec leaves open."""
    t, method = spec.train, fitted(spec.method, clip)
    per_epoch = steps_per_epoch(n_train, t.batch_size)
    total = 0 if method.solved_at_once else per_epoch * t.epochs
    return Plan(
        total_steps=total,
        steps_per_epoch=per_epoch,
        lr=method.rate if t.lr is None else t.lr,
        min_lr=t.min_lr,
        weight_decay=method.decay if t.weight_decay is None else t.weight_decay,
        betas=t.betas,
        eps=t.eps,
        warmup_steps=default_warmup(total) if t.warmup_steps is None else t.warmup_steps,
        clip_grad_norm=(
            method.default_clip_grad_norm if t.clip_grad_norm is None else t.clip_grad_norm
        ),
        accumulation_steps=t.accumulation_steps,
        precision=resolve_precision(t.precision, device),
        log_every_steps=t.log_every_steps,
        checkpoint_every_steps=t.checkpoint_every_steps or _checkpoint_every(spec, per_epoch),
        keep_checkpoints=t.keep_checkpoints,
        spec_sha256=spec.content_hash(),
        freeze_batch_norm=t.batch_norm == "frozen",
    )


def run_job(
    spec: RunSpec,
    folder: Path,
    *,
    run_id: str = "local",
    resume_from: Path | None = None,
    inputs: Mapping[str, Path] | None = None,
    stop: Stop = never,
    keep_states: bool = False,
) -> Iterator[Record]:
    """Train, evaluate, report. Yields what happens; the folder holds the result.

    A folder with checkpoints of the same spec is gone on with.

    Args:
        spec: what is asked.
        folder: the run's own folder; made if need be.
        run_id: names the run in the report.
        resume_from: folder of an earlier attempt to go on from, if this one has no checkpoint.
        inputs: folders of the finished runs that a merging method names, by those names; one that
            is absent is a folder itself.
        stop: true to save a checkpoint and stop.
        keep_states: leave behind what only an unfinished run needs: the caller removes it when the
            result is safe elsewhere.

    Raises:
        CaliftError: whatever stands in the way, in a sentence.
        InterruptedRunError: `stop` said so; a checkpoint is saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _demand_space(folder)
    if (
        spec.model.name == TINY
        and spec.model.pretrained is not None
        and not isinstance(spec.method, Pretrain)
    ):
        yield from ensure_tiny(spec.model.pretrained, stop=stop)
    job = _Job(spec, folder, run_id, resume_from, stop, inputs, keep_states)
    for record in job.run():
        job.hear(record)
        yield record


def _demand_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < FREE_SPACE_FLOOR:
        raise DiskFullError(
            f"only {free / 2**20:.0f} MiB are free where the run would be stored, "
            f"{FREE_SPACE_FLOOR // 2**20} MiB are the least it needs",
            hint="Free some space, or name another folder.",
        )


def _told(note: str) -> Iterator[Record]:
    if note:
        yield LogRecord(level="warning", message=note)


class _Job:
    """The state of one run while it works."""

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        run_id: str,
        resume_from: Path | None,
        stop: Stop,
        inputs: Mapping[str, Path] | None = None,
        keep_states: bool = False,
    ) -> None:
        self.keep_states = keep_states
        self.spec, self.folder, self.run_id, self.stop = spec, folder, run_id, stop
        self.resume_from, self.inputs = resume_from, inputs
        self.device = resolve_device(spec.train.device)
        asked = spec.evaluation.precision
        self.evaluation_precision = resolve_precision(
            spec.train.precision if asked == "train" else asked, self.device
        )
        self.timings: dict[str, float] = {}
        self.speeds: dict[str, float] = {}
        self.began = time.monotonic()
        self.processor_s: dict[str, float] = {}
        self.is_pretraining = isinstance(spec.method, Pretrain)

    def hear(self, record: Record) -> None:
        """Keep how fast a stage was last said to be."""
        if isinstance(record, ProgressRecord) and record.samples_per_s:
            self.speeds[record.phase] = record.samples_per_s

    def run(self) -> Iterator[Record]:
        spec = self.spec
        yield PhaseRecord(phase="loading", detail=f"{spec.model.name} and {spec.suite.id}")
        suite = load_suite(spec.suite)
        generator = torch.Generator().manual_seed(spec.train.seed)
        state = (yield from self._find_state()) if spec.method.trains else None
        clip = load_begun(spec.model, state, generator)
        yield from _told(self._note_on(clip, state))
        clip.to(self.device)
        if spec.train.compile and spec.method.trains:
            clip.compile_towers()
        start_hash = weights_sha256(clip.net)
        train_part = "pretrain" if self.is_pretraining else "train"
        templates = resolve_templates(spec.suite.templates)
        captions = Captions.make(suite.class_names, templates, clip.tokenizer, cache=heads_dir())
        if spec.method.family == "merge":
            yield from self._merge(clip, captions, suite, start_hash)
            return
        learned = captions
        if self.is_pretraining:
            learned = Captions.make(suite.class_names, resolve_templates("styles"), clip.tokenizer)
        n_train = len(suite.part(train_part)) if spec.method.trains else 0
        plan = make_plan(spec, n_train, self.device, clip)
        torch.manual_seed(spec.train.seed)  # dropout and stochastic depth, where a tower has them
        method = make_method(
            spec.method,
            clip,
            learned,
            length=RunLength(total_steps=plan.total_steps, seed=spec.train.seed),
            confidence=spec.train.confidence,
        )
        self._lap("loading_s")
        if spec.method.trains:
            yield PhaseRecord(
                phase="pretraining" if self.is_pretraining else "training",
                detail=f"{plan.total_steps} steps on {n_train:,} images, {self.device}",
            )
            processor_began = time.process_time()
            yield from self._train(method, suite, train_part, captions, plan, state)
            method.finish()
            self._lap("training_s")
            self.processor_s["training_cpu_s"] = time.process_time() - processor_began
        classifier = classifier_of(method, captions)
        self._save_model(clip, classifier, suite)
        yield from self._judge(
            clip,
            classifier,
            suite,
            steps=plan.total_steps if spec.method.trains else 0,
            start_hash=start_hash,
            resolved=self._resolved(plan, method) if spec.method.trains else {},
        )

    def _note_on(self, clip: Clip, state: TrainState | None) -> str:
        """What a person should know of how the model is made."""
        if state is not None and state.made is None:
            return outdated(self.spec.model.name, self.spec.model.pretrained, clip.made)
        return clip.made.note

    def _merge(
        self, clip: Clip, captions: Captions, suite: Suite, start_hash: str
    ) -> Iterator[Record]:
        """Make the model of finished runs, and judge it like any other."""
        if self.resume_from is not None:
            adopt_shards(self.resume_from, self.folder)
        merged = yield from merge_runs(
            self.spec,
            clip,
            captions,
            suite,
            start_sha256=start_hash,
            inputs=self.inputs,
            folder=self.folder,
            device=self.device,
            precision=self.evaluation_precision,
            stop=self.stop,
        )
        self._lap("merging_s")
        self._save_model(clip, merged.classifier, suite)
        yield from self._judge(
            clip,
            merged.classifier,
            suite,
            steps=0,
            start_hash=start_hash,
            resolved=merged.resolved,
            frontier=merged.frontier,
        )

    def judge(self, finished: Path) -> Iterator[Record]:
        """Evaluate a finished model as it is; see `evaluate_finished`."""
        yield PhaseRecord(phase="loading", detail=f"the model in {finished}")
        suite = load_suite(self.spec.suite)
        model = load_judged(finished, suite, self.device)
        yield from _told(model.note)
        yield from self._judge(
            model.clip,
            model.classifier,
            suite,
            steps=0,
            start_hash=model.sha256,
            resolved={"evaluated_from": str(finished)},
        )

    @property
    def settings(self) -> Settings:
        """How models are judged, beside the suite's class names."""
        return Settings(
            spec=self.spec.evaluation,
            templates=resolve_templates(self.spec.suite.templates),
            workers=self.spec.train.workers,
            device=self.device,
            precision=self.evaluation_precision,
            stop=self.stop,
        )

    def _judge(
        self,
        clip: Clip,
        classifier: Classifier,
        suite: Suite,
        *,
        steps: int,
        start_hash: str,
        resolved: dict[str, Any],
        frontier: list[FrontierPoint] | None = None,
    ) -> Iterator[Record]:
        """Predict every data set once, compute every number, write the report."""
        yield PhaseRecord(phase="evaluating", detail="predictions once per data set")
        if self.resume_from is not None:
            adopt_shards(self.resume_from, self.folder)
        clip.eval()
        subject = Subject(Placed(lambda: clip, classifier), weights_sha256(clip.net), self.folder)
        (verdict,) = yield from judge([subject], suite, self.settings)
        self._lap("evaluation_s")
        yield from self.report(
            clip,
            subject.sha256,
            verdict,
            suite,
            steps=steps,
            start_hash=start_hash,
            resolved=resolved,
            frontier=frontier,
        )

    def report(
        self,
        clip: Clip,
        sha256: str,
        verdict: Verdict,
        suite: Suite,
        *,
        steps: int,
        start_hash: str,
        resolved: dict[str, Any],
        frontier: list[FrontierPoint] | None = None,
    ) -> Iterator[Record]:
        """Write the report, and remove what only an unfinished run needs, unless it is to stay."""
        spec, spectrum = self.spec, verdict.spectrum
        if spectrum is not None:
            yield SpectrumRecord(step=steps, spectrum=spectrum, final=True)
        yield PhaseRecord(phase="saving")
        training_precision = resolve_precision(spec.train.precision, self.device)
        report = Report(
            run_id=self.run_id,
            name=spec.name,
            spec=spec.model_dump(mode="json"),
            spec_sha256=spec.content_hash(),
            resolved=resolved,
            summary=summarise(verdict.evaluations, spectrum.sigma_min if spectrum else None),
            evaluations=verdict.evaluations,
            spectrum=spectrum,
            selection={"selected_on": "id_val", **verdict.selection},
            model={
                "name": clip.name,
                "pretrained": clip.pretrained,
                **clip.made.described(),
                "parameters": sum(p.numel() for p in clip.net.parameters()),
                "vision_parameters": sum(p.numel() for p in clip.net.visual.parameters()),
                "start_sha256": start_hash,
                "sha256": sha256,
            },
            data={
                "suite": suite.name,
                "classes": list(suite.classes),
                "templates": list(resolve_templates(spec.suite.templates)),
                "parts": {part: len(images) for part, images in suite.parts.items()},
                "shifts": {name: len(images) for name, images in suite.shifts.items()},
                "test_sha256": suite.part("test").sha256,
            },
            timings_s={
                **self.timings,
                **self.processor_s,
                "total_s": time.monotonic() - self.began,
            },
            environment={
                **environment(self.device, training_precision),
                "evaluation_precision": self.evaluation_precision,
            },
            speeds=self.speeds,
            frontier=frontier,
        )
        atomic_write_json(self.folder / "report.json", report.model_dump(mode="json"))
        if not self.keep_states:
            drop_states(self.folder / "checkpoint")
            drop_shards(self.folder)
        yield DoneRecord(summary=report.summary, steps=steps)

    def _lap(self, name: str) -> None:
        now = time.monotonic()
        self.timings[name] = now - self.began - sum(self.timings.values())

    def _train(
        self,
        method: Method,
        suite: Suite,
        part: str,
        captions: Captions,
        plan: Plan,
        state: TrainState | None,
    ) -> Iterator[Record]:
        spec = self.spec
        images = suite.part(part)
        view = TrainView(
            images=kept_in_memory(images) if spec.train.cache_images else images,
            preprocess=method.clip.preprocess,
            n_templates=len(
                resolve_templates("styles" if self.is_pretraining else spec.suite.templates)
            ),
            seed=spec.train.seed,
            crop_scale=spec.train.crop_scale,
            flip=spec.train.horizontal_flip,
            styles=self.is_pretraining,
        )
        normalise = Normalise(method.clip.mean, method.clip.std, self.device)
        features = self._features(method.clip, suite, plan.precision)
        if state is None:
            yield from method.prepare(features)

        def batches(start: int) -> Iterator[Batch]:
            schedule: dict[str, int] = {
                "batch_size": spec.train.batch_size,
                "start_step": start,
                "total_steps": plan.total_steps,
            }
            if spec.method.on_features:
                x, y = features("train")
                return feature_batches(x, y, seed=spec.train.seed, **schedule)
            loaded = train_batches(
                view, workers=spec.train.workers, normalise=normalise, **schedule
            )
            return self._mixed(loaded, start) if spec.train.confidence.mixup_alpha else loaded

        def at_epoch_end(step: int) -> Iterator[Record]:
            every = spec.train.spectrum_every_epochs
            epoch = step // plan.steps_per_epoch
            if every and epoch % every == 0 and len(suite.parts.get("validation", ())):
                yield from self._validate(method, suite, captions, plan, step)

        records = train(
            method,
            batches,
            plan,
            device=self.device,
            folder=self.folder,
            resume=state,
            stop=self.stop,
            at_epoch_end=at_epoch_end,
        )
        del state  # `train` lets it go once it is restored
        yield from records

    def _features(self, clip: Clip, suite: Suite, precision: Precision) -> Features:
        """Features of the image tower as it is now; a part is encoded when it is first asked for.

        Only methods that leave the tower as it is ask later than before the first step.
        """

        @cache
        def features(part: Literal["train", "validation"]) -> tuple[Tensor, Tensor]:
            images = suite.part(part)
            encoded = encode(
                clip,
                images,
                batch_size=self.spec.evaluation.batch_size,
                workers=self.spec.train.workers,
                device=self.device,
                precision=precision,
                stop=self.stop,
            )
            return encoded, torch.as_tensor(images.labels, device=self.device)

        return features

    def _mixed(self, batches: Iterator[Batch], start: int) -> Iterator[Batch]:
        """Mixup; the draw of a step depends on the seed and the step alone."""
        for step, batch in enumerate(batches, start=start):
            generator = torch.Generator().manual_seed(self.spec.train.seed * 1_000_003 + step)
            yield mix(batch, self.spec.train.confidence.mixup_alpha, generator)

    def _find_state(self) -> Generator[Record, None, TrainState | None]:
        """Yields a warning for each damaged checkpoint; returns the one to go on from, if any."""
        sha256 = self.spec.content_hash()
        folders = [self.folder] + ([self.resume_from] if self.resume_from else [])
        for folder in folders:
            state, problems = newest_state(folder / "checkpoint", spec_sha256=sha256)
            for problem in problems:
                yield LogRecord(
                    level="warning", message=f"A damaged checkpoint is passed over: {problem}."
                )
            if state is not None:
                if folder != self.folder:  # so that a third attempt finds it in the second
                    at = Path("checkpoint") / "steps" / f"{state.step:08d}"
                    (self.folder / at.parent).mkdir(parents=True, exist_ok=True)
                    link_tree(folder / at, self.folder / at)
                return state
            if problems:
                yield LogRecord(
                    level="warning", message="No checkpoint is usable: training starts anew."
                )
        return None

    def _validate(
        self, method: Method, suite: Suite, captions: Captions, plan: Plan, step: int
    ) -> Iterator[Record]:
        """ID validation during training: accuracy, NLL, ECE and the spectrum."""
        images = suite.part("validation")
        classifier = classifier_of(method, captions)
        covariance = Covariance(classifier.weights.shape[1])
        logits = predict(
            method.clip,
            classifier,
            images,
            batch_size=self.spec.evaluation.batch_size,
            workers=self.spec.train.workers,
            device=self.device,
            precision=plan.precision,
            covariance=covariance,
        )
        values = validation_values(logits, images.labels, self.spec.evaluation)
        spectrum = spectrum_of(method.clip, covariance, f"{suite.name}/validation")
        if spectrum is not None:
            if spectrum.sigma_min is not None:
                values["sigma_min"] = spectrum.sigma_min
            values["effective_rank"] = spectrum.effective_rank
            yield SpectrumRecord(step=step, spectrum=spectrum)
        yield MetricsRecord(step=step, epoch=step / plan.steps_per_epoch, values=values)

    def _save_model(self, clip: Clip, classifier: Classifier, suite: Suite) -> None:
        tensors = {"weights": classifier.weights}
        if classifier.bias is not None:
            tensors["bias"] = classifier.bias
        save_final(
            self.folder / "checkpoint",
            clip.net,
            tensors,
            {
                "format": 2,
                "name": clip.name,
                "pretrained": clip.pretrained,
                "config": dict(clip.config),
                **clip.made.described(),
                "classes": list(suite.classes),
                "class_names": list(suite.class_names),
                "logit_scale": classifier.scale,
            },
        )

    def _resolved(self, plan: Plan, method: Method) -> dict[str, Any]:
        """The values that the spec left open."""
        return {
            "lr": plan.lr,
            "weight_decay": plan.weight_decay,
            "warmup_steps": plan.warmup_steps,
            "clip_grad_norm": plan.clip_grad_norm,
            "total_steps": plan.total_steps,
            "precision": plan.precision,
            "device": str(self.device),
            **method.resolved(),
        }


def evaluate_finished(
    spec: RunSpec, finished: Path, folder: Path, *, run_id: str = "local", stop: Stop = never
) -> Iterator[Record]:
    """Judge the finished model of a run on a suite, without training.

    Args:
        spec: whose `suite` and `evaluation` are used.
        finished: folder of a finished run.
        folder: receives `predictions/` and `report.json`.
        run_id: names the result.
        stop: true to stop between data sets.

    Raises:
        CheckpointError: the folder holds no finished model.
        DataError: the suite has other classes than the model.
    """
    if (folder / "spec.json").exists():
        raise SpecError(
            f"the evaluation needs a folder of its own, {str(folder)!r} holds a run already"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _demand_space(folder)
    yield from _Job(spec, folder, run_id, None, stop).judge(finished)


@dataclass(frozen=True)
class Evaluated:
    """A model that `evaluate_many` judges.

    Attributes:
        path: folder of a finished run, or a checkpoint: `RUN/checkpoint/steps/STEP`.
        spec: whose `suite`, `evaluation` and `train` (device, precision, workers) are used.
    """

    path: Path
    spec: RunSpec


def evaluate_many(
    models: Mapping[str, Evaluated], folder: Path, *, stop: Stop = never
) -> Iterator[Record]:
    """Judge several models in one pass over the data: each image is decoded once for all of them.

    The results are those of `evaluate_finished`, model by model, bit for bit.

    Args:
        models: by the names of the folders that they get.
        folder: receives `NAME/predictions/` and `NAME/report.json`.
        stop: true to stop between batches; the same call then goes on from there.

    Raises:
        SpecError: the models are not to be judged on the same data in the same way.
        ModelError: they differ in architecture or preprocessing.
        CheckpointError: a folder holds no model.
        DataError: the suite has other classes than a model.
    """
    names = list(models)
    first = models[names[0]].spec
    for name in names[1:]:
        _demand_same_pass(names[0], first, name, models[name].spec)
    folder.mkdir(parents=True, exist_ok=True)
    _demand_space(folder)
    jobs = {name: _Job(models[name].spec, folder / name, name, None, stop) for name in names}
    yield PhaseRecord(phase="loading", detail=f"{len(names)} models")
    suite = load_suite(first.suite)
    first_model: Judged | None = None
    subjects, loaded = [], []
    for name in names:
        if stop():
            raise InterruptedRunError("stopped while loading models")
        if (folder / name / "spec.json").exists():
            raise SpecError(
                "the evaluation needs a folder of its own, "
                f"{str(folder / name)!r} holds a run already"
            )
        path = models[name].path
        if first_model is None:
            model = first_model = load_judged(path, suite, jobs[name].device)
            turns = Turns(model.clip)
        else:
            model = load_like(path, first_model, (names[0], name), suite)
        yield from _told(f"{name}: {model.note}" if model.note else "")
        placed = Placed(turns.add(model), model.classifier)
        subjects.append(Subject(placed, model.sha256, folder / name, name))
        loaded.append((model.name, model.pretrained))
    yield PhaseRecord(
        phase="evaluating", detail=f"{len(names)} models, each image decoded once for all"
    )
    verdicts = yield from judge(subjects, suite, jobs[names[0]].settings)
    for name, subject, verdict, origin in zip(names, subjects, verdicts, loaded, strict=True):
        turns.clip.name, turns.clip.pretrained = origin
        jobs[name]._lap("evaluation_s")
        yield from jobs[name].report(
            turns.clip,
            subject.sha256,
            verdict,
            suite,
            steps=0,
            start_hash=subject.sha256,
            resolved={"evaluated_from": str(models[name].path)},
        )


def _demand_same_pass(one_name: str, one: RunSpec, other_name: str, other: RunSpec) -> None:
    differs = [
        what
        for what, a, b in (
            ("suite", one.suite, other.suite),
            ("evaluation", one.evaluation, other.evaluation),
            ("train.device", one.train.device, other.train.device),
            ("train.precision", one.train.precision, other.train.precision),
            ("train.workers", one.train.workers, other.train.workers),
        )
        if a != b
    ]
    if differs:
        raise SpecError(
            f"models judged in one pass must have the same {', '.join(differs)}, those of "
            f"{one_name!r} and {other_name!r} differ",
            hint="Name one RunSpec for all of them (--suite), or evaluate them by a command each.",
        )


# ------------------------------------------------------------------------- calift-tiny's weights


def pretraining_key(spec: RunSpec, suite: Suite) -> str:
    """Names weights by everything that they depend on: the spec, the images and the styles."""
    styles = (Path(__file__).parent / "data" / "styles.py").read_bytes()
    config = (Path(__file__).parent / "configs" / "calift_tiny.json").read_bytes()
    parts = [spec.content_hash(), suite.part("pretrain").sha256]
    text = ":".join(parts).encode() + styles + config
    return hashlib.sha256(text).hexdigest()[:16]


def ensure_tiny(suite_id: str, *, stop: Stop = never) -> Iterator[Record]:
    """Pre-train `calift-tiny` on a suite unless that has been done here.

    Several runs may ask at once: one works, the others wait for it.

    Raises:
        ModelUnavailableError: `suite_id` is not a suite that has a pre-training part.
    """
    if suite_id.endswith((".safetensors", ".pt", ".pth", ".bin")):
        return
    spec = pretraining_spec(suite_id)
    try:
        suite = load_suite(spec.suite)
    except SpecError as error:
        raise ModelUnavailableError(
            f"calift-tiny has no weights {suite_id!r}: {error.message}"
        ) from None
    if tiny_is_current(spec, suite):
        return
    folder = models_dir() / TINY
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder / f"{suite_id}.lock", stop):
        if tiny_is_current(spec, suite):
            return
        key = pretraining_key(spec, suite)
        work = folder / f"work-{key}"
        yield LogRecord(message=f"calift-tiny is pre-trained on {suite_id} first (once).")
        for record in run_job(spec, work, run_id=f"pretrain-{key}", stop=stop):
            if isinstance(record, PhaseRecord | ProgressRecord):
                yield record.model_copy(update={"phase": "pretraining"})
            elif isinstance(record, ResumedRecord):
                yield LogRecord(message=f"It goes on from step {record.step} of an earlier start.")
        publish_tiny(work, suite_id, key)


def tiny_is_current(spec: RunSpec, suite: Suite) -> bool:
    """Whether the weights that a pre-training spec would make are here already."""
    index = models_dir() / TINY / f"{spec.suite.id}.json"
    try:
        entry = json.loads(index.read_text())
        weights = index.parent / entry["folder"] / "model.safetensors"
        same = entry["key"] == pretraining_key(spec, suite) and weights.is_file()
        return bool(same and sha256_file(weights) == entry["sha256"])
    except (OSError, ValueError, KeyError, StorageError):
        return False


def tiny_sha256(suite_id: str) -> str:
    """SHA-256 of the weights that `calift-tiny` loads for a suite, pre-trained here before.

    Raises:
        ModelUnavailableError: it has not been.
    """
    try:
        entry = json.loads((models_dir() / TINY / f"{suite_id}.json").read_text())
        return str(entry["sha256"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnavailableError(
            f"calift-tiny must be pre-trained on {suite_id} here, it is not: {error}"
        ) from error


def publish_tiny(work: Path, suite_id: str, key: str) -> None:
    """Make a finished pre-training's weights the ones that `calift-tiny` loads for a suite."""
    folder = models_dir() / TINY
    target = folder / key
    target.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "model.json"):
        atomic_write_bytes(target / name, (work / "checkpoint" / name).read_bytes())
    atomic_write_bytes(target / "report.json", (work / "report.json").read_bytes())
    entry = {
        "folder": key,
        "key": key,
        "sha256": sha256_file(target / "model.safetensors"),
        "suite": suite_id,
    }
    atomic_write_json(folder / f"{suite_id}.json", entry)
    if work.parent == folder:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _exclusive(path: Path, stop: Stop) -> Iterator[None]:
    """Hold a lock file; wait for whoever has it, until `stop`."""
    while (lock := try_lock(path, patience_s=0.5)) is None:
        if stop():
            raise InterruptedRunError("stopped while another run pre-trains")
    try:
        yield
    finally:
        lock.release()


# --------------------------------------------------------------------------------- on disk


def run_in_folder(
    spec: RunSpec,
    folder: Path,
    *,
    run_id: str = "local",
    resume_from: Path | None = None,
    inputs: Mapping[str, Path] | None = None,
    stop: Stop = never,
    keep_states: bool = False,
) -> Iterator[Record]:
    """`run_job`, with `records.jsonl` and the curves written as it goes.

    Raises:
        CheckpointError: the folder holds another spec's run.
        CaliftError: as `run_job`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec_file = folder / "spec.json"
    if spec_file.is_file():
        try:
            old = load_spec(spec_file)
        except SpecError as error:
            raise CheckpointError(f"the spec in {str(folder)!r} is damaged: {error}") from None
        if old.content_hash() != spec.content_hash():
            raise CheckpointError(
                f"{str(folder)!r} holds a run of another RunSpec ({old.name!r})",
                hint="Give another --out folder, or --overwrite to start anew.",
            )
    atomic_write_json(spec_file, spec.model_dump(mode="json"))
    if isinstance(spec.method, Pretrain) and spec.model.name == TINY:
        after: Callable[[], None] | None = _publisher(spec, folder)
    else:
        after = None
    with Curves(folder, resume_from) as curves, Lines(folder / "records.jsonl") as records:
        for record in run_job(
            spec,
            folder,
            run_id=run_id,
            resume_from=resume_from,
            inputs=inputs,
            stop=stop,
            keep_states=keep_states,
        ):
            curves.take(record)
            if isinstance(record, DoneRecord) and after is not None:
                after()
            records.add(record.model_dump_json())
            yield record


def _publisher(spec: RunSpec, folder: Path) -> Callable[[], None] | None:
    """Publishes a submitted pre-training if it is the one that `calift-tiny` stands for."""
    standard = pretraining_spec(spec.suite.id) if ":" not in spec.suite.id else None
    if standard is None or standard.content_hash() != spec.content_hash():
        return None

    def publish() -> None:
        key = pretraining_key(spec, load_suite(spec.suite))
        publish_tiny(folder, spec.suite.id, key)

    return publish


def main(argv: list[str]) -> int:
    """Run the job of a folder: the runner that a worker starts.

    Args:
        argv: one element, the folder; it holds `spec.json` and `job.json`.

    Returns:
        Exit status: 0, 1 when the run failed, 75 when it stopped on request.
    """
    if len(argv) != 1:
        sys.stderr.write("usage: python -m calift_core.run FOLDER\n")
        return 2
    _die_with_parent()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    folder = Path(argv[0])
    next_line = 0.0
    asked_to_stop = False

    def on_signal(signum: int, frame: object) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        job = JobFile.model_validate_json((folder / "job.json").read_bytes())
        spec = load_spec(folder / "spec.json")
        resume_from = Path(job.resume_from) if job.resume_from else None
        for record in run_in_folder(
            spec,
            folder,
            run_id=job.run_id,
            resume_from=resume_from,
            inputs={name: Path(given) for name, given in job.inputs.items()},
            stop=lambda: asked_to_stop,
            keep_states=True,  # the worker may die before it has stored the result
        ):
            if record.kind == "progress":
                if time.monotonic() < next_line:
                    continue
                next_line = time.monotonic() + LINE_EVERY_S
            words = line_of(record)
            if words:
                log.info("%s", words)
        result, status = JobResult(outcome="succeeded"), 0
    except InterruptedRunError as error:
        result = JobResult(outcome="interrupted", code=error.code, message=error.message)
        status = EXIT_INTERRUPTED
    except CaliftError as error:
        log.error("%s", error)
        result = JobResult(
            outcome="failed", code=error.code, message=error.message, hint=error.hint
        )
        status = 1
    except MemoryError:
        message = "this machine ran out of memory"
        result = JobResult(outcome="failed", code=OutOfMemoryError.code, message=message)
        status = 1
    except Exception as error:
        log.exception("the run failed")
        last = traceback.format_exception_only(error)[-1].strip()
        result = JobResult(
            outcome="failed",
            code="INTERNAL_ERROR",
            message=f"an unexpected error: {last[:500]}",
            hint="The traceback is in the run's log.",
        )
        status = 1
    atomic_write_json(folder / "result.json", result.model_dump(mode="json"))
    return status


def line_of(record: Record) -> str | None:
    """A record as a line of the run's log; None for what only charts need."""
    match record:
        case PhaseRecord():
            return f"{record.phase}: {record.detail}" if record.detail else record.phase
        case ProgressRecord():
            speed = f", {record.samples_per_s:,.0f} images/s" if record.samples_per_s else ""
            detail = f", {record.detail}" if record.detail else ""
            return f"{record.phase}: {record.step:,} of {record.total_steps:,}{detail}{speed}"
        case EvaluationRecord(evaluation=e):
            return (
                f"{e.dataset}: accuracy {e.accuracy:.4f}, ECE {e.ece.value:.4f} "
                f"(floor {e.ece.null_mean:.4f}), n = {e.n:,}"
            )
        case ResumedRecord():
            return f"going on from the checkpoint of step {record.step:,}"
        case DoneRecord():
            return "done"
    return None


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the worker that started this process is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
