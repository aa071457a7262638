"""Live trackers against their own libraries, offline: what a run says is what can be read there."""

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calift_core.errors import InterruptedRunError
from calift_core.schema import records as r
from calift_core.trackers import LiveTrackers, TrackedRun, flat
from tests.conftest import until
from tests.support import recorded

NAMES = ("wandb", "trackio", "mlflow", "tensorboard")
STEPS = {10: 1.5, 20: 1.25, 30: 1.0}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("WANDB_", "TRACKIO_", "MLFLOW_", "TENSORBOARD_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run_in(folder: Path, resumed: bool = False) -> TrackedRun:
    settings = dict(flat({"train": {"lr": 1e-3, "crop_scale": [0.9, 1.0]}, "name": "a run"}))
    return TrackedRun("0123456789ab", "a run", folder, settings, resumed)


def attempts() -> Iterator[list[r.Record]]:
    """Two attempts, of which the first was stopped behind step 20 and its checkpoint was at 10."""
    points = {step: recorded.metrics(step, step / 10, loss=loss) for step, loss in STEPS.items()}
    yield [points[10], points[20]]
    done = [each for each in recorded.RECORDED if each.kind in ("evaluation", "done")]
    yield [recorded.resumed(10), points[20], points[30], *done]


def track(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[r.LogRecord]:
    notes = []
    for attempt, records in enumerate(attempts()):
        # Its folders are called by the second in which they are made.
        monkeypatch.setenv("WANDB_DIR", str(folder / f"attempt {attempt}"))
        (folder / f"attempt {attempt}").mkdir()
        try:
            with LiveTrackers((name,), lambda a=attempt: run_in(folder, a > 0)) as trackers:
                for record in records:
                    notes += list(trackers.take(record))
                if attempt == 0:
                    raise InterruptedRunError("stopped")
        except InterruptedRunError:
            pass
    return notes


def wandb_records(data: bytes) -> Iterator[bytes]:
    """What W&B's offline file holds: LevelDB's log format in blocks of 32 KiB, behind 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # the whole of a record, or the last part of one
            yield whole
            whole = b""


def read_wandb(folder: Path) -> dict[str, dict[int, float]]:
    from wandb.proto.wandb_internal_pb2 import Record

    def records(file):
        """All of a file, once its last one is there: another process writes it."""
        found = [Record.FromString(data) for data in wandb_records(file.read_bytes())]
        return found if any(r.WhichOneof("record_type") == "exit" for r in found) else None

    found = {}
    for file in sorted(folder.glob("attempt */wandb/offline-run-*/*.wandb")):
        for record in until(lambda file=file: records(file), timeout_s=30, what="the file"):
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            for key in row.keys() - {"step"} if "step" in row else ():
                found.setdefault(key, {})[int(row["step"])] = row[key]
            for item in record.summary.update:
                name = item.key or "/".join(item.nested_key)
                found.setdefault(name, {}).setdefault(0, json.loads(item.value_json))
    found["loss"].pop(0, None)  # of the summary
    return found


def read_trackio(folder: Path) -> dict[str, dict[int, float]]:
    from trackio.sqlite_storage import SQLiteStorage

    found = {}
    for row in SQLiteStorage.get_logs("calift", "a run-0123456789ab"):
        for key in row.keys() - {"step", "timestamp"}:
            found.setdefault(key, {})[row["step"]] = row[key]
    return found


def read_mlflow(folder: Path) -> dict[str, dict[int, float]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("calift")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == "0.001"
    return {
        name: {
            point.step: point.value for point in client.get_metric_history(run.info.run_id, name)
        }
        for name in run.data.metrics
    }


def read_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return {
        name: {event.step: event.value for event in read.Scalars(name)}
        for name in read.Tags()["scalars"]
    }


READERS: dict[str, Callable[[Path], dict[str, dict[int, float]]]] = {
    "wandb": read_wandb,
    "trackio": read_trackio,
    "mlflow": read_mlflow,
    "tensorboard": read_tensorboard,
}


@pytest.mark.parametrize("name", NAMES)
def test_tracker__holds_the_curves_of_both_attempts_and_the_numbers_of_the_end(
    name, tmp_path, monkeypatch
):
    pytest.importorskip(name)
    assert track(name, tmp_path, monkeypatch) == []
    found = READERS[name](tmp_path)
    assert found["loss"] == STEPS
    finals = [points for key, points in found.items() if key.endswith("/accuracy")]
    assert finals
    assert all(len(points) == 1 for points in finals)


def test_tracker__that_fails_is_reported_once_and_hears_no_more(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    monkeypatch.setenv("TENSORBOARD_LOGDIR", "/proc/nowhere")
    notes = []
    with LiveTrackers(("wandb", "tensorboard"), lambda: run_in(tmp_path)) as trackers:
        for record in next(attempts()):
            notes += list(trackers.take(record))
    assert [note.message.partition(" hears no more")[0] for note in notes] == [
        "wandb", "tensorboard",
    ]  # fmt: skip
    assert "not installed" in notes[0].message


def test_mlflow__whose_server_is_gone_is_tried_three_times_and_hears_no_more(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    came = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            with contextlib.suppress(OSError):  # the test has closed it
                while True:
                    connection, _ = server.accept()
                    came.append(connection.recv(1))
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        with LiveTrackers(("mlflow",), lambda: run_in(tmp_path)) as trackers:
            notes = [note for record in next(attempts()) for note in trackers.take(record)]
        server.shutdown(socket.SHUT_RDWR)
    assert [note.message.startswith("mlflow hears no more of this run") for note in notes] == [True]
    assert len(came) == 3
