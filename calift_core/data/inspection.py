"""`calift doctor --suite`: whether a suite's data is here, whole and readable, part by part."""

from collections.abc import Iterator

from calift_core.checks import Check
from calift_core.data.counting import few_images
from calift_core.data.sources import decode_all
from calift_core.data.suites import PATH_SUITES, family_of, parse_suite_id
from calift_core.data.suites.base import Published, by_class
from calift_core.data.suites.load import load_suite
from calift_core.errors import CaliftError
from calift_core.schema.suite import SuiteSpec


def examine_suite(text: str, *, published: Published | None = None) -> list[Check]:
    """Check everything that a suite needs on disk.

    Args:
        published: numbers of images that a part may have, by part; the published ones if left out.

    Returns:
        Where the data is looked for, a check for each part, and whether a run can load them. `fail`
        is what is missing, damaged or fewer than published, with what to do.

    Raises:
        SpecError: there is no such suite.
    """
    suite = parse_suite_id(text)
    family = family_of(suite.name)
    parts = list(family.inspect(suite.path, published or {}))
    loads = [] if family.missing(suite.path) else list(_loads(text, suite.name in PATH_SUITES))
    checks = [*parts, *loads]
    wrong = any(check.state == "fail" for check in checks) or not checks
    hint = family.how_to_get if wrong else ""
    where = family.find(suite.path)
    is_there = where is not None and where.exists()
    place = str(where) if is_there else f"there is no {str(where)!r}" if where else "nowhere"
    return [Check("place", "ok" if is_there else "fail", place, hint), *checks]


def _loads(text: str, brought: bool) -> Iterator[Check]:
    """Whether a run can load it; of data that somebody brought, what is odd about it too."""
    try:
        suite = load_suite(SuiteSpec(id=text), fetch=False, check=not brought)
    except CaliftError as error:
        yield Check("loads", "fail", error.message, error.hint)
        return
    sizes = {part: len(images) for part, images in suite.parts.items()}
    shifts = f"; shifts: {', '.join(suite.shifts)}" if suite.shifts else ""
    numbers = ", ".join(f"{part} {n:,}" for part, n in sizes.items())
    yield Check("loads", "ok", f"{len(suite.classes):,} classes; {numbers}{shifts}")
    if not brought:
        return
    few = few_images(suite.classes, by_class(suite.parts, len(suite.classes)), sizes)
    for warning in (*suite.notes, *few):
        yield Check("images", "warn", warning)
    for images in (*suite.parts.values(), *suite.shifts.values()):
        for why in decode_all(images).unreadable.values():
            yield Check("images", "fail", why)
