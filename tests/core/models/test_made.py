"""How a model is made goes with it: from its config to the report, and through every checkpoint."""

import json
import logging
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from calift_core.data.preprocess import Preprocess
from calift_core.data.suites.load import load_suite
from calift_core.errors import CheckpointError, ModelError
from calift_core.jobs.evaluate import Evaluated, evaluate_many
from calift_core.models.loading import load_clip
from calift_core.predictions.read import read_predictions
from calift_core.schema.records import Record
from calift_core.schema.spec import RunSpec
from tests.core.conftest import CLASSES, VIT, known_to_open_clip
from tests.core.jobs.test_job import at_step, go, go_until, report_in

#: Everything otherwise than where nothing is said.
PREPROCESS = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}
AS_SAID = Preprocess(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", "squash")


@pytest.fixture
def model(tmp_path):
    """A config that says nothing of activation and preprocessing."""
    path = tmp_path / "model.json"
    path.write_text(json.dumps(VIT))
    return path


def say(model: Path, *, quick_gelu: bool = False) -> None:
    """Let the config say both."""
    config = {**VIT, "quick_gelu": True} if quick_gelu else VIT
    model.write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))


@pytest.fixture
def make(run_spec, model, home):
    """Specs of that model."""

    def make(kind, pretrained=None, **changes):
        return run_spec(kind, model={"name": str(model), "pretrained": pretrained}, **changes)

    return make


def warnings_in(records: list[Record]) -> list[str]:
    return [r.message for r in records if r.kind == "log" and r.level == "warning"]


def test_run__predictions_are_those_of_open_clips_own_model_and_transform(make, model, tmp_path):
    """The whole way of an image file to its logits, against open_clip alone."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for i in range(12):
            shape = (int(rng.integers(5, 60)), int(rng.integers(5, 60)))
            pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
            Image.fromarray(pixels[:, :, 0] if i % 3 == 0 else pixels).save(folder / f"{i}.png")
    say(model, quick_gelu=True)
    published = tmp_path / "published"
    published.mkdir()
    (published / "open_clip_config.json").write_text(model.read_text())
    logging.getLogger().addFilter(quiet := lambda record: record.levelno > logging.WARNING)
    try:
        net, _, transform = open_clip.create_model_and_transforms(
            f"local-dir:{published}", load_weights=False
        )
    finally:
        logging.getLogger().removeFilter(quiet)
    weights = tmp_path / "weights.safetensors"
    save_file(net.eval().state_dict(), weights)

    spec = make("zero_shot", str(weights), suite={"id": f"folder:{tmp_path / 'data'}"})
    go(spec, tmp_path / "run")
    report = report_in(tmp_path / "run")
    assert report.model["activation"] == "quick_gelu"
    assert Preprocess.of(report.model["preprocess"]) == AS_SAID
    head = load_file(tmp_path / "run" / "checkpoint" / "classifier.safetensors")["weights"]
    images = load_suite(spec.suite).part("test")
    stored = read_predictions(tmp_path / "run" / "predictions" / "data_test.parquet")
    assert len(stored.ids) > 3
    for image_id, logits in zip(stored.ids, stored.logits, strict=True):
        path = images.source.path(int(images.indices[images.ids.index(image_id)]))
        with Image.open(path) as file, torch.no_grad():
            feature = net.encode_image(transform(file)[None], normalize=True)[0]
            expected = net.logit_scale.exp() * head @ feature
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


def test_resume__of_a_model_that_is_made_otherwise_today_is_refused(make, model, tmp_path):
    spec = make("flyp")
    go_until(spec, tmp_path / "run", at_step(3))
    say(model, quick_gelu=True)
    with pytest.raises(CheckpointError) as caught:
        go(spec, tmp_path / "run")
    assert "activation (GELU and QuickGELU)" in caught.value.message
    assert "resize mode (shortest and squash)" in caught.value.message
    model.write_text(json.dumps(VIT))  # what the model was then
    assert not warnings_in(go(spec, tmp_path / "run"))


def test_models_made_otherwise__are_neither_merged_nor_evaluated_in_one_pass(make, model, tmp_path):
    go(make("flyp", train={"epochs": 1}), tmp_path / "one")
    say(model, quick_gelu=True)
    with pytest.raises(
        ModelError, match=r"made alike to be merged.*\(GELU and QuickGELU\).*squash"
    ):
        go(make("wise_ft", method={"run": str(tmp_path / "one")}), tmp_path / "merged")
    spec = make("zero_shot")
    go(spec, tmp_path / "other")
    both = {name: Evaluated(tmp_path / name, spec) for name in ("one", "other")}
    with pytest.raises(ModelError, match=r"interpolation \(bicubic and b.*activation \(gelu and"):
        list(evaluate_many(both, tmp_path / "many"))


def test_run__weights_in_a_file_under_an_architectures_name_come_with_a_warning(make, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ViT-B-16.json").write_text(json.dumps(VIT))
    with known_to_open_clip(tmp_path / "configs"):
        clip = load_clip("ViT-B-16", None)
        save_file(clip.net.state_dict(), tmp_path / "weights.safetensors")
        body = make("zero_shot").model_dump(mode="json")
        body["model"] = {"name": "ViT-B-16", "pretrained": str(tmp_path / "weights.safetensors")}
        (answer,) = warnings_in(go(RunSpec.model_validate(body), tmp_path / "run"))
    assert (
        "Weights in a file do not say how they were trained: ViT-B-16 is built with GELU" in answer
    )
    assert report_in(tmp_path / "run").model["activation"] == "gelu"
