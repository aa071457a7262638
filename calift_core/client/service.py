"""Calls about the service: catalogue, workers, views, tokens, sessions."""

import os
from collections.abc import Sequence
from typing import IO

from calift_core.client.connection import Connection, opened_file, url_path
from calift_core.client.operations import Operation
from calift_core.schema.wire.operations import (
    AuditPage,
    Pruned,
    PruneRequest,
    SavedView,
    TokenInfo,
    TokenMade,
    TokenMake,
    ViewSave,
)
from calift_core.schema.wire.queries import AuditLogQuery, SuiteQuery
from calift_core.schema.wire.service import (
    DatasetInfo,
    FolderList,
    Health,
    MethodInfo,
    ModelInfo,
    Opened,
    Ready,
    Stats,
    SuiteCopies,
    SuiteRuns,
    SuiteScan,
    UploadedData,
    Visitor,
    WorkerInfo,
)


class ServiceCalls(Connection):
    """The service itself."""

    def methods(self) -> list[MethodInfo]:
        """Methods with the JSON schema of their options."""
        return self._get("/methods", list[MethodInfo])

    def models(self) -> list[ModelInfo]:
        """Models that are known by name."""
        return self._get("/models", list[ModelInfo])

    def datasets(self) -> list[DatasetInfo]:
        """Suites, and which of them are on the service's machine."""
        return self._get("/datasets", list[DatasetInfo])

    scan = Operation("/datasets/scan", SuiteQuery, SuiteScan)
    """A look at data that a run could name: classes, numbers, a few images.

    Raises:
        ServiceError: no suite has this name, or its path may not be read there.
    """

    copies = Operation("/datasets/copies", SuiteQuery, SuiteCopies, wait_s=330.0)
    """Equal and nearly equal images in several parts of a suite; every image is decoded.

    Raises:
        ServiceError: it has too many images, or somebody else's are being looked at.
    """

    def folders(self, path: str | None = None) -> FolderList:
        """The registered folders of the service's machine, or the folders in one of them.

        Raises:
            ServiceError: there is no such folder, or it lies outside them.
        """
        found = self._send("GET", "/datasets/folders", params={"path": path})
        return self._read(found, FolderList)

    def upload_zip(self, file: str | os.PathLike[str] | IO[bytes], name: str) -> UploadedData:
        """Bring a zip of class folders to the service, which keeps it as a suite.

        Args:
            file: a path, or an open file.
            name: of the file, such as `birds.zip`.

        Raises:
            ServiceError: it is refused; the sentence says why.
            StorageError: it cannot be read here.
        """
        with opened_file(file) as body:
            response = self._upload("/datasets", body, "application/zip", {"name": name})
        return self._read(response, UploadedData)

    def delete_zip(self, suite: str) -> None:
        """Delete a zip that was brought to the service, by the `suite` that it is named by there.

        Raises:
            ServiceError: there is none, it is another's, or a run that is not over needs it.
        """
        self._send("DELETE", "/datasets", params={"suite": suite})

    def suites(self, *, phase: Sequence[str] = ()) -> list[SuiteRuns]:
        """The suites of the runs in any of these phases, that of the newest run first."""
        return self._get("/suites", list[SuiteRuns], phase=list(phase))

    def workers(self) -> list[WorkerInfo]:
        """Workers that have reported in."""
        return self._get("/workers", list[WorkerInfo])

    def stats(self) -> Stats:
        """The overview's numbers."""
        return self._get("/stats", Stats)

    def drain_worker(self, worker_id: str) -> WorkerInfo:
        """Have a worker take no run after the one that it works on."""
        return self._post(url_path("/workers", worker_id, "drain"), WorkerInfo)

    def resume_worker(self, worker_id: str) -> WorkerInfo:
        """Have a drained worker take runs again."""
        return self._post(url_path("/workers", worker_id, "resume"), WorkerInfo)

    def views(self, *, page: str | None = None) -> list[SavedView]:
        """Saved views, of one page of the dashboard or of all, the newest first."""
        return self._get("/views", list[SavedView], page=page)

    def view(self, view_id: str) -> SavedView:
        """One saved view."""
        return self._get(url_path("/views", view_id), SavedView)

    def save_view(self, view: ViewSave) -> SavedView:
        """Keep a page of the dashboard under a short address, `/v/ID`."""
        return self._post("/views", SavedView, view)

    def delete_view(self, view_id: str) -> None:
        """Forget a saved view."""
        self._send("DELETE", url_path("/views", view_id))

    def tokens(self) -> list[TokenInfo]:
        """One's own tokens; an admin sees everybody's."""
        return self._get("/tokens", list[TokenInfo])

    def make_token(self, token: TokenMake) -> TokenMade:
        """Make a token for oneself, an admin for anybody; its text is in the answer alone."""
        return self._post("/tokens", TokenMade, token)

    def revoke_token(self, token_id: str) -> None:
        """Make a token worthless; repeatable."""
        self._send("DELETE", url_path("/tokens", token_id))

    audit_log = Operation("/audit", AuditLogQuery, AuditPage)
    """Who did what to which object, the newest first; for admins."""

    def prune(self, request: PruneRequest, *, preview: bool = False) -> Pruned:
        """Remove what is old, or with `preview` only say what that would be; for admins."""
        path = "/retention/preview" if preview else "/retention"
        return self._post(path, Pruned, request)

    def visitor(self) -> Visitor:
        """Whose token or session this client has, and what it may do."""
        return self._get("/sessions/current", Visitor)

    def open_session(self) -> Opened:
        """Log in: a session with this client's token, or with a link's code, which is used up."""
        return self._post("/sessions", Opened)

    def end_session(self) -> None:
        """Log out."""
        self._send("DELETE", "/sessions/current")

    def make_link(self) -> Opened:
        """A code that logs in to the dashboard once, at `/enter?code=…`."""
        return self._post("/sessions/links", Opened)

    def health(self) -> Health:
        """Whether the service lives; needs no token."""
        return self._get("/health", Health)

    def server_date(self) -> str | None:
        """What the service's clock says, to a second, as HTTP writes it; None: it does not say."""
        date: str | None = self._send("GET", "/health").headers.get("date")
        return date

    def ready(self) -> Ready:
        """Whether database, tables, broker and artifact store answer; needs no token.

        Raises:
            ServiceError: with status 503 and what does not answer.
        """
        return self._get("/readyz", Ready)
