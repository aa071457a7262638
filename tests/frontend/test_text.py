"""Numbers and states in words: as people write them, and formatting nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calift_core.schema.report import EvaluationReport
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
        (text.size(2_700_000), "2.7 MB"),
        (text.duration(7500), "2 h 05 min"),
        (text.duration(59.7), "1 min 00 s"),
    ],
)
def test_text__reads_as_people_write(said: str, expected: str) -> None:
    assert said.replace("\u00a0", " ") == expected


@given(st.text(alphabet="ab`*_[]()<>#$:~|!-\\", max_size=20))
def test_text__markdown_of_what_people_typed_formats_nothing(typed: str) -> None:
    escaped = text.md(typed)
    assert re.sub(r"\\(.)", r"\1", escaped) == typed.replace("\n", " ")
    assert not re.search(r"(?<!\\)(\\\\)*[`*_\[<$]", escaped)


def test_metrics__names_are_fields_of_an_evaluation() -> None:
    assert set(text.METRICS) <= set(EvaluationReport.model_fields)
