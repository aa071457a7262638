"""Singular values of standardised features, and the numbers of an evaluation."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calift_core.analysis.report import evaluation_report, summarise
from calift_core.calibration import evaluate_all, softmax
from calift_core.data.images import ImageSet
from calift_core.errors import SpecError
from calift_core.evaluation.forward import ForwardSettings, as_predictions, predict
from calift_core.evaluation.spectrum import Covariance, effective_rank, spectrum_report
from calift_core.methods import Classifier
from calift_core.methods.base import zero_shot_classifier
from calift_core.models.clip import Clip
from calift_core.schema.report import EvaluationReport, SpectrumReport
from calift_core.schema.spec import EvaluationSpec
from tests.core.evaluation.test_evaluate import images_of

few = settings(max_examples=40, deadline=None)
shapes = st.tuples(st.integers(3, 60), st.integers(1, 8), st.integers(0, 10**6))


def features_of(n: int, d: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    return mixed * rng.uniform(0.1, 10, size=d) + rng.normal(size=d) * 5


def report_of(x: Any, *, batch: int | None = None, **options: Any) -> SpectrumReport:
    covariance = Covariance(x.shape[1])
    for start in range(0, len(x), batch or len(x)):
        covariance.add(x[start : start + (batch or len(x))])
    return spectrum_report(covariance, **options)


@few
@given(shapes)
def test_spectrum__equals_the_eigenvalues_of_numpys_correlation(shape):
    x = features_of(*shape)
    expected = np.linalg.eigvalsh(np.atleast_2d(np.corrcoef(x, rowvar=False)))[::-1]
    np.testing.assert_allclose(report_of(x).singular_values, expected, atol=1e-9)


@few
@given(shapes, st.integers(1, 20))
def test_spectrum__streamed_equals_whole(shape, batch):
    x = features_of(*shape)
    np.testing.assert_allclose(
        report_of(x, batch=batch).singular_values, report_of(x).singular_values, atol=1e-9
    )


def test_effective_rank__of_equal_values_is_their_number_and_of_one_value_one():
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert effective_rank(np.array([5.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_rank(np.zeros(3)) == 0.0


def test_spectrum__two_correlated_features_worked_by_hand():
    """Correlation ½: eigenvalues 1 ± ½."""
    x = np.array([[1, 1], [-1, -1], [1, 1], [-1, -1], [1, 1], [-1, -1], [1, -1], [-1, 1]])
    report = report_of(x.astype(float))
    assert report.singular_values == pytest.approx([1.5, 0.5])
    assert report.sigma_min == pytest.approx(0.5)
    assert report.condition_number == pytest.approx(3)


@pytest.mark.parametrize(("constant", "scale"), [(0.0, 1.0), (0.1, 1e-3), (1000.1, 1e-3)])
def test_spectrum__constant_features_are_counted_and_left_out(constant, scale):
    x = scale * np.random.default_rng(0).normal(size=(700, 3))
    with_constant = np.insert(x, 1, constant, axis=1)
    report = report_of(with_constant, batch=7)
    assert report.n_constant_features == 1
    assert report.n_features == 4
    np.testing.assert_allclose(report.singular_values, report_of(x).singular_values, atol=1e-9)


def test_spectrum__small_variance_about_a_large_mean_is_not_lost():
    x = np.random.default_rng(0).normal(size=(200, 3))
    np.testing.assert_allclose(
        report_of(1e6 + x).singular_values, report_of(x).singular_values, atol=1e-6
    )


@pytest.mark.parametrize(("n", "is_null"), [(5, True), (6, True), (7, False)])
def test_spectrum__sigma_min_is_null_where_it_is_zero_by_rank(n, is_null):
    report = report_of(features_of(n, 6, 0))
    assert (report.sigma_min is None) == is_null
    assert (report.condition_number is None) == is_null


def test_spectrum__orthonormal_projection_has_gram_distance_zero():
    x = features_of(20, 3, 0)
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 3)))[0]
    assert report_of(x, projection=q).projection_gram_distance == pytest.approx(0, abs=1e-12)
    assert report_of(x, projection=2 * np.eye(3)).projection_gram_distance == pytest.approx(
        np.sqrt(27)
    )
    assert report_of(x).projection_gram_distance is None
    constant = report_of(np.ones((10, 3)))
    assert (constant.singular_values, constant.sigma_min) == ([], None)
    assert constant.n_constant_features == 3


def test_covariance__refuses_other_shapes_and_too_few_samples():
    with pytest.raises(SpecError, match=r"features must be \(B, 3\), got \(2, 4\)"):
        Covariance(3).add(np.zeros((2, 4)))
    one = Covariance(3)
    one.add(np.zeros((1, 3)))
    with pytest.raises(SpecError, match="at least 2 samples, got 1"):
        one.correlation()
    one.add(np.zeros((0, 3)))
    assert one.n == 1


CPU = torch.device("cpu")


def predicted(clip: Clip, images: ImageSet, classifier: Classifier, **options: Any) -> Any:
    covariance = options.pop("covariance", None)
    given_ = {"batch_size": 4, "workers": 0, "device": CPU, "precision": "fp32"} | options
    return predict(clip, classifier, images, ForwardSettings(**given_), covariance=covariance)


def test_predict__does_not_depend_on_batch_size_or_workers_and_keeps_the_mode(vit, captions):
    classifier = zero_shot_classifier(vit, captions)
    vit.train()
    whole = predicted(vit, images_of(), classifier, batch_size=100)
    assert vit.training
    assert whole.shape == (10, 3)
    np.testing.assert_allclose(predicted(vit, images_of(), classifier), whole, atol=1e-4)
    np.testing.assert_array_equal(
        predicted(vit, images_of(), classifier, workers=1), predicted(vit, images_of(), classifier)
    )


def test_predict__touches_no_batch_statistics_and_feeds_the_covariance(resnet, captions, vit):
    classifier = zero_shot_classifier(resnet, captions)
    resnet.train()
    before = [b.clone() for b in resnet.buffers()]
    predicted(resnet, images_of(), classifier)
    assert all(torch.equal(a, b) for a, b in zip(before, resnet.buffers(), strict=True))
    covariance = Covariance(16)
    predicted(vit, images_of(), zero_shot_classifier(vit, captions), covariance=covariance)
    assert covariance.n == 10
    assert np.trace(covariance.correlation()[0]) == pytest.approx(16)


def test_predict__a_set_of_some_classes_is_evaluated_on_their_logits_only(vit, captions):
    """Logits are selected first and the softmax taken over the rest: worked by hand."""
    classifier = zero_shot_classifier(vit, captions)
    images = replace(images_of(), classes=(0, 2), labels=np.array([0, 2])[np.arange(10) % 2])
    everything = predicted(vit, images_of(), classifier)
    some = predicted(vit, images, classifier)
    np.testing.assert_array_equal(some, everything[:, [0, 2]])
    predictions = as_predictions(
        some, images, role="shift", class_names=("a", "b", "c"), templates=("{}",),
        classifier=classifier, model_sha256="0" * 64,
    )  # fmt: skip
    assert predictions.metadata.class_names == ("a", "c")
    assert set(predictions.labels) == {0, 1}
    exponentials = np.exp(everything[:, [0, 2]].astype(float))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predictions.probs(), expected, atol=1e-6)
    report = evaluation_report(predictions, EvaluationSpec(n_resamples=20))
    assert report.n_classes == 2
    assert report.accuracy == pytest.approx((expected.argmax(1) == predictions.labels).mean())


def evaluation(dataset: str, role: str, accuracy: float, ece: float, **more: Any) -> Any:
    rng = np.random.default_rng(0)
    numbers = evaluate_all(softmax(rng.normal(size=(30, 3))), rng.integers(3, size=30))
    report = EvaluationReport.model_validate(
        {**numbers, "dataset": dataset, "role": role, "n_classes": 3}
    )
    measured = report.ece.model_copy(update={"value": ece, "null_mean": ece / 10})
    return report.model_copy(
        update={"accuracy": accuracy, "ece": measured, "nll": 1 - accuracy, **more}
    )


def test_summary__ood_is_the_unweighted_mean_over_shifts_whatever_their_size():
    summary = summarise(
        [
            evaluation("id/test", "id", 0.9, 0.02, n=10_000),
            evaluation("art", "shift", 0.6, 0.10, n=10),
            evaluation("sketch", "shift", 0.2, 0.30, n=100_000),
            evaluation("fog/1", "corruption", 0.0, 0.9, corruption="fog", severity=1),
        ],
        0.25,
    )
    assert summary.id_accuracy == 0.9
    assert summary.id_ece == 0.02
    assert summary.id_ece_floor == pytest.approx(0.002)
    assert summary.ood_accuracy == pytest.approx(0.4)
    assert summary.ood_ece == pytest.approx(0.2)
    assert summary.ood_ece_floor == pytest.approx(0.02)
    assert summary.ood_nll == pytest.approx(0.6)
    assert summary.sigma_min == 0.25
    assert (summary.worst_shift, summary.worst_shift_accuracy) == ("sketch", 0.2)


def test_summary__without_shifts_it_is_the_mean_over_corruptions_of_the_mean_over_severities():
    rows = [("fog", 1, 0.8), ("fog", 5, 0.4), ("snow", 3, 0.1)]
    summary = summarise(
        [
            evaluation("id/test", "id", 0.9, 0.02),
            *(
                evaluation(f"{name}/{s}", "corruption", a, 1 - a, corruption=name, severity=s)
                for name, s, a in rows
            ),
        ],
        None,
    )
    assert summary.ood_accuracy == pytest.approx((0.6 + 0.1) / 2)
    assert summary.ood_ece == pytest.approx((0.4 + 0.9) / 2)
    assert summary.worst_shift == "snow"
    assert summary.worst_shift_accuracy == pytest.approx(0.1)


def test_summary__without_anything_ood_says_nothing_of_it():
    found = summarise([evaluation("id/test", "id", 0.9, 0.02)], None)
    assert (found.ood_accuracy, found.ood_ece, found.worst_shift) == (None,) * 3
