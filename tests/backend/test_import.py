"""Predictions made elsewhere, through the API: taken in as a run, or refused with a reason."""

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from backend.http.middleware import UPLOAD_TYPE
from backend.storage.artifacts import check_name
from calift_core import calibration
from calift_core.analysis.upload_check import check_upload
from calift_core.errors import PredictionsError, ServiceError
from calift_core.judging.files import PredictionsFile, judge_files
from calift_core.judging.upload import judge_upload
from calift_core.predictions.read import read_predictions, read_top_k
from calift_core.predictions.types import top_k
from calift_core.predictions.write import write_predictions
from calift_core.schema.report import Report
from tests.conftest import as_admin, example_predictions, spec_of

PATH = "/api/v1/predictions"


def here(_checker: Any, question: bytes) -> bytes:
    """In place of the process that checks an upload: the same check in this one, without limits."""
    requested = json.loads(question)
    return json.dumps(check_upload(Path(requested.pop("folder")), **requested)).encode()


@pytest.fixture(autouse=True)
def check(request, monkeypatch):
    """Only `service` tests are about the process: for the others a check costs no start of one."""
    if request.node.get_closest_marker("service") is None:
        monkeypatch.setattr("backend.services.imports.ask_once", here)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """An NPZ as people make it: logistic regression on scikit-learn's digits."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, labels = load_digits(return_X_y=True)
    images = images / 16
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:900], order[900:]
    model = LogisticRegression(C=10.0, max_iter=2000).fit(images[train], labels[train])
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    probs = model.predict_proba(images[test])
    names = np.array([f"digit {c}" for c in range(10)])
    ids = np.array([f"digits/{i}" for i in test])
    np.savez(path, labels=labels[test], probs=probs, class_names=names, ids=ids)
    return path, probs, labels[test]


def parquet_of(predictions: Any, folder: Path) -> bytes:
    write_predictions(folder / "x.parquet", predictions)
    return (folder / "x.parquet").read_bytes()


def upload(api: TestClient, body: bytes, *, kind: str = UPLOAD_TYPE, **params: str) -> Any:
    return api.post(PATH, content=body, params=params, headers={"Content-Type": kind})


def left_behind(settings: Any) -> list[Path]:
    folder = settings.uploads_dir
    return list(folder.iterdir()) if folder.exists() else []


@pytest.mark.service
def test_import__digits_of_scikit_learn_are_a_run_like_any_other(
    client, digits, tmp_path, settings
):
    path, probs, labels = digits
    run = client.import_predictions(path)
    assert (run.phase, run.method, run.name, run.suite) == (
        "SUCCEEDED", "imported", "digits", "digits",
    )  # fmt: skip
    assert client.run(run.id) == run
    assert [r.id for r in client.runs(method=["imported"]).items] == [run.id]
    (evaluation,) = client.run_evaluations(run.id)
    assert evaluation.n == len(labels)
    assert evaluation.accuracy == (probs.argmax(1) == labels).mean()
    measured = client.reliability(evaluation.id, n_bins=10, scheme="equal_width")
    assert measured.ece == pytest.approx(
        calibration.ece(
            calibration.score_probs(probs, labels),
            calibration.Binning(n_bins=10, scheme="equal_width"),
        ),
        abs=1e-6,
    )
    assert client.reliability(evaluation.id, temperature=2.0).temperature == 2.0
    saved = read_predictions(client.download_predictions(evaluation.id, tmp_path / "p.parquet"))
    np.testing.assert_allclose(saved.probs(), probs, rtol=2e-5, atol=1e-37)
    assert saved.metadata.class_names[3] == "digit 3"
    report = client.report(run.id)
    assert Report.model_validate(report.model_dump()) == report
    assert report.summary == run.summary
    assert report.summary.id_accuracy == evaluation.accuracy
    assert client.metrics(run.id).series == []
    assert client.spectra(run.id) == []
    assert [a.kind for a in client.artifacts(run.id)] == ["predictions"]
    assert "imported predictions of digits" in client.logs(run.id).text
    assert [e.kind for e in client.events(run.id)] == ["state", "log", "evaluation"]
    assert left_behind(settings) == []


def test_import__a_data_set_is_added_to_a_run_once(client, tmp_path):
    files = {}
    for seed, (dataset, role) in enumerate(
        [("id", "id"), ("sketch/v 2", "shift"), ("cal", "calibration")]
    ):
        files[dataset] = tmp_path / f"{seed}.parquet"
        made = example_predictions(seed, dataset=dataset, role=role)
        write_predictions(files[dataset], made)
    run = client.import_predictions(files["id"])
    for _ in range(2):  # once more changes nothing
        grown = client.import_predictions(files["sketch/v 2"], run=run.id)
    grown = client.import_predictions(files["cal"], run=run.id)
    assert grown.id == run.id
    evaluations = client.run_evaluations(run.id)
    assert [(e.dataset, e.role) for e in evaluations] == [("id", "id"), ("sketch/v 2", "shift")]
    assert grown.summary.ood_accuracy == evaluations[1].accuracy
    assert grown.summary.id_accuracy == evaluations[0].accuracy
    assert client.report(run.id).summary == grown.summary
    names = [a.name for a in client.artifacts(run.id)]
    assert len(names) == 3
    assert all(check_name(name) for name in names)
    with pytest.raises(ServiceError, match="has other predictions of 'id' already") as caught:
        client.import_predictions(files["sketch/v 2"], run=run.id, dataset="id")
    assert caught.value.status == 409
    with pytest.raises(ServiceError, match="added to an imported run") as caught:
        client.import_predictions(files["cal"])
    assert caught.value.status == 422
    with pytest.raises(ServiceError, match="there is no run 'nobody'"):
        client.import_predictions(files["id"], run="nobody")
    submitted = client.submit(spec_of())
    with pytest.raises(ServiceError, match="must be an imported one, its method is carot"):
        client.import_predictions(files["id"], run=submitted.id)


def test_import__the_same_key_and_file_are_one_run(client, tmp_path):
    write_predictions(tmp_path / "a.parquet", example_predictions(0))
    write_predictions(tmp_path / "b.parquet", example_predictions(1))
    first = client.import_predictions(tmp_path / "a.parquet", idempotency_key="k")
    assert client.import_predictions(tmp_path / "a.parquet", idempotency_key="k").id == first.id
    assert client.import_predictions(tmp_path / "a.parquet").id != first.id
    with pytest.raises(ServiceError, match="used with another request") as caught:
        client.import_predictions(tmp_path / "b.parquet", name="a", idempotency_key="k")
    assert caught.value.status == 409


def test_import__the_largest_logits_alone_give_scores_at_temperature_one(client, tmp_path):
    whole = example_predictions(0, n_classes=12)
    write_predictions(tmp_path / "x.parquet", whole)
    run = client.import_predictions(tmp_path / "x.parquet", keep=3)
    (evaluation,) = client.run_evaluations(run.id)
    assert evaluation.classwise_ece is None
    assert evaluation.nll == pytest.approx(
        calibration.nll(calibration.score_probs(whole.probs(), whole.labels)), rel=1e-5
    )
    saved = read_top_k(client.download_predictions(evaluation.id, tmp_path / "y.parquet"))
    assert np.array_equal(saved.logits, top_k(whole, 3).logits)
    assert client.reliability(evaluation.id).n == len(whole)
    with pytest.raises(ServiceError, match="temperature must be 1 for id") as caught:
        client.reliability(evaluation.id, temperature=2.0)
    assert caught.value.status == 422


def test_import__a_foreign_table_is_understood_by_the_server_too(api, tmp_path):
    pq.write_table(
        pa.table({"labels": [0, 1, 1], "probs": [[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]}),
        tmp_path / "x.parquet",
    )
    response = upload(
        api, (tmp_path / "x.parquet").read_bytes(), name="theirs", dataset="toy", role="shift"
    )
    assert response.status_code == 201, response.text
    run = response.json()
    assert response.headers["location"] == f"/api/v1/runs/{run['id']}"
    assert (run["name"], run["suite"]) == ("theirs", "toy")
    assert run["summary"]["ood_accuracy"] == pytest.approx(2 / 3)
    assert run["summary"]["id_accuracy"] is None


def test_imported__is_no_job(client, tmp_path):
    with pytest.raises(ServiceError, match="imported predictions are not a job") as caught:
        client.submit({"name": "x", "method": {"kind": "imported"}})
    assert caught.value.status == 422
    write_predictions(tmp_path / "x.parquet", example_predictions())
    run = client.import_predictions(tmp_path / "x.parquet")
    with pytest.raises(ServiceError, match="imported predictions are not a job"):
        client.clone(run.id)
    with pytest.raises(ServiceError, match="nothing to retry"):
        client.retry(run.id)
    assert client.cancel(run.id).phase == "SUCCEEDED"
    with pytest.raises(ServiceError, match="imported predictions and has no weights"):
        client.submit({"name": "x", "method": {"kind": "wise_ft", "run": run.id}})
    assert "imported" not in {m.kind for m in client.methods()}
    assert client.patch(run.id, name="better name", tags=["theirs"]).name == "better name"


def refused(api: TestClient, settings: Any, body: bytes, message: str, **params: str) -> None:
    response = upload(api, body, **params)
    assert response.status_code == 422, response.text
    problem = response.json()
    assert message in problem["detail"], problem["detail"]
    assert str(settings.home) not in response.text
    assert api.get("/api/v1/runs").json()["total"] == 0
    assert left_behind(settings) == []


def damaged(folder: Path) -> Iterator[tuple[str, bytes, str]]:
    good = parquet_of(example_predictions(), folder)
    yield "cut short", good[:500], "must be a readable Parquet file"

    def table(columns: dict[str, Any]) -> bytes:
        pq.write_table(pa.table(columns), folder / "bad.parquet")
        return (folder / "bad.parquet").read_bytes()

    yield "NaN", table({"labels": [0, 1], "probs": [[0.5, 0.5], [np.nan, 1.0]]}), "NaN"
    long = ["x" * 100_000] * 2000
    bomb = table({"labels": np.zeros(2000, int), "ids": pa.array(long).dictionary_encode(),
                  "logits": [[0.0, 1.0]] * 2000})  # fmt: skip
    assert len(bomb) < 300_000
    yield "strings that unpack", bomb, "must hold"


@pytest.mark.service
def test_import__bad_uploads_are_named_and_leave_nothing(api, settings, services, tmp_path):
    for _, body, message in damaged(tmp_path):
        refused(api, settings, body, message)
    assert dict(services.artifacts.walk()) == {}


@pytest.mark.service
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on address space")
def test_import__a_check_that_needs_too_much_memory_is_an_answer(
    make_settings, sqlite_url, tmp_path, monkeypatch
):
    monkeypatch.setattr("backend.services.imports.CHECK_MEMORY_BYTES", 768 << 20)
    settings = make_settings(database_url=sqlite_url)
    big = example_predictions(n=40_000, n_classes=500)
    body = parquet_of(big, tmp_path)
    with as_admin(settings) as caller:
        refused(caller, settings, body, "memory")


def test_import__names_that_are_not_allowed_are_refused(api, settings, tmp_path):
    body = parquet_of(example_predictions(), tmp_path)
    refused(api, settings, body, "a name has 1 to 120", name="-x")
    refused(api, settings, body, "printable characters", dataset="a\nb")
    assert upload(api, body, role="train").status_code == 422
    assert upload(api, body, dataset="x" * 300).status_code == 422


def test_import__the_client_refuses_before_it_sends(client, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, labels=[0, 1], probs=[[0.5, 0.4], [0.5, 0.5]])
    with pytest.raises(PredictionsError, match="must sum to 1"):
        client.import_predictions(path)
    assert client.runs().total == 0


def prediction_files(folder: Path) -> tuple[Path, Path, Path]:
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet([0.3, 0.3, 0.3], 120), rng.integers(3, size=120)
    names = np.array(["ant", "bee", "cat"])
    rows = [f"{names[y]},{','.join(map(str, p))}" for p, y in zip(probs, labels, strict=True)]
    (folder / "mine.csv").write_text("\n".join(["label,probs_ant,probs_bee,probs_cat", *rows]))
    np.savez(folder / "night.npz", labels=labels[:60], probs=probs[:60])
    table = {"labels": labels, "logits": list(np.log(probs) / 2)}
    pq.write_table(pa.table(table), folder / "other.parquet")
    return folder / "mine.csv", folder / "night.npz", folder / "other.parquet"


@pytest.mark.service
def test_judge__is_what_the_command_says_and_stores_nothing(client, tmp_path, settings):
    mine, night, other = prediction_files(tmp_path)
    found = client.judge([mine, night], against=other)
    files = [PredictionsFile(path.name, path) for path in (mine, night, other)]
    output = judge_files(files[:2], against=files[2])
    assert found.sentences == output.sentences
    for one, own in zip(found.sets, output.sets, strict=True):
        assert (one.name, one.role, one.n) == (own.name, own.role, own.numbers["n"])
        # Another number of threads rounds a sum otherwise.
        assert one.diagram().ece == pytest.approx(own.numbers["ece"], rel=1e-12)
        assert one.against.keys() == own.against.keys()
    assert client.runs().total == 0
    assert left_behind(settings) == []


def test_judge__says_what_is_wrong_as_the_command_does(tmp_path, monkeypatch):
    mine, night, other = prediction_files(tmp_path)
    np.savez(tmp_path / "bad.npz", labels=[0, 1], probs=[[0.5, 0.4], [0.5, 0.5]])
    (tmp_path / "plain.csv").write_text("a,b\n1,2\n")
    upload = tmp_path / "upload"
    for names, message in (
        (["1/bad.npz"], "must sum to 1"),
        (["1/plain.csv"], r"^plain\.csv must hold probs or logits, got a, b$"),
        (["1/night.npz", "against/other.parquet"], r"^other\.parquet must have the samples of n"),
        (["against/other.parquet"], "a file of the model"),
        ([f"{at}/night.npz" for at in range(33)], "1 to 32 files, got 33"),
    ):
        with zipfile.ZipFile(upload, "w") as archive:
            for name in names:
                archive.write(tmp_path / Path(name).name, name)
        with pytest.raises(PredictionsError, match=message):
            judge_upload(tmp_path)
    upload.write_bytes(b"PK no zip")
    with pytest.raises(PredictionsError, match="must be a readable zip"):
        judge_upload(tmp_path)
    monkeypatch.setattr("calift_core.judging.upload.MAX_BYTES", 1000)
    with zipfile.ZipFile(upload, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.csv", bytes(1001))
    with pytest.raises(PredictionsError, match="unpack to at most 1,000 bytes, they declare 1,001"):
        judge_upload(tmp_path)


def test_upload__is_taken_by_its_route_alone(api, tmp_path):
    body = parquet_of(example_predictions(), tmp_path)
    for kind in ("application/json", "application/octet-stream", "text/csv", ""):
        response = upload(api, body, kind=kind)
        assert response.status_code == 415, kind
        assert response.json()["code"] == "UNSUPPORTED_MEDIA_TYPE"
    headers = {"Content-Type": UPLOAD_TYPE}
    for method, path in (
        ("POST", "/api/v1/runs"), ("POST", "/api/v1/runs/validate"), ("PATCH", "/api/v1/runs/abc"),
        ("POST", "/api/v1/runs/abc/cancel"), ("POST", "/api/v1/runs/abc/clone"),
        ("GET", "/api/v1/runs"), ("DELETE", "/api/v1/runs/abc"),
    ):  # fmt: skip
        response = api.request(method, path, content=body, headers=headers)
        assert response.status_code == 415, (method, path, response.text)
        assert response.json()["code"] == "UNSUPPORTED_MEDIA_TYPE"
    assert api.post(PATH).status_code == 422  # no body at all


def test_upload__has_a_limit_of_its_own(make_settings, sqlite_url, tmp_path, monkeypatch):
    monkeypatch.setattr("backend.http.middleware.MAX_BODY_BYTES", 2048)
    body = parquet_of(example_predictions(n=2000), tmp_path)
    settings = make_settings(database_url=sqlite_url, max_upload_bytes=len(body))
    with as_admin(settings) as caller:
        assert upload(caller, body).status_code == 201
        for content in (body + b"x", iter([body, b"x"])):  # announced, and found while it comes
            response = caller.post(PATH, content=content, headers={"Content-Type": UPLOAD_TYPE})
            assert response.status_code == 413
            assert str(len(body)) in response.json()["detail"]
        # JSON stays at its own.
        spec = {"spec": spec_of(notes="x" * 3000).model_dump(mode="json")}
        assert caller.post("/api/v1/runs", json=spec).status_code == 413
    assert left_behind(settings) == []


def test_upload__stops_where_the_disk_would_be_too_full(make_settings, sqlite_url, tmp_path):
    settings = make_settings(database_url=sqlite_url, free_space_floor_bytes=1 << 60)
    with as_admin(settings) as caller:
        response = upload(caller, parquet_of(example_predictions(), tmp_path))
        assert response.status_code == 507
        assert response.json()["code"] == "DISK_FULL"
    assert left_behind(settings) == []
