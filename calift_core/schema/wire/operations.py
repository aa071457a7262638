"""What keeps a service in order: bulk actions, audit log, views, tokens, retention."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from calift_core.schema.base import Frozen
from calift_core.schema.wire.queries import RunFilter, StorableText

BulkAction = Literal["cancel", "retry", "archive", "unarchive", "delete", "tag", "untag"]
#: Runs that one bulk action changes at most.
MOST_AT_ONCE = 1000


class Bulk(Frozen):
    """One action on many runs: those of `ids`, or those that a filter finds.

    `tag` and `untag` take `tags`. An empty filter means every run that is not archived; `delete`
    takes none.
    """

    action: BulkAction
    ids: list[StorableText] | None = Field(default=None, min_length=1, max_length=MOST_AT_ONCE)
    filter: RunFilter | None = None
    tags: list[StorableText] = Field(default_factory=list, max_length=20)

    @model_validator(mode="after")
    def _one_of(self) -> Bulk:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give ids or filter, and not both")
        if (self.action in ("tag", "untag")) != bool(self.tags):
            raise ValueError("tags must be given for tag and untag, and for nothing else")
        if self.action == "delete" and self.filter in (RunFilter(), RunFilter(archived="any")):
            raise ValueError("delete takes ids, or a filter that leaves something out")
        return self


class Refusal(Frozen):
    """A run that a bulk action left as it was, and why."""

    id: str
    code: str
    message: str


class BulkDone(Frozen):
    """What came of a bulk action; a refused run does not keep the others from it.

    `more` says that the filter finds more than one action changes: ask again.
    """

    action: BulkAction
    done: list[str]
    refused: list[Refusal] = Field(default_factory=list)
    more: bool = False


class AuditEntry(Frozen):
    """Who did what to which object. `action` is the operation's name in the API's description."""

    id: int
    at: datetime
    actor: str
    token_id: str
    action: str
    target: str
    request_id: str
    detail: dict[str, Any] = Field(default_factory=dict)


class AuditPage(Frozen):
    """Entries, the newest first. Pass `next_before` as `before` for older ones."""

    items: list[AuditEntry]
    next_before: int | None = None


#: Pages of the dashboard that can be saved.
Page = Literal[
    "overview", "runs", "run", "compare", "calibration", "decide", "frontier", "shifts", "spectra",
    "bound", "plan", "curves",
]  # fmt: skip


class ViewSave(Frozen):
    """A page of the dashboard with what stands behind the `?` of its address."""

    name: StorableText = Field(min_length=1, max_length=120, pattern=r"\S")
    page: Page
    query: str = Field(default="", max_length=8000, pattern=r"^[!-~]*$")


class SavedView(ViewSave):
    """A saved view. The dashboard opens it at `/v/ID`."""

    id: str
    owner: str
    created_at: datetime


class TokenMake(Frozen):
    """A token to be made. Runs belong to its `owner`."""

    owner: StorableText = Field(min_length=1, max_length=120)
    scope: Literal["read", "submit", "admin"] = "submit"
    days: float | None = Field(default=None, gt=0, le=36_500, description="null: it never expires")
    note: StorableText = Field(default="", max_length=500, description="what it is for")


class TokenInfo(Frozen):
    """A token without its secret."""

    id: str
    owner: str
    scope: Literal["read", "submit", "admin"]
    note: str = ""
    state: Literal["valid", "expired", "revoked"]
    created_at: datetime
    expires_at: datetime | None = None


class TokenMade(TokenInfo):
    """A new token; its text is shown this time only."""

    token: str


Prunable = Literal["checkpoints", "archived_predictions", "archived_runs"]


class PruneRequest(Frozen):
    """What is to be removed of runs that ended so long ago.

    `checkpoints`: models and resume states of every run; `archived_predictions`: predictions of
    archived runs, whose numbers stay; `archived_runs`: archived runs whole.
    """

    kinds: list[Prunable] = Field(
        default=["checkpoints", "archived_predictions"], min_length=1, max_length=3
    )
    older_than_days: float = Field(default=30.0, ge=0, le=36_500)


class Pruned(Frozen):
    """What was removed, or would be (`done` is false).

    `freed_bytes` leaves out contents that other runs name. `run_ids` are the first 200 of the runs.
    """

    done: bool
    kinds: list[Prunable]
    older_than_days: float
    runs: int
    files: int
    freed_bytes: int
    run_ids: list[str]
