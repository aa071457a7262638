"""Sweeps over the API: from the first run to the verdict, whatever happens."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml
from sqlalchemy import text
from starlette.testclient import TestClient

from backend.main import create_app
from backend.services.submission import Submission
from backend.services.sweeps import Sweeping
from backend.store.engine import open_engine, writing
from backend.store.stores import Stores
from tests.backend.test_api import add_token, problem
from tests.conftest import as_admin, at_once, example_predictions, until

SPEC: dict[str, Any] = {
    "name": "which",
    "base": {"suite": {"id": "fashion-mnist"}, "train": {"epochs": 1}},
    "methods": ["zero_shot", "flyp", "carot"],
    "seeds": [0, 1],
    "rate": {"ladder": [1e-4, 1e-3], "extend": 1},
    "max_runs": 20,
}
#: ID validation accuracy by method and rate: FLYP falls after the ladder, CaRot does not.
ACCURACY = {
    ("flyp", 1e-4): 0.50, ("flyp", 1e-3): 0.45,
    ("carot", 1e-4): 0.40, ("carot", 1e-3): 0.55, ("carot", 1e-2): 0.60,
}  # fmt: skip


def begin(api: TestClient, **changes: Any) -> dict[str, Any]:
    response = api.post("/api/v1/sweeps", json=SPEC | changes)
    assert response.status_code == 202, response.text
    return dict(response.json())


def sweep_of(api: TestClient, sweep_id: str) -> dict[str, Any]:
    return dict(api.get(f"/api/v1/sweeps/{sweep_id}").json())


def runs_of(api: TestClient, sweep_id: str, phase: str | None = None) -> list[dict[str, Any]]:
    page = api.get(f"/api/v1/sweeps/{sweep_id}/runs", params={"limit": 200}).json()
    assert page["total"] == len(page["items"])
    return [run for run in page["items"] if phase is None or run["phase"] == phase]


def predict_as(quality: float, seed: int) -> Callable[[str, str], Any]:
    """Predictions of a model that is right more often the higher its quality; same images."""

    def predict(dataset: str, role: str) -> Any:
        made = example_predictions(len(dataset), n=200, dataset=dataset, role=role)
        rng = np.random.default_rng([seed, len(dataset)])
        logits = made.logits.copy()
        logits[np.arange(200), made.labels] += (8 * quality - 3 + rng.normal(size=200)).astype("f4")
        return type(made)(made.ids, made.labels, logits, made.metadata)

    return predict


@pytest.fixture
def finish(services, finished_run):
    """End a run of a sweep as its method and rate deserve."""

    def end(run):
        spec = services.store.runs.get(run["id"]).spec
        lr, seed = spec["train"]["lr"], spec["train"]["seed"]
        accuracy = ACCURACY.get((run["method"], lr), 0.3)
        finished_run(
            services.store,
            services.artifacts,
            run_id=run["id"],
            predict=predict_as(accuracy, seed),
            selection={"validation": {"val_accuracy": accuracy}},
        )

    return end


def fail(services: Any, run_id: str, reason: str) -> None:
    claim = services.store.claims.claim(run_id, worker_id="w", ttl_s=60)
    assert claim is not None
    assert services.store.claims.finish(
        run_id, claim.attempt, phase="FAILED", reason=reason, message="it went wrong"
    )


def test_sweep__from_the_choice_of_rates_to_the_verdict(api, services, finish):
    sweep = begin(api)
    sweep_id = sweep["id"]
    assert sweep["phase"] == "RUNNING"
    assert (sweep["runs_at_most"], sweep["cost"]["runs_queued"]) == (11, 5)
    assert problem(api.get(f"/api/v1/sweeps/{sweep_id}/verdict"), 404, "NOT_FOUND").hint
    first = runs_of(api, sweep_id)
    assert [(r["method"], r["sweep_role"], r["seed"]) for r in first] == [
        ("flyp", "selection", 100), ("flyp", "selection", 100),
        ("carot", "selection", 100), ("carot", "selection", 100),
        ("zero_shot", "evaluation", 0),
    ]  # fmt: skip
    assert {r["sweep_id"] for r in first} == {sweep_id}

    for run in first:
        finish(run)
    services.sweeping.advance(sweep_id)
    flyp, carot = sweep_of(api, sweep_id)["arms"][1:]
    assert (flyp["lr"], flyp["at_edge"]) == (1e-4, "lower")
    assert carot["lr"] is None
    assert [(r["lr"], r["state"]) for r in carot["rates"]] == [
        (1e-4, "done"), (1e-3, "done"), (1e-2, "runs"),
    ]  # fmt: skip
    # One method's judged runs are queued while the other still climbs.
    waiting = runs_of(api, sweep_id, "QUEUED")
    assert sorted((r["method"], r["sweep_role"]) for r in waiting) == [
        ("carot", "selection"), ("flyp", "evaluation"), ("flyp", "evaluation"),
    ]  # fmt: skip
    for run in waiting:
        finish(run)
    services.sweeping.advance(sweep_id)
    partial = api.get(f"/api/v1/sweeps/{sweep_id}/verdict").json()
    assert not partial["complete"]
    assert partial["sentence"].startswith("So far: ")
    assert [one["label"] for one in partial["left_out"]] == ["carot"]
    for run in runs_of(api, sweep_id, "QUEUED"):
        finish(run)
    services.sweeping.advance(sweep_id)
    ended = sweep_of(api, sweep_id)
    assert (ended["phase"], ended["runs_done"]) == ("SUCCEEDED", 10)
    assert ended["cost"]["runs_to_come"] == 0
    assert ended["finished_at"]
    carot = ended["arms"][2]
    assert (carot["lr"], carot["at_edge"], carot["n_evaluated"]) == (1e-2, "upper", 2)

    verdict = api.get(f"/api/v1/sweeps/{sweep_id}/verdict").json()
    assert verdict["complete"]
    rows = {row["label"]: row for row in verdict["rows"]}
    assert rows["carot"]["run_ids"] == carot["run_ids"]
    for row in rows.values():
        own = [api.get(f"/api/v1/runs/{run}").json()["summary"] for run in row["run_ids"]]
        for name in ("id_accuracy", "ood_accuracy", "ood_nll", "ood_ece"):
            assert row[name]["mean"] == pytest.approx(np.mean([s[name] for s in own]), abs=1e-6)
    sets = {one["metric"]: one for one in verdict["sets"]}
    assert sets["accuracy"]["best"] == "carot"
    assert "zero_shot" in sets["accuracy"]["excluded"]
    against = {d["label"]: d for d in sets["accuracy"]["differences"]}
    gap = rows["zero_shot"]["ood_accuracy"]["mean"] - rows["carot"]["ood_accuracy"]["mean"]
    assert against["zero_shot"]["difference"] == pytest.approx(gap)
    assert against["zero_shot"]["interval"][1] < 0
    equal = verdict["equal"]
    assert {one["label"] for one in equal["left_out"]} >= {"zero_shot"}
    assert any("upper edge" in note for note in verdict["notes"])
    listed = api.get("/api/v1/sweeps").json()
    assert [one["id"] for one in listed["items"]] == [sweep_id]


def test_sweep__is_queued_once_by_any_number_of_processes(api, services, settings, finish):
    """Four processes advance it at once, over and over, and each has forgotten everything."""
    sweep_id = begin(api)["id"]

    def advance():
        engine = open_engine(settings.database_url)
        store = Stores.on(engine)
        Sweeping(settings, store, Submission(settings, store)).advance(sweep_id)
        engine.dispose()

    for _ in range(4):
        at_once(*[advance] * 4)
        for run in runs_of(api, sweep_id, "QUEUED"):
            finish(run)
    services.sweeping.advance(sweep_id)
    assert sweep_of(api, sweep_id)["phase"] == "SUCCEEDED"
    names = [run["name"] for run in runs_of(api, sweep_id)]
    assert len(names) == len(set(names)) == 10


def test_housekeeper__advances_sweeps_by_itself(settings, finished_run):
    app = create_app(settings)
    services = app.state.services
    with TestClient(app, base_url="http://127.0.0.1") as api:
        api.headers["Authorization"] = f"Bearer {settings.admin_token()}"
        sweep_id = begin(api, methods=["flyp"], seeds=[0], rate={"ladder": [1e-3], "extend": 0})[
            "id"
        ]
        for role in ("selection", "evaluation"):
            found = until(lambda: runs_of(api, sweep_id, "QUEUED"), what="a run to be queued")
            assert [run["sweep_role"] for run in found] == [role]
            finished_run(
                services.store, services.artifacts, run_id=found[0]["id"],
                selection={"validation": {"val_accuracy": 0.5}},
            )  # fmt: skip
        until(lambda: sweep_of(api, sweep_id)["phase"] == "SUCCEEDED", what="the sweep to end")


def test_hold__gives_a_sweep_to_one_process_until_it_is_released(api, services):
    sweep_id = begin(api)["id"]
    sweeps = services.store.sweeps
    assert sweeps.hold_next(60) == sweep_id
    assert sweeps.hold_next(60) is None
    sweeps.release(sweep_id, 0)
    assert sweeps.hold_next(60) == sweep_id
    # Whoever held it died: another has it when the time is over.
    with writing(services.store.engine) as connection:
        connection.execute(text("UPDATE sweeps SET held_until = 1"))
    services.sweeping.advance_all()
    assert sweeps.hold_next(60) is None  # it was looked at just now
    api.post(f"/api/v1/sweeps/{sweep_id}/pause")
    sweeps.release(sweep_id, 0)
    assert sweeps.hold_next(60) is None


def test_pause__takes_waiting_runs_out_of_line_and_resume_puts_them_back(api, services, finish):
    sweep_id = begin(api)["id"]
    runs = runs_of(api, sweep_id)
    claim = services.store.claims.claim(runs[0]["id"], worker_id="w", ttl_s=60)
    for _ in range(2):
        paused = api.post(f"/api/v1/sweeps/{sweep_id}/pause")
        assert (paused.status_code, paused.json()["phase"]) == (202, "PAUSED")
    services.sweeping.advance(sweep_id)
    found = {r["id"]: (r["phase"], r["reason"]) for r in runs_of(api, sweep_id)}
    assert found.pop(runs[0]["id"]) == ("STARTING", None)
    assert set(found.values()) == {("CANCELLED", "SWEEP_PAUSED")}
    assert sweep_of(api, sweep_id)["cost"]["runs_failed"] == 0
    resumed = api.post(f"/api/v1/sweeps/{sweep_id}/resume", json={})
    assert resumed.json()["phase"] == "RUNNING"
    services.sweeping.advance(sweep_id)
    assert {r["phase"] for r in runs_of(api, sweep_id)} == {"STARTING", "QUEUED"}
    assert len(services.store.outbox.unsent(100)) >= 4
    assert services.store.claims.requeue(runs[0]["id"], claim.attempt)
    for run in runs_of(api, sweep_id, "QUEUED"):
        finish(run)
    services.sweeping.advance(sweep_id)
    assert runs_of(api, sweep_id, "QUEUED")


def test_cancel__ends_every_run_and_nothing_is_queued_after_it(api, services):
    sweep_id = begin(api)["id"]
    working = runs_of(api, sweep_id)[0]["id"]
    claim = services.store.claims.claim(working, worker_id="w", ttl_s=60)
    stale = services.store.sweeps.get(sweep_id)
    cancelled = api.post(f"/api/v1/sweeps/{sweep_id}/cancel").json()
    assert cancelled["phase"] == "CANCELLING"
    phases = {r["id"]: r["phase"] for r in runs_of(api, sweep_id)}
    assert phases.pop(working) == "CANCELLING"
    assert set(phases.values()) == {"CANCELLED"}
    assert services.store.claims.finish(working, claim.attempt, phase="CANCELLED")
    services.sweeping.advance(sweep_id)
    ended = sweep_of(api, sweep_id)
    assert ended["phase"] == "CANCELLED"
    assert ended["cost"]["runs_failed"] == 0, "what somebody cancelled has not failed"
    assert ended["cost"]["runs_cancelled"] == 1 + len(phases)
    # A process that read the sweep before the cancel queues nothing either.
    services.sweeping._go_on(stale)
    assert not runs_of(api, sweep_id, "QUEUED")
    problem(api.post(f"/api/v1/sweeps/{sweep_id}/pause"), 409, "CONFLICT")
    assert (
        "Retry"
        in problem(api.post(f"/api/v1/sweeps/{sweep_id}/resume", json={}), 409, "CONFLICT").hint
    )
    again = api.post(f"/api/v1/sweeps/{sweep_id}/retry").json()
    assert (again["phase"], again["cost"]["runs_queued"]) == ("RUNNING", 5)


def test_failed__runs_end_the_sweep_last_and_are_retried_and_divergence_is_an_answer(
    api, services, finish
):
    sweep_id = begin(api, methods=["flyp", "carot"])["id"]
    for run in runs_of(api, sweep_id):
        rate = services.store.runs.get(run["id"]).spec["train"]["lr"]
        if run["method"] == "flyp":
            fail(services, run["id"], "NAN_LOSS")
        elif rate == 1e-3:
            fail(services, run["id"], "OOM")
        else:
            finish(run)
    services.sweeping.advance(sweep_id)
    failed = sweep_of(api, sweep_id)
    assert (failed["phase"], failed["reason"]) == ("FAILED", "RUNS_FAILED")
    assert "1 run failed" in failed["message"]
    assert "it went wrong" in failed["message"]
    assert "not finite at any rate" in failed["arms"][0]["trouble"]
    again = api.post(f"/api/v1/sweeps/{sweep_id}/retry").json()
    assert (again["phase"], again["cost"]["runs_queued"]) == ("RUNNING", 1)
    for _ in range(3):
        for run in runs_of(api, sweep_id, "QUEUED"):
            finish(run)
        services.sweeping.advance(sweep_id)
    ended = sweep_of(api, sweep_id)
    assert ended["phase"] == "SUCCEEDED"
    assert "flyp" in ended["message"]
    verdict = api.get(f"/api/v1/sweeps/{sweep_id}/verdict").json()
    assert [one["label"] for one in verdict["left_out"]] == ["flyp"]
    assert "nothing to compare" in verdict["sentence"]
    problem(api.post(f"/api/v1/sweeps/{sweep_id}/retry"), 409, "CONFLICT")


def test_hours__that_are_used_up_pause_the_sweep_until_they_are_raised(api, services, finish):
    sweep_id = begin(api, max_hours=0.5)["id"]
    for run in runs_of(api, sweep_id):
        finish(run)
    with writing(services.store.engine) as connection:
        connection.execute(text("UPDATE runs SET started_at = finished_at - 1000"))
    services.sweeping.advance(sweep_id)
    paused = sweep_of(api, sweep_id)
    assert (paused["phase"], paused["reason"]) == ("PAUSED", "HOURS_CAP")
    assert paused["cost"]["hours_spent"] == pytest.approx(5000 / 3600, rel=0.01)
    assert paused["cost"]["hours_to_come"] == pytest.approx(5000 / 3600, rel=0.01)
    assert "resume it with more" in paused["message"]
    assert not runs_of(api, sweep_id, "QUEUED")
    api.post(f"/api/v1/sweeps/{sweep_id}/resume", json={"max_hours": 10})
    services.sweeping.advance(sweep_id)
    assert len(runs_of(api, sweep_id, "QUEUED")) == 3
    assert sweep_of(api, sweep_id)["spec"]["max_hours"] == 10


@pytest.mark.parametrize("limit", ["max_queued", "quota_queued"])
def test_queue__that_is_full_is_filled_later(make_settings, database_url, limit):
    with as_admin(make_settings(database_url=database_url, **{limit: 2})) as api:
        services = api.app.state.services
        sweep_id = begin(api)["id"]
        assert len(runs_of(api, sweep_id, "QUEUED")) == 2
        for run in runs_of(api, sweep_id):
            fail(services, run["id"], "NAN_LOSS")
        services.sweeping.advance(sweep_id)
        assert len(runs_of(api, sweep_id)) == 4


def test_every_seed__at_every_rate_gives_intervals_over_seeds_at_equal_accuracy(
    api, services, finish
):
    sweep_id = begin(
        api,
        methods=["flyp", "carot"],
        rate={"ladder": [1e-4, 1e-3], "extend": 0, "every_seed": True},
    )["id"]
    ACCURACY[("flyp", 1e-3)] = 0.58
    try:
        for run in runs_of(api, sweep_id):
            finish(run)
    finally:
        ACCURACY[("flyp", 1e-3)] = 0.45
    services.sweeping.advance(sweep_id)
    assert sweep_of(api, sweep_id)["phase"] == "SUCCEEDED"
    equal = api.get(f"/api/v1/sweeps/{sweep_id}/verdict").json()["equal"]
    assert equal["covers"] == "seeds and images"
    assert {row["label"] for row in equal["rows"]} == {"flyp", "carot"}
    low = next(row for row in equal["rows"] if row["share"] == pytest.approx(1))
    assert (low["lr_low"], low["lr_high"]) == (1e-4, 1e-3)
    assert {one["metric"] for one in equal["sets"]} == {"accuracy", "squared", "nll"}


def test_validate__says_runs_hours_and_disk_without_storing_anything(api, services, finished_run):
    found = api.post("/api/v1/sweeps/validate", json=SPEC).json()
    assert found["valid"]
    assert found["labels"] == ["zero_shot", "flyp", "carot"]
    estimate = found["estimate"]
    assert (estimate["runs_at_least"], estimate["runs_at_most"]) == (9, 11)
    assert estimate["disk_bytes"] is None
    finished_run(services.store, services.artifacts)
    estimate = api.post("/api/v1/sweeps/validate", json=SPEC).json()["estimate"]
    assert estimate["disk_bytes"] > 11 * 1000
    assert api.get("/api/v1/sweeps").json()["total"] == 0
    bad = api.post("/api/v1/sweeps/validate", json=SPEC | {"methods": ["carrot"]}).json()
    assert not bad["valid"]
    found = problem(
        api.post("/api/v1/sweeps", json=SPEC | {"values": {"train.epochs": [0]}}),
        422,
        "INVALID_SPEC",
    )
    assert "#/train/epochs" in found.detail
    problem(api.post("/api/v1/sweeps", json=SPEC | {"max_runs": 3}), 422, "INVALID_SPEC")


def test_key__gives_the_same_sweep_again_and_refuses_another_body(api):
    headers = {"Idempotency-Key": "mine"}
    one = api.post("/api/v1/sweeps", json=SPEC, headers=headers).json()
    assert api.post("/api/v1/sweeps", json=SPEC, headers=headers).json()["id"] == one["id"]
    other = api.post("/api/v1/sweeps", json=SPEC | {"name": "other"}, headers=headers)
    problem(other, 409, "IDEMPOTENCY_KEY_REUSED")
    assert len(runs_of(api, one["id"])) == 5


def test_owner__of_a_sweep_owns_its_runs(api, services):
    ann = add_token(services, "t_ann", "ann", "submit")
    sweep_id = api.post("/api/v1/sweeps", json=SPEC, headers=ann).json()["id"]
    assert {run["owner"] for run in runs_of(api, sweep_id)} == {"ann"}
    assert api.post(f"/api/v1/sweeps/{sweep_id}/pause", headers=ann).status_code == 202


def test_command__begins_shows_and_steers_a_sweep(served, settings, monkeypatch, tmp_path, capsys):
    from calift.commands import console
    from calift.commands.main import main

    for stream in (console.out, console.err):
        monkeypatch.setattr(stream, "width", 200)  # whatever the terminal of the tests has
    monkeypatch.setenv("CALIFT_API_URL", served)
    monkeypatch.setenv("CALIFT_TOKEN", settings.admin_token())
    monkeypatch.chdir(tmp_path)

    def calift(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        answer = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), answer.out, answer.err

    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(SPEC))
    code, out, _ = calift("sweep", str(file), "--dry-run")
    assert "3 configurations: zero_shot, flyp, carot" in out
    assert "runs       9 to 11" in out
    assert code in (0, 1)  # 1 where Fashion-MNIST is not on this machine
    code, out, _ = calift("sweep", str(file), "--json")
    sweep_id = json.loads(out)["id"]
    assert code == 0
    code, out, err = calift("sweeps", "show", sweep_id, "--runs")
    assert code == 0
    assert "0 of 9 runs done" in out
    assert "which: flyp lr 0.0001 seed 100" in out
    assert "no verdict yet" in err
    assert sweep_id in calift("sweeps", "list")[1]
    groups = calift("runs", "groups", "--method", "flyp")[1]
    assert "Configuration" in groups
    assert "which: flyp lr 0.0001" in groups
    assert "PAUSED" in calift("sweeps", "pause", sweep_id)[1]
    code, out, _ = calift("sweeps", "wait", sweep_id)  # a paused sweep is not waited for
    assert code == 1
    assert "PAUSED" in out
    assert "RUNNING" in calift("sweeps", "resume", sweep_id)[1]
    assert "CANCELLED" in calift("sweeps", "cancel", sweep_id)[1]
    assert "RUNNING" in calift("sweeps", "retry", sweep_id)[1]

    run = tmp_path / "run.yaml"
    run.write_text("name: mine\nmethod: {kind: flyp}\nsuite: {id: ./photos}\n")
    code, _, err = calift("sweep", str(run))
    assert code == 1
    assert "is a RunSpec" in err
    assert "--preset" in err
    code, out, _ = calift("sweep", str(run), "--preset", "three-seeds", "--json")
    made = json.loads(out)
    assert made["spec"]["base"]["suite"]["id"] == f"folder:{tmp_path}/photos"
    assert [one["label"] for one in made["arms"]] == ["flyp"]
    assert calift("sweep", str(run), "--preset", "all")[0] == 1
