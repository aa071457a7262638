"""Numbers that are computed from stored predictions when somebody asks. Torch-free.

Everything here is a function of the predictions' bytes and of the parameters, and is remembered by
those two: a permalink costs once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from backend.artifacts import ArtifactStore
from backend.problems import pointer_of
from backend.store import NotFoundError, Store
from calift_core import calibration
from calift_core.calibration import measures
from calift_core.errors import CaliftError, PredictionsError, SpecError
from calift_core.predictions import Predictions, read_predictions, shared_samples
from calift_core.schema.wire import (
    ComparedRun,
    Comparison,
    Evaluation,
    PairedDifference,
    Reliability,
    ReliabilityBin,
    RunSummary,
)

Scheme = Literal["equal_mass", "equal_width"]
Norm = Literal["l1", "l2", "max"]

_RESULTS = 2000
_PREDICTION_BYTES = 512 << 20
#: Resamples times samples of one paired interval: bounds its time, and stays above 200 resamples.
_DRAWS = 2_000_000
_METRICS = ("accuracy", "ece", "nll", "brier")

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class _Remembered(Generic[_K, _V]):
    """A bounded least-recently-used memory, by weight. Safe between threads."""

    def __init__(self, capacity: int, weight: Callable[[_V], int] = lambda _: 1) -> None:
        self._capacity, self._weight, self._total = capacity, weight, 0
        self._items: OrderedDict[_K, _V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _K) -> _V | None:
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key]

    def put(self, key: _K, value: _V) -> None:
        with self._lock:
            if key in self._items:
                self._total -= self._weight(self._items.pop(key))
            self._items[key] = value
            self._total += self._weight(value)
            while self._total > self._capacity and len(self._items) > 1:
                self._total -= self._weight(self._items.popitem(last=False)[1])


def _size_of(predictions: Predictions) -> int:
    return int(predictions.logits.nbytes + predictions.ids.nbytes + predictions.labels.nbytes)


class Analysis:
    """Reliability and comparison of stored evaluations."""

    def __init__(self, store: Store, artifacts: ArtifactStore) -> None:
        self._store, self._artifacts = store, artifacts
        self._curves: _Remembered[tuple[Any, ...], dict[str, Any]] = _Remembered(_RESULTS)
        self._pairs: _Remembered[tuple[Any, ...], dict[str, Any]] = _Remembered(10 * _RESULTS)
        self._loaded: _Remembered[str, Predictions] = _Remembered(_PREDICTION_BYTES, _size_of)
        # Heavy work one at a time: the event loop and small requests keep a core.
        self._turn = threading.Lock()

    def predictions(self, sha256: str) -> Predictions:
        """Read a stored predictions file.

        Raises:
            NotFoundError: it is not on this machine.
            StorageError: its bytes are damaged.
            PredictionsError: it is no predictions file.
        """
        known = self._loaded.get(sha256)
        if known is None:
            known = read_predictions(self._artifacts.verified(sha256))
            self._loaded.put(sha256, known)
        return known

    # -- reliability --------------------------------------------------------------------------

    def reliability(
        self,
        evaluation: Evaluation,
        *,
        n_bins: int | None = None,
        scheme: Scheme | None = None,
        norm: Norm = "l1",
        temperature: float | None = None,
    ) -> Reliability:
        """The reliability diagram of an evaluation at any binning and temperature.

        Parameters that are None are the evaluation's own.

        Raises:
            NotFoundError: its predictions are not stored.
            PredictionsError: they cannot be read.
        """
        digest = self._store.predictions_of(evaluation.id).sha256
        bins = n_bins if n_bins is not None else evaluation.ece.n_bins
        chosen: Scheme = scheme if scheme is not None else evaluation.ece.scheme
        degrees = temperature if temperature is not None else evaluation.temperature
        resamples, seed = evaluation.ece.n_resamples, evaluation.ece.seed
        key = (digest, bins, chosen, norm, degrees, resamples, seed)
        body = self._curves.get(key)
        if body is None:
            with self._turn:
                body = self._curves.get(key) or _reliability(
                    self.predictions(digest),
                    n_bins=bins,
                    scheme=chosen,
                    norm=norm,
                    temperature=degrees,
                    n_resamples=resamples,
                    seed=seed,
                )
                self._curves.put(key, body)
        return Reliability(
            evaluation_id=evaluation.id,
            run_id=evaluation.run_id,
            run_name=evaluation.run_name,
            method=evaluation.method,
            dataset=evaluation.dataset,
            role=evaluation.role,
            **body,
        )

    # -- comparison ---------------------------------------------------------------------------

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
        runs = self._store.summaries(ids)
        specs = [self._store.get_run(run_id).spec for run_id in ids]
        evaluations = {run_id: self._store.run_evaluations(run_id) for run_id in ids}
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
            warnings=warnings,
        )

    def _differences(
        self, run: RunSummary, own: Evaluation, base: Evaluation, warnings: list[str]
    ) -> list[PairedDifference]:
        try:
            digests = (
                self._store.predictions_of(own.id).sha256,
                self._store.predictions_of(base.id).sha256,
            )
            key = (*digests, own.temperature, base.temperature)
            found = self._pairs.get(key)
            if found is None:
                with self._turn:
                    found = self._pairs.get(key) or self._pair(*digests, own, base)
                    self._pairs.put(key, found)
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
        self, own_digest: str, base_digest: str, own: Evaluation, base: Evaluation
    ) -> dict[str, Any]:
        a, b = self.predictions(own_digest), self.predictions(base_digest)
        in_a, in_b = shared_samples(a, b)
        labels = a.labels[in_a]
        probs_a = calibration.softmax(a.logits[in_a], own.temperature)
        probs_b = calibration.softmax(b.logits[in_b], base.temperature)
        clusters = None if a.clusters is None else a.clusters[in_a]
        resamples = int(min(1000, max(200, _DRAWS // len(labels))))
        rows = []
        for metric in _METRICS:
            found = calibration.paired_difference(
                probs_a,
                probs_b,
                labels,
                metric=metric,
                n_resamples=resamples,
                clusters=clusters,
            )
            rows.append(
                {
                    "metric": metric,
                    "baseline": found.b,
                    "value": found.a,
                    "difference": found.difference,
                    "interval": (found.low, found.high),
                    "distinguishable": found.distinguishable,
                }
            )
        return {"n": len(labels), "rows": rows}


def _reliability(
    predictions: Predictions,
    *,
    n_bins: int,
    scheme: Scheme,
    norm: Norm,
    temperature: float,
    n_resamples: int,
    seed: int,
) -> dict[str, Any]:
    probs = predictions.probs(temperature)
    confidences, correct = calibration.top_label(probs, predictions.labels)
    report: dict[str, Any] = calibration.ece_report_from_confidence(
        confidences,
        correct,
        n_bins=n_bins,
        scheme=scheme,
        norm=norm,
        n_resamples=n_resamples,
        seed=seed,
    )
    curve = calibration.reliability_curve_from_confidence(
        confidences, correct, n_bins=n_bins, scheme=scheme, n_resamples=n_resamples, seed=seed
    )
    return {
        "n": len(confidences),
        "n_bins": n_bins,
        "scheme": scheme,
        "norm": norm,
        "temperature": temperature,
        "accuracy": float(correct.mean()),
        "mean_confidence": float(confidences.mean()),
        "nll": measures.nll(probs, predictions.labels),
        "brier": measures.brier(probs, predictions.labels),
        "ece": report["value"],
        "null_mean": report["null_mean"],
        "null_q95": report["null_q95"],
        "interval": tuple(report["interval"]),
        "debiased": report["debiased"],
        "bins": [
            ReliabilityBin(
                lower=float(curve.lower[k]),
                upper=float(curve.upper[k]),
                count=int(curve.count[k]),
                mean_confidence=float(curve.mean_confidence[k]),
                accuracy=float(curve.accuracy[k]),
                interval_low=float(curve.interval_low[k]),
                interval_high=float(curve.interval_high[k]),
                band_low=float(curve.band_low[k]),
                band_high=float(curve.band_high[k]),
            )
            for k in np.flatnonzero(curve.count)
        ],
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
