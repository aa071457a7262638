"""What stands out in stored results, and what is left of a working run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from calift_core.schema.report import EvaluationReport
from calift_core.schema.wire.results import Evaluation
from calift_core.schema.wire.runs import Progress, RunSummary
from frontend import findings, page

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


def test_worst_cell__is_the_least_accurate_and_lies_in_its_interval(
    evaluations: list[EvaluationReport],
) -> None:
    every = stored(evaluations)
    found = findings.worst_cell(every)
    assert found is not None
    assert found.value == min(e.accuracy for e in every)
    assert found.low < found.value < found.high
    assert findings.worst_cell([]) is None


def test_most_over_confident__is_the_largest_gap_and_none_where_it_may_be_nothing(
    evaluations: list[EvaluationReport],
) -> None:
    every = stored(evaluations)
    found = findings.most_over_confident(every)
    assert found is not None
    assert found.value == max(e.mean_confidence - e.accuracy for e in every)
    assert 0 < found.low < found.value < found.high
    assert findings.most_over_confident(stored(evaluations, mean_confidence=0.0)) is None
    modest = [e.model_copy(update={"mean_confidence": e.accuracy + 0.001}) for e in every]
    assert findings.most_over_confident(modest) is None
    assert findings.most_over_confident([]) is None


@pytest.mark.parametrize(
    ("whole", "eta", "passed", "says"),
    [
        (600.0, 60.0, 120, "about 8"),
        (600.0, 60.0, 590, "about 1"),  # no less than what is left of the phase
        (600.0, None, 900, "any moment"),
        (None, 60.0, 120, "in this phase"),
        (None, None, 120, ""),
    ],
)
def test_rest_words__are_over_all_phases(
    whole: float | None, eta: float | None, passed: int, says: str
) -> None:
    run = RunSummary(
        id="r", name="r", phase="RUNNING", method="flyp", model="m", suite="s", seed=0, tags=[],
        created_at=NOW, started_at=NOW - timedelta(seconds=passed), progress=Progress(eta_s=eta),
    )  # fmt: skip
    words = page.rest_words(run, whole, NOW)
    assert words.startswith(says) if says.startswith("about") else says in words
    assert bool(words) == bool(says)
