"""How far a pass over the data is."""

import time

from calift_core.schema.records import ProgressRecord

#: Seconds between two signs of life within a data set.
SAY_EVERY_S = 2.0


class EvaluationProgress:
    """How far an evaluation is; what an earlier attempt did does not count as fast."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.done_here = total, 0, 0
        self.began = self.reported = time.monotonic()

    def skip(self, n: int) -> None:
        """Count images that were predicted before."""
        self.done += n

    def add(self, n: int) -> None:
        """Count images that were predicted now."""
        self.done += n
        self.done_here += n

    def is_due(self) -> bool:
        """Whether nothing has been said for a while."""
        return time.monotonic() - self.reported > SAY_EVERY_S

    def record(self, detail: str) -> ProgressRecord:
        """How far it is; `samples_per_s` counts each model's images."""
        self.reported = time.monotonic()
        elapsed = self.reported - self.began
        speed = self.done_here / elapsed if self.done_here and elapsed > 0 else None
        return ProgressRecord(
            phase="evaluating",
            step=self.done,
            total_steps=self.total,
            samples_per_s=speed,
            eta_s=None if speed is None else max(0, self.total - self.done) / speed,
            detail=detail,
        )
