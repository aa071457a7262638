"""Finished models evaluated on other data, one or many in one pass."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from calift_core.data.suites.load import load_suite
from calift_core.errors import InterruptedRunError, SpecError
from calift_core.evaluation.evaluate import evaluate_models
from calift_core.evaluation.forward import PlacedModel
from calift_core.evaluation.subjects import (
    EvaluationSubject,
    TowerSwitcher,
    TrainedModel,
    load_like,
    load_trained,
)
from calift_core.jobs.job import Job, Stop, never, require_space
from calift_core.schema.records import PhaseRecord, Record
from calift_core.schema.spec import RunSpec


def evaluate_finished(
    spec: RunSpec, finished: Path, folder: Path, *, stop: Stop = never
) -> Iterator[Record]:
    """Evaluate the finished model of a run on a suite, without training.

    Args:
        spec: whose `suite` and `evaluation` are used.
        folder: receives `predictions/` and `report.json`.

    Raises:
        CheckpointError: the folder holds no finished model.
        DataError: the suite has other classes than the model.
    """
    if (folder / "spec.json").exists():
        raise SpecError(
            f"the evaluation needs a folder of its own, {str(folder)!r} holds a run already"
        )
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder)
    yield from Job(spec, folder, stop=stop).evaluate(finished)


@dataclass(frozen=True)
class Evaluated:
    """A model that `evaluate_many` evaluates.

    Attributes:
        path: folder of a finished run, or a checkpoint: `RUN/checkpoint/steps/STEP`.
        spec: whose `suite`, `evaluation` and `train` (device, precision, workers) are used.
    """

    path: Path
    spec: RunSpec


def evaluate_many(
    models: Mapping[str, Evaluated], folder: Path, *, stop: Stop = never
) -> Iterator[Record]:
    """Evaluate several models in one pass over the data: each image is decoded once.

    The results are those of `evaluate_finished`, model by model, bit for bit.

    Args:
        models: by the names of the folders that they get.
        folder: receives `NAME/predictions/` and `NAME/report.json`.
        stop: true to stop between batches; the same call then goes on from there.

    Raises:
        SpecError: the models are not to be evaluated on the same data in the same way.
        ModelError: they differ in architecture or preprocessing.
        CheckpointError: a folder holds no model.
        DataError: the suite has other classes than a model.
    """
    names = list(models)
    first = models[names[0]].spec
    for name in names[1:]:
        _require_same_pass(names[0], first, name, models[name].spec)
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder)
    jobs = {name: Job(models[name].spec, folder / name, stop=stop) for name in names}
    yield PhaseRecord(phase="loading", detail=f"{len(names)} models")
    suite = load_suite(first.suite)
    first_model: TrainedModel | None = None
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
            model = first_model = load_trained(path, suite, jobs[name].device)
            turns = TowerSwitcher(model.clip)
        else:
            model = load_like(path, first_model, (names[0], name), suite)
        placed = PlacedModel(turns.add(model), model.classifier)
        subjects.append(EvaluationSubject(placed, model.sha256, folder / name, name))
        loaded.append((model.name, model.pretrained))
    yield PhaseRecord(
        phase="evaluating", detail=f"{len(names)} models, each image decoded once for all"
    )
    results = yield from evaluate_models(subjects, suite, jobs[names[0]].settings)
    for name, subject, result, origin in zip(names, subjects, results, loaded, strict=True):
        turns.clip.name, turns.clip.pretrained = origin
        jobs[name]._lap("evaluation_s")
        yield from jobs[name].report(
            turns.clip,
            subject.sha256,
            result,
            suite,
            steps=0,
            start_hash=subject.sha256,
            resolved={"evaluated_from": str(models[name].path)},
        )


def _require_same_pass(one_name: str, one: RunSpec, other_name: str, other: RunSpec) -> None:
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
            f"models evaluated in one pass must have the same {', '.join(differs)}, those of "
            f"{one_name!r} and {other_name!r} differ",
            hint="Name one RunSpec for all of them (--suite), or evaluate them by a command each.",
        )
