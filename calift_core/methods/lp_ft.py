"""LP-FT: a linear probe first, then fine-tuning from its head."""

from collections.abc import Iterator

import torch

from calift_core.data.batch import Batch
from calift_core.methods.base import Features, Setup
from calift_core.methods.supervised import Supervised
from calift_core.schema.methods import LpFt as LpFtSpec
from calift_core.schema.records import LogRecord, Record

#: Samples in a step of the probe; it costs next to nothing.
PROBE_BATCH = 256


class LpFt(Supervised):
    """L = CE(head(I), y), the head first trained alone on the frozen tower's features.

    Kumar et al. 2022, section 3.4: a head that fits already spares the features the distortion of
    the first steps.

    Differs from the reference code: the probe starts from the zero-shot classifier unless told to
    start from zeros, and its learning rate is calift's.
    """

    def __init__(self, setup: Setup[LpFtSpec]) -> None:
        super().__init__(setup, zeros=setup.spec.head_start == "zeros")
        self.spec, self.seed = setup.spec, setup.length.seed

    def prepare(self, features: Features) -> Iterator[Record]:
        """The probe: `lp_epochs` of AdamW on the head, constant rate, no weight decay."""
        x, y = features("train")  # (N, D), (N,)
        optimizer = torch.optim.AdamW(self.head.parameters(), lr=self.spec.lp_lr, weight_decay=0.0)
        generator = torch.Generator().manual_seed(self.seed)
        losses: list[float] = []
        for _ in range(self.spec.lp_epochs):
            order = torch.randperm(len(x), generator=generator).to(x.device)
            total = 0.0
            for rows in torch.split(order, PROBE_BATCH):
                batch = Batch(x[rows], y[rows], y[rows])
                terms = self.loss.terms(self.head(x[rows]), batch, initial_features=x[rows])
                loss = torch.stack([self.weights[k] * v for k, v in terms.items()]).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
                total += float(loss.detach()) * len(rows)
            losses.append(total / len(x))
        yield LogRecord(
            message=f"Linear probe: {self.spec.lp_epochs} epochs on {len(x):,} cached features, "
            f"loss {losses[0]:.4f} in the first, {losses[-1]:.4f} in the last."
        )
