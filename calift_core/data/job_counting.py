"""What an evaluation job has to evaluate, and what it lacks; no image is opened. Torch-free.

The counts come from the same rooms as those of a run (`calift_core.data.counting`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calift_core.data.counting import SuiteCounts, count_suite
from calift_core.data.listing import ScanBudget, TooManyFilesError, images_below
from calift_core.data.manifest import read_manifest
from calift_core.data.suites import id_data, shift_images
from calift_core.errors import CaliftError, DataError, reason_of
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.suite import SuiteSpec

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
