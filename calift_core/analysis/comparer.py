"""Runs side by side: paired differences, and which of them may be the best."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from calift_core.analysis.comparing import DECIDES, METRICS, Drawn, Shared, share
from calift_core.analysis.explorer import Explorer
from calift_core.analysis.library import Memory, Subject
from calift_core.calibration.compare import confidence_set_over
from calift_core.errors import CaliftError, NotFoundError, PredictionsError, SpecError
from calift_core.schema.report import Role
from calift_core.schema.wire.answers import Board, Leaders
from calift_core.schema.wire.queries import CompareQuery, LeadersQuery
from calift_core.schema.wire.results import (
    ComparedRun,
    Comparison,
    ConfidenceSet,
    Evaluation,
    PairedDifference,
    SquaredErrors,
)
from calift_core.schema.wire.runs import RunSummary

#: Runs that are set side by side at most.
MOST_RUNS = 10
_Evaluations = Mapping[str, Evaluation]


class ComparedRuns(Protocol):
    """Where runs and their evaluations are: a store, or folders."""

    @property
    def memory(self) -> Memory:
        """What is kept of predictions."""

    def summaries(self, run_ids: Sequence[str]) -> list[RunSummary]:
        """The runs, in this order.

        Raises:
            NotFoundError: a run does not exist.
        """

    def spec(self, run_id: str) -> Mapping[str, Any]:
        """What a run was asked for."""

    def evaluations(self, run_id: str) -> list[Evaluation]:
        """What a run was tested on."""

    def subject_of(self, evaluation: Evaluation) -> Subject:
        """The predictions of an evaluation.

        Raises:
            NotFoundError: they are not there.
        """


class Comparer:
    """Compares finished runs.

    What is found of two runs on one data set is kept beyond the process, by the digests of their
    predictions: it is made once.
    """

    def __init__(self, runs: ComparedRuns, explorer: Explorer) -> None:
        self._runs, self._explorer, self._memory = runs, explorer, runs.memory

    def compare(self, query: CompareQuery) -> Comparison:
        """Put runs side by side; differences are paired on the samples that both saw.

        Raises:
            SpecError: fewer than 2 distinct runs, or a baseline not among them.
            NotFoundError: a run does not exist.
        """
        ids, baseline = _distinct(query.run_id), query.baseline
        reference = baseline or ids[0]
        if reference not in ids:
            raise SpecError(f"the baseline must be one of the compared runs, got {reference!r}")
        runs = self._runs.summaries(ids)
        specs = [self._runs.spec(run_id) for run_id in ids]
        evaluations = {run_id: self._runs.evaluations(run_id) for run_id in ids}
        warnings = _warnings(runs, evaluations)
        differences: dict[str, list[PairedDifference]] = {run_id: [] for run_id in ids}
        sets: list[ConfidenceSet] = []
        if query.paired:
            by_set = _by_dataset(evaluations)
            for name in query.dataset or by_set:
                found = _ComparedSet(self, by_set.get(name, {}))
                for run in runs:
                    differences[run.id] += found.differences(run, reference, warnings)
                if len(found.evaluations) == len(ids):
                    sets += found.confidence_sets()
        return Comparison(
            baseline=reference,
            runs=[
                ComparedRun(
                    run=run,
                    evaluations=evaluations[run.id],
                    sigma_min=run.summary.sigma_min if run.summary else None,
                    differences=differences[run.id],
                )
                for run in runs
            ],
            parameters=differing(specs),
            confidence_sets=sets,
            warnings=warnings,
        )

    def leaders(self, query: LeadersQuery) -> Leaders:
        """Who may be the best over all ID data, shifts and corruptions that runs share.

        Raises:
            SpecError: fewer than 2 distinct runs.
            NotFoundError: a run does not exist.
        """
        ids = _distinct(query.run_id)
        evaluations = {run_id: self._runs.evaluations(run_id) for run_id in ids}
        runs = self._runs.summaries(ids)
        shared = {
            name: found
            for name, found in _by_dataset(evaluations).items()
            if len(found) == len(ids)
        }
        boards = []
        for role in ("id", "shift", "corruption"):
            of_role = {n: e for n, e in shared.items() if next(iter(e.values())).role == role}
            boards += self._boards(role, of_role) if of_role else []
        return Leaders(runs=ids, boards=boards, warnings=_warnings(runs, evaluations))

    def _boards(self, role: Role, sets: Mapping[str, _Evaluations]) -> list[Board]:
        key = ("standings", *((name, _key(found)) for name, found in sorted(sets.items())))

        def make() -> list[dict[str, Any]]:
            try:
                drawn = [_ComparedSet(self, found).drawn() for found in sets.values()]
            except CaliftError:
                return []  # the differences' warnings say why
            return [self._board(role, metric, sets, drawn) for metric in METRICS]

        return [Board.model_validate(board) for board in self.kept(key, make)]

    def _board(
        self, role: Role, metric: str, sets: Mapping[str, _Evaluations], drawn: Sequence[Drawn]
    ) -> dict[str, Any]:
        decided = DECIDES.get(metric, metric)
        found = confidence_set_over(drawn, decided)

        def standing(run_id: str) -> dict[str, Any]:
            own = [e[run_id] for e in sets.values()]
            shown, floor = found.values[run_id], None
            if metric == "ece":
                shown = float(np.mean([e.ece.value for e in own]))
                floor = float(np.mean([e.ece.null_mean for e in own]))
            return {
                "run_id": run_id,
                "value": shown,
                "decided": found.values[run_id],
                "floor": floor,
                "leads": run_id in found.members,
                "p_value": found.p_values[run_id],
                "reach": found.reach[run_id],
            }

        return {
            "role": role,
            "metric": metric,
            "datasets": list(sets),
            "n": found.n,
            "n_resamples": found.n_resamples,
            "level": found.level,
            "standings": [standing(run_id) for run_id in (*found.members, *found.excluded)],
        }

    def kept(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """A plain value that is kept in this process and beyond it."""
        return self._memory.remember("answers", key, make)

    def shared(self, evaluations: _Evaluations) -> Shared:
        """Runs on the samples of one data set that all of them saw."""
        subjects = {run_id: self._runs.subject_of(e) for run_id, e in evaluations.items()}
        files = {run_id: subject.open() for run_id, subject in subjects.items()}
        return share(
            files, lambda run_id: self._explorer.scored(files[run_id], subjects[run_id].temperature)
        )

    def remember_drawn(self, evaluations: _Evaluations, made: Shared) -> Drawn:
        """What boards need of a data set; its draws are made once for boards and pairs."""
        return self._memory.remember(
            "scores", ("drawn", _key(evaluations)), lambda: Drawn.from_together(made.together)
        )

    def known_drawn(self, evaluations: _Evaluations) -> Drawn | None:
        """The same, where it is at hand."""
        found: Drawn | None = self._memory.get("scores", ("drawn", _key(evaluations)))
        return found


class _ComparedSet:
    """One data set and the runs that were tested on it; predictions are opened when needed."""

    def __init__(self, comparer: Comparer, evaluations: _Evaluations) -> None:
        self._comparer = comparer
        # By id: the same runs in another order are the same question.
        self.evaluations = dict(sorted(evaluations.items()))
        self._shared: Shared | None = None

    def _all(self) -> Shared:
        if self._shared is None:
            self._shared = self._comparer.shared(self.evaluations)
        return self._shared

    def drawn(self) -> Drawn:
        known = self._comparer.known_drawn(self.evaluations)
        return known or self._comparer.remember_drawn(self.evaluations, self._all())

    def differences(
        self, run: RunSummary, reference: str, warnings: list[str]
    ) -> list[PairedDifference]:
        own, base = self.evaluations.get(run.id), self.evaluations.get(reference)
        if own is None or base is None or run.id == reference:
            return []
        # The difference of two runs has one sign or the other, and is made once.
        ordered = sorted((own, base), key=lambda e: (_digest(e), e.run_id))
        key = ("pair", *((_digest(e), e.temperature) for e in ordered))
        try:
            found = self._comparer.kept(key, lambda: self._pair(*(e.run_id for e in ordered)))
        except (NotFoundError, PredictionsError) as error:
            warnings.append(f"{run.name}, {own.dataset}: no paired difference, {error.message}")
            return []
        except CaliftError as error:
            warnings.append(f"{run.name}, {own.dataset}: {error.message}")
            return []
        if found["n"] < max(own.n, base.n):
            warnings.append(
                f"{run.name}, {own.dataset}: paired on the {found['n']} samples that both runs saw "
                f"(of {own.n} and {base.n})"
            )
        turn = ordered[0].run_id != run.id
        return [
            PairedDifference(
                dataset=own.dataset, role=own.role, n=found["n"], **(_turned(row) if turn else row)
            )
            for row in found["rows"]
        ]

    def _pair(self, run: str, base: str) -> dict[str, Any]:
        """Of two runs, with the draws of all runs where they saw the same samples."""
        with contextlib.suppress(CaliftError):
            every = self._all()
            if every.complete:
                return every.pair(run, base)
        two = {run_id: self.evaluations[run_id] for run_id in (run, base)}
        return self._comparer.shared(two).pair(run, base)

    def confidence_sets(self) -> list[ConfidenceSet]:
        """Which run may be the best here, by each metric."""
        e = next(iter(self.evaluations.values()))
        try:
            found = self._comparer.kept(("sets", _key(self.evaluations)), self._sets)
        except CaliftError:
            return []  # the differences' warnings have said why
        return [ConfidenceSet(dataset=e.dataset, role=e.role, **one) for one in found]

    def _sets(self) -> list[dict[str, Any]]:
        drawn = self.drawn()
        found = []
        for metric in METRICS:
            one = confidence_set_over([drawn], DECIDES.get(metric, metric))
            found.append(
                {
                    "metric": metric,
                    "n": one.n,
                    "n_resamples": one.n_resamples,
                    "level": one.level,
                    "members": list(one.members),
                    "excluded": list(one.excluded),
                    "p_values": one.p_values,
                }
            )
        return found


def _distinct(run_ids: Sequence[str]) -> list[str]:
    ids = list(dict.fromkeys(run_ids))
    if not 2 <= len(ids) <= MOST_RUNS:
        raise SpecError(f"a comparison takes 2 to {MOST_RUNS} different runs, got {len(ids)}")
    return ids


def _by_dataset(
    evaluations: Mapping[str, Sequence[Evaluation]],
) -> dict[str, dict[str, Evaluation]]:
    """Data set → run → evaluation, in the order in which the runs were tested."""
    found: dict[str, dict[str, Evaluation]] = {}
    for run_id, own in evaluations.items():
        for e in own:
            found.setdefault(e.dataset, {})[run_id] = e
    return found


def _digest(evaluation: Evaluation) -> str:
    """What stands for an evaluation's predictions; its id, which names one for ever, as well."""
    return evaluation.predictions_sha256 or evaluation.id


def _key(evaluations: _Evaluations) -> tuple[Any, ...]:
    return tuple((r, _digest(e), e.temperature) for r, e in sorted(evaluations.items()))


def _turned(row: Mapping[str, Any]) -> dict[str, Any]:

    def other_way(found: Mapping[str, Any]) -> dict[str, Any]:
        interval = found["interval"]
        return {
            "baseline": found["value"],
            "value": found["baseline"],
            "difference": -found["difference"],
            "interval": interval and (-interval[1], -interval[0]),
        }

    squared = row.get("squared")
    return {
        **row,
        **other_way(row),
        "squared": squared and SquaredErrors.model_validate(other_way(squared)),
    }


def differing(specs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Where specs differ: JSON pointer → one value per spec, null where a spec has none.

    Names, tags and notes are not parameters.
    """
    flat = [dict(_leaves(spec, ())) for spec in specs]
    places = dict.fromkeys(place for one in flat for place in one)
    found = {}
    for place in places:
        values = [one.get(place) for one in flat]
        if place[0] not in ("name", "tags", "notes") and any(v != values[0] for v in values):
            found[_pointer(place)] = values
    return dict(sorted(found.items()))


def _pointer(place: Sequence[str]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in place)


def _leaves(value: Any, place: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and value:
        return [leaf for key in value for leaf in _leaves(value[key], (*place, str(key)))]
    return [(place, value)] if place else []


def _warnings(
    runs: Sequence[RunSummary], evaluations: Mapping[str, Sequence[Evaluation]]
) -> list[str]:
    warnings = []
    for run in runs:
        if run.phase != "SUCCEEDED":
            warnings.append(f"{run.name} is {run.phase}; its numbers may be partial.")
    for what, values in (
        ("data", {run.suite for run in runs}),
        ("models", {run.model for run in runs}),
    ):
        if len(values) > 1:
            warnings.append(f"The runs use different {what}: {', '.join(sorted(values))}.")
    everywhere = [{e.dataset for e in evaluations[run.id]} for run in runs]
    union: set[str] = set().union(*everywhere)
    partial = sorted(union.difference(everywhere[0].intersection(*everywhere)))
    if partial:
        shown = ", ".join(partial[:8]) + (" …" if len(partial) > 8 else "")
        warnings.append(f"Not every run was evaluated on {shown}.")
    return warnings
