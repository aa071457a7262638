"""CoOp and Tip-Adapter-F: what is trained, where they start, and that a finished one goes on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from calift_core.errors import ModelError
from calift_core.evaluation.items import classifier_sha256
from calift_core.methods.base import Classifier, KeyCache, zero_shot_classifier
from calift_core.models.captions import Captions
from calift_core.models.finished import load_finished
from calift_core.models.loading import weights_sha256
from calift_core.predictions.read import read_predictions
from calift_core.predictions.types import predictions_name
from calift_core.schema.methods import CoOp as CoOpSpec
from calift_core.schema.methods import TipAdapter as TipAdapterSpec
from calift_core.shipping.classifier import CalibratedClassifier
from calift_core.shipping.export import export_run
from tests.core.conftest import random_batch
from tests.core.jobs.test_job import assert_equal_runs, at_step, go, go_until, report_in
from tests.core.methods.test_methods import batches_of, make, steps


def test_coop__that_begins_as_a_templates_words_begins_as_that_templates_classifier(vit, captions):
    one = Captions.make(captions.class_names, ("a photo of a {}.",), vit.tokenizer)
    method = make(CoOpSpec(start="a photo of a"), vit, captions)
    features = vit.encode_image(random_batch(vit).images).detach()
    expected = zero_shot_classifier(vit, one).logits(features)
    torch.testing.assert_close(method.classifier().logits(features), expected)
    torch.testing.assert_close(method.logits(features), expected)
    assert method.resolved() == {"n_context": 4}


@pytest.mark.parametrize("own", [False, True])
def test_coop__moves_its_context_and_no_weight_of_a_tower(vit, captions, own):
    before = weights_sha256(vit.net)
    method = make(CoOpSpec(n_context=3, class_specific=own), vit, captions)
    start = method.context.vectors.detach().clone()
    assert start.shape == (3 if own else 1, 3, 16)
    steps(method, batches_of(vit, 3))
    assert weights_sha256(vit.net) == before
    assert (method.context.vectors != start).any(dim=-1).all()


def test_coop__its_context_shares_the_positions_with_the_longest_name(vit, captions):
    make(CoOpSpec(n_context=11), vit, captions)  # start, 2 words, full stop, end: 16 positions
    with pytest.raises(ModelError, match="take 17 positions, .* has 16"):
        make(CoOpSpec(n_context=12), vit, captions)


def test_tip_adapter__with_alpha_0_it_is_zero_shot_else_the_equation_worked_by_hand(vit, captions):
    method = make(TipAdapterSpec(alpha=0), vit, captions)
    features = vit.encode_image(random_batch(vit).images).detach()
    assert torch.equal(
        method.classifier().logits(features), zero_shot_classifier(vit, captions).logits(features)
    )
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    cache = KeyCache(keys, torch.tensor([0, 1, 1]), alpha=2.0, beta=5.5)
    head = Classifier(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 10.0, cache=cache)
    feature = torch.tensor([[0.8, 0.6]])
    near = np.exp(-5.5 * (1 - np.array([0.8, 0.6, 0.96])))
    expected = [6 + 2 * near[0], 8 + 2 * (near[1] + near[2])]
    np.testing.assert_allclose(head.logits(feature)[0].numpy(), expected, rtol=1e-5)


def test_tip_adapter__its_keys_are_features_of_at_most_so_many_images_a_class(vit, captions):
    method = make(TipAdapterSpec(per_class=2), vit, captions)
    batch = random_batch(vit, 8, seed=99)
    shown = vit.encode_image(batch.images).detach()
    counts = torch.bincount(batch.labels, minlength=3).clamp(max=2)
    assert torch.equal(torch.bincount(method.cache.classes, minlength=3), counts)
    for key, label in zip(method.cache.keys, method.cache.classes, strict=True):
        (at,) = (shown == key).all(dim=1).nonzero().flatten()[:1]
        assert batch.labels[at] == label


def test_classifier__taken_apart_and_put_together_is_the_same_and_its_hash_sees_the_cache():
    plain = Classifier(torch.randn(3, 4), 10.0, torch.randn(3))
    cache = KeyCache(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]), alpha=0.3, beta=7.1)
    cached = Classifier(plain.weights, 10.0, plain.bias, cache)
    features = torch.randn(6, 4)
    for one in (plain, cached):
        again = Classifier.of(one.tensors(), one.scale, torch.device("cpu"))
        assert torch.equal(again.logits(features), one.logits(features))
    assert classifier_sha256(plain) != classifier_sha256(cached)


def test_run__stopped_and_gone_on_with_is_a_run_left_alone_and_is_shipped_as_it_is(
    run_spec, tmp_path
):
    method, every = {"per_class": 4}, {"checkpoint_every_steps": 2}
    spec = run_spec("tip_adapter", method=method, train=every)
    whole = tmp_path / "whole"
    go(spec, whole)
    go_until(spec, tmp_path / "parts", at_step(5))
    go(spec, tmp_path / "parts")
    assert_equal_runs(whole, tmp_path / "parts")
    report = report_in(whole)
    assert report.resolved["trained_parameters"] > 0
    assert report.model["sha256"] == report.model["start_sha256"]  # the towers stayed
    test = read_predictions(whole / predictions_name(report.evaluations[0].dataset))
    shipped = export_run(whole, tmp_path / "model").folder
    for folder in (whole, shipped):
        model = CalibratedClassifier.load(folder, device="cpu")
        clip, tensors, _ = load_finished(folder)
        assert "cache.keys" in tensors
        images = [Path(str(spec.suite.id).removeprefix("folder:")) / i for i in test.ids[:8]]
        np.testing.assert_allclose(
            model.predict(images).logits, test.logits[:8], atol=1e-4, rtol=1e-4
        )
