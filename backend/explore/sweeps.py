"""The verdict of a sweep, from the stored predictions of its runs."""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from backend.explore.library import StoreLibrary
from backend.services.sweeps import Sweeping
from backend.store.stores import Stores
from calift_core.analysis.explorer import Explorer
from calift_core.calibration import SampleScores
from calift_core.errors import NotFoundError
from calift_core.schema.wire.results import Evaluation
from calift_core.schema.wire.sweeps import SWEEP_ENDS, LeftOut, SweepVerdict
from calift_core.sweeps.arms import Arm, Arms
from calift_core.sweeps.plan import SweepPlan
from calift_core.sweeps.verdict import Contender, ScoredRun, ScoredSet, compare_contenders


class SweepComparison:
    """Judges sweeps whose runs are stored."""

    def __init__(
        self, store: Stores, library: StoreLibrary, explorer: Explorer, sweeping: Sweeping
    ) -> None:
        self._store, self._library, self._explorer = store, library, explorer
        self._sweeping = sweeping

    def verdict(self, sweep_id: str) -> SweepVerdict:
        """What a sweep says so far.

        Raises:
            NotFoundError: no such sweep, or no method has all of its evaluation runs yet.
            UnpairedError: its runs were judged on different images.
        """
        sweep = self._store.sweeps.get(sweep_id)
        arms, plan, runs = self._sweeping.state(sweep)
        done = {run.key: run.run_id for run in runs if run.phase == "SUCCEEDED"}
        complete = sweep.phase in SWEEP_ENDS
        # A finished run's predictions never change.
        key = ("verdict", sweep_id, complete, sweep.spec.name, *sorted(done.items()))
        found: SweepVerdict = self._library.memory.remember(
            "numbers", key, lambda: self._make(sweep_id, arms, plan, done, complete), long=True
        )
        return found

    def _make(
        self, sweep_id: str, arms: Arms, plan: SweepPlan, done: dict[str, str], complete: bool
    ) -> SweepVerdict:
        contenders, left_out = [], []
        for arm in arms:
            slots = list(plan.evaluated(arm.index))
            missing = [s for s in slots if s.key not in done]
            if not slots or missing:
                left_out.append(LeftOut(label=arm.label, why=_why(arm, plan, len(missing))))
                continue
            contenders.append(self._contender(arms, arm, plan, done))
        if not contenders:
            raise NotFoundError(
                f"sweep {sweep_id} has no verdict yet: no method has all of its evaluation runs.",
                hint="It comes with the first method whose seeds have all finished.",
            )
        return compare_contenders(
            contenders,
            sweep_id=sweep_id,
            name=arms.spec.name,
            seeds=arms.seeds,
            complete=complete,
            left_out=left_out,
        )

    def _contender(self, arms: Arms, arm: Arm, plan: SweepPlan, done: dict[str, str]) -> Contender:
        chosen = plan.rates.get(arm.index)
        every = arms.spec.rate is not None and arms.spec.rate.every_seed
        role = "evaluation" if every else "selection"
        ladder: dict[float, list[ScoredRun]] = {}
        for lr in arm.rates:
            slots = [s for s in plan.slots if s.arm == arm.index and s.role == role and s.lr == lr]
            if slots and all(s.key in done for s in slots):
                ladder[lr] = [self._run(done[s.key], s.seed) for s in slots]
        return Contender(
            label=arm.label,
            method=arm.kind,
            lr=None if chosen is None else chosen.lr,
            at_edge="" if chosen is None else chosen.at_edge,
            runs=[self._run(done[s.key], s.seed) for s in plan.evaluated(arm.index)],
            ladder=ladder,
        )

    def _run(self, run_id: str, seed: int) -> ScoredRun:
        evaluations = self._store.results.run_evaluations(run_id)
        return ScoredRun(run_id, seed, {e.dataset: self._set(e) for e in evaluations})

    def _set(self, evaluation: Evaluation) -> ScoredSet:
        return ScoredSet(
            dataset=evaluation.dataset,
            role=evaluation.role,
            ece=evaluation.ece.value,
            floor=evaluation.ece.null_mean,
            open=partial(self._open, evaluation),
        )

    def _open(self, evaluation: Evaluation) -> tuple[npt.NDArray[Any], SampleScores]:
        file = self._library.subject_of(evaluation).open()
        order = np.argsort(file.ids)
        units = file.ids if file.clusters is None else file.clusters
        return units[order], self._explorer.scored(file, evaluation.temperature).take(order)


def _why(arm: Arm, plan: SweepPlan, missing: int) -> str:
    if arm.index in plan.lost:
        return plan.lost[arm.index]
    if missing:
        return f"{missing} of its evaluation runs {'have' if missing > 1 else 'has'} not finished"
    return "its learning rate is not chosen yet"
