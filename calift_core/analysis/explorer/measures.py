"""Diagrams, measures and slices."""

from collections.abc import Callable, Sequence

from calift_core.analysis.explorer.scored import Scored, ScoredPredictions, need_logits
from calift_core.analysis.library import PredictionsFile, Subject
from calift_core.analysis.measures import audit_of, classwise_measure, measures_of
from calift_core.analysis.reliability import reliability_numbers, smooth_curve
from calift_core.analysis.slices import slice_of_set, slice_page
from calift_core.calibration import Binning, SampleScores
from calift_core.errors import SpecError
from calift_core.schema.wire.queries import (
    AuditQuery,
    MetricsQuery,
    ReliabilityQuery,
    RunSlicesQuery,
    SlicesQuery,
)
from calift_core.schema.wire.results import Measure, MeasureSet, Reliability, Slice, SlicePage


class MeasureAnswers(ScoredPredictions):
    """Numbers of one model on one data set, or slice by slice."""

    def reliability(
        self, subject: Subject, query: ReliabilityQuery | None = None, *, fit_on: Sequence[str] = ()
    ) -> Reliability:
        """The reliability diagram at any binning and temperature, or through a calibrator.

        Args:
            fit_on: what the calibrator is fitted on, see `Library.fit_set`; none: as the query
                says.

        Raises:
            PredictionsError: the predictions cannot be read.
            NotFoundError: the run kept no other prompts, or not the features of these images.
            SpecError: a calibrator together with a temperature, or on predictions that do not keep
                all logits.
            LeakageError: the calibrator's data are not the ID calibration split, without `oracle`.
        """
        query = query or ReliabilityQuery()
        file, binning = subject.open(), query.over(subject.binning)
        temperature, calibrator, prompts = query.temperature, query.calibrator, query.prompts
        degrees = subject.degrees(temperature)
        if prompts is not None:
            if calibrator is not None:
                raise SpecError(
                    f"calibrator {calibrator!r} must stand alone, got the prompts {prompts!r} as "
                    "well.",
                    hint="A calibrator is fitted on the logits of the run's own prompts.",
                )
            digest, _ = self._heads(subject)
            found = self._diagram(
                subject,
                file,
                binning,
                ("prompts", digest, prompts, f"{degrees!r}"),
                degrees,
                lambda: self.prompted(subject, file, prompts, degrees),
            )
            return found.model_copy(update={"prompts": prompts})
        if calibrator is None:
            return self._diagram(
                subject, file, binning, degrees, degrees, lambda: self.scored(file, degrees)
            )
        need_logits(file)
        if temperature is not None:
            raise SpecError(
                f"calibrator {calibrator!r} must stand alone, got a temperature ({temperature:g})"
                " as well.",
                hint="A calibrator is fitted on the stored logits; leave temperature out.",
            )
        fit_on = fit_on or ([query.fit_on] if query.fit_on else [])
        key, fitted, description = self._calibrator(subject, calibrator, fit_on, query.oracle)
        found = self._diagram(
            subject, file, binning, key, 1.0, lambda: self._calibrated(subject, file, key, fitted)
        )
        return found.model_copy(update={"calibrator": description, "in_sample": file.digest in key})

    def _diagram(
        self,
        subject: Subject,
        file: PredictionsFile,
        binning: Binning,
        scored: Scored,
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

    def measures(self, subject: Subject, query: MetricsQuery | None = None) -> MeasureSet:
        """Every measure; the class-wise error only where all logits are stored.

        Raises:
            PredictionsError: the predictions cannot be read.
        """
        query = query or MetricsQuery()
        file, binning = subject.open(), query.over(subject.binning)
        degrees = subject.degrees(query.temperature)
        classwise = query.classwise and file.metadata.storage == "full"
        extra = self._classwise(subject, file, degrees, binning) if classwise else None
        found: list[Measure] = self._memory.remember(
            "numbers",
            ("measures", file.digest, binning, subject.draws, degrees, classwise),
            lambda: measures_of(
                self.scored(file, degrees),
                binning,
                subject.draws,
                n_classes=len(file.metadata.class_names),
                classwise=extra,
            ),
        )
        return _measure_set(subject, file, degrees, found)

    def audit(self, subject: Subject, query: AuditQuery | None = None) -> MeasureSet:
        """The same predictions under the estimators in use; see `audit_of`.

        Raises:
            PredictionsError: the predictions cannot be read.
        """
        query = query or AuditQuery()
        file, degrees = subject.open(), subject.degrees(query.temperature)
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

    def slices(self, subject: Subject, query: SlicesQuery | None = None) -> SlicePage:
        """A page of slices of one set of predictions; see `slice_page`.

        Raises:
            PredictionsError: the predictions cannot be read.
            SpecError: the condition or the grouping is not valid.
        """
        query = query or SlicesQuery()
        file, binning = subject.open(), query.over(subject.binning)
        degrees = subject.degrees(query.temperature)
        tags = self._tags(file, query.where)
        found: SlicePage = self._memory.remember(
            "numbers",
            ("slices", subject.source.evaluation_id, file.digest, binning, subject.draws, degrees,
             query, tags),
            lambda: slice_page(
                self._samples(file, degrees, tags, query.area), subject.source, query, binning,
                subject.draws,
                temperature=degrees,
            ),
        )  # fmt: skip
        return found.model_copy(update={"source": subject.source})

    def run_slices(self, run: str, query: RunSlicesQuery | None = None) -> SlicePage:
        """One slice per data set of a run: the samples that meet a condition on each.

        Data sets without such a sample are left out of the items.

        Raises:
            PredictionsError: predictions cannot be read.
            SpecError: the condition is not valid.
        """
        query = query or RunSlicesQuery()
        source = self._library.run(run)
        roles = query.role
        tested = [s for s in self._library.tested(run) if not roles or s.source.role in roles]
        page = tested[query.offset : query.offset + query.limit]
        items = [
            one.model_copy(update={"evaluation_id": s.source.evaluation_id, "role": s.source.role})
            for s in page
            for one in self._slice_of_set(s, query)
        ]
        first = query.over(tested[0].binning if tested else Binning())
        degrees = tested[0].degrees(query.temperature) if tested else query.temperature or 1.0
        return SlicePage(
            source=source,
            by="dataset",
            where=query.where or "",
            sort="key",
            descending=False,
            min_n=query.min_n,
            scheme=first.scheme,
            norm=first.norm,
            temperature=degrees,
            n=sum(s.n for s in page),
            n_matching=sum(one.n for one in items),
            total=len(tested),
            offset=query.offset,
            items=items,
        )

    def _slice_of_set(self, subject: Subject, query: RunSlicesQuery) -> list[Slice]:
        """The slice, or nothing where no sample meets the condition."""
        file, binning = subject.open(), query.over(subject.binning)
        degrees = subject.degrees(query.temperature)
        title = subject.source.dataset or file.metadata.dataset
        where, min_n = query.where, query.min_n
        tags = self._tags(file, where)

        def make() -> list[Slice]:
            one = slice_of_set(
                self._samples(file, degrees, tags),
                binning,
                subject.draws,
                title=title,
                where=where,
                min_n=min_n,
            )
            return [] if one is None else [one]

        key = ("set", file.digest, title, binning, subject.draws, degrees, where, min_n,
               tags)  # fmt: skip
        return self._memory.remember("numbers", key, make)


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
