"""Every error as `application/problem+json` (RFC 9457), whoever raised it."""

import http
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from backend.store.errors import ConflictError, QueueFullError, fault_of
from calift_core.errors import (
    CaliftError,
    DataError,
    DiskFullError,
    LeakageError,
    ModelError,
    NotFoundError,
    SpecError,
    UnpairedError,
)
from calift_core.schema.wire.service import Problem

MEDIA_TYPE = "application/problem+json"

_log = logging.getLogger(__name__)

#: The first class that an error is an instance of names its status; others are ours to fix: 500.
STATUS: dict[type[CaliftError], int] = {
    NotFoundError: 404,
    ConflictError: 409,
    QueueFullError: 429,
    SpecError: 422,
    DataError: 422,
    ModelError: 422,
    LeakageError: 422,
    UnpairedError: 422,
    DiskFullError: 507,
}


class HttpError(CaliftError):
    """An error of the HTTP layer itself, with its status and code.

    Attributes:
        errors: places in the request that are wrong.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        hint: str = "",
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        self.errors = [dict(item) for item in errors]
        self.headers = dict(headers or {})


def unauthenticated(message: str, code: str = "UNAUTHENTICATED", *, hint: str = "") -> HttpError:
    """401 with the challenge that the standard asks for.

    Without a hint of its own it gets that of the deployment (`Settings.token_hint`).
    """
    return HttpError(401, code, message, hint=hint, headers={"WWW-Authenticate": "Bearer"})


def as_response(error: HttpError, request_id: str) -> JSONResponse:
    problem = Problem(
        title=phrase(error.status),
        status=error.status,
        detail=error.message,
        code=error.code,
        hint=error.hint,
        request_id=request_id,
        errors=error.errors,
    )
    return JSONResponse(
        problem.model_dump(mode="json"),
        status_code=error.status,
        headers=error.headers,
        media_type=MEDIA_TYPE,
    )


def internal(request_id: str) -> HttpError:
    """What people see of an unexpected error: nothing of it but where to look."""
    return HttpError(
        500,
        "INTERNAL",
        "something went wrong in the service.",
        hint=f"The service's log has the details under request {request_id}.",
    )


def of_status(status: int, headers: Mapping[str, str]) -> HttpError:
    """The error that stands for a bare status; headers that described the old body go."""
    kept = {k: v for k, v in headers.items() if not k.lower().startswith("content-")}
    if "content-range" in headers:
        kept["Content-Range"] = headers["content-range"]
    code = _CODES.get(status, http.HTTPStatus(status).name)
    return HttpError(status, code, f"{phrase(status).lower()}.", headers=kept)


def from_exception(error: Exception) -> HttpError | None:
    """Name an exception for HTTP; None when it is not one that is known."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, CaliftError):
        status = next((s for kind, s in STATUS.items() if isinstance(error, kind)), 500)
        return HttpError(status, error.code, error.message, hint=error.hint)
    if isinstance(error, SQLAlchemyError) and (fault := fault_of(error)) is not None:
        headers = {"Retry-After": "5"} if fault.passes else {}
        return HttpError(fault.status, fault.code, fault.message, hint=fault.hint, headers=headers)
    return None


def log_error(error: Exception, found: HttpError | None, request_id: str, what: str) -> None:
    """Log what is not the caller's fault; with a traceback where nobody meant it."""
    if isinstance(error, HttpError):
        if error.status >= 500:
            _log.warning("request %s: %s: %s", request_id, what, error.message)
    elif found is None or found.status >= 500:
        _log.error("request %s: %s", request_id, what, exc_info=error)


def pointer_of(location: Sequence[int | str]) -> str:
    """A JSON pointer (RFC 6901, as a URI fragment) to a place in the request body."""
    if not location:
        return "#"
    return "#/" + "/".join(str(p).replace("~", "~0").replace("/", "~1") for p in location)


def _of_validation(error: RequestValidationError) -> HttpError:
    return of_faults(error.errors())


def of_faults(faults: Sequence[Any]) -> HttpError:
    """The 422 for what pydantic says of a request; each place begins with `body`, `query` …."""
    errors = []
    for item in faults:
        where, *location = item["loc"]
        message = str(item["msg"]).removeprefix("Value error, ")
        if item["type"] == "json_invalid":
            return HttpError(
                400, "BAD_JSON", f"the body is not JSON: {item.get('ctx', {}).get('error', '')}"
            )
        if where == "body":
            errors.append({"pointer": pointer_of(location), "message": message})
        else:
            name = ".".join(str(part) for part in location)
            errors.append({"in": str(where), "parameter": name, "message": message})
    first = errors[0]
    place = first.get("pointer") or f"{first['in']} parameter {first['parameter']}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return HttpError(422, "INVALID_REQUEST", f"{place}: {first['message']}{more}", errors=errors)


#: Names that newer versions of Python spell otherwise; ours stay.
_PHRASES = {413: "Content Too Large", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}


def phrase(status: int) -> str:
    return _PHRASES.get(status) or http.HTTPStatus(status).phrase


_CODES = {
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "BODY_TOO_LARGE",
    416: "RANGE_NOT_SATISFIABLE",
}


def _of_http(request: Request, error: HTTPException) -> HttpError:
    if error.status_code in (404, 405) and getattr(request.state, "principal", None) is None:
        # Deny by default: without a token nothing is said about which paths exist.
        problem: HttpError | None = getattr(request.state, "problem", None)
        return problem or unauthenticated("this needs a token.")
    hint = ""
    code = _CODES.get(error.status_code, http.HTTPStatus(error.status_code).name)
    detail = str(error.detail)
    if error.status_code == 404:
        path = request.url.path
        detail = f"there is nothing at {path}."
        if path.endswith("/") and _methods_at(request, path.rstrip("/")):
            hint = f"{path.rstrip('/')} has no slash at its end."
    elif error.status_code == 405:
        detail = f"{request.method} is not possible at {request.url.path}."
    elif error.status_code == 400 and "parsing the body" in detail:
        code, detail = "BAD_JSON", "the body is not JSON that can be read."
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # The router names the methods of one route alone.
        headers["Allow"] = ", ".join(_methods_at(request, request.url.path))
    return HttpError(error.status_code, code, detail, hint=hint, headers=headers)


def _methods_at(request: Request, path: str) -> list[str]:
    routes, scope = request.app.router.routes, {**request.scope, "path": path}
    found = [
        method
        for method in ("DELETE", "GET", "PATCH", "POST", "PUT")
        if any(r.matches({**scope, "method": method})[0] is Match.FULL for r in routes)
    ]
    return sorted([*found, "HEAD"]) if "GET" in found else found


def install(app: FastAPI) -> None:

    def _id(request: Request) -> str:
        return str(getattr(request.state, "request_id", ""))

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return as_response(_of_http(request, error), _id(request))

    async def on_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return as_response(_of_validation(error), _id(request))

    async def on_known(request: Request, error: Exception) -> JSONResponse:
        found = from_exception(error)
        log_error(error, found, _id(request), f"{request.method} {request.url.path}")
        return as_response(found or internal(_id(request)), _id(request))

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(CaliftError, on_known)
    app.add_exception_handler(SQLAlchemyError, on_known)


def declare(document: dict[str, Any]) -> None:
    """Write the errors that every operation may answer into an OpenAPI document."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            statuses = {400, 401, 403, 429, 500, 503}
            named = "{" in path or "404" in operation["responses"]
            statuses |= {404} if named else set()
            statuses |= {422} if operation.get("parameters") else set()
            if "requestBody" in operation:
                statuses |= {413, 415, 422}
            if method in ("post", "delete") or "409" in operation["responses"]:
                statuses |= {409}
            if method in ("post", "patch"):
                statuses |= {507}
            if operation.get("security") == []:
                statuses = {400, 429, 500} | ({503} & {int(s) for s in operation["responses"]})
            operation["responses"].pop("422", None)
            for status in sorted(statuses):
                operation["responses"][str(status)] = {
                    "description": phrase(status),
                    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
    # A stable order of keys makes the snapshot's diff readable.
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    json.dumps(document, allow_nan=False)
