"""Evaluation jobs: finished runs, judged on data that their own specs did not name."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from calift_core.schema.base import Frozen
from calift_core.schema.spec import plain_name
from calift_core.schema.suite import CorruptionSpec, as_uri, name_of_uri, shift_names
from calift_core.schema.wire.queries import MAX_CHOICES, AnyOf, Cursor, Limit, Query
from calift_core.schema.wire.runs import JobSummary, RunPhase

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
#: What the id of an evaluation job begins with; that of a run is of hex digits alone.
JOB_PREFIX = "eval-"
#: Runs that one job judges at most.
MOST_RUNS = 50


def is_job_id(text: str) -> bool:
    """Whether an id is one of an evaluation job and not one of a run."""
    return text.startswith(JOB_PREFIX)


def _unlabelled_uri(value: str) -> str:
    uri = as_uri(value)
    if not uri.startswith(("folder:", "manifest:")):
        raise ValueError(
            f"images without labels are a folder:PATH or a manifest:FILE, got {value!r}"
        )
    return uri


class EvaluationJobSpec(Frozen):
    """Which finished runs are judged on what.

    A run is judged with the bins, precision and batch size of its own spec, so that the results are
    those that it would have had with this data in its spec.
    """

    name: str = Field(default="", max_length=120, title="Name", description="none: what it is on")
    runs: tuple[str, ...] = Field(
        min_length=1,
        max_length=MOST_RUNS,
        title="Runs",
        description="Ids of runs that succeeded; those whose models are alike share a pass",
    )
    suites: tuple[Annotated[str, AfterValidator(as_uri)], ...] = Field(
        default=(),
        max_length=20,
        title="Suites",
        description="Named suites of the runs' classes (imagenet, imagenet-c, pacs:sketch, …): "
        "their test images, own shifts and stored corruptions",
    )
    shifts: Annotated[dict[str, str], AfterValidator(shift_names)] = Field(
        default_factory=dict,
        max_length=50,
        title="Shifts",
        description="name → folder:PATH, manifest:FILE, wds:FOLDER or hf:FOLDER of the runs' "
        "classes under another distribution",
    )
    folders: tuple[Annotated[str, AfterValidator(as_uri)], ...] = Field(
        default=(),
        max_length=50,
        title="Folders",
        description="folder:PATH, manifest:FILE, wds:FOLDER or hf:FOLDER, each a shift that is "
        "called as its folder, file or domain",
    )
    corruptions: CorruptionSpec = Field(
        default_factory=CorruptionSpec,
        title="Corruptions",
        description="Of each run's own ID test images",
    )
    unlabelled: tuple[Annotated[str, AfterValidator(_unlabelled_uri)], ...] = Field(
        default=(),
        max_length=20,
        title="Without labels",
        description="folder:PATH or manifest:FILE of images, whose labels are not looked at: "
        "expected accuracy, drift, share of images that are none of the classes",
    )
    batch_size: int | None = Field(
        default=None, ge=1, le=65_536, title="Batch size", description="none: that of each run"
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$",
        title="Device",
        description="auto, cpu, cuda, cuda:1, mps",
    )

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return plain_name(name) if name else name

    @field_validator("runs")
    @classmethod
    def _ids(cls, runs: tuple[str, ...]) -> tuple[str, ...]:
        for run in runs:
            if not _RUN_ID.fullmatch(run):
                raise ValueError(f"a run is named by its id, got {run!r}")
        return tuple(dict.fromkeys(runs))

    @model_validator(mode="before")
    @classmethod
    def _one_run(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("runs"), str):
            return {**value, "runs": [value["runs"]]}
        return value

    @model_validator(mode="after")
    def _has_data(self) -> EvaluationJobSpec:
        if not (self.suites or self.all_shifts or self.corruptions.chosen or self.unlabelled):
            raise ValueError(
                "name what to judge the runs on: suites, shifts, folders, corruptions or unlabelled"
            )
        return self

    def content_hash(self) -> str:
        """SHA-256 (hex) of what is judged on what, without the name."""
        text = self.model_dump_json(exclude={"name"})
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def all_shifts(self) -> dict[str, str]:
        """Name → source of the shifts, folders among them.

        Raises:
            ValueError: two of them have one name, or a folder's name cannot be one.
        """
        found = dict(self.shifts)
        for uri in self.folders:
            name = name_of_uri(uri)
            shift_names({name: uri})
            if found.setdefault(name, uri) != uri:
                raise ValueError(
                    f"two of the shifts are called {name!r}; name one otherwise in shifts"
                )
        return found

    @property
    def title(self) -> str:
        """The job's name, or what the runs are judged on where it has none."""
        if self.name:
            return self.name
        places = (*self.suites, *(uri.partition(":")[2] for uri in self.unlabelled))
        parts = [*self.all_shifts, *(re.sub(r"[^\w.:/-]", "-", s[-40:]) for s in places)]
        n = len(self.corruptions.chosen)
        parts += [f"{n} corruptions" if n > 1 else self.corruptions.chosen[0]] if n else []
        shown = ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
        return f"on {shown}"[:120]


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


class EvaluationJob(JobSummary):
    """A job that judges finished runs. Phases, reasons and counts are those of runs.

    `results` counts the evaluations that it has put under its runs so far: each comes when its data
    set is finished, and stays whatever becomes of the job.
    """

    hint: str = ""
    spec: EvaluationJobSpec
    results: int = 0
    worker: str | None = None
    waiting: str = ""


class EvaluationJobPage(Frozen):
    """A page of evaluation jobs; `total` counts every match."""

    items: list[EvaluationJob]
    next_cursor: str | None = None
    total: int


class EvaluationJobsQuery(Query):
    """Evaluation jobs, newest first."""

    run_id: AnyOf = Field(default=(), description="That evaluate any of these runs")
    phase: tuple[RunPhase, ...] = Field(
        default=(), max_length=MAX_CHOICES, description="Any of these"
    )
    cursor: Cursor = None
    limit: Limit = 50
