"""A method that trains and a merge of what it left, through the API of a real stack.

That every method runs is said in `tests/core/jobs/test_every_method.py`.
"""

import json
from typing import Any

import pytest

from calift_core.client import Client
from calift_core.schema.methods import METHOD_SPECS
from tests.core.conftest import PHOTO, VIT, write_classes

#: One option of each that is not its default, to see that it arrives.
OPTIONS: dict[str, dict[str, Any]] = {
    "carot": {"lambda_x": 0.01, "teacher_update_every": 2},
    "wise_ft": {"alpha": 1.0, "sweep": [0.0, 0.5]},
}


@pytest.fixture(scope="module")
def finished(stack, tmp_path_factory):
    """A run of each kind; the merge once what it merges is there."""
    folder = tmp_path_factory.mktemp("data")
    photos = write_classes(folder / "photos", n=30)
    dark = write_classes(folder / "dark", n=8, seed=1, gain=0.5)
    config = folder / "vit.json"
    config.write_text(json.dumps(VIT))

    def spec(kind, **method):
        return {
            "name": f"tiny {kind}",
            "model": {"name": str(config), "pretrained": None},
            "method": {"kind": kind, **OPTIONS[kind], **method},
            "suite": {
                "id": f"folder:{photos}",
                "shifts": {"dark": f"folder:{dark}"},
                "templates": list(PHOTO),
            },
            "train": {"epochs": 1, "batch_size": 16, "lr": 1e-3, "log_every_steps": 1},
            "evaluation": {"n_resamples": 20, "batch_size": 64},
        }

    token = (stack.home / "token").read_text().strip()
    with Client(stack.urls["api"], token) as client:
        ids = {"carot": client.submit(spec("carot")).id}
        client.wait(ids["carot"], timeout_s=300)
        ids["wise_ft"] = client.submit(spec("wise_ft", run=ids["carot"])).id
        client.wait(ids["wise_ft"], timeout_s=120)
        yield client, ids


@pytest.mark.parametrize("kind", sorted(OPTIONS))
def test_method__launched_through_the_api_succeeds_with_its_options_and_its_own_curves(
    finished, kind
):
    client, ids = finished
    run = client.run(ids[kind])
    assert run.phase == "SUCCEEDED", (run.reason, run.message)
    stored = run.spec["method"]
    assert {name: stored[name] for name in OPTIONS[kind]} == OPTIONS[kind]
    names = {series.name for series in client.metrics(ids[kind]).series}
    spec = METHOD_SPECS[kind]
    assert set(spec.terms) <= names
    assert ("loss" in names) == spec.trains
    summary = client.report(ids[kind]).summary
    assert summary.id_accuracy is not None
    assert summary.ood_ece is not None


def test_prompts__are_kept_where_the_text_tower_is_the_classifier(finished):
    client, ids = finished
    (own,) = [e for e in client.run_evaluations(ids["carot"]) if e.role == "id"]
    found = client.prompts(own.id)
    assert {"own", "photo", *PHOTO} <= {e.name for e in found.items}
    assert found.items[0].accuracy == pytest.approx(own.accuracy, abs=1 / own.n)
    assert client.reliability(own.id, prompts=PHOTO[0]).prompts == PHOTO[0]
    assert client.samples(own.id).items[0].prompts


def test_merge__has_a_point_for_every_alpha_and_at_one_is_the_run_that_it_was_made_from(finished):
    client, ids = finished
    frontier = client.frontier(ids["wise_ft"])
    assert (frontier.input_run, frontier.alpha) == (ids["carot"], 1.0)
    assert [p.alpha for p in frontier.points] == [0.0, 0.5, 1.0]
    summary = client.report(ids["carot"]).summary
    assert frontier.points[-1].id_accuracy == summary.id_accuracy
    assert client.report(ids["wise_ft"]).spec["method"]["run"] == ids["carot"]
    files = {kind: {a.name: a.sha256 for a in client.artifacts(ids[kind])} for kind in OPTIONS}
    model = "checkpoint/model.safetensors"
    assert files["wise_ft"][model] == files["carot"][model]
    assert not any(name.startswith("inputs") for name in files["wise_ft"])
