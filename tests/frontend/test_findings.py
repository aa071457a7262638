"""What stands out in stored results, and what is left of a working run."""

from datetime import UTC, datetime

from calift_core.schema.report import EvaluationReport
from calift_core.schema.wire.results import Evaluation
from frontend import findings

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def stored(reports: list[EvaluationReport], **changes: float) -> list[Evaluation]:
    return [
        Evaluation.model_validate(
            r.model_dump()
            | {"id": str(i), "run_id": "r", "run_name": "r", "method": "flyp", "created_at": NOW}
            | changes
        )
        for i, r in enumerate(reports)
    ]


def test_worst_cell__is_the_least_accurate_and_lies_in_its_interval(evaluations):
    every = stored(evaluations)
    found = findings.worst_cell(every)
    assert found.value == min(e.accuracy for e in every)
    assert found.low < found.value < found.high
    assert findings.worst_cell([]) is None


def test_most_over_confident__is_the_largest_gap_and_none_where_it_may_be_nothing(evaluations):
    every = stored(evaluations)
    found = findings.most_over_confident(every)
    assert found.value == max(e.mean_confidence - e.accuracy for e in every)
    assert 0 < found.low < found.value < found.high
    assert findings.most_over_confident(stored(evaluations, mean_confidence=0.0)) is None
    modest = [e.model_copy(update={"mean_confidence": e.accuracy + 0.001}) for e in every]
    assert findings.most_over_confident(modest) is None
    assert findings.most_over_confident([]) is None
