"""What a sweep is to run, from what has finished: a pure function, and nothing is remembered.

Runs are known by keys that follow from the spec alone. Whoever asks again, after whatever
interruption, gets the same keys; a key that is known is never asked for again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from calift_core.sweeps.arms import Arm, Arms
from calift_core.sweeps.ladder import ChosenRate, LadderRun, choose, climb_ladder

Role = Literal["selection", "evaluation"]


@dataclass(frozen=True)
class Outcome:
    """Where a run of a sweep is.

    Attributes:
        state: `open` until it ends; `diverged` where its loss was not finite; `failed` for every
            other end without a result, a cancel included.
        score: accuracy on the ID validation split, of a run that is done.
    """

    state: Literal["open", "done", "diverged", "failed"]
    score: float | None = None


@dataclass(frozen=True)
class PlannedRun:
    """A run of the plan.

    Attributes:
        key: names it among the runs of its sweep.
        role: whether it chooses a rate or is evaluated.
        lr: its rate; None: as base and method say.
        after: keys of the runs that it is made from.
    """

    key: str
    arm: int
    role: Role
    seed: int
    lr: float | None
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepPlan:
    """All that is known of a sweep's runs.

    Attributes:
        slots: runs whose settings are known, in the order of the protocol.
        rates: arm → the rate that was chosen for it.
        lost: arm → why it has no evaluated runs.
        to_come: arm, role and how many runs of it are certain to follow and cannot be named yet.
        stuck: nothing is open or ready, and something failed.
    """

    slots: tuple[PlannedRun, ...]
    ready: tuple[PlannedRun, ...]
    rates: Mapping[int, ChosenRate]
    lost: Mapping[int, str]
    to_come: tuple[tuple[int, Role, int], ...]
    over: bool
    stuck: bool

    def evaluated(self, arm: int) -> Iterator[PlannedRun]:
        """The evaluated runs of an arm at its own rate, none while that is not chosen."""
        own = self.rates.get(arm)
        rate = None if own is None else own.lr
        for slot in self.slots:
            if slot.arm == arm and slot.role == "evaluation" and slot.lr == rate:
                yield slot


def key_of(arm: int, role: Role, lr: float | None, seed: int) -> str:
    """`3.evaluation.0.001.2`: arm, role, rate and seed."""
    return f"{arm}.{role}.{'own' if lr is None else format(lr, 'g')}.{seed}"


def make_plan(arms: Arms, known: Mapping[str, Outcome]) -> SweepPlan:
    """What is to run.

    Args:
        known: key → outcome, of every run that was queued.
    """
    slots: list[PlannedRun] = []
    rates: dict[int, ChosenRate] = {}
    lost: dict[int, str] = {}
    to_come: list[tuple[int, Role, int]] = []
    reached: dict[int, tuple[float, ...]] = {}
    for arm in arms:
        if arm.rates:
            reached[arm.index] = _add_selection_runs(arms, arm, known, slots, rates, lost)
    for arm in arms:
        if arm.rate_of is not None:
            if arm.rate_of in rates:
                rates[arm.index] = rates[arm.rate_of]
            elif arm.rate_of in lost:
                lost[arm.index] = f"the method whose rate it takes: {lost[arm.rate_of]}"
    every = arms.spec.rate is not None and arms.spec.rate.every_seed
    for arm in arms:
        chooses = bool(arm.rates) or (arm.rate_of is not None and bool(arms[arm.rate_of].rates))
        n_evaluated = len(arms.seeds_of(arm))
        if arm.merges is not None and arm.merges in lost:
            lost[arm.index] = f"the runs that it is made from: {lost[arm.merges]}"
        if arm.index in lost:
            continue
        if arm.rates and every:
            tried = reached[arm.index]
        elif chooses and arm.index not in rates:
            to_come.append((arm.index, "evaluation", n_evaluated))
            continue
        else:
            tried = (rates[arm.index].lr,) if chooses else (None,)  # type: ignore[assignment]
        merged = arm.merges
        if merged is not None and arms[merged].rates and merged not in rates:
            to_come.append((arm.index, "evaluation", n_evaluated))
            continue
        for lr in tried:
            for seed in arms.seeds_of(arm):
                slots.append(_evaluation_run(arms, arm, lr, seed, rates))
    return _finish(slots, known, rates, lost, to_come)


def _add_selection_runs(
    arms: Arms,
    arm: Arm,
    known: Mapping[str, Outcome],
    slots: list[PlannedRun],
    rates: dict[int, ChosenRate],
    lost: dict[int, str],
) -> tuple[float, ...]:
    """Add the selection runs of an arm and, once they have ended, its rate; the rates tried."""
    assert arms.spec.rate is not None
    seed = arms.spec.rate.seed

    def rung(lr: float) -> LadderRun | None:
        found = known.get(key_of(arm.index, "selection", lr, seed))
        if found is None or found.state in ("open", "failed"):
            return None
        return LadderRun(found.score if found.state == "done" else None)

    climbed = climb_ladder(arm.rates, rung, at_once=arm.at_once)
    tried = arm.rates[: climbed.reached]
    slots += [
        PlannedRun(key_of(arm.index, "selection", lr, seed), arm.index, "selection", seed, lr)
        for lr in tried
    ]
    if climbed.over:
        scores = {lr: found.score for lr in tried if (found := rung(lr)) is not None}
        if all(score is None for score in scores.values()):
            lost[arm.index] = "its loss was not finite at any rate"
        else:
            rates[arm.index] = choose(scores, arm.rates)
    return tried


def _evaluation_run(
    arms: Arms, arm: Arm, lr: float | None, seed: int, rates: Mapping[int, ChosenRate]
) -> PlannedRun:
    after: tuple[str, ...] = ()
    if arm.merges is not None:
        tuned = rates.get(arm.merges)
        after = tuple(
            key_of(arm.merges, "evaluation", None if tuned is None else tuned.lr, s)
            for s in arm.inputs_of(seed, arms.seeds)
        )
    return PlannedRun(
        key_of(arm.index, "evaluation", lr, seed), arm.index, "evaluation", seed, lr, after
    )


def _finish(
    slots: list[PlannedRun],
    known: Mapping[str, Outcome],
    rates: dict[int, ChosenRate],
    lost: dict[int, str],
    to_come: list[tuple[int, Role, int]],
) -> SweepPlan:
    def done(key: str) -> bool:
        return key in known and known[key].state == "done"

    ready = tuple(s for s in slots if s.key not in known and all(map(done, s.after)))
    states = {known[s.key].state if s.key in known else "missing" for s in slots}
    waits = any(s.key not in known for s in slots)
    # A merge of a run that diverged cannot be made, and holds nothing up.
    dead = all(
        any(known[a].state == "diverged" for a in s.after if a in known)
        for s in slots
        if s.key not in known
    )
    over = not to_come and "open" not in states and "failed" not in states and (not waits or dead)
    stuck = not over and not ready and "open" not in states
    return SweepPlan(tuple(slots), ready, rates, lost, tuple(to_come), over, stuck)
