"""One job from its folder: what it leaves, and that no way of ending it changes the result."""

import itertools
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calift_core.calibration import Binning, ece, score_probs, softmax
from calift_core.data.suites.load import load_suite
from calift_core.errors import (
    CheckpointError,
    DataError,
    DiskFullError,
    InterruptedRunError,
    ModelUnavailableError,
    SpecError,
)
from calift_core.files import sha256_file
from calift_core.jobs import __main__ as runner
from calift_core.jobs.evaluate import evaluate_finished
from calift_core.jobs.folder import run_in_folder
from calift_core.jobs.tiny import ensure_tiny, pretraining_spec, tiny_is_current
from calift_core.models.finished import load_finished
from calift_core.models.loading import load_clip, weights_sha256
from calift_core.predictions.read import read_predictions
from calift_core.schema.records import EXIT_INTERRUPTED, RECORD, JobFile, JobResult, Record
from calift_core.schema.report import Report
from calift_core.schema.spec import RunSpec
from calift_core.words import percent
from tests.conftest import until
from tests.core.conftest import CLASSES, environment, write_classes
from tests.support.disks import small_disk

ROOT = Path(__file__).parents[3]


def go(spec: RunSpec, folder: Path, **options: Any) -> list[Record]:
    return list(run_in_folder(spec, folder, **options))


def report_in(folder: Path) -> Report:
    return Report.model_validate_json((folder / "report.json").read_bytes())


def weights(folder: Path) -> bytes:
    return (folder / "checkpoint" / "model.safetensors").read_bytes()


def curve(folder: Path) -> str:
    return (folder / "metrics.jsonl").read_text()


def steps_of(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in curve(folder).splitlines()]


def assert_equal_runs(one: Path, other: Path) -> None:
    """The same model, curves, predictions and numbers, bit for bit."""
    assert weights(one) == weights(other)
    assert curve(one) == curve(other)
    a, b = report_in(one), report_in(other)
    assert a.summary == b.summary
    assert a.spectrum == b.spectrum
    assert a.model == b.model
    for x, y in zip(a.evaluations, b.evaluations, strict=True):
        assert x.model_copy(update={"seconds": 0}) == y.model_copy(update={"seconds": 0})


def collect(records: list[Record], source: Iterable[Record]) -> None:
    for record in source:
        records.append(record)  # one by one: `stop` looks at the list meanwhile


def go_until(spec: RunSpec, folder: Path, seen: Callable[[Record], bool], **options: Any) -> None:
    records = []
    source = run_in_folder(spec, folder, stop=lambda: any(map(seen, records)), **options)
    with pytest.raises(InterruptedRunError):
        collect(records, source)


def at_step(step: int) -> Callable[[Record], bool]:
    return lambda record: record.kind == "metrics" and record.step >= step


def evaluating(record: Record) -> bool:
    return record.kind == "phase" and record.phase == "evaluating"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, configs, photos, paintings):
    """CaRot on the tiny suite with a shift, two corruptions and a far set, left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALIFT_HOME", str(tmp_path_factory.mktemp("home")))
        spec = RunSpec.model_validate(
            {
                "name": "tiny carot",
                "model": {"name": str(configs["vit"]), "pretrained": None},
                "method": {"kind": "carot", "lambda_x": 0.05},
                "suite": {
                    "id": f"folder:{photos}",
                    "shifts": {"art": f"folder:{paintings}"},
                    "ood": {"far": f"folder:{paintings}"},
                    "corruptions": {"names": ["contrast"], "severities": [1, 5], "limit": 8},
                    "templates": "photo",
                },
                "train": {"epochs": 2, "batch_size": 16, "lr": 1e-3, "device": "cpu"},
                "evaluation": {"n_resamples": 20},
            }
        )
        folder = tmp_path_factory.mktemp("finished") / "run"
        return spec, folder, go(spec, folder)


def test_run__leaves_what_the_contract_names(finished):
    spec, folder, _ = finished
    report = report_in(folder)
    assert report.spec_sha256 == spec.content_hash()
    datasets = [("photos/test", "id"), ("art", "shift")]
    datasets += [(f"contrast/{severity}", "corruption") for severity in (1, 5)]
    assert [(e.dataset, e.role) for e in report.evaluations] == datasets
    names = [name.replace("/", "_") for name, _ in datasets] + ["calibration", "validation", "far"]
    assert {p.name for p in (folder / "predictions").iterdir()} == {f"{n}.parquet" for n in names}
    assert {p.name for p in (folder / "checkpoint").iterdir()} == {
        "classifier.safetensors", "model.json", "model.safetensors", "prompts.npz",
        "training_images.npz",
    }  # fmt: skip
    assert report.resolved["teacher_update_every"] == 1
    assert report.resolved["lr"] == 1e-3
    assert report.resolved["precision"] == "fp32"
    assert report.selection["selected_on"] == "id_val"
    assert report.environment["device"] == "cpu"
    assert report.data["parts"]["test"] == report.evaluations[0].n


def test_run__watching_shifts_changes_nothing_but_the_curves_and_far_sets_nothing(
    finished, home, tmp_path
):
    spec, folder, _ = finished
    train = spec.train.model_copy(update={"watch_shifts": 5})
    suite = spec.suite.model_copy(update={"ood": {}})
    watching = spec.model_copy(update={"train": train, "suite": suite})
    go(watching, tmp_path / "run")
    assert weights(tmp_path / "run") == weights(folder)
    one, other = report_in(tmp_path / "run"), report_in(folder)
    assert (one.summary, one.selection) == (other.summary, other.selection)
    digests = [[e.predictions_sha256 for e in report.evaluations] for report in (one, other)]
    assert digests[0] == digests[1]
    assert (one.data["ood"], other.data["ood"]) == ({}, {"far": 24})
    # A far set is predicted as a shift is, and has no labels.
    art, far = (read_predictions(folder / "predictions" / f"{n}.parquet") for n in ("art", "far"))
    assert (far.logits == art.logits).all()
    assert not far.labels.any()
    lines = [json.loads(line) for line in curve(tmp_path / "run").splitlines()]
    watched = [line for line in lines if "shift/art/accuracy" in line]
    assert [line["epoch"] for line in watched] == [1.0, 2.0]
    assert set(watched[0]) == {"step", "epoch"} | {
        f"shift/art/{name}" for name in ("accuracy", "nll", "ece")
    }
    rest = "".join(json.dumps(line) + "\n" for line in lines if line not in watched)
    assert rest == curve(folder)


def test_run__a_shift_named_like_the_test_set_has_a_file_of_its_own(
    run_spec, paintings, home, tmp_path
):
    spec = run_spec("zero_shot", suite={"shifts": {"photos_test": f"folder:{paintings}"}})
    records = go(spec, tmp_path / "run")
    files = {r.evaluation.dataset: r.predictions for r in records if r.kind == "evaluation"}
    assert files["photos/test"] == "predictions/photos_test.parquet"
    for evaluation in report_in(tmp_path / "run").evaluations:
        path = tmp_path / "run" / files[evaluation.dataset]
        assert sha256_file(path) == evaluation.predictions_sha256
        assert read_predictions(path).metadata.dataset == evaluation.dataset


def test_run__report_can_be_computed_again_from_the_predictions(finished):
    _, folder, _ = finished
    report = report_in(folder)
    for evaluation in report.evaluations:
        name = evaluation.dataset.replace("/", "_")
        stored = read_predictions(folder / "predictions" / f"{name}.parquet")
        probs = softmax(stored.logits)
        assert (probs.argmax(1) == stored.labels).mean() == pytest.approx(evaluation.accuracy)
        assert ece(score_probs(probs, stored.labels), Binning(n_bins=15)) == pytest.approx(
            evaluation.ece.value
        )
        assert stored.metadata.model_sha256 == report.model["sha256"]
    assert report.summary.id_accuracy == report.evaluations[0].accuracy
    assert report.summary.ood_accuracy == report.evaluations[1].accuracy


def test_run__spectrum_is_of_the_id_test_features_and_the_model_that_of_the_file(finished):
    report = report_in(finished[1])
    assert report.spectrum.n == report.evaluations[0].n
    assert report.spectrum.n_features == 16
    assert report.spectrum.features == "photos/test"
    assert sum(report.spectrum.singular_values) == pytest.approx(16)
    clip, _, description = load_finished(finished[1])
    assert weights_sha256(clip.net) == report.model["sha256"] != report.model["start_sha256"]
    assert description["classes"] == list(CLASSES)
    w = clip.image_projection().detach().double()
    gap = torch.linalg.matrix_norm(w.T @ w - torch.eye(16, dtype=torch.float64))
    assert report.spectrum.projection_gram_distance == pytest.approx(float(gap))


def test_run__records_tell_the_story_in_order_and_are_on_disk(finished):
    _, folder, records = finished
    on_disk = [
        RECORD.validate_json(x) for x in (folder / "records.jsonl").read_bytes().splitlines()
    ]
    assert on_disk == records
    phases = [r for r in records if r.kind == "phase"]
    assert [r.phase for r in phases] == [
        "loading", "training", "evaluating", "evaluating", "saving"
    ]  # fmt: skip
    assert "training images" in phases[3].detail  # their features are the last that is made
    assert records[-1].kind == "done"
    assert records[-1].summary == report_in(folder).summary
    assert len(steps_of(folder)) == len({(s, i) for i, s in enumerate(steps_of(folder))})


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """The folder of a run of a spec that nothing disturbed; each spec is run once."""
    made = {}

    def folder_of(spec):
        key = spec.content_hash()
        if key not in made:
            made[key] = tmp_path_factory.mktemp("alone") / "run"
            go(spec, made[key])
        return made[key]

    return folder_of


def test_stop__in_evaluation_then_again_trains_no_step_twice(run_spec, home, tmp_path, left_alone):
    spec = run_spec("carot", train={"checkpoint_every_steps": 100})
    go_until(spec, tmp_path / "run", evaluating)
    records = go(spec, tmp_path / "run")
    (resumed,) = [r for r in records if r.kind == "resumed"]
    assert resumed.step == report_in(tmp_path / "run").resolved["total_steps"]
    assert not [r for r in records if r.kind == "metrics"]
    assert_equal_runs(tmp_path / "run", left_alone(spec))


def test_resume__half_a_line_of_a_killed_process_is_cut_off(run_spec, home, tmp_path, left_alone):
    spec, folder = run_spec("carot"), tmp_path / "run"
    go_until(spec, folder, at_step(6))
    assert not (folder / "report.json").exists()
    for name in ("records.jsonl", "metrics.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"kind": "metr')
    (resumed,) = [r for r in go(spec, folder) if r.kind == "resumed"]
    assert resumed.step >= 6
    for line in (folder / "records.jsonl").read_bytes().splitlines():
        RECORD.validate_json(line)
    assert_equal_runs(folder, left_alone(spec))


def test_resume__from_the_folder_of_an_earlier_attempt(run_spec, home, tmp_path, left_alone):
    spec = run_spec("carot")
    go_until(spec, tmp_path / "1", at_step(3))
    go(spec, tmp_path / "2", resume_from=tmp_path / "1")
    assert_equal_runs(tmp_path / "2", left_alone(spec))


def damage(folder: Path, which: slice) -> None:
    for checkpoint in sorted((folder / "checkpoint" / "steps").iterdir())[which]:
        path = checkpoint / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])


def test_resume__passes_over_a_damaged_checkpoint_to_an_older_one(
    run_spec, home, tmp_path, left_alone
):
    spec = run_spec("carot", train={"checkpoint_every_steps": 2, "keep_checkpoints": 3})
    go_until(spec, tmp_path / "run", at_step(5))
    damage(tmp_path / "run", slice(-1, None))
    records = go(spec, tmp_path / "run")
    (warning,) = [r for r in records if r.kind == "log" and r.level == "warning"]
    assert "damaged checkpoint is passed over" in warning.message
    assert "checksum" in warning.message
    (resumed,) = [r for r in records if r.kind == "resumed"]
    assert resumed.step == 4
    assert_equal_runs(tmp_path / "run", left_alone(spec))


def test_resume__with_no_good_checkpoint_or_none_starts_anew_and_logs_no_step_twice(
    run_spec, home, tmp_path, left_alone
):
    spec = run_spec("carot")
    killed = run_in_folder(spec, tmp_path / "killed")
    next(record for record in killed if at_step(2)(record))
    killed.close()
    assert steps_of(tmp_path / "killed") == [1, 2]
    go(spec, tmp_path / "killed")
    assert_equal_runs(tmp_path / "killed", left_alone(spec))
    go_until(spec, tmp_path / "run", at_step(7))  # behind an epoch's end
    damage(tmp_path / "run", slice(None))
    records = go(spec, tmp_path / "run")
    warnings = [r.message for r in records if r.kind == "log" and r.level == "warning"]
    assert warnings[-1] == "No checkpoint is usable: training starts anew."
    assert not [r for r in records if r.kind == "resumed"]
    assert_equal_runs(tmp_path / "run", left_alone(spec))


def test_folder__and_checkpoint_of_another_spec_are_refused(run_spec, home, tmp_path):
    go_until(run_spec("carot"), tmp_path / "run", at_step(2))
    files = sorted(str(p) for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(CheckpointError, match=r"another RunSpec \('tiny carot'\).*--overwrite"):
        go(run_spec("flyp"), tmp_path / "run")
    assert sorted(str(p) for p in (tmp_path / "run").rglob("*")) == files
    (tmp_path / "run" / "spec.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        go(run_spec("carot"), tmp_path / "run")
    go_until(run_spec("carot"), tmp_path / "old", at_step(2))
    with pytest.raises(CheckpointError, match="belongs to another RunSpec"):
        go(run_spec("carot", train={"seed": 9}), tmp_path / "new", resume_from=tmp_path / "old")


def test_space__too_little_of_it_is_an_error_before_anything_starts(run_spec, home, tmp_path):
    with (
        small_disk(tmp_path / "disk", mib=4) as disk,
        pytest.raises(DiskFullError, match="only 4 MiB are free.* 256 MiB are the least"),
    ):
        go(run_spec("carot"), disk / "run")


@contextmanager
def child(*arguments: str, home: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment(home),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def has_reached(folder: Path, step: int) -> Callable[[], bool]:
    path = folder / "metrics.jsonl"
    return lambda: path.is_file() and path.read_bytes().count(b"\n") > step


def write_job(folder: Path, spec: RunSpec) -> None:
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(spec.model_dump_json())
    (folder / "job.json").write_text(JobFile(run_id="run 1").model_dump_json())


def result_in(folder: Path) -> JobResult:
    return JobResult.model_validate_json((folder / "result.json").read_bytes())


def test_runner__asked_to_stop_saves_and_says_so_and_goes_on(run_spec, home, tmp_path):
    train = {"epochs": 10, "checkpoint_every_steps": 100, "spectrum_every_epochs": 0}
    spec, folder = run_spec("carot", train=train), tmp_path / "run"
    write_job(folder, spec)
    with child("-m", "calift_core.jobs", str(folder), home=home) as process:
        until(has_reached(folder, 4), timeout_s=120, what="step 4")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == EXIT_INTERRUPTED
    result = result_in(folder)
    assert (result.outcome, result.code) == ("interrupted", "INTERRUPTED")
    assert "its checkpoint is saved" in result.message
    resumed = next(r for r in run_in_folder(spec, folder, run_id="run 1") if r.kind == "resumed")
    assert resumed.step == len(steps_of(folder)) >= 4


@pytest.fixture
def run_here(monkeypatch, caplog):
    """The runner's `main` in this process, whose parent and signals are left as they are."""
    monkeypatch.setattr(runner, "die_with_parent", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    caplog.set_level(logging.INFO, logger=runner.log.name)
    return lambda folder: runner.main([str(folder)])


def test_runner__its_log_tells_the_course_of_the_run(
    run_spec, home, paintings, tmp_path, run_here, caplog
):
    folder = tmp_path / "run"
    write_job(folder, run_spec("carot", suite={"shifts": {"art": f"folder:{paintings}"}}))
    assert run_here(folder) == 0
    answer = [r.getMessage() for r in caplog.records if r.name == runner.log.name]
    phases = [words for words in answer if words.startswith(("loading: ", "training: 8 steps on"))]
    assert len(phases) == 2
    assert any(re.fullmatch(r"training: \d of 8, [\d,]+ images/s", words) for words in answer)
    report = report_in(folder)
    for e in report.evaluations:
        wanted = f"{e.dataset}: accuracy {percent(e.accuracy)}, ECE {percent(e.ece.value)}"
        assert any(words.startswith(wanted) for words in answer), e.dataset
    assert answer[-1] == "done"


def test_runner__failure_is_a_code_and_a_sentence(run_spec, home, tmp_path, run_here):
    write_job(tmp_path / "run", run_spec("flyp", suite={"id": f"folder:{tmp_path}/gone"}))
    assert run_here(tmp_path / "run") == 1
    result = result_in(tmp_path / "run")
    assert (result.outcome, result.code) == ("failed", "DATA_UNAVAILABLE")
    assert "there is no folder" in result.message
    assert "class" in result.hint


def evaluate(spec: RunSpec, finished: Path, folder: Path) -> Report:
    for _ in evaluate_finished(spec, finished, folder):
        pass
    return report_in(folder)


def test_evaluate__refuses_other_classes_and_folders_of_a_run_or_without_a_model(
    finished, home, tmp_path
):
    spec, folder, _ = finished
    before = (folder / "report.json").read_bytes()
    with pytest.raises(SpecError, match="a folder of its own"):
        evaluate(spec, folder, folder)
    assert (folder / "report.json").read_bytes() == before
    write_classes(tmp_path / "other", ("cat", "dog"), n=20)
    suite = spec.suite.model_copy(update={"id": f"folder:{tmp_path}/other", "shifts": {}})
    with pytest.raises(DataError, match=r"trained on the classes \['blue_thing'.*'cat', 'dog'"):
        evaluate(spec.model_copy(update={"suite": suite}), folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match="holds no finished run"):
        evaluate(spec, tmp_path / "empty", tmp_path / "out")


def write_idx(path: Path, array: Any) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def small_fashion(home, tmp_path, monkeypatch):
    """64 and 40 pictures in Fashion-MNIST's format; all of the former are its pre-training part."""
    folder = tmp_path / "fashion"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for stem, n in (("train", 64), ("t10k", 40)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{stem}-images-idx3-ubyte", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte", (np.arange(n) % 10).astype(np.uint8))
    monkeypatch.setenv("CALIFT_FASHION_MNIST", str(folder))
    return folder


def test_tiny__is_pre_trained_once_and_again_only_for_other_data_or_damage(
    small_fashion, home, tmp_path
):
    records = list(ensure_tiny("fashion-mnist"))
    assert records[0].kind == "log"
    assert {r.phase for r in records[1:] if r.kind in ("phase", "progress")} == {"pretraining"}
    spec = pretraining_spec()
    assert tiny_is_current(spec, load_suite(spec.suite))
    clip = load_clip("calift-tiny", "fashion-mnist")
    digest = weights_sha256(clip.net)
    assert list(ensure_tiny("fashion-mnist")) == []

    (file,) = (home / "models" / "calift-tiny").glob("*/model.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert not tiny_is_current(spec, load_suite(spec.suite))
    go(spec, tmp_path / "run")  # a submitted pre-training publishes its weights
    assert (tmp_path / "run" / "report.json").is_file()
    assert list(ensure_tiny("fashion-mnist")) == []
    assert weights_sha256(load_clip("calift-tiny", "fashion-mnist").net) == digest

    other = np.full((64, 28, 28), 7, dtype=np.uint8)
    write_idx(small_fashion / "train-images-idx3-ubyte", other)
    assert not tiny_is_current(spec, load_suite(spec.suite))


def test_tiny__a_pre_training_that_was_killed_in_its_first_epoch_goes_on(
    small_fashion, home, tmp_path, monkeypatch
):
    spec = pretraining_spec()
    train = spec.train.model_copy(update={"epochs": 1, "batch_size": 16})
    small = spec.model_copy(update={"train": train})
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (160, 28, 28), dtype=np.uint8)  # 10 steps
    write_idx(small_fashion / "train-images-idx3-ubyte", images)
    write_idx(small_fashion / "train-labels-idx1-ubyte", (np.arange(160) % 10).astype(np.uint8))
    monkeypatch.setattr("calift_core.jobs.tiny.pretraining_spec", lambda suite: small)
    requested = itertools.count(1)

    def stop():
        if next(requested) == 7:  # what is on the disk now is what a SIGKILL would leave
            shutil.copytree(home / "models", tmp_path / "left")
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        list(ensure_tiny("fashion-mnist", stop=stop))
    shutil.rmtree(home / "models")
    (tmp_path / "left").rename(home / "models")
    again = list(ensure_tiny("fashion-mnist"))
    (answer,) = [r.message for r in again if r.kind == "log" and "goes on" in r.message]
    assert "from step 6 of an earlier start" in answer
    assert tiny_is_current(small, load_suite(small.suite))


def test_tiny__whoever_comes_second_waits_and_can_be_stopped(small_fashion):
    first = ensure_tiny("fashion-mnist")
    assert next(first).kind == "log"
    with pytest.raises(InterruptedRunError, match="another run pre-trains"):
        list(ensure_tiny("fashion-mnist", stop=lambda: True))
    first.close()


def test_tiny__weights_of_a_suite_that_nobody_knows_are_unavailable(home):
    with pytest.raises(ModelUnavailableError, match="no weights 'fashion-mist'.*unknown suite"):
        list(ensure_tiny("fashion-mist"))
