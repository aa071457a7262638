"""An evaluation job: finished runs evaluated on data that their own specs did not name.

The folder of a job::

    spec.json  job.json                    what is precision
    records.jsonl                          everything that happened, in order
    runs/RUN/predictions/*.parquet         per-sample predictions of a run, one file per data set
    runs/RUN/evaluating/                   where a stopped pass goes on
    result.json                            how the runner ended
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from calift_core.analysis.report import read_report
from calift_core.data.images import ImageSet
from calift_core.data.sources import check_headers
from calift_core.data.suites import id_data
from calift_core.data.suites.load import Suite, load_shift, load_suite
from calift_core.errors import (
    CheckpointError,
    DataError,
    InterruptedRunError,
    ModelUnavailableError,
    PredictionsError,
    SpecError,
)
from calift_core.evaluation.evaluate import EvaluationResult, evaluate_set
from calift_core.evaluation.forward import PlacedModel
from calift_core.evaluation.items import EvaluationSettings, Item
from calift_core.evaluation.partial import adopt_shards
from calift_core.evaluation.progress import EvaluationProgress
from calift_core.evaluation.subjects import (
    EvaluationSubject,
    ForwardConfig,
    TowerSwitcher,
    load_like,
    load_trained,
)
from calift_core.files import atomic_write_json
from calift_core.jobs.curves import JsonlAppender
from calift_core.jobs.job import Stop, never, require_space
from calift_core.models.finished import model_config_of, read_finished
from calift_core.models.precision import Precision, resolve_device, resolve_precision
from calift_core.models.zeroshot import resolve_templates
from calift_core.predictions.read import read_metadata
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.records import LogRecord, PhaseRecord, Record
from calift_core.schema.report import Report
from calift_core.schema.spec import EvaluationSpec, RunSpec, parse_spec
from calift_core.schema.suite import SuiteSpec
from calift_core.schema.unlabelled import UnlabelledRecord
from calift_core.shipping.classifier import Answers, CalibratedClassifier, together
from calift_core.shipping.following import BATCH, FALSE_ALARMS, alarms_of, in_batches
from calift_core.shipping.predicting import image_paths
from calift_core.shipping.reference import reference_of
from calift_core.shipping.trying import chosen_for
from calift_core.shipping.watching import Watcher, answered
from calift_core.threads import loader_workers

#: Folder of the runs in the folder of a job.
RUNS = "runs"


def evaluate_in_folder(
    spec: EvaluationJobSpec,
    folder: Path,
    *,
    inputs: Mapping[str, Path],
    resume_from: Path | None = None,
    stop: Stop = never,
) -> Iterator[Record]:
    """`evaluate_runs`, with `records.jsonl` written as it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_json(folder / "spec.json", spec.model_dump(mode="json"))
    with JsonlAppender(folder / "records.jsonl") as records:
        for record in evaluate_runs(
            spec, folder, inputs=inputs, resume_from=resume_from, stop=stop
        ):
            records.add(record.model_dump_json())
            yield record


def evaluate_runs(
    spec: EvaluationJobSpec,
    folder: Path,
    *,
    inputs: Mapping[str, Path],
    resume_from: Path | None = None,
    stop: Stop = never,
) -> Iterator[Record]:
    """Evaluate the models of finished runs; those that are alike see each image in one pass.

    What a run was evaluated on before, the same images under the same name, is passed over; other
    images of that name are told apart by their hash. The results are those of a run that had the
    data in its own spec, bit for bit.

    Args:
        folder: the job's own; receives `runs/RUN/predictions/`.
        inputs: folders of the runs (report, model, predictions) by id; a run without one is gone.
        resume_from: folder of an earlier attempt, whose shards are taken over.
        stop: true to stop between batches; the same call then goes on from there.

    Raises:
        ModelUnavailableError: none of the runs is there any more.
        CheckpointError: a model is damaged.
        DataError, DataUnavailableError: the data is not here, or of other classes than a model's.
        InterruptedRunError: `stop` said so; what is done is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder)
    runs = [_Run.of(run_id, inputs[run_id], spec) for run_id in spec.runs if run_id in inputs]
    gone = [run_id for run_id in spec.runs if run_id not in inputs]
    if not runs:
        raise ModelUnavailableError(
            f"there is nothing to evaluate: {_list(gone)} {'is' if len(gone) == 1 else 'are'} gone",
            hint="They were deleted after this job was submitted.",
        )
    for run_id in gone:
        yield LogRecord(
            level="warning",
            message=f"The run {run_id} is gone; the others are evaluated without it.",
        )
    yield PhaseRecord(phase="loading", detail=f"{_models(len(runs))}, {_what(spec)}")
    found = _Data(spec)
    passes = [_Pass(group, list(found.sets(group[0]))) for group in _alike(runs)]
    unlabelled = {uri: image_paths([uri.removeprefix("folder:")]) for uri in spec.unlabelled}
    n_unlabelled = len(runs) * sum(map(len, unlabelled.values()))
    labelled = sum(len(p.runs) * sum(s.n for s in p.sets) for p in passes)
    progress = EvaluationProgress(labelled + n_unlabelled)
    if resume_from is not None:
        for run in runs:
            adopt_shards(resume_from / RUNS / run.id, folder / RUNS / run.id)
    for number, one in enumerate(passes, start=1):
        detail = f"{_models(len(one.runs))} in one pass, each image decoded once for all"
        if len(passes) > 1:
            detail = f"pass {number} of {len(passes)}: {detail}"
        yield PhaseRecord(phase="evaluating", detail=detail)
        yield from one.work(folder, stop, progress)
        one.subjects.clear()  # the next pass has the memory to itself
    for run in runs if unlabelled else ():
        yield PhaseRecord(phase="evaluating", detail=f"{run.id} on images without labels")
        yield from _without_labels(run, unlabelled, folder / "chosen", stop, progress)


def _without_labels(
    run: _Run,
    sources: Mapping[str, list[str]],
    kept: Path,
    stop: Stop,
    progress: EvaluationProgress,
) -> Iterator[Record]:
    """What a run's calibrated model is likely to be worth on images without labels."""
    report = read_report(run.folder)
    model = CalibratedClassifier.load(run.folder, device=str(run.device))
    choice, _ = chosen_for(run.folder, kept / run.id, report)
    model.calibrator = None if choice is None else choice.fitted()
    watcher = Watcher(model, reference_of(run.folder, report, model.calibrator))
    for source, paths in sources.items():
        parts: list[Answers] = []
        read: list[str] = []
        unreadable: dict[str, str] = {}
        for start in range(0, len(paths), BATCH):
            part, names, others = answered(model, paths[start : start + BATCH], stop=stop)
            parts.append(part)
            read += names
            unreadable |= others
            progress.add(len(names) + len(others))
            if progress.is_due() or start + BATCH >= len(paths):
                yield progress.record(source)
        answers = together(model.classes, parts)
        found = watcher.compare(answers, read, unreadable)
        batches = in_batches(watcher, answers, read, stop=stop)
        alarms = alarms_of(found, None, FALSE_ALARMS)
        if not alarms and (n := sum(bool(one.alarms) for one in batches)):
            alarms = [f"{n} of {len(batches)} batches have drifted"]
        yield UnlabelledRecord(
            run=run.id, source=source, found=found, batches=batches, alarms=alarms
        )


@dataclass(frozen=True)
class _Alike:
    """What runs must share to be evaluated in one pass."""

    forward_config: ForwardConfig
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    evaluation: EvaluationSpec
    precision: Precision
    workers: int
    suite: str  # the data that corruptions are made of, as JSON


@dataclass(frozen=True)
class _Run:
    """A finished run that is evaluated.

    Attributes:
        folder: holds its report, its model and its predictions.
        suite: the data that it was trained and evaluated on.
        alike: what others must share with it.
        known: data set → hash of its images, of what the run was evaluated on already.
    """

    id: str
    folder: Path
    suite: SuiteSpec
    device: torch.device
    alike: _Alike
    known: dict[str, str | None]

    @classmethod
    def of(cls, run_id: str, folder: Path, job: EvaluationJobSpec) -> _Run:
        spec = _spec_of(run_id, folder)
        _, description = read_finished(folder)
        device = resolve_device(job.device)
        precision = spec.evaluation.precision
        changes = {} if job.batch_size is None else {"batch_size": job.batch_size}
        own = {spec.suite.id} & set(job.suites)
        alike = _Alike(
            forward_config=ForwardConfig.of(model_config_of(description)),
            classes=tuple(description["classes"]),
            class_names=tuple(description["class_names"]),
            templates=resolve_templates(spec.suite.templates),
            evaluation=spec.evaluation.model_copy(update=changes),
            precision=resolve_precision(
                spec.train.precision if precision == "train" else precision, device
            ),
            workers=loader_workers(spec.train.workers, device.type),
            suite=id_data(spec.suite).model_dump_json() if job.corruptions.chosen or own else "",
        )
        return cls(run_id, folder, spec.suite, device, alike, _known(folder))


def _spec_of(run_id: str, folder: Path) -> RunSpec:
    try:
        return parse_spec(Report.model_validate_json((folder / "report.json").read_bytes()).spec)
    except (OSError, ValidationError, SpecError) as error:
        raise CheckpointError(f"the report of run {run_id} cannot be read: {error}") from None


def _known(folder: Path) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for path in sorted((folder / "predictions").rglob("*.parquet")):
        try:
            metadata = read_metadata(path)
        except PredictionsError:
            continue  # nothing that a new result could be mistaken for
        if metadata.role in ("id", "shift", "corruption", "far"):
            found[metadata.dataset] = metadata.dataset_sha256
    return found


def _alike(runs: Sequence[_Run]) -> list[list[_Run]]:
    """Runs that can share a pass, in the order of the first of each."""
    groups: dict[_Alike, list[_Run]] = {}
    for run in runs:
        groups.setdefault(run.alike, []).append(run)
    return list(groups.values())


@dataclass(frozen=True)
class _EvaluationSet:
    """A data set to be evaluated on."""

    n: int
    images: ImageSet
    role: Any
    corruption: str | None = None
    severity: int | None = None
    source: str | None = None


class _Data:
    """Finds what a job names, each suite and folder once for all that share its classes."""

    def __init__(self, spec: EvaluationJobSpec) -> None:
        self._spec = spec
        self._shifts: dict[tuple[str, tuple[str, ...]], ImageSet] = {}
        self._suites: dict[str, Suite] = {}

    def sets(self, run: _Run) -> Iterator[_EvaluationSet]:
        """The data sets for a run, and for those that are alike."""
        for suite_id in self._spec.suites:
            yield from self._of_suite(suite_id, run)
        for name, source in self._spec.all_shifts.items():
            images = self._shift(name, source, run.alike.classes)
            yield _EvaluationSet(len(images), images, "shift")
        if self._spec.corruptions.chosen:
            changes = {"corruptions": self._spec.corruptions}
            suite = self._suite(id_data(run.suite).model_copy(update=changes), run)
            yield from _corruptions(suite)

    def _shift(self, name: str, source: str, classes: tuple[str, ...]) -> ImageSet:
        at = (name, classes)
        if at not in self._shifts:
            self._shifts[at] = load_shift(name, source, classes)
            check_headers(self._shifts[at])
        return self._shifts[at]

    def _suite(self, spec: SuiteSpec, run: _Run) -> Suite:
        at = spec.model_dump_json()
        if at not in self._suites:
            self._suites[at] = load_suite(spec)
        suite = self._suites[at]
        if suite.classes != run.alike.classes:
            raise DataError(
                f"the run {run.id} was trained on the classes {list(run.alike.classes)[:20]}, the "
                f"suite {spec.id!r} has {list(suite.classes)[:20]}",
                hint="A classifier can only be evaluated on the classes that it has.",
            )
        return suite

    def _of_suite(self, suite_id: str, run: _Run) -> Iterator[_EvaluationSet]:
        is_own = suite_id == run.suite.id
        wanted = SuiteSpec(id=suite_id)
        if is_own:  # its parts as the run had them; it was evaluated on the test images already
            wanted = run.suite.model_copy(
                update={"shifts": {}, "corruptions": type(run.suite.corruptions)()}
            )
        suite = self._suite(wanted, run)
        if not is_own:
            test = replace(suite.part("test"), name=suite.name)
            yield _EvaluationSet(len(test), test, "shift")
        for images in suite.shifts.values():
            yield _EvaluationSet(len(images), images, "shift")
        yield from _corruptions(suite)


def _corruptions(suite: Suite) -> Iterator[_EvaluationSet]:
    for images, name, severity in suite.corrupted():
        yield _EvaluationSet(
            len(images), images, "corruption", name, severity, f"{suite.name}/test"
        )


@dataclass
class _Pass:
    """Runs that are evaluated together, and on what."""

    runs: list[_Run]
    sets: list[_EvaluationSet]
    subjects: dict[str, EvaluationSubject] = field(default_factory=dict)

    def work(self, folder: Path, stop: Stop, progress: EvaluationProgress) -> Iterator[Record]:
        """Judge; what a run was evaluated on already is passed over."""
        first, alike = self.runs[0], self.runs[0].alike
        self._load(folder, stop)
        settings = EvaluationSettings(
            spec=alike.evaluation,
            templates=alike.templates,
            batch_size=alike.evaluation.batch_size,
            workers=alike.workers,
            device=first.device,
            precision=alike.precision,
            stop=stop,
        )
        for one in self.sets:
            by_name: dict[str, list[_Run]] = {}
            for run in self.runs:
                name = _free_name(run, one.images)
                if name is None:
                    progress.skip(one.n)
                    told_before = f"The run {run.id} was evaluated on {one.images.name} already."
                    yield LogRecord(message=told_before)
                else:
                    by_name.setdefault(name, []).append(run)
            for name, runs in by_name.items():
                images = one.images
                images = images if images.name == name else replace(images, name=name)
                item = Item(
                    images,
                    alike.class_names,
                    one.role,
                    one.corruption,
                    one.severity,
                    one.source,
                    copies=sum(o.role == one.role and o.source == one.source for o in self.sets)
                    if one.role == "corruption"
                    else 1,
                )
                results = [EvaluationResult() for _ in runs]
                subjects = [self.subjects[run.id] for run in runs]
                yield from evaluate_set(subjects, results, item, settings, progress)
                for run in runs:
                    run.known[name] = images.sha256

    def _load(self, folder: Path, stop: Stop) -> None:
        """The models as subjects: one network whose image towers take turns, if there are more."""
        first, alike = self.runs[0], self.runs[0].alike
        stub = Suite(first.suite.id, alike.classes, alike.class_names, parts={})
        model = lead = load_trained(first.folder, stub, first.device)
        lead.clip.eval()
        turns = TowerSwitcher(lead.clip) if len(self.runs) > 1 else None
        for run in self.runs:
            if stop():
                raise InterruptedRunError("stopped while loading models")
            if run is not first:
                model = load_like(run.folder, lead, (first.id, run.id), stub)
            place = turns.add(model) if turns is not None else lambda: lead.clip
            self.subjects[run.id] = EvaluationSubject(
                PlacedModel(place, model.classifier),
                model.sha256,
                folder / RUNS / run.id,
                f"{RUNS}/{run.id}",
                run.id,
            )


def _free_name(run: _Run, images: ImageSet) -> str | None:
    """What a set is called among those of a run; None where the run was evaluated on it already."""
    if images.sha256 in run.known.values():
        return None
    return images.name if images.name not in run.known else f"{images.name}-{images.sha256[:8]}"


def _models(n: int) -> str:
    return "1 model" if n == 1 else f"{n} models"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)


def _what(spec: EvaluationJobSpec) -> str:
    named = [*spec.suites, *spec.all_shifts, *spec.corruptions.chosen, *spec.unlabelled]
    return _list(named[:20])
