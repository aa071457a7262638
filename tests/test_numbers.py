"""`docs/numbers.md` says of every page what makes its numbers, and what it names is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LEDGER = DOCS / "numbers.md"
TEXT = LEDGER.read_text(encoding="utf-8")
KINDS = {"test", "benchmark", "record", "by hand", "once"}
#: Its rows name files in place of headings.
ELSEWHERE = "Elsewhere"

_SPAN = re.compile(r"`([^`\n]+)`")
_FILE = re.compile(
    r"(?:calift|calift_core|backend|worker|frontend|tests|benchmarks|docs|examples|deploy)/[\w./-]+"
)


@dataclass(frozen=True)
class Row:
    """A claim: under which heading it stands, what makes it, which kind of evidence that is."""

    page: str
    claim: str
    where: str
    made_by: str
    kind: str


def rows(text: str) -> Iterator[Row]:
    """Every row of a ledger's tables below the headings of its pages.

    Raises:
        ValueError: a row without exactly four cells.
    """
    for section in text.split("\n## ")[1:]:
        page, _, body = section.partition("\n")
        for line in body.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not line.startswith("|") or cells[0] in ("claim", "---"):
                continue
            if len(cells) != 4:
                raise ValueError(f"{page}: expected 4 cells, got {len(cells)}: {line}")
            yield Row(page, *cells)


def file_of(page: str) -> Path:
    """A page by its name in the ledger: of `docs/`, else of the root."""
    return DOCS / page if (DOCS / page).is_file() else ROOT / page


ROWS = list(rows(TEXT))
PAGES = sorted({row.page for row in ROWS} - {ELSEWHERE})


def test_ledger__every_row_has_a_claim_a_maker_and_a_known_kind() -> None:
    assert len(ROWS) > 80
    assert {row.kind for row in ROWS} == KINDS
    assert [row for row in ROWS if not (row.claim and row.where)] == []
    assert [row for row in ROWS if row.kind != "once" and row.made_by in ("", "–")] == []


def test_ledger__every_file_that_it_names_exists() -> None:
    named = {m[0].rstrip(".") for m in _FILE.finditer(TEXT)}
    assert len(named) > 60
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_ledger__every_test_and_option_that_it_names_is_in_its_file() -> None:
    for row in ROWS:
        words = [span for span in _SPAN.findall(row.made_by) if span.startswith("test_")]
        source = "".join((ROOT / m[0]).read_text() for m in _FILE.finditer(row.made_by) if words)
        assert [name for name in words if f"def {name}(" not in source] == [], row
        for span in _SPAN.findall(row.made_by):
            script = re.match(r"python (benchmarks/\w+\.py)(.*)", span)
            if script:
                text = (ROOT / script[1]).read_text(encoding="utf-8")
                options = re.findall(r"--[\w-]+", script[2])
                assert [name for name in options if f'"{name}"' not in text] == [], row


def test_ledger__every_page_has_a_section_or_is_said_to_need_none() -> None:
    _, _, rest = TEXT.partition("Without a measured number: ")
    free = {span.removeprefix("docs/") for span in _SPAN.findall(rest.partition("\n")[0])}
    every = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    every = {name for name in every if not name.startswith("python/")} - {LEDGER.name}
    every |= {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    assert set(PAGES) | (free - {"python/"}) == every
    assert set(PAGES) & free == set()


@pytest.mark.parametrize("page", PAGES)
def test_ledger__what_stands_under_a_heading_has_that_heading(page: str) -> None:
    text = file_of(page).read_text(encoding="utf-8")
    headings = set(re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    assert {row.where for row in ROWS if row.page == page} - headings == set()


@pytest.mark.parametrize("page", PAGES)
def test_ledger__what_was_measured_once_is_said_on_the_page_as_often(page: str) -> None:
    text = file_of(page).read_text(encoding="utf-8")
    said = re.findall(r"measured once|\(no script\)", text, re.IGNORECASE)
    if page == "CHANGELOG.md":  # it tells of this ledger, too
        said = re.findall(r"\(measured once\)", text)
    assert len(said) == sum(row.kind == "once" for row in ROWS if row.page == page)


def test_rows__one_that_lost_a_cell_is_refused() -> None:
    table = "\n## x.md\n\n| claim | where | made by | kind |\n|---|---|---|---|\n| a | b | c |"
    with pytest.raises(ValueError, match=r"x\.md: expected 4 cells, got 3"):
        list(rows(table))


def test_readme__the_errors_in_its_picture_are_those_of_the_records() -> None:
    """The demo's runs are the study's at 3e-4 and seed 0."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    words = r"error is ([\d.]+) points for zero-shot, ([\d.]+) .*? and ([\d.]+)"
    (said,) = re.findall(words, readme)
    folder = ROOT / "benchmarks" / "records" / "typefaces"
    files = ("zero-shot", "flyp-0.0003-0", "carot-0.0003-0")
    made = [json.loads((folder / f"{name}.json").read_text()) for name in files]
    assert list(said) == [f"{100 * one['numbers']['raw']['display']['ece']:.1f}" for one in made]
