"""The equations: identities, gradients against finite differences, parity with open_clip."""

import inspect
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss, SigLipLoss
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from calift_core.methods import terms
from calift_core.methods.terms import (
    cross_distillation,
    cross_entropy,
    cross_tower,
    distillation,
    energy_gap,
    feature_distance,
    focal,
    frobenius,
    info_nce,
    interactive,
    kl,
    mmce,
    multi_positive_info_nce,
    negative_entropy,
    orthogonality,
    sigmoid_pairs,
    similarity,
    to_range,
)
from calift_core.training.schedule import default_warmup, learning_rate

seeds = st.integers(0, 2**31)
few = settings(max_examples=25, deadline=None)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def units(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(rand(n, d, seed=seed, dtype=dtype), dim=-1)


@few
@given(seeds, st.integers(2, 9), st.floats(1, 100))
def test_info_nce__equals_open_clips_loss(seed, b, scale):
    images, texts = units(b, 6, seed), units(b, 6, seed + 1)
    s = torch.tensor(scale, dtype=torch.float64)
    torch.testing.assert_close(info_nce(similarity(images, texts, s)), ClipLoss()(images, texts, s))


@few
@given(seeds, st.integers(1, 9))
def test_multi_positive__with_distinct_groups_is_info_nce(seed, b):
    z = rand(b, b, seed=seed)
    groups = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(multi_positive_info_nce(z, groups), info_nce(z))


def test_multi_positive__an_equal_caption_is_no_negative():
    """Two pairs of one caption, all four similar: as negatives they would cost ln 2 each."""
    groups = torch.tensor([3, 3])
    alike = multi_positive_info_nce(torch.full((2, 2), 50.0), groups)
    assert float(alike) == pytest.approx(math.log(2))
    apart = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    assert float(info_nce(apart)) < 1e-6
    assert float(multi_positive_info_nce(apart, groups)) == pytest.approx(25)


@few
@given(seeds, st.integers(1, 9), st.floats(0, 0.99))
def test_info_nce__smoothing_shares_its_part_among_all_pairs(seed, b, eps):
    z = rand(b, b, seed=seed)
    uniform = -(z.log_softmax(1).mean() + z.T.log_softmax(1).mean()) / 2
    expected = (1 - eps) * info_nce(z) + eps * uniform
    torch.testing.assert_close(info_nce(z, smoothing=eps), expected)
    groups = torch.arange(b) // 2
    expected = (1 - eps) * multi_positive_info_nce(z, groups) + eps * uniform
    torch.testing.assert_close(multi_positive_info_nce(z, groups, smoothing=eps), expected)


@few
@given(seeds, st.integers(1, 9), st.floats(1, 100), st.floats(-20, 5))
def test_sigmoid_pairs__equals_open_clips_loss(seed, b, scale, bias):
    images, texts = units(b, 6, seed), units(b, 6, seed + 1)
    s, shift = (torch.tensor(x, dtype=torch.float64) for x in (scale, bias))
    ours = sigmoid_pairs(similarity(images, texts, s), shift)
    torch.testing.assert_close(ours, SigLipLoss()(images, texts, s, shift))


@pytest.mark.parametrize("form", ["norm", "squared"])
def test_orthogonality__exact_orthogonality_has_value_and_gradient_zero(form):
    weight = torch.eye(6, 4, dtype=torch.float64).requires_grad_(True)
    value = orthogonality(weight, form)
    value.backward()
    assert float(value.detach()) == 0.0
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros(6, 4, dtype=torch.float64))


def test_orthogonality__of_twice_the_identity_worked_by_hand():
    weight = 2 * torch.eye(4)  # Gram 4·1, gap 3·1: four entries of 3
    assert float(orthogonality(weight, "squared")) == pytest.approx(36)
    assert float(orthogonality(weight, "norm")) == pytest.approx(6)


@few
@given(seeds)
def test_cross_tower__is_the_norm_of_the_product_and_symmetric(seed):
    w_v, w_t = rand(7, 4, seed=seed), rand(5, 4, seed=seed + 1)
    torch.testing.assert_close(cross_tower(w_v, w_t), torch.linalg.matrix_norm(w_v @ w_t.T))
    torch.testing.assert_close(cross_tower(w_v, w_t), cross_tower(w_t, w_v))


@few
@given(seeds, st.integers(1, 8), st.integers(2, 6), st.floats(0.2, 20))
def test_kl__is_the_divergence_of_softmaxes_times_the_temperature_squared(seed, b, c, tau):
    student, teacher = rand(b, c, seed=seed) * 3, rand(b, c, seed=seed + 1) * 3
    p, q = (softmax(x.numpy() / tau, axis=1) for x in (teacher, student))
    expected = tau**2 * rel_entr(p, q).sum(axis=1).mean()
    assert float(kl(student, teacher, temperature=tau)) == pytest.approx(expected, rel=1e-8)


@few
@given(seeds, st.integers(1, 8), st.floats(0.2, 20))
def test_distillation__is_the_divergence_of_rows_and_the_one_of_columns(seed, b, tau):
    z, teacher = rand(b, b, seed=seed), rand(b, b, seed=seed + 1)
    rows = kl(z, teacher, temperature=tau)
    columns = kl(z.T, teacher.T, temperature=tau)
    torch.testing.assert_close(distillation(z, teacher, temperature=tau), rows + columns)


class Pair:
    """Embeddings of a student and of a teacher, the student's with gradients."""

    def __init__(self, seed: int, b: int = 5, d: int = 4, *, equal: bool = False) -> None:
        self.images = units(b, d, seed).requires_grad_(True)
        self.texts = units(b, d, seed + 1).requires_grad_(True)
        self.scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
        self.images_t = self.images.detach().clone() if equal else units(b, d, seed + 2)
        self.texts_t = self.texts.detach().clone() if equal else units(b, d, seed + 3)
        self.z_t = similarity(self.images_t, self.texts_t, torch.tensor(9.0 if equal else 7.0))

    @property
    def embeddings(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.images, self.texts, self.images_t, self.texts_t

    def largest_gradient(self, value: Tensor) -> float:
        inputs = (self.images, self.texts, self.scale)
        gradients = torch.autograd.grad(value, inputs, allow_unused=True)
        return max(float(g.abs().max()) for g in gradients if g is not None)


@few
@given(seeds, st.integers(1, 8))
def test_tracer_terms__of_a_teacher_equal_to_the_student_are_zero_with_gradient_zero(seed, b):
    pair = Pair(seed, b, equal=True)
    z = similarity(pair.images, pair.texts, pair.scale)
    for value in (
        feature_distance(*pair.embeddings),
        distillation(z, pair.z_t) / 2,
        cross_distillation(*pair.embeddings, pair.scale, pair.z_t),
    ):
        assert float(value.detach()) == pytest.approx(0, abs=1e-13)
        assert pair.largest_gradient(value) < 1e-12


@few
@given(seeds)
def test_interactive__of_a_teacher_equal_to_the_student_is_info_nce_and_still_teaches(seed):
    """Its value is the contrastive loss; of the gradient, the teacher's side is held fixed."""
    pair = Pair(seed, equal=True)
    value = interactive(*pair.embeddings, pair.scale)
    plain = info_nce(similarity(pair.images, pair.texts, pair.scale))
    torch.testing.assert_close(value, plain)
    assert pair.largest_gradient(value) > 1e-3


@few
@given(seeds)
def test_tracer_terms__equal_their_equations_written_out(seed):
    pair = Pair(seed)
    i_s, t_s, i_t, t_t = (x.detach().numpy() for x in pair.embeddings)
    b, d = i_s.shape
    by_image, by_text = 9 * i_s @ t_t.T, 9 * t_s @ i_t.T
    fd = ((i_s - i_t) ** 2).sum() / (b * d) + ((t_s - t_t) ** 2).sum() / (b * d)
    icl = -sum(np.trace(log_softmax(m, axis=1)) for m in (by_image, by_text)) / (2 * b)
    z_t = 7 * i_t @ t_t.T
    cross = (
        sum(
            rel_entr(softmax(target, axis=1), softmax(given_, axis=1)).sum()
            for target, given_ in ((z_t, by_image), (z_t.T, by_text))
        )
        / 2
        / b
    )
    value = float(feature_distance(*pair.embeddings).detach())
    assert value == pytest.approx(fd)
    assert float(interactive(*pair.embeddings, pair.scale).detach()) == pytest.approx(icl)
    value = float(cross_distillation(*pair.embeddings, pair.scale, pair.z_t).detach())
    assert value == pytest.approx(cross)


def test_tracer_terms__send_no_gradient_to_the_teacher():
    pair = Pair(0)
    for tensor in (pair.images_t, pair.texts_t, pair.z_t):
        tensor.requires_grad_(True)
    value = (
        feature_distance(*pair.embeddings)
        + interactive(*pair.embeddings, pair.scale)
        + cross_distillation(*pair.embeddings, pair.scale, pair.z_t)
        + distillation(similarity(pair.images, pair.texts, pair.scale), pair.z_t)
    )
    value.backward()
    assert pair.images.grad is not None
    assert [x.grad for x in (pair.images_t, pair.texts_t, pair.z_t)] == [None] * 3


@few
@given(seeds, st.integers(1, 6), st.integers(1, 7))
def test_energy_gap__is_the_mean_over_images_of_half_the_mean_over_texts(seed, b, m):
    e, initial = rand(b, m, seed=seed), rand(b, m, seed=seed + 1)
    total = sum(
        sum(float(e[i, j] - initial[i, j]) ** 2 for j in range(m)) / (2 * m) for i in range(b)
    )
    assert float(energy_gap(e, initial)) == pytest.approx(total / b)
    assert float(energy_gap(e, e.clone())) == 0


@few
@given(seeds, st.integers(1, 8), st.integers(2, 6), st.floats(0, 0.99))
def test_cross_entropy__smoothed_is_the_published_formula(seed, b, c, eps):
    logits, labels = rand(b, c, seed=seed), torch.arange(b) % c
    log_p = logits.log_softmax(1)
    nll = -log_p[torch.arange(b), labels].mean()
    expected = (1 - eps) * nll + eps * -log_p.mean()
    torch.testing.assert_close(cross_entropy(logits, labels, smoothing=eps), expected)


@few
@given(seeds, st.floats(0, 1), st.floats(0, 0.9))
def test_cross_entropy__of_a_mixture_is_the_mixture_of_cross_entropies(seed, share, eps):
    logits, labels, other = rand(6, 4, seed=seed), torch.arange(6) % 4, torch.arange(6) // 2
    one, two = (cross_entropy(logits, y, smoothing=eps) for y in (labels, other))
    mixed = cross_entropy(logits, labels, smoothing=eps, mixed_with=other, share=share)
    torch.testing.assert_close(mixed, share * one + (1 - share) * two)
    whole = cross_entropy(logits, labels, smoothing=eps, mixed_with=other, share=1.0)
    assert torch.equal(whole, one)


@few
@given(seeds, st.integers(1, 8), st.integers(2, 6))
def test_focal__with_gamma_zero_is_the_nll_and_falls_as_gamma_rises(seed, b, c):
    logits, labels = 2 * rand(b, c, seed=seed), torch.arange(b) % c
    nll = F.cross_entropy(logits, labels)
    torch.testing.assert_close(focal(logits, labels, 0.0), nll)
    torch.testing.assert_close(focal(logits, labels, 1e-9), nll)
    values = [float(focal(logits, labels, gamma)) for gamma in (0.0, 0.5, 1.0, 3.0, 5.0)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(("p", "gamma"), [(0.05, 5.0), (0.19, 5.0), (0.21, 3.0), (0.95, 3.0)])
def test_focal__flsd53_takes_its_exponent_from_the_probability(p, gamma):
    logits = torch.tensor([[p, 1 - p]], dtype=torch.float64).log()
    labels = torch.tensor([0])
    expected = -((1 - p) ** gamma) * math.log(p)
    assert float(focal(logits, labels, None)) == pytest.approx(expected)
    assert float(focal(logits, labels, gamma)) == pytest.approx(expected)


def test_focal__of_certainty_right_or_wrong_has_a_finite_gradient():
    for gamma, far, label in itertools.product((None, 0.1, 1.0, 20.0), (30.0, 500.0), (0, 1)):
        logits = torch.tensor([[far, 0.0, -far]], requires_grad=True)
        value = focal(logits, torch.tensor([label]), gamma)
        value.backward()
        assert value.isfinite()
        assert logits.grad.isfinite().all()


def confident(*rows: tuple[float, int]) -> tuple[Tensor, Tensor]:
    """Logits of two classes with a given confidence in class 0, and labels."""
    p = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    return torch.stack([p, 1 - p], dim=1).log(), torch.tensor([row[1] for row in rows])


def test_mmce__worked_by_hand_and_at_perfect_calibration():
    """A right one at 0.8 and a wrong one at 0.6: gaps 0.2 and −0.6, kernel exp(−0.2/0.4)."""
    value = float(mmce(*confident((0.8, 0), (0.6, 1))))
    squared = (0.2**2 + 0.6**2 - 2 * 0.2 * 0.6 * math.exp(-0.5)) / 4
    assert value == pytest.approx(math.sqrt(squared))
    wider = float(mmce(*confident((0.8, 0), (0.6, 1)), width=1.0))
    squared = (0.2**2 + 0.6**2 - 2 * 0.2 * 0.6 * math.exp(-0.2)) / 4
    assert wider == pytest.approx(math.sqrt(squared))
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]], requires_grad=True)
    value = mmce(logits, torch.tensor([0, 1]))
    value.backward()
    assert float(value.detach()) == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(2, 2))


TARGET = rand(4, 4, seed=9)
GROUPS = torch.tensor([0, 1, 0, 2])
LABELS = torch.tensor([2, 0, 1, 1])
OTHER = units(4, 3, seed=5)
SCALE = torch.tensor(7.0, dtype=torch.float64)
MIXED = torch.tensor([0, 0, 2, 1])
#: Confidences differ from each other and the true class's probability from 0.2: no kink is near.
SPREAD = torch.tensor([[1.1, 0.2, 0.4], [0.1, 2.3, -0.5], [-0.6, 0.0, 0.9], [0.3, 3.1, -1.0]])
FIXED = (units(4, 3, seed=6), units(4, 3, seed=7), units(4, 3, seed=8))

X, Z, P = rand(4, 3), rand(4, 4), SPREAD.double()

TERMS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "similarity": (lambda x: similarity(x, OTHER, SCALE), X),
    "logit scale": (lambda s: similarity(OTHER, OTHER, s.exp()), rand(1)),
    "info_nce": (info_nce, Z),
    "multi_positive_info_nce": (lambda z: multi_positive_info_nce(z, GROUPS), Z),
    "orthogonality norm": (lambda w: orthogonality(w, "norm"), rand(5, 3)),
    "orthogonality squared": (lambda w: orthogonality(w, "squared"), rand(5, 3)),
    "cross_tower": (lambda w: cross_tower(w, rand(2, 3, seed=3)), X),
    "distillation": (lambda z: distillation(z, TARGET), Z),
    "cross_entropy": (lambda z: cross_entropy(z, LABELS), X),
    "frobenius": (frobenius, rand(3, 4)),
    "to_range": (lambda z: to_range(z, rand(4, 3, seed=5)), X),
    "info_nce smoothed": (lambda z: info_nce(z, smoothing=0.1), Z),
    "multi_positive_info_nce smoothed": (
        lambda z: multi_positive_info_nce(z, GROUPS, smoothing=0.1),
        Z,
    ),
    "sigmoid_pairs": (lambda z: sigmoid_pairs(z, SCALE - 9), Z),
    "sigmoid_pairs bias": (lambda b: sigmoid_pairs(TARGET, b.squeeze()), rand(1)),
    "cross_tower text": (lambda w: cross_tower(rand(2, 3, seed=3), w), X),
    "distillation tempered": (lambda z: distillation(z, TARGET, temperature=2.5), Z),
    "kl": (lambda z: kl(z, OTHER), X),
    "kl tempered": (lambda z: kl(z, OTHER, temperature=0.7), X),
    "feature_distance images": (lambda x: feature_distance(x, *FIXED), X),
    "feature_distance texts": (lambda x: feature_distance(OTHER, x, *FIXED[:2]), X),
    "interactive images": (lambda x: interactive(x, *FIXED, SCALE), X),
    "interactive texts": (lambda x: interactive(OTHER, x, *FIXED[:2], SCALE), X),
    "interactive scale": (lambda s: interactive(OTHER, *FIXED, s.squeeze().exp()), rand(1)),
    "cross_distillation images": (lambda x: cross_distillation(x, *FIXED, SCALE, TARGET), X),
    "cross_distillation texts": (
        lambda x: cross_distillation(OTHER, x, *FIXED[:2], SCALE, TARGET),
        X,
    ),
    "cross_distillation scale": (
        lambda s: cross_distillation(OTHER, *FIXED, s.squeeze().exp(), TARGET),
        rand(1),
    ),
    "energy_gap": (lambda e: energy_gap(e, TARGET), Z),
    "cross_entropy smoothed and mixed": (
        lambda z: cross_entropy(z, LABELS, smoothing=0.2, mixed_with=MIXED, share=0.3),
        X,
    ),
    "focal 3": (lambda z: focal(z, LABELS, 3.0), P),
    "focal flsd53": (lambda z: focal(z, LABELS, None), P),
    "mmce": (lambda z: mmce(z, LABELS), P),
    "negative_entropy": (negative_entropy, P),
}


def test_terms__every_loss_is_among_those_whose_gradient_is_checked():
    public = {
        name
        for name, value in vars(terms).items()
        if inspect.isfunction(value) and value.__module__ == terms.__name__
    } - {"full", "matmul"}
    assert public == {name.split()[0] for name in TERMS if name != "logit scale"}


@pytest.mark.parametrize("name", TERMS)
def test_terms__gradient_equals_finite_differences(name):
    term, at = TERMS[name]
    assert torch.autograd.gradcheck(term, (at.clone().requires_grad_(True),))


@few
@given(seeds)
def test_terms__are_computed_in_full_precision_under_autocast(seed):
    """At a logit scale of 100, bfloat16 would round similarities to steps of 0.5."""
    images, texts = units(6, 8, seed, torch.float32), units(6, 8, seed + 1, torch.float32)
    weight = rand(8, 5, seed=seed, dtype=torch.float32)
    scale = torch.tensor(100.0)

    def values(inside):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            return [similarity(images, texts, scale), orthogonality(weight, "norm"),
                    cross_tower(weight, weight)]  # fmt: skip

    for one, other in zip(values(False), values(True), strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


runs = st.integers(1, 2000).flatmap(lambda total: st.tuples(st.just(total), st.integers(0, total)))


@few
@given(runs, st.floats(1e-7, 1.0), st.floats(0, 1))
def test_learning_rate__rises_linearly_then_never_rises_again(run, peak, share):
    total, warmup = run
    floor = share * peak
    rates = [
        learning_rate(step, peak=peak, total_steps=total, warmup_steps=warmup, floor=floor)
        for step in range(total + 1)
    ]
    for step in range(warmup):
        assert rates[step] == pytest.approx(peak * (step + 1) / warmup)
    after = rates[warmup:]
    assert all(b <= a for a, b in zip(after, after[1:], strict=False))
    assert max(rates[:total] or [peak]) <= peak * (1 + 1e-12)
    if warmup < total:
        assert rates[warmup] == pytest.approx(peak)
        assert rates[total] == pytest.approx(floor, abs=1e-15)
    assert all(rate >= floor - 1e-15 for rate in after)


def test_learning_rate__floor_is_a_floor_and_no_addition():
    at = {"peak": 1.0, "total_steps": 100, "warmup_steps": 0}
    assert learning_rate(0, **at, floor=0.5) == 1.0
    assert learning_rate(50, **at, floor=0.5) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("total", "expected"), [(25_030, 500), (5_000, 500), (4_990, 499), (195, 19), (9, 0), (0, 0)]
)
def test_default_warmup__is_the_published_one_or_a_tenth(total, expected):
    assert default_warmup(total) == expected


def test_negative_entropy__is_that_of_the_distribution_and_lowest_where_all_is_even():
    z = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = -torch.distributions.Categorical(logits=z).entropy().mean()
    torch.testing.assert_close(negative_entropy(z), expected)
    even = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    value = negative_entropy(even)
    value.backward()
    assert value.item() == pytest.approx(-math.log(5))
    torch.testing.assert_close(even.grad, torch.zeros_like(even))
