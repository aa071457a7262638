"""The one explorer of stored predictions: the API and the command ask it the same questions.

It knows neither a database nor folders: a `Library` does. Every answer is a function of the
predictions' bytes and of what is asked, and is remembered by those two. Long, because it is one
list of questions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calift_core.analysis.budget import budget_of
from calift_core.analysis.calibrators import (
    calibrated_scores,
    fit_calibrator,
    gains,
    read_to_fit,
    transfer_numbers,
)
from calift_core.analysis.comparing import resamples_for, share
from calift_core.analysis.condition import Samples
from calift_core.analysis.deciding import kept_of
from calift_core.analysis.gallery import (
    Beside,
    Order,
    SampleFilter,
    chosen,
    contradicted,
    described,
    drawn,
    ordered,
    shared_traits,
)
from calift_core.analysis.ledger import ledger_of
from calift_core.analysis.library import Library, PredictionsFile, Subject
from calift_core.analysis.measures import audit_of, classwise_measure, measures_of
from calift_core.analysis.reliability import reliability_numbers, smooth_curve
from calift_core.analysis.slices import By, Sort, slice_of_set, slice_page
from calift_core.calibration import Binning, Calibrator, SampleScores
from calift_core.calibration.bins import Ints
from calift_core.calibration.decisions import choose_threshold
from calift_core.calibration.registry import known
from calift_core.errors import NotFoundError, SpecError, UnknownNameError, UnpairedError
from calift_core.predictions.read import read_scores, read_scores_at, read_top, shared_samples
from calift_core.schema.report import Role
from calift_core.schema.wire.answers import Decision, KeptSet, Ledger, LedgerSet
from calift_core.schema.wire.results import (
    AS_EVALUATED,
    TRANSFER_SETS,
    AskedBinning,
    Budget,
    CalibratorEffect,
    DoubtfulLabels,
    FittedCalibrator,
    Measure,
    MeasureSet,
    Reliability,
    Sample,
    SampleHistory,
    SamplePage,
    SampleTraits,
    SeenSample,
    SharedTrait,
    Slice,
    SlicePage,
    Source,
    TransferCell,
    TransferMatrix,
    TransferRow,
)

#: What scores of a file depend on besides its bytes: a temperature, or a calibrator's own key.
_Scored = float | tuple[str, ...]
_Fit = tuple[tuple[str, ...], Calibrator, FittedCalibrator]


class Explorer:
    """Reliability, measures, slices, calibrators and planning of stored predictions.

    Whatever is None in a question is as the predictions were evaluated.
    """

    def __init__(self, library: Library) -> None:
        self._library, self._memory = library, library.memory

    def scored(self, file: PredictionsFile, temperature: float) -> SampleScores:
        """Seven numbers a sample at a temperature."""
        plain: SampleScores | None = self._memory.get("scores", (file.digest, 1.0))
        return self._memory.remember(
            "scores",
            (file.digest, temperature),
            lambda: read_scores(file.path, temperature, known=plain, decoded=file.decoded),
        )

    def _samples(self, file: PredictionsFile, temperature: float) -> Samples:
        return Samples(
            scores=self.scored(file, temperature),
            ids=file.ids,
            class_names=file.metadata.class_names,
            clusters=file.clusters,
        )

    # -- reliability --------------------------------------------------------------------------

    def reliability(
        self,
        subject: Subject,
        binning: AskedBinning = AS_EVALUATED,
        *,
        temperature: float | None = None,
        calibrator: str | None = None,
        fit_on: Sequence[str] = (),
        oracle: bool = False,
    ) -> Reliability:
        """The reliability diagram at any binning and temperature, or through a calibrator.

        Args:
            subject: what it is of.
            binning: of the diagram and its error.
            temperature: divides the logits.
            calibrator: its kind; the diagram is of what it makes of the logits.
            fit_on: what the calibrator is fitted on, see `Library.fit_set`.
            oracle: allow data other than the ID calibration split.

        Raises:
            PredictionsError: the predictions cannot be read.
            SpecError: a calibrator together with a temperature, or on predictions that do not keep
                all logits.
            LeakageError: the calibrator's data are not the ID calibration split, without `oracle`.
        """
        file, asked = subject.open(), binning.over(subject.binning)
        if calibrator is None:
            degrees = temperature if temperature is not None else subject.temperature
            return self._diagram(
                subject, file, asked, degrees, degrees, lambda: self.scored(file, degrees)
            )
        need_logits(file)
        if temperature is not None:
            raise SpecError(
                f"calibrator {calibrator!r} must stand alone, got a temperature ({temperature:g})"
                " as well.",
                hint="A calibrator is fitted on the stored logits; leave temperature out.",
            )
        key, fitted, told = self._calibrator(subject, calibrator, fit_on, oracle)
        found = self._diagram(
            subject, file, asked, key, 1.0, lambda: self._calibrated(subject, file, key, fitted)
        )
        return found.model_copy(update={"calibrator": told, "in_sample": file.digest in key})

    def _diagram(
        self,
        subject: Subject,
        file: PredictionsFile,
        binning: Binning,
        scored: _Scored,
        temperature: float,
        scores: Callable[[], SampleScores],
    ) -> Reliability:
        source = subject.source

        def make() -> Reliability:
            found = scores()
            smooth = self._memory.remember(
                "numbers", ("smooth", file.digest, scored), lambda: smooth_curve(found)
            )
            return Reliability(
                evaluation_id=source.evaluation_id or "",
                run_id=source.run_id or "",
                run_name="",
                method=source.method,
                dataset=file.metadata.dataset if source.dataset is None else source.dataset,
                role=file.metadata.role if source.role is None else source.role,
                temperature=temperature,
                **reliability_numbers(found, binning, subject.draws, smooth=smooth),
            )

        found: Reliability = self._memory.remember(
            "numbers",
            ("diagram", source.evaluation_id, file.digest, binning, subject.draws, scored),
            make,
            long=not isinstance(scored, float),
        )
        # A run's name may change; what is remembered must not say the old one.
        return found.model_copy(update={"run_name": source.run_name})

    # -- measures -----------------------------------------------------------------------------

    def measures(
        self,
        subject: Subject,
        binning: AskedBinning = AS_EVALUATED,
        *,
        temperature: float | None = None,
        classwise: bool = True,
    ) -> MeasureSet:
        """Every measure; the class-wise error only where all logits are stored.

        Raises:
            PredictionsError: the predictions cannot be read.
        """
        file, asked = subject.open(), binning.over(subject.binning)
        degrees = temperature if temperature is not None else subject.temperature
        classwise = classwise and file.metadata.storage == "full"
        extra = self._classwise(subject, file, degrees, asked) if classwise else None
        found: list[Measure] = self._memory.remember(
            "numbers",
            ("measures", file.digest, asked, subject.draws, degrees, classwise),
            lambda: measures_of(
                self.scored(file, degrees),
                asked,
                subject.draws,
                n_classes=len(file.metadata.class_names),
                classwise=extra,
            ),
        )
        return _measure_set(subject, file, degrees, found)

    def audit(self, subject: Subject, *, temperature: float | None = None) -> MeasureSet:
        """The same predictions under the estimators in use; see `audit_of`.

        Raises:
            PredictionsError: the predictions cannot be read.
        """
        file = subject.open()
        degrees = temperature if temperature is not None else subject.temperature
        extra = [
            self._classwise(subject, file, degrees, binning)
            for binning in (Binning(scheme="equal_width"), Binning(scheme="equal_mass"))
            if file.metadata.storage == "full"
        ]
        found: list[Measure] = self._memory.remember(
            "numbers",
            ("audit", file.digest, subject.draws, degrees),
            lambda: audit_of(self.scored(file, degrees), subject.draws, classwise=extra),
        )
        return _measure_set(subject, file, degrees, found)

    def _classwise(
        self, subject: Subject, file: PredictionsFile, temperature: float, binning: Binning
    ) -> Measure:
        return self._memory.remember(
            "numbers",
            ("classwise", file.digest, temperature, binning, subject.draws),
            lambda: classwise_measure(file.path, binning, subject.draws, temperature=temperature),
            long=True,
        )

    # -- slices -------------------------------------------------------------------------------

    def slices(
        self,
        subject: Subject,
        binning: AskedBinning = AS_EVALUATED,
        *,
        by: By = "class",
        where: str | None = None,
        sort: Sort = "key",
        descending: bool = False,
        min_n: int = 30,
        temperature: float | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> SlicePage:
        """A page of slices of one set of predictions; see `slice_page`.

        Raises:
            PredictionsError: the predictions cannot be read.
            SpecError: the condition or the grouping is not valid.
        """
        file, asked = subject.open(), binning.over(subject.binning)
        degrees = temperature if temperature is not None else subject.temperature
        question = (by, where, sort, descending, min_n, offset, limit)
        found: SlicePage = self._memory.remember(
            "numbers",
            ("slices", subject.source.evaluation_id, file.digest, asked, subject.draws, degrees,
             *question),
            lambda: slice_page(
                self._samples(file, degrees), subject.source, asked, subject.draws, by=by,
                where=where, sort=sort, descending=descending, min_n=min_n, offset=offset,
                limit=limit, temperature=degrees,
            ),
        )  # fmt: skip
        return found.model_copy(update={"source": subject.source})

    def run_slices(
        self,
        run: str,
        binning: AskedBinning = AS_EVALUATED,
        *,
        where: str | None = None,
        roles: Sequence[Role] = (),
        min_n: int = 30,
        temperature: float | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> SlicePage:
        """One slice per data set of a run: the samples that meet a condition on each.

        Data sets without such a sample are left out of the items.

        Raises:
            PredictionsError: predictions cannot be read.
            SpecError: the condition is not valid.
        """
        source = self._library.run(run)
        tested = [s for s in self._library.tested(run) if not roles or s.source.role in roles]
        page = tested[offset : offset + limit]
        items = [
            one.model_copy(update={"evaluation_id": s.source.evaluation_id, "role": s.source.role})
            for s in page
            for one in self._slice_of_set(s, binning.over(s.binning), where, min_n, temperature)
        ]
        first = binning.over(tested[0].binning if tested else Binning())
        degrees = tested[0].temperature if tested else 1.0
        return SlicePage(
            source=source,
            by="dataset",
            where=where or "",
            sort="key",
            descending=False,
            min_n=min_n,
            scheme=first.scheme,
            norm=first.norm,
            temperature=temperature if temperature is not None else degrees,
            n=sum(s.n for s in page),
            n_matching=sum(one.n for one in items),
            total=len(tested),
            offset=offset,
            items=items,
        )

    def _slice_of_set(
        self,
        subject: Subject,
        binning: Binning,
        where: str | None,
        min_n: int,
        temperature: float | None,
    ) -> list[Slice]:
        """The slice, or nothing where no sample meets the condition."""
        file = subject.open()
        degrees = temperature if temperature is not None else subject.temperature
        title = subject.source.dataset or file.metadata.dataset

        def make() -> list[Slice]:
            one = slice_of_set(
                self._samples(file, degrees),
                binning,
                subject.draws,
                title=title,
                where=where,
                min_n=min_n,
            )
            return [] if one is None else [one]

        key = ("set", file.digest, title, binning, subject.draws, degrees, where, min_n)
        return self._memory.remember("numbers", key, make)

    # -- samples ------------------------------------------------------------------------------

    def samples(
        self,
        subject: Subject,
        wanted: SampleFilter,
        binning: AskedBinning = AS_EVALUATED,
        *,
        against: Subject | None = None,
        sort: Order = "stored",
        descending: bool = False,
        top: int = 5,
        temperature: float | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> SamplePage:
        """A page of samples one by one.

        Args:
            subject: whose samples.
            wanted: which of them.
            binning: of `wanted.bin`.
            against: another model's predictions of the same samples, shown beside and compared to.
            sort: see `ordered`.
            descending: largest first.
            top: how many of the most probable classes each sample comes with.
            temperature: divides the subject's logits.
            offset: samples before the page.
            limit: samples on the page.

        Raises:
            PredictionsError: the predictions cannot be read.
            SpecError: the condition, the bin or the order is not valid.
            UnpairedError: `against` shares no samples.
        """
        file, samples, degrees = self._opened(subject, temperature)
        beside = self._beside(file, against)
        index = chosen(samples, wanted, binning.over(subject.binning), beside)
        index = ordered(samples.scores, index, sort, descending=descending, beside=beside)
        page = index[offset : offset + limit]
        likely = read_top(file.path, page, top, degrees) if top and len(page) else []
        return SamplePage(
            source=subject.source,
            against=against and against.source,
            where=wanted.where or "",
            sort=sort,
            descending=descending,
            temperature=degrees,
            n=len(file),
            n_matching=len(index),
            offset=offset,
            items=described(samples, page, likely, beside),
        )

    def traits(
        self,
        subject: Subject,
        wanted: SampleFilter,
        binning: AskedBinning = AS_EVALUATED,
        *,
        against: Subject | None = None,
        temperature: float | None = None,
    ) -> SampleTraits:
        """What samples share that the rest of the data set does not; see `shared_traits`.

        Raises:
            PredictionsError: the predictions cannot be read.
            SpecError: the condition or the bin is not valid.
            UnpairedError: `against` shares no samples.
        """
        file, samples, degrees = self._opened(subject, temperature)
        asked = binning.over(subject.binning)
        other = against and (against.target, against.open().digest)

        def make() -> tuple[int, list[SharedTrait]]:
            index = chosen(samples, wanted, asked, self._beside(file, against))
            return len(index), shared_traits(samples, index)

        key = ("traits", file.digest, wanted, asked, other, degrees)
        n, items = self._memory.remember("numbers", key, make)
        return SampleTraits(source=subject.source, n=len(file), n_matching=n, items=items)

    def history(self, subject: Subject, sample: str, *, run: str, top: int = 5) -> SampleHistory:
        """What a run says of one image, on ID data and under each corruption of them.

        Args:
            subject: that has the sample; of a shift, which has images of its own, no other data set
                is looked at.
            sample: its id.
            run: a run that was tested, the subject's or another.
            top: how many of the most probable classes each answer comes with.

        Raises:
            PredictionsError: predictions cannot be read.
            NotFoundError: there is no such sample, or no such run.
        """
        label, own = self.label_of(subject, sample), subject.source
        name = subject.open().metadata.class_names[label]
        items = []
        for other in self._library.tested(run):
            theirs = other.source
            # An id is a picture's within its data and their corruptions; elsewhere it says nothing.
            apart = "shift" in (own.role, theirs.role)
            if apart and theirs.dataset != own.dataset:
                continue
            file = other.open()
            found = np.flatnonzero(file.ids == sample)
            if len(found) and file.metadata.class_names[file.labels[found[0]]] == name:
                answer = self._one(file, found, other.temperature, top)
                items.append(SeenSample(source=theirs, sample=answer))
        return SampleHistory(source=self._library.run(run), sample=sample, items=items)

    def _one(self, file: PredictionsFile, at: Ints, temperature: float, top: int) -> Sample:
        """The sample at one position (1,), read without all the others."""
        clusters = None if file.clusters is None else file.clusters[at]
        alone = Samples(
            scores=read_scores_at(file.path, at, temperature),
            ids=file.ids[at],
            class_names=file.metadata.class_names,
            clusters=clusters,
        )
        likely = read_top(file.path, at, top, temperature) if top else []
        return described(alone, np.zeros(1, dtype=np.int64), likely, None)[0]

    def doubtful(
        self, subject: Subject, *, threshold: float = 0.8, top: int = 5, limit: int = 50
    ) -> DoubtfulLabels:
        """Labels that this run and the others of its suite surely contradict; see `contradicted`.

        Raises:
            PredictionsError: predictions cannot be read.
        """
        file, samples, degrees = self._opened(subject, None)
        every = [subject, *self._library.peers(subject)]
        digests = tuple(s.open().digest for s in every)

        def make() -> tuple[Ints, list[Source]]:
            beside = []
            for one in every:
                with contextlib.suppress(UnpairedError):
                    beside.append((self._beside(file, one), one.source))
            answers = [answer for answer, _ in beside if answer is not None]
            return contradicted(answers, threshold)[0], [source for _, source in beside]

        key = ("doubtful", digests, threshold, degrees)
        index, runs = self._memory.remember("numbers", key, make)
        page = index[:limit]
        likely = read_top(file.path, page, top, degrees) if top and len(page) else []
        return DoubtfulLabels(
            source=subject.source,
            runs=runs,
            threshold=threshold,
            n=len(index),
            items=described(samples, page, likely, None),
        )

    def to_look_at(
        self,
        subject: Subject,
        wanted: SampleFilter,
        binning: AskedBinning = AS_EVALUATED,
        *,
        against: Subject | None = None,
        temperature: float | None = None,
        most: int = 60,
    ) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Ids and labels of chosen samples and of others, at most so many of each; see `drawn`."""
        file, samples, _ = self._opened(subject, temperature)
        beside = self._beside(file, against)
        index = chosen(samples, wanted, binning.over(subject.binning), beside)

        def named(part: Ints) -> list[tuple[str, int]]:
            return [(str(file.ids[k]), int(file.labels[k])) for k in part.tolist()]

        own, rest = drawn(index, len(file), most)
        return named(own), named(rest)

    def label_of(self, subject: Subject, sample: str) -> int:
        """The class of the sample of this id.

        Raises:
            PredictionsError: the predictions cannot be read.
            NotFoundError: there is no such sample.
        """
        file = subject.open()
        found = np.flatnonzero(file.ids == sample)
        if not len(found):
            raise NotFoundError(f"{file.metadata.dataset} has no sample {sample[:200]!r}.")
        return int(file.labels[found[0]])

    def _opened(
        self, subject: Subject, temperature: float | None
    ) -> tuple[PredictionsFile, Samples, float]:
        file = subject.open()
        degrees = temperature if temperature is not None else subject.temperature
        return file, self._samples(file, degrees), degrees

    def _beside(self, file: PredictionsFile, against: Subject | None) -> Beside | None:
        if against is None:
            return None
        other = against.open()
        return Beside.of(
            len(file), self.scored(other, against.temperature), *shared_samples(file, other)
        )

    # -- calibrators --------------------------------------------------------------------------

    def calibrate(
        self,
        subject: Subject,
        kind: str,
        binning: AskedBinning = AS_EVALUATED,
        *,
        fit_on: Sequence[str] = (),
        oracle: bool = False,
    ) -> CalibratorEffect:
        """Fit a calibrator and show predictions before and after it; as `reliability`."""
        after = self.reliability(subject, binning, calibrator=kind, fit_on=fit_on, oracle=oracle)
        assert after.calibrator is not None
        return CalibratorEffect(
            calibrator=after.calibrator,
            before=self.reliability(subject, binning, temperature=1.0),
            after=after,
        )

    def _calibrator(self, subject: Subject, kind: str, fit_on: Sequence[str], oracle: bool) -> _Fit:
        reads_initial = known(kind).reads_initial
        fit_set = self._library.fit_set(subject, kind, fit_on, oracle=oracle)
        for file in fit_set.files:
            need_logits(file)
        key = (kind, fit_set.evaluation_id or "", *(file.digest for file in fit_set.files))
        beside = self._library.beside(subject, fit_set.files[0]) if reads_initial else None
        if beside is not None:
            need_logits(beside)
            key = (*key, f"beside {beside.digest}")

        def fit() -> tuple[Calibrator, FittedCalibrator]:
            return fit_calibrator(
                kind,
                [read_to_fit(f.path, n_files=len(fit_set.files)) for f in fit_set.files],
                oracle=oracle,
                evaluation_id=fit_set.evaluation_id,
                initial=None if beside is None else read_to_fit(beside.path),
            )

        return (key, *self._memory.remember("fits", (*key, oracle), fit, long=True))

    def _calibrated(
        self,
        subject: Subject,
        file: PredictionsFile,
        key: tuple[str, ...],
        calibrator: Calibrator,
    ) -> SampleScores:
        initial = self._initial_of(subject, file, calibrator)
        return self._memory.remember(
            "scores",
            (file.digest, key),
            lambda: calibrated_scores(file.path, [calibrator], initial=initial)[0],
            long=True,
        )

    def _initial_of(
        self, subject: Subject, file: PredictionsFile, calibrator: Calibrator
    ) -> Path | None:
        """Where the initial model's predictions of a file's samples lie, for who reads them."""
        return self._library.beside(subject, file).path if calibrator.reads_initial else None

    def transfer(
        self,
        run: str,
        kind: str,
        binning: AskedBinning = AS_EVALUATED,
        *,
        datasets: Sequence[str] = (),
    ) -> TransferMatrix:
        """Fit a calibrator on every data set of a run and test each on all.

        Args:
            run: a run that was tested.
            kind: of a calibrator.
            binning: of the errors.
            datasets: names; none: the ID data and the shifts.

        Raises:
            SpecError: the kind or a data set does not exist, there are more than 12 of them, or
                not all logits of one are stored.
            PredictionsError: predictions cannot be read.
        """
        known(kind)
        source = self._library.run(run)
        chosen, notes = self._chosen(run, datasets)
        fits, more = self._fits(chosen, kind)
        columns = [self._transfer_column(s, fits, binning.over(s.binning)) for s in chosen]
        first = binning.over(chosen[0].binning)
        told = [None, *(fitted for _, _, fitted in fits)]
        return TransferMatrix(
            source=source,
            kind=kind,
            n_bins=first.n_bins,
            scheme=first.scheme,
            norm=first.norm,
            rows=[
                TransferRow(calibrator=fitted, cells=[column[i] for column in columns])
                for i, fitted in enumerate(told)
            ],
            notes=notes + more,
        )

    def _chosen(self, run: str, datasets: Sequence[str]) -> tuple[list[Subject], list[str]]:
        """What a transfer matrix is of, and what is left out of it."""
        every = self._library.tested(run)
        by_name = {s.source.dataset: s for s in every}
        for name in datasets:
            if name not in by_name:
                raise UnknownNameError("data set of this run", name, [n or "" for n in by_name])
        chosen = [by_name[name] for name in dict.fromkeys(datasets)] or [
            s for s in every if s.source.role != "corruption"
        ]
        if not chosen:
            raise self._library.untested(run)
        if len(chosen) > TRANSFER_SETS:
            raise SpecError(
                f"a transfer matrix takes at most {TRANSFER_SETS} data sets, got {len(chosen)}",
                hint="Name those that matter with dataset=….",
            )
        left = 0 if datasets else len(every) - len(chosen)
        return chosen, [f"{left} corruptions are left out: they are taken in by name."] * (left > 0)

    def _fits(self, chosen: Sequence[Subject], kind: str) -> tuple[list[_Fit], list[str]]:
        """The honest fit where the run has its split, then an oracle of each data set."""
        notes = []
        fits = []
        try:
            fits.append(self._calibrator(chosen[0], kind, (), oracle=False))
        except NotFoundError as error:
            notes.append(f"{error.message} Every row here is an oracle.")
        if kind != "tsp":
            fits += [self._calibrator(s, kind, (s.target,), oracle=True) for s in chosen]
        return fits, notes

    def _transfer_column(
        self,
        subject: Subject,
        fits: Sequence[_Fit],
        binning: Binning,
    ) -> list[TransferCell]:
        """One data set without a calibrator and through each, in one pass over its logits."""
        file, memory = subject.open(), self._memory
        need_logits(file)

        def numbers_of(scores: SampleScores) -> dict[str, float]:
            return transfer_numbers(scores, binning, subject.draws)

        def cell(scored: _Scored) -> tuple[Any, ...]:
            return ("cell", file.digest, binning, subject.draws, scored)

        with memory.long_turn():
            missing = [
                (key, calibrator)
                for key, calibrator, _ in fits
                if memory.get("scores", (file.digest, key)) is None
                and memory.get("numbers", cell(key)) is None
            ]
            if missing:
                initial = self._initial_of(subject, file, missing[0][1])
                found = calibrated_scores(file.path, [c for _, c in missing], initial=initial)
                for (key, _), scores in zip(missing, found, strict=True):
                    memory.put("numbers", cell(key), numbers_of(scores))
            plain: dict[str, float] = memory.remember(
                "numbers", cell(1.0), lambda: numbers_of(self.scored(file, 1.0))
            )
            numbers = [plain] + [
                memory.remember(
                    "numbers",
                    cell(key),
                    lambda k=key, c=calibrator: numbers_of(self._calibrated(subject, file, k, c)),  # type: ignore[misc]
                    long=True,
                )
                for key, calibrator, _ in fits
            ]
        return [
            TransferCell(
                dataset=subject.source.dataset or file.metadata.dataset,
                role=subject.source.role or file.metadata.role,
                evaluation_id=subject.source.evaluation_id,
                n=subject.n,
                in_sample=key is not None and file.digest in key,
                **gains(plain, one),
                **one,
            )
            for key, one in zip([None, *(key for key, _, _ in fits)], numbers, strict=True)
        ]

    # -- forgetting ---------------------------------------------------------------------------

    def ledger(
        self, run: str, against: str, *, datasets: Sequence[str] = (), step: float = 0.1
    ) -> Ledger:
        """What a run has gained and lost against another; see `ledger_of`.

        Args:
            run: a run that was tested.
            against: another one, such as its zero-shot model.
            datasets: names; none: all that both were tested on.
            step: by how much a confidence must differ to have moved.

        Raises:
            PredictionsError: predictions cannot be read.
            UnknownNameError: a data set that not both were tested on.
        """
        base = {s.source.dataset: s for s in self._library.tested(against)}
        pairs = {
            name: (s, base[name])
            for s in self._library.tested(run)
            if (name := s.source.dataset) in base
        }
        for name in datasets:
            if name not in pairs:
                raise UnknownNameError("data set of both runs", name, [n or "" for n in pairs])
        sets, warnings = [], []
        for name in datasets or pairs:
            own, other = pairs[name]
            try:
                sets.append(self._ledger_set(own, other, step))
            except (NotFoundError, UnpairedError) as error:
                warnings.append(f"{name}: {error.message}")
        return Ledger(
            run=self._library.run(run),
            against=self._library.run(against),
            step=step,
            sets=sets,
            warnings=warnings,
        )

    def _ledger_set(self, own: Subject, other: Subject, step: float) -> LedgerSet:
        sides = {"run": own, "base": other}

        def make() -> dict[str, Any]:
            files = {name: subject.open() for name, subject in sides.items()}
            shared = share(
                files, lambda name: self.scored(files[name], sides[name].temperature), ["accuracy"]
            )
            return ledger_of(shared, "run", "base", step=step)

        # By their targets, and so without opening them: what was asked before costs nothing.
        key = ("ledger", *((s.target, s.temperature) for s in sides.values()), step)
        return LedgerSet(
            dataset=own.source.dataset or own.open().metadata.dataset,
            role=own.source.role or "id",
            evaluation_id=own.source.evaluation_id,
            against_id=other.source.evaluation_id,
            **self._memory.remember("answers", key, make),
        )

    # -- deciding -----------------------------------------------------------------------------

    def decide(
        self, run: str, *, risk: float, level: float = 0.95, datasets: Sequence[str] = ()
    ) -> Decision:
        """A threshold for at most so many errors among what is kept; see `choose_threshold`.

        It is chosen on the run's ID calibration split alone, at the temperature that the run was
        evaluated at, and shown on its ID data and on every shift.

        Args:
            run: a run that was tested.
            risk: the largest share of errors among what is kept.
            level: how often the promise holds.
            datasets: names; none: all that the run was tested on.

        Raises:
            PredictionsError: predictions cannot be read.
            NotFoundError: the run was not tested, or has no ID calibration split.
            SpecError: risk or level is not in (0, 1).
            UnknownNameError: a data set that the run was not tested on.
        """
        tested = {s.source.dataset or s.target: s for s in self._library.tested(run)}
        if not tested:
            raise self._library.untested(run)
        for name in datasets:
            if name not in tested:
                raise UnknownNameError("data set of this run", name, tested)
        first = next(iter(tested.values()))
        split = self._library.fit_set(first, "threshold", (), oracle=False).files[0]
        scores = self.scored(split, first.temperature)
        threshold = choose_threshold(scores, risk=risk, level=level)

        def kept(subject: Subject) -> KeptSet:
            key = ("kept", subject.target, subject.temperature, threshold, risk)
            found = self._memory.remember(
                "answers",
                key,
                lambda: kept_of(self.scored(subject.open(), subject.temperature), threshold, risk),
            )
            return KeptSet(
                dataset=subject.source.dataset or subject.target,
                role=subject.source.role or "id",
                evaluation_id=subject.source.evaluation_id,
                **found,
            )

        return Decision(
            run=self._library.run(run),
            risk=risk,
            level=level,
            threshold=threshold,
            chosen_on=KeptSet(
                dataset=split.metadata.dataset,
                role="id",
                evaluation_id=None,
                **kept_of(scores, threshold, risk),
            ),
            sets=[kept(tested[name]) for name in datasets or tested],
        )

    # -- planning -----------------------------------------------------------------------------

    def budget(
        self,
        subject: Subject,
        *,
        difference: float,
        metric: str = "ece",
        against: Subject | None = None,
        level: float = 0.95,
        power: float = 0.8,
    ) -> Budget:
        """How many samples show a difference; see `budget_of`.

        Raises:
            PredictionsError: predictions cannot be read.
            UnpairedError: the two share no samples.
            SpecError: an argument is not valid.
        """
        file = subject.open()
        beside = against.open() if against is not None else None
        scores, clusters, paired = self.scored(file, subject.temperature), file.clusters, None
        if against is not None and beside is not None:
            in_a, in_b = shared_samples(file, beside)
            scores = scores.take(in_a)
            paired = self.scored(beside, against.temperature).take(in_b)
            clusters = None if clusters is None else clusters[in_a]
        asked = (metric, difference, level, power)
        other = against and (against.target, beside and beside.digest)
        return self._memory.remember(
            "numbers",
            ("budget", subject.target, file.digest, other, *asked),
            lambda: budget_of(
                scores,
                subject.source,
                metric=metric,
                difference=difference,
                against=paired,
                against_source=against.source if against is not None else None,
                clusters=clusters,
                level=level,
                power=power,
                n_resamples=resamples_for(len(scores)),
            ),
        )


def need_logits(file: PredictionsFile) -> None:
    """Refuse predictions that keep only the largest logits.

    Raises:
        SpecError: not all logits are stored.
    """
    if file.metadata.storage != "full":
        raise SpecError(
            f"a calibrator must have all logits of {file.metadata.dataset}, whose stored "
            f"predictions keep the {file.metadata.k} largest of each sample.",
            hint="Import or evaluate it again with all logits.",
        )


def _measure_set(
    subject: Subject, file: PredictionsFile, temperature: float, measures: list[Measure]
) -> MeasureSet:
    return MeasureSet(
        source=subject.source,
        n=len(file),
        n_classes=len(file.metadata.class_names),
        temperature=temperature,
        n_resamples=subject.draws.n_resamples,
        seed=subject.draws.seed,
        measures=measures,
    )
