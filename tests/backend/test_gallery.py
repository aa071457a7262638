"""Samples one by one and their images: what they are of, and that no file leads anywhere else."""

import io
import os
import random
import signal
import struct
import zlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import fisher_exact
from starlette.testclient import TestClient

from calift_core.calibration import score_samples, softmax
from calift_core.data.corruptions import corrupt, image_seed
from calift_core.data.decode import decode
from calift_core.data.finding import Finder, ThumbnailRequest
from calift_core.data.suites.load import load_suite
from calift_core.data.thumbnails import pixels_of
from calift_core.errors import SpecError
from calift_core.predictions.read import read_scores
from calift_core.predictions.rows import read_scores_at, read_top
from calift_core.predictions.write import write_predictions
from calift_core.schema.suite import SuiteSpec
from calift_core.schema.wire.queries import SampleFilter
from tests.backend.test_analysis import get
from tests.conftest import SEED, example_evaluation, example_predictions, until
from tests.support.drawing import shared_drawers

FUZZED = int(os.environ.get("CALIFT_FUZZ_IMAGES", "60"))


@pytest.fixture(scope="module", autouse=True)
def drawers():
    with shared_drawers(2):
        yield


def code_of(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


@pytest.fixture
def pair(app, finished_run):
    """The predictions of two models on the same samples, and their evaluations' ids."""
    services = app.state.services
    made = []
    for seed in (0, 1):
        predictions = example_predictions(0)
        rng = np.random.default_rng(seed)
        noise = seed * rng.normal(size=predictions.logits.shape).astype(np.float32)
        moved = type(predictions)(
            ids=predictions.ids, labels=predictions.labels, logits=predictions.logits + noise,
            metadata=predictions.metadata,
        )  # fmt: skip
        run = finished_run(
            services.store,
            services.artifacts,
            seed=seed,
            datasets=(("id", "id"),),
            predict=lambda *_, moved=moved: moved,
        )
        (evaluation,) = services.store.results.run_evaluations(run)
        made.append((moved, evaluation.id))
    return made


@pytest.fixture
def run_on(app, finished_run):
    """Makes a finished run; its id and its evaluations by data set."""
    services = app.state.services

    def make(*datasets, **more):
        run = finished_run(services.store, services.artifacts, datasets=datasets, **more)
        found = services.store.results.run_evaluations(run)
        return run, {e.dataset: e.id for e in found}

    return make


def test_samples__a_bin_holds_what_the_diagram_counts(api, pair):
    (_, evaluation), _ = pair
    for scheme in ("equal_mass", "equal_width"):
        requested = {"n_bins": 7, "scheme": scheme, "temperature": 1.5}
        diagram = get(api, f"/evaluations/{evaluation}/reliability", **requested)
        for b in diagram["bins"]:
            edges = {"lower": b["lower"], "upper": b["upper"]}
            page = get(
                api, f"/evaluations/{evaluation}/samples", **edges, temperature=1.5, limit=200
            )
            assert page["n_matching"] == b["count"] == len(page["items"])
            shown = np.mean([s["confidence"] for s in page["items"]])
            assert shown == pytest.approx(b["mean_confidence"])
            assert np.mean([s["correct"] for s in page["items"]]) == pytest.approx(b["accuracy"])
        counts = [
            get(api, f"/evaluations/{evaluation}/samples", **requested, bin=k, limit=1)[
                "n_matching"
            ]
            for k in range(7)
        ]
        assert [n for n in counts if n] == [b["count"] for b in diagram["bins"]]


def test_samples__pages_follow_each_other_and_belong_to_their_question(api, pair):
    (predictions, evaluation), _ = pair
    path = f"/evaluations/{evaluation}/samples"
    requested = {"where": "not correct", "sort": "nll", "descending": True, "top": 0}
    seen = []
    page = get(api, path, **requested, limit=17)
    while True:
        seen += page["items"]
        if page["next_cursor"] is None:
            break
        page = get(api, path, **requested, limit=17, cursor=page["next_cursor"])
    scores = score_samples(predictions.logits, predictions.labels)
    wrong = np.flatnonzero(~scores.correct)
    ranked = wrong[np.argsort(-scores.nll[wrong], kind="stable")]
    assert [s["id"] for s in seen] == predictions.ids[ranked].tolist()
    cursor = get(api, path, **requested, limit=17)["next_cursor"]
    other = api.get(f"/api/v1{path}", params={"sort": "gap", "cursor": cursor})
    assert code_of(other) == (422, "INVALID_CURSOR")
    for wrong_one in ({"bin": 99}, {"outcome": "gained"}, {"sort": "change"}, {"where": "x =="}):
        assert api.get(f"/api/v1{path}", params=wrong_one).status_code == 422, wrong_one


def test_tags__stay_with_the_data_and_a_condition_reads_them_everywhere(
    api, client, pair, monkeypatch
):
    (predictions, one), (_, other) = pair
    ids = predictions.ids[[7, 3, 50]].tolist()
    path = f"/evaluations/{one}/samples"

    def tagged(where, of=one):
        found = get(api, f"/evaluations/{of}/samples", where=where, limit=200)["items"]
        assert get(api, f"/evaluations/{of}/slices", where=where)["n_matching"] == len(found)
        return [sample["id"] for sample in found]

    assert tagged('tag == "blurry"') == []
    put = client.tag_images(one, ids, add=["blurry", "odd one"])
    assert client.tag_images(one, ids, add=["blurry"]) == put == client.image_tags(other)
    assert sorted(tagged('tag == "blurry"', other)) == sorted(ids)
    client.tag_images(other, ids[:1], remove=["blurry"])
    assert set(tagged('tag == "blurry"')) == set(ids[1:])
    assert set(tagged('tag in ("blurry", "odd one")')) == set(ids)
    assert set(tagged('tag == "odd one" and tag != "blurry"')) == {ids[0]}
    none_of_them = get(api, path, where='tag not in ("blurry", "odd one")', limit=1)
    assert none_of_them["n_matching"] == len(predictions) - 3
    (sample,) = get(api, path, where=f'id == "{ids[1]}"')["items"]
    assert sample["tags"] == ["blurry", "odd one"]
    wrong = SampleFilter(where="not correct")
    n = get(api, path, where=wrong.where)["n_matching"]
    client.tag_images(one, add=["wrong"], where=wrong)
    assert get(api, path, where='tag == "wrong" and not correct')["n_matching"] == n
    traits = get(api, f"{path}/traits", where='tag == "wrong"')
    assert traits["n_matching"] == n

    def refused(**body):
        return api.post(f"/api/v1/evaluations/{one}/tags", json=body).status_code

    assert refused(samples=["nobody"], add=["x"]) == 404
    for bad in ({"add": ["x"]}, {"samples": ids, "add": ['a"b']}, {"samples": ids, "add": [""]},
                {"samples": ids, "where": {}, "add": ["x"]}, {"samples": ids, "add": ["x" * 41]},
                {"samples": ["x"] * 1001, "add": ["x"]}, {"where": {"where": "x =="}}):  # fmt: skip
        assert refused(**bad) == 422, bad
    with pytest.raises(SpecError, match="either samples or where"):
        client.tag_images(one, add=["x"])
    monkeypatch.setattr("backend.store.image_tags.MOST_TAGS", 4)
    before = client.image_tags(one)
    assert refused(samples=ids, add=["one more"]) == 409
    assert client.image_tags(one) == before


def test_map__is_made_once_and_an_area_of_it_is_a_filter(api, client, app, finished_run):
    services = app.state.services
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 8)).astype(np.float16)
    made = replace(example_predictions(0, n=60), features=features)
    run = finished_run(
        services.store, services.artifacts, datasets=(("id", "id"),), predict=lambda *_: made
    )
    (evaluation,) = (one.id for one in services.store.results.run_evaluations(run))
    path = f"/evaluations/{evaluation}/samples"
    area = "0,0 1.1,0 1.1,1.1 0,1.1"
    assert client.feature_map(evaluation).state == "none"
    assert api.get(f"/api/v1{path}", params={"area": area}).status_code == 422
    assert client.make_feature_map(evaluation).state == "making"
    until(lambda: client.feature_map(evaluation).state != "making", timeout_s=120, what="the map")
    found = client.feature_map(evaluation)
    assert (found.state, found.reason, found.ids) == ("ready", "", made.ids.tolist())
    assert found.labels == made.labels.tolist()
    assert found == client.feature_map(evaluation)
    assert client.make_feature_map(evaluation).state == "ready"
    expected = {i for i, x, y in zip(found.ids, found.x, found.y, strict=True) if x > 0 and y > 0}
    chosen = SampleFilter(area=area)
    assert {s["id"] for s in get(api, path, area=area, limit=200)["items"]} == expected
    assert get(api, f"{path}/traits", area=area)["n_matching"] == len(expected)
    (one,) = get(api, path.replace("samples", "slices"), area=area, by="all")["items"]
    assert one["n"] == len(expected)
    tagged = client.tag_images(evaluation, where=chosen, add=["corner"]).items
    assert {one.sample for one in tagged} == expected
    for nonsense in ("0,0 1,1", "a,b c,d e,f", "0,0 1,0 1e999,1", "0,0" * 400):
        assert api.get(f"/api/v1{path}", params={"area": nonsense}).status_code == 422

    few = replace(example_predictions(1, n=5), features=features[:5])
    refused = []
    for predictions in (few, example_predictions(2, n=20)):
        run = finished_run(
            services.store, services.artifacts, datasets=(("id", "id"),),
            predict=lambda *_, given=predictions: given,
        )  # fmt: skip
        refused += [one.id for one in services.store.results.run_evaluations(run)]
    assert api.post(f"/api/v1/evaluations/{refused[1]}/map").status_code == 404
    client.make_feature_map(refused[0])
    until(lambda: client.feature_map(refused[0]).state == "failed", what="its failure")
    assert "at least 10 images" in client.feature_map(refused[0]).reason


def test_samples__a_page_around_one_has_what_comes_before_and_after_it(api, pair):
    (_, evaluation), _ = pair
    path = f"/evaluations/{evaluation}/samples"
    requested = {"where": "not correct", "sort": "nll", "descending": True, "top": 0}
    every = [s["id"] for s in get(api, path, **requested, limit=200)["items"]]

    def around(sample):
        found = get(api, path, **requested, limit=3, around=sample)
        return [found["offset"], *(s["id"] for s in found["items"])]

    assert around(every[0]) == [0, *every[:3]]
    assert around(every[4]) == [3, *every[3:6]]
    assert around(every[-1]) == [len(every) - 2, *every[-2:]]
    right = get(api, path, where="correct", limit=1)["items"][0]["id"]
    assert api.get(f"/api/v1{path}", params={**requested, "around": right}).status_code == 404


def test_samples__gained_and_lost_are_what_two_models_disagree_on(api, pair):
    (before, base), (after, own) = pair
    now, then = (score_samples(p.logits, p.labels) for p in (after, before))
    path = f"/evaluations/{own}/samples"
    expected = {
        "gained": now.correct & ~then.correct,
        "lost": ~now.correct & then.correct,
        "both": now.correct & then.correct,
        "neither": ~now.correct & ~then.correct,
    }
    for outcome, mask in expected.items():
        page = get(api, path, against=base, outcome=outcome, limit=200, top=0)
        assert page["n_matching"] == mask.sum() > 0
        assert {s["id"] for s in page["items"]} <= set(after.ids[mask].tolist())
    page = get(api, path, against=base, sort="change", descending=True, limit=5)
    best = np.argsort(-(then.nll - now.nll), kind="stable")[:5]
    assert [s["id"] for s in page["items"]] == after.ids[best].tolist()
    for sample, k in zip(page["items"], best, strict=True):
        assert sample["against"]["predicted"] == then.predicted[k]
        assert sample["against"]["nll"] == pytest.approx(then.nll[k])


def test_samples__the_most_probable_classes_are_those_of_the_logits(api, pair, tmp_path):
    (predictions, evaluation), _ = pair
    page = get(
        api,
        f"/evaluations/{evaluation}/samples",
        sort="gap",
        descending=True,
        top=3,
        temperature=2.0,
    )
    probs = softmax(predictions.logits, 2.0)
    at = {name: k for k, name in enumerate(predictions.ids.tolist())}
    for sample in page["items"]:
        row = probs[at[sample["id"]]]
        assert [t["index"] for t in sample["top"]] == np.argsort(-row, kind="stable")[:3].tolist()
        assert sample["top"][0]["probability"] == pytest.approx(sample["confidence"], rel=1e-5)
    few = tmp_path / "few.parquet"
    write_predictions(few, predictions, keep=2)
    rows = np.array([250, 3])
    kept = read_top(few, rows, 5)
    whole = softmax(predictions.logits, 1.0)[rows]
    assert [[c for c, _ in row] for row in kept] == np.argsort(-whole, kind="stable")[
        :, :2
    ].tolist()
    assert [row[0][1] for row in kept] == pytest.approx(whole.max(axis=1), rel=1e-5)


def test_traits__are_fishers_test_adjusted_for_all_classes(api, pair):
    (predictions, evaluation), _ = pair
    path = f"/evaluations/{evaluation}/samples/traits"
    found = get(api, path, where="predicted in (1, 2) and confidence > 0.6")
    top = next(t for t in found["items"] if t["column"] == "predicted")
    predicted = score_samples(predictions.logits, predictions.labels).predicted
    n, k, of_class = found["n_matching"], top["n"], int((predicted == top["key"]).sum())
    table = [[k, n - k], [of_class - k, 300 - n - (of_class - k)]]
    # The smallest of five p-values is multiplied by five.
    assert top["p"] == pytest.approx(min(1, 5 * fisher_exact(table, "greater").pvalue))
    assert top["share"] == pytest.approx(k / n)
    assert top["share"] > top["rest_share"]
    assert get(api, path)["items"] == []


def test_scores_at__are_those_of_the_whole_file(pair, tmp_path):
    (predictions, _), _ = pair
    rows = np.array([0, 3, 7, 299])
    for keep, temperature in (("full", 1.0), ("full", 2.5), (2, 1.0)):
        path = tmp_path / f"{keep}-{temperature}.parquet"
        write_predictions(path, predictions, keep=keep)
        whole = read_scores(path, temperature).take(rows)
        few = read_scores_at(path, rows, temperature)
        for field in fields(whole):
            expected, got = getattr(whole, field.name), getattr(few, field.name)
            np.testing.assert_array_equal(expected, got, err_msg=f"{keep} {field.name}")


def test_answers__are_what_each_data_set_says_of_the_sample(api, photos, evaluated):
    found = evaluated(photos)
    sample = "test/dog/1 ü.png"
    answer = get(api, f"/samples/{found['photos/test']}/{sample}/answers", top=2)
    assert [i["source"]["dataset"] for i in answer["items"]] == ["photos/test", "contrast/5"]
    for item in answer["items"]:
        page = get(
            api,
            f"/evaluations/{found[item['source']['dataset']]}/samples",
            where=f'id == "{sample}"',
            top=2,
        )
        assert item["sample"] == page["items"][0]
    missing = api.get(f"/api/v1/samples/{found['photos/test']}/nobody/answers")
    assert code_of(missing)[0] == 404


def test_answers__ids_of_another_data_set_are_other_images(api, run_on):
    # Numbered ids are the same everywhere, and their images are not.
    run, evaluations = run_on(("id", "id"), ("sketch", "shift"))
    for name in ("id", "sketch"):
        answer = get(api, f"/samples/{evaluations[name]}/image 0/answers")
        assert [i["source"]["dataset"] for i in answer["items"]] == [name]
        assert answer["source"]["run_id"] == run


def test_doubtful__labels_that_every_run_contradicts_surely(api, run_on):
    clean = example_predictions(0)
    wrong = np.array([5, 17, 40])
    other = (clean.labels[wrong] + 1) % 5
    alone = 60  # contradicted by one run only

    def made(seed):
        logits = 2.0 * np.eye(5, dtype=np.float32)[clean.labels]
        logits[wrong] = 0
        logits[wrong, other] = [9.0, 8.0 - seed, 7.0]
        if seed == 0:
            logits[alone] = 9.0 * np.eye(5)[(clean.labels[alone] + 2) % 5]
        return type(clean)(
            ids=clean.ids, labels=clean.labels, logits=logits.astype(np.float32),
            metadata=clean.metadata,
        )  # fmt: skip

    ids = []
    for seed in (0, 1):
        _, evaluations = run_on(("id", "id"), predict=lambda *_, s=seed: made(s))
        ids.append(evaluations["id"])
        answer = get(api, f"/evaluations/{ids[-1]}/samples/doubtful")
        # One run alone contradicts nothing: it may just be wrong.
        assert len(answer["runs"]) == seed + 1
        assert answer["n"] == (0, 3)[seed]
    assert [s["id"] for s in answer["items"]] == clean.ids[wrong].tolist()  # the surest first
    assert [s["predicted"] for s in answer["items"]] == other.tolist()
    strict = get(api, f"/evaluations/{ids[0]}/samples/doubtful", threshold=0.9999)
    assert strict["n"] < 3
    # Another suite's runs on data of the same name have no say.
    run_on(("id", "id"), suite={"id": "cifar10"})
    assert get(api, f"/evaluations/{ids[0]}/samples/doubtful")["n"] == 3


def test_corrected__is_the_manifest_of_the_data_with_what_a_person_said(api, run_on, tmp_path):
    tree = tmp_path / "things"
    for part in ("train", "validation", "calibration", "test"):
        for name in ("a_cat", "a_dog"):
            (tree / part / name).mkdir(parents=True)
            for at in range(3):
                Image.new("RGB", (4, 4)).save(tree / part / name / f"{at}.png")
    suite = load_suite(SuiteSpec(id=f"folder:{tree}"))
    test = suite.part("test")

    def predict(*_):
        example = example_predictions(0, n=6, n_classes=2)
        about = replace(example.metadata, class_names=("a cat", "a dog"))
        ids = np.array(test.ids)
        return type(example)(ids=ids, labels=test.labels, logits=example.logits, metadata=about)

    _, found = run_on(("id", "id"), predict=predict, suite={"id": f"folder:{tree}"})
    path = f"/api/v1/evaluations/{found['id']}/corrected"
    cat, other = test.ids[0], test.ids[1]
    output = [
        {"sample": cat, "label": "a cat", "suggested": "a dog"},
        {"sample": other, "label": "a cat", "suggested": ""},
    ]
    made = api.post(path, json={"corrections": output})
    assert made.status_code == 200, made.text
    body = made.json()
    assert (body["folder"], body["changed"], body["dropped"]) == (str(tree), 1, 1)
    (tree / "corrected.csv").write_text(body["manifest"])
    again = load_suite(SuiteSpec(id=f"manifest:{tree / 'corrected.csv'}")).part("test")
    labels = {i: suite.classes[n] for i, n in zip(again.ids, again.labels, strict=True)}
    assert labels == {cat: "a_dog", test.ids[2]: "a_cat"} | dict.fromkeys(test.ids[3:], "a_dog")

    for wrong, sentence in (
        ([{"sample": "nobody", "suggested": "a dog"}], "are of no image"),
        ([{"sample": cat, "suggested": "a dragon"}], "cannot be 'a dragon'"),
        ([output[0], output[0]], "is corrected twice"),
    ):
        refused = api.post(path, json={"corrections": wrong})
        assert refused.status_code == 422
        assert sentence in refused.json()["detail"]
    _, elsewhere = run_on(("id", "id"))
    refused = api.post(
        f"/api/v1/evaluations/{elsewhere['id']}/corrected", json={"corrections": output[:1]}
    )
    assert code_of(refused) == (404, "NO_IMAGE")


def test_image_stats__what_is_brighter_and_what_is_twice_there_is_found(api, photos, evaluated):
    rng = np.random.default_rng(3)
    for name, level in (("cat", 60), ("dog", 190)):
        for k in range(10):
            grain = rng.normal(0, 20, (8, 8, 3)).repeat(12, axis=0).repeat(12, axis=1)
            pixels = np.clip(level + grain, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(photos / "test" / name / f"made {k}.png")
    folder = photos / "test" / "dog"
    Image.open(folder / "made 4.png").resize((64, 64)).save(folder / "again.jpg", quality=70)
    (folder / "broken.png").write_bytes(b"no picture")
    evaluation = evaluated(photos)["photos/test"]
    requested = {"where": 'label == "dog"'}
    looks = get(api, f"/evaluations/{evaluation}/samples/looks", **requested)
    assert (looks["n"], looks["n_rest"], looks["n_missing"]) == (14, 13, 1)
    assert looks["reason"]
    by_name = {one["name"]: one for one in looks["items"]}
    assert by_name["brightness"]["mean"] > by_name["brightness"]["rest_mean"] + 0.2
    assert by_name["brightness"]["p"] < 0.01 < by_name["sharpness"]["p"]
    assert ["test/dog/again.jpg", "test/dog/made 4.png"] in looks["near"]
    again = get(api, f"/evaluations/{evaluation}/samples/looks", **requested)
    assert again["items"] == looks["items"]
    nothing = get(api, f"/evaluations/{evaluation}/samples/looks", where="nll < 0", most=5)
    assert (nothing["n"], nothing["n_rest"], nothing["items"]) == (0, 5, [])


def picture(seed: int, side: int = 96) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 3.6 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def hostile(folder: Path, secret: Path) -> dict[str, Path]:
    """Files of a class folder that are no good images, each with a reason of its own."""
    jpeg = io.BytesIO()
    picture(1).save(jpeg, "JPEG")
    (folder / "truncated.jpg").write_bytes(jpeg.getvalue()[:700])
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "script.gif").write_bytes(b"GIF89a/*<svg onload=alert(1)>*/=1;" + jpeg.getvalue())
    (folder / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF\n(" + str(secret).encode() + b") run")
    (folder / "link.png").symlink_to(secret)
    (folder / "up.png").symlink_to(f"../../../{secret.name}")
    os.mkfifo(folder / "pipe.png")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def photos(tmp_path):
    """A folder of two classes with a test part, and beside it a picture that is nobody's."""
    root = tmp_path / "photos"
    for part in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for k in range(3):
                picture(10 * label + k).save(root / part / name / f"{k} ü.png")
    picture(99).save(tmp_path / "secret.png")
    return root


@pytest.fixture
def evaluated(app, finished_run, monkeypatch):
    """Makes a run on a folder; its evaluations by data set."""

    def reported(predictions, digest):
        name, _, level = predictions.metadata.dataset.partition("/")
        found = example_evaluation(predictions, digest)
        if predictions.metadata.role != "corruption":
            return found
        return found.model_copy(update={"corruption": name, "severity": int(level)})

    monkeypatch.setattr("tests.conftest.example_evaluation", reported)

    def make(root):
        files = sorted(p.relative_to(root).as_posix() for p in (root / "test").glob("*/*"))
        labels = np.array([["cat", "dog"].index(f.split("/")[1]) for f in files])

        def predict(dataset, role):
            made = example_predictions(
                0, n=len(files), n_classes=2, dataset=dataset, role=role, class_names=("cat", "dog")
            )
            return type(made)(
                ids=np.array(files), labels=labels, logits=made.logits, metadata=made.metadata
            )

        services = app.state.services
        run = finished_run(
            services.store,
            services.artifacts,
            datasets=(("photos/test", "id"), ("contrast/5", "corruption")),
            predict=predict,
            suite={
                "id": f"folder:{root}",
                "corruptions": {"names": ["contrast"], "severities": [5]},
            },
        )
        return {e.dataset: e.id for e in services.store.results.run_evaluations(run)}

    return make


def thumbnail(api: TestClient, evaluation: str, sample: str, **asked: Any) -> Any:
    from urllib.parse import quote

    headers = asked.pop("headers", None)
    return api.get(
        f"/api/v1/samples/{evaluation}/{quote(sample, safe='')}/thumbnail",
        params=asked,
        headers=headers,
    )


def test_thumbnail__is_the_image_as_the_model_saw_it(api, client, photos, evaluated):
    found = evaluated(photos)
    sample = "test/dog/1 ü.png"
    clean = thumbnail(api, found["photos/test"], sample, size=64)
    assert (clean.status_code, clean.headers["content-type"]) == (200, "image/jpeg"), clean.text
    assert Image.open(io.BytesIO(clean.content)).size == (64, 64)
    again = thumbnail(
        api, found["photos/test"], sample, size=64, headers={"If-None-Match": clean.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")

    drawn = client.thumbnail(found["contrast/5"], sample, size=512)
    shown = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB")).astype(float)
    seen = corrupt(
        decode(photos / sample), "contrast", 5, seed=image_seed(0, sample, "contrast", 5)
    )
    assert shown.shape == seen.shape
    assert np.abs(shown - seen).mean() < 4  # of JPEG
    assert np.abs(shown - decode(photos / sample)).mean() > 20

    for requested in ({"size": 63}, {"size": 513}):
        assert thumbnail(api, found["photos/test"], sample, **requested).status_code == 422
    (photos / sample).unlink()  # what was drawn once stays
    assert thumbnail(api, found["photos/test"], sample, size=64).content == clean.content
    gone = thumbnail(api, found["photos/test"], sample, size=65)
    assert code_of(gone) == (404, "NO_IMAGE")


def test_thumbnail__nothing_leads_out_of_the_data(api, photos, evaluated, tmp_path):
    secret = tmp_path / "secret.png"
    names = hostile(photos / "test" / "cat", secret)
    evaluation = evaluated(photos)["photos/test"]
    for name in names:
        answer = thumbnail(api, evaluation, f"test/cat/{name}")
        good = name.endswith("ü.png")
        assert answer.status_code == (200 if good else answer.status_code), name
        if not good:
            assert code_of(answer) in ((404, "NO_IMAGE"), (422, "IMAGE_UNREADABLE")), name
            assert str(tmp_path) not in answer.text
    for name in ("link.png", "up.png"):
        assert code_of(thumbnail(api, evaluation, f"test/cat/{name}")) == (404, "NO_IMAGE")
    for sample in ("../../secret.png", str(secret), "test/cat/../../../secret.png", "", "\0", ".."):
        answer = thumbnail(api, evaluation, sample)
        assert answer.status_code in (400, 404, 422), sample
    assert thumbnail(api, evaluation, "test/dog/2 ü.png").status_code == 200


@pytest.mark.fuzz
def test_thumbnail__fuzzed_images_end_as_a_picture_or_a_sentence(api, app, photos, evaluated):
    rng = random.Random(f"{SEED} 7")
    kinds = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif"}
    for k in range(FUZZED):
        kind, ending = rng.choice(list(kinds.items()))
        written = io.BytesIO()
        picture(k, side=40).save(written, kind)
        data = bytearray(written.getvalue())
        for _ in range(rng.randint(1, 12)):
            at = rng.randrange(min(len(data), rng.choice((40, 200, len(data)))))
            data[at] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        (photos / "test" / "cat" / f"fuzzed {k}.{ending}").write_bytes(data)
    evaluation = evaluated(photos)["photos/test"]
    lines = app.state.services.thumbnails._workers
    answers = {}
    for path in (photos / "test" / "cat").glob("fuzzed*"):
        answer = thumbnail(api, evaluation, f"test/cat/{path.name}", size=64)
        answers[path.name] = answer.status_code
        if answer.status_code == 200:
            with Image.open(io.BytesIO(answer.content), formats=("PNG", "JPEG")) as shown:
                assert max(shown.size) <= 64
        else:
            assert code_of(answer) == (422, "IMAGE_UNREADABLE")
    assert len(answers) == FUZZED
    assert set(answers.values()) == {200, 422}
    # The processes that draw outlived all of them, and none of them took much.
    assert max(line.drawer.starts for line in lines) == 1
    for line in (one for one in lines if one.drawer.pid):
        status = Path(f"/proc/{line.drawer.pid}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) < 400 << 10


def test_thumbnail__waits_for_its_turn_so_long_and_is_there_for_who_asks_again(
    api, app, photos, evaluated, monkeypatch
):
    evaluation = evaluated(photos)["photos/test"]
    assert thumbnail(api, evaluation, "test/cat/0 ü.png").status_code == 200
    first = app.state.services.thumbnails._workers[0]
    monkeypatch.setattr("backend.services.thumbnails._PATIENCE_S", 0.2)
    os.kill(first.drawer.pid, signal.SIGSTOP)
    try:
        late = thumbnail(api, evaluation, "test/cat/1 ü.png")
        assert code_of(late) == (503, "BUSY")
        assert int(late.headers["retry-after"]) >= 1
        assert first.waiting == 1  # its turn still comes, and others are not put behind it
    finally:
        os.kill(first.drawer.pid, signal.SIGCONT)
    until(lambda: first.waiting == 0, timeout_s=60, what="the picture that nobody waited for")
    monkeypatch.setattr("backend.services.thumbnails._PATIENCE_S", 60.0)
    assert thumbnail(api, evaluation, "test/cat/1 ü.png").status_code == 200
    assert first.drawer.starts == 1


def test_thumbnail__only_registered_folders_are_read_where_they_are_named(
    make_settings, sqlite_url, photos, tmp_path
):
    finder = Finder()
    request = ThumbnailRequest(
        suites=[{"id": f"folder:{photos}"}], dataset="photos/test", role="id", corruption=None,
        severity=None, sample="test/cat/0 ü.png", label=0,
    )  # fmt: skip
    assert pixels_of(finder.find(request), [], 64).shape == (96, 96, 3)
    (photos / "test" / "cat" / "0 ü.png").unlink()
    (photos / "test" / "cat" / "0 ü.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(Exception, match="outside the folders"):
        pixels_of(finder.find(request), [], 64)
    assert pixels_of(finder.find(request), [tmp_path], 64).shape == (96, 96, 3)
