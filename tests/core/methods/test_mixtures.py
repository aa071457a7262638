"""Models mixed image by image: what defines VRF and DaWin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from calift_core.methods.dawin import entropies, expertise, nearest
from calift_core.methods.vrf import Vrf, fit_vrf, matched_temperature, mixed
from calift_core.schema.methods.merge import ONE_SE_PATH

seeds = st.integers(0, 2**31)


def drawn(seed: int, n: int = 40, n_classes: int = 4, width: int = 6) -> dict[str, Tensor]:
    """Features, logits of two models, and labels that the first is right about more often."""
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(n, width, generator=generator), dim=1)
    initial = torch.randn(n, n_classes, generator=generator)
    logits = 3 * torch.randn(n, n_classes, generator=generator)
    labels = torch.where(
        torch.rand(n, generator=generator) < 0.7, logits.argmax(dim=1), initial.argmax(dim=1)
    )
    return {"features": features, "logits": logits, "initial": initial, "labels": labels}


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_mixed__is_a_mean_of_probabilities_with_each_model_at_an_end(seed):
    d = drawn(seed)
    own, first = F.log_softmax(d["logits"], dim=1), F.log_softmax(d["initial"], dim=1)
    n = len(own)
    torch.testing.assert_close(mixed(torch.ones(n), d["logits"], d["initial"]), own)
    torch.testing.assert_close(mixed(torch.zeros(n), d["logits"], d["initial"]), first)
    share = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(mixed(share, d["logits"], d["logits"]), own)
    between = mixed(share, d["logits"], d["initial"]).exp()
    expected = share[:, None] * own.exp() + (1 - share[:, None]) * first.exp()
    torch.testing.assert_close(between, expected)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_matched_temperature__makes_mean_confidence_the_accuracy(seed):
    d = drawn(seed)
    temperature = matched_temperature(d["logits"], d["labels"])
    confidence = F.softmax(d["logits"].double() / temperature, dim=1).amax(dim=1).mean()
    accuracy = (d["logits"].argmax(dim=1) == d["labels"]).double().mean()
    assert float(confidence) == pytest.approx(float(accuracy), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_vrf__listens_to_the_tuned_model_near_failures_and_is_zero_shot_without_any(seed):
    d = drawn(seed)
    vrf = Vrf(d["features"][:3], 0.5, 0.2, 1.5, 0.8)
    distances, shares = vrf.distances(d["features"]), vrf.shares(d["features"])
    brute = (d["features"][:, None] - d["features"][None, :3]).square().sum(dim=2).amin(dim=1)
    torch.testing.assert_close(distances, brute, atol=1e-5, rtol=1e-4)
    order = distances.argsort()
    assert (shares[order].diff() <= 0).all()
    fit = fit_vrf(d["features"][:0], d["features"], d["logits"], d["initial"], d["labels"])
    found = fit.log_probs(d["features"], d["logits"], d["initial"])
    torch.testing.assert_close(found, F.log_softmax(d["initial"] / fit.first, dim=1))


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_fit_vrf__finds_that_only_the_tuned_model_is_right_near_failures(seed):
    d = drawn(seed, n=200)
    near = d["features"] @ d["features"][0] > 0.3
    right = torch.where(near[:, None], d["logits"], d["initial"]).argmax(dim=1)
    fit = fit_vrf(d["features"][:1], d["features"], d["logits"], d["initial"], right)
    shares = fit.shares(d["features"])
    assert shares[near].mean() > shares[~near].mean()


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_expertise__is_a_half_for_equal_models_and_more_for_the_surer_one(seed):
    d = drawn(seed)
    alphas = expertise(d["logits"], d["initial"])
    assert (expertise(d["logits"], d["logits"]) == 0.5).all()
    torch.testing.assert_close(alphas + expertise(d["initial"], d["logits"]), torch.ones(40))
    surer = entropies(d["logits"]) < entropies(d["initial"])
    assert torch.equal(alphas > 0.5, surer)
    own, first = ((-entropies(d[name])).exp() for name in ("logits", "initial"))
    torch.testing.assert_close(alphas, own / (own + first))
    at = nearest(alphas, ONE_SE_PATH)
    taken = torch.tensor(ONE_SE_PATH)[at]
    assert ((taken - alphas).abs() <= 0.025 + 1e-6).all()
