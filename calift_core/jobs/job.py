"""One run while it works: load, train, save, evaluate, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch

from calift_core.analysis.report import run_id_of, summarise
from calift_core.data.ranks import ALONE, Ranks
from calift_core.data.suites.load import Suite, load_suite
from calift_core.errors import CheckpointError, DiskFullError, SpecError
from calift_core.evaluation.evaluate import EvaluationResult, evaluate_models
from calift_core.evaluation.forward import PlacedModel, encode
from calift_core.evaluation.items import EvaluationSettings, encoding_key
from calift_core.evaluation.partial import Shards, adopt_shards, drop_shards, link_tree
from calift_core.evaluation.path import point_of
from calift_core.evaluation.prompts import save_prompts
from calift_core.evaluation.subjects import (
    EvaluationSubject,
    classifier_of,
    learned_captions,
    load_begun,
    load_trained,
)
from calift_core.files import FREE_SPACE_FLOOR, atomic_write_json
from calift_core.jobs.environment import environment
from calift_core.jobs.merge import FinishedInput, Mixed, load_input, merge_runs
from calift_core.jobs.training import Training
from calift_core.methods import Classifier, Method, RunLength, finish_training, make_method
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.loading import weights_sha256
from calift_core.models.precision import resolve_device, resolve_precision
from calift_core.models.shared import share_batch_norm
from calift_core.models.zeroshot import resolve_templates
from calift_core.models.zeroshot_cache import heads_dir
from calift_core.predictions.training import save_training_images
from calift_core.schema.methods import Pretrain
from calift_core.schema.records import (
    DoneRecord,
    LogRecord,
    PhaseRecord,
    ProgressRecord,
    Record,
    SpectrumRecord,
)
from calift_core.schema.report import FrontierPoint, Report
from calift_core.schema.spec import RunSpec
from calift_core.threads import loader_workers
from calift_core.training.checkpoint import TrainState, drop_states, newest_state, save_final
from calift_core.training.plan import TrainingPlan, make_plan
from calift_core.training.step import parameters_of

Stop = Callable[[], bool]


def never() -> bool:
    """The `stop` of a run that nobody may interrupt."""
    return False


class RunOptions(TypedDict, total=False):
    """How a run is worked on.

    Attributes:
        run_id: names the run in the report; None: the folder's own, or a new one.
        resume_from: folder of an earlier attempt to go on from, if this one has no checkpoint.
        inputs: folders of the finished runs that the spec names, by those names; one that
            is absent is a folder itself.
        stop: true to stop where a checkpoint can be saved.
        keep_states: leave behind what only an unfinished run needs: the caller removes it when the
            result is safe elsewhere.
        ranks: who shares the run; all of them see the folder.
    """

    run_id: str | None
    resume_from: Path | None
    inputs: Mapping[str, Path] | None
    stop: Stop
    keep_states: bool
    ranks: Ranks


def require_space(folder: Path) -> None:
    """Make sure that a run can be stored.

    Raises:
        DiskFullError: less is free than a run needs.
    """
    free = shutil.disk_usage(folder).free
    if free < FREE_SPACE_FLOOR:
        raise DiskFullError(
            f"only {free / 2**20:.0f} MiB are free where the run would be stored, "
            f"{FREE_SPACE_FLOOR // 2**20} MiB are the least it needs",
            hint="Free some space, or name another folder.",
        )


def warnings_of(note: str) -> Iterator[Record]:
    """A warning, if there is something to say."""
    if note:
        yield LogRecord(level="warning", message=note)


class Job:
    """The state of one run while it works."""

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        **options: Unpack[RunOptions],
    ) -> None:
        self.spec, self.folder = spec, folder
        self.run_id, self.resume_from = options.get("run_id"), options.get("resume_from")
        self.inputs, self.stop = options.get("inputs"), options.get("stop", never)
        self.keep_states = options.get("keep_states", False)
        self.ranks = ranks = options.get("ranks", ALONE)
        self.device = ranks.device(resolve_device(spec.train.device))
        self.workers = loader_workers(
            spec.train.workers, self.device.type, processes=ranks.local_world
        )
        precision = spec.evaluation.precision
        self.evaluation_precision = resolve_precision(
            spec.train.precision if precision == "train" else precision, self.device
        )
        self.timings: dict[str, float] = {}
        self.speeds: dict[str, float] = {}
        self.began = time.monotonic()
        self.processor_s: dict[str, float] = {}
        self.is_pretraining = isinstance(spec.method, Pretrain)

    def run(self) -> Iterator[Record]:
        """Train or merge, then evaluate and report: what happens, in order."""
        self.folder.mkdir(parents=True, exist_ok=True)
        require_space(self.folder)
        for record in self._run():
            if isinstance(record, ProgressRecord) and record.samples_per_s:
                self.speeds[record.phase] = record.samples_per_s
            yield record

    def _run(self) -> Iterator[Record]:
        spec = self.spec
        yield PhaseRecord(phase="loading", detail=f"{spec.model.name} and {spec.suite.id}")
        suite = load_suite(spec.suite)
        generator = torch.Generator().manual_seed(spec.train.seed)
        state = (yield from self._find_state()) if spec.method.trains else None
        clip = load_begun(spec.model, state, generator)
        yield from warnings_of(clip.model_config.note)
        clip.to(self.device)
        if spec.method.trains:
            self._fit_for_training(clip)
        start_hash = weights_sha256(clip.net)
        train_part = "pretrain" if self.is_pretraining else "train"
        templates = resolve_templates(spec.suite.templates)
        captions = Captions.make(suite.class_names, templates, clip.tokenizer, cache=heads_dir())
        if spec.method.family == "merge":
            yield from self._merge(clip, captions, suite, start_hash)
            return
        learned = captions
        if isinstance(spec.method, Pretrain):
            learned = learned_captions(spec.method, suite, clip.tokenizer)
        n_train = len(suite.part(train_part)) if spec.method.trains else 0
        plan = make_plan(spec, n_train, self.device, clip)
        # Dropout and stochastic depth, where a tower has them: every rank draws its own.
        torch.manual_seed(spec.train.seed + 1_000_003 * self.ranks.rank)
        begun = self._begun_with(clip, suite, start_hash)
        method = make_method(
            spec.method,
            clip,
            learned,
            length=RunLength(total_steps=plan.total_steps, seed=spec.train.seed),
            confidence=spec.train.confidence,
            train=spec.train,
            begin_with=None if begun is None else begun.weights,
        )
        before: dict[str, Any] = {}
        if begun is not None:
            before = {"inputs": [begun.described()], "epochs_before": begun.epochs}
        del begun  # another model
        trained = 0
        self._lap("loading_s")
        if spec.method.trains:
            yield PhaseRecord(
                phase="pretraining" if self.is_pretraining else "training",
                detail=f"{plan.total_steps} steps on {n_train:,} images, {self.device}",
            )
            processor_began = time.process_time()
            training = Training(
                spec, suite, method, captions, plan, self.settings, self.folder,
                before.get("epochs_before"),
            )  # fmt: skip
            yield from training.run(state)
            trained = parameters_of(method)
            finish_training(method)
            self._lap("training_s")
            self.processor_s["training_cpu_s"] = time.process_time() - processor_began
        classifier = classifier_of(method, captions)
        if self.ranks.first:
            self._save_model(clip, classifier, suite, captions)
        yield from self._evaluate(
            clip,
            classifier,
            suite,
            steps=plan.total_steps if spec.method.trains else 0,
            start_hash=start_hash,
            resolved=before | self._resolved(plan, method, trained) if spec.method.trains else {},
        )

    def _begun_with(self, clip: Clip, suite: Suite, start_hash: str) -> FinishedInput | None:
        """The finished run that this one begins with, if any.

        Raises:
            SpecError: its classifier is of another kind.
        """
        name, method = self.spec.train.initial_run, self.spec.method
        if name is None:
            return None
        found = load_input(name, self.inputs, self.spec, suite, clip, start_hash)
        head = "linear" if method.family == "supervised" else "prompts"
        if found.head != head:
            raise SpecError(
                f"train.initial_run: {method.kind} goes on from a classifier of the kind {head}, "
                f"that of {name!r} ({found.method}) is {found.head}"
            )
        return found

    def _fit_for_training(self, clip: Clip) -> None:
        train = self.spec.train
        if self.ranks.world > 1 and not train.freezes_batch_norm:
            share_batch_norm(clip, self.device)
        if train.activation_checkpointing:
            clip.checkpoint_activations()
        if train.compile:
            clip.compile_towers()

    def _merge(
        self, clip: Clip, captions: Captions, suite: Suite, start_hash: str
    ) -> Iterator[Record]:
        if self.resume_from is not None:
            adopt_shards(self.resume_from, self.folder)
        merged = yield from merge_runs(
            self.spec,
            clip,
            captions,
            suite,
            self.settings,
            start_sha256=start_hash,
            inputs=self.inputs,
            folder=self.folder,
        )
        self._lap("merging_s")
        mixed = merged.mixed
        clip = clip if mixed is None else mixed.tuned
        kind = mixed.kind if mixed else None
        self._save_model(clip, merged.classifier, suite, captions, mixture=kind)
        yield from self._evaluate(
            clip,
            merged.classifier,
            suite,
            steps=0,
            start_hash=start_hash,
            resolved=merged.resolved,
            frontier=merged.frontier,
            mixed=mixed,
        )

    def evaluate(self, finished: Path) -> Iterator[Record]:
        """Evaluate a finished model as it is; see `evaluate_finished`."""
        yield PhaseRecord(phase="loading", detail=f"the model in {finished}")
        suite = load_suite(self.spec.suite)
        model = load_trained(finished, suite, self.device)
        yield from self._evaluate(
            model.clip,
            model.classifier,
            suite,
            steps=0,
            start_hash=model.sha256,
            resolved={"evaluated_from": str(finished)},
            keeps_features=False,  # no model lies in this folder
        )

    @property
    def settings(self) -> EvaluationSettings:
        """How models are evaluated, beside the suite's class names."""
        return EvaluationSettings(
            spec=self.spec.evaluation,
            templates=resolve_templates(self.spec.suite.templates),
            batch_size=self.spec.evaluation.batch_size,
            workers=self.workers,
            device=self.device,
            precision=self.evaluation_precision,
            stop=self.stop,
            ranks=self.ranks,
        )

    def _evaluate(
        self,
        clip: Clip,
        classifier: Classifier,
        suite: Suite,
        *,
        steps: int,
        start_hash: str,
        resolved: dict[str, Any],
        frontier: list[FrontierPoint] | None = None,
        mixed: Mixed | None = None,
        keeps_features: bool = True,
    ) -> Iterator[Record]:
        """Predict every data set once, compute every number, write the report."""
        yield PhaseRecord(phase="evaluating", detail="predictions once per data set")
        if self.resume_from is not None and self.ranks.first:
            adopt_shards(self.resume_from, self.folder)
        self.ranks.wait()
        clip.eval()
        placed = PlacedModel(lambda: clip, classifier, mixed.mixture if mixed else None)
        sha256 = weights_sha256(clip.net) if mixed is None else mixed.sha256
        subject = EvaluationSubject(placed, sha256, self.folder)
        (result,) = yield from evaluate_models([subject], suite, self.settings)
        self._lap("evaluation_s")
        if keeps_features and self.spec.method.keeps_features:
            yield from self._keep_features(clip, subject.sha256, suite)
        if not self.ranks.first:
            return
        if frontier is not None:
            own = point_of(resolved["alpha"], result.evaluations, result.selection)
            frontier = sorted([*frontier, own], key=lambda point: point.alpha)
        yield from self.report(
            clip,
            subject.sha256,
            result,
            suite,
            steps=steps,
            start_hash=start_hash,
            resolved=resolved,
            frontier=frontier,
        )

    def _keep_features(self, clip: Clip, sha256: str, suite: Suite) -> Iterator[Record]:
        """Write beside the model which training images it finds a picture alike to.

        The last thing before the report: whoever goes on after a stop has only the rest to do.
        """
        part = suite.parts.get("train")
        if not part or not self.spec.train.keep_features:
            return
        images = part.limited(self.spec.train.keep_features)
        of = "" if len(images) == len(part) else f" of {len(part):,}"
        yield PhaseRecord(
            phase="evaluating", detail=f"features of {len(images):,}{of} training images"
        )
        how = encoding_key(clip, images, self.settings)
        kept = Shards(self.folder, {"features": sha256, **how})
        features = encode(clip, images, self.settings, kept=kept)
        if self.ranks.first:
            save_training_images(
                self.folder / "checkpoint",
                dataset=f"{suite.name}/train",
                of=len(part),
                ids=images.ids,
                labels=images.labels,
                features=features.cpu().numpy().astype(np.float16),
            )
        self._lap("training_features_s")

    def report(
        self,
        clip: Clip,
        sha256: str,
        result: EvaluationResult,
        suite: Suite,
        *,
        steps: int,
        start_hash: str,
        resolved: dict[str, Any],
        frontier: list[FrontierPoint] | None = None,
    ) -> Iterator[Record]:
        """Write the report, and remove what only an unfinished run needs, unless it is to stay."""
        spec, spectrum = self.spec, result.spectrum
        if spectrum is not None:
            yield SpectrumRecord(step=steps, spectrum=spectrum, final=True)
        yield PhaseRecord(phase="saving")
        training_precision = resolve_precision(spec.train.precision, self.device)
        report = Report(
            run_id=self.run_id or run_id_of(self.folder),
            name=spec.name,
            spec=spec.model_dump(mode="json"),
            spec_sha256=spec.content_hash(),
            resolved=resolved,
            summary=summarise(result.evaluations, spectrum.sigma_min if spectrum else None),
            evaluations=result.evaluations,
            spectrum=spectrum,
            selection={"selected_on": "id_val", **result.selection},
            model={
                "name": clip.name,
                "pretrained": clip.pretrained,
                **clip.model_config.described(),
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
                "ood": {name: len(images) for name, images in suite.ood.items()},
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
                if (
                    folder != self.folder and self.ranks.first
                ):  # so that a third attempt finds it in the second
                    at = Path("checkpoint") / "steps" / f"{state.step:08d}"
                    (self.folder / at.parent).mkdir(parents=True, exist_ok=True)
                    link_tree(folder / at, self.folder / at)
                self._require_same(state.step)
                return state
            if problems:
                yield LogRecord(
                    level="warning", message="No checkpoint is usable: training starts anew."
                )
        self._require_same(None)
        return None

    def _require_same(self, step: int | None) -> None:
        """See that all ranks go on from the same checkpoint."""
        found = self.ranks.all_gather(step)
        if len(set(found)) > 1:
            raise CheckpointError(
                f"the processes of this run found checkpoints of different steps: {found}",
                hint="All hosts of a run must see the same folder, on a shared file system.",
            )

    def _save_model(
        self,
        clip: Clip,
        classifier: Classifier,
        suite: Suite,
        captions: Captions,
        mixture: str | None = None,
    ) -> None:
        save_final(
            self.folder / "checkpoint",
            clip.net,
            classifier.tensors(),
            {
                "format": 2,
                "name": clip.name,
                "pretrained": clip.pretrained,
                "config": dict(clip.config),
                **clip.model_config.described(),
                "classes": list(suite.classes),
                "class_names": list(suite.class_names),
                "logit_scale": classifier.scale,
                **({"mixture": mixture} if mixture else {}),
            },
        )
        if mixture is None:
            save_prompts(self.folder / "checkpoint", clip, classifier, captions)

    def _resolved(self, plan: TrainingPlan, method: Method, trained: int) -> dict[str, Any]:
        return {
            "lr": plan.lr,
            "weight_decay": plan.weight_decay,
            "warmup_steps": plan.warmup_steps,
            "clip_grad_norm": plan.clip_grad_norm,
            "total_steps": plan.total_steps,
            "trained_parameters": trained,
            "precision": plan.precision,
            "device": str(self.device),
            "processes": self.ranks.world,
            **method.resolved(),
        }
