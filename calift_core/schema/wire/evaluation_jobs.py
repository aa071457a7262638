"""Evaluation jobs as the REST API takes and gives them."""

from datetime import datetime

from pydantic import Field

from calift_core.schema.base import Frozen
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.wire.runs import ETA_SECONDS, FRACTION_DONE, Progress, RunPhase


class EvaluationSubmit(EvaluationJobSpec):
    """Finished runs to be judged on more data; it is checked before anything is stored."""

    priority: int = Field(default=0, ge=-10, le=10)
    max_attempts: int = Field(default=3, ge=1, le=20)

    @property
    def spec(self) -> EvaluationJobSpec:
        """What is asked, without how the job is queued."""
        return EvaluationJobSpec.model_validate(
            self.model_dump(exclude={"priority", "max_attempts"})
        )


class EvaluationJob(Frozen):
    """A job that judges finished runs. Phases, reasons and counts are those of runs.

    `results` counts the evaluations that it has put under its runs so far: each comes when its data
    set is finished, and stays whatever becomes of the job.
    """

    id: str
    name: str
    phase: RunPhase
    reason: str | None = None
    message: str | None = None
    hint: str = ""
    spec: EvaluationJobSpec
    results: int = 0
    priority: int = 0
    attempt: int = 0
    max_attempts: int = 3
    lost_attempts: int = 0
    drain_requeues: int = 0
    storage_requeues: int = 0
    owner: str | None = None
    worker: str | None = None
    waiting: str = ""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    heartbeat_at: datetime | None = None
    progress: Progress | None = None
    fraction_done: float | None = FRACTION_DONE
    eta_seconds: float | None = ETA_SECONDS


class EvaluationJobPage(Frozen):
    """A page of evaluation jobs; `total` counts every match."""

    items: list[EvaluationJob]
    next_cursor: str | None = None
    total: int
