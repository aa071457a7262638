"""Diagrams, measures and slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from calift_core.analysis.explorer.scored import Scored, Scores, need_logits
from calift_core.analysis.library import PredictionsFile, Subject
from calift_core.analysis.measures import audit_of, classwise_measure, measures_of
from calift_core.analysis.reliability import reliability_numbers, smooth_curve
from calift_core.analysis.slices import By, Sort, slice_of_set, slice_page
from calift_core.calibration import Binning, SampleScores
from calift_core.errors import SpecError
from calift_core.schema.report import Role
from calift_core.schema.wire.results import (
    AS_EVALUATED,
    AskedBinning,
    Measure,
    MeasureSet,
    Reliability,
    Slice,
    SlicePage,
)


class MeasureAnswers(Scores):
    """Numbers of one model on one data set, or slice by slice."""

    def reliability(
        self,
        subject: Subject,
        binning: AskedBinning = AS_EVALUATED,
        *,
        temperature: float | None = None,
        calibrator: str | None = None,
        fit_on: Sequence[str] = (),
        oracle: bool = False,
        prompts: str | None = None,
    ) -> Reliability:
        """The reliability diagram at any binning and temperature, or through a calibrator.

        Args:
            temperature: divides the logits.
            calibrator: its kind; the diagram is of what it makes of the logits.
            fit_on: what the calibrator is fitted on, see `Library.fit_set`.
            oracle: allow data other than the ID calibration split.
            prompts: a name that `prompts` lists; the diagram is of what these would have said.

        Raises:
            PredictionsError: the predictions cannot be read.
            NotFoundError: the run kept no other prompts, or not the features of these images.
            SpecError: a calibrator together with a temperature, or on predictions that do not keep
                all logits.
            LeakageError: the calibrator's data are not the ID calibration split, without `oracle`.
        """
        file, asked = subject.open(), binning.over(subject.binning)
        degrees = temperature if temperature is not None else subject.temperature
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
                asked,
                ("prompts", digest, prompts, f"{degrees!r}"),
                degrees,
                lambda: self.prompted(subject, file, prompts, degrees),
            )
            return found.model_copy(update={"prompts": prompts})
        if calibrator is None:
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
