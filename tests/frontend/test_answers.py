"""Comparisons in sentences: what they say follows from the differences that they are made of."""

from statistics import fmean

from hypothesis import given
from hypothesis import strategies as st

from calift_core.schema.wire.answers import Board
from calift_core.schema.wire.results import PairedDifference
from frontend import answers, text
from frontend.panels.compare.answers import batches


def of(dataset, difference, *, metric="accuracy", clear=True):
    reach = 0.012 if clear else abs(difference) + 0.01
    interval = (difference - reach, difference + reach)
    squared = {"baseline": 0.01, "value": 0.01 + difference, "difference": difference,
               "interval": interval}  # fmt: skip
    return PairedDifference.model_validate(
        {
            "dataset": dataset, "role": "shift", "metric": metric, "baseline": 0.5,
            "value": 0.5 + difference, "difference": difference, "n": 100, "distinguishable": clear,
            "interval": None if metric == "ece" else interval,
            "squared": squared if metric == "ece" else None,
        }
    )  # fmt: skip


FOUND = [of("contrast/5", 0.229), of("fog/1", -0.05), of("brightness/1", 0.001, clear=False)]


def test_by_dataset__says_how_far_where_and_where_nobody_can_tell():
    output, dataset, _ = answers.by_dataset("CaRot", "FLYP", FOUND, "accuracy")
    assert dataset == "contrast/5"
    assert output == (
        "On contrast\\/5 **CaRot**'s accuracy is 22.9 points higher than FLYP's (95 % interval "
        "21.7 to 24.1); on fog\\/1 it is 5.0 points lower (3.8 to 6.2); on brightness\\/1 they "
        "cannot be told apart (−1.0\u00a0pp to +1.2\u00a0pp). Of 3 data sets: better on 1, worse "
        "on 1, not distinguishable on 1."
    )


def test_by_dataset__nothing_clear_is_no_claim_and_names_format_nothing():
    for metric in answers.WORDS:
        unclear = [of("x", 0.01, metric=metric, clear=False)]
        output = answers.by_dataset("a*b", "[c](d)", unclear, metric).sentence
        assert "of **a\\*b** and \\[c\\]\\(d\\) cannot be told apart" in output
        assert "a*b and [c](d) cannot" in answers.plain(output)
        assert answers.by_dataset("a", "b", [], metric).sentence == ""


def test_by_dataset__a_smaller_calibration_error_is_better():
    found = [of("x", -0.0096, metric="ece"), of("y", 0.02, metric="ece")]
    output, dataset, note = answers.by_dataset("a", "b", found, "ece")
    assert dataset == "x" or "worse on 1" in output
    assert "better on 1, worse on 1" in output
    assert "ECE 49.0\u00a0% against 50.0\u00a0%" in output
    assert "pp²" in note


def board(role: str, metric: str, values: dict[str, float], reach: float) -> Board:
    standings = [
        {"run_id": run, "value": value, "decided": value, "leads": True, "p_value": 1.0,
         "reach": dict.fromkeys(values, reach)}
        for run, value in values.items()
    ]  # fmt: skip
    return Board.model_validate(
        {"role": role, "metric": metric, "datasets": ["one", "two"][: 1 + (role != "id")], "n": 100,
         "n_resamples": 1000, "level": 0.95, "standings": standings}
    )  # fmt: skip


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 0.2))
def test_overall__says_higher_or_lower_exactly_where_the_interval_leaves_zero_out(
    mine, theirs, reach
):
    boards = [
        board(role, metric, {"a": mine, "b": theirs}, reach)
        for role in ("id", "shift")
        for metric in answers.WORDS
    ]
    names = {"a": "A", "b": "B"}
    there, back = (answers.overall(*pair, boards, names) for pair in ("ab", "ba"))
    for one, other in zip(there, back, strict=True):
        assert one.sentence.startswith("Over the 2 shifts")
        clear = abs(mine - theirs) > reach
        assert ("cannot be told apart" in one.sentence) != clear
        assert ("higher" in one.sentence) == (clear and mine > theirs)
        assert ("lower" in one.sentence) == ("higher" in other.sentence)
    assert answers.overall("a", "b", [], names) == []


def test_of_run__is_over_all_sets_of_a_role(evaluations):
    output = answers.of_run("A", evaluations)
    mean = fmean(e.accuracy for e in evaluations if e.role == "shift")
    assert output.startswith(
        f"**A**: over the 3 shifts accuracy {text.percent(mean)} (95 % interval"
    )
    assert output.count("floor") == 3
    assert answers.of_run("A", []) == ""


def test_batches__give_every_name_once_one_at_first():
    names = [str(i) for i in range(22)]
    found = list(batches(names))
    assert [n for batch in found for n in batch] == names
    assert len(found[0]) == 1
