"""The second study: what it runs, what a record keeps, and how two rows are told apart."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calift_core.calibration import SampleScores, score_probs
from calift_core.studies.sweep.verdict import Contender, JudgedRun, JudgedSet

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import study
import study_tables

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
        if cell.input is not None:
            assert names.index(cell.input.name) < at
            assert cell.spec(tmp_path).method.run == str(cell.input.folder(tmp_path).absolute())
    # The first seed of everything stands before the second.
    seeds = [cell.seed for cell in every]
    assert seeds == sorted(seeds)


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

    def run(lr: float, seed: int) -> JudgedRun:
        made: dict[str, Any] = {
            "test": ("id", scores(0.85, 0.8 if rises == (lr < 1e-3) else 0.85, seed)),
            "serif": ("shift", scores(ood_confidence, 0.7, seed)),
        }
        sets = {
            name: JudgedSet(name, role, 0.0, 0.0, lambda s=s: (units, s))
            for name, (role, s) in made.items()
        }
        return JudgedRun(f"{label} {lr} {seed}", seed, sets)

    ladder = {lr: [run(lr, seed) for seed in study.SEEDS] for lr in (3e-4, 1e-3)}
    return Contender(label, "flyp", 1e-3, "", ladder[1e-3], ladder)


@pytest.mark.parametrize(("ours", "word"), [(0.7, "better"), (0.9, "unresolved"), (0.98, "worse")])
def test_pair__says_better_worse_or_unresolved_as_the_protocol_does(ours: float, word: str) -> None:
    rival = contender("rival", ood_confidence=0.9)
    said, why = study_tables.pair(contender("ours", ood_confidence=ours), rival)
    assert said == word, why
    assert "ID accuracy" in why


def test_pair__that_shares_no_id_accuracy_is_read_at_own_rates() -> None:
    falls = contender("ours", ood_confidence=0.7, rises=False)
    rival = contender("rival", ood_confidence=0.9)
    said, why = study_tables.pair(falls, rival)  # ours is at 80 % ID accuracy, the rival at 85 %
    assert said == "unresolved", why
    assert why.startswith("at own rates, 80.0 and 85.0 % ID accuracy")
