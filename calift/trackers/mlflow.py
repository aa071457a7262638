"""`mlflow:URI`: a tracking server, or a folder of MLflow's file store."""

import importlib.util
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calift.trackers.runs import Exchanged
from calift_core.errors import DataError, SpecError
from calift_core.files import atomic_write_bytes
from calift_core.installed import install_extra

EXPERIMENT = "calift"
#: Below this stand numbers of the finished run.
_FINAL = "final/"
#: Metrics in one request, as MLflow allows.
_METRICS = 1000


@contextmanager
def client_of(place: str) -> Iterator[Any]:
    """MLflow's client of a server or a folder; what it refuses is a DataError."""
    if importlib.util.find_spec("mlflow") is None:
        raise SpecError("this needs mlflow, which is not installed.", hint=install_extra("mlflow"))
    from mlflow.exceptions import MlflowException

    from calift_core.trackers.mlflow_tracker import open_client

    uri = place if "://" in place else Path(place).absolute().as_uri()
    try:
        yield open_client(uri)
    except MlflowException as error:
        raise DataError(f"MLflow at {place!r}: {error}") from error


def push(
    runs: Sequence[Exchanged], place: str, *, again: bool, experiment: str = EXPERIMENT
) -> list[str]:
    """Log runs; returns their ids in MLflow.

    Raises:
        SpecError: mlflow is not installed.
        SpecError: a run is there already, and not `again`.
        DataError: MLflow refuses.
    """
    written = []
    with client_of(place) as client:
        from mlflow.entities import Metric, RunTag

        from calift_core.trackers.mlflow_tracker import RUN_ID, experiment_id, key, log_settings

        where = experiment_id(client, experiment)
        for run in runs:
            earlier = client.search_runs([where], f"tags.`{RUN_ID}` = '{quoted(run.id)}'")
            if earlier and not again:
                raise SpecError(
                    f"{run.name!r} is in {experiment!r} already, as {earlier[0].info.run_id}.",
                    hint="--again deletes it there and pushes anew.",
                )
            for old in earlier:
                client.delete_run(old.info.run_id)
            made = client.create_run(where, run_name=run.name).info.run_id
            now, last = int(time.time() * 1000), max(run.curves.last_step, 0)
            metrics = [
                Metric(key(series.name), value, now, step)
                for series in run.curves.series
                for step, value in zip(series.steps, series.values, strict=True)
            ]
            metrics += [
                Metric(key(f"{_FINAL}{name}"), value, now, last)
                for name, value in run.numbers.items()
            ]
            tags = [RunTag(RUN_ID, run.id), RunTag("mlflow.source.name", "calift")]
            client.log_batch(made, tags=tags)
            for at in range(0, len(metrics), _METRICS):
                client.log_batch(made, metrics=metrics[at : at + _METRICS])
            log_settings(client, made, run.settings)
            if run.document is not None:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "report.json"
                    atomic_write_bytes(path, run.document.model_dump_json(indent=1).encode())
                    client.log_artifact(made, str(path))
            client.set_terminated(made)
            written.append(made)
    return written


def quoted(run_id: str) -> str:
    """An id as it stands in a search."""
    return run_id.replace("'", "")
