"""What is exchanged: a run as any tracker could hold it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calift_core.analysis.report import read_report
from calift_core.errors import SpecError
from calift_core.jobs.curves import read_curves
from calift_core.schema.records import MetricsRecord
from calift_core.schema.report import EvaluationReport, Report
from calift_core.schema.wire.runs import Metrics, MetricSeries
from calift_core.trackers import flat

if TYPE_CHECKING:
    from calift_core.client import Client

#: Numbers of a data set that go out.
_NUMBERS = ("n", "accuracy", "mean_confidence", "nll", "brier", "smooth_ece", "aurc")


@dataclass(frozen=True)
class Exchanged:
    """A run as another tracker can hold it.

    Attributes:
        settings: flat, `train.lr` → text.
    """

    name: str
    id: str
    settings: Mapping[str, str] = field(default_factory=dict)
    curves: Metrics = Metrics(series=[], last_step=-1)
    numbers: Mapping[str, float] = field(default_factory=dict)
    document: Report | None = None


def metrics_of(series: Mapping[str, Mapping[int, float]]) -> Metrics:
    """Curves of points by name and step, in the order of their steps."""
    made = [
        MetricSeries(name=name, steps=sorted(points), values=[points[s] for s in sorted(points)])
        for name, points in series.items()
        if points
    ]
    return Metrics(series=made, last_step=max((s.steps[-1] for s in made), default=-1))


def outgoing(run: str, client: Client | None) -> Exchanged:
    """A finished run of the service, or of a folder, as it goes out.

    Args:
        run: an id, or a folder with `report.json`.
        client: of the service; None for a folder.

    Raises:
        SpecError: the run has not finished.
        DataError: the folder is not one of a finished run.
    """
    if client is None:
        report, curves = _of_folder(Path(run))
    else:
        detail = client.run(run)
        if detail.phase != "SUCCEEDED":
            raise SpecError(f"only finished runs are pushed; {run} is {detail.phase}.")
        # Evaluation jobs may have added results after the report was stored.
        stored = {e.dataset: e for e in client.run_evaluations(run)}
        report = client.report(run)
        known = [EvaluationReport.model_validate(stored.get(e.dataset, e).model_dump(
            include=set(EvaluationReport.model_fields))) for e in report.evaluations]  # fmt: skip
        report = report.model_copy(update={"evaluations": known, "name": detail.name})
        curves = client.metrics(run)
    return Exchanged(
        name=report.name,
        id=report.run_id or run,
        settings=dict(_texts(report.spec))
        | {f"resolved.{k}": v for k, v in _texts(report.resolved)},
        curves=curves,
        numbers=dict(_numbers(report)),
        document=report,
    )


def _of_folder(folder: Path) -> tuple[Report, Metrics]:
    report = read_report(folder)
    series: dict[str, dict[int, float]] = {}
    for record in read_curves(folder, until=2**62):
        if isinstance(record, MetricsRecord):
            for name, value in record.values.items():
                series.setdefault(name, {})[record.step] = value
    return report, metrics_of(series)


def _texts(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in flat(settings):
        yield name, value if isinstance(value, str) else json.dumps(value)


def _numbers(report: Report) -> Iterator[tuple[str, float]]:
    """The headline and every data set's numbers; an error with its floor beside it."""
    for name, value in report.summary.model_dump().items():
        if isinstance(value, float):
            yield name, value
    for e in report.evaluations:
        for name in _NUMBERS:
            yield f"{e.dataset}/{name}", float(getattr(e, name))
        yield f"{e.dataset}/ece", e.ece.value
        yield f"{e.dataset}/ece_floor", e.ece.null_mean
        yield f"{e.dataset}/ece_floor_q95", e.ece.null_q95
        yield f"{e.dataset}/ece_low", e.ece.interval[0]
        yield f"{e.dataset}/ece_high", e.ece.interval[1]
