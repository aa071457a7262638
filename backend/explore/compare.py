"""Runs side by side: paired differences, and which of them may be the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from backend.explore.library import StoreLibrary
from backend.problems import pointer_of
from backend.store.stores import Stores
from calift_core import calibration
from calift_core.analysis.explorer import Explorer, resamples_for
from calift_core.analysis.library import PredictionsFile
from calift_core.calibration import SampleScores
from calift_core.calibration.compare import ConfidenceSet as FoundSet
from calift_core.errors import CaliftError, NotFoundError, PredictionsError, SpecError
from calift_core.predictions.read import shared_samples
from calift_core.schema.wire.results import (
    ComparedRun,
    Comparison,
    ConfidenceSet,
    Evaluation,
    PairedDifference,
    SquaredErrors,
)
from calift_core.schema.wire.runs import RunSummary

_METRICS = ("accuracy", "ece", "nll", "brier")
#: What a metric's differences are decided on, where that is not the metric itself.
_DECIDES = {"ece": "squared_ece"}


class Comparer:
    """Compares runs whose evaluations are stored."""

    def __init__(self, store: Stores, library: StoreLibrary, explorer: Explorer) -> None:
        self._store, self._library, self._explorer = store, library, explorer
        self._memory = library.memory

    def _file_of(self, evaluation: Evaluation) -> PredictionsFile:
        return self._library.subject_of(evaluation).open()

    def compare(self, run_ids: Sequence[str], baseline: str | None = None) -> Comparison:
        """Put runs side by side; differences are paired on the samples that both saw.

        Raises:
            SpecError: fewer than 2 or more than 10 distinct runs, or a baseline not among them.
            NotFoundError: a run does not exist.
        """
        ids = list(dict.fromkeys(run_ids))
        if not 2 <= len(ids) <= 10:
            raise SpecError(f"a comparison takes 2 to 10 different runs, got {len(ids)}")
        reference = baseline or ids[0]
        if reference not in ids:
            raise SpecError(f"the baseline must be one of the compared runs, got {reference!r}")
        runs = self._store.runs.summaries(ids)
        specs = [self._store.runs.get(run_id).spec for run_id in ids]
        evaluations = {run_id: self._store.results.run_evaluations(run_id) for run_id in ids}
        warnings = _warnings(runs, evaluations)
        base = {e.dataset: e for e in evaluations[reference]}
        compared = []
        for run in runs:
            differences: list[PairedDifference] = []
            if run.id != reference:
                for evaluation in evaluations[run.id]:
                    other = base.get(evaluation.dataset)
                    if other is not None:
                        differences += self._differences(run, evaluation, other, warnings)
            compared.append(
                ComparedRun(
                    run=run,
                    evaluations=evaluations[run.id],
                    sigma_min=run.summary.sigma_min if run.summary else None,
                    differences=differences,
                )
            )
        return Comparison(
            baseline=reference,
            runs=compared,
            parameters=differing(specs),
            confidence_sets=self._confidence_sets(evaluations),
            warnings=warnings,
        )

    def _differences(
        self, run: RunSummary, own: Evaluation, base: Evaluation, warnings: list[str]
    ) -> list[PairedDifference]:
        try:
            a, b = self._file_of(own), self._file_of(base)
            found: dict[str, Any] = self._memory.remember(
                "pairs",
                (a.digest, b.digest, own.temperature, base.temperature),
                lambda: self._pair(a, b, own.temperature, base.temperature),
            )
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
        return [
            PairedDifference(dataset=own.dataset, role=own.role, n=found["n"], **row)
            for row in found["rows"]
        ]

    def _pair(
        self, a: PredictionsFile, b: PredictionsFile, own: float, base: float
    ) -> dict[str, Any]:
        in_a, in_b = shared_samples(a, b)
        scores_a, scores_b = (
            self._explorer.scored(a, own).take(in_a),
            self._explorer.scored(b, base).take(in_b),
        )
        clusters = None if a.clusters is None else a.clusters[in_a]
        asked: dict[str, Any] = {"n_resamples": resamples_for(len(in_a)), "clusters": clusters}
        rows = []
        for metric in _METRICS:
            found = calibration.paired_difference(
                scores_a, scores_b, metric=_DECIDES.get(metric, metric), **asked
            )
            row: dict[str, Any] = {
                "metric": metric,
                "baseline": found.b,
                "value": found.a,
                "difference": found.difference,
                "interval": (found.low, found.high),
                "distinguishable": found.distinguishable,
            }
            if metric == "ece":
                value, baseline = (calibration.ece(s) for s in (scores_a, scores_b))
                squared = SquaredErrors.model_validate(
                    {k: row[k] for k in ("baseline", "value", "difference", "interval")}
                )
                row |= {"baseline": baseline, "value": value, "difference": value - baseline,
                        "interval": None, "squared": squared}  # fmt: skip
            rows.append(row)
        return {"n": len(in_a), "rows": rows}

    def _confidence_sets(
        self, evaluations: Mapping[str, Sequence[Evaluation]]
    ) -> list[ConfidenceSet]:
        """Which run may be the best, on the ID data and each shift that all were tested on."""
        by_run = {run_id: {e.dataset: e for e in found} for run_id, found in evaluations.items()}
        first = next(iter(evaluations.values()))
        found: list[ConfidenceSet] = []
        for e in first:
            if e.role != "corruption" and all(e.dataset in own for own in by_run.values()):
                same = {run_id: own[e.dataset] for run_id, own in by_run.items()}
                try:
                    found += self._confidence_sets_on(same)
                except CaliftError:
                    continue  # the differences' warnings have said why
        return found

    def _confidence_sets_on(self, evaluations: Mapping[str, Evaluation]) -> list[ConfidenceSet]:
        files = {run_id: self._file_of(e) for run_id, e in evaluations.items()}
        e = next(iter(evaluations.values()))

        def make() -> dict[str, FoundSet]:
            scores, clusters = self._aligned(files, evaluations)
            n = len(next(iter(scores.values())))
            return {
                metric: calibration.model_confidence_set(
                    scores,
                    metric=_DECIDES.get(metric, metric),
                    clusters=clusters,
                    n_resamples=resamples_for(n),
                )
                for metric in _METRICS
            }

        key = tuple((r, files[r].digest, evaluations[r].temperature) for r in sorted(files))
        sets: dict[str, FoundSet] = self._memory.remember("pairs", key, make)
        return [
            ConfidenceSet(
                dataset=e.dataset,
                role=e.role,
                metric=metric,
                n=found.n,
                level=found.level,
                members=list(found.members),
                excluded=list(found.excluded),
                p_values=found.p_values,
            )
            for metric, found in sets.items()
        ]

    def _aligned(
        self, files: Mapping[str, PredictionsFile], evaluations: Mapping[str, Evaluation]
    ) -> tuple[dict[str, SampleScores], npt.NDArray[np.str_] | None]:
        """Scores of the samples that all files share, in the order of the first."""
        first = next(iter(files.values()))
        shared = {run_id: shared_samples(first, file) for run_id, file in files.items()}
        kept = np.arange(len(first))
        for in_first, _ in shared.values():
            kept = np.intersect1d(kept, in_first)
        scores = {}
        for run_id, (in_first, in_own) in shared.items():
            own = self._explorer.scored(files[run_id], evaluations[run_id].temperature)
            scores[run_id] = own.take(in_own[np.isin(in_first, kept)])
        return scores, None if first.clusters is None else first.clusters[kept]


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
            found[pointer_of(place).removeprefix("#")] = values
    return dict(sorted(found.items()))


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
