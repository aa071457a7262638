"""A ladder of learning rates: how far it is climbed, and which of its rates is chosen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from calift_core.errors import CaliftError


@dataclass(frozen=True)
class LadderRun:
    """What the run at a rate gave. `score` is None where it diverged."""

    score: float | None


@dataclass(frozen=True)
class LadderState:
    """How far a ladder is climbed.

    Attributes:
        reached: rates, from the lowest, that have run or are to run now.
        over: nothing above them is needed, and all of them have run.
    """

    reached: int
    over: bool


@dataclass(frozen=True)
class ChosenRate:
    """A chosen rate. `at_edge` says that a better one may lie beyond what was tried."""

    lr: float
    at_edge: Literal["", "lower", "upper"]


def climb_ladder(
    rates: Sequence[float], rung: Callable[[float], LadderRun | None], *, at_once: int = 1
) -> LadderState:
    """Climb from the lowest rate until the score has fallen.

    Args:
        rates: ascending, every one that may be tried.
        rung: what the run at a rate gave, higher being better; None while it has not ended.
        at_once: so many rates run in any case, together; those above one by one, while the highest
            is the best. A run that diverged has fallen.
    """
    best = float("-inf")
    reached = min(max(1, at_once), len(rates))
    for index, rate in enumerate(rates):
        if index == reached:
            reached += 1
        found = rung(rate)
        if found is None:
            return LadderState(reached, over=False)
        fell = found.score is None or found.score < best
        best = max(best, best if found.score is None else found.score)
        if fell and index + 1 >= reached:
            return LadderState(index + 1, over=True)
    return LadderState(len(rates), over=True)


def choose(
    scores: Mapping[float, float | None], rates: Sequence[float], *, highest: bool = True
) -> ChosenRate:
    """The rate with the best score; of equal ones the lower.

    Args:
        scores: rate → score, None where the run diverged.
        rates: every rate that could have been tried, ascending.

    Raises:
        CaliftError: every run diverged.
    """
    sign = -1 if highest else 1
    good = {lr: sign * score for lr, score in scores.items() if score is not None}
    if not good:
        raise CaliftError(
            f"every run of the grid diverged: {', '.join(f'{lr:g}' for lr in scores)}"
        )
    lr = min(sorted(good), key=lambda rate: good[rate])
    return ChosenRate(lr, "lower" if lr == rates[0] else "upper" if lr == rates[-1] else "")


def extended(ladder: Sequence[float], n: int) -> tuple[float, ...]:
    """A ladder with `n` more rates above it, by its last factor; none is above 1."""
    factor = ladder[-1] / ladder[-2] if len(ladder) > 1 else 3.0
    rates = list(ladder)
    for _ in range(n):
        rate = float(f"{rates[-1] * factor:.2g}")
        if rate > 1 or rate <= rates[-1]:
            break
        rates.append(rate)
    return tuple(rates)
