"""MLflow: where `MLFLOW_TRACKING_URI` says, in the experiment `MLFLOW_EXPERIMENT_NAME`."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from calift_core.trackers import PROJECT, Outcome, TrackedRun

#: The tag by which a run is found again.
RUN_ID = "calift.run_id"
#: Letters of a parameter's value that every version takes, and parameters in one request.
_VALUE, _PARAMS = 500, 100
#: A server that is gone keeps a run waiting for seconds; MLflow's own retries take minutes.
_FEW_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
_STATUS: dict[Outcome, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class _Run:
    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self._id, self._step = client, run_id, 0

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._step, now = step, int(time.time() * 1000)
        metrics = [Metric(key(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def end(self, outcome: Outcome, numbers: Mapping[str, float]) -> None:
        if numbers:
            self.log({f"final/{name}": value for name, value in numbers.items()}, self._step)
        self._client.set_terminated(self._id, _STATUS[outcome])


def start(run: TrackedRun) -> _Run:
    """Open the run, or go on with it."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or (run.folder / "mlruns").absolute().as_uri()
    client = open_client(uri, _FEW_RETRIES)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    where = experiment_id(client, name)
    earlier = client.search_runs([where], f"tags.`{RUN_ID}` = '{run.id}'")
    if earlier:
        known = earlier[0].info.run_id
        client.update_run(known, status="RUNNING")
        return _Run(client, known)
    made = client.create_run(where, run_name=run.name).info.run_id
    client.log_batch(made, tags=[RunTag(RUN_ID, run.id), RunTag("mlflow.source.name", "calift")])
    log_settings(client, made, run.settings)
    return _Run(client, made)


def open_client(uri: str, defaults: Mapping[str, str] | None = None) -> MlflowClient:
    """MLflow's client of a server or a folder.

    Args:
        defaults: settings of MLflow, where the environment does not say them.
    """
    # A file store is what is asked for by naming one; MLflow would rather have a database.
    for name, value in {"MLFLOW_ALLOW_FILE_STORE": "true", **(defaults or {})}.items():
        os.environ.setdefault(name, value)
    return MlflowClient(tracking_uri=uri)


def log_settings(client: MlflowClient, run_id: str, settings: Mapping[str, Any]) -> None:
    """Log settings as parameters, cut to what every version takes."""
    params = [Param(key(name), str(value)[:_VALUE]) for name, value in settings.items()]
    for at in range(0, len(params), _PARAMS):
        client.log_batch(run_id, params=params[at : at + _PARAMS])


def key(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w.\-/ ]", "_", name)[:250]


def experiment_id(client: MlflowClient, name: str) -> str:
    """An experiment's id; it is made where there is none of this name."""
    found = client.get_experiment_by_name(name)
    made: str = found.experiment_id if found else client.create_experiment(name)
    return made
