"""Asking a run about a picture: by a model in another process, of a picture that may be hostile."""

# ruff: noqa: F811
import io
import os
import shutil
import signal
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from backend.http.middleware import MAX_PICTURE_BYTES
from calift_core.analysis.choosing import read_choice
from calift_core.analysis.explorer import Explorer
from calift_core.analysis.folder import FolderLibrary
from calift_core.analysis.report import read_report
from calift_core.calibration import score_probs
from calift_core.calibration.decisions import choose_threshold
from calift_core.child_process import Child
from calift_core.errors import ServiceError, SpecError
from calift_core.predictions.read import read_predictions
from calift_core.predictions.rows import read_features
from calift_core.predictions.training import TRAINING_IMAGES, read_training_images
from calift_core.predictions.types import Predictions, PredictionsMetadata, predictions_name
from calift_core.predictions.write import write_predictions
from calift_core.schema.wire.answers import TriedPicture
from calift_core.schema.wire.queries import DecisionQuery
from calift_core.shipping.choosing import choose_calibrator, save_choice
from calift_core.shipping.classifier import CalibratedClassifier
from calift_core.shipping.export import export_run
from calift_core.shipping.predicting import predict_files
from tests.backend.test_evaluation_jobs import folder  # noqa: F401
from tests.command.conftest import configs, one_thread, photos  # noqa: F401
from tests.conftest import as_admin
from tests.core.conftest import paintings  # noqa: F401
from tests.support.finished import run_once, small_spec, store_run

KIND = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def processes():
    """The processes of one service for all tests: loading torch takes 4 s of the processor."""
    kept = {}
    # The kernel ends a child with the thread that started it: this one outlives the services.
    with ThreadPoolExecutor(max_workers=1) as keeper:

        class Shared(Child):
            def _ready(self):
                return keeper.submit(super()._ready).result()

            def stop(self):
                """Another test goes on with it."""

        def child(argv, name, **options):
            return kept.setdefault(tuple(argv), Shared(argv, name, **options))

        yield child
        for one in kept.values():
            Child.stop(one)


@pytest.fixture(autouse=True)
def _shared(processes, monkeypatch):
    monkeypatch.setattr("backend.services.trying.Child", processes)


def post_picture(api: TestClient, run_id: str, picture: bytes, **headers: str) -> Any:
    return api.post(f"/api/v1/runs/{run_id}/try", content=picture, headers=KIND | headers)


def try_picture(api: TestClient, run_id: str, picture: bytes) -> TriedPicture:
    """The answer, asked for once more where the end of a process was not seen yet."""
    found = post_picture(api, run_id, picture)
    if found.status_code == 503:
        found = post_picture(api, run_id, picture)
    assert found.status_code == 200, found.text
    return TriedPicture.model_validate(found.json())


def png(width: int, height: int) -> bytes:
    """A PNG that claims so many pixels and holds none of them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_try__says_what_the_model_says_and_finds_the_picture_among_the_evaluated(
    api, services, folder, photos
):
    run_id = store_run(services.store, services.artifacts, folder)
    evaluation = services.store.results.run_evaluations(run_id)[0]
    sample = api.get(f"/api/v1/evaluations/{evaluation.id}/samples").json()["items"][0]
    path = next(p for p in photos.rglob("*.png") if str(p).endswith(sample["id"]))
    output = try_picture(api, run_id, path.read_bytes())

    model = CalibratedClassifier.load(folder, device="cpu")
    chosen = [read_choice(p.parent) for p in services.settings.home.rglob("calibrator.json")]
    assert len(chosen) == 1
    assert chosen[0] is not None
    assert output.calibrator == chosen[0].kind
    model.calibrator = chosen[0].fitted()
    answers = model.predict(path)
    # By the names that every page shows; the model itself answers with those of the folders.
    expected = [(label.replace("_", " "), p) for label, p in answers.top()[0]]
    assert [(g.label, pytest.approx(g.probability, abs=1e-6)) for g in output.top] == expected
    assert sample["label_name"] in [g.label for g in output.top]
    for one in output.kept:
        kept = None if one.threshold is None else output.top[0].probability >= one.threshold
        assert one.kept is kept
    unlike = model.tells_unlike()
    for at in output.unlike:
        alarms = unlike.alarms(answers.logits, at.false_alarms)
        assert at.none_of_these == (None if alarms is None else alarms[0])
    assert [at.false_alarms for at in output.unlike] == [0.01, 0.05, 0.1]
    nearest = output.nearest[0]
    assert (nearest.sample_id, nearest.evaluation_id) == (sample["id"], evaluation.id)
    assert nearest.cosine == pytest.approx(1, abs=2e-3)
    cosines = [one.cosine for one in output.nearest]
    assert cosines == sorted(cosines, reverse=True)

    # What is hostile is refused with a sentence, by the process that decodes; the model stays.
    model_process = services.trials._models
    jpeg = path.read_bytes()
    for hostile in (jpeg[: len(jpeg) // 2], b"GIF89a" + b"\0" * 40, png(50_000, 50_000), b"", b"<"):
        refused = post_picture(api, run_id, hostile)
        assert (refused.status_code, refused.json()["code"]) == (422, "IMAGE_UNREADABLE")
    assert model_process.starts == 1
    # A model that is killed is started again by the next question.
    os.kill(model_process._process.pid, signal.SIGKILL)
    assert try_picture(api, run_id, jpeg) == output


def test_try__names_training_images_and_they_can_be_seen(
    api, client, services, folder, photos, tmp_path
):
    run_id = store_run(services.store, services.artifacts, folder)
    kept = read_training_images(folder / "checkpoint" / TRAINING_IMAGES)
    sample = str(kept.ids[3])
    path = next(p for p in photos.rglob("*.png") if str(p).endswith(sample))
    output = client.try_picture(run_id, path)
    assert (output.trained.n, output.trained.of) == (len(kept.ids), kept.of)
    nearest = output.trained.nearest[0]
    assert (nearest.sample_id, nearest.role, nearest.evaluation_id) == (sample, "train", None)
    assert nearest.cosine == pytest.approx(1, abs=2e-3)
    cosines = [one.cosine for one in output.trained.nearest]
    assert cosines == sorted(cosines, reverse=True)
    # None of them is among the evaluated.
    assert not {one.sample_id for one in output.nearest} & set(kept.ids.tolist())

    drawn = np.asarray(Image.open(io.BytesIO(client.run_thumbnail(run_id, sample, size=64))))
    own = np.asarray(Image.open(path).convert("RGB"))
    factor = len(drawn) // len(own)
    assert (drawn[::factor, ::factor] == own).all()

    (far,) = client.ood(run_id).sets
    assert (far.dataset, far.role, far.evaluation_id) == ("far", "far", None)
    picture = partial(client.run_thumbnail, run_id, dataset="far", size=64)
    for name in (*far.scores[0].below, *far.scores[0].above):
        shown = np.asarray(Image.open(io.BytesIO(picture(name))))
        path = next(photos.iterdir()) / name.removeprefix("far/")
        assert (shown[::factor, ::factor] == np.asarray(Image.open(path).convert("RGB"))).all()
    with pytest.raises(ServiceError, match="has no image"):
        picture(sample)

    def refused(of, name):
        answer = api.get(f"/api/v1/runs/{of}/images/{quote(name, safe='')}/thumbnail")
        return answer.status_code, answer.json()["code"]

    evaluated = output.nearest[0].sample_id
    for strange in (evaluated, "../../etc/passwd", str(path), "/etc/passwd", "."):
        assert refused(run_id, strange) == (404, "NOT_FOUND"), strange
    assert refused("nobody", sample) == (404, "NOT_FOUND")
    # A service that may read other folders alone.
    narrow = services.settings.model_copy(update={"data_roots": (tmp_path,)})
    with as_admin(narrow) as api:
        assert refused(run_id, sample) == (404, "NO_IMAGE")


def test_search__ranks_images_by_the_runs_own_towers_among_those_that_are_meant(
    client, services, folder, finished_run
):
    run_id = store_run(services.store, services.artifacts, folder)
    evaluation = services.store.results.run_evaluations(run_id)[0]
    model = CalibratedClassifier.load(folder, device="cpu")
    path = folder / predictions_name(evaluation.dataset)
    features = read_features(path)
    cosines = features.astype(np.float32) @ model.encode_text("red on white")
    order = np.argsort(-cosines, kind="stable")

    search = partial(client.samples, evaluation.id, limit=200)
    found = search(text="red on white").items
    assert [one.id for one in found] == read_predictions(path).ids[order].tolist()
    assert [one.similarity for one in found] == pytest.approx(cosines[order].tolist(), abs=1e-5)
    wrong = search(text="red on white", where="not correct").items
    assert [one.id for one in wrong] == [one.id for one in found if not one.correct]
    surest = search(text="red on white", sort="confidence", descending=True).items
    assert surest[0].confidence == max(one.confidence for one in found)
    like = search(like=found[-1].id).items
    assert (like[0].id, like[0].similarity) == (found[-1].id, pytest.approx(1, abs=2e-3))
    assert services.trials._models.starts == 1  # nor is it asked twice

    def refused(of, **params):
        with pytest.raises(ServiceError) as refusal:
            client.samples(of, **params)
        return refusal.value.status, refusal.value.message

    assert refused(evaluation.id, like="nothing")[0] == 404
    assert refused(evaluation.id, sort="similarity")[0] == 422
    imported = finished_run(services.store, services.artifacts)
    of_no_model = services.store.results.run_evaluations(imported)[0].id
    assert refused(of_no_model, text="red")[0] == 409
    with pytest.raises(SpecError, match="at most 300"):
        client.samples(evaluation.id, text="x" * 301)
    with pytest.raises(SpecError, match="one of them"):
        client.samples(evaluation.id, text="x", like="y")


def test_try__a_run_of_an_earlier_version_names_evaluated_images_alone(
    api, services, folder, photos, tmp_path
):
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    (old / "checkpoint" / TRAINING_IMAGES).unlink()
    run_id = store_run(services.store, services.artifacts, old)
    output = try_picture(api, run_id, next(photos.rglob("*.png")).read_bytes())
    assert output.trained is None
    assert output.nearest
    answer = api.get(f"/api/v1/runs/{run_id}/images/a.png/thumbnail")
    assert (answer.status_code, "kept no features" in answer.json()["detail"]) == (404, True)


def test_try__runs_share_a_process_and_the_oldest_is_forgotten(api, services, folder, photos):
    store = partial(store_run, services.store, services.artifacts)
    runs = [store(folder) for _ in range(5)]
    picture = next(photos.rglob("*.png")).read_bytes()

    def said(run_id):
        return try_picture(api, run_id, picture)

    models = services.trials._models
    models.start()
    began = models.starts
    tops = [said(run_id).top for run_id in runs]
    assert all(top == tops[0] for top in tops)
    assert models.starts == began
    (decoder,) = services.trials._decoders.values()  # they take pictures alike
    assert list(services.trials._hosts) == runs[1:]
    left = [host.folder for host in services.trials._hosts.values()]
    root = services.settings.home / "cache" / "tried"
    assert sorted(root.glob("tmp*")) == sorted(left)
    # A process that ends costs every run its model, and no run its answer.
    os.kill(models._process.pid, signal.SIGKILL)
    assert [said(run_id).top for run_id in runs[1:3]] == tops[1:3]
    assert said(runs[0]).top == tops[0]
    assert models.starts == began + 1


def test_try__a_run_without_a_model_and_what_is_no_picture_are_told(
    api, services, finished_run, spec_of
):
    out = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(out, format="PNG")
    picture = out.getvalue()
    for run_id in (finished_run(services.store, services.artifacts), None):
        run_id = run_id or services.store.runs.submit(spec_of())
        refused = post_picture(api, run_id, picture)
        assert (refused.status_code, refused.json()["code"]) == (409, "NO_MODEL")
        assert run_id in refused.json()["detail"]
    assert post_picture(api, "nobody", picture).status_code == 404
    assert (
        post_picture(api, run_id, b"{}", **{"Content-Type": "application/json"}).status_code == 415
    )
    assert post_picture(api, run_id, b"a", **{"Content-Type": "image/png"}).status_code == 415
    assert post_picture(api, run_id, bytes(MAX_PICTURE_BYTES + 1)).status_code == 413
    refused = api.post("/api/v1/runs", content=picture, headers=KIND)
    assert refused.status_code == 415
    assert not services.trials._hosts


def test_model__is_the_zip_of_what_export_writes_and_answers_alike(
    client, api, services, folder, photos, tmp_path
):
    run_id = store_run(services.store, services.artifacts, folder)
    packed = client.download_model(
        run_id, tmp_path / "model.zip", calibrator="temperature", onnx=True
    )
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path)
    shipped = CalibratedClassifier.load(tmp_path / "model", device="cpu")
    assert shipped.calibrator.kind == "temperature"
    path = next(photos.rglob("*.png"))
    output = try_picture(api, run_id, path.read_bytes())
    (label,) = shipped.predict([path]).labels
    assert label.replace("_", " ") == output.top[0].label
    assert (tmp_path / "model" / "model.onnx").is_file()
    # Made once; what lay in between is gone.
    before = packed.read_bytes()
    again = client.download_model(run_id, packed, calibrator="temperature", onnx=True)
    assert again.read_bytes() == before
    left = [p.name for p in (services.settings.home / "cache" / "exported").iterdir()]
    assert [name.endswith("-temperature-onnx.zip") for name in left] == [True]


def test_model__of_two_towers_names_the_run_of_its_start_and_answers_like_the_command(
    client, api, services, folder, configs, photos, paintings, tmp_path
):
    tuned = run_once(small_spec("flyp", configs["vit"], photos), tmp_path / "tuned")
    shifts = {"shifts": {"art": f"folder:{paintings}"}}
    shifted = run_once(small_spec("flyp", configs["vit"], photos, **shifts), tmp_path / "shifted")
    store = partial(store_run, services.store, services.artifacts)
    first, run_id = store(folder), store(tuned)
    again, more = store(folder), store(shifted)
    # The newest first; a run that changed no weight has none, nor has what never finished.
    assert [one.id for one in client.initial_runs(run_id)] == [again, first]
    assert client.initial_runs(first) == []
    assert api.get("/api/v1/runs/nobody/initial-runs").status_code == 404

    packed = client.download_model(
        run_id, tmp_path / "model.zip", calibrator="disagreement", initial=first
    )
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path)
    files = sorted(photos.rglob("*.png"))[:20]
    shipped = CalibratedClassifier.load(tmp_path / "model", device="cpu")
    assert shipped.initial is not None
    save_choice(tuned, choose_calibrator(tuned, "disagreement", initial=folder), initial=folder)
    here = CalibratedClassifier.load(tuned, device="cpu").predict(files)
    # Fitted twice, there and here: on one processor they were 4e-16 apart.
    np.testing.assert_allclose(shipped.predict(files).probs, here.probs, rtol=0, atol=1e-12)

    def refused(of, **asked):
        answer = api.get(f"/api/v1/runs/{of}/model", params=asked)
        return answer.status_code, answer.json()["detail"] + answer.json().get("hint", "")

    status, words = refused(run_id, calibrator="sals")
    assert (status, "reads the initial model's logits" in words) == (422, True)
    status, words = refused(run_id, calibrator="temperature", initial=first)
    assert (status, "reads no other model's logits" in words) == (422, True)
    status, words = refused(run_id, calibrator="sals", initial=run_id)
    assert (status, "does not hold the model that run" in words) == (409, True)
    assert refused(run_id, calibrator="sals", initial="nobody")[0] == 404
    # The initial model was never asked about this run's shift.
    status, words = refused(more, calibrator="sals", initial=first)
    answer = (
        f"run {first} must have been tested on what run {more} was, it has no predictions of art"
    )
    assert (status, answer in words) == (409, True), words
    assert str(services.settings.home) not in words


def test_model__without_one_or_without_data_to_fit_on_is_a_sentence(api, services, finished_run):
    run_id = finished_run(services.store, services.artifacts)
    refused = api.get(f"/api/v1/runs/{run_id}/model")
    assert (refused.status_code, "no finished model" in refused.json()["detail"]) == (409, True)
    unknown = api.get(f"/api/v1/runs/{run_id}/model?calibrator=nothing")
    assert unknown.status_code == 422


def test_threshold__is_one_for_decide_the_command_try_export_and_predict(
    api, services, folder, photos, tmp_path
):
    run = shutil.copytree(folder, tmp_path / "run")
    report = read_report(run)
    for seed, part in enumerate(("calibration", "validation")):
        path = run / report.selection[part]["predictions"]
        path.chmod(0o600)
        write_predictions(path, too_sure(read_predictions(path).metadata, seed))
    run_id = store_run(services.store, services.artifacts, run)

    save_choice(run, choose_calibrator(run))
    export_run(run, tmp_path / "model")
    model = CalibratedClassifier.load(tmp_path / "model", device="cpu")
    assert model.calibrator is not None
    shipped = {one.risk: one.threshold for one in model.promised().thresholds}
    assert None not in (shipped[0.05], shipped[0.1])
    own = read_predictions(run / report.selection["validation"]["predictions"])
    assert shipped[0.1] == choose_threshold(
        score_probs(model.calibrator.transform(own.logits), own.labels), risk=0.1
    )

    picture = next(photos.rglob("*.png"))
    tried = try_picture(api, run_id, picture.read_bytes())
    assert {one.risk: one.threshold for one in tried.kept} == shipped
    explorer = Explorer(FolderLibrary())
    for risk, threshold in shipped.items():
        served = api.get(f"/api/v1/runs/{run_id}/decision", params={"risk": risk}).json()
        local = explorer.decision(str(run), DecisionQuery(risk=risk))
        assert served["threshold"] == local.threshold == threshold
        assert served["chosen_on"]["dataset"] == local.chosen_on.dataset == tried.promised_on
        assert served["calibrator"] == local.calibrator == tried.calibrator == model.calibrator.kind
        row = next(predict_files(model, [str(picture)], errors=risk))[0]
        kept = next(one.kept for one in tried.kept if one.risk == risk)
        assert (
            row["kept"] == kept == (None if threshold is None else row["confidence"] >= threshold)
        )


def too_sure(metadata: PredictionsMetadata, seed: int) -> Predictions:
    """900 samples of a model whose logits are three times too large."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(900, len(metadata.class_names))) * 6
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    ids = np.array([f"{seed}/{i}" for i in range(900)])
    return Predictions(ids, labels, (3 * logits).astype(np.float32), metadata)
