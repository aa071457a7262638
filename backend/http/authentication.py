"""Who asks, and what they may do: tokens, sessions, and people an OpenID provider vouches for."""

import hashlib
import hmac
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from fastapi.concurrency import run_in_threadpool

from backend.http.oidc import IdentityError, Provider
from backend.http.problems import HttpError, unauthenticated
from backend.store.sessions import StoredSession
from backend.store.stores import Stores
from backend.store.tokens import ADMIN_NAME

TokenScope = Literal["read", "submit", "admin"]

#: What the ids of sessions and of links that become one begin with; tokens begin otherwise.
SESSION_PREFIX, LINK_PREFIX = "clfs", "clfl"


def hash_token(token: str) -> str:
    """What is stored of a token. The secret is random: a plain hash of it cannot be searched."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True)
class Principal:
    """Who asks, and up to which scope. Runs belong to the `name`.

    Attributes:
        token_id: of the token, also where a session made with it asks.
        session: the log-in, or the link that becomes one, that asks in the token's place.
        only_logs_in: whether it is good for opening a session and for nothing else.
    """

    token_id: str
    scope: TokenScope
    name: str
    token_sha256: str = field(default="", repr=False)
    session: StoredSession | None = field(default=None, repr=False)
    only_logs_in: bool = False

    def may(self, scope: TokenScope) -> bool:
        """Whether the scope is covered: admin covers submit, submit covers read."""
        ranks = get_args(TokenScope)
        return ranks.index(self.scope) >= ranks.index(scope)

    def owns(self, submitted_by: str | None) -> bool:
        """Whether a run of this owner may be changed: an admin changes anybody's."""
        return self.scope == "admin" or (self.scope == "submit" and self.name == submitted_by)


class Authenticator:
    """Tells who a bearer token belongs to."""

    def __init__(self, admin_token: str, store: Stores, provider: Provider | None = None) -> None:
        self._provider = provider
        self._admin_id = admin_token.partition(".")[0]
        self._admin_hash = hash_token(admin_token)
        self._store = store

    async def identify(self, authorization: str | None) -> Principal:
        """Return the principal.

        Raises:
            HttpError: 401, saying what is wrong with the token but not how close it came.
        """
        if not authorization:
            raise unauthenticated("this needs a token.")
        kind, _, token = authorization.partition(" ")
        token = token.strip()
        if kind.lower() != "bearer" or not token:
            raise unauthenticated("the Authorization header must be `Bearer TOKEN`.")
        if self._provider is not None and token.startswith("ey") and token.count(".") == 2:
            return await run_in_threadpool(self._of_id_token, self._provider, token)
        given = hash_token(token)
        if hmac.compare_digest(given, self._admin_hash):
            return Principal(self._admin_id, "admin", ADMIN_NAME, given)
        token_id = token.partition(".")[0]
        if not (token_id.isascii() and token_id.isprintable() and len(token_id) <= 64):
            token_id = ""
        if token_id.partition("_")[0] in (SESSION_PREFIX, LINK_PREFIX):
            return await run_in_threadpool(self._of_session, token_id, given)
        return await run_in_threadpool(self._of_token, token_id, given)

    def _of_token(self, token_id: str, given: str) -> Principal:
        known = self._store.tokens.get(token_id)
        # The comparison is made in any case, so that time does not tell which ids exist.
        right = hmac.compare_digest(given, known.secret_sha256 if known else "0" * 64)
        if known is None or not right or known.revoked:
            raise unauthenticated("the token is not valid.", "TOKEN_INVALID")
        if known.expired:
            raise unauthenticated("the token has expired.", "TOKEN_EXPIRED")
        assert known.scope in get_args(TokenScope)
        # Tokens from before names were checked may lack one, or have taken the administrator's.
        own = known.name.strip() and (known.name != ADMIN_NAME or known.scope == "admin")
        name = known.name if own else known.id
        return Principal(known.id, known.scope, name, given)

    def _of_session(self, session_id: str, given: str) -> Principal:
        """A session can do what its token can, for as long as the token can."""
        known = self._store.sessions.get(session_id)
        right = hmac.compare_digest(given, known.secret_sha256 if known else "0" * 64)
        if known is None or not right or not known.valid:
            raise _session_ended(session_id)
        is_link = known.kind == "link"
        if hmac.compare_digest(known.token_sha256, self._admin_hash):
            return Principal(self._admin_id, "admin", ADMIN_NAME, self._admin_hash, known, is_link)
        try:
            if known.subject is None:
                found = self._of_token(known.token_id, known.token_sha256)
            elif self._provider and known.token_sha256 == self._provider.fingerprint:
                found = _of_person(self._provider, known.token_id, known.subject)
            else:
                raise _session_ended(session_id)
        except (HttpError, IdentityError) as error:
            raise _session_ended(session_id) from error
        return replace(found, session=known, only_logs_in=is_link)

    def _of_id_token(self, provider: Provider, token: str) -> Principal:
        try:
            person = provider.person(token)
            return replace(_of_person(provider, person.id, person.name), only_logs_in=True)
        except IdentityError as error:
            raise unauthenticated(error.message, error.code, hint=error.hint) from error

    async def holds(self, principal: Principal) -> bool:
        """Whether what a request came with, token or session, is still good."""
        session = principal.session
        try:
            if session is not None:
                await run_in_threadpool(self._of_session, session.id, session.secret_sha256)
            elif not hmac.compare_digest(principal.token_sha256, self._admin_hash):
                await run_in_threadpool(self._of_token, principal.token_id, principal.token_sha256)
        except HttpError:
            return False
        return True


def _of_person(provider: Provider, person_id: str, name: str) -> Principal:
    person = provider.known(person_id, name)
    return Principal(person.id, person.scope, person.name, provider.fingerprint)


def _session_ended(session_id: str) -> HttpError:
    if session_id.startswith(LINK_PREFIX):
        message = "this link was used before, or is too old."
        return unauthenticated(message, "LINK_USED", hint="`calift link` prints a new one.")
    return unauthenticated(
        "the session has ended.", "SESSION_ENDED", hint="Log in to the dashboard again."
    )
