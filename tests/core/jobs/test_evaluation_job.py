"""Evaluation jobs in their folder: what they find equals what a run finds that named the data."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from calift_core.analysis.report import read_report
from calift_core.errors import DataError, InterruptedRunError, ModelUnavailableError
from calift_core.jobs.evaluation_job import RUNS, evaluate_in_folder, evaluate_runs
from calift_core.predictions.types import predictions_name
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.records import (
    RECORD,
    EvaluationRecord,
    LogRecord,
    PhaseRecord,
    ProgressRecord,
    Record,
)
from calift_core.schema.report import EvaluationReport, Report
from calift_core.schema.unlabelled import UnlabelledRecord
from calift_core.shipping.choosing import choose_calibrator
from calift_core.shipping.classifier import CalibratedClassifier
from calift_core.shipping.following import in_batches
from calift_core.shipping.predicting import image_paths
from calift_core.shipping.reference import reference_of
from calift_core.shipping.watching import Watcher, answered, watch
from tests.core.conftest import write_classes
from tests.support.finished import run_once, small_spec

CORRUPTIONS = {"names": ["gaussian_noise"], "severities": [3]}


def reports(folder: Path) -> dict[str, EvaluationReport]:
    body = Report.model_validate_json((folder / "report.json").read_bytes())
    return {e.dataset: timeless(e) for e in body.evaluations}


def timeless(evaluation: EvaluationReport) -> EvaluationReport:
    return evaluation.model_copy(update={"seconds": 0.0})


def found_in(records: list[Record]) -> dict[tuple[str | None, str], EvaluationReport]:
    return {
        (r.run, r.evaluation.dataset): timeless(r.evaluation)
        for r in records
        if isinstance(r, EvaluationRecord)
    }


def recorded(folder: Path) -> list[Record]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [RECORD.validate_json(line) for line in lines]


def messages(records: list[Record]) -> list[str]:
    return [r.message for r in records if isinstance(r, LogRecord)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, configs, photos):
    """Two finished runs of one tower, one of another: not to be changed."""
    home = tmp_path_factory.mktemp("finished")
    return {
        name: run_once(small_spec(kind, configs[tower], photos), home / name)
        for name, kind, tower in (
            ("zs", "zero_shot", "vit"),
            ("ft", "finetune", "vit"),
            ("other", "zero_shot", "resnet"),
        )
    }


def job(*runs: str, **data: Any) -> EvaluationJobSpec:
    return EvaluationJobSpec.model_validate({"runs": runs, "device": "cpu"} | data)


def test_evaluate_runs__results_are_those_of_a_run_that_had_the_data_in_its_spec(
    finished, paintings, photos, configs, tmp_path
):
    requested = job("zs", "ft", "other", shifts={"art": str(paintings)}, corruptions=CORRUPTIONS)
    records = list(evaluate_runs(requested, tmp_path / "job", inputs=finished))
    found = found_in(records)
    assert len(found) == 6
    phases = [r.detail for r in records if isinstance(r, PhaseRecord) and r.phase == "evaluating"]
    assert phases == [
        "pass 1 of 2: 2 models in one pass, each image decoded once for all",
        "pass 2 of 2: 1 model in one pass, each image decoded once for all",
    ]
    suite = {"shifts": {"art": f"folder:{paintings}"}, "corruptions": CORRUPTIONS}
    for name, kind, tower in (("ft", "finetune", "vit"), ("other", "zero_shot", "resnet")):
        folder = tmp_path / f"{name} anew"
        run_once(small_spec(kind, configs[tower], photos, **suite), folder)
        anew = reports(folder)
        for dataset in ("art", "gaussian_noise/3"):
            assert found[name, dataset] == anew[dataset]
            file = predictions_name(dataset)
            mine = tmp_path / "job" / RUNS / name / file
            assert mine.read_bytes() == (folder / file).read_bytes()
    last = [r for r in records if isinstance(r, ProgressRecord)][-1]
    n_test = found["ft", "gaussian_noise/3"].n
    assert last.step == last.total_steps == 3 * (24 + n_test)


def test_evaluate_runs__what_was_evaluated_is_passed_over_and_other_images_get_a_name_of_their_own(
    finished, paintings, tmp_path
):
    run = tmp_path / "zs"
    shutil.copytree(finished["zs"], run)
    requested = job("zs", shifts={"art": str(paintings)})
    list(evaluate_runs(requested, tmp_path / "first", inputs={"zs": run}))
    shutil.copytree(
        tmp_path / "first" / RUNS / "zs" / "predictions", run / "predictions", dirs_exist_ok=True
    )
    again = list(evaluate_runs(requested, tmp_path / "second", inputs={"zs": run}))
    assert found_in(again) == {}
    assert "The run zs was evaluated on art already." in messages(again)
    other = write_classes(tmp_path / "other", n=4, seed=9)
    requested = job("zs", shifts={"art": str(other)})
    (found,) = found_in(list(evaluate_runs(requested, tmp_path / "third", inputs={"zs": run})))
    assert found[1].startswith("art-")
    # The suite that the run is of: nothing of it is new.
    requested = job("zs", suites=[_suite_of(run)])
    assert found_in(list(evaluate_runs(requested, tmp_path / "fourth", inputs={"zs": run}))) == {}


def _suite_of(run: Path) -> str:
    body = Report.model_validate_json((run / "report.json").read_bytes())
    return str(body.spec["suite"]["id"])


def test_evaluate_runs__another_suite_is_a_shift_by_its_name(finished, tmp_path):
    write_classes(tmp_path / "suite" / "train", n=4)
    write_classes(tmp_path / "suite" / "test", n=5, seed=3)
    requested = job("zs", suites=[f"folder:{tmp_path / 'suite'}"])
    ((key, report),) = found_in(
        list(evaluate_runs(requested, tmp_path / "job", inputs=finished))
    ).items()
    assert key == ("zs", "suite")
    assert (report.n, report.role) == (15, "shift")


def test_evaluate_runs__a_run_that_is_gone_is_reported_and_the_others_are_evaluated(
    finished, paintings, tmp_path
):
    requested = job("zs", "ft", folders=[str(paintings)])
    records = list(evaluate_runs(requested, tmp_path / "a", inputs={"ft": finished["ft"]}))
    assert set(found_in(records)) == {("ft", "paintings")}
    assert messages(records)[0] == "The run zs is gone; the others are evaluated without it."
    with pytest.raises(ModelUnavailableError, match="zs, ft are gone"):
        list(evaluate_runs(requested, tmp_path / "b", inputs={}))


def test_evaluate_runs__other_classes_are_a_sentence(finished, tmp_path):
    write_classes(tmp_path / "data", ["blue_thing", "yellow_thing"], n=2)
    requested = job("zs", folders=[str(tmp_path / "data")])
    with pytest.raises(DataError, match="lacks the class folders green_thing, red_thing and has"):
        list(evaluate_runs(requested, tmp_path / "a", inputs=finished))
    requested = job("zs", suites=[f"folder:{tmp_path / 'data'}"])
    with pytest.raises(DataError, match="was trained on the classes"):
        list(evaluate_runs(requested, tmp_path / "b", inputs=finished))


def test_evaluation_job_spec__says_what_is_wrong_with_it():
    for body, words in (
        ({"runs": ["a"]}, "name what to judge the runs on"),
        ({"runs": [], "suites": ["imagenet"]}, "at least 1"),
        ({"runs": ["../x"], "suites": ["imagenet"]}, "named by its id"),
        ({"runs": ["a"], "folders": ["/x/art", "/y/art"]}, "two of the shifts are called 'art'"),
        ({"runs": ["a"], "folders": ["/x/a b"]}, "a shift's name has"),
        ({"runs": ["a"], "folders": ["/x/art"], "bins": 3}, "Extra inputs"),
    ):
        with pytest.raises(ValueError, match=words):
            EvaluationJobSpec.model_validate(body)
    spec = EvaluationJobSpec.model_validate(
        {"runs": "a", "folders": ["/x/art"], "shifts": {"b": "/y"}, "corruptions": CORRUPTIONS}
    )
    assert spec.runs == ("a",)
    assert spec.all_shifts == {"b": "folder:/y", "art": "folder:/x/art"}
    assert spec.title == "on b, art, gaussian_noise"


def test_evaluate_in_folder__killed_in_mid_set_goes_on_from_the_shard_and_ends_in_the_same_bytes(
    finished, home, tmp_path
):
    # 64 batches of 8 are 8 shards for each of the two models.
    data = write_classes(tmp_path / "data", n=171, seed=4)
    requested = job("zs", "ft", shifts={"art": str(data)})
    inputs = {name: finished[name] for name in requested.runs}
    whole, killed, resumed = (tmp_path / name for name in ("whole", "killed", "resumed"))
    again = list(evaluate_in_folder(requested, whole, inputs=inputs))

    def kept():
        return len(list(killed.glob("runs/*/evaluating/*/*.safetensors")))

    def stop():
        if kept() >= 4:
            raise KeyboardInterrupt  # nothing is saved on the way out
        return False

    with pytest.raises(KeyboardInterrupt):
        list(evaluate_in_folder(requested, killed, inputs=inputs, stop=stop))
    assert kept() == 4
    records = list(evaluate_in_folder(requested, resumed, inputs=inputs, resume_from=killed))
    for name in requested.runs:
        one, other = (
            folder / RUNS / name / "predictions" / "art.parquet" for folder in (whole, resumed)
        )
        assert one.read_bytes() == other.read_bytes()
    assert recorded(resumed) == records
    first = next(r for r in records if isinstance(r, ProgressRecord))
    assert first.total_steps == 2 * 513
    assert 4 * 64 <= first.step < 2 * 513  # what the first attempt did is not done again
    assert found_in(records) == found_in(again)


def test_judge_runs__images_without_labels_are_compared_as_watch_compares_them(
    finished, paintings, photos, tmp_path, monkeypatch
):
    flat = tmp_path / "flat"
    flat.mkdir()
    own, art = ([*sorted(folder.rglob("*.png"))] for folder in (photos, paintings))
    random.Random(0).shuffle(own)  # every batch has all classes
    for age, path in enumerate([*own, *art]):  # the paintings came last, and are listed first
        copy = flat / f"{path.parents[1].name}-{path.parent.name}-{path.name}"
        shutil.copyfile(path, copy)
        os.utime(copy, (age, age))
    (flat / "cut.png").write_bytes(b"none")
    requested = job("ft", shifts={"art": str(paintings)}, unlabelled=[str(flat)])
    records = list(evaluate_runs(requested, tmp_path / "job", inputs=finished))
    (found,) = [r for r in records if isinstance(r, UnlabelledRecord)]
    assert (found.run, found.source) == ("ft", f"folder:{flat}")
    assert [Path(name).name for name in found.found.unreadable] == ["cut.png"]
    assert RECORD.validate_json(found.model_dump_json()) == found
    last = [r for r in records if isinstance(r, ProgressRecord)][-1]
    assert last.step == last.total_steps
    run = finished["ft"]
    model = CalibratedClassifier.load(run, device="cpu")
    model.calibrator = choose_calibrator(run).fitted()
    reference = reference_of(run, read_report(run), model.calibrator)
    paths = image_paths([str(flat)])
    assert found.found == watch(model, reference, paths)
    assert found.found.none_of_these is None  # of 14 ID images 5 % cannot be kept to
    assert [b.n for b in found.batches] == [found.found.n]
    answers, read, _ = answered(model, paths)
    monkeypatch.setattr("calift_core.shipping.watching.ALARM_RATE", 0.1)
    watcher = Watcher(model, reference)
    share = watcher.compare(answers, read, {}).none_of_these.share
    assert share == model.none_of_these.alarms(answers.logits, 0.1).mean()
    batches = in_batches(watcher, answers, read, batch=len(art))
    assert sum(b.n for b in batches) == len(own) + len(art)
    assert max(batches, key=lambda b: b.distance) == batches[-1]
    with pytest.raises(InterruptedRunError):
        in_batches(watcher, answers, read, stop=lambda: True)
