"""What keeps the service in order: bulk actions, workers, views, tokens, audit log, retention."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from backend.http.authentication import Principal, hash_token
from backend.http.problems import HttpError
from backend.routes.deps import PrincipalDep, ServicesDep, StoreDep, allow, changes_nothing, note
from backend.settings import new_token
from backend.store.tokens import StoredToken
from calift_core.errors import NotFoundError
from calift_core.schema.wire.operations import (
    AuditPage,
    Bulk,
    BulkDone,
    Page,
    Pruned,
    PruneRequest,
    SavedView,
    TokenInfo,
    TokenMade,
    TokenMake,
    ViewSave,
)
from calift_core.schema.wire.queries import AuditLogQuery
from calift_core.schema.wire.service import WorkerInfo

router = APIRouter(tags=["operations"])

WorkerId = Annotated[str, Path(max_length=200, description="A worker's id")]
ViewId = Annotated[str, Path(max_length=32, description="A saved view's id")]
TokenId = Annotated[str, Path(max_length=64, description="A token's public half")]


@router.post("/runs/bulk")
@allow("submit")
def change_runs(
    body: Bulk, request: Request, services: ServicesDep, principal: PrincipalDep
) -> BulkDone:
    """Cancel, retry, archive, tag or delete many runs, by their ids or by a filter.

    Each by the rules of a single one: what may not be changed is told and the rest is done.
    Deleting needs the scope `admin`.
    """
    done = services.bulk.do(body, principal)
    note(request, action=body.action, ids=done.done)
    services.housekeeper.wake()
    return done


@router.post("/workers/{worker_id}/drain")
@allow("admin")
def drain_worker(worker_id: WorkerId, store: StoreDep, principal: PrincipalDep) -> WorkerInfo:
    """Have a worker take no run after the one that it works on, until `resume`."""
    return store.workers.drain(worker_id, by=principal.name)


@router.post("/workers/{worker_id}/resume")
@allow("admin")
def resume_worker(worker_id: WorkerId, store: StoreDep) -> WorkerInfo:
    """Have a drained worker take runs again."""
    return store.workers.drain(worker_id, by=None)


@router.get("/views")
@allow("read")
def list_views(
    store: StoreDep, page: Annotated[Page | None, Query(description="Of this page alone")] = None
) -> list[SavedView]:
    """Saved views, the newest first, at most 200."""
    return store.views.all(page=page)


@router.post("/views", status_code=201)
@allow("submit")
def save_view(
    body: ViewSave, response: Response, store: StoreDep, principal: PrincipalDep
) -> SavedView:
    """Keep a page of the dashboard under a short address, `/v/ID`."""
    made = store.views.add(body, owner=principal.name)
    response.headers["Location"] = f"/api/v1/views/{made.id}"
    return made


@router.get("/views/{view_id}")
@allow("read")
def get_view(view_id: ViewId, store: StoreDep) -> SavedView:
    """One saved view."""
    return store.views.get(view_id)


@router.delete("/views/{view_id}", status_code=204)
@allow("submit")
def delete_view(view_id: ViewId, store: StoreDep, principal: PrincipalDep) -> None:
    """Forget a saved view of one's own; an admin forgets anybody's."""
    view = store.views.get(view_id)
    if not principal.owns(view.owner):
        raise HttpError(
            403,
            "NOT_YOURS",
            f"view {view_id} belongs to {view.owner}, and you are {principal.name}.",
        )
    store.views.delete(view_id)


@router.get("/tokens")
@allow("read")
def list_tokens(store: StoreDep, principal: PrincipalDep) -> list[TokenInfo]:
    """One's own tokens, without their secrets; an admin sees everybody's."""
    held = [_token_info(token) for token in store.tokens.all()]
    return held if principal.may("admin") else [t for t in held if t.owner == principal.name]


@router.post("/tokens", status_code=201)
@allow("read")
def make_token(
    body: TokenMake, request: Request, response: Response, store: StoreDep, principal: PrincipalDep
) -> TokenMade:
    """Make a token for oneself; an admin makes anybody's. Its text is in this answer alone.

    It gives no more than the token that makes it: neither a larger scope nor a longer time.
    """
    if not principal.may("admin"):
        _require_no_more(body, store.tokens.get(principal.token_id), principal)
    note(request, owner=body.owner, scope=body.scope, days=body.days)
    token = new_token()
    token_id = token.partition(".")[0]
    store.tokens.add(
        token_id,
        name=body.owner,
        scope=body.scope,
        secret_sha256=hash_token(token),
        ttl_s=None if body.days is None else body.days * 86_400.0,
        note=body.note,
    )
    stored = store.tokens.get(token_id)
    assert stored is not None
    response.headers["Location"] = f"/api/v1/tokens/{token_id}"
    return TokenMade(**_token_info(stored).model_dump(), token=token)


def _require_no_more(body: TokenMake, own: StoredToken | None, principal: Principal) -> None:
    """Raise unless a token gives its owner what the one that asks for it gives, or less."""
    fault = ""
    if body.owner != principal.name:
        fault = f"the owner must be you, {principal.name}, got {body.owner}"
    elif not principal.may(body.scope):
        fault = f"the scope must be {principal.scope} or less, got {body.scope}"
    elif own is None:
        fault = "who logs in with an organisation has what it grants, and tokens outlive that"
    elif own.expires_at is not None:
        left = (own.expires_at - datetime.now(UTC)).total_seconds() / 86_400
        if body.days is None or body.days > left:
            days = "null" if body.days is None else f"{body.days:g}"
            fault = f"yours ends in {left:.2f} days, and days must be no more, got {days}"
    if fault:
        raise HttpError(403, "FORBIDDEN", f"{fault}.", hint="An admin makes any token.")


@router.delete("/tokens/{token_id}", status_code=204)
@allow("read")
def revoke_token(token_id: TokenId, store: StoreDep, principal: PrincipalDep) -> None:
    """Make a token of one's own worthless, and the sessions that it opened; repeatable."""
    stored = store.tokens.get(token_id)
    # Whose a token is that is not one's own is nobody else's business.
    if stored is None or not (principal.may("admin") or stored.name == principal.name):
        raise NotFoundError(f"there is no token {token_id!r} of yours.")
    store.tokens.revoke(token_id)


def _token_info(token: StoredToken) -> TokenInfo:
    state: Literal["valid", "expired", "revoked"] = "expired" if token.expired else "valid"
    return TokenInfo(
        id=token.id,
        owner=token.name,
        scope=token.scope,
        note=token.note,
        state="revoked" if token.revoked else state,
        created_at=token.created_at,
        expires_at=token.expires_at,
    )


@router.get("/audit")
@allow("admin")
def list_audit(store: StoreDep, query: Annotated[AuditLogQuery, Query()]) -> AuditPage:
    """Who did what to which object, the newest first. Kept for `CALIFT_AUDIT_DAYS`."""
    return store.audit.page(**query.model_dump())


@router.post("/retention/preview")
@allow("admin")
@changes_nothing
def preview_prune(body: PruneRequest, store: StoreDep) -> Pruned:
    """What `POST /retention` would remove now, and how much room that gives."""
    return store.retention.preview(body.kinds, age_s=body.older_than_days * 86_400.0)


@router.post("/retention")
@allow("admin")
def prune(body: PruneRequest, request: Request, services: ServicesDep) -> Pruned:
    """Remove checkpoints, predictions or archived runs that are older; this cannot be undone."""
    done, digests = services.store.retention.prune(
        body.kinds, age_s=body.older_than_days * 86_400.0
    )
    note(request, **done.model_dump(mode="json", include={"kinds", "older_than_days", "files"}))
    services.artifacts.collect(
        services.store.files, grace_s=services.settings.artifact_grace_s, digests=digests
    )
    return done
