"""How many images a suite or an evaluation job has of each kind: none is opened. Torch-free.

The counts are those of `load_suite`, image by image, wherever the data can be looked at; else they
follow from the published sizes, and say so.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calift_core.data.listing import ScanBudget, TooManyFilesError, corruption_plan, images_below
from calift_core.data.manifest import read_manifest
from calift_core.data.suites import (
    OFF,
    far_images,
    id_data,
    named_suite,
    require_no_shift,
    shift_images,
)
from calift_core.data.suites.base import SuiteFamily, SuiteRequest, SuiteSizes
from calift_core.data.suites.huggingface import hub_name_of
from calift_core.errors import CaliftError, DataError, DataUnavailableError, SpecError, reason_of
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.suite import SuiteSpec

#: Fewer images than these of a class or a part are warned of.
LEAST_IMAGES = 10
#: Classes that a sentence names.
_NAMED = 20


@dataclass(frozen=True)
class MissingData:
    """Something that a suite needs and that this machine lacks.

    Attributes:
        pointer: to the field of the spec that names it.
        fetched: whether a run tries to get it by itself, over a network.
    """

    pointer: str
    message: str
    fetched: bool = False


@dataclass(frozen=True)
class SuiteCounts:
    """Images by what they are for, after the spec's splits and limits.

    Attributes:
        parts: part → images; empty when nothing is known.
        shifts: shift → images, None where unknown.
        ood: far set → images, None where unknown.
        corruptions: (name, severity) pairs that the test images are evaluated under.
        warnings: sentences on what was left out, and on classes and parts of few images.
        absent: what is not here; the numbers then are the published ones.
        classes: those of the ID data, where they are known.
    """

    parts: Mapping[str, int] = field(default_factory=dict)
    shifts: Mapping[str, int | None] = field(default_factory=dict)
    ood: Mapping[str, int | None] = field(default_factory=dict)
    corruptions: int = 0
    per_corruption: int = 0
    basis: str = ""
    warnings: tuple[str, ...] = ()
    absent: tuple[MissingData, ...] = ()
    problems: tuple[MissingData, ...] = ()
    classes: tuple[str, ...] | None = None

    @property
    def corrupted(self) -> int:
        """Images under corruptions, all of them together."""
        return self.corruptions * self.per_corruption

    @property
    def evaluated(self) -> int | None:
        """Images that a finished model is evaluated on: test, shifts and corruptions."""
        known = [n for n in self.shifts.values() if n is not None]
        if "test" not in self.parts or len(known) < len(self.shifts):
            return None
        return self.parts["test"] + sum(known) + self.corrupted

    @property
    def far(self) -> int | None:
        """Images of far sets, which a finished model predicts and is not measured on."""
        known = [n for n in self.ood.values() if n is not None]
        return None if len(known) < len(self.ood) else sum(known)

    @property
    def selection(self) -> int | None:
        """ID images that settings are chosen and calibrators fitted on; they are predicted too."""
        if not self.parts:
            return None
        return self.parts.get("validation", 0) + self.parts.get("calibration", 0)


def count_suite(
    spec: SuiteSpec,
    budget: ScanBudget | None = None,
    *,
    count: Callable[[SuiteFamily, SuiteRequest], SuiteSizes] | None = None,
) -> SuiteCounts:
    """Count a suite's images.

    Args:
        budget: how much of the disk may be looked at; larger suites have their published sizes.
        look: counts what is there, for those who list it anyway; default: the family does.

    Raises:
        SpecError: no suite, domain or shift has this name.
    """
    budget = budget or ScanBudget()
    family, request = named_suite(spec, budget)
    absent: list[MissingData] = []
    problems: list[MissingData] = []
    basis = "counted on this machine"
    found: SuiteSizes | None
    try:
        found = count(family, request) if count is not None else family.count(request)
    except DataUnavailableError as error:
        usual = request.path is None or hub_name_of(spec.id) is not None
        fetched = usual and family.fetchable(request.path) == family.name
        absent.append(MissingData("#/suite/id", str(error), fetched))
        found = family.published(request)
        basis = "published sizes, as the data is not here"
    except TooManyFilesError as error:
        found = family.published(request)
        basis = f"published sizes: there are {error.message}"
    except DataError as error:
        problems.append(MissingData("#/suite/id", str(error)))
        found = None
    if found is None:
        basis = basis.replace("published sizes", "unknown") if not problems else "unknown"
        return SuiteCounts(basis=basis, absent=tuple(absent), problems=tuple(problems))
    limits = {str(part): n for part, n in spec.limits.items()}
    sizes = dict(found.parts)
    if "train" in sizes:
        sizes["train"] = found.training(spec.n_shot, len(family.classes) or None)
    parts = {part: min(n, limits.get(part, n)) for part, n in sizes.items()}
    shifts: dict[str, int | None] = dict(found.shifts)
    ood: dict[str, int | None] = {}
    left_out = tuple(found.notes)
    named = [(f"shifts/{n}", "shift", n, uri) for n, uri in spec.shifts.items() if uri != OFF]
    named += [(f"ood/{n}", "far set", n, uri) for n, uri in spec.ood.items()]
    for place, what, name, uri in named:
        pointer, sizes_of = f"#/suite/{place}", shifts if what == "shift" else ood
        try:
            if what == "shift":
                images = shift_images(name, uri, found.classes, budget)
            else:
                require_no_shift(name, shifts, spec.id)
                images = far_images(name, uri, budget)
            sizes_of[name], left_out = len(images), (*left_out, *images.notes)
            continue
        except DataUnavailableError as error:
            fetched = hub_name_of(uri) is not None
            absent.append(MissingData(pointer, f"the {what} {name!r}: {error}", fetched))
        except TooManyFilesError as error:
            basis += f"; the {what} {name!r} is unknown: there are {error.message}"
        except (DataError, SpecError) as error:
            problems.append(MissingData(pointer, str(error)))
        sizes_of[name] = None
    try:
        plan = corruption_plan(spec.corruptions, found.stored)
    except DataUnavailableError as error:
        absent.append(MissingData("#/suite/corruptions", str(error)))
        plan = tuple((n, s) for n in spec.corruptions.chosen for s in spec.corruptions.severities)
    test = parts.get("test", 0)
    return SuiteCounts(
        parts,
        shifts,
        ood,
        corruptions=len(plan),
        per_corruption=min(test, spec.corruptions.limit or test) if plan else 0,
        basis=basis,
        warnings=(*left_out, *few_images(found.classes, found.by_class, parts)),
        absent=tuple(absent),
        problems=tuple(problems),
        classes=found.classes,
    )


def few_images(
    classes: Sequence[str] | None,
    by_class: Mapping[str, Sequence[int]] | None,
    sizes: Mapping[str, int],
) -> tuple[str, ...]:
    """Sentences on parts and classes that have too few images for what is made of them.

    Args:
        by_class: part → images of each class, where that is known.
    """
    found = [
        f"The part {part} has {n:,} image{'' if n == 1 else 's'}, fewer than {LEAST_IMAGES}: what "
        "is fitted or measured on it means little."
        for part, n in sizes.items()
        if part != "pretrain" and n < LEAST_IMAGES
    ]
    if classes is None or by_class is None:
        return tuple(found)
    own = [by_class[part] for part in by_class if part != "pretrain"]
    totals = [sum(counts) for counts in zip(*own, strict=True)]
    few = [f"{c} ({n})" for c, n in zip(classes, totals, strict=True) if n < LEAST_IMAGES]
    if few:
        found.append(f"{_classes(few)} fewer than {LEAST_IMAGES} images: {_listed(few)}.")
    for part in ("train", "test"):
        none = [c for c, n in zip(classes, by_class.get(part, ()), strict=False) if n == 0]
        if none:
            found.append(f"{_classes(none)} no image in the part {part}: {_listed(none)}.")
    return tuple(found)


def _classes(names: Sequence[str]) -> str:
    return "1 class has" if len(names) == 1 else f"{len(names):,} classes have"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


# ---- Evaluation jobs ---------------------------------------------------------------------------

#: What a path raises that no file system can have, or that may not be read.
_NO_PATH = (OSError, RuntimeError, ValueError)


def _sentence(error: Exception, source: str) -> str:
    if isinstance(error, CaliftError):
        return str(error)
    return f"{source[:200]!r} cannot be looked at: {reason_of(error)}"


@dataclass(frozen=True)
class EvaluableRun:
    """A finished run that can be evaluated.

    Attributes:
        suite: the data that it was trained and evaluated on.
    """

    id: str
    suite: SuiteSpec
    classes: tuple[str, ...]


@dataclass
class JobCounts:
    """What there is to evaluate, an image counted once for each model.

    Attributes:
        images: of all runs together; None where some cannot be counted here.
        shifts: shift or suite → images, None where unknown; of the first run.
        by_run: images of each run; None where some cannot be counted here.
        problems: pointer and sentence of what stands in the way.
        missing: sentences on data that the worker fetches by itself.
        notes: sentences on what could not be counted.
    """

    images: int | None = 0
    shifts: dict[str, int | None] = field(default_factory=dict)
    corrupted: int = 0
    by_run: dict[str, int | None] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def count_job(
    spec: EvaluationJobSpec, runs: Sequence[EvaluableRun], budget: ScanBudget | None = None
) -> JobCounts:
    """Count what a job has to evaluate."""
    counter = _Counter(spec, budget or ScanBudget())
    counts = counter.counts
    for run in runs:
        found = list(counter.sets(run))
        for name, n in found:
            counts.shifts.setdefault(name, n)
        corrupted = counter.corrupted(run)
        known = [n for _, n in found if n is not None]
        if len(known) < len(found) or counts.images is None or corrupted is None:
            counts.images = counts.by_run[run.id] = None
            continue
        counts.corrupted += corrupted
        counts.by_run[run.id] = sum(known) + corrupted
        counts.images += sum(known) + corrupted
    return counts


class _Counter:
    """Looks at each suite and folder once for all runs that see it alike."""

    def __init__(self, spec: EvaluationJobSpec, budget: ScanBudget) -> None:
        self.spec, self.budget, self.counts = spec, budget, JobCounts()
        self._shifts: dict[tuple[str, tuple[str, ...]], int | None] = {}
        self._suites: dict[tuple[str, str], SuiteCounts | None] = {}

    def sets(self, run: EvaluableRun) -> Iterator[tuple[str, int | None]]:
        """Name and images of suites and shifts."""
        for index, suite_id in enumerate(self.spec.suites):
            yield suite_id, self._suite_images(f"#/suites/{index}", suite_id, run)
        places = {f"#/shifts/{name}": (name, uri) for name, uri in self.spec.shifts.items()}
        names = {uri: name for name, uri in self.spec.all_shifts.items()}
        for index, uri in enumerate(self.spec.unlabelled):
            yield uri, self._unlabelled_images(f"#/unlabelled/{index}", uri)
        for index, uri in enumerate(self.spec.folders):
            if names[uri] not in self.spec.shifts:
                places[f"#/folders/{index}"] = (names[uri], uri)
        for place, (name, uri) in places.items():
            at = (name, run.classes)
            if at not in self._shifts:
                self._shifts[at] = self._shift_images(place, name, uri, run.classes)
            yield name, self._shifts[at]

    def corrupted(self, run: EvaluableRun) -> int | None:
        """Images under the corruptions that are named."""
        if not self.spec.corruptions.chosen:
            return 0
        changes = {"corruptions": self.spec.corruptions}
        counts = self._suite("#/corruptions", id_data(run.suite).model_copy(update=changes), run)
        return counts.corrupted if counts is not None and counts.parts else None

    def _shift_images(
        self, place: str, name: str, uri: str, classes: tuple[str, ...]
    ) -> int | None:
        try:
            images = shift_images(name, uri, classes, self.budget)
        except TooManyFilesError as error:
            self.counts.notes.append(f"the shift {name!r} is unknown: there are {error.message}")
        except (CaliftError, *_NO_PATH) as error:
            self.counts.problems.append((place, _sentence(error, uri)))
        else:
            self.counts.notes += images.notes
            return len(images)
        return None

    def _unlabelled_images(self, place: str, uri: str) -> int | None:
        kind, _, path = uri.partition(":")
        try:
            if kind == "manifest":
                return len(read_manifest(Path(path)).paths)
            if not Path(path).is_dir():
                raise DataError(f"{path!r} must be a folder of images, none is there.")
            if n := len(images_below(Path(path), self.budget)):
                return n
            raise DataError(f"there must be at least one image below {path!r}, there is none.")
        except TooManyFilesError as error:
            self.counts.notes.append(f"{uri} is unknown: there are {error.message}")
        except (CaliftError, *_NO_PATH) as error:
            self.counts.problems.append((place, _sentence(error, uri)))
        return None

    def _suite_images(self, place: str, suite_id: str, run: EvaluableRun) -> int | None:
        counts = self._suite(place, SuiteSpec(id=suite_id), run)
        if counts is None or counts.evaluated is None:
            return None
        is_own = suite_id == run.suite.id  # whose test images the run was evaluated on
        return counts.evaluated - (counts.parts["test"] if is_own else 0)

    def _suite(self, place: str, spec: SuiteSpec, run: EvaluableRun) -> SuiteCounts | None:
        at = (place, spec.model_dump_json())
        if at not in self._suites:
            self._suites[at] = self._count(place, spec)
        counts = self._suites[at]
        if counts is not None and counts.classes not in (None, run.classes):
            mine, theirs = list(run.classes)[:20], list(counts.classes or ())[:20]
            self.counts.problems.append(
                (
                    place,
                    f"the run {run.id} was trained on the classes {mine}, the suite {spec.id!r} "
                    f"has {theirs}; a classifier can only be evaluated on the classes that it has",
                )
            )
            return None
        return counts

    def _count(self, place: str, spec: SuiteSpec) -> SuiteCounts | None:
        try:
            counts = count_suite(spec, self.budget)
        except (CaliftError, *_NO_PATH) as error:
            self.counts.problems.append((place, _sentence(error, spec.id)))
            return None
        for absent in (*counts.absent, *counts.problems):
            if absent.fetched:
                self.counts.missing.append(absent.message)
            else:
                self.counts.problems.append((place, absent.message))
        if counts.basis != "counted on this machine":
            self.counts.notes.append(f"{spec.id}: {counts.basis}")
        self.counts.notes += [f"{spec.id}: {warning}" for warning in counts.warnings]
        return counts
