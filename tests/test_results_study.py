"""The results study: what it runs, in which order, and what it makes of the numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from calift_core.calibration import TopLabel, ece, paired_difference, score_probs
from calift_core.calibration.squared import SquaredError
from calift_core.errors import CaliftError, DataUnavailableError
from calift_core.models.loading import load_clip

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import results  # noqa: E402
import results_tables as tables  # noqa: E402

# ---------------------------------------------------------------------------------- statistics


def judged_set(seed: int, n: int = 300, sets: int = 3, shift: float = 0.0) -> tables.Judged:
    rng = np.random.default_rng(seed)
    confidences = rng.uniform(0.2, 1.0, size=(sets, n))
    correct = rng.uniform(size=(sets, n)) < np.clip(confidences - shift, 0, 1)
    return tables.Judged(np.array([f"{i:04d}" for i in range(n)]), confidences, correct)


def test_resampled__the_first_row_is_the_data_as_they_are() -> None:
    judged = judged_set(0, shift=0.1)
    draws = tables.draw_images(300, n_resamples=4)
    found = tables.resampled(judged, draws)
    each = list(zip(judged.confidences, judged.correct, strict=True))
    eces = [ece(TopLabel(c, r)) for c, r in each]
    assert found.ece == pytest.approx(np.mean(eces), abs=1e-12)
    assert found.accuracy[0] == pytest.approx(judged.correct.mean(), abs=1e-12)
    assert found.squared[0] == pytest.approx(
        np.mean([SquaredError(TopLabel(*e)).value for e in each])
    )
    assert found.squared[1:].mean() == pytest.approx(found.squared[0])


def test_resampled__a_draw_counts_images_as_often_as_they_were_drawn() -> None:
    judged = judged_set(1, n=40)
    draws = tables.draw_images(40, n_resamples=3, seed=5)
    accuracy = tables.resampled(judged, draws).accuracy
    for row, found in zip(draws, accuracy, strict=True):
        repeated = np.repeat(judged.correct, row.astype(int), axis=1)
        assert repeated.shape[1] == 40
        assert found == pytest.approx(repeated.mean(), abs=1e-12)


def squared_of(draws: NDArray[np.float64], n_seeds: int, shift: float = 0.0) -> NDArray[np.float64]:
    """(S, R + 1) squared errors of a row."""
    runs = (judged_set(s, shift=shift) for s in range(n_seeds))
    return np.stack([tables.resampled(run, draws).squared for run in runs])


def test_difference__of_a_row_and_itself_is_nothing() -> None:
    draws = tables.draw_images(300, n_resamples=50)
    a = squared_of(draws, 2)
    found = tables.difference(a, a)
    assert (found["difference"], found["low"], found["high"]) == (0, 0, 0)
    assert not tables.is_clear(found)


def test_difference__changes_sign_with_the_order() -> None:
    draws = tables.draw_images(300, n_resamples=60)
    a, b = (squared_of(draws, 2, shift) for shift in (0.0, 0.2))
    one, other = tables.difference(a, b), tables.difference(b, a)
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["low"] == pytest.approx(-other["high"])
    assert tables.is_clear(one)
    assert one["high"] < 0


def test_difference__a_row_without_seeds_stands_against_each_seed() -> None:
    draws = tables.draw_images(300, n_resamples=20)
    many = np.stack([tables.resampled(judged_set(s), draws).accuracy for s in range(3)])
    one = tables.resampled(judged_set(9), draws).accuracy[None]
    found = tables.difference(many, one)
    np.testing.assert_allclose(found["per_seed"], many[:, 0] - one[0, 0])


def test_difference__agrees_with_the_paired_difference_of_the_library() -> None:
    """One seed and one set: draws where the library has a formula."""
    rng = np.random.default_rng(3)
    n = 2000
    labels = rng.integers(2, size=n)

    def probs(sharpness: float) -> NDArray[np.float64]:
        logit = sharpness * ((2 * labels - 1) * 0.8 + rng.normal(size=n))
        p = 1 / (1 + np.exp(-logit))
        return np.stack([1 - p, p], axis=1)

    a, b = probs(4.0), probs(1.5)
    expected = paired_difference(score_probs(a, labels), score_probs(b, labels))
    draws = tables.draw_images(n, n_resamples=2000)
    ids = np.array([str(i) for i in range(n)])
    of_a, of_b = (
        tables.resampled(
            tables.Judged(ids, p.max(axis=1)[None], (p.argmax(axis=1) == labels)[None]),
            draws,
        ).squared[None]
        for p in (a, b)
    )
    found = tables.difference(of_a, of_b)
    assert found["difference"] == pytest.approx(expected.difference, abs=1e-9)
    width = expected.high - expected.low
    assert found["low"] == pytest.approx(expected.low, abs=0.1 * width)
    assert found["high"] == pytest.approx(expected.high, abs=0.1 * width)


def test_best_rows__hold_equal_rows_and_leave_a_worse_one_out() -> None:
    draws = tables.draw_images(300, n_resamples=200)
    values = {
        "far off": squared_of(draws, 2, 0.3),
        "twin": squared_of(draws, 2),
        "calibrated": squared_of(draws, 2),
        "fixed": squared_of(draws, 1, 0.02),
    }
    found = tables.best_rows(values, higher_is_better=False)
    assert {"twin", "calibrated"} <= set(found["set"])
    assert "far off" not in found["set"]
    assert found["label"] == found["set"][0]
    worst = tables.best_rows(values, higher_is_better=True)
    assert worst["set"] == ["far off"]


# ------------------------------------------------------------------------------ words and blocks


def interval(low: float, high: float) -> dict[str, Any]:
    ends = {"difference": (low + high) / 2, "low": low, "high": high}
    return ends | {"squared": ends}


BETTER, SAME, WORSE = interval(-0.03, -0.01), interval(-0.01, 0.008), interval(0.01, 0.03)


@pytest.mark.parametrize(
    ("ece", "accuracy", "holds"),
    [
        ((BETTER, BETTER), (SAME, SAME), True),
        ((BETTER, SAME), (SAME, WORSE), True),  # accuracy of +1 to +3 points is a gain
        ((SAME, SAME), (SAME, SAME), False),
        ((BETTER, WORSE), (SAME, SAME), False),
        ((BETTER, BETTER), (SAME, BETTER), False),  # accuracy clearly lower
    ],
)
def test_verdict__follows_the_criterion(
    ece: tuple[Any, Any], accuracy: tuple[Any, Any], holds: bool
) -> None:
    studies = {
        suite: {
            "differences": {
                "CaRot+": {
                    rival: {"ood_ece": e, "ood_accuracy": a} for rival in ("CaRot", "TRACER")
                }
            }
        }
        for suite, e, a in zip(("one", "two"), ece, accuracy, strict=True)
    }
    found = tables.verdict(studies)
    assert found["holds"] is holds
    text = tables.verdict_block(studies)
    assert ("better than both" in text) is True
    assert ("not better than both" in text) is not holds


def test_verdict__one_suite_is_no_verdict() -> None:
    both = {rival: {"ood_ece": BETTER, "ood_accuracy": SAME} for rival in ("CaRot", "TRACER")}
    found = tables.verdict({"one": {"differences": {"CaRot+": both}}})
    assert found["holds"] is None


def test_inject__prose_outside_of_a_block_stays() -> None:
    before, after = "# Results\n\nWords.\n\n", "\n\nMore words, with \\1 and a | b.\n"
    text = f"{before}<!-- results:a -->\nold\n<!-- /results:a -->{after}"
    new, missing = tables.inject(text, {"a": "| x |\n|---|\n| \\g<0> |", "b": "nowhere"})
    assert new.startswith(before)
    assert new.endswith(after)
    assert "old" not in new
    assert "\\g<0>" in new
    assert missing == ["b"]
    assert tables.inject(new, {"a": "| x |\n|---|\n| \\g<0> |"})[0] == new


def test_results_page__has_a_place_for_every_block() -> None:
    text = (ROOT / "docs" / "results" / "first-study.md").read_text(encoding="utf-8")
    names = ("fashion-mnist", "cifar10", "carot-plus", "ablation")
    assert tables.inject(text, dict.fromkeys(names, "."))[1] == []


# -------------------------------------------------------------------------------- what is needed

SMALL = results.Settings(
    epochs=1,
    batch_size=16,
    n_seeds=2,
    grid=(1e-3, 3e-3, 1e-2),
    ablation_grid=(1e-3, 3e-3),
    corruptions=("contrast",),
    severities=(1, 5),
    corruption_limit=20,
    grid_limits={"test": 20, "calibration": 5},
)
COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (200, 50, 50)}
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> results.Bench:
    """Three colours and a model of random, but fixed, weights."""
    root = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / "photos" / name).mkdir(parents=True)
        for i in range(40):
            noise = rng.normal(0, 40, size=(18, 18, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{i:03d}.png")
    config = root / "tiny.json"
    config.write_text(json.dumps(CONFIG))
    clip = load_clip(str(config), None)
    weights = root / "tiny.safetensors"
    save_file({k: v.contiguous() for k, v in clip.net.state_dict().items()}, str(weights))
    return results.Bench(
        "photos",
        {"id": f"folder:{root / 'photos'}", "templates": "plain"},
        {"name": str(config), "pretrained": str(weights)},
    )


def rows(*labels: str) -> tuple[results.Row, ...]:
    return tuple(row for row in results.ROWS if row.label in labels)


def finish(study: results.Study, need: results.Need, accuracy: float | None) -> None:
    """As if the run had ended with this validation accuracy, or diverged."""
    assert need.task is not None
    folder = need.task.folder
    folder.mkdir(parents=True)
    if accuracy is None:
        (folder / "result.json").write_text('{"outcome": "failed", "code": "NAN_LOSS"}')
        return
    validation = {"val_accuracy": accuracy, "val_nll": 1 - accuracy, "val_ece": 0.1}
    report = {
        "spec_sha256": need.task.spec.content_hash(),
        "selection": {"validation": validation},
        "summary": {"sigma_min": 0.01},
    }
    (folder / "report.json").write_text(json.dumps(report))


@pytest.mark.parametrize(
    ("accuracies", "lr", "edge"),
    [
        ([0.7, 0.6], 1e-3, "lower"),
        ([0.7, 0.8, 0.75], 3e-3, ""),
        ([0.7, 0.8, 0.9], 1e-2, "upper"),
        ([0.7, 0.8, None], 3e-3, ""),
        ([0.7, 0.7, 0.6], 1e-3, "lower"),
    ],
)
def test_grid__is_walked_upwards_until_the_accuracy_falls(
    bench: results.Bench,
    tmp_path: Path,
    accuracies: list[float | None],
    lr: float,
    edge: str,
) -> None:
    study = results.Study(bench, tmp_path, SMALL, rows("FT"))
    (row,) = study.rows
    for accuracy in accuracies:
        assert study.rate("FT") is None
        assert all(need.task is None for need in study.needs() if need.stage == "seeds")
        need = next(need for need in study.grid(row) if not study.settled(need))
        finish(study, need, accuracy)
    found = study.rate("FT")
    assert found is not None
    assert (found["lr"], found["at_edge"]) == (lr, edge)
    assert len(found["grid"]) == len(accuracies)
    seeds = [need for need in study.needs() if need.stage == "seeds"]
    assert [n.task.spec.train.lr for n in seeds if n.task] == [lr] * 2
    assert [n.task.spec.train.seed for n in seeds if n.task] == [0, 1]
    assert all(n.task.spec.suite.corruptions.names for n in seeds if n.task)


def test_grid__runs_see_no_corruption_and_their_seed_is_used_for_nothing_else(
    bench: results.Bench, tmp_path: Path
) -> None:
    study = results.Study(bench, tmp_path, SMALL)
    tasks = [need.task for need in study.needs() if need.stage == "grid" and need.task]
    assert len(tasks) == sum(row.rate_of == row.label for row in results.ROWS)
    for task in tasks:
        assert task.spec.suite.corruptions.names == ()
        assert task.spec.train.seed not in SMALL.seeds


def test_grid__when_every_run_diverges_it_says_so(bench: results.Bench, tmp_path: Path) -> None:
    study = results.Study(bench, tmp_path, SMALL, rows("FT"))
    finish(study, next(study.grid(study.rows[0])), None)
    with pytest.raises(CaliftError, match=r"every run of the grid diverged: 0\.001"):
        study.rate("FT")


def settle_rates(study: results.Study, best: dict[str, float]) -> None:
    """Walk every grid so that the rates come out as told."""
    for row in study.rows:
        if row.rate_of == row.label:
            lr = best.get(row.label, 1e-3)
            while study.rate(row.label) is None:
                need = next(n for n in study.grid(row) if not study.settled(n))
                assert need.task is not None
                rate = need.task.spec.train.lr
                assert rate is not None
                finish(study, need, 0.9 - abs(np.log(rate / lr)) / 10)


def test_rows__that_share_a_rate_take_it(bench: results.Bench, tmp_path: Path) -> None:
    study = results.Study(bench, tmp_path, SMALL)
    settle_rates(study, {"FLYP": 3e-3, "CaRot": 1e-3})
    by_label = {row.label: row for row in study.rows}

    def rate(label: str) -> float | None:
        task = study.judged(by_label[label], 0).task
        assert task is not None
        return task.spec.train.lr

    assert rate("FLYP + L_OC") == rate("FLYP + L_SD") == rate("FLYP") == 3e-3
    matched = "FLYP at CaRot's rate"
    assert rate(matched) == rate("CaRot, BatchNorm frozen") == rate("CaRot") == 1e-3
    frozen = study.judged(by_label["FLYP, BatchNorm frozen"], 0).task
    assert frozen is not None
    assert frozen.spec.train.batch_norm == "frozen"
    assert not study.is_repeat(by_label[matched])


def test_rows__equal_rates_need_no_row_of_their_own(bench: results.Bench, tmp_path: Path) -> None:
    study = results.Study(bench, tmp_path, SMALL)
    settle_rates(study, {"FLYP": 3e-3, "CaRot": 3e-3})
    assert study.is_repeat(next(row for row in study.rows if row.label == "FLYP at CaRot's rate"))


def test_merges__are_made_from_the_runs_of_their_seed_and_the_next(
    bench: results.Bench, tmp_path: Path
) -> None:
    study = results.Study(bench, tmp_path, SMALL, rows("FT", "WiSE-FT", "Model Stock"))
    settle_rates(study, {"FT": 3e-3})
    plan = results.Plan([study])
    needs = plan.needs()
    seeds = [n.task.folder for n in needs if n.stage == "seeds" and n.task]
    merges = [n.task for n in needs if n.stage == "merges" and n.task]
    assert [t.after for t in merges] == [
        (seeds[0],),
        (seeds[1],),
        (seeds[0], seeds[1]),
        (seeds[1], seeds[0]),
    ]
    costs = results.Costs([], SMALL)
    costs.__dict__["speed"] = 1.0
    ready = [n.stage for n in plan.ready(needs, set(), costs)]
    assert ready == ["seeds", "seeds"]
    for need in needs:
        if need.stage == "seeds":
            finish(study, need, 0.9)
    assert len(plan.ready(plan.needs(), set(), costs)) == 4


def test_ablation__the_last_variant_waits_for_the_best_weight(
    bench: results.Bench, tmp_path: Path
) -> None:
    study = results.Study(bench, tmp_path, SMALL)
    ablation = results.Ablation([study])
    plan = results.Plan([study], ablation)
    assert len(plan.needs()) == (len(results.VARIANTS) + 1) * 2
    assert ablation.lambda_fd() is None
    for need in list(plan.needs()):
        if need.task is None:
            continue
        weight = getattr(need.task.spec.method, "lambda_fd", 0.0)
        finish(study, need, 0.8 if weight == 100 else 0.7)
    assert ablation.lambda_fd() == 100
    last = [need for need in plan.needs() if not plan.settled(need)]
    assert [n.task.spec.method.lambda_fd for n in last if n.task] == [100, 100]  # type: ignore[union-attr]
    assert ablation.collect() is None


def test_ablation__shares_its_runs_with_the_grid(bench: results.Bench, tmp_path: Path) -> None:
    study = results.Study(bench, tmp_path, SMALL, rows("CaRot"))
    first = next(n.task for n in study.needs() if n.task)
    shared = [n.task for n in results.Ablation([study]).needs() if n.task]
    assert first.folder in {task.folder for task in shared}


# --------------------------------------------------------------------------------------- CIFAR-10


def pictures(n: int) -> Iterator[tuple[Image.Image, int]]:
    for i in range(n):
        yield Image.new("RGB", (32, 32), (i, 0, 0)), i % 10


def broken(n: int) -> Iterator[tuple[Image.Image, int]]:
    yield from pictures(n)
    raise OSError("the disk is gone")


def test_class_folders__hold_each_picture_under_its_class(tmp_path: Path) -> None:
    target = tmp_path / "cifar10"
    results.write_class_folders({"train": pictures(20), "test": pictures(10)}, target)
    assert results.find_cifar10(str(target)) == target
    found = sorted(p.relative_to(target).as_posix() for p in (target / "train").rglob("*.png"))
    assert len(found) == 20
    assert "train/airplane/00010.png" in found
    with Image.open(target / "train" / "truck" / "00009.png") as image:
        assert image.getpixel((0, 0)) == (9, 0, 0)


def test_class_folders__a_failure_leaves_no_half_a_data_set(tmp_path: Path) -> None:
    parts: dict[str, Iterable[Any]] = {"train": broken(3)}
    with pytest.raises(OSError, match="the disk is gone"):
        results.write_class_folders(parts, tmp_path / "cifar10")
    assert not (tmp_path / "cifar10").exists()


def test_cifar10__a_folder_without_the_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailableError, match=r"lacks \['train/airplane'"):
        results.find_cifar10(str(tmp_path))


# ----------------------------------------------------------------------------------- for real

DRIVER = """
    import json, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import results, signal
    def on_sigterm(*_):
        raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, on_sigterm)
    given = json.loads(sys.argv[2])
    bench = results.Bench(**given["bench"])
    settings = results.Settings(**given["settings"])
    rows = tuple(row for row in results.ROWS if row.label in given["rows"])
    out = Path(given["out"])
    study = results.Study(bench, out, settings, rows)
    plan = results.Plan([study])
    costs = results.Costs([], settings)
    costs.__dict__["speed"] = 1.0
    docs = out / "page.md"
    results.carry_out(plan, costs, jobs=2, out=out, keep_models=False)
    results.publish(plan, out, docs if docs.is_file() else None)
"""


def drive(
    bench: results.Bench, out: Path, home: Path, labels: list[str], **changes: Any
) -> subprocess.Popen[str]:
    """The study in a process of its own."""
    fields = {k: getattr(SMALL, k) for k in SMALL.__dataclass_fields__} | changes
    given = {
        "bench": {"name": bench.name, "suite": bench.suite, "model": bench.model},
        "settings": fields,
        "rows": labels,
        "out": str(out),
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(DRIVER),
            str(ROOT / "benchmarks"),
            json.dumps(given),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "CALIFT_HOME": str(home), "OMP_NUM_THREADS": "1"},
    )


def test_study__is_made_once_and_its_tables_are_put_into_the_page(
    bench: results.Bench, tmp_path: Path
) -> None:
    labels = ["zero-shot", "FT", "WiSE-FT", "FLYP"]
    out = tmp_path / "results"
    out.mkdir()
    page = "# Page\n\n<!-- results:photos -->\n<!-- /results:photos -->\n\nProse.\n"
    (out / "page.md").write_text(page)
    process = drive(bench, out, tmp_path / "home", labels, grid=[1e-3, 1e-2])
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    study = json.loads((out / "photos" / "study.json").read_text())
    assert list(study["rows"]) == labels
    assert study["rows"]["FT"]["seeds"] == [0, 1]
    for row in study["rows"].values():
        for run in row["runs"]:
            report = json.loads((out / "photos" / "runs" / run / "report.json").read_text())
            assert report["environment"]["threads"] == 1
    # Point values of the bootstrap are those of the reports.
    ft, flyp = (study["rows"][label]["values"] for label in ("FT", "FLYP"))
    for key in ("ood_ece", "ood_accuracy"):
        expected = np.subtract(ft[key], flyp[key])
        np.testing.assert_allclose(study["differences"]["FT"]["FLYP"][key]["per_seed"], expected)
    assert [p["alpha"] for p in study["frontier"]][::10] == [0.0, 1.0]
    # Models that nothing is made from are not kept.
    kept = {p.parent.name.split("-")[0] for p in (out / "photos" / "runs").glob("*/checkpoint")}
    assert kept == {"finetune"}
    written = (out / "page.md").read_text()
    assert "| WiSE-FT |" in written
    assert written.endswith("Prose.\n")

    began = {p: p.stat().st_mtime_ns for p in out.rglob("report.json")}
    (out / "workers.log").unlink()
    again = drive(bench, out, tmp_path / "home", labels, grid=[1e-3, 1e-2])
    text, _ = again.communicate(timeout=120)
    assert again.returncode == 0, text
    assert {p: p.stat().st_mtime_ns for p in out.rglob("report.json")} == began
    assert not (out / "workers.log").exists()  # nothing was left to do, so nobody was started


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for children in /proc")
def test_study__when_stopped_leaves_no_child_and_goes_on_later(
    bench: results.Bench, tmp_path: Path
) -> None:
    out, home = tmp_path / "results", tmp_path / "home"
    process = drive(bench, out, home, ["FT"], grid=[1e-3], epochs=40)
    deadline = time.monotonic() + 120
    workers: list[int] = []
    while not any((out / "photos" / "runs").glob("*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        workers = children(process.pid) or workers
        time.sleep(0.05)
    workers = children(process.pid)
    assert len(workers) == 2
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode != 0, text
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    states = list((out / "photos" / "runs").glob("*/checkpoint/*"))
    assert states  # the run that was under way saved where it was
    again = drive(bench, out, home, ["FT"], grid=[1e-3], epochs=40)
    text, _ = again.communicate(timeout=240)
    assert again.returncode == 0, text
    records = [p.read_text() for p in (out / "photos" / "runs").glob("*/records.jsonl")]
    assert sum('"kind":"resumed"' in lines for lines in records) == 1
    study = json.loads((out / "photos" / "study.json").read_text())
    assert len(study["rows"]["FT"]["runs"]) == 2
