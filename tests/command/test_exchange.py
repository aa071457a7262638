"""Runs to other trackers and back: nothing is lost, nothing is written twice."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calift.exchange import _stems, pull
from calift.interop import csv_file, mlflow, tensorboard
from calift.interop.runs import Exchanged, outgoing
from calift_core.analysis import foreign_curves
from calift_core.analysis.imported import import_into_folder
from calift_core.errors import CaliftError, DataError, SpecError
from calift_core.schema.wire.runs import Metrics, MetricSeries
from tests.conftest import unavailable
from tests.frontend import seed


@pytest.fixture
def sent(tmp_path: Path) -> list[Exchanged]:
    """Two runs of folders: one with curves, one whose predictions were imported."""
    found = []
    for name, kind in (("first", "FLYP"), ("second", "CaRot")):
        folder = tmp_path / name
        made = seed.predictions(seed.KINDS[kind], "test", "id", n=200, harm=0.0, seed=1)
        import_into_folder(made, folder, name=name)
        if name == "first":
            lines = [
                {"step": s, "epoch": 0, "loss": math.exp(-s / 7), "lr": 1e-5} for s in (1, 2, 5)
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        found.append(outgoing(str(folder), None))
    return found


def same(one: Exchanged, other: Exchanged, *, relative: float) -> None:
    assert (one.name, one.id) == (other.name, other.id)
    assert dict(one.settings) == dict(other.settings)
    assert [(s.name, s.steps) for s in sorted(one.curves.series, key=lambda s: s.name)] == [
        (s.name, s.steps) for s in sorted(other.curves.series, key=lambda s: s.name)
    ]
    values = {s.name: s.values for s in other.curves.series}
    for series in one.curves.series:
        np.testing.assert_allclose(series.values, values[series.name], rtol=relative)
    assert one.numbers.keys() == other.numbers.keys()
    for name, value in one.numbers.items():
        assert other.numbers[name] == pytest.approx(value, rel=relative, abs=1e-12)


@pytest.mark.parametrize(
    ("tracker", "where", "relative"),
    [(csv_file, "curves.csv", 0.0), (tensorboard, "events", 1e-6), (mlflow, "mlruns", 0.0)],
)
def test_push_and_pull__give_the_run_back(
    sent: list[Exchanged], tmp_path: Path, tracker: ModuleType, where: str, relative: float
) -> None:
    package = tracker.__name__.rpartition(".")[2]
    if package != "csv_file" and importlib.util.find_spec(package) is None:
        unavailable(f"{package} is not installed")
    place = str(tmp_path / where)
    tracker.push(sent, place, again=False)
    tracker.push(sent, place, again=True)
    found = {run.id: run for run in tracker.pull(place)}
    assert found.keys() == {run.id for run in sent}
    for run in sent:
        same(run, found[run.id], relative=relative)
        assert run.numbers["test/ece_floor"] > 0


@pytest.mark.parametrize("tracker", [csv_file, tensorboard, mlflow])
def test_push__again_replaces_its_own_run_alone(tmp_path: Path, tracker: ModuleType) -> None:
    package = tracker.__name__.rpartition(".")[2]
    if package != "csv_file" and importlib.util.find_spec(package) is None:
        unavailable(f"{package} is not installed")
    place, runs = str(tmp_path / "there"), []
    for parent in ("one", "other"):
        made = seed.predictions(seed.KINDS["FLYP"], "test", "id", n=50, harm=0.0, seed=1)
        import_into_folder(made, tmp_path / parent / "run", name="run")
        runs.append(outgoing(str(tmp_path / parent / "run"), None))
    assert runs[0].id != runs[1].id
    for run, again in ((runs[0], False), (runs[1], False), (runs[1], True)):
        tracker.push([run], place, again=again)
    assert {run.id for run in tracker.pull(place)} == {run.id for run in runs}
    with pytest.raises(SpecError, match="already"):
        tracker.push(runs[:1], place, again=False)


def test_outgoing__an_error_never_goes_without_its_floor(sent: list[Exchanged]) -> None:
    for run in sent:
        errors = [name for name in run.numbers if name.endswith("/ece")]
        assert errors
        assert all(f"{name}_floor" in run.numbers for name in errors)


numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=8).filter(
    lambda n: " - " not in n and not n.endswith(("__MIN", "__MAX"))
)
points = st.dictionaries(st.integers(0, 10**6), numbers, min_size=1, max_size=5)


@settings(max_examples=40)
@given(st.dictionaries(names, st.dictionaries(names, points, min_size=1, max_size=3), max_size=3))
def test_csv__of_any_curves_reads_back_as_they_were(
    runs: dict[str, dict[str, dict[int, float]]],
) -> None:
    curves = {run: foreign_curves.metrics_of(series) for run, series in runs.items()}
    written = foreign_curves.to_csv(curves)
    if not runs:
        with pytest.raises(DataError, match="curve"):
            foreign_curves.from_csv(written, name="x")
        return
    assert foreign_curves.from_csv(written, name="x") == curves


def test_csv__as_wandb_exports_it() -> None:
    content = (
        '"Step","calm-sun-1 - loss","calm-sun-1 - loss__MIN","calm-sun-1 - loss__MAX","b - acc"\n'
        '"0","2.5","2.5","2.5",""\n"10","1.5","1.5","1.5","0.5"\n'
    )
    assert foreign_curves.from_csv(content, name="x") == {
        "calm-sun-1": Metrics(
            series=[MetricSeries(name="loss", steps=[0, 10], values=[2.5, 1.5])], last_step=10
        ),
        "b": Metrics(series=[MetricSeries(name="acc", steps=[10], values=[0.5])], last_step=10),
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty file"),
        ("loss\n1\n", "column Step"),
        ("step,loss\n1,one\n", "line 2, column 'loss'"),
        ("step,loss\n1,nan\n", "finite"),
        ("step,loss\n", "got none"),
    ],
)
def test_csv__says_what_is_wrong(content: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        foreign_curves.from_csv(content, name="x")


def test_pull__says_that_nothing_was_measured(sent: list[Exchanged], tmp_path: Path) -> None:
    place = tmp_path / "curves.csv"
    csv_file.push(sent, str(place), again=False)
    pull(f"csv:{place}", run=["first"], folder=tmp_path / "out")
    told = json.loads((tmp_path / "out" / "first.json").read_text())
    assert told["measured_by_calift"] is False
    assert told["numbers"]["test/ece"] == sent[0].numbers["test/ece"]
    with pytest.raises(CaliftError, match="no run 'third'"):
        pull(f"csv:{place}", run=["third"], folder=tmp_path / "out")
    for wrong in ("wandb:x", "csv", "csv:"):
        with pytest.raises(CaliftError):
            pull(wrong, folder=tmp_path)


def test_stems__tell_runs_apart_and_stay_in_their_folder() -> None:
    runs = [Exchanged(name=n, id="x") for n in ("../../a", "a", "a", "", "ü/é")]
    stems = _stems(runs)
    assert len(set(stems)) == len(stems)
    assert not any("/" in s or s.startswith(".") for s in stems)


def test_interop__loads_no_tracker_before_it_is_asked() -> None:
    from tests.test_architecture import loaded_by

    suspects: Any = ("mlflow", "tensorboard", "torch", "tensorflow")
    assert loaded_by("calift.exchange", suspects) == []
