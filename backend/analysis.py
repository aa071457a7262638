"""Numbers that are computed from stored predictions when somebody asks. Torch-free.

Everything here is a function of the predictions' bytes and of the parameters, and is remembered by
those two: a permalink costs once. What is kept of a file is seven numbers a sample per temperature
or calibrator, never its logits: those are passed over in chunks where a calibrator needs them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from backend.artifacts import ArtifactStore
from backend.problems import pointer_of
from backend.store.errors import NotFoundError
from backend.store.stores import Stores
from calift_core import calibration
from calift_core.analysis import budget, calibrators, reliability, slices
from calift_core.analysis import measures as analysis_measures
from calift_core.analysis.condition import Samples
from calift_core.analysis.draws import Draws
from calift_core.analysis.slices import By, Sort
from calift_core.calibration import Binning, Calibrator, SampleScores, compare
from calift_core.errors import (
    CaliftError,
    LeakageError,
    PredictionsError,
    SpecError,
    UnknownNameError,
)
from calift_core.predictions.read import read_index, read_metadata, read_scores, shared_samples
from calift_core.predictions.types import PredictionsMetadata
from calift_core.schema.report import Role
from calift_core.schema.wire.results import (
    AS_EVALUATED,
    TRANSFER_SETS,
    AskedBinning,
    Budget,
    CalibratorEffect,
    ComparedRun,
    Comparison,
    ConfidenceSet,
    Evaluation,
    FittedCalibrator,
    Measure,
    MeasureSet,
    PairedDifference,
    Reliability,
    Slice,
    SlicePage,
    Source,
    SquaredErrors,
    TransferCell,
    TransferMatrix,
    TransferRow,
)
from calift_core.schema.wire.runs import RunSummary

_RESULTS = 2000
_SCORE_BYTES = 192 << 20
_INDEX_BYTES = 96 << 20
#: Resamples times samples of one paired interval: bounds its time, and stays above 200 resamples.
_DRAWS = 2_000_000
_METRICS = ("accuracy", "ece", "nll", "brier")
#: What a metric's differences are decided on, where that is not the metric itself.
_DECIDES = {"ece": "squared_ece"}

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class _Remembered(Generic[_K, _V]):
    """A bounded least-recently-used memory, by weight. Safe between threads."""

    def __init__(self, capacity: int, weight: Callable[[_V], int] = lambda _: 1) -> None:
        # What alone is heavier than all that may be kept takes the whole place, for once.
        self._items: LRUCache[_K, _V] = LRUCache(capacity, lambda v: min(capacity, weight(v)))
        self._lock = threading.Lock()

    def get(self, key: _K) -> _V | None:
        with self._lock:
            return self._items.get(key)

    def put(self, key: _K, value: _V) -> None:
        with self._lock:
            self._items[key] = value


@dataclass(frozen=True, eq=False)
class _File:
    """A verified predictions file and what is small of it."""

    digest: str
    path: Path
    metadata: PredictionsMetadata
    ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    clusters: npt.NDArray[np.str_] | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        clusters = 0 if self.clusters is None else self.clusters.nbytes
        return self.ids.nbytes + self.labels.nbytes + clusters


#: What scores of a file depend on besides its bytes: a temperature, or a calibrator's own key.
_Scored = float | tuple[str, ...]


class Analysis:
    """Reliability, measures, slices, calibrators and comparison of stored evaluations."""

    def __init__(self, store: Stores, artifacts: ArtifactStore) -> None:
        self._store, self._artifacts = store, artifacts
        self._results: _Remembered[tuple[Any, ...], Any] = _Remembered(_RESULTS)
        self._pairs: _Remembered[tuple[Any, ...], Any] = _Remembered(10 * _RESULTS)
        self._files: _Remembered[str, _File] = _Remembered(_INDEX_BYTES, lambda f: f.nbytes)
        self._scores: _Remembered[tuple[str, _Scored], SampleScores] = _Remembered(
            _SCORE_BYTES, lambda s: s.nbytes
        )
        self._fits: _Remembered[tuple[str, ...], tuple[Calibrator, FittedCalibrator]] = _Remembered(
            _RESULTS
        )
        # Heavy work one at a time: the event loop and small requests keep a core. What takes
        # seconds (fits, class-wise errors) waits in a line of its own. Who has the long turn may
        # take the short one, never the other way round, or two requests wait for each other.
        self._turn = threading.RLock()
        self._long_turn = threading.RLock()

    def _remember(
        self, memory: _Remembered[_K, _V], key: _K, make: Callable[[], _V], *, long: bool = False
    ) -> _V:
        known = memory.get(key)
        if known is None:
            with self._long_turn if long else self._turn:
                known = memory.get(key)
                if known is None:
                    known = make()
                    memory.put(key, known)
        return known

    # -- what is stored -----------------------------------------------------------------------

    def _file(self, digest: str) -> _File:
        """Open a stored predictions file.

        Raises:
            NotFoundError: it is not on this machine.
            StorageError: its bytes are damaged.
            PredictionsError: it is no predictions file.
        """

        def read() -> _File:
            path = self._artifacts.verified(digest)
            return _File(digest, path, read_metadata(path), *read_index(path))

        return self._remember(self._files, digest, read)

    def _file_of(self, evaluation: Evaluation) -> _File:
        return self._file(self._store.results.predictions_of(evaluation.id).sha256)

    def _scored(self, file: _File, temperature: float) -> SampleScores:
        return self._remember(
            self._scores, (file.digest, temperature), lambda: read_scores(file.path, temperature)
        )

    def _samples(self, file: _File, temperature: float) -> Samples:
        return Samples(
            scores=self._scored(file, temperature),
            ids=file.ids,
            class_names=file.metadata.class_names,
            clusters=file.clusters,
        )

    # -- reliability --------------------------------------------------------------------------

    def reliability(
        self,
        evaluation: Evaluation,
        *,
        binning: AskedBinning = AS_EVALUATED,
        temperature: float | None = None,
        calibrator: str | None = None,
        fit_on: str | None = None,
        oracle: bool = False,
    ) -> Reliability:
        """The reliability diagram of an evaluation at any binning and temperature.

        Parameters that are None are the evaluation's own. With a calibrator, the diagram is of
        what it makes of the stored logits; see `calibrate` for the last three.

        Raises:
            NotFoundError: its predictions are not stored.
            PredictionsError: they cannot be read.
            SpecError: a calibrator together with a temperature.
            LeakageError: the calibrator's data are not the ID calibration split, without `oracle`.
        """
        file = self._file_of(evaluation)
        own = binning.over(evaluation.ece)
        if calibrator is None:
            degrees = temperature if temperature is not None else evaluation.temperature
            return self._diagram(
                evaluation, file, own, degrees, degrees, lambda: self._scored(file, degrees)
            )
        _need_logits(file)
        if temperature is not None:
            raise SpecError(
                f"calibrator {calibrator!r} must stand alone, got a temperature ({temperature:g})"
                " as well.",
                hint="A calibrator is fitted on the stored logits; leave temperature out.",
            )
        key, fitted, told = self._calibrator(evaluation, calibrator, fit_on, oracle)
        return self._diagram(
            evaluation, file, own, key, 1.0, lambda: self._calibrated(file, key, fitted)
        ).model_copy(update={"calibrator": told, "in_sample": file.digest in key})

    def _diagram(
        self,
        evaluation: Evaluation,
        file: _File,
        binning: Binning,
        scored: _Scored,
        temperature: float,
        scores: Callable[[], SampleScores],
    ) -> Reliability:
        draws = draws_of(evaluation)

        def make() -> Reliability:
            found = scores()
            smooth = self._remember(
                self._results,
                ("smooth", file.digest, scored),
                lambda: reliability.smooth_curve(found),
            )
            return Reliability(
                evaluation_id=evaluation.id,
                run_id=evaluation.run_id,
                run_name="",
                method=evaluation.method,
                dataset=evaluation.dataset,
                role=evaluation.role,
                temperature=temperature,
                **reliability.reliability_numbers(found, binning, draws, smooth=smooth),
            )

        key = ("diagram", evaluation.id, file.digest, binning, draws, scored)
        # A run's name may change; what is remembered must not say the old one.
        found: Reliability = self._remember(
            self._results, key, make, long=not isinstance(scored, float)
        )
        return found.model_copy(update={"run_name": evaluation.run_name})

    # -- measures -----------------------------------------------------------------------------

    def measures(
        self,
        evaluation: Evaluation,
        *,
        binning: AskedBinning = AS_EVALUATED,
        temperature: float | None = None,
        classwise: bool = True,
    ) -> MeasureSet:
        """Every measure of an evaluation at any binning and temperature; None: its own.

        The class-wise error is left out where not all logits are stored.

        Raises:
            NotFoundError: its predictions are not stored.
            PredictionsError: they cannot be read.
        """
        file = self._file_of(evaluation)
        own, draws = binning.over(evaluation.ece), draws_of(evaluation)
        degrees = temperature if temperature is not None else evaluation.temperature
        classwise = classwise and file.metadata.storage == "full"
        extra = self._classwise(file, degrees, own, draws) if classwise else None
        found: list[Measure] = self._remember(
            self._results,
            ("measures", file.digest, own, draws, degrees, classwise),
            lambda: analysis_measures.measures_of(
                self._scored(file, degrees),
                own,
                draws,
                n_classes=len(file.metadata.class_names),
                classwise=extra,
            ),
        )
        return _measure_set(evaluation, file, degrees, found)

    def audit(self, evaluation: Evaluation, *, temperature: float | None = None) -> MeasureSet:
        """The same predictions under the estimators in use: `measures.audit_of`.

        The class-wise errors are left out where not all logits are stored.

        Raises:
            NotFoundError: its predictions are not stored.
            PredictionsError: they cannot be read.
        """
        file = self._file_of(evaluation)
        degrees = temperature if temperature is not None else evaluation.temperature
        draws = draws_of(evaluation)
        extra = [
            self._classwise(file, degrees, binning, draws)
            for binning in (Binning(scheme="equal_width"), Binning(scheme="equal_mass"))
            if file.metadata.storage == "full"
        ]
        found: list[Measure] = self._remember(
            self._results,
            ("audit", file.digest, draws, degrees),
            lambda: analysis_measures.audit_of(self._scored(file, degrees), draws, classwise=extra),
        )
        return _measure_set(evaluation, file, degrees, found)

    def _classwise(
        self, file: _File, temperature: float, binning: Binning, draws: Draws
    ) -> Measure:
        found: Measure = self._remember(
            self._results,
            ("classwise", file.digest, temperature, binning, draws),
            lambda: analysis_measures.classwise_measure(
                file.path, binning, draws, temperature=temperature
            ),
            long=True,
        )
        return found

    # -- slices -------------------------------------------------------------------------------

    def slices(
        self,
        evaluation: Evaluation,
        *,
        by: By = "class",
        where: str | None = None,
        sort: Sort = "key",
        descending: bool = False,
        min_n: int = 30,
        binning: AskedBinning = AS_EVALUATED,
        temperature: float | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> SlicePage:
        """A page of slices of an evaluation; see `calift_core.analysis.slices.slice_page`.

        Raises:
            NotFoundError: its predictions are not stored.
            PredictionsError: they cannot be read.
            SpecError: the condition or the grouping is not valid.
        """
        file = self._file_of(evaluation)
        own, draws = binning.over(evaluation.ece), draws_of(evaluation)
        degrees = temperature if temperature is not None else evaluation.temperature
        asked = (by, where, sort, descending, min_n, offset, limit)
        found: SlicePage = self._remember(
            self._results,
            ("slices", evaluation.id, file.digest, own, draws, degrees, *asked),
            lambda: slices.slice_page(
                self._samples(file, degrees),
                source_of(evaluation),
                own,
                draws,
                by=by,
                where=where,
                sort=sort,
                descending=descending,
                min_n=min_n,
                offset=offset,
                limit=limit,
                temperature=degrees,
            ),
        )
        return found.model_copy(update={"source": source_of(evaluation)})

    def run_slices(
        self,
        run_id: str,
        *,
        where: str | None = None,
        roles: Sequence[Role] = (),
        min_n: int = 30,
        binning: AskedBinning = AS_EVALUATED,
        temperature: float | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> SlicePage:
        """One slice per data set of a run: the samples that meet a condition on every shift.

        Data sets without such a sample are left out of the items.

        Raises:
            NotFoundError: no such run, or predictions are not stored.
            PredictionsError: they cannot be read.
            SpecError: the condition is not valid.
        """
        run = self._store.runs.summaries([run_id])[0]
        evaluations = [
            e for e in self._store.results.run_evaluations(run_id) if not roles or e.role in roles
        ]
        items, first = [], evaluations[0] if evaluations else None
        for evaluation in evaluations[offset : offset + limit]:
            file = self._file_of(evaluation)
            own, draws = binning.over(evaluation.ece), draws_of(evaluation)
            degrees = temperature if temperature is not None else evaluation.temperature
            found: list[Slice] = self._remember(
                self._results,
                ("set", file.digest, evaluation.dataset, own, draws, degrees, where, min_n),
                lambda e=evaluation, f=file, b=own, d=draws, t=degrees: [  # type: ignore[misc]
                    one
                    for one in [
                        slices.slice_of_set(
                            self._samples(f, t), b, d, title=e.dataset, where=where, min_n=min_n
                        )
                    ]
                    if one is not None
                ],
            )
            items += [
                one.model_copy(update={"evaluation_id": evaluation.id, "role": evaluation.role})
                for one in found
            ]
        chosen = binning.over(first.ece if first else None)
        return SlicePage(
            source=Source(run_id=run.id, run_name=run.name, method=run.method),
            by="dataset",
            where=where or "",
            sort="key",
            descending=False,
            min_n=min_n,
            scheme=chosen.scheme,
            norm=chosen.norm,
            temperature=temperature if temperature is not None else 1.0,
            n=sum(e.n for e in evaluations[offset : offset + limit]),
            n_matching=sum(one.n for one in items),
            total=len(evaluations),
            offset=offset,
            items=items,
        )

    # -- calibrators --------------------------------------------------------------------------

    def calibrate(
        self,
        evaluation: Evaluation,
        kind: str,
        *,
        fit_on: str | None = None,
        oracle: bool = False,
        binning: AskedBinning = AS_EVALUATED,
    ) -> CalibratorEffect:
        """Fit a calibrator and show an evaluation before and after it.

        Args:
            evaluation: what it is applied to.
            kind: a name in `CALIBRATORS`.
            fit_on: an evaluation of the same run; None is the run's ID calibration split.
            oracle: allow `fit_on`, and mark the calibrator as an oracle.
            binning: of the diagrams and of their errors.

        Raises:
            NotFoundError: predictions are not stored.
            LeakageError: `fit_on` without `oracle`.
            SpecError: the kind does not exist, or cannot be fitted on this; not all logits are
                stored.
            PredictionsError: files cannot be read.
        """
        after = self.reliability(
            evaluation, binning=binning, calibrator=kind, fit_on=fit_on, oracle=oracle
        )
        assert after.calibrator is not None
        return CalibratorEffect(
            calibrator=after.calibrator,
            before=self.reliability(evaluation, binning=binning, temperature=1.0),
            after=after,
        )

    def _calibrator(
        self, evaluation: Evaluation, kind: str, fit_on: str | None, oracle: bool
    ) -> tuple[tuple[str, ...], Calibrator, FittedCalibrator]:
        if kind not in calibration.CALIBRATORS:
            raise UnknownNameError("calibrator", kind, calibration.CALIBRATORS)
        if fit_on is None:
            files = self._calibration_files(evaluation.run_id)
            if kind != "tsp":
                files = files[:1]
        else:
            other = self._store.results.get_evaluation(fit_on)
            if other.run_id != evaluation.run_id:
                raise SpecError(
                    f"fit_on must be an evaluation of run {evaluation.run_id}, got one of run "
                    f"{other.run_id}"
                )
            files = [self._file_of(other)]
        for file in files:
            _need_logits(file)
        key = (kind, fit_on or "", *(file.digest for file in files))

        def fit() -> tuple[Calibrator, FittedCalibrator]:
            return calibrators.fit_calibrator(
                kind,
                [calibrators.read_to_fit(f.path, n_files=len(files)) for f in files],
                oracle=oracle,
                evaluation_id=fit_on,
            )

        # The guard comes before what is remembered: an oracle of an earlier request lets none in.
        if fit_on is not None and not oracle:
            raise LeakageError(
                "a calibrator must be fitted on the run's ID calibration split, got evaluation "
                f"{fit_on} on {files[0].metadata.dataset!r}.",
                hint="Pass oracle=true to fit it all the same; it then counts as an oracle.",
            )
        return (key, *self._remember(self._fits, key, fit, long=True))

    def _calibration_files(self, run_id: str) -> list[_File]:
        """A run's predictions of its ID calibration split, then of its perturbed copies.

        Raises:
            NotFoundError: the run has stored none.
        """
        judged = {e.predictions_sha256 for e in self._store.results.run_evaluations(run_id)}
        found = []
        for artifact in self._store.files.of_run(run_id, kind="predictions"):
            if artifact.sha256 not in judged:
                file = self._file(artifact.sha256)
                if file.metadata.role == "calibration":
                    found.append(file)
        found.sort(key=lambda f: (calibrators.is_perturbed(f.metadata), f.metadata.dataset))
        if not found or calibrators.is_perturbed(found[0].metadata):
            raise NotFoundError(
                f"run {run_id} stores no predictions of an ID calibration split.",
                hint="Fit on an evaluation with fit_on and oracle=true, or add a calibration part "
                "to the suite.",
            )
        return found

    def _calibrated(
        self, file: _File, key: tuple[str, ...], calibrator: Calibrator
    ) -> SampleScores:
        return self._remember(
            self._scores,
            (file.digest, key),
            lambda: calibrators.calibrated_scores(file.path, [calibrator])[0],
            long=True,
        )

    def transfer(
        self,
        run_id: str,
        kind: str,
        *,
        datasets: Sequence[str] = (),
        binning: AskedBinning = AS_EVALUATED,
    ) -> TransferMatrix:
        """Fit a calibrator on every data set of a run and test each on all.

        Args:
            run_id: a run with evaluations.
            kind: a name in `CALIBRATORS`.
            datasets: names of evaluations; none: the ID data and the shifts.
            binning: of the errors.

        Raises:
            NotFoundError: no such run, or predictions are not stored.
            SpecError: the kind or a data set does not exist, there are more than 12 of them, or
                not all logits of one are stored.
            PredictionsError: files cannot be read.
        """
        if kind not in calibration.CALIBRATORS:
            raise UnknownNameError("calibrator", kind, calibration.CALIBRATORS)
        run = self._store.runs.summaries([run_id])[0]
        every = self._store.results.run_evaluations(run_id)
        by_name = {e.dataset: e for e in every}
        for name in datasets:
            if name not in by_name:
                raise UnknownNameError("data set of this run", name, by_name)
        chosen = [by_name[name] for name in dict.fromkeys(datasets)] or [
            e for e in every if e.role != "corruption"
        ]
        if not chosen:
            raise NotFoundError(
                f"run {run_id} has no evaluations to compare; it is {run.phase}.",
                hint="They come with the end of a run; corruptions are named with dataset=….",
            )
        notes = []
        if not datasets:
            left = len(every) - len(chosen)
            if left:
                notes.append(f"{left} corruptions are left out: they are taken in by name.")
        if len(chosen) > TRANSFER_SETS:
            raise SpecError(
                f"a transfer matrix takes at most {TRANSFER_SETS} data sets, got {len(chosen)}",
                hint="Name those that matter with dataset=….",
            )
        fits: list[tuple[tuple[str, ...], Calibrator, FittedCalibrator]] = []
        origins: list[str | None] = [None]
        if kind != "tsp":
            origins += [e.id for e in chosen]
        for origin in origins:
            try:
                fits.append(self._calibrator(chosen[0], kind, origin, oracle=origin is not None))
            except NotFoundError as error:
                if origin is not None:
                    raise
                notes.append(f"{error.message} Every row here is an oracle.")
        columns = [self._transfer_column(e, fits, binning.over(e.ece), draws_of(e)) for e in chosen]
        own = binning.over(chosen[0].ece)
        told = [None, *(fitted for _, _, fitted in fits)]
        return TransferMatrix(
            source=Source(run_id=run.id, run_name=run.name, method=run.method),
            kind=kind,
            n_bins=own.n_bins,
            scheme=own.scheme,
            norm=own.norm,
            rows=[
                TransferRow(calibrator=fitted, cells=[column[i] for column in columns])
                for i, fitted in enumerate(told)
            ],
            notes=notes,
        )

    def _transfer_column(
        self,
        evaluation: Evaluation,
        fits: Sequence[tuple[tuple[str, ...], Calibrator, FittedCalibrator]],
        binning: Binning,
        draws: Draws,
    ) -> list[TransferCell]:
        """One data set without a calibrator and through each, in one pass over its logits."""
        file = self._file_of(evaluation)
        _need_logits(file)
        with self._long_turn:
            missing = [
                (key, calibrator)
                for key, calibrator, _ in fits
                if self._scores.get((file.digest, key)) is None
                and self._results.get(("cell", file.digest, binning, draws, key)) is None
            ]
            if missing:
                found = calibrators.calibrated_scores(file.path, [c for _, c in missing])
                for (key, _), scores in zip(missing, found, strict=True):
                    self._results.put(
                        ("cell", file.digest, binning, draws, key),
                        calibrators.transfer_numbers(scores, binning, draws),
                    )
            plain: dict[str, float] = self._remember(
                self._results,
                ("cell", file.digest, binning, draws, 1.0),
                lambda: calibrators.transfer_numbers(self._scored(file, 1.0), binning, draws),
            )
            numbers = [plain] + [
                self._remember(
                    self._results,
                    ("cell", file.digest, binning, draws, key),
                    lambda k=key, c=calibrator: calibrators.transfer_numbers(
                        self._calibrated(file, k, c), binning, draws
                    ),  # type: ignore[misc]
                    long=True,
                )
                for key, calibrator, _ in fits
            ]
        return [
            TransferCell(
                dataset=evaluation.dataset,
                role=evaluation.role,
                evaluation_id=evaluation.id,
                n=evaluation.n,
                in_sample=key is not None and file.digest in key,
                **calibrators.gains(plain, one),
                **one,
            )
            for key, one in zip([None, *(key for key, _, _ in fits)], numbers, strict=True)
        ]

    # -- planning -----------------------------------------------------------------------------

    def budget(
        self,
        evaluation: Evaluation,
        *,
        difference: float,
        metric: str = "ece",
        against: str | None = None,
        level: float = 0.95,
        power: float = 0.8,
    ) -> Budget:
        """How many samples show a difference; see `calift_core.analysis.budget.budget_of`.

        Raises:
            NotFoundError: no such evaluation, or predictions are not stored.
            PredictionsError: they cannot be read.
            UnpairedError: the two share no samples.
            SpecError: an argument is not valid.
        """
        other = self._store.results.get_evaluation(against) if against is not None else None
        file = self._file_of(evaluation)
        beside = self._file_of(other) if other is not None else None
        scores = self._scored(file, evaluation.temperature)
        clusters, paired = file.clusters, None
        if other is not None and beside is not None:
            in_a, in_b = shared_samples(file, beside)
            scores = scores.take(in_a)
            paired = self._scored(beside, other.temperature).take(in_b)
            clusters = None if clusters is None else clusters[in_a]
        asked = (metric, difference, level, power)
        found: Budget = self._remember(
            self._results,
            ("budget", evaluation.id, file.digest, against, beside and beside.digest, *asked),
            lambda: budget.budget_of(
                scores,
                source_of(evaluation),
                metric=metric,
                difference=difference,
                against=paired,
                against_source=source_of(other) if other is not None else None,
                clusters=clusters,
                level=level,
                power=power,
                n_resamples=_resamples(len(scores)),
            ),
        )
        return found

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
            found: dict[str, Any] = self._remember(
                self._pairs,
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

    def _pair(self, a: _File, b: _File, own: float, base: float) -> dict[str, Any]:
        in_a, in_b = shared_samples(a, b)
        scores_a, scores_b = self._scored(a, own).take(in_a), self._scored(b, base).take(in_b)
        clusters = None if a.clusters is None else a.clusters[in_a]
        asked: dict[str, Any] = {"n_resamples": _resamples(len(in_a)), "clusters": clusters}
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

        def make() -> dict[str, compare.ConfidenceSet]:
            scores, clusters = self._aligned(files, evaluations)
            n = len(next(iter(scores.values())))
            return {
                metric: calibration.model_confidence_set(
                    scores,
                    metric=_DECIDES.get(metric, metric),
                    clusters=clusters,
                    n_resamples=_resamples(n),
                )
                for metric in _METRICS
            }

        key = tuple((r, files[r].digest, evaluations[r].temperature) for r in sorted(files))
        sets: dict[str, compare.ConfidenceSet] = self._remember(self._pairs, key, make)
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
        self, files: Mapping[str, _File], evaluations: Mapping[str, Evaluation]
    ) -> tuple[dict[str, SampleScores], npt.NDArray[np.str_] | None]:
        """Scores of the samples that all files share, in the order of the first."""
        first = next(iter(files.values()))
        kept = np.arange(len(first))
        for file in files.values():
            kept = np.intersect1d(kept, shared_samples(first, file)[0])
        scores = {}
        for run_id, file in files.items():
            in_first, in_own = shared_samples(first, file)
            scores[run_id] = self._scored(file, evaluations[run_id].temperature).take(
                in_own[np.isin(in_first, kept)]
            )
        return scores, None if first.clusters is None else first.clusters[kept]


def _resamples(n: int) -> int:
    return int(min(1000, max(200, _DRAWS // n)))


def _need_logits(file: _File) -> None:
    if file.metadata.storage != "full":
        raise SpecError(
            f"a calibrator must have all logits of {file.metadata.dataset}, whose stored "
            f"predictions keep the {file.metadata.k} largest of each sample.",
            hint="Import or evaluate it again with all logits.",
        )


def source_of(evaluation: Evaluation) -> Source:
    """Which predictions an evaluation's numbers are of."""
    return Source(
        evaluation_id=evaluation.id,
        run_id=evaluation.run_id,
        run_name=evaluation.run_name,
        method=evaluation.method,
        dataset=evaluation.dataset,
        role=evaluation.role,
    )


def draws_of(evaluation: Evaluation) -> Draws:
    """The draws of an evaluation's own floors and intervals."""
    return Draws(evaluation.ece.n_resamples, evaluation.ece.seed)


def _measure_set(
    evaluation: Evaluation,
    file: _File,
    temperature: float,
    measures: list[Measure],
) -> MeasureSet:
    return MeasureSet(
        source=source_of(evaluation),
        n=len(file),
        n_classes=len(file.metadata.class_names),
        temperature=temperature,
        n_resamples=evaluation.ece.n_resamples,
        seed=evaluation.ece.seed,
        measures=measures,
    )


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
