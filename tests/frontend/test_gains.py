"""A headline is set against another on data that both were judged on, and on nothing else."""

from __future__ import annotations

from typing import Any

from calift_core.schema.report import EvaluationReport
from frontend.gains import Gain, gains
from tests.conftest import example_evaluation, example_predictions


def judged(dataset: str, role: str, *, accuracy: float, n: int = 300) -> EvaluationReport:
    made = example_evaluation(example_predictions(dataset=dataset, role=role, n=n))
    return made.model_copy(update={"accuracy": accuracy})


ID = judged("id", "id", accuracy=0.8)


def test_gains__a_set_that_only_one_was_judged_on_moves_nothing() -> None:
    run = [ID, judged("art", "shift", accuracy=0.5), judged("clay", "shift", accuracy=0.1)]
    base = [ID, judged("art", "shift", accuracy=0.4), judged("ink", "shift", accuracy=0.9)]
    found = gains(run, base)
    assert found["id_accuracy"] == Gain(0.0, 1, 1)
    gain = found["ood_accuracy"]
    assert gain is not None
    assert (round(gain.value, 9), gain.common, gain.all) == (0.1, 1, 2)


def test_gains__another_part_of_a_test_set_is_no_set_in_common() -> None:
    smaller = judged("id", "id", accuracy=0.7, n=200)
    assert gains([smaller], [ID]) == dict.fromkeys(
        ("id_accuracy", "ood_accuracy", "id_ece", "ood_ece")
    )


def test_gains__severities_of_one_corruption_count_once() -> None:
    def at(severity: int, name: str, accuracy: float) -> Any:
        made = judged(f"{name}/{severity}", "corruption", accuracy=accuracy)
        return made.model_copy(update={"corruption": name, "severity": severity})

    run = [ID, at(1, "fog", 0.9), at(5, "fog", 0.5), at(3, "snow", 0.3)]
    base = [ID, at(1, "fog", 0.8), at(5, "fog", 0.4), at(3, "snow", 0.5)]
    gain = gains(run, base)["ood_accuracy"]
    assert gain is not None
    assert (round(gain.value, 9), gain.common, gain.all) == (-0.05, 3, 3)
