"""The gradient of a whole batch's loss in the memory of a part of it.

A loss that compares the samples of a batch with each other is not the mean of its parts' losses:
cut in four, a contrastive loss has a quarter of the negatives. GradCache (Gao et al. 2021, section
3.2) takes two passes instead::

    1. every part through the towers without a graph; only embeddings are kept
    2. the whole batch's loss, and its gradient with respect to the embeddings
    3. every part through the towers again, with a graph, which takes that gradient further down

By the chain rule that is the gradient of the whole batch, at the price of a second forward pass.

Processes that share a batch do the same: each encodes its own rows, all of them see the embeddings
of all and take the whole loss, and each takes its own rows of the gradient further down. What the
loss asks of weights directly (the logit scale, a penalty on a projection, a head) would count once
for every process when gradients are added up, so each takes its share of the loss.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from calift_core.data.batch import Batch
from calift_core.methods.base import Embedded, Method


def backward_whole(
    method: Method,
    batch: Batch,
    parts: int,
    *,
    backward: Callable[[Tensor], None],
    autocast: Callable[[], AbstractContextManager[object]],
) -> dict[str, Tensor]:
    """Add the gradient of a batch's loss to what the method trains, part by part.

    With several ranks that is what one rank has to add: the gradient is the sum over ranks.

    Both passes of a part draw the same random numbers (dropout, patch dropout), and the generators
    are left as one pass leaves them. What is frozen (teachers, the initial tower) runs once, in
    parts too. A tower that normalises by the statistics of what it sees would see parts: that is
    for the caller to refuse.

    Args:
        batch: B samples, or this rank's share of them.
        parts: at most so many; the last one may be smaller.
        backward: called once, with this rank's share of the loss (all of it for one process);
            differentiates it, scaled perhaps.

    Returns:
        The terms of the whole batch, un-weighted.
    """
    # Neighbours share captions, so that a caption is encoded in one part, or two.
    order = batch.captions.cpu().argsort(stable=True)
    back = order.argsort().to(batch.images.device)
    rows = order.chunk(parts) if parts > 1 else (torch.arange(len(order)),)
    random = _Random(batch.images.device)
    states, encoded = [], []
    for part in rows:
        states.append(random.state())
        # One part alone keeps its graph, which saves the second pass.
        with torch.set_grad_enabled(parts == 1), autocast():
            encoded.append(method.encode(batch if parts == 1 else _take(batch, part)))
    ranks, total = batch.ranks, len(batch)

    def whole(kept: list[Tensor]) -> Tensor:
        mine = kept[0] if parts == 1 else torch.cat(kept)[back]
        return ranks.gather(mine.detach(), total).requires_grad_()

    images = whole([e.images for e in encoded])
    texts = None
    if encoded[0].texts is not None:
        texts = whole([e.pairs()[1] for e in encoded])
    with autocast():
        terms = method.terms_of(Embedded(images, texts), replace(batch.of_all(), parts=parts))
    loss = torch.stack([method.weights[name] * term for name, term in terms.items()]).sum()
    backward(loss / ranks.world)
    mine = slice(*ranks.bounds(total))

    def rest_of(leaf: Tensor | None) -> Tensor | None:
        return None if leaf is None or leaf.grad is None else leaf.grad[mine] * ranks.world

    below = (rest_of(images), rest_of(texts))
    if parts == 1:
        _continue_backward(encoded[0], below)
        return terms
    del encoded
    end = random.state()
    for part, state in zip(rows, states, strict=True):
        random.restore(state)
        with autocast():
            again = method.encode(_take(batch, part))
        at = part.to(batch.images.device)
        _continue_backward(again, tuple(None if g is None else g[at] for g in below))
    random.restore(end)
    return terms


def _continue_backward(embedded: Embedded, gradients: tuple[Tensor | None, ...]) -> None:
    """Take the gradients of embeddings further down; a frozen tower has no further."""
    pairs = zip((embedded.images, embedded.texts), gradients, strict=True)
    with_graph = [
        (output, gradient)
        for output, gradient in pairs
        if output is not None and gradient is not None and output.requires_grad
    ]
    if with_graph:
        outputs, grads = zip(*with_graph, strict=True)
        torch.autograd.backward(outputs, grads)


def _take(batch: Batch, rows: Tensor) -> Batch:
    """The samples of a batch at some positions (on the CPU)."""
    at = rows.to(batch.images.device)
    return replace(
        batch.own(),
        images=batch.images[at],
        labels=batch.labels[at],
        captions=batch.captions[rows],
        mixed_with=None if batch.mixed_with is None else batch.mixed_with[at],
    )


class _Random:
    """The generators that a forward pass on a device draws from."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def state(self) -> list[Tensor]:
        """The state of each generator."""
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        elif self.device.type == "mps":
            states.append(torch.mps.get_rng_state())
        return states

    def restore(self, states: list[Tensor]) -> None:
        """Put each generator back to a state."""
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)
        elif self.device.type == "mps":
            torch.mps.set_rng_state(states[1])
