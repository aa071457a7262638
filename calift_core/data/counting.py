"""How many images a suite gives to each part, shift and corruption: none is opened. Torch-free.

The counts are those of `load_suite`, image by image, wherever the data can be looked at; else they
follow from the published sizes, and say so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from calift_core.data.listing import ScanBudget, TooManyFilesError, corruption_plan
from calift_core.data.suites import OFF, far_images, named_suite, require_no_shift, shift_images
from calift_core.data.suites.base import SuiteFamily, SuiteRequest, SuiteSizes
from calift_core.data.suites.huggingface import hub_name_of
from calift_core.errors import DataError, DataUnavailableError, SpecError
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
