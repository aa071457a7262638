"""What every request to the dashboard passes first: host, origin, session.

::

    browser ──> AuthMiddleware ──> login.routes    what one brings becomes a session cookie
                  └──────────────> Streamlit       only with it; pages ask the API with it

The dashboard has no token of its own: what a page shows and does is what the API gives to the
session of its visitor. The cookie holds that session, which the API ends at log-out, with its
token, or after its time; never the token.
"""

import base64
import hashlib
import html
import posixpath
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import quote, unquote, urlencode, urlsplit

from cachetools import LRUCache, TTLCache
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from calift_core.client import Client
from calift_core.errors import CaliftError
from frontend.html_page import html_page

T = TypeVar("T")
#: What is served to everybody: the log-in, Streamlit's own scripts, fonts and settings.
_OPEN = (
    "/login",
    "/enter",
    "/logout",
    "/oidc/start",
    "/oidc/callback",
    "/favicon.png",
    "/_stcore/health",
    "/_stcore/host-config",
)
_OPEN_FOLDER = "/static/"
#: A session that the API vouched for is not asked about again for so long.
_TRUST_S = 5.0
#: How long an image may take; longer than the API lets one wait for its turn.
_PICTURE_S = 30.0
#: How often a path may be percent-encoded over.
_MAX_ENCODINGS = 5
_KNOWN = 1000
#: Visitors whose connections to the API are kept for the next images.
_CLIENTS = 32

_POLICY = {
    "default-src": "'self'",
    "script-src": "'self'",
    # Streamlit styles its elements as it draws them.
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self' data: blob:",
    "worker-src": "'self' blob:",
    "object-src": "'none'",
    "frame-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}


def policy(page: str = "") -> str:
    """The content security policy of a page: no script but its own files and its inline ones.

    Args:
        page: HTML that is served as it stands, whose inline scripts are allowed by their hash.
    """
    found = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in found]
    allowed = dict(_POLICY)
    allowed["script-src"] += "".join(f" 'sha256-{digest}'" for digest in hashes)
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def cookie_name(host: str) -> str:
    """The session's cookie at a `Host`. Cookies do not know ports, so its name does."""
    port = urlsplit(f"//{host}").netloc.rpartition(":")[2]
    return f"calift_session_{port}" if port.isdecimal() else "calift_session"


def safe_path(given: str | None) -> str:
    """A place on this dashboard to go on to, `/` for anything that could lead elsewhere.

    Neither is the log-in itself such a place, however its path is spelt.
    """
    path = re.split(r"[?#]", given or "", maxsplit=1)[0]
    if not given or not given.isprintable() or not path.startswith("/"):
        return "/"
    for _ in range(_MAX_ENCODINGS):
        if "\\" in path or "//" in path or not path.isprintable():
            return "/"
        decoded = unquote(path)
        if decoded == path:
            return "/" if posixpath.normpath(path) in _OPEN else given
        path = decoded
    return "/"


class Sessions:
    """Asks the API about sessions. Holds no token."""

    def __init__(self, api_url: str | None = None) -> None:
        self._api_url = api_url
        self._known: TTLCache[str, bool] = TTLCache(_KNOWN, _TRUST_S)
        self._clients: LRUCache[str, Client] = LRUCache(_CLIENTS)
        self._lock = threading.Lock()

    async def _ask(self, credential: str, call: Callable[[Client], T]) -> T:

        def ask() -> T:
            with Client(self._api_url, credential, timeout_s=10.0) as client:
                return call(client)

        return await run_in_threadpool(ask)

    async def holds(self, token: str) -> bool | None:
        """Whether a session is valid; None when the API does not say."""
        key = hashlib.sha256(token.encode()).hexdigest()
        if key in self._known:
            return True
        try:
            await self._ask(token, Client.visitor)
        except CaliftError as error:
            return False if getattr(error, "status", 0) in (401, 403) else None
        self._known[key] = True
        return True

    async def open(self, credential: str) -> str:
        """A session with a token or a link's code.

        Raises:
            ServiceError: the API refuses it, or does not answer.
        """
        return (await self._ask(credential, Client.open_session)).token

    async def place_of(self, token: str, view_id: str) -> str:
        """The address of a saved view in the dashboard.

        Raises:
            ServiceError: there is no such view, or the API does not answer.
        """
        view = await self._ask(token, lambda client: client.view(view_id))
        path = "" if view.page == "overview" else view.page
        return f"/{path}?{view.query}" if view.query else f"/{path}"

    async def picture(
        self, token: str, owner: str, sample: str, size: int, *, dataset: str | None
    ) -> bytes:
        """An image of an evaluation's samples, or of a run's training part or a far set.

        Args:
            owner: the evaluation, or the run where `dataset` says which of its sets.

        Raises:
            ServiceError: there is none, or the API does not answer.
        """

        def ask() -> bytes:
            with self._lock:
                # A page asks for many at once, and a client is dear to make. One that makes room
                # loses its connections when the last answer has been read.
                client = self._clients.get(token)
                if client is None:
                    client = Client(self._api_url, token, timeout_s=_PICTURE_S)
                    self._clients[token] = client
            if dataset is None:
                return client.thumbnail(owner, sample, size=size)
            return client.run_thumbnail(owner, sample, dataset=dataset, size=size)

        return await run_in_threadpool(ask)

    async def end(self, token: str) -> None:
        """Log out, as far as the API can be reached."""
        self._known.pop(hashlib.sha256(token.encode()).hexdigest(), None)
        await self._ask(token, Client.end_session)


class AuthMiddleware:
    def __init__(
        self, app: ASGIApp, *, hosts: Sequence[str], sessions: Sessions, index: str
    ) -> None:
        """Guard an application.

        Args:
            app: Streamlit's.
            hosts: names, without port, that requests may give.
            index: Streamlit's own page, for its inline scripts.
        """
        self._app = app
        self._hosts = {host.lower() for host in hosts}
        self._sessions = sessions
        self._headers = {
            "Content-Security-Policy": policy(index),
            "X-Frame-Options": "DENY",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
            # Not even as an image or a script in a page of another port.
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if scope["type"] == "websocket":
            # Also where the API does not answer: the page then says so, and shows nothing new.
            if refusal is not None or await self._holds(headers) is False:
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return

        async def send_out(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    out[name] = value
                for name in ("Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"):
                    if name in out:
                        del out[name]
            await send(message)

        response = refusal or await self._to_login(scope, headers)
        await (response or self._app)(scope, receive, send_out)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a request of a foreign host name or a foreign page."""
        host = headers.get("host", "").lower()
        name = re.sub(r":\d+$", "", host)
        if "*" not in self._hosts and name not in self._hosts:
            return PlainTextResponse(
                f"The host name {name[:200]!r} is not served here. Use one of "
                f"{', '.join(sorted(self._hosts))}, or add it to CALIFT_ALLOWED_HOSTS.\n",
                400,
            )
        origin = headers.get("origin")
        reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD", "OPTIONS")
        if origin is None and reads:
            return None
        # With the port: a page on another port of this machine is a stranger too. So is `null`, as
        # which browsers name a page that withholds its address.
        if origin is None or not _is_of(origin, host):
            return PlainTextResponse("Only the dashboard's own pages may ask this.\n", 403)
        return None

    async def _holds(self, headers: Headers) -> bool | None:
        token = session_in(headers)
        return False if token is None else await self._sessions.holds(token)

    async def _to_login(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to somebody who has no session; none where it needs or has one."""
        path: str = scope["path"]
        if path in _OPEN or path.startswith(_OPEN_FOLDER):
            return None
        holds = await self._holds(headers)
        if holds:
            return None
        if "text/html" not in headers.get("accept", ""):
            if holds is None:
                return PlainTextResponse("The API does not answer.\n", 503)
            return PlainTextResponse("Log in first.\n", 401)
        if holds is None:
            return None  # the page itself is no secret, and says that the API does not answer
        here = quote(path) + (f"?{q.decode()}" if (q := scope["query_string"]) else "")
        if headers.get("sec-fetch-site") == "cross-site" and scope["method"] == "GET":
            # A strict cookie is not sent along with a link that was followed from elsewhere.
            # The page that asks again is ours, so that then it is.
            return html_page(
                "One moment", f'<p><a href="{html.escape(here)}">Go on</a></p>', again=""
            )
        place = "/login" if here == "/" else f"/login?{urlencode({'next': here})}"
        return RedirectResponse(place, 303)


def session_of(cookies: Mapping[str, str], host: str) -> str | None:
    """The session among a browser's cookies; a token is not taken for one."""
    found = cookies.get(cookie_name(host), "")
    return found if re.fullmatch(r"clfs_[A-Za-z0-9_.-]{1,200}", found) else None


def session_in(headers: Headers) -> str | None:
    return session_of(cookie_parser(headers.get("cookie", "")), headers.get("host", ""))


def _is_of(origin: str, host: str) -> bool:
    """Whether an `Origin` is that of pages of a `Host`."""
    try:
        scheme = urlsplit(origin).scheme
        return scheme in ("http", "https") and _netloc(origin) == _netloc(f"{scheme}://{host}")
    except ValueError:  # of no URL
        return False


def _netloc(origin: str) -> str:
    """`host:port` of an origin, without the port that its scheme means anyway."""
    parts = urlsplit(origin)
    default = {"http": ":80", "https": ":443"}.get(parts.scheme, ":")
    return parts.netloc.lower().removesuffix(default)


def names(hosts: Iterable[str]) -> list[str]:
    """Host names as Streamlit's own check spells them."""
    return [host.strip("[]") for host in hosts]
