"""Log-ins of the dashboard: a token, or a link that works once, becomes a session that ends."""

from typing import Literal

from fastapi import APIRouter, Response

from backend.http.authentication import LINK_PREFIX, SESSION_PREFIX, Principal, hash_token
from backend.http.oidc import SUBJECT_PREFIX
from backend.http.problems import HttpError, unauthenticated
from backend.routes.deps import PrincipalDep, ServicesDep, StoreDep, allow, logs_in
from backend.settings import new_token
from backend.store.stores import Stores
from calift_core.schema.wire.service import Opened, Visitor

router = APIRouter(prefix="/sessions", tags=["sessions"])
#: How long a link that logs in may wait to be opened.
_LINK_TTL_S = 900.0


@router.post("", status_code=201)
@allow("read")
@logs_in
def open_session(services: ServicesDep, principal: PrincipalDep) -> Opened:
    """Log in: a session that can do what the token can. A link is used up by this.

    With an OpenID provider in the settings, its ID tokens open sessions here too.
    """
    link = principal.session
    if link is not None and not principal.only_logs_in:
        raise _only_of_tokens()
    opened = _open(
        services.store,
        principal,
        "session",
        ttl_s=services.settings.session_ttl_s,
        link_id=link.id if link else None,
    )
    if opened is None:
        raise unauthenticated("this link was used before, or is too old.", "LINK_USED")
    return opened


@router.post("/links", status_code=201)
@allow("read")
def make_link(services: ServicesDep, principal: PrincipalDep) -> Opened:
    """A link that logs in once: the dashboard's address and `/enter?code=` before it."""
    if principal.session is not None:
        raise _only_of_tokens()
    opened = _open(services.store, principal, "link", ttl_s=_LINK_TTL_S)
    assert opened is not None
    return opened


@router.get("/current")
@allow("read")
def get_visitor(principal: PrincipalDep) -> Visitor:
    """Who asks, and what they may do."""
    session = principal.session
    return Visitor(
        name=principal.name,
        scope=principal.scope,
        expires_at=session.expires_at if session else None,
    )


@router.delete("/current", status_code=204)
@allow("read")
def end_session(store: StoreDep, principal: PrincipalDep) -> Response:
    """Log out."""
    if principal.session is None:
        raise HttpError(
            409,
            "NO_SESSION",
            "this is a token and no session.",
            hint="`python -m backend token revoke ID` makes a token worthless.",
        )
    store.sessions.end(principal.session.id)
    return Response(status_code=204)


def _only_of_tokens() -> HttpError:
    return HttpError(
        403, "FORBIDDEN", "a session opens no other one.", hint="Use the token it was opened with."
    )


def _open(
    store: Stores,
    principal: Principal,
    kind: Literal["session", "link"],
    *,
    ttl_s: float,
    link_id: str | None = None,
) -> Opened | None:
    token = new_token(SESSION_PREFIX if kind == "session" else LINK_PREFIX)
    stored = store.sessions.add(
        token.partition(".")[0],
        kind=kind,
        secret_sha256=hash_token(token),
        token_id=principal.token_id,
        token_sha256=principal.token_sha256,
        ttl_s=ttl_s,
        link_id=link_id,
        subject=principal.name if principal.token_id.startswith(SUBJECT_PREFIX) else None,
    )
    return None if stored is None else Opened(token=token, expires_at=stored.expires_at)
