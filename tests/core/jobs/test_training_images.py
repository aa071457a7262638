"""Features of training images that a run keeps beside its model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calift_core.analysis.report import read_report
from calift_core.data.suites.load import load_suite
from calift_core.errors import InterruptedRunError, NotFoundError, PredictionsError
from calift_core.jobs.folder import run_in_folder
from calift_core.models.clip import Clip
from calift_core.predictions.training import (
    TRAINING_IMAGES,
    read_training_images,
    save_training_images,
    training_label,
)
from calift_core.schema.spec import RunSpec
from calift_core.shipping.classifier import CalibratedClassifier
from calift_core.shipping.trying import feature_set_of, nearest, trained_on
from tests.core.jobs.test_job import collect


def go(spec: RunSpec, folder: Path, **options: Any) -> Path:
    """Run to the end; the file with the features."""
    list(run_in_folder(spec, folder, **options))
    return folder / "checkpoint" / TRAINING_IMAGES


def with_train(spec: RunSpec, **changes: Any) -> RunSpec:
    return spec.model_copy(update={"train": spec.train.model_copy(update=changes)})


@pytest.mark.parametrize("kind", ["flyp", "zero_shot"])
def test_training_images__nearest_to_one_of_them_is_itself(run_spec, home, tmp_path, kind):
    spec = run_spec(kind)
    kept = read_training_images(go(spec, tmp_path / "run"))
    part = load_suite(spec.suite).part("train")
    assert (kept.ids.tolist(), kept.labels.tolist()) == (list(part.ids), part.labels.tolist())
    assert (kept.dataset, kept.of) == ("photos/train", len(part))

    found = trained_on(tmp_path / "run")
    model = CalibratedClassifier.load(tmp_path / "run", device="cpu")
    for at in range(0, len(part), 9):
        pixels = model.clip.preprocess.fit(part.image(at))[None].copy()
        features, _ = model.encode(pixels)
        alike = nearest(features[0], [found[0]], model.classes)
        assert alike[0].sample_id == part.ids[at]
        assert alike[0].cosine == pytest.approx(1, abs=2e-3)
        assert (alike[0].role, alike[0].label) == ("train", model.classes[part.labels[at]])
        cosines = (kept.features.astype(np.float32) @ features[0]).tolist()
        assert [one.cosine for one in alike] == pytest.approx(
            sorted(cosines)[: -len(alike) - 1 : -1]
        )


def test_training_images__are_at_most_so_many_and_the_fewer_are_among_the_more(
    run_spec, home, tmp_path
):
    few, more = (
        read_training_images(
            go(with_train(run_spec("zero_shot"), keep_features=n), tmp_path / str(n))
        )
        for n in (5, 11)
    )
    assert (len(few.ids), len(more.ids), few.of) == (5, 11, more.of)
    assert set(few.ids) < set(more.ids)
    of_more = dict(zip(more.ids.tolist(), more.features.astype(np.float32), strict=True))
    for name, feature in zip(few.ids.tolist(), few.features.astype(np.float32), strict=True):
        assert feature @ of_more[name] == pytest.approx(1, abs=2e-3)


def test_training_images__none_are_kept_where_none_are_asked_for_and_numbers_stay(
    run_spec, home, tmp_path
):
    spec = run_spec("flyp")
    go(spec, tmp_path / "with")
    path = go(with_train(spec, keep_features=0), tmp_path / "without")
    assert not path.exists()
    assert trained_on(tmp_path / "without") is None
    assert list(feature_set_of(tmp_path / "without", read_report(tmp_path / "without")))
    one, other = read_report(tmp_path / "with"), read_report(tmp_path / "without")
    assert (one.summary, one.selection) == (other.summary, other.selection)


def test_training_images__a_run_that_is_stopped_at_them_goes_on_from_its_predictions(
    run_spec, home, tmp_path, monkeypatch
):
    spec = run_spec("flyp", evaluation={"n_resamples": 20, "batch_size": 8})
    whole = go(spec, tmp_path / "whole")
    said = []
    asked = 0

    def at_features():
        nonlocal asked
        asked += bool(said and said[-1].kind == "phase" and "training images" in said[-1].detail)
        return asked > 2

    with pytest.raises(InterruptedRunError, match=r"stopped while encoding .*, after 16 of"):
        collect(said, run_in_folder(spec, tmp_path / "first", stop=at_features))
    assert not (tmp_path / "first" / "report.json").exists()

    encoded = []
    encode_image = Clip.encode_image
    monkeypatch.setattr(
        Clip, "encode_image", lambda clip, x: encoded.append(len(x)) or encode_image(clip, x)
    )
    again = list(run_in_folder(spec, tmp_path / "second", resume_from=tmp_path / "first"))
    # Of the training images, too, only those are encoded that the first attempt had left.
    part = load_suite(spec.suite).part("train")
    assert sum(encoded) == len(part) - 16
    # Each evaluation is the first attempt's to the second: nothing is predicted anew.
    first, second = (
        [r.evaluation for r in records if r.kind == "evaluation"] for records in (said, again)
    )
    assert first
    assert first == second
    found = tmp_path / "second" / "checkpoint" / TRAINING_IMAGES
    assert found.read_bytes() == whole.read_bytes()


def test_training_images__a_damaged_file_is_an_error(tmp_path):
    features = np.eye(3, dtype=np.float16)
    labels = np.array([0, 1, 1])
    names = ["a/1.png", "b/ä 2.png", "b/3.png"]
    save_training_images(
        tmp_path, dataset="photos/train", of=9, ids=names, labels=labels, features=features
    )
    path = tmp_path / TRAINING_IMAGES
    assert [training_label(path, name) for name in names] == [0, 1, 1]
    with pytest.raises(NotFoundError, match="has no image 'c/4.png'"):
        training_label(path, "c/4.png")
    whole = path.read_bytes()
    for broken in (whole[:-100], whole[:40], b"", b"PK" + whole[2:60]):
        path.write_bytes(broken)
        for read in (read_training_images, lambda p: training_label(p, names[0])):
            with pytest.raises(PredictionsError, match="damaged"):
                read(path)
    save_training_images(
        tmp_path, dataset="photos/train", of=9, ids=names[:2], labels=labels, features=features
    )
    with pytest.raises(PredictionsError, match="each image must have an id and a label"):
        read_training_images(path)
