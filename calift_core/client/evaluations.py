"""Calls about one evaluation's numbers and files."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from calift_core.client.connection import Connection, at
from calift_core.schema.report import Role
from calift_core.schema.wire.results import (
    AS_EVALUATED,
    AskedBinning,
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
from calift_core.schema.wire.runs import (
    RunDetail,
)

if TYPE_CHECKING:
    from calift_core.predictions.types import Role as PredictedRole
    from calift_core.predictions.write import Keep


class EvaluationCalls(Connection):
    """Evaluations, and what is measured from their predictions."""

    def evaluations(
        self,
        *,
        run_id: Sequence[str] = (),
        dataset: Sequence[str] = (),
        role: Sequence[Role] = (),
        cursor: str | None = None,
        limit: int = 50,
    ) -> EvaluationPage:
        """A page of evaluations of all runs, newest first."""
        return self._get(
            "/evaluations",
            EvaluationPage,
            run_id=list(run_id),
            dataset=list(dataset),
            role=list(role),
            cursor=cursor,
            limit=limit,
        )

    def evaluation(self, evaluation_id: str) -> Evaluation:
        """One evaluation."""
        return self._get(at("/evaluations", evaluation_id), Evaluation)

    def reliability(
        self,
        evaluation_id: str,
        *,
        binning: AskedBinning = AS_EVALUATED,
        temperature: float | None = None,
        calibrator: str | None = None,
        fit_on: str | None = None,
        oracle: bool = False,
        prompts: str | None = None,
    ) -> Reliability:
        """A reliability diagram as numbers; what is None is as it was evaluated.

        With a calibrator, of what it makes of the predictions; see `calibrate`. With prompts, of
        what these would have said; see `prompts`.
        """
        return self._get(
            at("/evaluations", evaluation_id, "reliability"),
            Reliability,
            **binning.model_dump(),
            temperature=temperature,
            calibrator=calibrator,
            fit_on=fit_on,
            oracle=oracle or None,
            prompts=prompts,
        )

    def prompts(
        self,
        evaluation_id: str,
        *,
        binning: AskedBinning = AS_EVALUATED,
        temperature: float | None = None,
    ) -> PromptEffects:
        """What other prompts would have said of the same images, the run's own first."""
        return self._get(
            at("/evaluations", evaluation_id, "prompts"),
            PromptEffects,
            **binning.model_dump(),
            temperature=temperature,
        )

    def measures(
        self,
        evaluation_id: str,
        *,
        binning: AskedBinning = AS_EVALUATED,
        temperature: float | None = None,
        classwise: bool = True,
    ) -> MeasureSet:
        """Every measure of an evaluation with floor and interval; None is as it was evaluated."""
        return self._get(
            at("/evaluations", evaluation_id, "metrics"),
            MeasureSet,
            **binning.model_dump(),
            temperature=temperature,
            classwise=classwise,
        )

    def audit(self, evaluation_id: str, *, temperature: float | None = None) -> MeasureSet:
        """The same predictions under the estimators in use, each with its floor."""
        return self._get(
            at("/evaluations", evaluation_id, "audit"), MeasureSet, temperature=temperature
        )

    def slices(
        self,
        evaluation_id: str,
        *,
        by: Literal["all", "class", "predicted", "confusion", "confidence", "cluster"] = "class",
        where: str | None = None,
        sort: Literal["key", "n", "accuracy", "gap", "ece"] = "key",
        descending: bool = False,
        min_n: int = 30,
        binning: AskedBinning = AS_EVALUATED,
        temperature: float | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> SlicePage:
        """Calibration by class, confidence or source, of the samples that meet a condition.

        Args:
            evaluation_id: of an evaluation.
            by: what makes a slice.
            where: such as `confidence >= 0.9 and not correct and label in ("shirt", 3)`.
            sort: `key` is the order of classes, bins or names.
            descending: largest first.
            min_n: fewest samples that a slice's ECE is given for.
            binning: of each slice, of fewer bins where it is small.
            temperature: None is as it was evaluated.
            offset: slices before the page.
            limit: at most 200.
        """
        return self._get(
            at("/evaluations", evaluation_id, "slices"),
            SlicePage,
            by=by,
            where=where,
            sort=sort,
            descending=descending,
            min_n=min_n,
            **binning.model_dump(),
            temperature=temperature,
            offset=offset,
            limit=limit,
        )

    def run_slices(
        self,
        run_id: str,
        *,
        where: str | None = None,
        role: Sequence[Role] = (),
        min_n: int = 30,
        binning: AskedBinning = AS_EVALUATED,
        temperature: float | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> SlicePage:
        """The samples that meet a condition on every data set of a run: one slice each.

        Arguments are those of `slices`.
        """
        return self._get(
            at("/runs", run_id, "slices"),
            SlicePage,
            where=where,
            role=list(role),
            min_n=min_n,
            **binning.model_dump(),
            temperature=temperature,
            offset=offset,
            limit=limit,
        )

    def calibrate(
        self,
        evaluation_id: str,
        kind: str = "temperature",
        *,
        fit_on: str | None = None,
        oracle: bool = False,
        binning: AskedBinning = AS_EVALUATED,
    ) -> CalibratorEffect:
        """Fit a calibrator, and the diagram of an evaluation before and after it.

        Args:
            evaluation_id: what it is applied to.
            kind: temperature, vector, histogram, isotonic or tsp.
            fit_on: another evaluation of the run; None is the run's ID calibration split.
            oracle: allow `fit_on`; without it that is a ServiceError with the code `LEAKAGE`.
            binning: of the error and of the diagrams.
        """
        return self._get(
            at("/evaluations", evaluation_id, "calibrators"),
            CalibratorEffect,
            kind=kind,
            fit_on=fit_on,
            oracle=oracle or None,
            **binning.model_dump(),
        )

    def transfer(
        self,
        run_id: str,
        kind: str = "temperature",
        *,
        dataset: Sequence[str] = (),
        binning: AskedBinning = AS_EVALUATED,
    ) -> TransferMatrix:
        """A calibrator fitted on A and tested on B, for the ID data and shifts or those named.

        The first answer takes as long as passing over all their logits.
        """
        return self._get(
            at("/runs", run_id, "calibrators", "transfer"),
            TransferMatrix,
            kind=kind,
            dataset=list(dataset),
            **binning.model_dump(),
        )

    def budget(
        self,
        evaluation_id: str,
        difference: float,
        *,
        metric: str = "ece",
        against: str | None = None,
        level: float = 0.95,
        power: float = 0.8,
    ) -> Budget:
        """How many samples show a difference of a metric.

        Args:
            evaluation_id: whose noise counts.
            difference: to be shown, in the metric's unit; for ece of L2 errors, a fraction.
            metric: accuracy, ece, nll, brier or confidence.
            against: another model's evaluation on the same samples; None: samples of its own.
            level: of the two-sided test.
            power: chance to show the difference when it is real.
        """
        return self._get(
            at("/evaluations", evaluation_id, "budget"),
            Budget,
            difference=difference,
            metric=metric,
            against=against,
            level=level,
            power=power,
        )

    def download_predictions(self, evaluation_id: str, path: str | os.PathLike[str]) -> Path:
        """Download the per-sample predictions (Parquet).

        Raises:
            StorageError: the file cannot be written, or what arrived is damaged.
        """
        return self._download(at("/evaluations", evaluation_id, "predictions"), path)

    def import_predictions(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        dataset: str | None = None,
        role: PredictedRole | None = None,
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
