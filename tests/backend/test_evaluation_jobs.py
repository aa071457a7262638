"""Evaluation jobs by REST and by the command: what is refused before it is queued, and why."""

# ruff: noqa: F811
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from calift.commands.evaluations import job_of
from calift_core.errors import ServiceError, SpecError
from calift_core.schema.wire.runs import Validation
from tests.backend.test_api import add_token
from tests.command.conftest import configs, one_thread, photos  # noqa: F401
from tests.conftest import as_admin, spec_of
from tests.core.conftest import write_classes
from tests.support.finished import run_once, small_spec, store_run

JOBS = "/api/v1/evaluation-jobs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, configs, photos):
    """A finished zero-shot run, to which a folder of photos is a far set."""
    home, far = tmp_path_factory.mktemp("finished"), {"far": f"folder:{next(photos.iterdir())}"}
    return run_once(small_spec("zero_shot", configs["vit"], photos, ood=far), home / "zs")


@pytest.fixture
def run_id(services, api, folder):
    """The run, which is ann's."""
    return store_run(services.store, services.artifacts, folder, submitted_by="ann")


@pytest.fixture
def art(tmp_path):
    return write_classes(tmp_path / "art", n=4, seed=1)


def refused(api: TestClient, body: dict[str, Any], pointer: str) -> str:
    """The sentence that a request is refused with, here and by the dry run; nothing is queued."""
    response = api.post("/api/v1/evaluations", json=body)
    assert response.status_code == 422, response.text
    found = {e["pointer"]: e["message"] for e in response.json()["errors"]}
    assert pointer in found, found
    checked = api.post("/api/v1/evaluations/validate", json=body)
    if checked.status_code == 200:
        validation = Validation.model_validate(checked.json())
        assert not validation.valid
        assert {e["pointer"]: e["message"] for e in validation.errors} == found
    assert api.get(JOBS).json()["total"] == 0
    return str(found[pointer])


def test_evaluate__everything_that_cannot_be_is_a_sentence_before_anything_is_queued(
    api, services, run_id, art, tmp_path
):
    def about(pointer, **body):
        return refused(api, {"runs": [run_id], **body}, pointer)

    shifts = {"art": str(art)}
    assert "there is no run 'nobody'" in about("#/runs/0", runs=["nobody"], shifts=shifts)
    waiting = services.store.runs.submit(spec_of())
    words = about("#/runs/1", runs=[run_id, waiting], shifts=shifts)
    assert "must have SUCCEEDED, it is QUEUED" in words
    assert "there is no folder" in about("#/shifts/a", shifts={"a": "/no/where"})
    assert "expected folder:PATH" in about("#/shifts/a", shifts={"a": "pacs:sketch"})
    write_classes(tmp_path / "other", ["blue_thing", "cat"], n=1)
    words = about("#/folders/0", folders=[str(tmp_path / "other")])
    assert "lacks the class folders green_thing, red_thing and has cat" in words
    words = about("#/suites/0", suites=[f"folder:{tmp_path / 'other'}"])
    assert "was trained on the classes ['blue_thing', 'green_thing', 'red_thing']" in words
    assert "unknown suite 'imagenot'" in about("#/suites/0", suites=["imagenot"])
    assert "is not complete on this machine" in about("#/suites/0", suites=["pacs"])
    assert "unknown corruption 'smog'" in about("#/corruptions/names", **_smog())
    assert "name what to judge the runs on" in about("#")
    assert "cannot be looked at" in about("#/shifts/a", shifts={"a": "/" + "x" * 300})
    assert "no user 'nobody-here'" in about("#/suites/0", suites=["folder:~nobody-here/x"])
    assert "NUL" in about("#/shifts/a", shifts={"a": "/x\0y"})
    for artifact in services.store.files.of_run(run_id, kind="checkpoint"):
        services.artifacts.path(artifact.sha256).unlink()
    assert "is not in the artifact store any more" in about("#/runs/0", shifts=shifts)


def _smog() -> dict[str, Any]:
    return {"corruptions": {"names": ["smog"]}}


def test_evaluate__paths_outside_the_roots_are_refused(
    make_settings, sqlite_url, folder, art, tmp_path
):
    settings = make_settings(database_url=sqlite_url, data_roots=[tmp_path / "allowed"])
    with as_admin(settings) as api:
        services = api.app.state.services
        run = store_run(services.store, services.artifacts, folder)
        words = refused(api, {"runs": [run], "folders": [str(art)]}, "#/folders/0")
        assert "outside the folders that this service may read" in words


def test_evaluate__a_dry_run_counts_and_a_job_is_queued_once(api, services, run_id, art):
    n_test = services.store.results.run_evaluations(run_id)[0].n
    body = {
        "runs": [run_id],
        "shifts": {"art": str(art)},
        "corruptions": {"names": ["fog", "snow"], "severities": [1, 5]},
    }
    found = Validation.model_validate(api.post("/api/v1/evaluations/validate", json=body).json())
    assert found.valid, found.errors
    assert found.estimate.evaluation_images == 12 + 4 * n_test
    assert found.estimate.shifts == {"art": 12}
    assert found.estimate.corrupted_images == 4 * n_test
    # The whole job, starting and saving with it, as for a run.
    assert set(found.estimate.phases) == {"start and saving", "evaluation"}
    assert all(found.estimate.phases.values())
    assert found.estimate.seconds == pytest.approx(sum(found.estimate.phases.values()))
    assert found.missing == ["No worker has reported in lately; `calift up` starts one."]
    key = {"Idempotency-Key": "one"}
    first = api.post("/api/v1/evaluations", json=body | {"priority": 2}, headers=key)
    assert first.status_code == 202, first.text
    job = first.json()
    assert first.headers["Location"] == f"{JOBS}/{job['id']}"
    assert (job["phase"], job["priority"], job["name"]) == ("QUEUED", 2, "on art, 2 corruptions")
    again = api.post("/api/v1/evaluations", json=body | {"priority": 2}, headers=key)
    assert again.json()["id"] == job["id"]
    other = api.post("/api/v1/evaluations", json=body, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "IDEMPOTENCY_KEY_REUSED")
    assert api.get(first.headers["Location"]).json()["spec"]["runs"] == [run_id]
    assert api.get(JOBS, params={"run_id": run_id}).json()["total"] == 1
    assert api.get(f"{JOBS}/{job['id']}/events/history").json()[0]["data"]["phase"] == "QUEUED"
    assert api.get(f"{JOBS}/{job['id']}/evaluations").json()["total"] == 0
    # It is no run, and runs are no jobs.
    assert api.get("/api/v1/runs").json()["total"] == 1
    assert api.get("/api/v1/stats").json()["queue_depth"] == 1
    for path in ("", "/events/history", "/logs", "/cancel"):
        verb = "POST" if path == "/cancel" else "GET"
        wrong = api.request(verb, f"/api/v1/runs/{job['id']}{path}")
        assert wrong.status_code == 404
        assert wrong.json()["hint"] == f"It is at /evaluation-jobs/{job['id']}."
        assert api.request(verb, f"{JOBS}/{run_id}{path}").status_code == 404
    named = {"name": "m", "method": {"kind": "wise_ft", "run": job["id"]}}
    assert "is an evaluation job" in api.post("/api/v1/runs", json=named).json()["detail"]


def test_evaluate__results_change_a_run_so_its_owner_alone_may(api, services, run_id, art):
    ann = add_token(services, "t_ann", "ann", "submit")
    bob = add_token(services, "t_bob", "bob", "submit")
    reader = add_token(services, "t_ann2", "ann", "read")
    body = {"runs": [run_id], "shifts": {"art": str(art)}}
    theirs = api.post("/api/v1/evaluations", json=body, headers=bob)
    assert (theirs.status_code, theirs.json()["code"]) == (403, "NOT_YOURS")
    assert api.post("/api/v1/evaluations", json=body, headers=reader).status_code == 403
    job = api.post("/api/v1/evaluations", json=body, headers=ann).json()
    at = f"{JOBS}/{job['id']}"
    assert job["owner"] == "ann"
    for who, status in ((bob, 403), (reader, 403), (ann, 202)):
        assert api.post(f"{at}/cancel", headers=who).status_code == status
        assert api.post(f"{at}/retry", headers=who).status_code == status
    assert api.get(at, headers=reader).json()["phase"] == "QUEUED"
    assert api.delete(at, headers=ann).status_code == 403
    assert api.delete(at).status_code == 204
    assert api.get(at).status_code == 404


def test_client_and_command__say_the_same(
    client, run_id, art, tmp_path, monkeypatch, capsys, services, finished_run
):
    from calift.commands.main import main

    monkeypatch.setenv("CALIFT_API_URL", client.base_url)
    monkeypatch.chdir(art.parent)

    def calift(*arguments):
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--json"])
        assert end.value.code in (0, None), capsys.readouterr()
        return json.loads(capsys.readouterr().out)

    options = ("--shift", "art=./art", "--corruptions", "fog,snow", "--severities", "2")
    job = calift("submit", "--evaluate", run_id, *options)
    assert job["spec"]["shifts"] == {"art": f"folder:{art}"}
    assert job["spec"]["corruptions"]["severities"] == [2]
    file = tmp_path / "job.yaml"
    file.write_text(f"runs: [{run_id}]\nfolders: [./art]\nname: from a file\n")
    other = calift("submit", "--evaluate", str(file), "--device", "cpu")
    assert (other["name"], other["spec"]["device"]) == ("from a file", "cpu")
    assert [j["id"] for j in calift("evaluations", "list")["items"]] == [other["id"], job["id"]]
    assert calift("evaluations", "cancel", job["id"])["phase"] == "CANCELLED"
    assert calift("evaluations", "retry", job["id"])["phase"] == "QUEUED"
    assert calift("evaluations", "show", job["id"])["evaluations"] == []
    tuned = finished_run(services.store, services.artifacts, method={"kind": "flyp"})
    more = calift("runs", "continue", tuned, "--epochs", "1", "--name", "one more")
    assert (more["name"], more["spec"]["train"]["initial_run"]) == ("one more", tuned)
    assert client.cancel(job["id"]).phase == "CANCELLED"
    assert client.wait_for_evaluation(job["id"]).phase == "CANCELLED"
    kinds = [e.kind for e in client.events(job["id"])]
    assert kinds == ["state"] * 4
    assert client.logs(job["id"]).complete
    assert client.validate_evaluation({"runs": [run_id], "folders": [str(art)]}).valid
    with pytest.raises(ServiceError, match="there is no folder"):
        client.evaluate([run_id], folders=["/no/where"])
    with pytest.raises(SpecError, match="name what to judge the runs on"):
        client.evaluate([run_id])
    assert calift("evaluations", "delete", job["id"]) == {"deleted": job["id"]}


def test_submit__options_of_an_evaluation_need_its_flag(tmp_path):
    from calift.commands.service import submit

    with pytest.raises(SpecError, match="one RunSpec, got shifts"):
        submit(["x.yaml"], shift=["a=/b"])
    file = tmp_path / "job.yaml"
    file.write_text("run: [a]\nshifts: {b: /c}")
    with pytest.raises(SpecError, match="unknown field 'run'. Did you mean 'runs'"):
        job_of([str(file)], {})
    file.write_text("[]")
    with pytest.raises(SpecError, match="a mapping of fields"):
        job_of([str(file)], {})
