"""The equations. Every loss term is a pure function of embeddings, logits or weights.

Notation: B batch, D embedding width, C classes; `I`, `T` are L2-normalised embeddings (B, D);
`s` the logit scale; `Z = s · I Tᵀ` (B, B).
"""

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

    Returns:
        (B, B) or (B, C).
    """
    return scale * matmul(images, texts.T)


def to_range(logits: Tensor, initial: Tensor) -> Tensor:
    """Each row of logits, moved and stretched to the smallest and largest value of another's row.

    Murugesan et al. 2024, section 4. A row of equal logits has no range: it becomes the smallest
    value throughout.

    Args:
        logits: (B, C).
        initial: (B, C), whose range is taken.
    """
    low, high = logits.amin(dim=1, keepdim=True), logits.amax(dim=1, keepdim=True)
    base, top = initial.amin(dim=1, keepdim=True), initial.amax(dim=1, keepdim=True)
    width = high - low
    share = (logits - low) / torch.where(width > 0, width, 1.0)
    return share * (top - base) + base


def info_nce(z: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """L_MCL: the mean of the cross-entropies of Z and Zᵀ against the diagonal.

    Radford et al. 2021, figure 3. Other samples of the same class count as negatives.

    Args:
        z: (B, B).
        smoothing: ε of label smoothing over the batch's pairs.
    """
    targets = torch.arange(len(z), device=z.device)
    rows = F.cross_entropy(z, targets, label_smoothing=smoothing)
    return (rows + F.cross_entropy(z.T, targets, label_smoothing=smoothing)) / 2


def sigmoid_pairs(z: Tensor, bias: Tensor) -> Tensor:
    """The pairwise sigmoid loss: every pair of the batch is asked whether it belongs together.

    `−(1/B) Σ_ij log σ(t_ij (Z_ij + b))` with t = 1 on the diagonal and −1 elsewhere. Zhai et al.
    2023, equation 1: what a model with a logit bias was pre-trained with.

    Args:
        z: Z = s · I Tᵀ, (B, B).
    """
    signs = 2 * torch.eye(len(z), device=z.device, dtype=z.dtype) - 1
    return -F.logsigmoid(signs * (z + bias)).sum() / len(z)


def multi_positive_info_nce(z: Tensor, groups: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """InfoNCE whose positives are all pairs of one group, with equal shares.

    Khosla et al. 2020 (equation 2, out-of-log) in the two-tower setting; with all groups distinct
    it equals `info_nce`.

    Args:
        z: (B, B).
        groups: (B,) ids; equal ids are positives of each other.
        smoothing: ε of label smoothing over the batch's pairs.
    """
    same = (groups[:, None] == groups[None, :]).to(z.dtype)
    targets = same / same.sum(dim=1, keepdim=True)
    rows = F.cross_entropy(z, targets, label_smoothing=smoothing)
    return (rows + F.cross_entropy(z.T, targets, label_smoothing=smoothing)) / 2


def orthogonality(weight: Tensor, form: Literal["norm", "squared"]) -> Tensor:
    """L_OC: how far W's columns are from orthonormal.

    Oh et al. 2024, equation 5: `‖WᵀW − 1‖²_F` (`squared`). The released code, and so the published
    λ_OC, uses the norm without the square (`norm`), which has no gradient at exact orthogonality:
    here it is zero there.

    Args:
        weight: W, (width, D).
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


def distillation(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """L_SD: KL from the teacher's to the student's rows, plus the same for columns.

    Oh et al. 2024, equation 6. The two directions are summed and each is a mean over the batch, as
    the published λ_SD has it. The released code minimises the cross-entropy, which differs by a
    constant and has the same gradient; the divergence is 0 when student and teacher agree.

    Args:
        student: Z of the student, (B, B).
        teacher: Z of the teacher with its own scale, (B, B); no gradient flows into it.
        temperature: τ, see `kl`.
    """
    rows = kl(student, teacher, temperature=temperature)
    return rows + kl(student.T, teacher.T, temperature=temperature)


def kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) of the row softmaxes, mean over rows.

    Args:
        student: logits, (B, C).
        teacher: logits, (B, C); no gradient flows into it.
        temperature: τ; both are divided by it and the result multiplied by τ², so that gradients
            keep their size (Hinton et al. 2015, section 2).
    """
    log_p = F.log_softmax(teacher.detach() / temperature, dim=-1)
    log_q = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def feature_distance(
    images: Tensor, texts: Tensor, teacher_images: Tensor, teacher_texts: Tensor
) -> Tensor:
    """FD: mean((I_s − I_t)²) + mean((T_s − T_t)²), means over all B·D elements.

    TRACER, its feature distillation.

    Args:
        images: I_s, (B, D).
        texts: T_s, (B, D).
        teacher_images: I_t, (B, D).
        teacher_texts: T_t, (B, D).
    """
    return F.mse_loss(images, teacher_images.detach()) + F.mse_loss(texts, teacher_texts.detach())


def interactive(
    images: Tensor, texts: Tensor, teacher_images: Tensor, teacher_texts: Tensor, scale: Tensor
) -> Tensor:
    """ICL: ½ [CE(s·I_s T_tᵀ, y) + CE(s·T_s I_tᵀ, y)], each tower against the teacher's other one.

    TRACER, its interactive contrastive loss; y is the diagonal.

    Args:
        images: I_s, (B, D).
        texts: T_s, (B, D).
        teacher_images: I_t, (B, D).
        teacher_texts: T_t, (B, D).
    """
    y = torch.arange(len(images), device=images.device)
    by_image = F.cross_entropy(similarity(images, teacher_texts.detach(), scale), y)
    by_text = F.cross_entropy(similarity(texts, teacher_images.detach(), scale), y)
    return (by_image + by_text) / 2


def cross_distillation(
    images: Tensor,
    texts: Tensor,
    teacher_images: Tensor,
    teacher_texts: Tensor,
    scale: Tensor,
    teacher_z: Tensor,
) -> Tensor:
    """CrossKD: ½ [KL(p(Z_t) ‖ p(s·I_s T_tᵀ)) + KL(p(Z_tᵀ) ‖ p(s·T_s I_tᵀ))].

    TRACER.

    Args:
        images: I_s, (B, D).
        texts: T_s, (B, D).
        teacher_images: I_t, (B, D).
        teacher_texts: T_t, (B, D).
        teacher_z: Z_t with the teacher's scale, (B, B).
    """
    by_image = kl(similarity(images, teacher_texts.detach(), scale), teacher_z)
    by_text = kl(similarity(texts, teacher_images.detach(), scale), teacher_z.T)
    return (by_image + by_text) / 2


def energy_gap(energies: Tensor, initial: Tensor) -> Tensor:
    """LipSum-FT's term: `(1/B) Σ_i (1/2M) Σ_m (e_im − e⁰_im)²`.

    Nam et al. 2024, equation 5.

    Args:
        energies: e, (B, M): s·⟨I_i, T_m⟩ of the tuned image tower and M random texts.
        initial: e⁰, (B, M), of the initial image tower.
    """
    return F.mse_loss(energies, initial.detach()) / 2


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    mixed_with: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """Mean cross-entropy, `(1 − ε)·NLL + ε·mean(−log p)`, on mixed images the mean of two labels'.

    Szegedy et al. 2016 (ε), Zhang et al. 2018 (mixing).

    Args:
        logits: (B, C).
        labels: (B,).
        mixed_with: (B,) label of the other image in each mixture.
        share: λ, the weight of `labels`.
    """
    logits = full(logits)
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if mixed_with is None:
        return loss
    other = F.cross_entropy(logits, mixed_with, label_smoothing=smoothing)
    return share * loss + (1 - share) * other


def focal(logits: Tensor, labels: Tensor, gamma: float | None) -> Tensor:
    """`−(1 − p)^γ log p`, mean over the batch; p is the probability of the true class.

    Lin et al. 2017. Without γ it is FLSD-53 (Mukhoti et al. 2020): γ = 5 where p < 0.2, else 3.

    Args:
        logits: (B, C).
        labels: (B,).
        gamma: γ ≥ 0, or None for FLSD-53.
    """
    log_p = -F.cross_entropy(full(logits), labels, reduction="none")  # (B,)
    p = log_p.exp()
    exponent: Tensor | float = torch.where(p < 0.2, 5.0, 3.0) if gamma is None else gamma
    # 1 − p from log p: exact where p is next to 1, and its power has a finite gradient there.
    return -((-torch.expm1(log_p)).clamp_min(torch.finfo(p.dtype).tiny) ** exponent * log_p).mean()


def mmce(logits: Tensor, labels: Tensor, *, width: float = 0.4) -> Tensor:
    """Maximum mean calibration error of a batch, with a Laplacian kernel.

    `sqrt((1/B²) Σ_ij (c_i − r_i)(c_j − r_j) exp(−|r_i − r_j| / width))`: r the confidence, c
    whether the prediction is correct. Kumar, Sarawagi & Jain 2018, equation 4. c is a constant
    under the gradient; the root's gradient is 0 where the sum is.

    Args:
        logits: (B, C).
        labels: (B,).
    """
    confidences, predictions = full(logits).softmax(dim=-1).max(dim=-1)
    gaps = (predictions == labels).to(confidences.dtype) - confidences  # (B,)
    kernel = (-(confidences[:, None] - confidences[None, :]).abs() / width).exp()  # (B, B)
    squared = (gaps[:, None] * gaps[None, :] * kernel).mean()
    is_zero = squared <= 0
    root = torch.where(is_zero, torch.ones_like(squared), squared).sqrt()
    return torch.where(is_zero, torch.zeros_like(squared), root)


def negative_entropy(logits: Tensor) -> Tensor:
    """−H(p), p = softmax of the logits: the mean over the batch of Σ p log p.

    Pereyra et al. 2017, section 3: cross-entropy − β·H(p) penalises confident outputs.

    Args:
        logits: (B, C).
    """
    log_probs = F.log_softmax(full(logits), dim=1)
    return (log_probs.exp() * log_probs).sum(dim=1).mean()
