"""Scores of out-of-distribution detection, their measures, and the intervals of these."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.functional.classification import binary_auroc, binary_roc

from calift_core.analysis.ood import OodImages, image_scores
from calift_core.calibration import softmax
from calift_core.calibration.ood import (
    MEASURES,
    alarm_threshold,
    aupr,
    auroc,
    detection,
    energy,
    fpr_at,
    knn,
    max_softmax,
    mcm,
    relative_mahalanobis,
    threshold_at,
)
from calift_core.errors import PredictionsError, SpecError

values = st.lists(st.integers(-4, 4), min_size=1, max_size=30).map(lambda x: np.array(x, float))


@pytest.fixture
def two(rng):
    return rng.normal(1, 1, 117), rng.normal(0, 1, 93)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@given(values, values)
def test_measures__relations(own, other):
    constant = np.zeros_like(own), np.zeros_like(other)
    assert auroc(*constant) == pytest.approx(0.5)
    assert fpr_at(*constant) == pytest.approx(0.95)
    assert aupr(*constant) == pytest.approx(len(other) / (len(own) + len(other)))
    for measure in (auroc, aupr, fpr_at):
        assert measure(np.exp(own), np.exp(other)) == pytest.approx(measure(own, other))
    assert auroc(-own, -other) == pytest.approx(1 - auroc(own, other))
    assert auroc(other, own) == pytest.approx(1 - auroc(own, other))
    assert np.mean(own >= threshold_at(own)) >= 0.95


def test_scores__of_logits_in_parts_are_those_of_the_whole(rng):
    logits, confidences = rng.normal(0, 3, (40, 5)), rng.uniform(size=40)
    whole, parts = (
        image_scores(OodImages(np.arange(40), confidences, given), 7.0, None)
        for given in ([logits], iter(np.split(logits, [1, 25])))
    )
    for name, expected in (("energy", energy(logits)), ("mcm", mcm(logits, 7.0))):
        np.testing.assert_array_equal(whole[name], expected)
        np.testing.assert_array_equal(parts[name], expected)


def test_measures__by_hand():
    own, other = np.array([4.0, 3.0, 2.0, 1.0]), np.array([2.5, 0.0])
    assert auroc(own, other) == pytest.approx(6 / 8)
    assert aupr(own, other) == pytest.approx((1 + 2 / 4) / 2)  # found at ranks 1 and 4 from below
    assert [fpr_at(own, other, share) for share in (0.5, 0.75)] == [0.0, 0.5]


@pytest.mark.parametrize("rounded", [8, 1])
def test_measures__as_scikit_learn_and_torchmetrics(two, rounded):
    own, other = (np.round(side, rounded) for side in two)
    scores, is_id = np.concatenate([own, other]), np.repeat([1, 0], [len(own), len(other)])
    assert auroc(own, other) == pytest.approx(roc_auc_score(is_id, scores))
    assert aupr(own, other) == pytest.approx(average_precision_score(1 - is_id, -scores))
    # Ranks, since torchmetrics squashes what is no probability in float32.
    ranks = torch.from_numpy(np.unique(scores, return_inverse=True)[1] / 1000)
    target = torch.from_numpy(is_id)
    assert auroc(own, other) == pytest.approx(float(binary_auroc(ranks, target)), abs=1e-6)
    fpr, tpr, _ = (x.numpy() for x in binary_roc(ranks, target))
    assert fpr_at(own, other) == pytest.approx(np.interp(0.95, tpr, fpr), abs=1e-6)


def test_scores__as_an_independent_implementation_in_torch(rng):
    images, texts = rng.normal(size=(50, 8)), rng.normal(size=(5, 8))
    unit = torch.nn.functional.normalize
    cosines = unit(torch.from_numpy(images), dim=1) @ unit(torch.from_numpy(texts), dim=1).T
    logits = (20 * cosines).numpy()
    assert mcm(logits, 20) == pytest.approx(torch.softmax(cosines, 1).amax(1).numpy())
    assert energy(logits) == pytest.approx(torch.logsumexp(20 * cosines, 1).numpy())
    assert max_softmax(softmax(logits)) == pytest.approx(softmax(logits).max(axis=1))
    known = unit(torch.from_numpy(rng.normal(size=(30, 8))), dim=1)
    distances = torch.cdist(unit(torch.from_numpy(images), dim=1), known)
    assert knn(images, known.numpy(), 4) == pytest.approx(-distances.sort(1).values[:, 3].numpy())


def test_relative_mahalanobis__is_a_difference_of_distances(rng):
    labels = np.repeat([0, 1, 3], 40)  # no image of class 2
    training = rng.normal(size=(120, 4)) + 3 * np.eye(4)[labels]
    new = rng.normal(size=(6, 4))
    means = {c: training[labels == c].mean(0) for c in (0, 1, 3)}
    within = np.cov((training - np.stack([means[c] for c in labels])).T, bias=True)
    whole = np.cov(training.T, bias=True)

    def far(x, mean, covariance):
        return float((x - mean) @ np.linalg.solve(covariance, x - mean))

    expected = [
        -min(far(x, m, within) - far(x, training.mean(0), whole) for m in means.values())
        for x in new
    ]
    assert relative_mahalanobis(new, training, labels) == pytest.approx(expected)
    # A feature that is a copy has no inverse covariance: the answer stays finite, and near.
    doubled = relative_mahalanobis(*(np.tile(x, 2) for x in (new, training)), labels)
    assert np.corrcoef(doubled, expected)[0, 1] > 0.999


def test_scores__tell_what_is_far(rng):
    labels = np.repeat(np.arange(4), 50)
    centres = rng.normal(size=(4, 6))
    training, own = (centres[labels] + 0.2 * rng.normal(size=(200, 6)) for _ in range(2))
    far = rng.normal(size=(80, 6))
    assert auroc(knn(own, training), knn(far, training)) > 0.9
    scores = (relative_mahalanobis(x, training, labels) for x in (own, far))
    assert auroc(*scores) > 0.9


def test_detection__one_draw_for_all_scores(two):
    own, other = two
    found = detection(
        {"max_softmax": own, "same": np.exp(own), "none": np.zeros_like(own)},
        {"max_softmax": other, "same": np.exp(other), "none": np.zeros_like(other)},
        n_resamples=50,
    )
    for measure in MEASURES:
        base, same = found["max_softmax"][measure], found["same"][measure]
        assert (same.value, same.interval) == (base.value, base.interval)
        assert (same.difference, same.difference_interval) == (0.0, (0.0, 0.0))
        assert base.difference is None
    assert found["none"]["auroc"].difference == pytest.approx(0.5 - auroc(own, other))
    # Copies of an image add no evidence where they are drawn together.
    twice = {"a": np.repeat(own, 2)}, {"a": np.repeat(other, 2)}
    ids = np.repeat(np.arange(len(own)), 2), np.repeat(np.arange(len(other)), 2)
    clustered = detection(*twice, n_resamples=50, id_clusters=ids[0], ood_clusters=ids[1])
    plain = detection({"a": own}, {"a": other}, n_resamples=50)
    assert clustered["a"]["aupr"].interval == pytest.approx(plain["a"]["aupr"].interval)


def test_detection__complete_separation_is_not_certainty():
    found = detection({"a": np.arange(40.0)}, {"a": -np.arange(1, 31.0)}, n_resamples=20)["a"]
    assert [found[name].value for name in ("auroc", "fpr95")] == [1, 0]
    assert 0.85 < found["auroc"].interval[0] < 1
    assert 0.05 < found["fpr95"].interval[1] < 0.2


def test_detection__intervals_cover(rng):
    n, repeats = 120, 150
    noisy = np.sqrt(2)  # of the second score
    true = {
        "auroc": norm.cdf(1 / np.sqrt(2)),
        "fpr95": norm.sf(1 + norm.ppf(0.05)),
        "difference": norm.cdf(1 / (noisy * np.sqrt(2))) - norm.cdf(1 / np.sqrt(2)),
    }
    inside = dict.fromkeys(true, 0)
    for seed in range(repeats):
        sides = [rng.normal(mean, 1, n) for mean in (1, 0)]
        found = detection(
            *({"max_softmax": s, "noisy": s + rng.normal(size=n)} for s in sides),
            n_resamples=200,
            seed=seed,
        )
        estimates = {name: found["max_softmax"][name].interval for name in ("auroc", "fpr95")}
        estimates["difference"] = found["noisy"]["auroc"].difference_interval or (0, 0)
        for name, (low, high) in estimates.items():
            inside[name] += low <= true[name] <= high
    for name, hits in inside.items():
        assert hits >= 0.9 * repeats, (name, hits)


def test_alarm_threshold__keeps_its_rate(rng):
    rates = []
    for _ in range(200):
        threshold = alarm_threshold(rng.normal(size=59), 0.05)
        assert threshold is not None
        rates.append(norm.cdf(threshold))
    assert np.mean(rates) == pytest.approx(3 / 60, abs=0.006)
    assert alarm_threshold(np.arange(18.0), 0.05) is None
    assert alarm_threshold(np.arange(19.0), 0.05) == 0.0  # nothing lies below it
    with pytest.raises(SpecError, match=r"\(0, 1\), got 1"):
        alarm_threshold(np.arange(9.0), 1)


def test_detection__bad_scores():
    with pytest.raises(PredictionsError, match="OOD scores must be finite"):
        auroc(np.ones(3), np.array([np.nan]))
    with pytest.raises(PredictionsError, match="ID scores"):
        auroc(np.ones(0), np.ones(2))
    with pytest.raises(SpecError, match=r"\[1, 3\].*got 4"):
        knn(np.ones((2, 2)), np.ones((3, 2)), 4)
