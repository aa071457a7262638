"""Weight space: models made from finished ones, tensor by tensor, without training.

A state is what `Module.state_dict()` gives, or any mapping of names to tensors. Batch-norm
statistics are merged like weights. That they are not quite the statistics that the merged weights
would show on the training data is true of the published methods too; nothing is recomputed here.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from calift_core.errors import ModelError, SpecError

State = Mapping[str, Tensor]


def check_alike(initial: State, tuned: State) -> None:
    """Refuse states of two different architectures.

    Raises:
        ModelError: names, shapes or kinds of numbers differ; the message names the first tensor.
    """
    for name in initial:
        if name not in tuned:
            raise ModelError(f"the weights do not fit: {name} is missing in the fine-tuned model")
        expected, got = tuple(initial[name].shape), tuple(tuned[name].shape)
        if expected != got:
            raise ModelError(
                f"the weights do not fit: {name} has shape {expected} in the initial model and "
                f"{got} in the fine-tuned one"
            )
        if initial[name].is_floating_point() != tuned[name].is_floating_point():
            raise ModelError(
                f"the weights do not fit: {name} is {initial[name].dtype} in the initial model "
                f"and {tuned[name].dtype} in the fine-tuned one"
            )
    extra = [name for name in tuned if name not in initial]
    if extra:
        raise ModelError(f"the weights do not fit: the initial model has no {extra[0]}")


def interpolate(initial: State, tuned: State, alpha: float) -> dict[str, Tensor]:
    """WiSE-FT: `(1 − α)·θ₀ + α·θ₁` per tensor. Wortsman et al. 2022, section 3.

    α = 0 and α = 1 give copies of the two states, bit for bit. Between them, counters (integer
    tensors such as `num_batches_tracked`), which have no middle, are the fine-tuned model's.

    Args:
        alpha: in [0, 1].

    Returns:
        New tensors with the dtypes of `initial`.

    Raises:
        SpecError: α is outside [0, 1].
        ModelError: the states do not fit each other.
    """
    if not 0 <= alpha <= 1:
        raise SpecError(f"alpha must be in [0, 1], got {alpha}")
    check_alike(initial, tuned)
    if alpha in (0, 1):
        return {name: (tuned if alpha else initial)[name].detach().clone() for name in initial}
    return {
        name: torch.lerp(start.detach(), tuned[name].detach().to(start.dtype), alpha)
        if start.is_floating_point()
        else tuned[name].detach().clone()
        for name, start in initial.items()
    }


def model_stock(
    initial: State, tuned: Sequence[State]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Model Stock: how far to go from θ₀ to the mean of N fine-tuned weights, by their angle.

    Per tensor, with δᵢ = wᵢ − w₀ and cosθ the mean of their pairwise cosines::

        t = N·cosθ / (1 + (N − 1)·cosθ),    w = t·mean(wᵢ) + (1 − t)·w₀

    Jang et al. 2024, section 4. Equal changes give t = 1 and so their mean, orthogonal ones t = 0
    and so w₀.

    Beyond the paper, which assumes acute angles: a negative cosθ gives t = 0, so t stays in [0, 1]
    and w between the weights that it is made of; a tensor that no run changed stays as it is and
    has no t; where only some runs changed it, the cosine of a change and none counts as 0. Counters
    (integer tensors) are the largest of the runs'.

    Args:
        tuned: N ≥ 2 states of the same names and shapes.

    Returns:
        New tensors with the dtypes of `initial`, computed in float64, and t by name for each tensor
        that changed.

    Raises:
        SpecError: there are fewer than two states.
        ModelError: the states do not fit each other; the message names the tensor.
    """
    if len(tuned) < 2:
        raise SpecError(f"model_stock merges at least 2 runs, got {len(tuned)}")
    for state in tuned:
        check_alike(initial, state)
    merged: dict[str, Tensor] = {}
    ratios: dict[str, float] = {}
    for name, start in initial.items():
        ends = [state[name].detach() for state in tuned]
        if not start.is_floating_point():
            merged[name] = torch.stack(ends).amax(dim=0)
            continue
        # Not every accelerator has float64.
        origin = start.detach().cpu().double()
        deltas = torch.stack([end.cpu().double() for end in ends]) - origin
        ratio = _ratio(deltas.reshape(len(ends), -1))
        if ratio is None:
            merged[name] = start.detach().clone()
            continue
        ratios[name] = ratio
        merged[name] = (origin + ratio * deltas.mean(dim=0)).to(start)
    return merged, ratios


def _ratio(deltas: Tensor) -> float | None:
    """The share t for the changes (N, P) of one tensor; None where nothing changed."""
    n = len(deltas)
    # Scaled first: squares of very small changes would vanish.
    largest = deltas.abs().amax() if deltas.numel() else deltas.new_zeros(())
    if not largest > 0:
        return None
    scaled = deltas / largest
    norms = scaled.norm(dim=1, keepdim=True)
    units = torch.where(norms > 0, scaled / norms.clamp_min(1e-300), 0.0)
    gram = units @ units.T
    cosine = float(gram.sum() - gram.diagonal().sum()) / (n * (n - 1))
    if cosine <= 0:
        return 0.0
    return min(1.0, n * cosine / (1 + (n - 1) * cosine))
