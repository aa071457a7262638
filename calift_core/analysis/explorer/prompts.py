"""What other prompts would have said of the same images."""

from calift_core.analysis.explorer.scored import ScoredPredictions
from calift_core.analysis.library import Subject
from calift_core.calibration import accuracy, brier, ece, nll, null_floor
from calift_core.errors import NotFoundError, SpecError
from calift_core.schema.wire.queries import PromptsQuery
from calift_core.schema.wire.results import PromptEffect, PromptEffects


class PromptAnswers(ScoredPredictions):
    """The classifier made anew of other prompts, on stored features."""

    def prompts(self, subject: Subject, query: PromptsQuery | None = None) -> PromptEffects:
        """Every kept set of prompts on the subject's data; none, and why, where none can be told.

        Raises:
            PredictionsError: the predictions or the prompts cannot be read.
        """
        query = query or PromptsQuery()
        file, binning = subject.open(), query.over(subject.binning)
        degrees = subject.degrees(query.temperature)

        def effects(items: list[PromptEffect], why: str | None = None) -> PromptEffects:
            return PromptEffects(
                source=subject.source, n=len(file), temperature=degrees, items=items, why=why
            )

        try:
            digest, heads = self._heads(subject)
            own = self.prompted(subject, file, "own", degrees).predicted
        except (NotFoundError, SpecError) as error:
            return effects([], f"{error.message} {error.hint or ''}".strip())

        def effect(name: str) -> PromptEffect:
            scores = self.prompted(subject, file, name, degrees)
            draws = subject.draws
            floor = null_floor(scores, binning, n_resamples=draws.n_resamples, seed=draws.seed)
            return PromptEffect(
                name=name,
                accuracy=accuracy(scores),
                nll=nll(scores),
                brier=brier(scores),
                ece=ece(scores, binning),
                null_mean=floor.mean,
                mean_confidence=float(scores.confidences.mean()),
                changed=float((scores.predicted != own).mean()),
            )

        key = ("prompts", file.digest, digest, binning, subject.draws, degrees)
        return effects(
            self._memory.remember(
                "numbers", key, lambda: [effect(name) for name in heads.names], long=True
            )
        )
