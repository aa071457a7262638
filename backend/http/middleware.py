"""What every request passes before a route sees it, as plain ASGI.

Request id, host name, token, rate, body type and size. None of it decides on the text of a path:
which scope a route needs is written at the route (`backend.routes.deps.allow`); where nothing is
written, it is admin.
A response that went out without that check having been made is replaced by an error.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence

from cachetools import LRUCache
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.http.authentication import Authenticator, Principal
from backend.http.problems import (
    MEDIA_TYPE,
    HttpError,
    as_response,
    from_exception,
    internal,
    log_error,
    of_status,
)
from backend.logs import named
from backend.settings import Settings
from backend.store.audit import Audit

#: Largest body of JSON, and largest picture that runs are asked about.
MAX_BODY_BYTES, MAX_PICTURE_BYTES = 1 << 20, 12 << 20
#: The bodies that are not JSON, each taken only by routes that `backend.routes.deps.uploads` marks.
UPLOAD_TYPE = "application/vnd.apache.parquet"
ZIP_TYPE = "application/zip"
PICTURE_TYPE = "application/octet-stream"

_log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")

_BUCKETS = 10_000

_METHODS = frozenset({"GET", "POST", "PATCH", "PUT", "DELETE"})


def takes_uploads(endpoint: object) -> str:
    """The type of body that `backend.routes.deps.uploads` has marked a route with; empty: JSON."""
    return str(getattr(endpoint, "calift_uploads", ""))


class _Buckets:
    """A token bucket per key: `rate` per second on average, `burst` at once."""

    def __init__(self, per_minute: int) -> None:
        self._rate = per_minute / 60
        self._burst = max(10.0, per_minute / 4)
        self._levels: LRUCache[str, tuple[float, float]] = LRUCache(_BUCKETS)

    def wait_s(self, key: str) -> float:
        """Take one; 0 when there was one, else how long until there is."""
        now = time.monotonic()
        level, at = self._levels.pop(key, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._rate)
        taken = level >= 1
        self._levels[key] = (level - 1 if taken else level, now)
        return 0.0 if taken else (1 - level) / self._rate


class _CutOffError(OSError):
    """Tells a response that goes on after its headers that nobody listens: its request was HEAD.

    An OSError, which is what a server raises when the client has gone.
    """


def _operation(scope: Scope) -> str:
    return getattr(scope.get("route"), "name", "")


class RequestGuard:
    """The middleware; one check after the other, before any route."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        authenticator: Authenticator,
        audit: Audit,
        observe: Callable[..., None],
        probes: Sequence[BaseRoute] = (),
    ) -> None:
        """Guard an application.

        Args:
            observe: is told of every answer.
            probes: routes that nobody needs a token for and no rate holds for.
        """
        self._app, self._probes = app, probes
        self._audit, self._observe = audit, observe
        self._settings = settings
        self._authenticator = authenticator
        self._buckets = _Buckets(settings.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = Headers(scope=scope).get("x-request-id", "")
            request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
            with named(request_id=request_id):
                await self._handle(scope, receive, send, request_id)
            return
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        await send({"type": "websocket.close", "code": 1008})

    async def _handle(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        # A HEAD is answered as the GET of the same address and cut off before its body.
        head = scope["method"] == "HEAD"
        if head:
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, principal=None, authorised=False, upload=None)
        started = finished = replaced = False
        status, place = 500, ""
        began = time.monotonic()

        async def emit(message: Message) -> None:
            nonlocal finished
            if finished:
                raise _CutOffError
            try:
                if not head:
                    await send(message)
                elif message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    finished = True
            except RuntimeError:
                raise  # the server's word for an answer of ours that breaks the protocol
            except Exception as error:
                # The caller broke it, or went away: nothing of ours is at fault.
                _log.debug("request %s: the answer cannot be sent: %s", request_id, error)
                finished = True
                raise

        async def send_out(message: Message) -> None:
            nonlocal started, replaced, status, place
            if replaced:
                return
            if message["type"] == "http.response.start":
                if message["status"] < 400 and not state["authorised"]:
                    raise RuntimeError("a route answered without its scope having been checked")
                out = MutableHeaders(scope=message)
                if message["status"] >= 400 and out.get("content-type") != MEDIA_TYPE:
                    # An error that a library answered by itself, such as a wrong Range.
                    problem = as_response(of_status(message["status"], out), request_id)
                    await problem(scope, receive, send_out)
                    replaced = True
                    return
                started = True
                status, place = message["status"], out.get("location") or ""
                self._observe(
                    method=scope["method"] if scope["method"] in _METHODS else "other",
                    operation=_operation(scope),
                    status=status,
                    seconds=time.monotonic() - began,
                )
                out["X-Request-ID"] = request_id
                out.setdefault("X-Content-Type-Options", "nosniff")
                out.setdefault("Cache-Control", "no-store")
            await emit(message)

        try:
            await self._check(scope, headers, state)
            await self._app(scope, self._capped(scope, receive), send_out)
            if status < 400:
                await self._write_down(scope, place)
        except Exception as error:
            if finished:
                return  # it is about a body that nobody asked for, or nobody takes
            found = from_exception(error)
            log_error(error, found, request_id, f"{scope['method']} {scope['path']}")
            if started:
                raise
            response = as_response(found or internal(request_id), request_id)
            try:
                await response(scope, receive, send_out)
            except Exception:
                if not finished:
                    raise

    async def _write_down(self, scope: Scope, place: str) -> None:
        """Add what somebody changed to the audit log, after the answer has gone out.

        Args:
            place: where what was made can be found, from the answer.
        """
        state, endpoint = scope["state"], scope.get("endpoint")
        principal: Principal | None = state["principal"]
        changes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if not changes or principal is None or getattr(endpoint, "calift_changes_nothing", False):
            return
        parameters = scope.get("path_params", {})
        target = place.rpartition("/")[2] or next(map(str, parameters.values()), "")
        try:
            await run_in_threadpool(
                self._audit.add,
                actor=principal.name,
                token_id=principal.token_id,
                action=_operation(scope),
                target=target,
                request_id=state["request_id"],
                detail=state.get("audit"),
            )
        except SQLAlchemyError as error:
            # The change stands; it is in this log at least.
            _log.error(
                "request %s: %s of %r by %s is missing in the audit log: %s",
                state["request_id"],
                _operation(scope),
                target,
                principal.name,
                type(error).__name__,
            )

    async def _check(self, scope: Scope, headers: Headers, state: dict[str, object]) -> None:
        self._check_host(headers)
        if b"%00" in scope.get("query_string", b"") or "\x00" in scope["path"]:
            raise HttpError(400, "BAD_REQUEST", "the address holds a NUL character.")
        if any(route.matches(scope)[0] is Match.FULL for route in self._probes):
            return
        client = scope.get("client")
        key = f"address {client[0]}" if client else "address"
        problem: HttpError | None = None
        try:
            principal = await self._authenticator.identify(headers.get("authorization"))
            state["principal"] = principal
            key = f"token {principal.token_id}"
        except HttpError as error:
            error.hint = error.hint or self._settings.token_hint
            state["problem"] = problem = error
        wait_s = self._buckets.wait_s(key)
        if wait_s:
            raise HttpError(
                429,
                "RATE_LIMITED",
                f"at most {self._settings.requests_per_minute} requests a minute.",
                hint=f"Wait {wait_s:.1f} s.",
                headers={"Retry-After": str(max(1, round(wait_s)))},
            )
        length = headers.get("content-length", "")
        has_body = "transfer-encoding" in headers or length not in ("", "0")
        if has_body:
            if problem is not None:
                raise problem  # no open route takes a body; do not read it
            state["upload"] = self._check_body(headers, length)

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "").lower()
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        allowed = self._settings.hosts
        if "*" not in allowed and name not in allowed:
            raise HttpError(
                400,
                "HOST_NOT_ALLOWED",
                f"the host name {name!r} is not served here.",
                hint=f"Use one of {', '.join(allowed)}, or add it to CALIFT_ALLOWED_HOSTS.",
            )

    def _check_body(self, headers: Headers, length: str) -> str:
        """The upload's type, empty for JSON; which routes take one is only known further in."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        upload = kind if kind in (UPLOAD_TYPE, ZIP_TYPE, PICTURE_TYPE) else ""
        if length and (not length.isdecimal() or int(length) > self._limit(upload)):
            raise self._too_large(upload)
        if (
            not upload
            and kind != "application/json"
            and not (kind.startswith("application/") and kind.endswith("+json"))
        ):
            raise HttpError(
                415,
                "UNSUPPORTED_MEDIA_TYPE",
                f"the body must be application/json, got {kind or 'no Content-Type'!r}.",
            )
        return upload

    def _limit(self, upload: str) -> int:
        if not upload:
            return MAX_BODY_BYTES
        return MAX_PICTURE_BYTES if upload == PICTURE_TYPE else self._settings.max_upload_bytes

    def _too_large(self, upload: str) -> HttpError:
        return HttpError(
            413, "BODY_TOO_LARGE", f"a request body has at most {self._limit(upload)} bytes."
        )

    def _capped(self, scope: Scope, receive: Receive) -> Receive:
        taken = 0

        async def receive_capped() -> Message:
            nonlocal taken
            upload = scope["state"]["upload"]
            # Starlette's own type: FastAPI turns any other into "bad JSON" while it reads.
            wanted = takes_uploads(scope.get("endpoint"))
            if upload and upload != wanted:
                raise HTTPException(
                    415, f"the body must be {wanted or 'application/json'}, got {upload!r}."
                )
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > self._limit(upload):
                    raise HTTPException(413, self._too_large(upload).message)
            return message

        return receive_capped
