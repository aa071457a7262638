"""Sweeps: what one would cost, how one goes on, and where it is.

Everything that a sweep remembers is its spec and its runs: what is to be queued next is asked of
`calift_core.sweeps.plan` each time. Any API process may die at any moment and any other may
go on; see `backend.store.sweeps` for why nothing is queued twice.

Long, because a dry run, the next step and the state of a sweep are three readings of one plan.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from statistics import median
from typing import Any, Literal, Unpack

from pydantic import ValidationError

from backend.services.submission import Submission, check_text, scan_budget
from backend.settings import Settings
from backend.store.errors import ConflictError
from backend.store.stores import Stores
from backend.store.submitting import JobRequest
from backend.store.sweeps import PAUSED_WITH_SWEEP, StoredSweep, SweepRun
from calift_core.data.counting import SuiteCounts, count_suite
from calift_core.data.workload import Pace, Workload
from calift_core.errors import CaliftError, SpecError
from calift_core.schema.spec import RunSpec
from calift_core.schema.sweep import SweepSpec, sweep_problems
from calift_core.schema.wire.runs import TERMINAL_PHASES
from calift_core.schema.wire.sweeps import (
    SweepArm,
    SweepCost,
    SweepDetail,
    SweepEstimate,
    SweepRate,
    SweepValidation,
)
from calift_core.sweeps.arms import PENDING, Arm, Arms, make_arms
from calift_core.sweeps.plan import Outcome, PlannedRun, SweepPlan, make_plan

_log = logging.getLogger(__name__)

#: How long a process has a sweep to itself, and how long until one is looked at again.
_HOLD_S, _AGAIN_S = 60.0, 2.0
#: Sweeps that are advanced before something else has its turn; the longest waiting come first.
_AT_A_TIME = 20


class Sweeping:
    """Begins, advances and steers sweeps.

    Args:
        settings: how many runs may wait, and where files go.
        submission: knows what a spec may ask for here.
    """

    def __init__(self, settings: Settings, store: Stores, submission: Submission) -> None:
        self._settings, self._store, self._submission = settings, store, submission

    # -- beginning ----------------------------------------------------------------------------

    def validate(self, data: Mapping[str, Any]) -> SweepValidation:
        """A dry run: faults, what is missing here, how many runs, hours and bytes it will take."""
        return self._look(data)[0]

    def begin(
        self,
        data: Mapping[str, Any],
        *,
        check_priority: Callable[[int], None],
        **request: Unpack[JobRequest],
    ) -> tuple[str, list[dict[str, str]]]:
        """Store a sweep; its id, or its faults. The housekeeper queues its runs.

        Args:
            check_priority: raises where its runs may not have this one.
            **request: who asks.

        Raises:
            IdempotencyError: the key came with another body before.
            HttpError: by `check_priority`.
        """
        sweeps = self._store.sweeps
        if earlier := sweeps.earlier_request(request):
            return earlier, []
        found, arms, estimate = self._look(data)
        if arms is None:
            return "", found.errors
        check_priority(arms.spec.priority)
        sweep_id = sweeps.create(
            arms.spec,
            methods=list(dict.fromkeys(arm.kind for arm in arms)),
            estimate=estimate,
            runs_at_most=arms.at_most,
            **request,
        )
        return sweep_id, []

    def _look(
        self, data: Mapping[str, Any]
    ) -> tuple[SweepValidation, Arms | None, list[float | None]]:
        """A dry run, and the arms with the seconds of a run of each where it is valid."""
        errors = check_text(data)
        if not errors:
            try:
                spec = SweepSpec.model_validate(dict(data))
                arms = make_arms(spec)
            except ValidationError as error:
                errors = sweep_problems(error)
            except SpecError as error:
                errors = [{"pointer": "#", "message": str(error)}]
        if errors:
            return SweepValidation(valid=False, errors=errors), None, []
        looked = _Looked(self._store)
        seconds = [self._look_at(arms, arm, looked) for arm in arms]
        if looked.errors:
            return SweepValidation(valid=False, errors=looked.unique(looked.errors)), None, []
        estimate = self._estimate(arms, seconds, looked)
        if spec.max_hours is not None and (estimate.hours or 0) > spec.max_hours:
            looked.warnings.append(
                f"The sweep takes about {estimate.hours:.1f} hours and pauses at "
                f"{spec.max_hours:g} (max_hours)."
            )
        found = SweepValidation(
            valid=True,
            missing=list(dict.fromkeys(looked.missing)),
            blocking=list(dict.fromkeys(looked.blocking)),
            warnings=list(dict.fromkeys(looked.warnings)),
            labels=[arm.label for arm in arms],
            estimate=estimate,
            spec=spec,
        )
        return found, arms, seconds

    def _look_at(self, arms: Arms, arm: Arm, looked: _Looked) -> float | None:
        """Find faults and what is missing for one arm; seconds of one of its runs."""
        seed = arms.seeds[0]
        pending = [f"{PENDING}-{n}" for n in range(len(arm.inputs_of(seed, arms.seeds)))]
        lr = arm.rates[0] if arm.rates else None
        spec = arm.spec(arms.spec.name, seed=seed, lr=lr, inputs=pending)
        errors, _ = self._submission.errors_of(spec.model_dump(mode="json"), prefix="#/base")
        if arm.merges is not None:  # its runs do not exist yet
            errors = [e for e in errors if not e["pointer"].startswith("#/base/method/run")]
        looked.errors += [{**e, "message": f"{arm.label}: {e['message']}"} for e in errors]
        if errors:
            return None
        found = self._submission.look(spec, "#/base", counts=looked.counts(spec), pace=looked.pace)
        looked.errors += [{**e, "message": f"{arm.label}: {e['message']}"} for e in found.errors]
        looked.missing += found.missing
        looked.blocking += found.blocking
        looked.warnings += [f"{arm.label}: {sentence}" for sentence in found.warnings]
        looked.basis = looked.basis or found.estimate.basis
        return found.estimate.seconds

    def _estimate(
        self, arms: Arms, seconds: Sequence[float | None], looked: _Looked
    ) -> SweepEstimate:
        disk, hours = 0, 0.0
        known_disk = known_hours = True
        for arm, one in zip(arms, seconds, strict=True):
            runs = arms.runs_at_most(arm)
            kept = looked.disk(_label_of(arm))
            known_disk, known_hours = (
                known_disk and kept is not None,
                known_hours and one is not None,
            )
            disk += runs * (kept or 0)
            hours += runs * (one or 0.0) / 3600
        if known_disk:
            free = shutil.disk_usage(_existing(self._settings)).free
            if disk > free:
                looked.warnings.append(
                    f"The runs would keep about {disk / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
                    "free where artifacts lie."
                )
        return SweepEstimate(
            arms=len(arms),
            runs_at_least=arms.at_least,
            runs_at_most=arms.at_most,
            hours=hours if known_hours else None,
            disk_bytes=disk if known_disk else None,
            basis=looked.basis,
        )

    # -- going on -----------------------------------------------------------------------------

    def advance_all(self) -> None:
        """Advance sweeps that are due, not too many: the housekeeper has more to do than this."""
        for _ in range(_AT_A_TIME):
            sweep_id = self._store.sweeps.hold_next(_HOLD_S)
            if sweep_id is None:
                return
            again = _AGAIN_S
            try:
                self.advance(sweep_id)
            except CaliftError as error:
                # What one sweep cannot do keeps no other waiting.
                _log.warning("sweep %s cannot go on for now: %s", sweep_id, error)
                again = 10 * _AGAIN_S
            finally:
                self._store.sweeps.release(sweep_id, again)

    def advance(self, sweep_id: str) -> None:
        """Do what a sweep needs now: queue what is ready, or end it. Repeatable at any moment."""
        sweep = self._store.sweeps.get(sweep_id)
        if sweep.phase == "CANCELLING":
            self._go_on_cancelling(sweep_id)
        elif sweep.phase == "RUNNING":
            self._go_on(sweep)

    def _go_on(self, sweep: StoredSweep) -> None:
        self._store.sweeps.put_back_in_line(sweep.id)
        runs = self._store.sweeps.runs(sweep.id)
        arms = _arms_of(sweep.spec)
        outcomes = {run.key: _outcome(run) for run in runs}
        plan = make_plan(arms, outcomes)
        if plan.over:
            message = _ended(arms, plan)
            self._store.sweeps.move(sweep.id, "SUCCEEDED", before=["RUNNING"], message=message)
            return
        if plan.stuck:
            failed = [run for run in runs if outcomes[run.key].state == "failed"]
            self._store.sweeps.move(
                sweep.id,
                "FAILED",
                before=["RUNNING"],
                reason="RUNS_FAILED",
                message=_failures(failed) or "a run that others need is gone; retry the sweep",
            )
            return
        self._queue(sweep, arms, plan, runs)

    def _queue(
        self, sweep: StoredSweep, arms: Arms, plan: SweepPlan, runs: Sequence[SweepRun]
    ) -> None:
        ids = {run.key: run.run_id for run in runs}
        costs = _Costs(arms, runs, sweep.estimate)
        planned = costs.spent_s + costs.open_s
        for slot in plan.ready:
            seconds = costs.seconds(slot.arm)
            if sweep.max_hours is not None and seconds is not None:
                planned += seconds
                if planned > 3600 * sweep.max_hours:
                    self._pause_at_cap(sweep, costs, planned)
                    return
            added = self._store.sweeps.add_run(
                sweep,
                slot.key,
                slot.role,
                _spec_of(arms, slot, ids),
                max_queued=self._settings.max_queued,
            )
            if added in ("full", "stopped"):
                return  # the rest is queued when some have started, or not at all

    def _pause_at_cap(self, sweep: StoredSweep, costs: _Costs, planned: float) -> None:
        message = (
            f"{costs.spent_s / 3600:.2g} hours are spent, and the next run would make it about "
            f"{planned / 3600:.2g} of {sweep.max_hours:g} that it may take; resume it with more"
        )
        # Runs that are queued were within the cap and stay in line.
        self._store.sweeps.move(
            sweep.id, "PAUSED", before=["RUNNING"], reason="HOURS_CAP", message=message
        )

    def _go_on_cancelling(self, sweep_id: str) -> None:
        still = 0
        for run in self._store.sweeps.runs(sweep_id):
            if run.phase not in TERMINAL_PHASES:
                ended = self._store.runs.request_cancel(run.run_id).phase in TERMINAL_PHASES
                still += not ended
        if not still:
            self._store.sweeps.move(
                sweep_id,
                "CANCELLED",
                before=["CANCELLING"],
                reason="USER_CANCELLED",
                message="cancelled on request",
            )

    # -- steering -----------------------------------------------------------------------------

    def cancel(self, sweep_id: str) -> None:
        """Cancel a sweep and every run of it that has not ended. Repeatable.

        Raises:
            NotFoundError: no such sweep.
        """
        moved = self._store.sweeps.move(
            sweep_id,
            "CANCELLING",
            before=["RUNNING", "PAUSED"],
            reason="USER_CANCELLED",
            message="waits for the runs that still work to save what they have",
        )
        if moved:
            self.advance(sweep_id)

    def pause(self, sweep_id: str) -> None:
        """Queue nothing more and take waiting runs out of line; those that work go on. Repeatable.

        Raises:
            NotFoundError: no such sweep.
            ConflictError: it has ended or is being cancelled.
        """
        self._store.sweeps.move(
            sweep_id, "PAUSED", before=["RUNNING"], reason="USER_PAUSED",
            message="paused on request; runs that were working go on",
        )  # fmt: skip
        self._must_be(sweep_id, "PAUSED", "paused")
        self._store.sweeps.take_out_of_line(sweep_id)

    def resume(self, sweep_id: str, *, max_hours: float | None = None) -> None:
        """Go on with a paused sweep. Repeatable.

        Raises:
            NotFoundError: no such sweep.
            ConflictError: it has ended or is being cancelled.
        """
        self._store.sweeps.move(sweep_id, "RUNNING", before=["PAUSED"], max_hours=max_hours)
        self._must_be(sweep_id, "RUNNING", "resumed")

    def retry(self, sweep_id: str) -> None:
        """Go on with a sweep that failed or was cancelled: its failed runs are queued again.

        While it works or pauses, the runs that failed so far are.

        Raises:
            NotFoundError: no such sweep.
            ConflictError: it succeeded or is being cancelled.
            QueueFullError: no more runs may wait; those before are queued.
        """
        self._store.sweeps.move(sweep_id, "RUNNING", before=["FAILED", "CANCELLED"])
        phase = self._store.sweeps.get(sweep_id).phase
        if phase not in ("RUNNING", "PAUSED"):
            raise _conflict(sweep_id, phase, "retried")
        for run in self._store.sweeps.runs(sweep_id):
            if _outcome(run).state == "failed":
                self._store.runs.retry(run.run_id, max_queued=self._settings.max_queued)

    def _must_be(self, sweep_id: str, phase: str, done: str) -> None:
        found = self._store.sweeps.get(sweep_id).phase
        if found != phase:
            raise _conflict(sweep_id, found, done)

    # -- looking ------------------------------------------------------------------------------

    def detail(self, sweep_id: str) -> SweepDetail:
        """A sweep with its contenders and its cost.

        Raises:
            NotFoundError: no such sweep.
        """
        summary = self._store.sweeps.summary(sweep_id)
        sweep = self._store.sweeps.get(sweep_id)
        arms, plan, runs = self.state(sweep)
        by_key = {run.key: run for run in runs}
        costs = _Costs(arms, runs, sweep.estimate)
        return SweepDetail(
            **summary.model_dump(),
            spec=sweep.spec,
            arms=[_arm_view(arms, arm, plan, by_key) for arm in arms],
            cost=costs.view(plan, by_key),
        )

    def state(self, sweep: StoredSweep) -> tuple[Arms, SweepPlan, list[SweepRun]]:
        """The contenders, the plan and the runs of a sweep as they are now."""
        arms = _arms_of(sweep.spec)
        runs = self._store.sweeps.runs(sweep.id)
        return arms, make_plan(arms, {run.key: _outcome(run) for run in runs}), runs


class _Looked:
    """What a dry run came across, each suite and model looked at once."""

    def __init__(self, store: Stores) -> None:
        self._store = store
        self.errors: list[dict[str, str]] = []
        self.missing: list[str] = []
        self.blocking: list[str] = []
        self.warnings: list[str] = []
        self.basis = ""
        self._counts: dict[str, SuiteCounts] = {}
        self._disk: dict[str, int | None] = {}
        self._pace: dict[tuple[Hashable, ...], Pace | None] = {}

    def counts(self, spec: RunSpec) -> SuiteCounts | None:
        """The images of a spec's suite; None where counting finds a fault, which is found again."""
        key = spec.suite.model_dump_json()
        if key not in self._counts:
            try:
                self._counts[key] = count_suite(spec.suite, scan_budget())
            except CaliftError:
                return None
        return self._counts[key]

    def disk(self, model: str) -> int | None:
        if model not in self._disk:
            self._disk[model] = self._store.results.disk_of(model)
        return self._disk[model]

    def pace(self, spec: RunSpec, work: Workload) -> Pace | None:
        """How fast runs like this one were; see `recorded_pace` for what makes them alike."""
        train = spec.train
        key = (
            spec.model.label, spec.method.kind, train.device, train.precision,
            train.confidence.model_dump_json(), train.adapt, work.trained, work.predicted,
        )  # fmt: skip
        if key not in self._pace:
            self._pace[key] = self._store.results.pace(spec, work)
        return self._pace[key]

    @staticmethod
    def unique(errors: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """Each fault once, in order."""
        return list({(e["pointer"], e["message"]): e for e in errors}.values())


class _Costs:
    """Seconds of a sweep's runs: as its own finished runs took, else as was estimated."""

    def __init__(
        self, arms: Arms, runs: Sequence[SweepRun], estimate: Sequence[float | None]
    ) -> None:
        self._estimate = estimate
        self._took: dict[int, list[float]] = {}
        for run in runs:
            if run.phase == "SUCCEEDED" and run.seconds is not None:
                self._took.setdefault(_arm_of(run.key), []).append(run.seconds)
        trained = [s for arm in arms if arm.rates for s in self._took.get(arm.index, [])]
        self._like_others = median(trained) if trained else None
        self._climbing = {arm.index for arm in arms if arm.rates or arm.rate_of is not None}
        ended = [run for run in runs if run.phase in TERMINAL_PHASES]
        open_ = [run for run in runs if run.phase not in TERMINAL_PHASES]
        self.spent_s = sum(run.seconds or 0.0 for run in [*ended, *open_])
        self.open_s = sum(
            max(0.0, (self.seconds(_arm_of(run.key)) or 0.0) - (run.seconds or 0.0))
            for run in open_
        )
        self._open = open_

    def seconds(self, arm: int) -> float | None:
        """Of a run of an arm; None where nothing is known."""
        if arm in self._took:
            return median(self._took[arm])
        known = self._estimate[arm] if arm < len(self._estimate) else None
        if known is None and arm in self._climbing:
            return self._like_others
        return known

    def view(self, plan: SweepPlan, runs: Mapping[str, SweepRun]) -> SweepCost:
        """Runs and hours, spent and to come."""
        missing = [slot.arm for slot in plan.slots if slot.key not in runs]
        missing += [arm for arm, _, n in plan.to_come for _ in range(n)]
        to_come = [self.seconds(arm) for arm in missing]
        unknown = None in to_come or any(
            self.seconds(_arm_of(run.key)) is None for run in self._open
        )
        rest = self.open_s + sum(s for s in to_come if s is not None)
        states = [_outcome(run).state for run in runs.values()]
        cancelled = sum(map(_is_cancelled, runs.values()))
        queued = sum(run.phase == "QUEUED" for run in runs.values())
        return SweepCost(
            runs_done=states.count("done"),
            runs_working=states.count("open") - queued,
            runs_queued=queued,
            runs_failed=states.count("failed") + states.count("diverged") - cancelled,
            runs_cancelled=cancelled,
            runs_to_come=len(missing),
            runs_planned=len(runs) + len(missing),
            hours_spent=self.spent_s / 3600,
            hours_to_come=None if unknown else rest / 3600,
        )


@lru_cache(maxsize=64)
def _arms_by_text(text: str) -> Arms:
    return make_arms(SweepSpec.model_validate_json(text))


def _arms_of(spec: SweepSpec) -> Arms:
    """The contenders of a stored sweep, which stay as they are."""
    return _arms_by_text(spec.model_dump_json())


def _arm_of(key: str) -> int:
    return int(key.partition(".")[0])


def _outcome(run: SweepRun) -> Outcome:
    if run.phase == "SUCCEEDED":
        return Outcome("done", run.val_accuracy)
    if run.phase not in TERMINAL_PHASES or run.reason == PAUSED_WITH_SWEEP:
        return Outcome("open")
    return Outcome("diverged" if run.reason == "NAN_LOSS" else "failed")


def _spec_of(arms: Arms, slot: PlannedRun, ids: Mapping[str, str]) -> RunSpec:
    arm = arms[slot.arm]
    inputs = [ids[key] for key in slot.after]
    return arm.spec(arms.spec.name, seed=slot.seed, lr=slot.lr, inputs=inputs)


def _label_of(arm: Arm) -> str:
    model = arm.body.get("model") or {}
    pending = RunSpec.model_validate(
        {"name": "x", "method": {"kind": "zero_shot"}, "model": dict(model)}
    )
    return pending.model.label


def _existing(settings: Settings) -> str:
    folder = settings.artifacts_dir
    while not folder.exists():
        folder = folder.parent
    return str(folder)


def _conflict(sweep_id: str, phase: str, done: str) -> ConflictError:
    hint = "Retry it instead." if phase in ("FAILED", "CANCELLED") else ""
    return ConflictError(f"sweep {sweep_id} is {phase} and cannot be {done}.", hint=hint)


def _ended(arms: Arms, plan: SweepPlan) -> str:
    lost = [f"{arms[i].label}: {why}" for i, why in plan.lost.items()]
    return f"ended without {'; '.join(lost)}" if lost else "every run has ended"


def _failures(failed: Sequence[SweepRun]) -> str:
    if not failed:
        return ""
    first = failed[0]
    why = first.message or first.reason or first.phase
    cancelled = sum(map(_is_cancelled, failed))
    ends = [(len(failed) - cancelled, "failed"), (cancelled, "cancelled")]
    runs = ", ".join(f"{n} run{'s' * (n > 1)} {word}" for n, word in ends if n)
    return f"{runs}; the first is {first.run_id}: {why}"


def _is_cancelled(run: SweepRun) -> bool:
    return run.phase == "CANCELLED" and run.reason != PAUSED_WITH_SWEEP


_RATE_STATES: dict[str, Literal["runs", "done", "diverged", "failed"]] = {
    "open": "runs",
    "done": "done",
    "diverged": "diverged",
    "failed": "failed",
}


def _arm_view(arms: Arms, arm: Arm, plan: SweepPlan, runs: Mapping[str, SweepRun]) -> SweepArm:
    chosen = plan.rates.get(arm.index)
    evaluated = list(plan.evaluated(arm.index))
    own = [runs[slot.key] for slot in evaluated if slot.key in runs]
    done = [run.run_id for run in own if run.phase == "SUCCEEDED"]
    broken = [run for run in own if _outcome(run).state in ("failed", "diverged")]
    trouble = plan.lost.get(arm.index, "")
    if not trouble and broken:
        trouble = _failures(broken)
    return SweepArm(
        label=arm.label,
        method=arm.kind,
        lr=None if chosen is None else chosen.lr,
        at_edge="" if chosen is None else chosen.at_edge,
        rate_of="" if arm.rate_of is None else arms[arm.rate_of].label,
        rates=[_rate_view(slot, runs) for slot in plan.slots
               if slot.arm == arm.index and slot.role == "selection"],
        n_seeds=len(arms.seeds_of(arm)),
        n_evaluated=len(done),
        run_ids=done,
        trouble=trouble,
    )  # fmt: skip


def _rate_view(slot: PlannedRun, runs: Mapping[str, SweepRun]) -> SweepRate:
    assert slot.lr is not None
    run = runs.get(slot.key)
    if run is None:
        return SweepRate(lr=slot.lr, state="waits")
    return SweepRate(
        lr=slot.lr,
        state=_RATE_STATES[_outcome(run).state],
        val_accuracy=run.val_accuracy,
        run_id=run.run_id,
    )
