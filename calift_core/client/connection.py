"""One connection to the service: requests, streams, downloads, and what its errors say."""

import hashlib
import json
import os
import ssl
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Self, TypeVar
from urllib.parse import quote

import httpx2 as httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from calift_core import __version__
from calift_core.client.where import find_token, find_url, is_loopback, scheme_of
from calift_core.errors import ServiceError, ServiceUnavailableError, SpecError, StorageError
from calift_core.files import atomic_path, storage_error
from calift_core.schema.wire.queries import Query
from calift_core.schema.wire.runs import TERMINAL_PHASES, JobSummary, RunEvent
from calift_core.schema.wire.sweeps import SweepDetail

_PREFIX = "/api/v1"
#: How long `wait` and `events` bear a service that does not answer, such as one that restarts.
PATIENCE_S = 60.0
#: The service checks and measures an upload before it answers.
_UPLOAD_WAIT_S = 600.0

_T = TypeVar("_T")
#: What `wait` waits for.
_Ends = TypeVar("_Ends", bound=JobSummary | SweepDetail)


#: Where another set of authorities may be named.
_NAMED = ("SSL_CERT_FILE", "SSL_CERT_DIR")


@lru_cache(maxsize=4)
def _certificates(trust_env: bool, *_named: str | None) -> ssl.SSLContext:
    """The authorities that all connections trust: to read them takes 12 ms, each time."""
    return httpx.create_ssl_context(trust_env=trust_env)


class Connection:
    """A connection to a calift service. Close it, or use it as a context manager.

    Args:
        base_url: where the service is; None: `CALIFT_API_URL`, else the stack that runs here.
        token: None: `CALIFT_TOKEN`, else the embedded one's token file.
        timeout_s: for one answer to begin; downloads and event streams may take longer.

    Raises:
        SpecError: the address or the token cannot be used.

    Every method raises ServiceUnavailableError when nothing answers, or not in time, and
    ServiceError, with the server's sentence and hint, when the answer is an error.
    """

    def __init__(
        self,
        base_url: str | None = None,
        token: str | None = None,
        timeout_s: float = 60.0,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        url, self._why_url = (base_url, "") if base_url else find_url()
        self.base_url = url.rstrip("/").removesuffix(_PREFIX)
        if scheme_of(self.base_url) not in ("http", "https"):
            raise SpecError(
                f"a service's address must begin with http:// or https://, got {url!r}.",
                hint="Such as CALIFT_API_URL=http://127.0.0.1:8000",
            )
        token, self._token_from = (token, "") if token else find_token()
        headers = {"User-Agent": f"calift/{__version__}", "Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        ours = is_loopback(self.base_url)  # no proxy between us and ourselves
        try:
            self._http = httpx.Client(
                base_url=self.base_url + _PREFIX,
                headers=headers,
                timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
                follow_redirects=False,  # the token goes to the named host alone
                trust_env=not ours,
                verify=_certificates(not ours, *map(os.environ.get, _NAMED)),
                transport=transport,
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            what = "the token" if isinstance(error, UnicodeEncodeError) else repr(url)
            raise SpecError(
                f"{what} cannot be used: {error}", hint=self._asked_there().strip()
            ) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: BaseModel | Mapping[str, Any] | bytes | IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        wait_s: float | None = None,
    ) -> httpx.Response:
        """Send a request and return a good answer; `wait_s` is for its beginning."""
        content: bytes | IO[bytes] | None = None
        sent = dict(headers or {})
        if isinstance(body, BaseModel | Mapping):
            data = body.model_dump(mode="json") if isinstance(body, BaseModel) else body
            content = json.dumps(data).encode()
            sent["Content-Type"] = "application/json"
        elif body is not None:
            content = body
            sent.setdefault("Content-Type", "application/octet-stream")
        try:
            response = self._http.request(
                method,
                path,
                params=drop_none(params),
                content=content,
                headers=sent,
                timeout=httpx.USE_CLIENT_DEFAULT
                if wait_s is None
                else httpx.Timeout(wait_s, connect=10.0),
            )
        except httpx.TransportError as error:
            raise self._unavailable(error) from error
        if response.status_code >= 300:
            raise self._error(response)
        return response

    def _unavailable(self, error: httpx.TransportError) -> ServiceUnavailableError:
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
            # Somebody took the connection: to start another would not help.
            kind = "read" if isinstance(error, httpx.ReadTimeout) else "write"
            waited_s = error.request.extensions["timeout"][kind]
            return ServiceUnavailableError(
                f"the service at {self.base_url} has not answered within {waited_s:g} s; "
                "it may be busy.",
                hint=f"{self._asked_there()}Try again in a while. If it stays so, look into the "
                "service's log; CALIFT_API_URL names another service.",
            )
        return ServiceUnavailableError(
            f"no calift service answers at {self.base_url} ({error or type(error).__name__}).",
            hint=f"{self._asked_there()}Start one with `calift up`, or name another in "
            "CALIFT_API_URL.",
        )

    def _error(self, response: httpx.Response) -> ServiceError:
        try:
            problem = response.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict) or "detail" not in problem:
            return ServiceError(
                f"{self.base_url} answered {response.status_code}, and not as calift does.",
                status=response.status_code,
                hint=f"{self._asked_there()}Is that the address of a calift service? "
                "CALIFT_API_URL names another.",
            )
        message = str(problem["detail"])
        hint = str(problem.get("hint") or "")
        if response.status_code == 401:
            message = f"{self.base_url} says: {message}"
            sent = f"The token came {self._token_from}. " if self._token_from else ""
            hint = f"{sent}{self._asked_there()}{hint}"
        errors = [e for e in problem.get("errors") or [] if isinstance(e, dict)]
        if len(errors) > 1:
            lines = [
                f"  {e.get('pointer') or e.get('parameter', '')}: {e.get('message', '')}"
                for e in errors
            ]
            message += "\n" + "\n".join(lines) + "\n"
        return ServiceError(message, status=response.status_code, problem=problem, hint=hint)

    def _asked_there(self) -> str:
        return f"This address was asked because {self._why_url}. " if self._why_url else ""

    def _read(self, response: httpx.Response, into: type[_T]) -> _T:
        try:
            return TypeAdapter(into).validate_json(response.content)
        except ValidationError as error:
            raise ServiceError(
                f"{self.base_url} gave an answer that this version ({__version__}) cannot read: "
                f"{error.error_count()} faults in {response.request.url.path}.",
                status=response.status_code,
                hint="Use the same version of calift on both sides.",
            ) from error

    def _get(self, path: str, into: type[_T], **params: Any) -> _T:
        return self._read(self._send("GET", path, params=params), into)

    def _ask(self, path: str, into: type[_T], query: Query, *, wait_s: float | None = None) -> _T:
        """Ask with what differs from the defaults, which are the same on both sides."""
        params = query.model_dump(mode="json", exclude_defaults=True)
        return self._read(self._send("GET", path, params=params, wait_s=wait_s), into)

    def _post(
        self, path: str, into: type[_T], body: BaseModel | Mapping[str, Any] | None = None
    ) -> _T:
        return self._read(self._send("POST", path, body=body), into)

    def _post_once(
        self, path: str, into: type[_T], body: BaseModel | Mapping[str, Any], key: str | None
    ) -> _T:
        """Post with a key, so that an answer lost on the way can be asked for again."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        try:
            response = self._send("POST", path, body=body, headers=headers)
        except ServiceUnavailableError as error:
            if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                raise
            response = self._send("POST", path, body=body, headers=headers)
        return self._read(response, into)

    def _upload(
        self,
        path: str,
        body: IO[bytes],
        kind: str,
        params: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Post a file of a media type; the service looks through it before it answers."""
        sent = {"Content-Type": kind, **(headers or {})}
        return self._send(
            "POST", path, params=params, body=body, headers=sent, wait_s=_UPLOAD_WAIT_S
        )

    @contextmanager
    def _stream(
        self, path: str, *, params: Mapping[str, Any], headers: Mapping[str, str], wait_s: float
    ) -> Iterator[httpx.Response]:
        timeout = httpx.Timeout(wait_s, connect=10.0)
        try:
            with self._http.stream(
                "GET", path, params=drop_none(params), headers=dict(headers), timeout=timeout
            ) as response:
                if response.status_code >= 300:
                    response.read()
                    raise self._error(response)
                yield response
        except httpx.TransportError as error:
            raise self._unavailable(error) from error

    def _download(
        self, path: str, target: str | os.PathLike[str], wait_s: float = 120.0, **params: Any
    ) -> Path:
        target = Path(target)
        headers = {"Accept": "*/*"}
        with self._stream(path, params=params, headers=headers, wait_s=wait_s) as response:
            expected = response.headers.get("etag", "").strip('"')
            digest = hashlib.sha256()
            with atomic_path(target) as temporary, temporary.open("wb") as file:
                for piece in response.iter_bytes():
                    digest.update(piece)
                    file.write(piece)
                if expected and digest.hexdigest() != expected:
                    raise StorageError(
                        f"the download of {path} is damaged: its SHA-256 is not the announced one.",
                        hint="Try again.",
                    )
        return target

    def _wait(
        self,
        ask: Callable[[], _Ends],
        what: str,
        poll_s: float,
        timeout_s: float | None,
        *,
        ends: Collection[str] = TERMINAL_PHASES,
    ) -> _Ends:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        answered = time.monotonic()
        while True:
            try:
                found = ask()
                answered = time.monotonic()
                if found.phase in ends:
                    return found
            except ServiceUnavailableError:
                if time.monotonic() - answered > PATIENCE_S:
                    raise
            if deadline is not None and time.monotonic() + poll_s > deadline:
                raise TimeoutError(f"{what} had not ended after {timeout_s:g} s")
            time.sleep(poll_s)

    def _events(self, path: str, after: int) -> Iterator[RunEvent]:
        last, answered = after, time.monotonic()
        while True:
            try:
                with self._stream(
                    path,
                    params={},
                    headers={"Accept": "text/event-stream", "Last-Event-ID": str(last)},
                    wait_s=PATIENCE_S,
                ) as response:
                    for kind, data in _messages(response.iter_lines()):
                        answered = time.monotonic()
                        if kind == "end":
                            return
                        event = RunEvent.model_validate_json(data)
                        last = event.id
                        yield event
            except ServiceUnavailableError:
                if time.monotonic() - answered > PATIENCE_S:
                    raise
            time.sleep(0.5)


def url_path(*parts: str) -> str:
    """A path whose parts after the first are data and not syntax."""
    first, *rest = parts
    # A part of dots alone would be resolved away before it is sent.
    safe = [quote(part, safe="") if part.strip(".") else part.replace(".", "%2E") for part in rest]
    return "/".join([first, *safe])


def drop_none(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Query parameters without what is None or empty; booleans as the API writes them."""
    return {
        key: ("true" if value else "false") if isinstance(value, bool) else value
        for key, value in (params or {}).items()
        if value is not None and value != []
    }


def _messages(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Server-sent events as (event, data); comments and half messages are left out."""
    kind, data = "message", list[str]()
    for line in lines:
        if not line:
            if data:
                yield kind, "\n".join(data)
            kind, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            data.append(value)


@contextmanager
def opened_file(file: str | os.PathLike[str] | IO[bytes]) -> Iterator[IO[bytes]]:
    """A file to be sent: one that is open stays so.

    Raises:
        StorageError: it cannot be read here.
    """
    if not isinstance(file, str | os.PathLike):
        yield file
        return
    try:
        body = open(file, "rb")  # noqa: SIM115
    except OSError as error:
        raise storage_error(error, Path(file), "read") from error
    with body:
        yield body
