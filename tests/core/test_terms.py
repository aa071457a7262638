"""The equations: identities, gradients against finite differences, parity with open_clip."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from calift_core.methods.terms import (
    cross_entropy,
    cross_tower,
    distillation,
    frobenius,
    info_nce,
    multi_positive_info_nce,
    orthogonality,
    similarity,
)
from calift_core.schedule import default_warmup, learning_rate

FORMS: tuple[Literal["norm", "squared"], ...] = ("norm", "squared")
seeds = st.integers(0, 2**31)
few = settings(max_examples=25, deadline=None)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def units(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(rand(n, d, seed=seed, dtype=dtype), dim=-1)


# ------------------------------------------------------------------------------- contrastive


@few
@given(seeds, st.integers(1, 9))
def test_info_nce__is_symmetric_in_images_and_texts(seed: int, b: int) -> None:
    z = rand(b, b, seed=seed)
    torch.testing.assert_close(info_nce(z), info_nce(z.T))


@few
@given(seeds, st.integers(2, 9), st.floats(1, 100))
def test_info_nce__equals_open_clips_loss(seed: int, b: int, scale: float) -> None:
    images, texts = units(b, 6, seed), units(b, 6, seed + 1)
    s = torch.tensor(scale, dtype=torch.float64)
    torch.testing.assert_close(info_nce(similarity(images, texts, s)), ClipLoss()(images, texts, s))


def test_info_nce__of_equal_similarities_is_the_log_of_the_batch_size() -> None:
    assert float(info_nce(torch.full((5, 5), 3.0))) == pytest.approx(math.log(5), rel=1e-6)


def test_info_nce__two_by_two_worked_by_hand() -> None:
    z = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    rows = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    columns = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-1))) / 2
    assert float(info_nce(z)) == pytest.approx((rows + columns) / 2, rel=1e-6)


@few
@given(seeds, st.integers(1, 9), seeds)
def test_info_nce__does_not_see_the_order_of_the_batch(seed: int, b: int, shuffle: int) -> None:
    z = rand(b, b, seed=seed)
    order = torch.randperm(b, generator=torch.Generator().manual_seed(shuffle))
    torch.testing.assert_close(info_nce(z), info_nce(z[order][:, order]))


@few
@given(seeds, st.integers(1, 9))
def test_multi_positive__with_distinct_groups_is_info_nce(seed: int, b: int) -> None:
    z = rand(b, b, seed=seed)
    groups = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(multi_positive_info_nce(z, groups), info_nce(z))


def test_multi_positive__one_group_is_the_cross_entropy_to_the_uniform_distribution() -> None:
    z = rand(4, 4)
    groups = torch.zeros(4, dtype=torch.long)
    expected = -(z.log_softmax(1).mean() + z.T.log_softmax(1).mean()) / 2
    torch.testing.assert_close(multi_positive_info_nce(z, groups), expected)


def test_multi_positive__an_equal_caption_is_no_negative() -> None:
    """Two pairs of one caption, all four similar: as negatives they would cost ln 2 each."""
    z = torch.zeros(2, 2)
    z += 50 * torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    groups = torch.tensor([3, 3])
    assert float(multi_positive_info_nce(z, groups)) == pytest.approx(math.log(2))
    apart = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    assert float(info_nce(apart)) < 1e-6
    assert float(multi_positive_info_nce(apart, groups)) == pytest.approx(25)


# --------------------------------------------------------------------------- orthogonality


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(rand(rows, columns, seed=seed))[0]


@pytest.mark.parametrize("form", FORMS)
def test_orthogonality__exact_orthogonality_has_value_and_gradient_zero(
    form: Literal["norm", "squared"],
) -> None:
    weight = torch.eye(6, 4, dtype=torch.float64).requires_grad_(True)
    value = orthogonality(weight, form)
    value.backward()
    assert float(value.detach()) == 0.0
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros(6, 4, dtype=torch.float64))


@few
@given(seeds, st.integers(2, 6), st.integers(2, 8))
def test_orthogonality__squared_form_is_the_square_of_the_norm(seed: int, d: int, w: int) -> None:
    weight = rand(w, d, seed=seed)
    torch.testing.assert_close(
        orthogonality(weight, "squared"), orthogonality(weight, "norm").square()
    )


@few
@given(seeds, st.integers(1, 5))
def test_orthogonality__of_orthonormal_columns_is_zero(seed: int, d: int) -> None:
    assert float(orthogonality(orthonormal(6, d, seed), "squared")) < 1e-24


def test_orthogonality__of_twice_the_identity_worked_by_hand() -> None:
    weight = 2 * torch.eye(4)  # Gram 4·1, gap 3·1: four entries of 3
    assert float(orthogonality(weight, "squared")) == pytest.approx(36)
    assert float(orthogonality(weight, "norm")) == pytest.approx(6)


def test_orthogonality__gram_is_over_the_columns() -> None:
    tall = orthonormal(8, 3)
    assert float(orthogonality(tall, "norm")) < 1e-12
    assert float(orthogonality(tall.T, "squared")) == pytest.approx(5)  # 8 columns of rank 3


# ----------------------------------------------------------------------------- cross tower


@few
@given(seeds)
def test_cross_tower__is_the_norm_of_the_product_and_symmetric(seed: int) -> None:
    w_v, w_t = rand(7, 4, seed=seed), rand(5, 4, seed=seed + 1)
    torch.testing.assert_close(cross_tower(w_v, w_t), torch.linalg.matrix_norm(w_v @ w_t.T))
    torch.testing.assert_close(cross_tower(w_v, w_t), cross_tower(w_t, w_v))


def test_cross_tower__towers_with_disjoint_dimensions_do_not_meet() -> None:
    w_v = torch.zeros(3, 4, dtype=torch.float64)
    w_v[:, :2] = 1
    w_t = torch.zeros(3, 4, dtype=torch.float64)
    w_t[:, 2:] = 1
    w_v.requires_grad_(True)
    value = cross_tower(w_v, w_t)
    value.backward()
    assert float(value.detach()) == 0
    assert w_v.grad is not None
    assert w_v.grad.isfinite().all()


# ---------------------------------------------------------------------------- distillation


@few
@given(seeds, st.integers(1, 8))
def test_distillation__of_a_model_into_itself_is_zero_with_gradient_zero(seed: int, b: int) -> None:
    z = rand(b, b, seed=seed).requires_grad_(True)
    value = distillation(z, z.detach().clone())
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-14)
    assert z.grad is not None
    assert float(z.grad.abs().max()) < 1e-14


@few
@given(seeds, st.integers(2, 8))
def test_distillation__is_not_negative(seed: int, b: int) -> None:
    assert float(distillation(rand(b, b, seed=seed), rand(b, b, seed=seed + 1))) > -1e-14


def test_distillation__has_the_gradient_of_the_released_cross_entropy() -> None:
    teacher = rand(5, 5, seed=1)
    ours = rand(5, 5).requires_grad_(True)
    distillation(ours, teacher).backward()
    theirs = rand(5, 5).requires_grad_(True)
    (
        F.cross_entropy(theirs, teacher.softmax(1))
        + F.cross_entropy(theirs.T, teacher.T.softmax(1))
    ).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_distillation__sends_no_gradient_to_the_teacher() -> None:
    teacher = rand(4, 4, seed=1).requires_grad_(True)
    distillation(rand(4, 4).requires_grad_(True), teacher).backward()
    assert teacher.grad is None


def test_distillation__two_by_two_worked_by_hand() -> None:
    student = torch.zeros(2, 2, dtype=torch.float64)  # every row and column is (½, ½)
    teacher = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]], dtype=torch.float64)
    row = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(distillation(student, teacher)) == pytest.approx(2 * row)


# -------------------------------------------------------------------------------- gradients

TARGET = rand(4, 4, seed=9)
GROUPS = torch.tensor([0, 1, 0, 2])
LABELS = torch.tensor([2, 0, 1, 1])
OTHER = units(4, 3, seed=5)
SCALE = torch.tensor(7.0, dtype=torch.float64)

TERMS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "similarity": (lambda x: similarity(x, OTHER, SCALE), rand(4, 3)),
    "logit scale": (lambda s: similarity(OTHER, OTHER, s.exp()), rand(1)),
    "info_nce": (info_nce, rand(4, 4)),
    "multi_positive": (lambda z: multi_positive_info_nce(z, GROUPS), rand(4, 4)),
    "orthogonality norm": (lambda w: orthogonality(w, "norm"), rand(5, 3)),
    "orthogonality squared": (lambda w: orthogonality(w, "squared"), rand(5, 3)),
    "cross_tower": (lambda w: cross_tower(w, rand(2, 3, seed=3)), rand(4, 3)),
    "distillation": (lambda z: distillation(z, TARGET), rand(4, 4)),
    "cross_entropy": (lambda z: cross_entropy(z, LABELS), rand(4, 3)),
    "frobenius": (frobenius, rand(3, 4)),
}


@pytest.mark.parametrize("name", TERMS)
def test_terms__gradient_equals_finite_differences(name: str) -> None:
    term, at = TERMS[name]
    assert torch.autograd.gradcheck(term, (at.clone().requires_grad_(True),))


def test_frobenius__at_zero_has_a_gradient_that_a_step_survives() -> None:
    matrix = torch.zeros(3, 3, requires_grad=True)
    frobenius(matrix).backward()
    assert matrix.grad is not None
    assert torch.equal(matrix.grad, torch.zeros(3, 3))


# -------------------------------------------------------------------------------- precision


@few
@given(seeds)
def test_terms__are_computed_in_full_precision_under_autocast(seed: int) -> None:
    """At a logit scale of 100, bfloat16 would round similarities to steps of 0.5."""
    images, texts = units(6, 8, seed, torch.float32), units(6, 8, seed + 1, torch.float32)
    weight = rand(8, 5, seed=seed, dtype=torch.float32)
    scale = torch.tensor(100.0)
    outside = (
        similarity(images, texts, scale),
        orthogonality(weight, "norm"),
        cross_tower(weight, weight),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = (
            similarity(images, texts, scale),
            orthogonality(weight, "norm"),
            cross_tower(weight, weight),
        )
    for one, other in zip(outside, inside, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


def test_similarity__half_embeddings_are_widened() -> None:
    half = units(3, 4, dtype=torch.float32).half()
    assert similarity(half, half, torch.tensor(1.0)).dtype == torch.float32


# --------------------------------------------------------------------------------- schedule

runs = st.integers(1, 2000).flatmap(lambda total: st.tuples(st.just(total), st.integers(0, total)))


@few
@given(runs, st.floats(1e-7, 1.0), st.floats(0, 1))
def test_learning_rate__rises_linearly_then_never_rises_again(
    run: tuple[int, int], peak: float, share: float
) -> None:
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


def test_learning_rate__floor_is_a_floor_and_no_addition() -> None:
    at = {"peak": 1.0, "total_steps": 100, "warmup_steps": 0}
    assert learning_rate(0, **at, floor=0.5) == 1.0  # type: ignore[arg-type]
    assert learning_rate(50, **at, floor=0.5) == pytest.approx(0.75)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("total", "expected"), [(25_030, 500), (5_000, 500), (4_990, 499), (195, 19), (9, 0), (0, 0)]
)
def test_default_warmup__is_the_published_one_or_a_tenth(total: int, expected: int) -> None:
    assert default_warmup(total) == expected
