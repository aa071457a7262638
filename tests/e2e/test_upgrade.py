"""A home of version 0.1 opens: what had finished, what was killed, what the command left.

`tests/support/make_old_home.py` says what is in it and how it was made.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.stack import EmbeddedStack
from backend.store.migrations import newest_revision
from calift.commands.main import main
from calift_core.client import Client
from calift_core.errors import SpecError
from calift_core.predictions.read import read_predictions
from calift_core.schema.report import Report
from tests.core.conftest import environment
from tests.support.make_old_home import EPOCHS, KILLED_AFTER, NAMES, PACKED, STEPS_PER_EPOCH

pytestmark = pytest.mark.service

IDS = json.loads(NAMES.read_text())


def revision_of(home: Path) -> str:
    """The revision of a home's database."""
    with sqlite3.connect(home / "calift.db") as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    connection.close()
    return str(revision)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("old")
    with tarfile.open(PACKED) as archive:
        archive.extractall(root, filter="data")
    (root / "home" / "token").chmod(0o600)
    return root


@pytest.fixture(scope="module")
def client(unpacked: Path) -> Iterator[Client]:
    """Of today's stack on the old home, once it has done what was left."""
    home = unpacked / "home"
    assert revision_of(home) == "0001"
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("CALIFT_"):
                patch.delenv(name)
        patch.setenv("CALIFT_FREE_SPACE_FLOOR_BYTES", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        with EmbeddedStack(home, api_port=0, dashboard=False) as stack:
            stack.wait_ready(timeout_s=120)
            token = (home / "token").read_text().strip()
            with Client(stack.urls["api"], token) as made:
                for name in ("killed", "waiting"):
                    made.wait(IDS[name], timeout_s=120)
                yield made


def test_upgrade__the_database_is_of_today_and_every_run_is_there(
    client: Client, unpacked: Path
) -> None:
    assert revision_of(unpacked / "home") == newest_revision()
    phases = {run.id: run.phase for run in client.all_runs()}
    names = ("finished", "killed", "waiting", "imported")
    assert phases == {IDS[name]: "SUCCEEDED" for name in names}


@pytest.mark.parametrize(
    ("name", "datasets"), [("finished", {"photos/test", "dark"}), ("imported", {"mine"})]
)
def test_upgrade__what_was_evaluated_opens(
    client: Client, tmp_path: Path, name: str, datasets: set[str]
) -> None:
    run_id = IDS[name]
    report = client.report(run_id)
    evaluations = client.run_evaluations(run_id)
    assert {e.dataset for e in report.evaluations} == datasets
    assert {e.dataset for e in evaluations} == datasets
    for evaluation in evaluations:
        file = client.download_predictions(
            evaluation.id, tmp_path / f"{evaluation.dataset}.parquet"
        )
        predictions = read_predictions(file)
        assert len(predictions.labels) == evaluation.n
        diagram = client.reliability(evaluation.id)
        assert sum(b.count for b in diagram.bins) == evaluation.n
        assert diagram.ece == pytest.approx(evaluation.ece.value)
        assert client.measures(evaluation.id).measures


def test_upgrade__curves_spectra_files_and_log_of_a_finished_run_open(client: Client) -> None:
    run_id = IDS["finished"]
    (loss,) = (s for s in client.metrics(run_id, names=["loss"]).series if s.name == "loss")
    assert loss.steps == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    assert client.spectra(run_id)[-1].final
    assert client.logs(run_id).complete
    kinds = {artifact.kind for artifact in client.artifacts(run_id)}
    assert {"report", "predictions", "checkpoint"} <= kinds
    assert client.compare(run_id=[run_id, IDS["killed"]]).runs


def test_upgrade__a_killed_run_goes_on_from_its_checkpoint_and_says_how_it_was_made(
    client: Client,
) -> None:
    run_id = IDS["killed"]
    resumed = [e for e in client.events_after(run_id) if e.kind == "resumed"]
    assert [e.data["step"] for e in resumed] == [KILLED_AFTER]
    metrics = client.metrics(run_id, names=["loss"]).series
    (loss,) = (series for series in metrics if series.name == "loss")
    assert loss.steps == sorted(set(loss.steps))
    assert loss.steps[-1] > KILLED_AFTER
    assert loss.steps[:KILLED_AFTER] == list(range(1, KILLED_AFTER + 1))
    log = " ".join(client.logs(run_id).text.split())
    assert "made by an earlier version of calift" in log
    assert "gone on with and judged as it was made" in log


def test_upgrade__a_run_that_was_killed_ends_as_one_that_was_not(client: Client) -> None:
    whole, resumed = client.report(IDS["finished"]), client.report(IDS["killed"])
    for one, other in zip(whole.evaluations, resumed.evaluations, strict=True):
        assert (one.dataset, one.n) == (other.dataset, other.n)
        assert other.accuracy == pytest.approx(one.accuracy, abs=0.1)
        assert other.nll == pytest.approx(one.nll, rel=0.05)
    # Made as then: a run that had not begun is made as its config says.
    mean = {
        name: client.report(IDS[name]).model["preprocess"]["mean"] for name in ("killed", "waiting")
    }
    assert mean["waiting"] == [0.5] * 3
    assert mean["killed"] != mean["waiting"]


def test_upgrade__the_model_of_a_finished_run_is_judged_as_it_was(
    client: Client, unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calift_core.jobs.evaluate import evaluate_finished
    from calift_core.schema.spec import parse_spec

    run_id = IDS["finished"]
    for artifact in client.artifacts(run_id):
        if artifact.kind == "checkpoint":
            target = tmp_path / "model" / artifact.name
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_artifact(run_id, artifact.name, target)
    heads = unpacked / "home" / "cache" / "heads"
    kept = {path.name for path in heads.iterdir()}
    assert kept
    monkeypatch.chdir(unpacked / "home" / "run")
    monkeypatch.setenv("CALIFT_HOME", str(unpacked / "home"))
    out = tmp_path / "again"
    spec = parse_spec(client.run(run_id).spec)
    said = list(evaluate_finished(spec, tmp_path / "model", out))
    assert any("earlier version" in r.message for r in said if r.kind == "log")
    again = Report.model_validate_json((out / "report.json").read_bytes())
    for then, now in zip(client.report(run_id).evaluations, again.evaluations, strict=True):
        assert (then.dataset, then.accuracy) == (now.dataset, now.accuracy)
        # Pixels of images that are not square moved by a fraction on purpose.
        assert now.nll == pytest.approx(then.nll, rel=1e-4 if now.role == "id" else 0.05)
    assert {path.name for path in heads.iterdir()} == kept, "the kept heads are of use"


def test_upgrade__calift_train_goes_on_with_a_folder_of_the_old_command(
    unpacked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    local = unpacked / "local"
    for name, value in environment(unpacked / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(unpacked / "home" / "run")

    def train() -> Any:
        with pytest.raises(SystemExit) as ended:
            main(["train", str(local / "run.json"), "--out", str(local / "run")])
        told = capsys.readouterr()
        assert ended.value.code == 0, told.err
        return told

    said = " ".join(train().err.split())
    step = re.search(r"Going on from the checkpoint of step (\d+)", said)
    assert step, said
    assert int(step[1]) >= KILLED_AFTER
    assert "made by an earlier version of calift" in said
    assert "begun with lambda_x 0.0 (0.05 today), precision train (tf32 today), which" in said
    folder = local / "run"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if "loss" in line]
    assert steps == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    assert Report.model_validate_json((folder / "report.json").read_bytes()).evaluations
    assert (folder / "checkpoint" / "model.json").is_file()
    assert "finished already" in train().out


def test_upgrade__a_spec_of_then_is_the_same_run_today(unpacked: Path) -> None:
    """So that checkpoints and folders of then are known as what they are."""
    from calift_core.schema.spec import parse_spec

    stored = json.loads((unpacked / "data" / "specs.json").read_text())
    assert len(stored) >= 13
    gone = [body for body, _ in stored if body["method"]["kind"] == "carot_plus"]
    with pytest.raises(SpecError, match="unknown method 'carot_plus'"):
        parse_spec(*gone)
    for body, sha256 in (pair for pair in stored if pair[0] not in gone):
        spec = parse_spec(body)
        assert sha256 in {spec.content_hash(), *spec.earlier_hashes()}, body["method"]
