"""Learning-rate schedule."""

import math

#: Warm-up when the spec leaves it open: the published 500 steps, or this share of a shorter run.
WARMUP_STEPS, WARMUP_SHARE = 500, 0.1


def default_warmup(total_steps: int) -> int:
    """500 steps, or a tenth of the run where that is fewer."""
    return min(WARMUP_STEPS, int(WARMUP_SHARE * total_steps))


def learning_rate(
    step: int, *, peak: float, total_steps: int, warmup_steps: int, floor: float = 0.0
) -> float:
    """Linear warm-up, then a half cosine from `peak` to `floor`.

    Args:
        step: optimiser step, from 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return floor + (peak - floor) * (1 + math.cos(math.pi * min(1.0, share))) / 2
