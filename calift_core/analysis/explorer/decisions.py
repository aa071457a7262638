"""What was forgotten, what to keep, how much to measure."""

from contextlib import suppress
from typing import Any

from calift_core.analysis.budget import budget_of
from calift_core.analysis.choosing import NONE, Choice
from calift_core.analysis.comparing import resamples_for, share
from calift_core.analysis.deciding import kept_of, promise_test, threshold_part
from calift_core.analysis.explorer.scored import ScoredPredictions
from calift_core.analysis.ledger import ledger_of
from calift_core.analysis.library import PredictionsFile, Subject
from calift_core.calibration.decisions import choose_threshold
from calift_core.errors import NotFoundError, SpecError, UnknownNameError, UnpairedError
from calift_core.predictions.shared import shared_samples
from calift_core.schema.wire.answers import Decision, KeptSet, Ledger, LedgerSet, PromiseTest
from calift_core.schema.wire.queries import BudgetQuery, DecisionQuery, LedgerQuery
from calift_core.schema.wire.results import Budget


class DecisionAnswers(ScoredPredictions):
    """Answers that a decision needs."""

    def ledger(self, run: str, query: LedgerQuery) -> Ledger:
        """What a run has gained and lost against another; see `ledger_of`.

        Raises:
            PredictionsError: predictions cannot be read.
            UnknownNameError: a data set that not both were tested on.
        """
        against, datasets, step = query.against, query.dataset, query.step
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

    def decision(self, run: str, query: DecisionQuery | None = None) -> Decision:
        """A threshold for at most so many errors among what is kept; see `choose_threshold`.

        It is found as an exported model's is (`analysis.deciding`), held against the ID test set,
        and shown on every shift.

        Raises:
            PredictionsError: predictions cannot be read.
            NotFoundError: the run was not tested, or has no ID part that its calibrator was not
                fitted on.
            UnknownNameError: a data set that the run was not tested on.
        """
        query = query or DecisionQuery()
        risk, level, datasets = query.risk, query.level, query.dataset
        tested = {s.source.dataset or s.target: s for s in self._library.tested(run)}
        if not tested:
            raise self._library.untested(run)
        for name in datasets:
            if name not in tested:
                raise UnknownNameError("data set of this run", name, tested)
        first = next(iter(tested.values()))
        choice = self._library.choice(first)
        if choice is not None and choice.calibrator is None:
            choice = None
        split = self._threshold_part(first, choice)
        scores = self.answered(first, split, choice)
        threshold = choose_threshold(scores, risk=risk, level=level)
        answers = first.temperature if choice is None else choice.digest
        warnings: list[str] = []

        def kept(subject: Subject) -> KeptSet:
            found = self._memory.remember(
                "answers",
                ("kept", subject.target, answers, threshold, risk),
                lambda: kept_of(self.answered(subject, subject.open(), choice), threshold, risk),
                long=True,  # as what it waits for
            )
            return KeptSet(
                dataset=subject.source.dataset or subject.target,
                role=subject.source.role or "id",
                evaluation_id=subject.source.evaluation_id,
                **found,
            )

        sets = []
        for name in datasets or tested:
            try:
                sets.append(kept(tested[name]))
            except SpecError as error:
                warnings.append(f"{name}: {error.message}")
        own = next((s for s in tested.values() if (s.source.role or "id") == "id"), None)
        test = None
        if threshold is not None and own is not None:
            with suppress(SpecError):  # without all logits; then a warning says so
                test = PromiseTest(
                    dataset=own.source.dataset or own.target,
                    **self._memory.remember(
                        "answers",
                        ("promise", own.target, answers, split.digest, threshold, risk, level),
                        lambda: promise_test(
                            scores,
                            self.answered(own, own.open(), choice),
                            threshold=threshold,
                            risk=risk,
                            level=level,
                        ),
                        long=True,
                    ),
                )
        return Decision(
            run=self._library.run(run),
            risk=risk,
            level=level,
            calibrator=NONE if choice is None else choice.kind,
            threshold=threshold,
            test=test,
            chosen_on=KeptSet(
                dataset=split.metadata.dataset,
                role="id",
                evaluation_id=None,
                **kept_of(scores, threshold, risk),
            ),
            sets=sets,
            warnings=warnings,
        )

    def _threshold_part(self, subject: Subject, choice: Choice | None) -> PredictionsFile:
        validation = self._library.validation(subject)
        part = threshold_part(fitted=choice is not None, has_validation=validation is not None)
        if part == "calibration":
            return self._library.fit_set(subject, "threshold", (), oracle=False).files[0]
        if validation is None:
            raise NotFoundError(
                f"{subject.source.run_name} has no ID validation part to find a threshold on, and "
                "its calibrator was fitted on the calibration part.",
                hint="Give the suite a validation part, or use no calibrator: `calift calibrate "
                "RUN --with none`.",
            )
        return validation

    def budget(self, subject: Subject, query: BudgetQuery) -> Budget:
        """How many samples show a difference; see `budget_of`.

        Raises:
            PredictionsError: predictions cannot be read.
            UnpairedError: the two share no samples.
            SpecError: an argument is not valid.
        """
        against = None if query.against is None else self._library.subject(query.against)
        file = subject.open()
        other_file = against.open() if against is not None else None
        scores, clusters, paired = self.scored(file, subject.temperature), file.clusters, None
        if against is not None and other_file is not None:
            in_a, in_b = shared_samples(file, other_file)
            scores = scores.take(in_a)
            paired = self.scored(other_file, against.temperature).take(in_b)
            clusters = None if clusters is None else clusters[in_a]
        options = query.model_dump(exclude={"against"})
        other = against and (against.target, other_file and other_file.digest)
        return self._memory.remember(
            "numbers",
            ("budget", subject.target, file.digest, other, *options.values()),
            lambda: budget_of(
                scores,
                subject.source,
                against=paired,
                against_source=against.source if against is not None else None,
                clusters=clusters,
                n_resamples=resamples_for(len(scores)),
                **options,
            ),
        )
