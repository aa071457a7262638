"""Calibrators that read the initial model's logits, from the choice to answers: two towers."""

import shutil

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from typer.testing import CliRunner

from calift.commands.main import app
from calift_core.analysis.calibrators import calibrated_scores
from calift_core.analysis.choosing import read_choice
from calift_core.analysis.report import read_report
from calift_core.calibration.registry import INITIAL_MODEL_CALIBRATORS
from calift_core.errors import CheckpointError, DataError, PredictionsError, SpecError
from calift_core.jobs.folder import run_in_folder
from calift_core.predictions.types import predictions_name
from calift_core.recommendation import RECOMMENDED
from calift_core.shipping.choosing import choose_calibrator, save_choice
from calift_core.shipping.classifier import CalibratedClassifier
from calift_core.shipping.export import export_run
from calift_core.shipping.exported_scores import exported_scores
from calift_core.shipping.folder import CARD_NAME, ONNX_NAME
from calift_core.shipping.initial_model import INITIAL_NAME
from calift_core.shipping.onnx import calibrator_module
from calift_core.shipping.reference import read_reference
from calift_core.shipping.watching import watch
from tests.core.conftest import tiny_spec


@pytest.fixture(scope="module")
def runs(tmp_path_factory, configs, photos, paintings):
    """Finished runs of one start, and one of another: not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    suite = {"shifts": {"art": f"folder:{paintings}"}}
    for kind in ("flyp", "zero_shot"):
        list(run_in_folder(tiny_spec(kind, configs, photos, suite=suite), folder / kind))
    return {kind: folder / kind for kind in ("flyp", "zero_shot")}


@pytest.fixture
def run(runs, tmp_path):
    return shutil.copytree(runs["flyp"], tmp_path / "run")


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """Exported with disagreement temperature and a graph: not to be changed."""
    run = shutil.copytree(runs["flyp"], tmp_path_factory.mktemp("exported") / "run")
    choice = choose_calibrator(run, "disagreement", initial=runs["zero_shot"])
    save_choice(run, choice, initial=runs["zero_shot"])
    export_run(run, run.parent / "model")
    return run.parent / "model"


def test_choice__without_the_initial_model_or_with_another_one_is_refused(run, runs, tmp_path):
    with pytest.raises(SpecError, match="reads the initial model's logits") as answer:
        choose_calibrator(run, "disagreement")
    assert "--initial RUN" in answer.value.hint
    with pytest.raises(SpecError, match="temperature reads no other model's logits"):
        choose_calibrator(run, "temperature", initial=runs["zero_shot"])
    with pytest.raises(DataError, match=r"must hold the model that .* started from"):
        choose_calibrator(run, "disagreement", initial=run)
    less = shutil.copytree(runs["zero_shot"], tmp_path / "less")
    (less / predictions_name("art")).unlink()
    with pytest.raises(DataError, match=r"it has no predictions of art"):
        choose_calibrator(run, "disagreement", initial=less)
    assert read_choice(run) is None


def test_choice__auto_with_the_initial_model_is_what_the_study_suggests(run, runs):
    found = choose_calibrator(run, initial=runs["zero_shot"])
    assert found.kind == RECOMMENDED.with_initial
    assert found.fitted() is not None


@pytest.mark.parametrize("kind", sorted(INITIAL_MODEL_CALIBRATORS))
def test_calibrator_module__is_the_calibrator(kind):
    rng = np.random.default_rng(3)
    z, z0 = rng.normal(0, 3, size=(2, 300, 7)).astype(np.float32)
    labels = np.where(rng.random(300) < 0.6, z.argmax(axis=1), rng.integers(7, size=300))
    fitted = INITIAL_MODEL_CALIBRATORS[kind]()
    fitted.fit(z, labels, split="calibration", role="id", initial=z0)
    again = rng.normal(0, 6, size=(2, 200, 7)).astype(np.float32)
    again[:, 0] = 1.0  # logits that are all equal
    found = calibrator_module(fitted)(*map(torch.from_numpy, again)).numpy()
    assert found == pytest.approx(fitted.transform(*again), abs=1e-5)


def test_run__answers_as_its_stored_predictions_do_through_either_form(run, runs, photos):
    choice = choose_calibrator(run, "disagreement", initial=runs["zero_shot"])
    save_choice(run, choice, initial=runs["zero_shot"])
    # What its folder says of its test sets is what the analysis of both files says.
    calibrator = choice.fitted()
    for row in exported_scores(run, read_report(run), calibrator):
        own, first = (f / predictions_name(row.dataset) for f in (run, runs["zero_shot"]))
        (scores,) = calibrated_scores(own, [calibrator], initial=first)
        assert row.nll == pytest.approx(float(scores.nll.mean()))
        assert row.calibrated
    export_run(run, run.parent / "model", onnx=True)
    files = sorted(photos.rglob("*.png"))[:40]
    here = CalibratedClassifier.load(run, device="cpu")
    there = CalibratedClassifier.load(run.parent / "model", device="cpu")
    alone = CalibratedClassifier.load(runs["flyp"], device="cpu")
    first = CalibratedClassifier.load(runs["zero_shot"], device="cpu")
    answers = here.predict(files)
    assert (there.predict(files).probs == answers.probs).all()
    own, other = alone.predict(files).logits, first.predict(files).logits
    assert answers.logits == pytest.approx(own, abs=1e-5)
    assert answers.probs == pytest.approx(calibrator.transform(own, other), abs=1e-5)
    # And the graph, from pixels on.
    session = onnxruntime.InferenceSession(
        str(run.parent / "model" / ONNX_NAME), providers=["CPUExecutionProvider"]
    )
    pixels = np.stack([here.fit(file) for file in files])
    probs, _ = session.run(["probabilities", "logits"], {"pixels": pixels})
    assert probs == pytest.approx(answers.probs, abs=1e-4)
    assert list(probs.argmax(axis=1)) == list(answers.indices)


def test_disagreement__keeps_every_prediction(exported, runs, photos):
    files = sorted(photos.rglob("*.png"))
    two = CalibratedClassifier.load(exported, device="cpu").predict(files)
    one = CalibratedClassifier.load(runs["flyp"], device="cpu").predict(files)
    assert two.labels == one.labels
    assert np.ptp(two.confidences - one.confidences) > 0


def test_export__holds_both_models_says_so_and_refuses_a_changed_one(exported, runs, tmp_path):
    assert "two towers, and two passes for every image" in (exported / CARD_NAME).read_text()
    # Each is what open_clip loads.
    for folder, kind in ((exported, "flyp"), (exported / INITIAL_NAME, "zero_shot")):
        model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        known = CalibratedClassifier.load(runs[kind], device="cpu").clip.net.state_dict()
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, known[name], rtol=0, atol=0)
    for path in exported.rglob("*.json"):
        assert str(runs["flyp"].parent) not in path.read_text()
    copy = shutil.copytree(exported, tmp_path / "model")
    with (copy / INITIAL_NAME / "classifier.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(CheckpointError, match=r"initial/classifier.*not the file that was"):
        CalibratedClassifier.load(copy, device="cpu")


def test_watch__of_the_export_says_what_its_run_says(exported, photos, tmp_path):
    run = exported.parent / "run"
    paths = [str(path) for path in sorted(photos.rglob("*.png"))[:30]]
    output = [
        watch(CalibratedClassifier.load(one, device="cpu"), read_reference(one), paths)
        for one in (run, exported)
    ]
    assert output[0] == output[1]


def test_initial__without_predictions_of_a_set_says_which(run, runs, tmp_path):
    first = shutil.copytree(runs["zero_shot"], tmp_path / "first")
    choice = choose_calibrator(run, "sals", initial=first)
    (first / predictions_name("art")).unlink()
    save_choice(run, choice, initial=first)
    with pytest.raises(PredictionsError, match="initial model on 'art'"):
        export_run(run, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_command__calibrates_exports_and_predicts_with_two_towers(run, runs, photos, tmp_path):
    def call(*words):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result.output

    output = call("calibrate", run, "--with", "disagreement", "--initial", runs["zero_shot"])
    assert "disagreement, fitted on" in output
    call("export", run, tmp_path / "model")
    image = sorted(photos.rglob("*.png"))[0]
    assert '"label"' in call("predict", tmp_path / "model", image, "--json")
    # The run keeps what it needs: the other run may go.
    assert CalibratedClassifier.load(run, device="cpu").initial is not None
