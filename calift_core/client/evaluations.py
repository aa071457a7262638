"""Calls about one evaluation's numbers and files."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING

from calift_core.client.connection import Connection, opened_file, url_path
from calift_core.client.operations import Operation, OperationOf
from calift_core.schema.wire.judging import AGAINST, Judged
from calift_core.schema.wire.queries import (
    AuditQuery,
    BudgetQuery,
    CalibratorQuery,
    EvaluationsQuery,
    MetricsQuery,
    PromptsQuery,
    ReliabilityQuery,
    RunSlicesQuery,
    SlicesQuery,
    TransferQuery,
)
from calift_core.schema.wire.results import (
    Budget,
    CalibratorEffect,
    Evaluation,
    EvaluationPage,
    MeasureSet,
    PromptEffects,
    Reliability,
    SlicePage,
    TransferMatrix,
)
from calift_core.schema.wire.runs import RunDetail

if TYPE_CHECKING:
    from calift_core.predictions.types import Role
    from calift_core.predictions.write import Keep


class EvaluationCalls(Connection):
    """Evaluations, and what is measured from their predictions.

    Each question takes the fields of its query by name, or the query itself.
    """

    evaluations = Operation("/evaluations", EvaluationsQuery, EvaluationPage)
    """A page of evaluations of all runs, newest first."""

    def evaluation(self, evaluation_id: str) -> Evaluation:
        """One evaluation."""
        return self._get(url_path("/evaluations", evaluation_id), Evaluation)

    reliability = OperationOf("/evaluations/{}/reliability", ReliabilityQuery, Reliability)
    """A reliability diagram as numbers; a calibrator or other prompts may make it."""

    prompts = OperationOf("/evaluations/{}/prompts", PromptsQuery, PromptEffects)
    """What other prompts would have said of the same images, the run's own first."""

    measures = OperationOf("/evaluations/{}/metrics", MetricsQuery, MeasureSet)
    """Every measure of an evaluation with floor and interval."""

    audit = OperationOf("/evaluations/{}/audit", AuditQuery, MeasureSet)
    """The same predictions under the estimators in use, each with its floor."""

    slices = OperationOf("/evaluations/{}/slices", SlicesQuery, SlicePage)
    """Calibration by class, confidence or source, of the samples that meet a condition."""

    run_slices = OperationOf("/runs/{}/slices", RunSlicesQuery, SlicePage)
    """The samples that meet a condition on every data set of a run: one slice each."""

    calibrate = OperationOf("/evaluations/{}/calibrators", CalibratorQuery, CalibratorEffect)
    """Fit a calibrator, and the diagram of an evaluation before and after it.

    Without `oracle`, `fit_on` is refused: a ServiceError with the code `LEAKAGE`.
    """

    transfer = OperationOf("/runs/{}/calibrators/transfer", TransferQuery, TransferMatrix)
    """A calibrator fitted on A and tested on B, for the ID data and shifts or those named.

    The first answer takes as long as passing over all their logits.
    """

    budget = OperationOf("/evaluations/{}/budget", BudgetQuery, Budget)
    """How many samples show a difference of a metric."""

    def download_predictions(self, evaluation_id: str, path: str | os.PathLike[str]) -> Path:
        """Download the per-sample predictions (Parquet).

        Raises:
            StorageError: the file cannot be written, or what arrived is damaged.
        """
        return self._download(url_path("/evaluations", evaluation_id, "predictions"), path)

    def judge(
        self,
        files: Sequence[str | os.PathLike[str] | tuple[str, IO[bytes]]],
        *,
        against: str | os.PathLike[str] | tuple[str, IO[bytes]] | None = None,
    ) -> Judged:
        """Have the service say how far predictions can be trusted; nothing is stored.

        Args:
            files: predictions with labels (NPZ, Parquet, CSV, JSON lines), as paths or as names
                with open files: the model's own data first, then shifts.
            against: another model's predictions of the first file's samples.

        Raises:
            ServiceError: a file breaks its contract; the sentence says where.
            StorageError: one cannot be read here.
        """
        folders = [(str(at), file) for at, file in enumerate(files, 1)]
        folders += [] if against is None else [(AGAINST, against)]
        with tempfile.TemporaryFile() as body:
            with zipfile.ZipFile(body, "w") as archive:
                for folder, given in folders:
                    name, file = given if isinstance(given, tuple) else (str(given), given)
                    name = f"{folder}/{PurePath(name).name}"
                    with opened_file(file) as content, archive.open(name, "w") as member:
                        shutil.copyfileobj(content, member)
            body.seek(0)
            return self._read(self._upload("/judge", body, "application/zip", {}), Judged)

    def import_predictions(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        dataset: str | None = None,
        role: Role | None = None,
        class_names: Sequence[str] | None = None,
        run: str | None = None,
        keep: Keep = "auto",
        idempotency_key: str | None = None,
    ) -> RunDetail:
        """Bring in predictions that were made elsewhere: a finished run of its own, or part of one.

        The file is read and checked here, and what is sent is a predictions file of calift.

        Args:
            path: NPZ, Parquet or CSV with `labels` and `probs` or `logits`; see
                `calift_core.predictions.foreign.load`.
            name: of the run; None: the file's.
            dataset: name of the data set; None: what the file says, else its name.
            role: `id`, `shift`, `corruption`, `calibration` or `validation`; None: what the file
                says, else `id`.
            class_names: None: what the file says.
            run: an imported run that the data set is added to.
            keep: `full`, or how many of the largest logits are kept; `auto` decides by size.
            idempotency_key: the same key and file give the same run.

        Raises:
            PredictionsError: the file breaks its contract.
        """
        from calift_core.analysis.imported import run_name
        from calift_core.predictions.foreign.load import load_predictions
        from calift_core.predictions.write import write_predictions

        predictions = load_predictions(path, dataset=dataset, role=role, class_names=class_names)
        named = {"name": name or run_name(Path(path).stem), "run": run}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "predictions.parquet"
            write_predictions(file, predictions, keep=keep)
            key = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
            kind = "application/vnd.apache.parquet"
            with file.open("rb") as body:
                response = self._upload("/predictions", body, kind, named, headers=key)
        return self._read(response, RunDetail)
