"""LP: a linear head on the features of the frozen image tower."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from calift_core.data.batch import Batch
from calift_core.methods.base import Embedded, Features, Setup
from calift_core.methods.frozen import encoded_once
from calift_core.methods.supervised import Head, Supervised
from calift_core.schema.methods import LinearProbe as LinearProbeSpec
from calift_core.schema.records import MetricsRecord, Record


class LinearProbe(Supervised):
    """L = CE(head(I), y) with I from the frozen tower.

    Radford et al. 2021, section 3.2. `adamw` trains the head in the common loop, on features that
    are encoded once, without augmentation. `lbfgs` solves logistic regression to its optimum for
    each penalty strength and keeps the one with the lowest NLL on the ID validation split.

    Differs from the reference code: the strength is never chosen on the test split.
    """

    def __init__(self, setup: Setup[LinearProbeSpec]) -> None:
        super().__init__(setup, zeros=setup.spec.head_start == "zeros")
        self.spec = setup.spec
        self.chosen: float | None = None

    def trainable(self) -> dict[str, nn.Module]:
        """The head alone."""
        return {"head": self.head}

    def encode(self, batch: Batch) -> Embedded:
        """The features (B, D) that the batch holds, or images through the frozen tower."""
        return encoded_once(self.clip, batch)

    def terms_of(self, embedded: Embedded, batch: Batch) -> dict[str, Tensor]:
        """The loss of the head's logits."""
        features = embedded.images
        return self.loss.terms(self.head(features), batch, initial_features=features)

    def prepare(self, features: Features) -> Iterator[Record]:
        """With `lbfgs`, all of the work: one point of the curves for each strength."""
        if self.spec.solver != "lbfgs":
            return
        x, y = features("train")
        x_val, y_val = features("validation")
        start = {name: p.detach().clone() for name, p in self.head.state_dict().items()}
        best, best_nll = start, float("inf")
        for step, strength in enumerate(sorted(self.spec.strengths), start=1):
            self.head.load_state_dict(start)
            loss = fit_logistic(self.head, x, y, strength, max_iterations=self.spec.max_iterations)
            with torch.no_grad():
                logits = self.head(x_val)
                nll = float(F.cross_entropy(logits, y_val))
                accuracy = float((logits.argmax(dim=1) == y_val).double().mean())
            if nll < best_nll:
                best, best_nll, self.chosen = dict(self.head.state_dict()), nll, strength
                best = {name: p.clone() for name, p in best.items()}
            values = {"cross_entropy": loss, "strength": strength}
            values |= {"val_nll": nll, "val_accuracy": accuracy}
            yield MetricsRecord(step=step, epoch=0.0, values=values)
        self.head.load_state_dict(best)

    def resolved(self) -> dict[str, object]:
        """The strength that the validation split chose."""
        if self.spec.solver != "lbfgs":
            return {}
        return {"strength": self.chosen, "selected_on": "id_val"}


def fit_logistic(
    head: Head, features: Tensor, labels: Tensor, strength: float, *, max_iterations: int
) -> float:
    """Multinomial logistic regression to its optimum by L-BFGS, in float64.

    Minimises `mean CE + ‖W‖²_F / (2·C·N)`: scikit-learn's objective divided by C·N. The bias is
    not penalised.

    Args:
        head: without a learned scale; receives the optimum.
        features: (N, D).
        labels: (N,).

    Returns:
        The mean cross-entropy at the optimum.
    """
    x = features.double()
    weight = head.weight.detach().double().requires_grad_(True)
    assert head.bias is not None
    bias = head.bias.detach().double().requires_grad_(True)
    penalty = 1 / (2 * strength * len(x))
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, labels) + penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        return float(F.cross_entropy(x @ weight.T + bias, labels))
