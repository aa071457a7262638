"""Numbers and states in words: as people write them, and formatting nothing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calift_core.schema.report import EvaluationReport
from calift_core.schema.wire.runs import RunSummary
from frontend import text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (text.percent(0.0312), "3.1 %"),
        (text.percent(-0.0001), "0.0 %"),
        (text.percent(-0.02), "−2.0 %"),
        (text.percent(None), "–"),
        (text.points(0.012), "+1.2 pp"),
        (text.ece_with_floor(0.031, 0.012), "3.1 % (floor 1.2 %)"),
        (text.number(0.13), "0.130"),
        (text.number(123.4), "123"),
        (text.number(8.96e-5), "9.0e-5"),
        (text.number(-0.000896), "−9.0e-4"),
        (text.number(12_345.6), "12,346"),
        (text.number(999.7), "1,000"),
        (text.number(99_999.9), "1.0e5"),
        (text.number(1_234_567), "1.2e6"),
        (text.number(0.0), "0.00"),
        (text.size(2_700_000), "2.7 MB"),
        (text.duration(7500), "2 h 05 min"),
        (text.duration(59.7), "1 min 00 s"),
    ],
)
def test_text__reads_as_people_write(said, expected):
    assert said.replace("\u00a0", " ") == expected


@given(st.text(alphabet="ab`*_[]()<>#$:~|!-\\", max_size=20))
def test_text__markdown_of_what_people_typed_formats_nothing(typed):
    escaped = text.md(typed)
    assert re.sub(r"\\(.)", r"\1", escaped) == typed.replace("\n", " ")
    assert not re.search(r"(?<!\\)(\\\\)*[`*_\[<$]", escaped)


def test_metrics__names_are_fields_of_an_evaluation():
    assert set(text.METRICS) <= set(EvaluationReport.model_fields)


def a_run(run_id: str, name: str, sweep: str | None = None, seed: int = 0) -> RunSummary:
    return RunSummary.model_validate(
        {
            "id": run_id, "name": name, "phase": "SUCCEEDED", "method": "flyp", "model": "m",
            "suite": "s", "seed": seed, "tags": [], "created_at": "2026-01-01T00:00:00Z",
            "sweep_id": sweep,
        }
    )  # fmt: skip


def test_labels__of_one_sweep_leave_its_name_out_and_of_two_do_not():
    one = [a_run("1", "Rates: all: flyp seed 0", "s"), a_run("2", "Rates: all: carot seed 0", "s")]
    other = a_run("3", "More: flyp seed 0", "t")
    zero = a_run("4", "Zero-shot")
    short = {"1": "flyp seed 0", "2": "carot seed 0"}
    assert text.labels(one) == short
    assert text.labels([zero, *one]) == {"4": "Zero-shot", **short}
    whole = {run.id: run.name for run in [*one, other]}
    assert text.labels([*one, other]) == whole
    assert text.labels(one[:1]) == {"1": one[0].name}
    assert text.labels(one, whole=True) == {run.id: run.name for run in one}


@given(
    names=st.lists(st.sampled_from(["a", "b", "S: a", "S: b", "S: ", "T: x: a"]), min_size=1),
    sweeps=st.lists(st.sampled_from([None, "s", "t"]), min_size=20, max_size=20),
)
def test_labels__are_all_different_whatever_runs_are_called(names, sweeps):
    runs = [a_run(f"{k:06d}", name, sweeps[k % 20], seed=k % 3) for k, name in enumerate(names)]
    assert len(set(text.labels(runs).values())) == len(runs)
