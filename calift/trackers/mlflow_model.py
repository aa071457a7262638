"""An exported model in MLflow's `pyfunc` flavour: `mlflow.pyfunc.load_model(uri).predict(images)`.

MLflow keeps the exported folder as it is and loads it through this module; nothing is pickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from calift.trackers.mlflow import client_of, quoted
from calift_core import __version__
from calift_core.shipping.classifier import CalibratedClassifier
from calift_core.shipping.folder import read_exported
from calift_core.trackers.mlflow_tracker import RUN_ID, experiment_id


class CalibratedPyfunc:
    """What `mlflow.pyfunc` calls."""

    def __init__(self, classifier: CalibratedClassifier) -> None:
        self.classifier = classifier

    # Without hints: MLflow would make a schema of them.
    def predict(self, model_input, params=None):  # type: ignore[no-untyped-def]
        """A data frame of `label`, `confidence` and `probabilities` (C values), a row an image.

        Args:
            model_input: paths, PIL images or arrays, as `CalibratedClassifier.predict` takes them,
                or a data frame whose first column holds paths.
            params: `batch_size`.
        """
        import pandas as pd

        if isinstance(model_input, pd.DataFrame):
            model_input = list(model_input.iloc[:, 0])
        answers = self.classifier.predict(model_input, **(params or {}))
        return pd.DataFrame(
            {
                "label": answers.labels,
                "confidence": answers.confidences,
                "probabilities": list(answers.probs),
            }
        )


def _load_pyfunc(folder: str) -> CalibratedPyfunc:
    """What MLflow calls to load a model."""
    return CalibratedPyfunc(CalibratedClassifier.load(folder))


def push_models(folders: Sequence[Path], place: str, *, experiment: str) -> list[str]:
    """Log exported models, each in MLflow's run of its own run if that was pushed; their URIs.

    Raises:
        SpecError: mlflow is not installed.
        CheckpointError: a folder holds no exported model, or is damaged.
        DataError: MLflow refuses.
    """
    written = []
    with client_of(place) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about MLflow's own hints
        import mlflow

        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(client.tracking_uri)
        try:
            for folder in folders:
                about = read_exported(folder).provenance
                where = experiment_id(client, experiment)
                found = client.search_runs([where], f"tags.`{RUN_ID}` = '{quoted(about.run_id)}'")
                run = found[0] if found else client.create_run(
                    where, run_name=about.name, tags={RUN_ID: about.run_id}
                )  # fmt: skip
                with mlflow.start_run(run.info.run_id):
                    logged = mlflow.pyfunc.log_model(
                        name="model",
                        loader_module=__name__,
                        data_path=str(folder),
                        pip_requirements=[f"calift[train]=={__version__}"],
                    )
                written.append(logged.model_uri)
        finally:
            mlflow.set_tracking_uri(before)
    return written
