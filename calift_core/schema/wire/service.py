"""The service itself: health, problems, visitors, what it offers and who works for it."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from calift_core.schema.base import Frozen
from calift_core.schema.wire.runs import Progress


class Problem(Frozen):
    """RFC 9457 problem details. `errors` points into the request body by JSON pointer."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    hint: str = ""
    request_id: str
    errors: list[dict[str, str]] = Field(default_factory=list)


class Health(Frozen):
    """Liveness."""

    status: Literal["ok"] = "ok"
    version: str


class Opened(Frozen):
    """A session, or a link that becomes one once. `token` is shown this time only."""

    token: str
    expires_at: datetime


class Visitor(Frozen):
    """Who asks.

    Attributes:
        name: whose token it is.
        scope: what it may do: `admin` covers `submit`, which covers `read`.
        expires_at: when the session ends; null for a token.
    """

    name: str
    scope: Literal["read", "submit", "admin"]
    expires_at: datetime | None = None


class Ready(Frozen):
    """What was looked at, and answered."""

    status: Literal["ready"] = "ready"
    checks: list[Literal["database", "schema", "broker", "artifacts", "disk"]]


class MethodInfo(Frozen):
    """A method with the JSON schema that a form is built from."""

    kind: str
    title: str
    summary: str
    source: str
    trains: bool
    terms: list[str]
    defaults: dict[str, Any]
    spec_schema: dict[str, Any]


class ModelInfo(Frozen):
    """A model that can be named in a RunSpec."""

    name: str
    pretrained: str | None
    available: bool
    detail: str
    size_bytes: int | None = None
    sha256: str | None = None


class DatasetInfo(Frozen):
    """A suite that can be named in a RunSpec.

    `brought_by` is who brought a zip by the browser or the API, and may delete it; empty for suites
    that were not brought.
    """

    id: str
    title: str
    available: bool
    detail: str
    classes: list[str] = Field(default_factory=list)
    parts: dict[str, int] = Field(default_factory=dict)
    brought_by: str = ""


class ScannedClass(Frozen):
    """A class of somebody's data; `n` counts its images in all parts, null where not listed."""

    name: str
    n: int | None = None


class ScannedImage(Frozen):
    """An image that was opened: a picture as a data URI, or why there is none."""

    sample: str
    class_name: str
    picture: str | None = None
    fault: str = ""


class SuiteScan(Frozen):
    """A look at data that a run could name.

    Nothing is downloaded. `images` are a few of the test part, of as many classes as possible, and
    the only ones that were opened. `problems` says what stands in the way of a run, `basis` where
    the numbers come from.
    """

    suite: str
    n_classes: int | None
    classes: list[ScannedClass]
    parts: dict[str, int]
    shifts: dict[str, int | None]
    basis: str
    problems: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    images: list[ScannedImage] = Field(default_factory=list)


class Copies(Frozen):
    """Images of one set that another has too, equal or nearly.

    `sentence` says what they can be worth; `examples` are a few pairs, (its id, the other's).
    """

    name: str
    other: str
    n: int
    exact: int
    near: int
    sentence: str
    examples: list[tuple[str, str]] = Field(default_factory=list)


class SuiteCopies(Frozen):
    """What is in several parts of a suite: every image of which was decoded once.

    `looked_at` counts images by set, `unreadable` names the first of `n_unreadable` that cannot be
    decoded.
    """

    suite: str
    looked_at: dict[str, int]
    copies: list[Copies]
    n_unreadable: int = 0
    unreadable: list[str] = Field(default_factory=list)


class FolderInside(Frozen):
    """A folder that can be chosen: the folders in it, and the images anywhere below it.

    `whole` is false where there is more than was counted.
    """

    name: str
    path: str
    folders: int
    images: int
    whole: bool = True


class FolderList(Frozen):
    """The folders in a registered folder; without a path, the registered folders themselves.

    `parent` is null at the top, `images` lie in the folder itself, and `whole` is false where not
    every folder is named.
    """

    path: str | None = None
    parent: str | None = None
    folders: list[FolderInside]
    images: int = 0
    whole: bool = True


class UploadedData(Frozen):
    """A zip of images that was taken in: `suite` names it in a RunSpec."""

    suite: str
    name: str
    sha256: str
    size_bytes: int
    n_classes: int
    images: int


class GpuUse(Frozen):
    """A worker's GPU as the driver says; null where it does not."""

    name: str
    memory_used_mib: int | None = None
    memory_total_mib: int | None = None
    utilisation: float | None = Field(default=None, description="a fraction")


class WorkerInfo(Frozen):
    """A worker that has reported in.

    `trouble` says why it takes no run; empty: it is well. `drained_by` asked it to take none after
    the one that it works on.
    """

    id: str
    host: str
    queues: list[str]
    device: str
    run_id: str | None = None
    run_name: str = ""
    progress: Progress | None = None
    trouble: str = ""
    drained_by: str | None = None
    gpus: list[GpuUse] = Field(default_factory=list)
    started_at: datetime
    seen_at: datetime
    alive: bool


class SuiteRuns(Frozen):
    """A suite as runs name it, and the runs on it that were asked for."""

    suite: str
    runs: int
    newest_at: datetime


class Stats(Frozen):
    """The overview's numbers. Evaluation jobs are in the queue and no runs."""

    runs_by_phase: dict[str, int]
    queue_depth: int
    oldest_queued_s: float | None = None
    workers: list[WorkerInfo]
    broker_ok: bool
    free_bytes: int
