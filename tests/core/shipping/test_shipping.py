"""From a finished run to an exported model: the choice, the folder, the graph, the answers."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from calift.commands import data
from calift.commands.main import app
from calift_core.analysis import choosing
from calift_core.analysis.choosing import BY_CLASS, CANDIDATES, Choice, read_choice
from calift_core.calibration import CALIBRATORS, Calibrator, nll, score_probs, softmax
from calift_core.calibration.conformal import fit_conformal
from calift_core.calibration.decisions import choose_threshold
from calift_core.calibration.ood import alarm_threshold, auroc, knn, mcm
from calift_core.data.suites.load import load_suite
from calift_core.errors import CaliftError, CheckpointError, DataError, SpecError, UnknownNameError
from calift_core.evaluation.subjects import load_trained
from calift_core.jobs.folder import run_in_folder
from calift_core.models.finished import load_finished
from calift_core.predictions.read import read_predictions
from calift_core.predictions.rows import read_features
from calift_core.predictions.training import TRAINING_IMAGES, read_training_images
from calift_core.predictions.types import Predictions
from calift_core.predictions.write import write_predictions
from calift_core.schema.report import Report
from calift_core.schema.suite import SuiteSpec
from calift_core.schema.wire.ood import OodDetection
from calift_core.shipping.card import chance_warnings
from calift_core.shipping.choosing import choose_calibrator, save_choice
from calift_core.shipping.classifier import CalibratedClassifier
from calift_core.shipping.export import export_run
from calift_core.shipping.exported_scores import exported_scores
from calift_core.shipping.folder import CARD_NAME, EXPORT_NAME, ONNX_NAME, read_exported
from calift_core.shipping.following import chart_html, follow, read_log
from calift_core.shipping.onnx import calibrator_module, export_onnx
from calift_core.shipping.predicting import AnswerFile, image_paths, predict_files
from calift_core.shipping.reference import read_reference
from calift_core.shipping.watching import report_html, watch
from calift_core.words import percent
from tests.core.conftest import tiny_spec


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Twelve images of noise."""
    far = tmp_path_factory.mktemp("noise")
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(far / f"{i}.png")
    return far


@pytest.fixture(scope="module")
def made(tmp_path_factory, configs, photos, paintings, noise):
    """A finished run with a shift and a far set: not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "photos"
    suite = {"shifts": {"art": f"folder:{paintings}"}, "ood": {"noise": f"folder:{noise}"}}
    list(run_in_folder(tiny_spec("flyp", configs, photos, suite=suite), folder))
    return folder


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    """The run exported with a temperature and a graph: not to be changed."""
    run = shutil.copytree(made, tmp_path_factory.mktemp("exported") / "run")
    save_choice(run, choose_calibrator(run, "temperature"))
    export_run(run, run.parent / "model", onnx=True)
    return run.parent / "model"


def predictions_of(run: Path, part: str) -> Path:
    report = Report.model_validate_json((run / "report.json").read_bytes())
    return run / report.selection[part]["predictions"]


def refilled(run: Path, **counts: int) -> None:
    """Give parts of a run predictions of other numbers of images, over-confident ones."""
    for part, n in counts.items():
        path, rng = predictions_of(run, part), np.random.default_rng(n)
        own = read_predictions(path)
        labels = np.arange(n) % own.logits.shape[1]
        logits = rng.normal(size=(n, own.logits.shape[1])).astype(np.float32)
        logits[np.arange(n), labels] += 1
        ids = np.array([f"{part}-{i}" for i in range(n)])
        write_predictions(path, Predictions(ids, labels, 4 * logits, own.metadata))


def test_auto__takes_the_simplest_within_one_standard_error_of_the_lowest_nll(run):
    refilled(run, calibration=300, validation=200)
    choice = choose_calibrator(run)
    assert {c.kind for c in choice.candidates} == set(CANDIDATES)
    assert choice.notes == []
    assert [c.nll for c in choice.candidates] == sorted(c.nll for c in choice.candidates)
    fit = read_predictions(predictions_of(run, "calibration"))
    losses = {}
    judged = read_predictions(predictions_of(run, "validation"))
    for one in choice.candidates:
        probs = softmax(judged.logits)
        if one.kind != "none":
            calibrator = CALIBRATORS[one.kind]()
            calibrator.fit(fit.logits, fit.labels, split="calibration", role="id")
            probs = calibrator.transform(judged.logits)
        assert one.nll == pytest.approx(nll(score_probs(probs, judged.labels)))
        losses[one.kind] = score_probs(probs, judged.labels).nll
    behind = {k: own - losses[choice.candidates[0].kind] for k, own in losses.items()}
    near = [
        k for k in CANDIDATES
        if behind[k].mean() <= behind[k].std(ddof=1) / len(judged) ** 0.5
    ]  # fmt: skip
    assert choice.kind == near[0] == "temperature"
    assert (choice.fitted_on.n, choice.chosen_on and choice.chosen_on.n) == (300, 200)
    assert read_choice(run) is None
    save_choice(run, choice)
    assert read_choice(run) == choice


@pytest.mark.parametrize(
    ("calibration", "validation", "kind", "said"),
    [
        (1, 1, "none", "Not considered: temperature. calibration has 1 image"),
        (1, 100, "none", "at least 200 are needed"),
        (199, 100, "temperature", "Not considered: ets, svs, vector, sms, histogram, isotonic."),
        (300, 1, "temperature", "Calibrators were not compared: validation has 1 image"),
    ],
)
def test_auto__of_few_images_takes_temperature_or_none_and_says_why(
    run, calibration, validation, kind, said
):
    refilled(run, calibration=calibration, validation=validation)
    choice = choose_calibrator(run)
    assert choice.kind == kind
    assert said in " ".join(choice.notes)
    assert {c.kind for c in choice.candidates} <= {"none", "temperature"} or calibration == 300


def test_auto__leaves_weights_for_each_class_out_where_one_is_rare_or_they_are_many(
    run, monkeypatch
):
    refilled(run, calibration=300, validation=200)
    path = predictions_of(run, "calibration")
    own = read_predictions(path)
    labels = np.where((own.labels == 2) & (np.arange(300) > 13), 0, own.labels)
    write_predictions(path, Predictions(own.ids, labels, own.logits, own.metadata))
    choice = choose_calibrator(run)
    assert {c.kind for c in choice.candidates} == set(CANDIDATES) - BY_CLASS
    assert "Not considered: svs, vector, sms. calibration has a class of 4 images" in "".join(
        choice.notes
    )
    write_predictions(path, own)
    monkeypatch.setattr(choosing, "MOST_CLASSES_OF_MATRIX", 2)
    choice = choose_calibrator(run)
    assert {c.kind for c in choice.candidates} == set(CANDIDATES) - {"sms"}
    assert "Not considered: sms. it stores a number for each two of 3 classes" in choice.notes[0]


def test_choice__of_too_few_images_is_reported_by_command_card_and_answers(run, photos, tmp_path):
    refilled(run, calibration=1)
    image = sorted(photos.rglob("*.png"))[0]
    answer = "Do not rely on histogram: calibration has 1 image, at least 200 are needed"
    ways = (
        ["calibrate", run, "--with", "histogram"],
        ["export", run, tmp_path / "model"],
        ["predict", tmp_path / "model", image],
    )
    for way in ways:
        output = CliRunner().invoke(app, [str(one) for one in way])
        assert output.exit_code == 0
        assert (answer in " ".join(output.stderr.split())) == (way[0] != "export")
    assert answer in (tmp_path / "model" / CARD_NAME).read_text()


def test_choice__of_what_is_not_there_says_what_is_missing(run, tmp_path):
    with pytest.raises(SpecError, match="disagreement reads the initial"):
        choose_calibrator(run, "disagreement")
    with pytest.raises(UnknownNameError, match="temprature"):
        choose_calibrator(run, "temprature")
    with pytest.raises(DataError, match="must be the folder of a finished run"):
        choose_calibrator(tmp_path)
    with pytest.raises(CaliftError, match="perturbed copies"):
        choose_calibrator(run, "tsp")
    report = json.loads((run / "report.json").read_text())
    del report["selection"]["validation"]
    (run / "report.json").write_text(json.dumps(report))
    with pytest.raises(DataError, match="ID validation part to choose"):
        choose_calibrator(run)
    assert choose_calibrator(run, "temperature").candidates == []
    del report["selection"]["calibration"]
    (run / "report.json").write_text(json.dumps(report))
    with pytest.raises(DataError, match="ID calibration part to fit"):
        choose_calibrator(run, "temperature")
    (run / "calibrator.json").write_text("{}")
    with pytest.raises(DataError, match="calift calibrate"):
        read_choice(run)
    later = {"format": 2, "kind": "none", "requested": "none", "calibrator": None}
    with pytest.raises(ValueError, match="format"):
        Choice.model_validate(later)


def test_export__plain_open_clip_gives_the_same_features_bit_for_bit(exported, made, photos):
    clip, _, _ = load_finished(made)
    net, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{exported}")
    image = Image.open(sorted(photos.rglob("*.png"))[0])
    batch = preprocess(image).unsqueeze(0)
    with torch.inference_mode():
        theirs = net.eval().encode_image(batch, normalize=True)
        ours = clip.eval().encode_image(batch)
    assert torch.equal(ours, theirs)


def test_export__answers_as_the_run_was_evaluated(exported, made):
    stored = read_predictions(made / "predictions" / "photos_test.parquet")
    model = CalibratedClassifier.load(exported, device="cpu")
    photos = Path(json.loads((made / "spec.json").read_text())["suite"]["id"].split(":")[1])
    answers = model.predict([photos / str(i) for i in stored.ids])
    assert answers.logits == pytest.approx(stored.logits, abs=1e-5)
    choice = read_exported(exported).choice
    fitted = choice.fitted()
    assert answers.probs == pytest.approx(fitted.transform(stored.logits), abs=1e-6)
    assert answers.probs.sum(axis=1) == pytest.approx(1)
    assert [answers.classes.index(label) for label in answers.labels] == list(
        stored.logits.argmax(axis=1)
    )


def test_export__is_loaded_like_a_run_and_tells_nothing_of_its_machine(exported, made):
    for name in (EXPORT_NAME, CARD_NAME):
        text = (exported / name).read_text()
        assert not [word for word in (str(made.parent), "/tmp", "folder:/") if word in text]
    source = json.loads((made / "spec.json").read_text())["suite"]["id"]
    suite = load_suite(SuiteSpec(id=source))
    ours, theirs = (load_trained(p, suite, torch.device("cpu")) for p in (made, exported))
    assert ours.sha256 == theirs.sha256
    assert torch.equal(ours.classifier.weights, theirs.classifier.weights)


def test_export__a_changed_file_is_refused(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    weights = copy / "open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="content has changed"):
        CalibratedClassifier.load(copy, device="cpu")
    weights.unlink()
    with pytest.raises(CheckpointError, match="must hold open_clip_model.safetensors"):
        read_exported(copy)


def test_export__never_writes_over_what_it_did_not_make(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="must be a new folder"):
            export_run(run, other, overwrite=overwrite)
    export_run(run, tmp_path / "model")
    with pytest.raises(DataError, match="--overwrite"):
        export_run(run, tmp_path / "model")
    save_choice(run, choose_calibrator(run, "vector"))
    export_run(run, tmp_path / "model", overwrite=True)
    exported = read_exported(tmp_path / "model").choice
    assert exported.kind == "vector"
    assert (other / "thesis.tex").read_text() == "all of it"
    assert not list(tmp_path.glob(".*"))


def test_card__is_one_that_a_hub_reads_with_the_numbers_of_the_report(run, tmp_path):
    export_run(run, tmp_path / "model")
    report = Report.model_validate_json((run / "report.json").read_bytes())
    card = ModelCard.load(tmp_path / "model" / CARD_NAME)
    assert card.data.library_name == "open_clip"
    answer = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    for e in report.evaluations:
        name = e.dataset.replace("_", "\\_")
        # Without a calibrator the card says what the report says.
        assert answer[name, "accuracy"] == pytest.approx(e.accuracy, abs=1e-6)
        assert answer[name, "ece"] == pytest.approx(e.ece.value, abs=1e-6)
        assert answer[name, "nll"] == pytest.approx(e.nll, abs=1e-5)
        ece, low, high, floor = map(percent, (e.ece.value, *e.ece.interval, e.ece.null_mean))
        assert f"{ece} ({low} to {high}) | {floor}" in card.text
    assert "no calibrator is applied" in card.text
    assert "Before and after" not in card.text
    assert (card.data.license, card.data.base_model) == ("unknown", None)
    assert "**Base model:** vit.json, random weights. **Licence:** not stated." in card.text
    assert (tmp_path / "model" / "reliability.png").stat().st_size > 5_000


def test_card__says_what_the_calibrator_changed_and_whose_the_model_is(
    exported, made, run, tmp_path
):
    card = ModelCard.load(exported / CARD_NAME).text
    report = Report.model_validate_json((made / "report.json").read_bytes())
    own = read_exported(exported).fitted()
    for e in report.evaluations:
        stored = read_predictions(made / "predictions" / f"{e.dataset.replace('/', '_')}.parquet")
        after = nll(score_probs(own.transform(stored.logits), stored.labels))
        changed = next(x for x in card.splitlines() if x.count("→") and e.dataset in x)
        assert (
            f"| {percent(e.accuracy)} → {percent(e.accuracy)} | {percent(e.ece.value)} → "
            in changed
        )
        assert f"| {e.nll:.3f} → {after:.3f} |" in changed
    report = json.loads((run / "report.json").read_text())
    report["spec"]["model"] = {"name": "ViT-B-32", "pretrained": "openai"}
    (run / "report.json").write_text(json.dumps(report))
    export_run(run, tmp_path / "model", license="mit")
    answer = ModelCard.load(tmp_path / "model" / CARD_NAME)
    assert answer.data.license == "mit"
    assert answer.data.base_model == "timm/vit_base_patch32_clip_224.openai"
    assert "**Base model:** ViT-B-32, weights openai. **Licence:** mit." in answer.text


@pytest.mark.parametrize(("right", "warned"), [(0.34, True), (0.9, False)])
def test_card__warns_where_the_model_is_no_better_than_guessing(right, warned, exported, made):
    report = Report.model_validate_json((made / "report.json").read_bytes())
    (row, *_) = exported_scores(made, report, None)
    found = chance_warnings(read_exported(exported), [replace(row, accuracy=right, n=200)])
    assert bool(found) == warned
    assert not warned or "34.0 % of 200 images are right" in found[0]


def fitted(kind: str, seed: int, n: int, classes: int) -> tuple[Calibrator, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, size=(n, classes)).astype(np.float32)
    labels = np.where(rng.random(n) < 0.6, logits.argmax(axis=1), rng.integers(classes, size=n))
    calibrator = CALIBRATORS[kind]().fit(logits, labels, split="calibration", role="id")
    return calibrator, rng.normal(0, 4, size=(200, classes)).astype(np.float32)


@pytest.mark.parametrize("kind", sorted(CALIBRATORS))
@given(seed=st.integers(0, 2**16), n=st.integers(5, 300), classes=st.integers(2, 12))
@settings(max_examples=10)
def test_calibrator_module__is_the_calibrator(kind, seed, n, classes):
    calibrator, logits = fitted(kind, seed, n, classes)
    expected = calibrator.transform(logits)
    found = calibrator_module(calibrator)(torch.from_numpy(logits)).numpy()
    if kind == "vector":  # float32 against float64, where weights are large
        tolerance = 1e-5 + 1e-6 * np.abs(logits * calibrator.weight).max()
    elif kind == "isotonic":  # between two close points the map is as steep as it is
        step = np.diff(calibrator.y).max(initial=0) / np.diff(calibrator.x).min(initial=1)
        tolerance = 1e-5 + 1e-6 * step
    else:
        tolerance = 1e-5
    if kind == "histogram":  # a confidence at an edge may round into the next bin
        top = softmax(logits).max(axis=1)
        inner = calibrator.edges[1:-1]
        keep = np.abs(top[:, None] - inner).min(axis=1, initial=1) > 1e-6
        expected, found = expected[keep], found[keep]
    assert found == pytest.approx(expected, abs=tolerance)


def test_onnx__from_pixels_to_the_same_probabilities(run, photos):
    save_choice(run, choose_calibrator(run, "isotonic"))
    model = CalibratedClassifier.load(run, device="cpu")
    export_onnx(model, run / ONNX_NAME)
    compare(model, run / ONNX_NAME, photos)


def test_onnx__of_an_exported_folder_answers_the_whole_test_part_alike(exported, photos):
    compare(CalibratedClassifier.load(exported, device="cpu"), exported / ONNX_NAME, photos)


def test_onnx__of_a_method_with_a_cache_exported_answers_as_the_run_does(configs, photos, tmp_path):
    spec = tiny_spec("tip_adapter", configs, photos, method={"alpha": 0.5}, train={"epochs": 1})
    list(run_in_folder(spec, tmp_path / "run"))
    save_choice(tmp_path / "run", choose_calibrator(tmp_path / "run", "temperature"))
    export_run(tmp_path / "run", tmp_path / "model", onnx=True)
    model = CalibratedClassifier.load(tmp_path / "run", device="cpu")
    assert model.classifier.cache is not None
    compare(model, tmp_path / "model" / ONNX_NAME, photos)
    again = CalibratedClassifier.load(tmp_path / "model", device="cpu")
    files = sorted(photos.rglob("*.png"))[:20]
    assert (again.predict(files).probs == model.predict(files).probs).all()


def compare(model: CalibratedClassifier, graph: Path, photos: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    files = sorted(photos.rglob("*.png"))
    for batch in (files[:1], files[:37], files):
        pixels = np.stack([model.fit(file) for file in batch])
        probs, logits = session.run(["probabilities", "logits"], {"pixels": pixels})
        answers = model.answer(pixels)
        assert logits == pytest.approx(answers.logits, abs=1e-3)
        assert probs == pytest.approx(answers.probs, abs=1e-4)
        assert list(probs.argmax(axis=1)) == list(answers.indices)


def test_inspect__a_finished_model_looks_once_more_for_copies(made, photos, tmp_path):
    tree = tmp_path / "things"
    for at, file in enumerate(sorted(photos.rglob("*.png"))):
        part = ("train", "validation", "calibration", "test")[at % 4]
        (tree / part / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, tree / part / file.parent.name / file.name)
    original = sorted((tree / "train").rglob("*.png"))[0]
    copy = tree / "test" / original.parent.name / "copy.png"
    Image.open(original).convert("RGB").point(lambda v: min(255, v + 1)).save(copy)
    answer = CliRunner().invoke(data.app, ["inspect", str(tree), "--features", str(made), "--json"])
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)["overlaps"]
    (own,) = [o for o in found if (o["set"], o["in"]) == ("test", "train")]
    pair = [f"test/{copy.parent.name}/copy.png", f"train/{copy.parent.name}/{original.name}"]
    assert pair in own["near"] + own["alike"]
    assert f"{len(own['alike'])} by features" in own["sentence"] or not own["alike"]
    reply = {mine for kind in ("exact", "near", "alike") for mine, _ in own[kind]}
    assert len(reply) == sum(len(own[kind]) for kind in ("exact", "near", "alike"))


def test_predict__an_image_is_the_same_in_every_form(exported, photos):
    model = CalibratedClassifier.load(exported, device="cpu")
    file = sorted(photos.rglob("*.png"))[0]
    picture = Image.open(file)
    array = np.asarray(picture.convert("RGB"))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [file, str(file), picture, array, array / 255, tensor, tensor.float() / 255]
    answers = model.predict(forms, batch_size=3)
    assert len(answers) == len(forms)
    assert answers.probs == pytest.approx(np.tile(answers.probs[0], (len(forms), 1)), abs=1e-7)
    assert all((model.fit(form) == model.fit(file)).all() for form in forms)
    for one in (file, picture, array, tensor, array[None], tensor[None]):
        assert model.predict(one).probs == pytest.approx(answers.probs[:1], abs=1e-7)
    assert len(model.predict([])) == 0
    assert [name for name, _ in answers.top(2)[0]][0] == answers.labels[0]


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (None, "got NoneType"),
        (np.zeros((4, 4, 4), np.uint8), r"the shape \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.full((4, 4, 3), 255.0), r"must lie in \[0, 1\], got 255"),
        (np.full((4, 4, 3), np.nan), r"must lie in \[0, 1\]"),
        (np.zeros((4, 4, 3), np.int64), "it holds int64"),
        (torch.zeros(4, 4, 3), r"a tensor \(3, H, W\), got the shape \(4, 4, 3\)"),
    ],
)
def test_predict__what_is_no_image_is_named_with_its_place(image, says, exported, photos):
    model = CalibratedClassifier.load(exported, device="cpu")
    good = sorted(photos.rglob("*.png"))[0]
    with pytest.raises(DataError, match=says) as caught:
        model.predict([good, image])
    assert "image 1 " in caught.value.message


def test_predict_files__goes_on_where_it_was_stopped_and_names_what_it_cannot_read(
    exported, photos, tmp_path
):
    bad = tmp_path / "cut.png"
    bad.write_bytes(sorted(photos.rglob("*.png"))[0].read_bytes()[:200])
    paths = image_paths([str(photos), str(bad), str(photos)])
    assert len(paths) == 121  # each once
    model = CalibratedClassifier.load(exported, device="cpu")

    def write(name, done=None, stop_after=10**9):
        target = AnswerFile(tmp_path / name, ("model", *paths))
        known = target.rows()
        assert done is None or len(known) == done
        calls = iter(range(10**9))
        batches = predict_files(
            model, paths, done=len(known), batch_size=16, stop=lambda: next(calls) >= stop_after
        )
        return target.write(known, batches)

    whole = write("whole.jsonl", done=0)
    assert [row["path"] for row in whole] == paths
    assert [row["path"] for row in whole if row["error"]] == [str(bad)]
    with pytest.raises(CaliftError, match="stopped behind 32 of 121"):
        write("parts.jsonl", stop_after=2)
    assert not (tmp_path / "parts.jsonl").exists()
    with (tmp_path / "parts.jsonl.part.jsonl").open("a") as part:
        part.write('{"path": "half a li')
    write("parts.jsonl", done=32)
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # Of another question nothing is taken over.
    other = AnswerFile(tmp_path / "parts.jsonl", ("another model", *paths))
    shutil.copy(tmp_path / "parts.jsonl", other.part)
    assert other.rows() == []
    import pyarrow.parquet as pq

    write("whole.parquet")
    table = pq.read_table(tmp_path / "whole.parquet").to_pylist()
    assert [row["label"] for row in table] == [row["label"] for row in whole]
    write("whole.csv")
    assert (tmp_path / "whole.csv").read_text().count("\n") == 122
    with pytest.raises(DataError, match="must end in"):
        AnswerFile(tmp_path / "whole.xlsx", ())


def test_analyse_ood__holds_shifts_and_far_sets_against_the_id_test_images(made, noise, tmp_path):
    far = shutil.copytree(noise, tmp_path / "far")
    (far / "cut.png").write_bytes((far / "0.png").read_bytes()[:60])
    requested = ["analyse", "ood", str(made), str(far)]
    answer = CliRunner().invoke(app, [*requested, "--json"], catch_exceptions=False)
    found = OodDetection.model_validate_json(answer.stdout)
    sets = [(s.dataset, s.role, s.n) for s in found.sets]
    # What cannot be read of a folder is left out.
    assert sets == [("art", "shift", 24), ("noise", "far", 12), ("far", "far", 12)]
    for mine, theirs in zip(found.sets[1].scores, found.sets[2].scores, strict=True):
        assert mine.auroc.value == pytest.approx(theirs.auroc.value, abs=0.01), mine.score
        assert mine.threshold == theirs.threshold
    alone = CliRunner().invoke(app, ["analyse", "ood", str(made), "--dataset", "noise", "--json"])
    assert OodDetection.model_validate_json(alone.stdout).sets == found.sets[1:2]
    test, shift = (
        read_predictions(made / "predictions" / n) for n in ("photos_test.parquet", "art.parquet")
    )
    training = read_training_images(made / "checkpoint" / TRAINING_IMAGES)
    scores = {one.score: one.auroc.value for one in found.sets[0].scores}
    scale = test.metadata.logit_scale
    assert scores["mcm"] == pytest.approx(auroc(mcm(test.logits, scale), mcm(shift.logits, scale)))
    features = [
        read_features(made / "predictions" / n) for n in ("photos_test.parquet", "art.parquet")
    ]
    assert scores["knn"] == pytest.approx(auroc(*(knn(f, training.features) for f in features)))
    assert found.notes == []
    output = CliRunner().invoke(app, requested, catch_exceptions=False).stdout.replace("\n", " ")
    assert re.match(r"Of the far sets, .* tells .* Of the shifts, .* tells art from", output)
    # It has no labels: nothing measures it.
    file = made / "predictions" / "noise.parquet"
    for command in (["analyse", "metrics"], ["judge"]):
        refused = CliRunner().invoke(app, [*command, str(file)])
        assert "must have labels" in str(refused.exception)


def test_none_of_these__the_threshold_travels_with_what_it_gave(exported, made, photos, tmp_path):
    found = read_exported(exported).none_of_these
    own = read_predictions(predictions_of(made, "validation"))
    scores = mcm(own.logits, own.metadata.logit_scale)
    assert (found.score, found.dataset, found.n) == ("mcm", own.metadata.dataset, len(own))
    for one in found.thresholds:
        assert one.threshold == alarm_threshold(scores, one.false_alarms)
        for test in one.tests:
            assert test.interval[0] <= test.alarms <= test.interval[1]
    # 14 images are enough for one false alarm in ten and not for fewer.
    tests = [(t.dataset, t.role) for t in found.thresholds[2].tests]
    assert tests == [("photos/test", "id"), ("art", "shift"), ("noise", "far")]
    assert found.why_not(0.1) == ""
    assert "1 % false alarms cannot be kept to: that needs 99 ID images" in found.why_not(0.01)
    with pytest.raises(SpecError, match=r"one of 0.01, 0.05, 0.1, got 0.3"):
        found.threshold(0.3)
    # A run answers as its export does; what was exported without a threshold says so.
    model, of_run = (CalibratedClassifier.load(one, device="cpu") for one in (exported, made))
    assert of_run.tells_unlike().threshold(0.1) == found.threshold(0.1)
    stripped = shutil.copytree(exported, tmp_path / "earlier")
    body = json.loads((stripped / EXPORT_NAME).read_text())
    del body["none_of_these"]
    (stripped / EXPORT_NAME).write_text(json.dumps(body))
    with pytest.raises(SpecError, match="exported before there were any"):
        CalibratedClassifier.load(stripped, device="cpu").tells_unlike()
    paths = image_paths([str(photos)])[:40]
    (rows,) = predict_files(model, paths, false_alarms=0.1)
    threshold = found.threshold(0.1)
    assert threshold is not None
    low = found.scores(model.predict(paths).logits) < threshold
    assert [row["none_of_these"] for row in rows] == low.tolist()
    assert 0 < low.sum() < len(paths)
    (none,) = predict_files(model, paths[:1], false_alarms=0.01)
    assert none[0]["none_of_these"] is None
    for name in ("a.csv", "a.parquet"):
        AnswerFile(tmp_path / name, ()).write([], [rows])
    assert (tmp_path / "a.csv").read_text().startswith("path,label,confidence,none_of_these,")
    assert "none of these (95 %)" in (exported / CARD_NAME).read_text()
    requested = ["predict", str(exported), *paths, "--false-alarms", "0.1", "--device", "cpu"]
    output = CliRunner().invoke(app, requested, catch_exceptions=False).stdout
    assert output.count("none of these") == low.sum()


def test_promises__come_with_what_they_gave_and_decide_what_is_kept(
    exported, made, photos, paintings, tmp_path
):
    model = CalibratedClassifier.load(exported, device="cpu")
    promises = model.promised()
    own = read_predictions(predictions_of(made, "validation"))
    choice = read_exported(exported).choice
    calibrator = choice.fitted()
    scores = score_probs(calibrator.transform(own.logits), own.labels)
    assert promises.n == len(own)
    for one in promises.thresholds:
        assert one.threshold == choose_threshold(scores, risk=one.risk)
        assert [test.dataset for test in one.tests] == (
            [] if one.threshold is None else ["photos/test", "art"]
        )
    for name, q in ((0.9, promises.sets[0].q), (0.95, promises.sets[1].q)):
        fitted = fit_conformal(calibrator.transform(own.logits), own.labels, coverage=name)
        assert q == (None if np.isinf(fitted.q[0]) else fitted.q[0])
    # 14 images of validation can promise nothing.
    assert promises.threshold(0.01) is None
    assert "At most 1 % errors are not promised: 14 images" in promises.why_not(0.01)
    image = str(sorted(photos.rglob("*.png"))[0])
    assert next(predict_files(model, [image], errors=0.01))[0]["kept"] is None
    with pytest.raises(SpecError, match="must be one of 0.01, 0.02, 0.05, 0.1, got 0.5"):
        promises.threshold(0.5)
    with pytest.raises(SpecError, match="coverage must be one of 0.9, 0.95"):
        list(predict_files(model, ["a"], coverage=0.5))
    kept = promises.thresholds[-1].model_copy(update={"threshold": 0.6})
    model.promises = promises.model_copy(update={"thresholds": [kept]})
    paths = image_paths([str(paintings)])
    rows = [row for batch in predict_files(model, paths, errors=0.1, coverage=0.9) for row in batch]
    inside = promises.inside(model.predict(paths).probs, 0.9)
    for row, own_set in zip(rows, inside, strict=True):
        assert row["kept"] == (row["confidence"] >= 0.6)
        assert row["set"] == [
            name for name, held in zip(model.classes, own_set, strict=True) if held
        ]
    for name in ("a.csv", "a.parquet", "a.jsonl"):
        AnswerFile(tmp_path / name, ()).write([], [rows])
    assert (tmp_path / "a.csv").read_text().startswith("path,label,confidence,kept,set,error")
    assert "cannot be promised" in (exported / CARD_NAME).read_text()
    with pytest.raises(SpecError, match="nothing is promised of this model"):
        CalibratedClassifier.load(made, device="cpu").promised()


def test_push__of_an_export_to_mlflow_is_a_pyfunc_that_answers_alike(exported, paintings, tmp_path):
    pytest.importorskip("mlflow")
    place = f"mlflow:{tmp_path / 'mlruns'}"
    result = CliRunner().invoke(app, ["push", str(exported), "--to", place, "--json"])
    assert result.exit_code == 0, result.output
    (uri,) = json.loads(result.stdout)["written"]
    import mlflow

    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    paths = image_paths([str(paintings)])[:5]
    frame = mlflow.pyfunc.load_model(uri).predict(pd.DataFrame({"path": paths}))
    answers = CalibratedClassifier.load(exported).predict(paths)
    assert list(frame["label"]) == answers.labels
    np.testing.assert_allclose(np.stack(frame["probabilities"]), answers.probs, rtol=1e-6)
    refused = CliRunner().invoke(app, ["push", str(exported), "--to", f"csv:{tmp_path / 'a.csv'}"])
    assert refused.exit_code != 0
    assert "exported models go to mlflow: alone" in str(refused.exception)


def test_watch__of_an_export_says_what_its_run_says(exported, made, photos, paintings, tmp_path):
    model = CalibratedClassifier.load(exported, device="cpu")
    reference = read_reference(exported)
    own = read_predictions(predictions_of(made, "validation"))
    assert (reference.logits == own.logits).all()
    assert (reference.labels == own.labels).all()
    run = shutil.copytree(made, tmp_path / "run")
    save_choice(run, choose_calibrator(run, "temperature"))
    assert read_reference(run).validated == reference.validated
    bad = tmp_path / "cut.png"
    bad.write_bytes(b"none")
    paths = image_paths([str(paintings), str(bad)])
    answer = []
    # Four of each ID image: of 14 alone a permutation test of 24 others cannot be sure.
    many = {"logits": np.tile(own.logits, (4, 1)), "labels": np.tile(own.labels, 4)}
    reference = replace(reference, **many)
    found = watch(model, reference, paths, batch_size=10, on_progress=answer.append)
    assert (found.n, list(found.unreadable), answer[-1]) == (24, [str(bad)], 25)
    probs = model.predict(paths[:24]).probs
    values = {one.estimator: one for one in found.expected}
    assert values["average_confidence"].value == pytest.approx(probs.max(axis=1).mean())
    # The shift is one that the run was tested on, so what is said of the error there is the error.
    art = read_predictions(made / "predictions" / "art.parquet")
    right = float((art.logits.argmax(axis=1) == art.labels).mean())
    for one in found.expected:
        assert one.errors["art"] == pytest.approx(one.value - right, abs=1e-5)
        assert one.mean_error == pytest.approx(abs(one.errors["art"]))
    assert found.drift.p_value < 0.01
    # The shift is known; as sure as before and wrong: who reads the answer must read that.
    assert (found.familiar.nearest, (found.unknown is None)) == (
        "art", found.answer.mean_error <= 0.06
    )  # fmt: skip
    alike = watch(model, reference, image_paths([str(photos)]))
    assert (alike.drift.p_value > 0.01, alike.unknown) == (True, None)
    assert "by sampling): they cannot be told from those of validation" in alike.sentence
    assert sum(share.here for share in found.shares) == pytest.approx(1)
    # Against a shift that hardly moved they are further off than all that is known.
    near = replace(reference, shifts={"art": own.logits + np.float32(1e-3)})
    off = watch(model, near, paths)
    assert off.sentence.startswith("How many of 24 images are right is unknown: they are further")
    assert "None of these may be used" in report_html(off, "off")
    assert f"{percent(off.answer.low)}" not in off.sentence
    none = watch(model, replace(near, shifts={}), paths)
    assert "was tested on no shift" in none.sentence
    page = report_html(found, "a <script>alert(1)</script> model")
    assert "<script" not in page
    assert page.count("data:image/jpeg") == 12
    with pytest.raises(DataError, match="at least 2 images must be readable, 0 of 1 are"):
        watch(model, reference, [str(bad)])
    with pytest.raises(CaliftError, match="stopped behind 0 of 25"):
        watch(model, reference, paths, stop=lambda: True)


def test_follow__compares_each_image_once_and_goes_on_behind_what_its_log_names(
    exported, photos, paintings, tmp_path
):
    model, reference = CalibratedClassifier.load(exported, device="cpu"), read_reference(exported)
    own = [str(path) for path in sorted(photos.rglob("*.png"))]
    art = [str(path) for path in sorted(paintings.rglob("*.png"))]
    log, there, coming = tmp_path / "log.jsonl", own[:25], [[*own[:25], *art]]

    def wait():
        if not coming:
            return False
        there[:] = coming.pop()
        return True

    def go_on():
        found = follow(
            model, reference, lambda: there, batch=20, log=log, fail_below=1.0, wait=wait
        )
        return list(found)

    first, second = go_on()
    assert first.images == there[:20]
    assert second.images == there[20:40]
    assert read_log(log) == [first, second]
    assert go_on() == []
    # A line that was cut off while it was written is compared again; any other is refused.
    text = log.read_text()
    log.write_text(text[:-30])
    (again,) = go_on()
    assert again.model_dump(exclude={"at"}) == second.model_dump(exclude={"at"})
    page = chart_html([first, again], "a <b>")
    assert page.count("<tr>") == 3
    assert "a &lt;b&gt;" in page
    assert "ALARM" in first.line + again.line
    log.write_text("none\n" + text)
    with pytest.raises(DataError, match="line 1 of"):
        go_on()
