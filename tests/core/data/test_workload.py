"""What a run has to do and how long it takes: one formula, and a pace that real runs told."""

from typing import Any

import pytest

from calift_core.data.counting import SuiteCounts
from calift_core.data.suites.load import load_suite
from calift_core.data.workload import (
    NOISE_IMAGES,
    Forecast,
    Pace,
    Workload,
    count_images,
    recorded_pace,
)
from calift_core.evaluation.items import n_images_of
from calift_core.jobs.folder import run_in_folder
from calift_core.predictions.training import TRAINING_IMAGES, read_training_images
from calift_core.schema.methods.merge import ONE_SE_PATH
from calift_core.schema.records import MetricsRecord, ProgressRecord
from calift_core.schema.report import Report
from calift_core.schema.spec import RunSpec, parse_spec
from calift_core.schema.wire.runs import Progress

PACE = Pace(100.0, 1000.0, "a pace")


def cifar(kind: str = "carot", *, method: Any = None, suite: Any = None, **train: Any) -> RunSpec:
    """A run on CIFAR-10, which is not on any machine of the tests: its sizes are published."""
    return parse_spec(
        {
            "name": "a run",
            "method": {"kind": kind} | (method or {}),
            "suite": {"id": "cifar10"} | (suite or {}),
            "train": {"batch_size": 100, "epochs": 2, "keep_features": 0} | train,
        }
    )


@pytest.fixture(autouse=True)
def _no_settings(home):
    """No suite is named from outside."""


def test_work__a_run_trains_predicts_and_validates():
    work = count_images(cifar())
    parts = work.counts.parts
    steps = 2 * (parts["train"] // 100)
    assert (work.train_images, work.steps, work.trained) == (parts["train"], steps, 100 * steps)
    assert work.evaluation_images == 10_000
    assert work.selection_images == parts["validation"] + parts["calibration"]
    assert work.other_images == 2 * parts["validation"]
    expected = steps + (10_000 + work.selection_images + work.other_images) / 1000
    assert work.estimate(PACE).seconds == pytest.approx(expected)
    seldom = count_images(cifar(spectrum_every_epochs=2))
    assert seldom.other_images == parts["validation"]
    assert count_images(cifar(spectrum_every_epochs=0)).other_images == 0


def test_work__corruptions_shifts_and_models_multiply(tmp_path):
    corruptions = {"names": ["fog", "snow"], "severities": [1, 5], "limit": 50}
    (tmp_path / "far.png").touch()
    far = {"corruptions": corruptions, "ood": {"far": f"folder:{tmp_path}"}}
    one = count_images(cifar("zero_shot", suite={"corruptions": corruptions}))
    assert one.evaluation_images == 10_000 + 4 * 50
    assert (one.train_images, one.steps, one.trained) == (None, None, 0)
    path = {"run": "abc", "sweep": [0.0, 0.5, 1.0], "alpha": 0.25}  # four models
    many = count_images(cifar("wise_ft", method=path, suite={"corruptions": corruptions}))
    assert many.evaluation_images == 4 * (one.evaluation_images or 0)
    beside = count_images(cifar("wise_ft", method=path, suite=far))  # a far set is predicted once
    assert beside.evaluation_images == many.evaluation_images + 1
    assert beside.estimate().ood == {"far": 1}
    chosen = count_images(cifar("wise_ft", method={"run": "abc", "choose": "one_se", "sweep": []}))
    n_validation = chosen.counts.parts["validation"]
    assert chosen.other_images == len(ONE_SE_PATH) * n_validation
    assert chosen.evaluation_images == count_images(cifar("zero_shot")).evaluation_images
    vrf, dawin = (count_images(cifar(kind, method={"run": "abc"})) for kind in ("vrf", "dawin"))
    parts = many.counts.parts
    assert (vrf.evaluation_images, dawin.evaluation_images) == (20_000, 30_000)
    assert vrf.other_images == 2 * (parts["calibration"] + parts["train"])
    assert dawin.other_images == 2 * parts["calibration"]
    assert many.selection_images == 4 * parts["validation"] + parts["calibration"]


@pytest.mark.parametrize(
    ("kind", "method", "encoded", "steps_on"),
    [
        ("linear_probe", {}, ("train",), True),
        ("linear_probe", {"solver": "lbfgs"}, ("train", "validation"), False),
        ("lp_ft", {}, ("train",), True),
        ("flyp", {}, (), True),
    ],
)
def test_work__features_are_computed_once(kind, method, encoded, steps_on):
    work = count_images(cifar(kind, method=method, spectrum_every_epochs=0))
    assert work.other_images == sum(work.counts.parts[part] for part in encoded)
    assert (work.trained > 0) == steps_on


def test_work__perturbed_copies_count_and_pretraining_reads_its_own_part():
    work = count_images(cifar("pretrain", suite={"id": "fashion-mnist"}))
    assert work.train_images == 40_000
    (problem,) = count_images(cifar("pretrain")).problems
    assert problem == ("#/suite", "no images in pretrain")
    data = cifar().model_dump(mode="json") | {"evaluation": {"perturbed_calibration": True}}
    plain, more = count_images(cifar()), count_images(parse_spec(data))
    n = plain.counts.parts["calibration"]
    assert more.other_images - plain.other_images == 9 * n + 91 * NOISE_IMAGES


def test_work__few_steps_are_warned_of():
    assert not count_images(cifar()).warnings
    few = count_images(cifar(suite={"limits": {"train": 300}}, batch_size=512))
    (warning,) = few.warnings
    assert few.steps == 2
    assert few.trained == 600  # a set smaller than a batch is one batch
    assert "Only 2 steps of training (300 images in batches of 512, 2 epochs)" in warning


def test_seconds__are_unknown_where_a_part_is(tmp_path):
    work = count_images(cifar())
    assert work.estimate(Pace(None, 1000.0, "")).seconds is None
    assert work.estimate(Pace(100.0, None, "")).seconds is None
    assert count_images(cifar("zero_shot")).estimate(Pace(None, 1000.0, "")).seconds is not None
    gone = count_images(cifar(suite={"shifts": {"art": f"folder:{tmp_path}/art"}}))
    assert gone.estimate(PACE).seconds is None
    assert len(gone.blocking) == 1
    assert len(gone.missing) == 2  # torchvision downloads CIFAR by itself


def report(
    kind = "carot", *, training = 100.0, device = "cpu", fixed = 8.0,
    suite = None, **changes,
):  # fmt: skip
    """The parts of a report that tell a pace."""
    requested = cifar(kind, suite=suite)
    spec = requested.model_dump(mode="json")
    spec["model"] |= changes.get("model", {})
    spec["train"] |= changes.get("train", {})
    work = count_images(requested)
    parts = {
        "loading_s": fixed,
        "training_s": work.trained / training + work.training_images / (10 * training),
        "evaluation_s": ((work.predicted or 0) - work.training_images) / (10 * training),
    }
    return {
        "spec": spec,
        "environment": {"device": device, "precision": "fp32"},
        "data": {"parts": dict(work.counts.parts), "shifts": dict(work.counts.shifts)},
        "timings_s": parts | {"total_s": sum(parts.values())},
    }


def pace_of(reports: list[dict[str, Any]], spec: RunSpec) -> Pace | None:
    return recorded_pace(reports, spec, count_images(spec))


TOY = {"limits": {"train": 300, "validation": 30, "calibration": 30, "test": 50}}


@pytest.mark.parametrize("kind", ["carot", "zero_shot"])
def test_estimate__of_a_run_whose_parts_were_recorded_is_their_sum(kind):
    answer = report(kind, fixed=58.0)
    estimate = count_images(cifar(kind)).estimate(pace_of([answer], cifar(kind)))
    assert estimate.seconds == pytest.approx(answer["timings_s"]["total_s"])
    assert sum(estimate.phases.values()) == pytest.approx(estimate.seconds)
    assert estimate.phases["start and saving"] == pytest.approx(58.0)
    # What its process did not see, being started and stored, is no pace.
    whole = answer | {"wall_s": answer["timings_s"]["total_s"] + 5.0}
    more = count_images(cifar(kind)).estimate(pace_of([whole], cifar(kind)))
    assert more.seconds == pytest.approx(estimate.seconds + 5.0)
    assert more.phases | {"start and saving": 58.0} == pytest.approx(estimate.phases)


def test_estimate__a_toy_run_does_not_move_that_of_a_large_one():
    toy = report(training=3.0, suite=TOY)
    large, small = cifar(), cifar(suite=TOY)
    alone, both = (pace_of(reports, large) for reports in ([report()], [toy, toy, report()]))
    assert alone == both
    assert pace_of([toy], small) == pace_of([report(), toy], small)
    far = pace_of([toy], large)
    assert far.basis.endswith("on cpu, the nearest in size and still 133 times smaller")


def test_pace__is_the_median_of_runs_of_the_same_kind_and_of_another_for_predicting_only():
    reports = [report(training=t) for t in (90.0, 200.0, 100.0)]
    reports += [report("flyp", training=5.0), {"spec": {}, "environment": {}, "timings_s": {}}]
    pace = pace_of(reports, cifar())
    assert pace.trained_per_s == 100.0
    assert pace.predicted_per_s == 950.0  # predicting does not depend on the method
    assert pace.basis == "at the median pace of 3 finished runs of calift-tiny with carot on cpu"
    pace = pace_of([report("flyp")], cifar())
    assert (pace.trained_per_s, pace.predicted_per_s) == (None, pytest.approx(1000.0))
    assert count_images(cifar()).estimate(pace).seconds is None
    alone = pace_of([report("flyp")], cifar("zero_shot"))
    assert alone is not None
    assert count_images(cifar("zero_shot")).estimate(alone).seconds is not None


@pytest.mark.parametrize(
    ("reported", "asked"),
    [
        ({"model": {"name": "ViT-B-32", "pretrained": "openai"}}, {}),
        ({"device": "cuda:0"}, {"device": "cpu"}),
        ({}, {"device": "cuda"}),
        ({}, {"precision": "bf16"}),
        ({}, {"confidence": {"zero_shot_kd": 1.0}}),
        ({"train": {"confidence": {"label_smoothing": 0.1}}}, {}),
    ],
)
def test_pace__of_another_model_device_or_loss_is_none_of_training(reported, asked):
    pace = pace_of([report(**reported)], cifar(**asked))
    assert pace is None or pace.trained_per_s is None
    assert count_images(cifar(**asked)).estimate(pace).seconds is None


def test_pace__of_any_device_is_that_of_the_newest_run_alone():
    reports = [report(training=5000.0, device="cuda:0"), report(training=10.0)]
    pace = pace_of(reports, cifar())
    assert pace.trained_per_s == 5000.0
    assert pace.basis == "at the pace of a finished run of calift-tiny with carot on cuda"
    on_cpu = pace_of(reports, cifar(device="cpu"))
    assert on_cpu.trained_per_s == 10.0


@pytest.mark.parametrize("kind", ["carot", "linear_probe"])
def test_pace__a_real_run_tells_it_and_the_count_is_what_it_read(
    run_spec, paintings, tmp_path, kind
):
    corruptions = {"names": ["fog"], "severities": [1, 3]}
    suite = {"shifts": {"art": f"folder:{paintings}"}, "corruptions": corruptions}
    spec = run_spec(kind, suite=suite)
    output = list(run_in_folder(spec, tmp_path / "run"))
    work = count_images(spec)
    answer = Report.model_validate_json((tmp_path / "run" / "report.json").read_bytes())

    trained = [r for r in output if isinstance(r, ProgressRecord) and r.phase == "training"]
    evaluated = [r for r in output if isinstance(r, ProgressRecord) and r.phase == "evaluating"]
    assert (trained[-1].total_steps if trained else None) == work.steps
    assert evaluated[-1].total_steps == n_images_of(load_suite(spec.suite))
    assert evaluated[-1].total_steps == (work.evaluation_images or 0) + (work.selection_images or 0)
    judged = sum(e.n for e in answer.evaluations)
    assert judged == work.evaluation_images
    checks = [r for r in output if isinstance(r, MetricsRecord) and "val_ece" in r.values]
    features = work.train_images if kind == "linear_probe" else 0
    kept = read_training_images(tmp_path / "run" / "checkpoint" / TRAINING_IMAGES)
    read = len(checks) * work.counts.parts["validation"] + (features or 0) + len(kept.ids)
    assert work.other_images == read

    pace = pace_of([answer.model_dump(mode="json")], spec)
    assert (pace.trained_per_s is not None) == bool(trained)
    estimate = work.estimate(pace)
    assert estimate.seconds == pytest.approx(answer.timings_s["total_s"], rel=0.05)
    assert "of a finished run of" in estimate.basis


@pytest.mark.parametrize(("known", "slowness"), [(True, 1.0), (True, 2.5), (False, 0.1)])
def test_forecast__time_passed_and_time_left_are_the_whole_at_every_point(known, slowness):
    """Of a run whose phases all take `slowness` times what was said."""
    output = {"loading": 4.0, "training": 60.0, "evaluating": 36.0}
    forecast, passed, fractions = Forecast(output, known=known), 0.0, [0.0]
    begun = forecast.over(Progress(phase="loading"))
    assert begun.run_eta_s == (100.0 if known else None)
    passed += 4.0 * slowness
    for phase in ("training", "evaluating"):
        forecast.over(Progress(phase=phase))
        for step in range(1, 10):
            passed += output[phase] * slowness / 10
            left = output[phase] * slowness * (1 - step / 10)
            now = forecast.over(Progress(phase=phase, step=step, total_steps=10, eta_s=left))
            assert now.run_eta_s is not None
            assert passed + now.run_eta_s == pytest.approx(100.0 * slowness)
            assert now.run_fraction == pytest.approx(passed / (100.0 * slowness))
            fractions.append(now.run_fraction or 0.0)
        passed += output[phase] * slowness / 10
    again = forecast.over(Progress(phase="evaluating", detail="features"))
    saved = forecast.over(Progress(phase="saving"))
    fractions += [again.run_fraction or 0.0, saved.run_fraction or 0.0]
    assert fractions == sorted(fractions)
    assert saved.run_fraction == 0.99


def test_forecast__of_a_run_counts_what_its_estimate_counts():
    spec = cifar()
    work = count_images(spec)
    pace = Pace(100.0, 400.0, "", fixed_s=7.0)
    estimate = work.estimate(pace).seconds
    forecast = Forecast.of(work, pace)
    assert forecast.over(Progress(phase="loading")).run_eta_s == pytest.approx(estimate)
    unknown = Forecast.of(work, None)
    assert unknown.over(Progress(phase="loading")).run_eta_s is None
    assert Forecast.of(Workload(SuiteCounts(basis="")), pace) is None
