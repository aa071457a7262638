"""How often labels are drawn behind a floor or an interval."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Draws:
    """How often outcomes are drawn for floors and intervals, and from which seed."""

    n_resamples: int = 200
    seed: int = 0


DEFAULT_DRAWS = Draws()
