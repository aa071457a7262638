"""People who log in with their organisation (OpenID Connect): who they are, and what they may do.

The dashboard brings an ID token, which its visitor got from the provider, to `POST /sessions`. It
is checked against the provider's keys and opens a session, and nothing else. What a person may do
stands in the settings and is looked up at every request, so that taking a name out takes effect at
once.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import httpx2 as httpx

from calift_core.errors import CaliftError, SpecError
from calift_core.installed import install_extra

if TYPE_CHECKING:
    from joserfc.jwk import KeySet

    from backend.settings import Settings

log = logging.getLogger(__name__)

#: Signatures of public keys alone. With a shared secret, whoever knows it could make tokens.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]
#: What the ids of people begin with, in the place of a token's id.
SUBJECT_PREFIX = "oidc."
#: What the names of people without a verified address begin with; no address begins so.
_UNVERIFIED = "oidc:"
#: Unknown keys make us ask the provider again, but not more often.
_REFRESH_S = 30.0
_LEEWAY_S = 60
_TIMEOUT_S = 5.0

Scope = Literal["read", "submit", "admin"]


class IdentityError(CaliftError):
    """An ID token that does not tell who somebody is."""

    code = "IDENTITY"


@dataclass(frozen=True)
class Person:
    """Somebody whom the provider vouches for.

    Attributes:
        id: in the place of a token's id; the same for the same account.
        name: the verified e-mail address, else `oidc:` and the account's own identifier.
    """

    id: str
    name: str
    scope: Scope


class Provider:
    """The OpenID provider of the settings.

    Args:
        issuer: as its tokens name it; its description lies below this address.
        client_id: of the dashboard at the provider; tokens for others are refused.
        granted: per scope, e-mail addresses or account identifiers, `@example.org` for a domain,
            `*` for everybody.
    """

    def __init__(self, issuer: str, client_id: str, granted: dict[Scope, Sequence[str]]) -> None:
        self.issuer, self._client_id = issuer, client_id
        self._granted = {s: {g.strip().lower() for g in names} for s, names in granted.items()}
        #: Sessions of another provider or client end when these settings change.
        self.fingerprint = hashlib.sha256(f"oidc\0{issuer}\0{client_id}".encode()).hexdigest()
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._asked_at = -_REFRESH_S

    def person(self, id_token: str) -> Person:
        """Who an ID token is of.

        Raises:
            IdentityError: it is not valid, for another client, or its person may not do anything.
        """
        from joserfc import jwt
        from joserfc.errors import JoseError

        try:
            claims = self._decode(id_token)
            jwt.JWTClaimsRegistry(
                leeway=_LEEWAY_S,
                iss={"essential": True, "value": self.issuer},
                aud={"essential": True, "value": self._client_id},
                exp={"essential": True},
                sub={"essential": True},
            ).validate(claims)
        except (JoseError, ValueError, TypeError) as error:
            log.info("an ID token was refused: %s", error)
            raise IdentityError("the ID token is not valid.") from error
        for_us = claims.get("azp", self._client_id) == self._client_id
        subject = claims["sub"]
        if not for_us or not isinstance(subject, str) or not subject:
            raise IdentityError("the ID token is not valid.")
        email = claims.get("email")
        verified = claims.get("email_verified") is True and isinstance(email, str) and email
        name = str(email).lower() if verified else f"{_UNVERIFIED}{subject}"
        digest = hashlib.sha256(f"{self.issuer}\0{subject}".encode()).hexdigest()[:32]
        return self.known(f"{SUBJECT_PREFIX}{digest}", name[:120])

    def known(self, person_id: str, name: str) -> Person:
        """A person with what the settings grant now.

        Raises:
            IdentityError: they may do nothing.
        """
        if name.startswith(_UNVERIFIED):
            # An account may call itself anything: what looks like an address is not one.
            subject = name.removeprefix(_UNVERIFIED).lower()
            own = {"*"} if "@" in subject else {"*", subject}
        else:
            own = {"*", name.lower(), "@" + name.lower().rpartition("@")[2]}
        scopes: tuple[Scope, ...] = ("admin", "submit", "read")
        for scope in scopes:
            if own & self._granted.get(scope, set()):
                return Person(person_id, name, scope)
        raise IdentityError(
            f"{name} may not use this service.",
            hint="Whoever runs it grants that with CALIFT_OIDC_READERS, _SUBMITTERS or _ADMINS.",
        )

    def _decode(self, id_token: str) -> dict[str, Any]:
        from joserfc import jwt
        from joserfc.errors import JoseError

        try:
            return jwt.decode(id_token, self._key_set(), algorithms=ALGORITHMS).claims
        except (JoseError, ValueError):
            # Providers change their keys: perhaps it is signed with a new one.
            fresh = self._key_set(refresh=True)
            return jwt.decode(id_token, fresh, algorithms=ALGORITHMS).claims

    def _key_set(self, *, refresh: bool = False) -> KeySet:
        from joserfc.jwk import KeySet

        with self._lock:
            now = time.monotonic()
            if (self._keys is None or refresh) and now - self._asked_at >= _REFRESH_S:
                self._asked_at = now
                self._keys = KeySet.import_key_set(self._ask())
            if self._keys is None:
                raise IdentityError("the identity provider does not answer.")
            return self._keys

    def _ask(self) -> Any:
        try:
            with httpx.Client(timeout=_TIMEOUT_S, follow_redirects=False) as client:
                place = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
                described = client.get(place).raise_for_status().json()
                if described.get("issuer") != self.issuer:
                    raise IdentityError(
                        f"{place} describes the issuer {described.get('issuer')!r}, and "
                        f"CALIFT_OIDC_ISSUER is {self.issuer!r}."
                    )
                return client.get(described["jwks_uri"]).raise_for_status().json()
        except (httpx.HTTPError, ValueError, KeyError) as error:
            log.warning("the identity provider %s does not answer: %s", self.issuer, error)
            raise IdentityError("the identity provider does not answer.") from error


def provider(settings: Settings) -> Provider | None:
    """The provider of the settings, if there is one.

    Raises:
        SpecError: half of it is set, nobody is granted anything, or its library is missing.
    """
    if not settings.oidc_issuer:
        return None
    if not settings.oidc_client_id:
        raise SpecError("CALIFT_OIDC_ISSUER needs CALIFT_OIDC_CLIENT_ID.")
    granted: dict[Scope, Sequence[str]] = {
        "read": settings.oidc_readers,
        "submit": settings.oidc_submitters,
        "admin": settings.oidc_admins,
    }
    if not any(granted.values()):
        raise SpecError(
            "CALIFT_OIDC_ISSUER needs people: CALIFT_OIDC_READERS, _SUBMITTERS or _ADMINS.",
            hint="Addresses separated by commas, `@example.org` for a domain, `*` for everybody.",
        )
    try:
        import joserfc  # noqa: F401
    except ImportError as error:
        raise SpecError(
            "CALIFT_OIDC_ISSUER needs joserfc, not installed.", hint=install_extra("oidc")
        ) from error
    return Provider(settings.oidc_issuer, settings.oidc_client_id, granted)
