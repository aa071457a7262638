"""The dry run: the API, the command and the loaders say the same; a run that ended tells a pace."""

# ruff: noqa: F811
import json
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from backend.store.models import Run
from calift_core.data.suites.load import load_suite
from calift_core.data.workload import count_images
from calift_core.evaluation.items import n_images_of
from calift_core.jobs import estimate
from calift_core.schema import records as r
from calift_core.schema.report import Report
from calift_core.schema.spec import RunSpec, load_spec, parse_spec
from calift_core.schema.wire.runs import Estimate, Validation
from tests.conftest import spec_of
from tests.core.conftest import VIT, write_classes
from tests.core.data.test_suites import PACS, cifar10_c, pacs  # noqa: F401 - fixtures
from tests.support import record_run

#: What of an estimate does not depend on who asks.
NUMBERS = {
    "train_images",
    "steps",
    "evaluation_images",
    "selection_images",
    "parts",
    "shifts",
    "corrupted_images",
}


def ask(api: TestClient, spec: RunSpec) -> Validation:
    body = {"spec": spec.model_dump(mode="json")}
    return Validation.model_validate(api.post("/api/v1/runs/validate", json=body).json())


def numbers(of: Estimate) -> dict[str, Any]:
    return of.model_dump(include=NUMBERS)


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(VIT))
    return {"name": str(tmp_path / "tiny.json"), "pretrained": None}


@pytest.mark.parametrize(
    ("suite", "train", "evaluated"),
    [
        ("cifar10", 39_859, 10_000),
        ("cifar10-c", 39_859, 760_000),
        ("imagenet", 1_024_934, 166_963),
        ("imagenet-c", 1_024_934, 3_800_000),
        ("pacs", 1_002, 8_655),
        ("office-home", 2_614, 12_102),
    ],
)
def test_dry_run__published_suites_have_the_same_numbers_by_api_and_command(
    api, tiny, suite, train, evaluated
):
    spec = spec_of(model=tiny, suite={"id": suite, "templates": "plain"})
    by_api, by_command = ask(api, spec), estimate.validate(spec, measure=False)
    assert numbers(by_api.estimate) == numbers(by_command.estimate)
    assert by_api.estimate.evaluation_images == evaluated
    assert by_api.estimate.train_images == pytest.approx(train, abs=1)
    assert by_api.blocking == ([] if suite == "cifar10" else by_api.missing[:1])
    assert len(by_command.blocking) == len(by_api.blocking)


@pytest.mark.parametrize("suite", ["pacs", "folder", "cifar10-c"])
def test_dry_run__suites_that_are_here_have_the_numbers_of_the_loaders(
    api, tiny, request, tmp_path, suite
):
    where = request.getfixturevalue({"cifar10-c": "cifar10_c"}.get(suite, "pacs"))
    data = {"id": f"{suite}:{where}", "templates": "plain"}
    if suite == "folder":
        data |= {
            "id": f"folder:{where}/photo",
            "shifts": {"art": f"folder:{where}/art_painting"},
            "corruptions": {"names": "benchmark", "severities": [2, 4], "limit": 3},
        }
    spec = spec_of(model=tiny, suite=data, train={"batch_size": 8})
    loaded = load_suite(spec.suite)
    by_api, by_command = ask(api, spec), estimate.validate(spec, measure=False)
    assert by_command.valid, by_command.errors
    assert numbers(by_api.estimate) == numbers(by_command.estimate)
    assert by_api.estimate.train_images == len(loaded.parts["train"])
    answer = by_api.estimate
    assert (answer.evaluation_images or 0) + (answer.selection_images or 0) == n_images_of(loaded)
    assert by_api.blocking == by_command.missing == []


def test_dry_run__folders_that_do_not_fit_are_refused_by_both(api, tiny, tmp_path):
    write_classes(tmp_path / "photos", PACS, n=3)
    write_classes(tmp_path / "art", PACS[:3], n=3)
    suite = {"id": f"folder:{tmp_path}/photos", "shifts": {"art": f"folder:{tmp_path}/art"}}
    spec = spec_of(model=tiny, suite=suite)
    by_api, by_command = ask(api, spec), estimate.validate(spec, measure=False)
    assert [e["pointer"] for e in by_api.errors] == ["#/spec/suite/shifts/art"]
    assert [e["pointer"] for e in by_command.errors] == ["#/suite/shifts/art"]
    assert by_api.errors[0]["message"] == by_command.errors[0]["message"]


def test_dry_run__of_the_api_tells_nothing_of_its_working_folder(api, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    bodies = []
    for name in ("pictures", "nothings"):
        spec = spec_of(suite={"id": name}).model_dump(mode="json")
        answer = api.post("/api/v1/runs/validate", json={"spec": spec})
        seen = api.get("/api/v1/datasets/scan", params={"suite": name})
        problem = {k: v for k, v in seen.json().items() if k not in ("request_id", "instance")}
        bodies.append((answer.text + json.dumps(problem)).replace(name, "NAME"))
    assert "unknown suite 'NAME'" in bodies[0]
    assert bodies[0] == bodies[1]


def test_dry_run__what_is_left_out_is_named_alike_everywhere(api, tiny, tmp_path):
    for part, n in (("train", 12), ("val", 10), ("calib", 10), ("test", 10)):
        write_classes(tmp_path / "photos" / part, PACS, n=n)
        for name in ("a.heic", "b.HEIC"):
            (tmp_path / "photos" / part / PACS[0] / name).write_bytes(b"heic")
    write_classes(tmp_path / "art", PACS, n=3)
    (tmp_path / "art" / PACS[0] / "c.heif").write_bytes(b"heif")
    suite = {"id": f"folder:{tmp_path}/photos", "shifts": {"art": f"folder:{tmp_path}/art"}}
    spec = spec_of(model=tiny, suite=suite, method={"kind": "flyp"})
    output, shift = load_suite(spec.suite).notes
    assert shift == (
        "the shift 'art': 1 file is no image that can be read and left out (1 .heif): "
        f"art/{PACS[0]}/c.heif; .heif cannot be read, JPEG or PNG can"
    )
    assert "8 files are no images that can be read and left out (8 .heic): " in output
    assert f"test/{PACS[0]}/a.heic" in output
    for warnings in (ask(api, spec).warnings, estimate.validate(spec, measure=False).warnings):
        assert [warnings.count(one) for one in (output, shift)] == [1, 1]
    found = api.get("/api/v1/datasets/scan", params={"suite": spec.suite.id}).json()
    assert found["notes"].count(output) == 1


def test_dry_run__two_steps_are_warned_of_and_a_bare_path_is_a_folder(api, tiny, tmp_path):
    write_classes(tmp_path / "photos", PACS, n=12)
    spec = spec_of(model=tiny, suite={"id": str(tmp_path / "photos")}, train={"epochs": 2})
    assert spec.suite.id == f"folder:{tmp_path}/photos"
    answer = ask(api, spec)
    assert answer.estimate.steps == 2
    assert "Only 2 steps of training" in answer.warnings[0]
    assert answer.valid
    assert not answer.blocking


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A real run's folder and what it said."""
    root = tmp_path_factory.mktemp("recorded")
    return root, record_run.record(root)


def test_pace__of_a_recorded_run_is_known_afterwards_for_runs_like_it(store, recorded, monkeypatch):
    tmp_path, lines = recorded
    monkeypatch.chdir(tmp_path)
    report = Report.model_validate_json((tmp_path / "run" / "report.json").read_bytes())
    spec = load_spec(tmp_path / "run" / "spec.json")

    def pace_of(spec):
        return store.results.pace(spec, count_images(spec))

    assert pace_of(spec) is None
    run_id = store.runs.submit(spec)
    assert store.claims.claim(run_id, worker_id="w", ttl_s=60) is not None
    output = [r.RECORD.validate_json(line) for line in lines]
    for record in output:
        assert store.records.record(run_id, 1, [record])
    assert pace_of(spec) is None, "no run has ended yet"
    assert store.claims.finish(run_id, 1, phase="SUCCEEDED", report=report.model_dump(mode="json"))
    # As if starting its process and storing its files had taken 3 s more than the run itself.
    wall = report.timings_s["total_s"] + 3
    with store.results._engine.begin() as connection:
        connection.execute(update(Run).values(finished_at=Run.started_at + wall))
    pace = pace_of(spec)
    assert pace is not None
    assert count_images(spec).estimate(pace).seconds == pytest.approx(wall, rel=0.05)

    def like(**changes):
        data = spec.model_dump(mode="json")
        return parse_spec(
            {k: {**v, **changes.get(k, {})} if isinstance(v, dict) else v for k, v in data.items()}
            | ({"method": changes["method"]} if "method" in changes else {})
        )

    longer = pace_of(like(train={"epochs": 9}))  # of another size, and still the nearest
    assert longer is not None
    assert replace(longer, basis=pace.basis) == pace
    other_method = pace_of(like(method={"kind": "flyp"}))
    assert other_method.trained_per_s is None
    assert other_method.predicted_per_s == pace.predicted_per_s
    assert pace_of(like(train={"device": "cuda"})) is None
    assert pace_of(like(model={"name": "ViT-B-32"})) is None


def test_pace__the_dry_run_knows_a_time_once_a_run_like_it_has_ended(
    api, app, recorded, monkeypatch
):
    tmp_path, lines = recorded
    monkeypatch.chdir(tmp_path)
    spec = load_spec(tmp_path / "run" / "spec.json")
    before = ask(api, spec)
    assert before.estimate.steps == 18
    assert before.estimate.seconds is None
    store = app.state.services.store
    run_id = store.runs.submit(spec)
    assert store.claims.claim(run_id, worker_id="w", ttl_s=60) is not None
    assert store.records.record(run_id, 1, [r.RECORD.validate_json(line) for line in lines])
    report = json.loads((tmp_path / "run" / "report.json").read_bytes())
    assert store.claims.finish(run_id, 1, phase="SUCCEEDED", report=report)
    after = ask(api, spec)
    assert numbers(after.estimate) == numbers(before.estimate)
    assert after.estimate.seconds is not None
    assert after.estimate.seconds == pytest.approx(sum(after.estimate.phases.values()))
    assert "the pace of a finished run of tiny.json with carot on cpu" in after.estimate.basis
    by_command = estimate.validate(spec, measure=False, reports=[report])
    assert by_command.estimate.seconds == pytest.approx(after.estimate.seconds)
    assert numbers(by_command.estimate) == numbers(after.estimate)
