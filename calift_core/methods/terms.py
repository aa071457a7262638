"""The equations. Every loss term is a pure function of embeddings, logits or weights.

Notation: B batch, D embedding width, C classes; `I`, `T` are L2-normalised embeddings (B, D);
`s` the logit scale; `Z = s · I Tᵀ` (B, B).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def full(tensor: Tensor) -> Tensor:
    """At least float32: half types are widened, float64 stays."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """A @ B in at least float32, under autocast too: half types have steps of 0.25 at logits of 50.

    Args:
        a: (N, K).
        b: (K, M).

    Returns:
        (N, M).
    """
    with torch.autocast(a.device.type, enabled=False):
        return full(a) @ full(b)


def similarity(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Z = s · I Tᵀ, in at least float32 whatever autocast says.

    Args:
        images: I, (B, D).
        texts: T, (B, D) or (C, D).
        scale: s, a scalar.

    Returns:
        (B, B) or (B, C).
    """
    return scale * matmul(images, texts.T)


def info_nce(z: Tensor) -> Tensor:
    """L_MCL: the mean of the cross-entropies of Z and Zᵀ against the diagonal.

    Radford et al. 2021, figure 3. Other samples of the same class count as negatives.

    Args:
        z: (B, B).
    """
    targets = torch.arange(len(z), device=z.device)
    return (F.cross_entropy(z, targets) + F.cross_entropy(z.T, targets)) / 2


def multi_positive_info_nce(z: Tensor, groups: Tensor) -> Tensor:
    """InfoNCE whose positives are all pairs of one group, with equal shares.

    Khosla et al. 2020 (equation 2, out-of-log) in the two-tower setting; with all groups distinct
    it equals `info_nce`.

    Args:
        z: (B, B).
        groups: (B,) ids; equal ids are positives of each other.
    """
    same = (groups[:, None] == groups[None, :]).to(z.dtype)
    targets = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(z, targets) + F.cross_entropy(z.T, targets)) / 2


def orthogonality(weight: Tensor, form: Literal["norm", "squared"]) -> Tensor:
    """L_OC: how far W's columns are from orthonormal.

    Oh et al. 2024, equation 5: `‖WᵀW − 1‖²_F` (`squared`). The released code, and so the published
    λ_OC, uses the norm without the square (`norm`), which has no gradient at exact orthogonality:
    here it is zero there.

    Args:
        weight: W, (width, D).
        form: `norm` or `squared`.
    """
    gram = matmul(weight.T, weight)  # (D, D)
    gap = gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
    return frobenius(gap) if form == "norm" else gap.square().sum()


def cross_tower(image_projection: Tensor, text_projection: Tensor) -> Tensor:
    """L_X: ‖W_v W_tᵀ‖_F.

    Args:
        image_projection: W_v, (width_v, D).
        text_projection: W_t, (width_t, D).
    """
    return frobenius(matmul(image_projection, text_projection.T))


def frobenius(matrix: Tensor) -> Tensor:
    """‖A‖_F with a zero gradient at A = 0, where the norm has none."""
    squares = matrix.square().sum()
    is_zero = squares == 0
    root = torch.where(is_zero, torch.ones_like(squares), squares).sqrt()
    return torch.where(is_zero, torch.zeros_like(squares), root)


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """L_SD: KL from the teacher's to the student's rows, plus the same for columns.

    Oh et al. 2024, equation 6. The two directions are summed and each is a mean over the batch, as
    the published λ_SD has it. The released code minimises the cross-entropy, which differs by a
    constant and has the same gradient; the divergence is 0 when student and teacher agree.

    Args:
        student: Z of the student, (B, B).
        teacher: Z of the teacher with its own scale, (B, B); no gradient flows into it.
    """
    teacher = teacher.detach()
    return _kl(student, teacher) + _kl(student.T, teacher.T)


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = F.log_softmax(teacher, dim=-1), F.log_softmax(student, dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy.

    Args:
        logits: (B, C).
        labels: (B,).
    """
    return F.cross_entropy(full(logits), labels)
