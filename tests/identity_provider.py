"""A small OpenID provider on loopback: real keys, real codes, nobody to ask for a password."""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode

import uvicorn
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.conftest import free_port, until


@dataclass
class IdentityProvider:
    """Who logs in next, and what is said of them."""

    issuer: str
    client_id: str = "calift-dashboard"
    client_secret: str = "a-secret-of-this-test"
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, auto_kid=True))
    claims: dict[str, Any] = field(
        default_factory=lambda: {
            "sub": "1234",
            "email": "Ada@Example.org",
            "email_verified": True,
        }
    )
    asked_for_keys: int = 0
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def id_token(self, *, key: RSAKey | None = None, header: Any = None, **changes: Any) -> str:
        """A signed token; a claim that is changed to None is left out."""
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": self.client_id, "iat": now, "exp": now + 300}
        claims |= self.claims | changes
        used = key or self.key
        return jwt.encode(
            header or {"alg": "RS256", "kid": used.kid},
            {k: v for k, v in claims.items() if v is not None},
            used,
        )

    def app(self) -> Starlette:
        """The provider."""

        async def describe(_: Request) -> Response:
            at = self.issuer
            return JSONResponse(
                {
                    "issuer": at,
                    "authorization_endpoint": f"{at}/authorize",
                    "token_endpoint": f"{at}/token",
                    "jwks_uri": f"{at}/keys",
                    "response_types_supported": ["code"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                }
            )

        async def keys(_: Request) -> Response:
            self.asked_for_keys += 1
            return JSONResponse({"keys": [self.key.as_dict(private=False)]})

        async def authorize(request: Request) -> Response:
            requested = dict(request.query_params)
            code = secrets.token_urlsafe()
            self.codes[code] = requested
            back = urlencode({"code": code, "state": requested["state"]})
            return RedirectResponse(f"{requested['redirect_uri']}?{back}", 302)

        async def token(request: Request) -> Response:
            given = {k: v[0] for k, v in parse_qs((await request.body()).decode()).items()}
            basic = base64.b64encode(f"{self.client_id}:{self.client_secret}".encode()).decode()
            requested = self.codes.pop(given["code"])
            proof = hashlib.sha256(given["code_verifier"].encode()).digest()
            challenge = base64.urlsafe_b64encode(proof).decode().rstrip("=")
            if (
                request.headers.get("authorization") != f"Basic {basic}"
                or given["redirect_uri"] != requested["redirect_uri"]
                or challenge != requested["code_challenge"]
            ):
                return JSONResponse({"error": "invalid_grant"}, 400)
            return JSONResponse(
                {
                    "access_token": "unused",
                    "token_type": "Bearer",
                    "expires_in": 300,
                    "id_token": self.id_token(nonce=requested.get("nonce")),
                }
            )

        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", describe),
                Route("/keys", keys),
                Route("/authorize", authorize),
                Route("/token", token, methods=["POST"]),
            ]
        )


@contextmanager
def identity_provider() -> Iterator[IdentityProvider]:
    """A provider that is up."""
    port = free_port()
    made = IdentityProvider(f"http://127.0.0.1:{port}")
    server = uvicorn.Server(
        uvicorn.Config(made.app(), host="127.0.0.1", port=port, log_config=None, ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started, what="the identity provider")
        yield made
    finally:
        server.should_exit = True
        thread.join(20)
