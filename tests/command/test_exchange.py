"""Runs to other trackers: their own readers find all of it, nothing is written twice."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from calift.commands.main import app
from calift.commands.push import to_tracker
from calift.trackers import csv_file, mlflow, tensorboard
from calift.trackers.runs import Exchanged, metrics_of, outgoing
from calift_core.analysis.imported import import_into_folder
from calift_core.errors import CaliftError, SpecError
from tests.conftest import unavailable
from tests.frontend import seed


@pytest.fixture
def sent(tmp_path):
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


def read_csv(place: str) -> list[Exchanged]:
    """Both files as pandas reads them."""
    lines = pd.read_csv(Path(place).with_suffix(".runs.csv"), dtype=str, keep_default_na=False)
    curves = pd.read_csv(place, index_col="Step") if len(Path(place).read_text()) > 5 else None
    found = []
    for _, row in lines.iterrows():
        series = {} if curves is None else {
            name.removeprefix(f"{row['Name']} - "): curves[name].dropna().to_dict()
            for name in curves.columns if name.startswith(f"{row['Name']} - ")
        }  # fmt: skip
        own = {key: value for key, value in row.items() if value != ""}
        found.append(
            Exchanged(
                row["Name"].partition(" (")[0],
                row["ID"],
                {k[7:]: v for k, v in own.items() if k.startswith("config.")},
                metrics_of(series),
                {k[8:]: float(v) for k, v in own.items() if k.startswith("summary.")},
            )
        )
    return found


def read_tensorboard(place: str) -> list[Exchanged]:
    """Event files as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = []
    for folder in sorted({file.parent for file in Path(place).rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        points = {
            tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]
        }
        output = json.loads(events.Tensors("config/text_summary")[-1].tensor_proto.string_val[0])
        found.append(gathered(output["name"], output["id"], output["settings"], points))
    return found


def read_mlflow(place: str) -> list[Exchanged]:
    """Runs as MLflow's client finds them."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=Path(place).absolute().as_uri())
    found = []
    for run in client.search_runs([client.get_experiment_by_name("calift").experiment_id]):
        points = {
            key: {p.step: p.value for p in client.get_metric_history(run.info.run_id, key)}
            for key in run.data.metrics
        }
        own = run.data.tags["calift.run_id"]
        found.append(gathered(run.info.run_name, own, run.data.params, points))
    return found


def gathered(name, run_id, settings, points):
    """A run of curves, of which those below `final/` are its numbers."""
    return Exchanged(
        name,
        run_id,
        settings,
        metrics_of({k: p for k, p in points.items() if not k.startswith("final/")}),
        {k[6:]: list(p.values())[-1] for k, p in points.items() if k.startswith("final/")},
    )


def require(tracker) -> None:
    package = tracker.__name__.rpartition(".")[2]
    if package != "csv_file" and importlib.util.find_spec(package) is None:
        unavailable(f"{package} is not installed")


READ = {csv_file: read_csv, tensorboard: read_tensorboard, mlflow: read_mlflow}


@pytest.mark.parametrize(
    ("tracker", "where", "relative"),
    [(csv_file, "curves.csv", 0.0), (tensorboard, "events", 1e-6), (mlflow, "mlruns", 0.0)],
)
def test_push__their_own_readers_give_the_run_back(sent, tmp_path, tracker, where, relative):
    require(tracker)
    place = str(tmp_path / where)
    tracker.push(sent, place, again=False)
    tracker.push(sent, place, again=True)
    found = {run.id: run for run in READ[tracker](place)}
    assert found.keys() == {run.id for run in sent}
    for run in sent:
        same(run, found[run.id], relative=relative)
        assert run.numbers["test/ece_floor"] > 0


@pytest.mark.parametrize("tracker", [csv_file, tensorboard, mlflow])
def test_push__again_replaces_its_own_run_alone(tmp_path, tracker):
    require(tracker)
    place, runs = str(tmp_path / "there"), []
    for parent in ("one", "other"):
        made = seed.predictions(seed.KINDS["FLYP"], "test", "id", n=50, harm=0.0, seed=1)
        import_into_folder(made, tmp_path / parent / "run", name="run")
        runs.append(outgoing(str(tmp_path / parent / "run"), None))
    assert runs[0].id != runs[1].id
    for run, again in ((runs[0], False), (runs[1], False), (runs[1], True)):
        tracker.push([run], place, again=again)
    assert {run.id for run in READ[tracker](place)} == {run.id for run in runs}
    with pytest.raises(SpecError, match="already"):
        tracker.push(runs[:1], place, again=False)


def test_outgoing__an_error_never_goes_without_its_floor(sent):
    for run in sent:
        errors = [name for name in run.numbers if name.endswith("/ece")]
        assert errors
        assert all(f"{name}_floor" in run.numbers for name in errors)


def test_push__says_where_a_place_is_missing(sent):
    for wrong in ("wandb:x", "csv", "csv:"):
        with pytest.raises(CaliftError):
            to_tracker([], wrong, experiment="calift", again=False, as_json=False)


def test_interop__loads_no_tracker_before_it_is_asked():
    from tests.test_architecture import loaded_by

    suspects = ("mlflow", "tensorboard", "torch", "tensorflow")
    assert loaded_by("calift.commands.push", suspects) == []


def test_compare__of_folders_is_paired_as_by_the_service(sent, tmp_path):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    result = CliRunner().invoke(app, ["compare", first, second, "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert [one["run"]["id"] for one in answer["runs"]] == [first, second]
    rows = {row["metric"]: row for row in answer["runs"][1]["differences"]}
    assert rows["accuracy"]["n"] == 200
    assert rows["accuracy"]["value"] == sent[1].numbers["test/accuracy"]
    assert {one["metric"] for one in answer["confidence_sets"]} == rows.keys()
    shown = CliRunner().invoke(app, ["compare", first, second]).output
    assert "Minus first, same samples" in shown
    for wrong, output in (
        ([first, "0123456789ab"], "all folders or all ids of the service, got both"),
        ([first, str(tmp_path / "none")], "must be a folder of a finished run, there is none"),
        ([first, str(tmp_path)], "got one without report.json"),
        ([first, first], "2 to 10 different runs, got 1"),
    ):
        refused = CliRunner().invoke(app, ["compare", *wrong])
        assert isinstance(refused.exception, CaliftError)
        assert output in str(refused.exception)
