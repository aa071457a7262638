"""What a run has to do and how long that takes: one count, one pace. Torch-free.

The form, the API and the command ask here, so that they say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from calift_core.data.counting import SuiteCounts, count_suite
from calift_core.data.listing import ScanBudget, corruption_plan, steps_per_epoch
from calift_core.errors import CaliftError
from calift_core.schema.spec import RunSpec, parse_spec
from calift_core.schema.train import ConfidenceSpec
from calift_core.schema.wire.runs import Estimate, Progress

#: TS-P: levels including the clean one, as published; images and bisections that find them.
NOISE_LEVELS, NOISE_IMAGES, NOISE_STEPS = 10, 512, 10
#: Fewer steps of training than this are warned of.
FEW_STEPS = 20
#: Finished runs that a pace is the median of, at most.
PACE_RUNS = 10


@dataclass(frozen=True)
class Pace:
    """How fast a machine is at a kind of run.

    Attributes:
        trained_per_s: images a second in training steps: forward, backward and update.
        predicted_per_s: images a second that a model predicts.
        basis: what the figures are of, as a part of a sentence.
        fixed_s: what a run takes besides, whatever its size: starting and saving.
    """

    trained_per_s: float | None
    predicted_per_s: float | None
    basis: str
    fixed_s: float = 0.0


@dataclass(frozen=True)
class Workload:
    """What a run has to do; None where it cannot be known here.

    Attributes:
        counts: images of the suite by what they are for.
        train_images: images that are trained on, None too where nothing is trained.
        evaluation_images: test, shifts and corruptions, once for each model that is evaluated, and
            far sets once.
        selection_images: ID validation and calibration, once for each model that is evaluated.
        other_images: predicted besides: at the ends of epochs, before the first step, noisy copies.
        training_images: those of them that are predicted while the run trains.
        problems: pointer and sentence of what is here and cannot be used.
        warnings: sentences on what is valid and hardly meant.
    """

    counts: SuiteCounts
    train_images: int | None = None
    steps: int | None = None
    trained: int = 0
    evaluation_images: int | None = None
    selection_images: int | None = None
    other_images: int = 0
    training_images: int = 0
    problems: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Sentences on data that is not here."""
        return [item.message for item in self.counts.absent]

    @property
    def blocking(self) -> list[str]:
        """Of the sentences in `missing`, those on data that no run downloads by itself."""
        return [item.message for item in self.counts.absent if not item.fetched]

    @property
    def predicted(self) -> int | None:
        """Images that are predicted in all; None where some are unknown."""
        if self.evaluation_images is None or self.selection_images is None:
            return None
        return self.evaluation_images + self.selection_images + self.other_images

    def phases(self, pace: Pace) -> dict[str, float] | None:
        """Seconds of each part of a run, in its order; None where a part is unknown."""
        if self.predicted is None:
            return None
        found = {"start and saving": pace.fixed_s}
        for name, images, per_s in (
            ("training", self.trained, pace.trained_per_s),
            ("evaluation", self.predicted, pace.predicted_per_s),
        ):
            if images and not per_s:
                return None
            if images and per_s:
                found[name] = images / per_s
        return found

    def estimate(self, pace: Pace | None = None, **more: Any) -> Estimate:
        """The cost in numbers, with the time if a pace is known."""
        phases = None if pace is None else self.phases(pace)
        trained_per_s = None if pace is None or not self.trained else pace.trained_per_s
        time_basis = "" if pace is None or phases is None else f"; time {pace.basis}"
        return Estimate(
            train_images=self.train_images,
            steps=self.steps,
            evaluation_images=self.evaluation_images,
            selection_images=self.selection_images,
            parts=dict(self.counts.parts),
            shifts=dict(self.counts.shifts),
            ood=dict(self.counts.ood),
            corrupted_images=self.counts.corrupted,
            seconds=None if phases is None else sum(phases.values()),
            phases=phases or {},
            train_seconds_per_1000=1000 / trained_per_s if trained_per_s else None,
            basis=f"images: {self.counts.basis}{time_basis}",
            **more,
        )


def count_images(
    spec: RunSpec, budget: ScanBudget | None = None, counts: SuiteCounts | None = None
) -> Workload:
    """What a run of this spec has to do, without opening an image.

    Args:
        counts: of its suite, where they are known already.
    """
    try:
        counts = counts or count_suite(spec.suite, budget)
    except CaliftError as error:
        return Workload(SuiteCounts(basis="unknown"), problems=(("#/suite/id", str(error)),))
    problems = [(absent.pointer, absent.message) for absent in counts.problems]
    method, train = spec.method, spec.train
    n_validation = counts.parts.get("validation", 0)
    n_train = steps = None
    trained = other = training = 0
    warnings: list[str] = []
    if method.trains and counts.parts:
        part = "pretrain" if method.kind == "pretrain" else "train"
        n_train = counts.parts.get(part, 0)
        if n_train == 0:
            problems.append(("#/suite", f"no images in {part}"))
        per_epoch = steps_per_epoch(n_train, train.batch_size)
        steps = 0 if method.solved_at_once or n_train == 0 else train.epochs * per_epoch
        trained = steps * min(train.batch_size, n_train)
        if method.encodes_first:
            training += n_train + (n_validation if method.solved_at_once else 0)
        if steps and train.spectrum_every_epochs:
            watched = sum(min(train.watch_shifts, n or 0) for n in counts.shifts.values())
            training += (n_validation + watched) * (train.epochs // train.spectrum_every_epochs)
        if 0 < steps < FEW_STEPS:
            warnings.append(_few(steps, n_train, spec))
    if spec.evaluation.perturbed_calibration:
        n = counts.parts.get("calibration", 0)
        searched = min(n, NOISE_IMAGES) * (1 + (NOISE_LEVELS - 1) * NOISE_STEPS)
        other += n * (NOISE_LEVELS - 1) + searched
    if method.keeps_features:
        other += min(train.keep_features, counts.parts.get("train", 0))
    other += 2 * sum(counts.parts.get(part, 0) for part in method.fitted_on)
    other += method.chosen_among * n_validation
    n_models, far = method.evaluated_models, counts.far
    evaluated = None
    if counts.evaluated is not None and far is not None:  # nor on far sets
        evaluated = counts.evaluated * n_models + far
    selection = None
    if counts.selection is not None:  # a path is not measured on the calibration images
        selection = counts.selection + (n_models - 1) * n_validation
    return Workload(
        counts,
        train_images=n_train,
        steps=steps,
        trained=trained,
        evaluation_images=evaluated,
        selection_images=selection,
        other_images=training + other,
        training_images=training,
        problems=tuple(problems),
        warnings=(*warnings, *counts.warnings),
    )


class Forecast:
    """How far a run is over all its phases, from how far it is in one.

    What it should take says how much of the run a phase is; the speed is that of this run, as soon
    as its phase tells how much time is left. A fraction never falls.

    Args:
        seconds: what each phase should take, in order.
        known: whether finished runs tell so; else only the ratios count.
    """

    def __init__(self, seconds: Mapping[str, float], *, known: bool = False) -> None:
        self._seconds, self._order = seconds, list(seconds)
        self._total = sum(seconds.values())
        self._slowness = 1.0 if known else None
        self._fraction = 0.0

    @classmethod
    def of(cls, work: Workload, pace: Pace | None) -> Forecast | None:
        """That of a run; None where it is not known how much there is to do."""
        found = pace if pace is not None and work.phases(pace) else _NOMINAL
        if work.predicted is None:
            return None
        per_s = found.predicted_per_s or 1.0
        training = work.trained / (found.trained_per_s or 1.0) + work.training_images / per_s
        after = (work.predicted - work.training_images) / per_s
        seconds = {"loading": found.fixed_s, "training": training, "evaluating": after}
        return cls(seconds, known=found is pace)

    def over(self, p: Progress) -> Progress:
        """Progress in a phase, with that of the whole run."""
        phase = "training" if p.phase == "pretraining" else p.phase
        at = self._order.index(phase) if phase in self._order else len(self._order)
        before = sum(self._seconds[name] for name in self._order[:at])
        own = self._seconds.get(phase, 0.0)
        share = min(1.0, p.step / p.total_steps) if p.total_steps else 0.0
        if self._total:
            now = (before + share * own) / self._total
            self._fraction = max(self._fraction, min(now, 0.99))  # it is not over while it is saved
        if p.eta_s is not None and own * (1 - share) > 0:
            self._slowness = p.eta_s / (own * (1 - share))
        left = (1 - self._fraction) * self._total
        eta_s = None if self._slowness is None else self._slowness * left
        return p.model_copy(update={"run_fraction": self._fraction, "run_eta_s": eta_s})


#: Of a machine that nothing is known of: a step is a forward pass and a backward one of twice that.
_NOMINAL = Pace(1.0, 3.0, "")


def evaluation_phases(runs: Iterable[tuple[int | None, Pace | None]]) -> dict[str, float] | None:
    """Seconds of each part of a job that evaluates finished runs; None where a part is unknown.

    Args:
        runs: images of each run, and the pace of predicting them.
    """
    fixed, seconds = 0.0, 0.0
    for images, pace in runs:
        work = Workload(SuiteCounts(basis=""), evaluation_images=images, selection_images=0)
        found = None if pace is None else work.phases(pace)
        if found is None:
            return None
        fixed = max(fixed, found["start and saving"])  # one process evaluates them all
        seconds += found.get("evaluation", 0.0)
    return {"start and saving": fixed, "evaluation": seconds}


def _few(steps: int, n_train: int, spec: RunSpec) -> str:
    batch, epochs = spec.train.batch_size, spec.train.epochs
    words = f"{steps} step{'' if steps == 1 else 's'} of training"
    at = f"{n_train:,} images in batches of {batch:,}"
    return (
        f"Only {words} ({at}, {epochs} epoch{'' if epochs == 1 else 's'}): the model will hardly "
        "change. A smaller batch or more epochs give more."
    )


def recorded_pace(
    reports: Iterable[Mapping[str, Any]], spec: RunSpec, work: Workload
) -> Pace | None:
    """The pace that finished runs tell, for a run like them.

    Predicting is as fast as in any run of the same model on the same kind of device; training, as
    in those of the same method with the same options of `train.confidence` and `train.adapt` too.
    Of these the runs of like size count, else the one that is nearest in size: a short run spends
    its time on what a long one hardly notices.

    Args:
        reports: `report.json` of finished runs or the parts `spec`, `environment`, `data` and
            `timings_s` of it, the newest first. `wall_s`, if it is there, is the run's whole time,
            with what its process did not see: being started, and its files being stored.
        spec: the run to be. Where its device is `auto`, that of the newest run like it is taken.
    """
    model = spec.model.model_dump(mode="json")
    alike = [
        r for r in reports if r.get("timings_s") and (r.get("spec") or {}).get("model") == model
    ]
    if spec.train.precision != "auto":
        alike = [r for r in alike if r["environment"].get("precision") == spec.train.precision]
    if not alike:
        return None
    kind = spec.train.device.partition(":")[0]
    if kind == "auto":
        kind = _device(alike[0])
    done = [_Done.of(r) for r in alike if _device(r) == kind]
    known = [one for one in done if one is not None]
    predicted = _of_like_size(known, lambda one: one.predicted, work.predicted)
    same = [one for one in known if one.trained_per_s and _trains_as(one.report, spec)]
    trained = _of_like_size(same, lambda one: one.trained, work.trained)
    if not predicted:
        return None
    chosen = trained if spec.method.trains else predicted
    of = f"{spec.model.name} with {spec.method.kind}" if spec.method.trains else spec.model.name
    n = len(chosen)
    runs = f"of {n} finished runs" if n > 1 else "of a finished run"
    basis = f"at the {'median ' if n > 1 else ''}pace {runs} of {of} on {kind}"
    size = "trained" if spec.method.trains else "predicted"
    return Pace(
        median(one.trained_per_s or 0.0 for one in trained) if trained else None,
        median(one.predicted_per_s for one in predicted),
        basis + _unlike([getattr(one, size) for one in chosen], getattr(work, size)),
        fixed_s=median(one.fixed_s for one in trained or predicted),
    )


#: Runs up to so many times larger or smaller are of like size.
_LIKE_SIZE = 4.0


@dataclass(frozen=True)
class _Done:
    """What a finished run did, and how long each part of it took."""

    report: Mapping[str, Any]
    trained: int
    predicted: int
    trained_per_s: float | None
    predicted_per_s: float
    fixed_s: float

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> _Done | None:
        """Read a report; None where it does not say what was done."""
        try:
            spec = parse_spec(report["spec"])
            data, took = report["data"], report["timings_s"]
            plan = corruption_plan(spec.suite.corruptions, ())
            test = int(data["parts"]["test"])
            counts = SuiteCounts(
                data["parts"], data["shifts"], data.get("ood", {}), corruptions=len(plan),
                per_corruption=min(test, spec.suite.corruptions.limit or test) if plan else 0,
            )  # fmt: skip
            whole_s = max(took["total_s"], report.get("wall_s") or 0.0)
        except (CaliftError, KeyError, TypeError):
            return None  # imported, or of another version
        work = count_images(spec, counts=counts)
        training_s = took.get("training_s", 0.0)
        evaluation_duration_s = sum(
            took.get(part, 0.0) for part in ("merging_s", "evaluation_s", "training_features_s")
        )
        after = (work.predicted or 0) - work.training_images
        if not after or evaluation_duration_s <= 0:
            return None
        predicted_per_s = after / evaluation_duration_s
        # What was predicted at the ends of epochs is no training, and a toy's steps take some time.
        steps_s = max(training_s - work.training_images / predicted_per_s, 0.1 * training_s)
        if not work.trained:
            steps_s = 0.0
        return cls(
            report,
            work.trained,
            work.predicted or 0,
            work.trained / steps_s if steps_s else None,
            predicted_per_s,
            max(0.0, whole_s - steps_s - (work.predicted or 0) / predicted_per_s),
        )


def _of_like_size(
    runs: Sequence[_Done], size: Callable[[_Done], int], n_images: int | None
) -> list[_Done]:
    """The newest runs of like size, at most `PACE_RUNS`; where there is none, the nearest in size.

    Where it is not known how much there is to do, any of them.
    """
    if not n_images:
        return list(runs[:PACE_RUNS])
    known = [run for run in runs if size(run)]

    def factor(run: _Done) -> float:
        return max(size(run) / n_images, n_images / size(run))

    alike = [run for run in known if factor(run) <= _LIKE_SIZE]
    return alike[:PACE_RUNS] or sorted(known, key=factor)[:1]


def _unlike(sizes: Sequence[int], n_images: int | None) -> str:
    """How much smaller or larger the only runs are, where they are not of like size."""
    size = median(sizes) if sizes else 0
    if not n_images or not size or max(size / n_images, n_images / size) <= _LIKE_SIZE:
        return ""
    times, word = (n_images / size, "smaller") if size < n_images else (size / n_images, "larger")
    return f", the nearest in size and still {times:,.0f} times {word}"


def _device(report: Mapping[str, Any]) -> str:
    return str(report["environment"].get("device", "")).partition(":")[0]


def _trains_as(report: Mapping[str, Any], spec: RunSpec) -> bool:
    theirs = report["spec"]
    options = ConfidenceSpec.model_validate(theirs.get("train", {}).get("confidence") or {})
    return (
        theirs.get("method", {}).get("kind") == spec.method.kind
        and options.active() == spec.train.confidence.active()
        and theirs.get("train", {}).get("adapt", "full") == spec.train.adapt
    )
