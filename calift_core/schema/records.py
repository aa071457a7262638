"""What a run says while it works: one JSON object a line, in the order things happen.

`calift_core.training.loop.train` and `calift_core.jobs.folder.run_job` yield these; the runner
writes them to `records.jsonl`; the worker reads that file and stores them; the command draws
progress from them.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from calift_core.schema.base import Frozen
from calift_core.schema.report import EvaluationReport, SpectrumReport, Summary
from calift_core.schema.unlabelled import UnlabelledRecord

#: What a job does: make a model and judge it, or judge the models of finished runs.
JobKind = Literal["training", "evaluation"]
Phase = Literal["loading", "pretraining", "training", "evaluating", "saving"]


class PhaseRecord(Frozen):
    """The run enters a phase."""

    kind: Literal["phase"] = "phase"
    phase: Phase
    detail: str = ""


class ProgressRecord(Frozen):
    """How far the phase is. `eta_s` is the rest of the phase in seconds, null when unknown."""

    kind: Literal["progress"] = "progress"
    phase: Phase
    step: int
    total_steps: int
    samples_per_s: float | None = None
    eta_s: float | None = None
    detail: str = ""


class MetricsRecord(Frozen):
    """Numbers at an optimiser step (steps done, from 1). Names: `loss`, each term, `lr`."""

    kind: Literal["metrics"] = "metrics"
    step: int
    epoch: float
    values: dict[str, float]


class CheckpointRecord(Frozen):
    """A checkpoint is complete on disk. `path` is relative to the run's folder."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str
    size_bytes: int
    sha256: str


class ResumedRecord(Frozen):
    """The run goes on from a checkpoint: metrics after `step` are void."""

    kind: Literal["resumed"] = "resumed"
    step: int


class SpectrumRecord(Frozen):
    """Singular values of the ID features: in training, or (`final`) of the finished model.

    The two are of other images, validation and test, so both can be there at the last step.
    """

    kind: Literal["spectrum"] = "spectrum"
    step: int
    spectrum: SpectrumReport
    final: bool = False


class EvaluationRecord(Frozen):
    """One data set is evaluated. `predictions` is a path relative to the job's folder.

    `run` is the run that the result belongs to, where that is not the one that speaks: an
    evaluation job judges others.
    """

    kind: Literal["evaluation"] = "evaluation"
    evaluation: EvaluationReport
    predictions: str
    run: str | None = None


class LogRecord(Frozen):
    """A sentence for people."""

    kind: Literal["log"] = "log"
    level: Literal["info", "warning", "error"] = "info"
    message: str


class DoneRecord(Frozen):
    """The run is finished and `report.json` is complete. `steps` counts optimiser steps."""

    kind: Literal["done"] = "done"
    summary: Summary
    steps: int


Record = Annotated[
    PhaseRecord
    | ProgressRecord
    | MetricsRecord
    | CheckpointRecord
    | ResumedRecord
    | SpectrumRecord
    | EvaluationRecord
    | UnlabelledRecord
    | LogRecord
    | DoneRecord,
    Field(discriminator="kind"),
]

RECORD: TypeAdapter[Record] = TypeAdapter(Record)


class JobResult(Frozen):
    """How a runner ended: the content of `result.json`, written last and atomically.

    `interrupted` means: stopped on request, checkpoint saved, the same command goes on from it.
    `lost` means: one of several processes was ended from outside, which another attempt gets over.
    """

    outcome: Literal["succeeded", "failed", "interrupted", "lost"]
    code: str = ""
    message: str = ""
    hint: str = ""


class JobFile(Frozen):
    """`job.json` in a job's folder: what the runner needs beside `spec.json`.

    Attributes:
        run_id: names the run in reports.
        kind: `training` has a RunSpec in `spec.json`, `evaluation` an EvaluationJobSpec.
        attempt: counts from 1.
        resume_from: folder of an earlier attempt whose newest good checkpoint is to be used.
        inputs: folders of the finished runs that the method names, by the names it uses, or that
            are judged.
        request_id: of the request that submitted the run, for logs.
        spec: name of the file with what is asked.
        keep_states: whether to leave what only an unfinished run needs; a worker removes it when it
            has stored the result, before which it may die.
    """

    run_id: str
    kind: JobKind = "training"
    attempt: int = 1
    resume_from: str | None = None
    inputs: dict[str, str] = Field(default_factory=dict)
    request_id: str = ""
    spec: str = "spec.json"
    keep_states: bool = True


#: Exit status of a runner that stopped on request after it saved a checkpoint (EX_TEMPFAIL).
EXIT_INTERRUPTED = 75

#: Exit status of a launcher one of whose processes was ended from outside (EX_PROTOCOL).
EXIT_LOST = 76
