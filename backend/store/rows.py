"""What a runner says, as rows: its records in groups, its log, its report."""

import hashlib
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, delete, insert, update

from backend.store.engine import moment, plain, upsert
from backend.store.models import EvaluationRow, Event, LogChunk, Metric, ReportRow, Run, SpectrumRow
from calift_core.schema.records import (
    DoneRecord,
    EvaluationRecord,
    LogRecord,
    MetricsRecord,
    PhaseRecord,
    ProgressRecord,
    Record,
    ResumedRecord,
    SpectrumRecord,
)
from calift_core.schema.wire.runs import Progress

#: A run's log stops growing here; the runner's own file goes on.
LOG_CAP_BYTES = 16 << 20


_LOG_CHUNK_BYTES = 64 << 10


_SUMMARY_COLUMNS = ("id_accuracy", "ood_accuracy", "id_ece", "ood_ece", "sigma_min")


class Batch:
    """Records turned into rows, in order. A later record of the same key wins."""

    def __init__(self, run_id: str, attempt: int, now: float) -> None:
        self.run_id, self.attempt, self.now = run_id, attempt, now
        self.metrics: dict[tuple[str, int], dict[str, Any]] = {}
        self.spectra: dict[tuple[int, bool], dict[str, Any]] = {}
        self.evaluations: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.log: list[str] = []
        self.progress: Progress | None = None
        self.summary: dict[str, Any] | None = None
        self.resumed_step: int | None = None

    def _event(self, kind: str, data: dict[str, Any]) -> None:
        self.events.append(
            {
                "run_id": self.run_id,
                "attempt": self.attempt,
                "kind": kind,
                "at": self.now,
                "data": data,
            }
        )

    def take(self, record: Record) -> None:
        data = record.model_dump(mode="json", exclude={"kind"})
        match record:
            case MetricsRecord():
                self._take_metrics(record)
                # One event a batch and not one a step: the last is enough to know there is more.
                if self.events and self.events[-1]["kind"] == "metrics":
                    self.events.pop()
                self._event("metrics", data)
            case ProgressRecord():
                self.progress = Progress(
                    phase=record.phase,
                    detail=record.detail,
                    step=record.step,
                    total_steps=record.total_steps,
                    samples_per_s=record.samples_per_s,
                    eta_s=record.eta_s,
                    updated_at=moment(self.now),
                )
            case PhaseRecord():
                self.progress = Progress(
                    phase=record.phase, detail=record.detail, updated_at=moment(self.now)
                )
                self._event("phase", data)
            case ResumedRecord():
                self._take_resumed(record.step)
                self._event("resumed", data)
            case SpectrumRecord():
                self.spectra[record.step, record.final] = {
                    "run_id": self.run_id,
                    "step": record.step,
                    "final": record.final,
                    "attempt": self.attempt,
                    "spectrum": data["spectrum"],
                }
                self._event(
                    "spectrum",
                    {
                        "step": record.step,
                        "final": record.final,
                        "sigma_min": record.spectrum.sigma_min,
                        "effective_rank": record.spectrum.effective_rank,
                    },
                )
            case EvaluationRecord():
                self._take_evaluation(record, data["evaluation"])
            case LogRecord():
                self.log.append(f"[{record.level}] {record.message}\n")
                self._event("log", data)
            case DoneRecord():
                self.summary = data["summary"]
                self._event("done", data)
            case _:
                self._event(record.kind, data)

    def _take_metrics(self, record: MetricsRecord) -> None:
        for given, value in record.values.items():
            name = plain(given) or ""
            self.metrics[name, record.step] = {
                "run_id": self.run_id,
                "name": name,
                "step": record.step,
                "value": value,
                "epoch": record.epoch,
                "attempt": self.attempt,
            }

    def _take_resumed(self, step: int) -> None:
        self.resumed_step = step if self.resumed_step is None else min(step, self.resumed_step)
        self.metrics = {key: row for key, row in self.metrics.items() if key[1] <= step}
        self.spectra = {key: row for key, row in self.spectra.items() if key[0] <= step}

    def _take_evaluation(self, record: EvaluationRecord, report: dict[str, Any]) -> None:
        e = record.evaluation
        identity = evaluation_id(record.run or self.run_id, e.dataset)
        data = {
            "id": identity,
            "dataset": e.dataset,
            "role": e.role,
            "n": e.n,
            "accuracy": e.accuracy,
            "ece": e.ece.value,
        }
        if record.run is not None:  # the row is that run's, see `backend.store.evaluated`
            self._event("evaluation", {"run_id": record.run, **data})
            return
        self.evaluations[e.dataset] = {
            "id": identity,
            "run_id": self.run_id,
            "dataset": e.dataset,
            "role": e.role,
            "attempt": self.attempt,
            "created_at": self.now,
            "predictions": record.predictions,
            "predictions_sha256": e.predictions_sha256,
            "report": report,
        }
        self._event("evaluation", data)


def flush(connection: Connection, batch: Batch, seq: int, log_bytes: int) -> None:
    """Write a batch in the caller's transaction, which has locked the run's row.

    Args:
        seq: the run's `event_seq` so far.
        log_bytes: the run's log so far.
    """
    run_id = batch.run_id
    if batch.resumed_step is not None:
        for table in (Metric, SpectrumRow):
            connection.execute(
                delete(table).where(table.run_id == run_id, table.step > batch.resumed_step)
            )
    if batch.metrics:
        # An attempt that starts over leaves nothing of an older one beside its own points.
        first = min(step for _, step in batch.metrics)
        connection.execute(
            delete(Metric).where(
                Metric.run_id == run_id, Metric.attempt < batch.attempt, Metric.step >= first
            )
        )
    put_points(connection, batch)
    if batch.evaluations:
        connection.execute(
            upsert(
                connection,
                EvaluationRow,
                ("id",),
                (
                    "role",
                    "attempt",
                    "position",
                    "created_at",
                    "predictions",
                    "predictions_sha256",
                    "report",
                ),
            ),
            [
                {**row, "position": seq + index}
                for index, row in enumerate(batch.evaluations.values())
            ],
        )
    if batch.events:
        connection.execute(
            insert(Event),
            [{**row, "id": seq + index} for index, row in enumerate(batch.events, start=1)],
        )
    text = "".join(batch.log).encode("utf-8", "replace")
    values: dict[str, Any] = {"event_seq": seq + len(batch.events)}
    values["log_bytes"] = write_log(connection, run_id, batch.attempt, log_bytes, text)
    if batch.progress is not None:
        values["progress"] = batch.progress.model_dump(mode="json")
    if batch.summary is not None:
        values |= summary_values(batch.summary)
    connection.execute(update(Run).where(Run.id == run_id).values(**values))


def put_points(connection: Connection, batch: Batch) -> None:
    """Write the points of a batch's curves and its spectra, and nothing else of it."""
    if batch.metrics:
        connection.execute(
            upsert(connection, Metric, ("run_id", "name", "step"), ("value", "epoch", "attempt")),
            list(batch.metrics.values()),
        )
    if batch.spectra:
        connection.execute(
            upsert(connection, SpectrumRow, ("run_id", "step", "final"), ("attempt", "spectrum")),
            list(batch.spectra.values()),
        )


def write_log(connection: Connection, run_id: str, attempt: int, start: int, raw: bytes) -> int:
    """Append to a run's log at `start`; where it ends now. Beyond the cap the rest is dropped."""
    if not raw or start >= LOG_CAP_BYTES:
        return start
    if start + len(raw) > LOG_CAP_BYTES:
        raw = raw[: LOG_CAP_BYTES - start] + b"\n[the log is cut here]\n"
    connection.execute(
        insert(LogChunk),
        [
            {
                "run_id": run_id,
                "start": start + at,
                "attempt": attempt,
                "body": raw[at : at + _LOG_CHUNK_BYTES],
            }
            for at in range(0, len(raw), _LOG_CHUNK_BYTES)
        ],
    )
    return start + len(raw)


def store_report(
    connection: Connection, run_id: str, attempt: int, report: Mapping[str, Any]
) -> None:
    """Write a run's `report.json`; evaluations that it does not know go."""
    connection.execute(
        upsert(connection, ReportRow, ("run_id",), ("attempt", "body")),
        {"run_id": run_id, "attempt": attempt, "body": dict(report)},
    )
    # An evaluation of a lost attempt that the report does not know is not the model's.
    known = [e["dataset"] for e in report.get("evaluations", [])]
    connection.execute(
        delete(EvaluationRow).where(
            EvaluationRow.run_id == run_id, EvaluationRow.dataset.not_in(known)
        )
    )


def evaluation_id(run_id: str, dataset: str) -> str:
    """The id of a run's evaluation on a data set; the same after another attempt."""
    return f"{run_id}-{hashlib.sha256(dataset.encode()).hexdigest()[:8]}"


def summary_values(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary as the columns of a run that lists show and sort by."""
    return {"summary": dict(summary)} | {name: summary.get(name) for name in _SUMMARY_COLUMNS}
