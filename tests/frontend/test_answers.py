"""Comparisons in sentences: what they say follows from the differences that they are made of."""

from __future__ import annotations

from calift_core.schema.wire.results import PairedDifference
from frontend import answers
from frontend.panels.compare.answers import batches


def of(
    dataset: str, difference: float, *, metric: str = "accuracy", clear: bool = True
) -> PairedDifference:
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


def test_on_accuracy__says_how_far_where_and_where_nobody_can_tell() -> None:
    said, dataset, _ = answers.on_accuracy("CaRot", "FLYP", FOUND)
    assert dataset == "contrast/5"
    assert "**CaRot**'s accuracy is 22.9 points higher (21.7 to 24.1) than FLYP's" in said
    assert "fog\\/1 it is 5.0 points lower (3.8 to 6.2)" in said
    assert "brightness\\/1 they cannot be told apart" in said
    assert "Of 3 data sets: higher on 1, lower on 1, not distinguishable on 1." in said


def test_on_accuracy__the_other_way_round_swaps_lower_and_higher() -> None:
    turned = [
        d.model_copy(
            update={"difference": -d.difference, "interval": (-d.interval[1], -d.interval[0])}
        )
        for d in FOUND
        if d.interval is not None
    ]
    said = answers.on_accuracy("FLYP", "CaRot", turned).sentence
    forth = answers.on_accuracy("CaRot", "FLYP", FOUND).sentence
    swapped = said.replace("lower", "x").replace("higher", "lower").replace("x", "higher")
    assert (
        swapped.split("; ")[0].replace("FLYP", "x").replace("CaRot", "FLYP").replace("x", "CaRot")
        == forth.split("; ")[0]
    )


def test_answers__nothing_clear_is_said_so_and_names_format_nothing() -> None:
    said = answers.on_accuracy("a*b", "[c](d)", [of("x", 0.01, clear=False)]).sentence
    assert "cannot be told apart" in said
    assert "a\\*b" in said
    assert "\\[c\\]" in said
    assert answers.on_accuracy("a", "b", []).sentence == ""
    said = answers.on_calibration("a", "b", [of("x", 0.01, metric="ece", clear=False)]).sentence
    assert "cannot be told apart by their calibration" in said


def test_on_calibration__a_smaller_squared_error_is_better() -> None:
    found = [of("x", -0.02, metric="ece"), of("y", 0.01, metric="ece")]
    said, dataset, note = answers.on_calibration("a", "b", found)
    assert dataset == "x"
    assert "**a** is better calibrated than b on x" in said
    assert "ECE 48.0\u00a0% against 50.0\u00a0%, 2.0 points lower" in said
    assert "200.0\u00a0pp² lower, 95 % interval 80.0 to 320.0" in note
    assert "worse on y" in said


def test_batches__give_every_name_once_one_at_first() -> None:
    names = [str(i) for i in range(22)]
    found = list(batches(names))
    assert [n for batch in found for n in batch] == names
    assert len(found[0]) == 1
