"""The second study: what it runs, what a record keeps, and how two rows are told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calift_core.calibration import SampleScores, score_probs
from calift_core.data.suites.load import load_suite
from calift_core.schema.suite import SuiteSpec
from calift_core.sweeps.verdict import Contender, ScoredRun, ScoredSet
from research import make_suites
from research.second import figures, page, study, tables

BENCH = study.BENCHES["typefaces"]


def test_cells__each_is_another_run_and_a_path_comes_after_what_it_starts_from(
    tmp_path: Path,
) -> None:
    every = list(study.cells(BENCH))
    names = [cell.name for cell in every]
    assert len(set(names)) == len(names)
    hashes = [cell.spec(tmp_path).content_hash() for cell in every]
    assert len(set(hashes)) == len(hashes)
    for at, cell in enumerate(every):
        for before in cell.inputs:
            assert names.index(before.name) < at
            assert cell.spec(tmp_path).method.run == str(before.folder(tmp_path).absolute())
    # The first seed of everything stands before the second.
    seeds = [cell.seed for cell in every]
    assert seeds == sorted(seeds)


def keep(records: Path, cell: study.Cell, val_nll: float) -> None:
    """A record that says no more than what ID validation showed."""
    kept = {"row": cell.label, "lr": cell.lr, "seed": cell.seed, "roles": {"v": "validation"}}
    cell.record(records).parent.mkdir(parents=True, exist_ok=True)
    study.write_record(
        cell.record(records), kept | {"numbers": {"temperature": {"v": {"nll": val_nll}}}}
    )


def test_later__tries_beyond_an_end_that_was_best_and_then_merges_at_the_best_of_all(
    tmp_path: Path,
) -> None:
    assert list(study.later(BENCH, tmp_path)) == []
    for seed in study.SEEDS:
        for lr in study.LADDER:
            keep(tmp_path, study.Cell(BENCH, "FLYP", lr, seed), 0.3 + lr)
            keep(tmp_path, study.Cell(BENCH, "FT", lr, seed), 0.3 + abs(lr - 1e-4))
    todo = list(study.later(BENCH, tmp_path))
    assert {cell.label for cell in todo} == {"FLYP", "FLYP, path"}  # FT was best in the middle
    assert {cell.lr for cell in todo} == {1e-5}
    for cell in todo:
        keep(tmp_path, cell, 0.2)
    merged = [cell for cell in study.later(BENCH, tmp_path) if cell not in todo]
    assert [cell.label for cell in merged] == [*study.MERGED] * len(study.SEEDS)
    assert {run.lr for cell in merged for run in cell.inputs} == {1e-5}
    for cell in merged:
        method = cell.spec(tmp_path).method
        assert method.input_runs == tuple(str(run.folder(tmp_path)) for run in cell.inputs)
        assert len(set(method.input_runs)) == (2 if cell.label == "Model Stock" else 1)


def test_begin__runs_of_another_pretraining_are_refused_and_may_have_records_of_their_own(
    tmp_path: Path,
) -> None:
    cell, out = study.Cell(BENCH, "zero-shot"), tmp_path / "out"
    report = cell.folder(out) / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps({"model": {"start_sha256": "b" * 64}}))
    cell.record(tmp_path).parent.mkdir(parents=True)
    study.write_record(cell.record(tmp_path), {"start_sha256": "b" * 64})
    study.begin(BENCH, out, tmp_path)
    study.write_record(cell.record(tmp_path), {"start_sha256": "a" * 64})
    with pytest.raises(SystemExit, match=r"is b{12}, and the runs in .* begin with a{12}.*records"):
        study.begin(BENCH, out, tmp_path)


def some_run(row: str, nll: float, *, accuracy: float = 0.5) -> dict[str, Any]:
    """A record with what the tables of the results page are made of."""
    at = {"accuracy": accuracy, "nll": nll, "squared": 0.01, "ece": nll / 10}
    kinds = ("raw", "temperature", "disagreement", *study.PUBLISHED)
    return {
        "row": row,
        "lr": None if row == "zero-shot" else 1e-4,
        "seed": 0,
        "published": "temperature",
        "roles": {"v": "validation", "t": "id", "s": "shift"},
        "parameters": {"temperature": {"temperature": 1.0}},
        "numbers": {kind: {name: at for name in "vts"} for kind in kinds},
    }


def test_page__what_begins_with_a_second_pretraining_is_marked_and_compared_with_its_own() -> None:
    first = {"cifar10": [some_run("zero-shot", 1.0), some_run("FLYP", 2.0)]}
    second = {"cifar10": [some_run("zero-shot", 1.5), some_run("FLYP", 2.5), some_run("FT", 2.25)]}
    lines = page.own(first, second, page.measured("nll", 1, 2))
    said = {row[0]: row[1].split(",")[0] for row in map(page.cells_of, lines[2:])}
    assert said == {
        "zero-shot": "1.00", "zero-shot ²": "1.50", "FLYP": "2.00", "FLYP ²": "2.50", "FT": "2.25",
    }  # fmt: skip
    marked = [row for row in map(page.cells_of, lines[2:]) if row[1].endswith(" ²")]
    assert {row[0] for row in marked} == {"zero-shot ²", "FLYP ²", "FT"}
    gained = page.beside(first, tables.under_confidence, "row", lambda row: row[2], second)
    # 0.225 of ECE less 0.25, and not less the first start's 0.2.
    assert [page.cells_of(line) for line in gained[2:]] == [["FT", "-2.5 ²"]]


def test_caltech__every_class_is_in_every_part_and_neighbours_are_in_one(tmp_path: Path) -> None:
    for name, n in (("anchor", 31), ("wild_cat", 60)):
        (tmp_path / name).mkdir()
        for i in range(1, n + 1):
            colour = (i, 90, 200 if name == "anchor" else 20)
            Image.new("RGB", (8, 8), colour).save(tmp_path / name / f"image_{i:04d}.jpg")
    classes, parts = make_suites.caltech(tmp_path)
    assert sum(map(len, parts.values())) == 91
    home: dict[tuple[str, int], set[str]] = {}
    for part, images in parts.items():
        assert set(images.labels.tolist()) == {0, 1}
        for name in images.ids:
            label, file = name.split("/")
            block = int(file[6:10]) // make_suites.BLOCK
            home.setdefault((label, block), set()).add(part)
    assert all(len(where) == 1 for where in home.values())

    make_suites.draw(classes, parts, tmp_path / "drawn")
    manifest = f"manifest:{tmp_path / 'drawn' / 'suite.csv'}"
    suite = load_suite(SuiteSpec(id=manifest, templates="plain"))
    assert set(suite.shifts) == set(make_suites.SHIFTS)
    assert set(suite.parts) == {"train", "validation", "calibration", "test"}
    of = {name: {i.rpartition("/")[2] for i in images.ids} for name, images in suite.shifts.items()}
    assert all(names == {i.rpartition("/")[2] for i in suite.part("test").ids}
               for names in of.values())  # fmt: skip


def test_write_record__is_json_with_a_line_for_each_calibrator(tmp_path: Path) -> None:
    record = {"row": "FLYP", "numbers": {"raw": {"a": {"nll": 0.5}}, "sms": {"a": {"nll": 0.25}}}}
    study.write_record(tmp_path / "r.json", record)
    assert json.loads((tmp_path / "r.json").read_text()) == record
    assert len((tmp_path / "r.json").read_text().splitlines()) == 7
    study.write_record(tmp_path / "d.json", {"row": "FLYP", "diverged": "not finite"})
    assert json.loads((tmp_path / "d.json").read_text())["diverged"] == "not finite"


N = 400


def scores(confidence: float, accuracy: float, seed: int) -> SampleScores:
    """A model of two classes that is right at a rate and sure at another."""
    rng = np.random.default_rng(seed)
    sure = np.clip(rng.normal(confidence, 0.02, N), 0.51, 0.99)
    right = np.arange(N) < round(accuracy * N)
    return score_probs(np.stack([sure, 1 - sure], axis=1), np.where(right, 0, 1))


def contender(label: str, *, ood_confidence: float, rises: bool = True) -> Contender:
    """Two rates, ID accuracy rising or not; under shift 70 % right, as sure as it is told."""
    units = np.array([f"image {i}" for i in range(N)])

    def run(lr: float, seed: int) -> ScoredRun:
        made: dict[str, Any] = {
            "test": ("id", scores(0.85, 0.8 if rises == (lr < 1e-3) else 0.85, seed)),
            "serif": ("shift", scores(ood_confidence, 0.7, seed)),
        }
        sets = {
            name: ScoredSet(name, role, 0.0, 0.0, lambda s=s: (units, s))
            for name, (role, s) in made.items()
        }
        return ScoredRun(f"{label} {lr} {seed}", seed, sets)

    ladder = {lr: [run(lr, seed) for seed in study.SEEDS] for lr in (3e-4, 1e-3)}
    return Contender(label, "flyp", 1e-3, "", ladder[1e-3], ladder)


@pytest.mark.parametrize(("ours", "word"), [(0.7, "better"), (0.9, "unresolved"), (0.98, "worse")])
def test_pair__says_better_worse_or_unresolved_as_the_protocol_does(ours: float, word: str) -> None:
    rival = contender("rival", ood_confidence=0.9)
    said, why = tables.pair(contender("ours", ood_confidence=ours), rival)
    assert said == word, why
    assert "ID accuracy" in why


def test_pair__that_shares_no_id_accuracy_is_read_at_own_rates() -> None:
    falls = contender("ours", ood_confidence=0.7, rises=False)
    rival = contender("rival", ood_confidence=0.9)
    said, why = tables.pair(falls, rival)  # ours is at 80 % ID accuracy, the rival at 85 %
    assert said == "unresolved", why
    assert why.startswith("at own rates, 80.0 and 85.0 % ID accuracy")


def test_figures__are_of_the_records_and_the_same_records_give_the_same_bytes(
    tmp_path: Path,
) -> None:
    suite = figures.Suite("typefaces", study.RECORDS)
    for name in figures.PICTURES:
        drawn = figures.draw(name, [suite], tmp_path)
        first = drawn.read_bytes()
        assert suite.name.encode() in first
        assert figures.draw(name, [suite], tmp_path).read_bytes() == first


def test_figures__without_a_record_say_where_they_looked(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no suite has a trained row's record"):
        figures.main(["--records", str(tmp_path), "--write", str(tmp_path)])


PAGES = Path(study.__file__).parent / "pages"


def test_pages__are_what_the_records_say() -> None:
    suites = {name: tables.load(study.RECORDS, bench) for name, bench in study.BENCHES.items()}
    suites = {name: some for name, some in suites.items() if some}
    text = (PAGES / "results.md").read_text(encoding="utf-8")
    made = page.blocks(suites, study.RECORDS)
    assert page.refreshed(text, made) == text, "run python -m research.second.page"
    assert [name for name in made if f"<!-- {name} -->" not in text] == []
    for name in suites:
        lines = tables.page(study.BENCHES[name], study.RECORDS, None)
        kept = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert "\n".join(lines) == kept, "run python -m research.second.tables"


def test_refreshed__takes_the_place_of_what_is_between_marks_and_of_nothing_else() -> None:
    text = "before\n<!-- a -->\nold\n<!-- /a -->\nbetween <!-- b --> without an end\n"
    once = page.refreshed(text, {"a": ["new", "lines"], "b": ["lost"], "c": ["nowhere"]})
    assert once == (
        "before\n<!-- a -->\n\nnew\nlines\n\n<!-- /a -->\nbetween <!-- b --> without an end\n"
    )
    assert page.refreshed(once, {"a": ["new", "lines"]}) == once


def test_matrix__has_a_word_for_every_pair_of_every_suite_and_misses_come_first(
    tmp_path: Path,
) -> None:
    rows = [
        f"| {word} | {ours} + disagreement | {rival} + {by} | {drawn} | 5 of 5 seeds | at 1 % |"
        for word, ours, rival, by, drawn in (
            ("better", "FLYP, path", "FLYP", "published", "images"),
            ("worse", "CaRot, path", "TRACER", "published", "images"),
            ("worse", "CaRot, path", "FLYP", "published", "fonts"),
            ("worse", "FLYP, path", "TRACER", "disagreement", "images"),
        )
    ]
    (tmp_path / BENCH.name).mkdir()
    tables.keep_lines(BENCH, tmp_path, "verdicts", ["| head |", "|---|", *rows])
    lines = page.matrix({BENCH.name: []}, tmp_path)
    words = dict(page.cells_of(line) for line in lines[2:])
    assert len(words) == 6
    assert words.pop("FLYP, path, against FLYP") == "**better**"
    assert words.pop("CaRot, path, against TRACER") == "**worse**"
    assert set(words.values()) == {"–"}  # fonts, and rivals with ours, are another question
    first, second = page.verdicts({BENCH.name: []}, tmp_path)[2:]
    assert (page.cells_of(first)[0], page.cells_of(second)[0]) == ("worse", "better")


def test_main__what_is_there_needs_no_model(tmp_path: Path) -> None:
    """The records that come with the project are of another machine, and nothing is due."""
    out = tmp_path / "out"
    study.main(["--out", str(out), "--suites", "cifar10", "--rows", "flyp,carot,tracer"])
    assert not out.exists()
