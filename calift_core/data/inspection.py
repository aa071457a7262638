"""`calift doctor --suite`: whether a suite's data is here, whole and readable, part by part."""

from __future__ import annotations

from calift_core.checks import Check
from calift_core.data.suites import family_of, parse_suite_id
from calift_core.data.suites.base import Published
from calift_core.data.suites.load import load_suite
from calift_core.errors import CaliftError
from calift_core.schema.spec import SuiteSpec


def examine_suite(text: str, *, published: Published | None = None) -> list[Check]:
    """Check everything that a suite needs on disk.

    Args:
        text: the suite as a RunSpec names it.
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
    loads = None if family.missing(suite.path) else _loads(text)
    checks = [*parts, *([loads] if loads else [])]
    wrong = any(check.state == "fail" for check in checks) or not checks
    hint = family.how_to_get if wrong else ""
    where = family.find(suite.path)
    is_there = where is not None and where.exists()
    place = str(where) if is_there else f"there is no {str(where)!r}" if where else "nowhere"
    return [Check("place", "ok" if is_there else "fail", place, hint), *checks]


def _loads(text: str) -> Check:
    try:
        suite = load_suite(SuiteSpec(id=text))
        sizes = {part: len(images) for part, images in suite.parts.items()}
    except CaliftError as error:
        return Check("loads", "fail", error.message, error.hint)
    shifts = f"; shifts: {', '.join(suite.shifts)}" if suite.shifts else ""
    numbers = ", ".join(f"{part} {n:,}" for part, n in sizes.items())
    return Check("loads", "ok", f"{len(suite.classes):,} classes; {numbers}{shifts}")
