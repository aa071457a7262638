"""One action on many runs, each by the rules of a single one."""

from collections.abc import Callable, Iterable
from itertools import islice

from backend.http.authentication import Principal
from backend.http.problems import HttpError
from backend.services.submission import Submission
from backend.settings import Settings
from backend.storage.artifacts import ArtifactStore
from backend.store.stores import Stores
from calift_core.errors import CaliftError
from calift_core.schema.wire.operations import MOST_AT_ONCE, Bulk, BulkDone, Refusal
from calift_core.schema.wire.queries import RunFilter, RunsQuery

_MOST_TAGS = 20


class BulkActions:
    """Does what was asked to each run that the asker may change."""

    def __init__(
        self,
        settings: Settings,
        store: Stores,
        artifacts: ArtifactStore,
        submission: Submission,
        owned: Callable[[Principal, str], None],
    ) -> None:
        self._settings, self._store, self._artifacts = settings, store, artifacts
        self._submission, self._owned = submission, owned

    def do(self, bulk: Bulk, principal: Principal) -> BulkDone:
        """Change one run after the other; one that refuses keeps none of the others from it.

        Raises:
            HttpError: 403, deleting needs the scope admin.
            SpecError: a tag is not allowed.
        """
        if bulk.action == "delete" and not principal.may("admin"):
            raise HttpError(
                403,
                "FORBIDDEN",
                f"deleting runs needs a token of scope admin, yours has {principal.scope}.",
                hint="Archive them, or ask whoever runs the service.",
            )
        if bulk.tags:
            self._submission.parse(
                {"name": "tags", "method": {"kind": "zero_shot"}, "tags": bulk.tags}, prefix="#"
            )
        ids, more = self._meant(bulk)
        done: list[str] = []
        refused: list[Refusal] = []
        digests: list[str] = []
        for run_id in ids:
            try:
                self._owned(principal, run_id)
                digests += self._change(bulk, run_id)
            except CaliftError as error:
                refused.append(Refusal(id=run_id, code=error.code, message=error.message))
            else:
                done.append(run_id)
        if digests:
            self._artifacts.collect(
                self._store.files, grace_s=self._settings.artifact_grace_s, digests=digests
            )
        return BulkDone(action=bulk.action, done=done, refused=refused, more=more)

    def _meant(self, bulk: Bulk) -> tuple[list[str], bool]:
        if bulk.ids is not None:
            return list(dict.fromkeys(bulk.ids)), False
        assert bulk.filter is not None
        found = list(islice(self._found(bulk.filter), MOST_AT_ONCE + 1))
        return found[:MOST_AT_ONCE], len(found) > MOST_AT_ONCE

    def _found(self, wanted: RunFilter) -> Iterable[str]:
        query = RunsQuery.of(wanted, {"limit": 200})
        cursor: str | None = None
        while True:
            items, cursor, _ = self._store.runs.page(query, cursor=cursor)
            yield from (run.id for run in items)
            if cursor is None:
                return

    def _change(self, bulk: Bulk, run_id: str) -> list[str]:
        """Change one run; the SHA-256s that may be unreferenced now."""
        runs = self._store.runs
        match bulk.action:
            case "cancel":
                runs.request_cancel(run_id)
            case "retry":
                runs.retry(run_id, max_queued=self._settings.max_queued)
            case "archive" | "unarchive":
                runs.patch(run_id, archived=bulk.action == "archive")
            case "delete":
                return runs.delete(run_id)
            case "tag" | "untag":
                held = runs.get(run_id).tags
                wanted = [t for t in held if t not in bulk.tags]
                if bulk.action == "tag":
                    wanted = [*held, *(t for t in bulk.tags if t not in held)]
                if len(wanted) > _MOST_TAGS:
                    raise HttpError(
                        422,
                        "INVALID_REQUEST",
                        f"a run has at most {_MOST_TAGS} tags, this one would have {len(wanted)}.",
                    )
                runs.patch(run_id, tags=wanted)
        return []
