"""A headline is set against another on data that both were judged on, and on nothing else."""

import pytest

from calift_core.schema.report import EvaluationReport, Summary
from calift_core.schema.wire.answers import Board, Standing
from calift_core.schema.wire.runs import RunSummary
from frontend import page
from frontend.gains import Gain, clear_gains, gains
from tests.conftest import example_evaluation, example_predictions


def report_on(dataset: str, role: str, *, accuracy: float, n: int = 300) -> EvaluationReport:
    made = example_evaluation(example_predictions(dataset=dataset, role=role, n=n))
    return made.model_copy(update={"accuracy": accuracy})


ID = report_on("id", "id", accuracy=0.8)


def test_gains__sets_that_are_not_in_common_move_nothing():
    run = [ID, report_on("art", "shift", accuracy=0.5), report_on("clay", "shift", accuracy=0.1)]
    base = [ID, report_on("art", "shift", accuracy=0.4), report_on("ink", "shift", accuracy=0.9)]
    found = gains(run, base)
    assert found["id_accuracy"] == Gain(0.0, 1, 1)
    gain = found["ood_accuracy"]
    assert (round(gain.value, 9), gain.common, gain.all) == (0.1, 1, 2)
    smaller = report_on("id", "id", accuracy=0.7, n=200)
    assert gains([smaller], [ID]) == dict.fromkeys(
        ("id_accuracy", "ood_accuracy", "id_ece", "ood_ece")
    )


@pytest.mark.parametrize(("worse", "says"), [(0.2, None), (0.001, "worse")])
def test_headline_cards__a_difference_that_could_be_noise_has_no_colour(worse, says):
    board = Board(
        role="id", metric="accuracy", datasets=["id"], n=300, n_resamples=5000, level=0.95,
        standings=[
            Standing(run_id=name, value=v, decided=v, leads=p >= 0.05, p_value=p)
            for name, v, p in (("base", 0.802, 1.0), ("run", 0.8, worse))
        ],
    )  # fmt: skip
    clear = clear_gains([board], "run")
    assert clear == ({} if says is None else {"id_accuracy": False})
    gained = {"id_accuracy": Gain(-0.002, 1, 1)}
    run = RunSummary.model_construct(summary=Summary(id_accuracy=0.8))
    note = page.headline_cards(run, gained, clear)[0][2]
    assert ('class="down"' in note, "(worse)" in note) == (says is not None,) * 2
    assert ("not distinguishable" in note) == (says is None)


def test_gains__severities_of_one_corruption_count_once():
    def at(severity, name, accuracy):
        made = report_on(f"{name}/{severity}", "corruption", accuracy=accuracy)
        return made.model_copy(update={"corruption": name, "severity": severity})

    run = [ID, at(1, "fog", 0.9), at(5, "fog", 0.5), at(3, "snow", 0.3)]
    base = [ID, at(1, "fog", 0.8), at(5, "fog", 0.4), at(3, "snow", 0.5)]
    gain = gains(run, base)["ood_accuracy"]
    assert (round(gain.value, 9), gain.common, gain.all) == (-0.05, 3, 3)
