"""Calibrators fitted on one data set and looked at on others."""

from collections.abc import Sequence
from typing import Any

from calift_core.analysis.calibrators import calibrated_scores, gains, transfer_numbers
from calift_core.analysis.explorer.measures import MeasureAnswers
from calift_core.analysis.explorer.scored import Fit, Scored, need_logits
from calift_core.analysis.library import Subject
from calift_core.calibration import Binning, SampleScores
from calift_core.errors import NotFoundError, SpecError, UnknownNameError
from calift_core.schema.wire.queries import (
    TRANSFER_SETS,
    CalibratorQuery,
    ReliabilityQuery,
    TransferQuery,
)
from calift_core.schema.wire.results import (
    CalibratorEffect,
    TransferCell,
    TransferMatrix,
    TransferRow,
)


class CalibratorAnswers(MeasureAnswers):
    """What a calibrator makes of stored predictions."""

    def calibrate(
        self, subject: Subject, query: CalibratorQuery | None = None, *, fit_on: Sequence[str] = ()
    ) -> CalibratorEffect:
        """Fit a calibrator and show predictions before and after it; as `reliability`."""
        query = query or CalibratorQuery()
        binning = query.model_dump(include={"n_bins", "scheme", "norm"})
        through = ReliabilityQuery(
            calibrator=query.kind, fit_on=query.fit_on, oracle=query.oracle, **binning
        )
        after = self.reliability(subject, through, fit_on=fit_on)
        assert after.calibrator is not None
        return CalibratorEffect(
            calibrator=after.calibrator,
            before=self.reliability(subject, ReliabilityQuery(temperature=1.0, **binning)),
            after=after,
        )

    def transfer(self, run: str, query: TransferQuery | None = None) -> TransferMatrix:
        """Fit a calibrator on every data set of a run and test each on all.

        Raises:
            SpecError: a data set does not exist, there are more than 12 of them, or not all logits
                of one are stored.
            PredictionsError: predictions cannot be read.
        """
        query = query or TransferQuery()
        kind = query.kind
        source = self._library.run(run)
        chosen, notes = self._chosen(run, query.dataset)
        fits, more = self._fits(chosen, kind)
        columns = [self._transfer_column(s, fits, query.over(s.binning)) for s in chosen]
        first = query.over(chosen[0].binning)
        fitted_on = [None, *(fitted for _, _, fitted in fits)]
        return TransferMatrix(
            source=source,
            kind=kind,
            n_bins=first.n_bins,
            scheme=first.scheme,
            norm=first.norm,
            rows=[
                TransferRow(calibrator=fitted, cells=[column[i] for column in columns])
                for i, fitted in enumerate(fitted_on)
            ],
            notes=notes + more,
        )

    def _chosen(self, run: str, datasets: Sequence[str]) -> tuple[list[Subject], list[str]]:
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

    def _fits(self, chosen: Sequence[Subject], kind: str) -> tuple[list[Fit], list[str]]:
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
        self, subject: Subject, fits: Sequence[Fit], binning: Binning
    ) -> list[TransferCell]:
        """One data set without a calibrator and through each, in one pass over its logits."""
        file, memory = subject.open(), self._memory
        need_logits(file)

        def numbers_of(scores: SampleScores) -> dict[str, float]:
            return transfer_numbers(scores, binning, subject.draws)

        def cell(scored: Scored) -> tuple[Any, ...]:
            return ("cell", file.digest, binning, subject.draws, scored)

        with memory.long_slot():
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
