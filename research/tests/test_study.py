"""The third study on a suite of a few small pictures: choose, confirm, gather, tables."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from calift_core.models.loading import load_clip
from research import benches, figure, page, study, tables
from research.derived import DERIVED
from research.intervals import estimate, holm, jackknifed, verdict
from research.records import gather, read, recorded
from research.training import ALPHAS, validation_nll

CLASSES = ("red", "green", "blue")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> study.Place:
    """Three colours, with a dark shift; two random models."""
    rng = np.random.default_rng(0)
    rows = []
    sizes = {"train": 12, "validation": 12, "calibration": 12, "test": 12}
    for part, n in sizes.items():
        for domain in ("id", "dark") if part == "test" else ("id",):
            for i in range(n):
                label = i % 3
                pixels = rng.integers(0, 90, (32, 32, 3))
                pixels[..., label] += 120 if domain == "id" else 40
                name = f"{part}-{domain}-{i}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name)
                rows.append((name, CLASSES[label], part, domain))
    with (tmp_path / "suite.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "domain"), *rows])
    small = {"names": ["contrast"], "severities": [3], "limit": 6}
    suite = {"id": "manifest:{out}/suite.csv", "templates": "plain", "corruptions": small}
    bench = benches.Bench(
        "tiny", suite, "calift-tiny", 1, rates=(1e-4, 1e-3), train={"batch_size": 6}
    )
    for k in (0, 1):
        file = bench.weights(k, tmp_path)
        file.parent.mkdir(parents=True)
        clip = load_clip("calift-tiny", None, generator=torch.Generator().manual_seed(k))
        save_file(clip.net.state_dict(), file)
    monkeypatch.setattr(study, "SELECTION", (100,))
    monkeypatch.setattr(study, "SEEDS", (0, 1))
    monkeypatch.setattr(tables, "SEEDS", (0, 1))
    monkeypatch.setattr(study, "FINER", ())
    monkeypatch.setattr(study, "COARSER", ())
    return study.Place(bench, tmp_path)


def test_study__from_rates_to_tables_and_again_the_same(
    place: study.Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["flyp", "tracer"]
    study.select(place, names)
    assert {lr for lr in study.rates_of(place, "flyp")} == {1e-4, 1e-3}
    for name in names:
        assert study.own_rate(place, name, "end") in place.bench.rates
        assert study.next_rates(place, name) == []
    record = json.loads(place.selected("flyp", 1e-4, 100).read_text())
    assert record["alpha"] in ALPHAS
    assert "dark" not in json.dumps(record)

    study.gate(place)
    said = capsys.readouterr().out
    for k in (0, 1):  # each pre-training on its own
        assert f"pre-training {k}, seed 100, ID validation: zero-shot" in said
    assert set(study.rates_of(place, "flyp")) == {1e-4, study.GATE_RATE, 1e-3}

    study.confirm(place, names)
    files = sorted((place.runs / "confirmation").glob("*.npz"))
    before = {f.name: f.read_bytes() for f in files}
    assert {f.name.split("-")[0] for f in files} == {"zero", "flyp", "tracer"}
    study.confirm(place, names)  # nothing is left to do
    assert {f.name: f.read_bytes() for f in files} == before

    study.derive(place)
    kept = gather(place.runs / "confirmation", "tiny", target=tmp_path / "records")
    assert kept.stat().st_size < 100_000
    runs, arrays = read("tiny", folder=tmp_path / "records")
    assert {run["row"] for run in runs} == {"zero-shot", *names, *DERIVED}
    found = tables.Study("tiny", tmp_path / "records")
    one = ("flyp", "end", "raw")
    by_run = found.runs(one)
    assert set(by_run) == {0, 1}
    # On another machine what is recorded stays, and is not run again; other seeds are added.
    first = {f: f.with_suffix(".away") for f in (place.runs / "confirmation").glob("*-0.npz")}
    second = {f: f.with_suffix(".away") for f in (place.runs / "confirmation").glob("*-1.npz")}
    for _, rest in ((first, second), (second, first)):
        for file, away in rest.items():
            file.rename(away)
        gather(place.runs / "confirmation", "tiny", target=tmp_path / "other")
        for file, away in rest.items():
            away.rename(file)
    again, their_arrays = read("tiny", folder=tmp_path / "other")
    assert sorted(map(str, again)) == sorted(map(str, runs))
    others = tables.Study("tiny", tmp_path / "other")
    for recipe in found.recipes:
        for seed, of in found.runs(recipe).items():
            assert (others.runs(recipe)[seed] == of).all()
    for at in set(arrays) - {"about"}:
        if not at.startswith("runs/"):
            np.testing.assert_allclose(their_arrays[at], arrays[at], rtol=2e-3, atol=2e-3)
    for file in first:
        file.rename(file.with_suffix(".away"))
    monkeypatch.setattr(study, "recorded", lambda suite: recorded(suite, tmp_path / "other"))
    study.confirm(place, names)
    assert not any(file.is_file() for file in first)
    for file, away in first.items():
        away.rename(file)
    # What is kept by image and what is kept by run have one mean.
    k = found.sets.index("dark")
    by_image = arrays["images/flyp/end/raw/dark/nll"].astype(float).mean()
    assert by_image == pytest.approx(np.mean([of[k, 0] for of in by_run.values()]), abs=2e-3)
    same = found.difference(one, one, "shift", "nll")
    assert (same.value, same.se) == (0, 0)
    there = found.difference(one, ("tracer", "end", "published"), "shift", "nll")
    back = found.difference(("tracer", "end", "published"), one, "shift", "nll")
    assert there.value == pytest.approx(-back.value)
    made = page.blocks([found])
    assert made["gains"][2].startswith("| zero-shot | ")
    assert len(made["tiny-verdicts"]) > 2
    # Nothing is decided on fewer seeds than were planned.
    assert not any("open, " in line for lines in made.values() for line in lines)
    monkeypatch.setattr(tables, "SEEDS", (0, 1, 2))
    assert all("open, 2 of 3 seeds" in line for line in page.blocks([found])["claims"][2:])
    first = figure.draw([found], tmp_path).read_bytes()
    assert figure.draw([found], tmp_path).read_bytes() == first
    on_id, under_shift = figure.gains(found, ("flyp", "end", "ensemble"))
    assert under_shift == pytest.approx(
        found.mean(figure.ZERO, "shift", "nll")
        - found.mean(("flyp", "end", "ensemble"), "shift", "nll")
    )
    assert figure.gains(found, figure.ZERO) == (0, 0) != (on_id, under_shift)
    text = "\n".join(tables.page(found))
    assert "| flyp, path, ensemble | 2 |" in text
    assert "zero-shot, end, published" in text
    for name in ("model-stock", "vrf", "dawin"):
        assert f"| {name}, end, raw | 2 |" in text


def test_validation_nll__does_not_see_a_scale() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((200, 4)).astype(np.float32)
    labels = (logits + rng.standard_normal((200, 4))).argmax(axis=1)
    one, other = validation_nll(logits, labels), validation_nll(5 * logits, labels)
    np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("seed_sd", [0.0, 0.05])
def test_estimate__covers_what_is_true_where_seeds_and_images_vary(seed_sd: float) -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        seeds = rng.normal(0, seed_sd, 10)
        images = [rng.normal(0, 1, 300) for _ in range(3)]
        runs = np.stack([seeds + own.mean() for own in images], axis=1)
        low, high = estimate(runs, [own + seeds.mean() for own in images]).interval()
        inside += low <= 0 <= high
    assert 0.92 <= inside / 400 <= 0.985


def test_estimate__groups_that_vary_together_widen_it() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(10), 50)
    own = rng.normal(0, 1, 10)[groups] + rng.normal(0, 0.1, 500)
    runs = np.full((5, 1), own.mean())
    assert estimate(runs, [own], [groups]).se > 4 * estimate(runs, [own]).se


def test_jackknifed__is_the_standard_error_of_a_mean_where_it_is_one() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0, 1, 20)
    without = np.array([np.delete(values, g).mean() for g in range(20)])[:, None]
    runs = np.full((4, 1), values.mean())
    expected = values.std(ddof=1) / np.sqrt(20)
    assert jackknifed(runs, without).se == pytest.approx(expected)


def test_holm__is_worked_by_hand() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert found == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_verdict__better_asks_for_the_gates_and_worse_does_not() -> None:
    runs = np.full((10, 1), -0.05) + np.linspace(-0.001, 0.001, 10)[:, None]
    good = estimate(runs, [np.full(50, -0.05) + np.linspace(-0.01, 0.01, 50)])
    bad = estimate(-runs, [np.full(50, 0.05)])
    flat = estimate(np.zeros((10, 1)) + np.linspace(-1e-3, 1e-3, 10)[:, None], [np.zeros(50)])
    assert verdict(good, flat, None, p_zero=0.001, p_apart=1) == "better"
    assert verdict(good, bad, None, p_zero=0.001, p_apart=1) == "unresolved"
    assert verdict(bad, flat, None, p_zero=0.001, p_apart=1) == "worse"
    assert verdict(flat, flat, None, p_zero=0.9, p_apart=0.01) == "equivalent"


def test_modules__none_has_the_name_of_one_of_pythons_own() -> None:
    own = {file.stem for file in Path(study.__file__).parent.glob("*.py")}
    assert own.isdisjoint(sys.stdlib_module_names)


def test_page__of_results_is_what_the_records_say() -> None:
    there = tables.complete_studies()
    assert "letters" in {found.suite for found in there}
    text = (Path(study.__file__).parents[1] / "docs" / "results.md").read_text(encoding="utf-8")
    made = page.blocks(there)
    assert page.refreshed(text, made) == text, "run python -m research.page --write docs/results.md"
