"""How much noise perturbed copies of a data set take, for a calibrator that is fitted on them."""

from collections.abc import Callable

import numpy as np

from calift_core.errors import SpecError


def perturbation_levels(
    accuracy_at: Callable[[float], float],
    *,
    n_classes: int,
    n_levels: int = 10,
    max_noise: float = 16.0,
    n_steps: int = 20,
) -> list[float]:
    """Solve for the noise levels at which accuracy falls in equal steps down to chance (TS-P).

    Args:
        accuracy_at: accuracy of the model when Gaussian noise of this standard deviation, in the
            unit of its inputs, is added; falls as the noise grows. Called about n_levels · n_steps
            times.
        n_classes: C, chance is 1/C.
        max_noise: largest standard deviation tried; a level whose accuracy is not reached by then
            stays there.

    Returns:
        n_levels standard deviations, rising from 0.
    """
    if n_levels < 2:
        raise SpecError(f"n_levels must be ≥ 2, got {n_levels}")
    targets = np.linspace(accuracy_at(0.0), 1 / n_classes, n_levels)[1:]
    levels, floor = [0.0], 0.0
    for target in targets:
        low, high = floor, max_noise
        for _ in range(n_steps):
            middle = (low + high) / 2
            if accuracy_at(middle) > target:
                low = middle
            else:
                high = middle
        floor = high
        levels.append(high)
    return levels
