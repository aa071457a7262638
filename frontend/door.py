"""What every request to the dashboard passes first: host, origin, session; and the log-in itself.

::

    browser ──> Door ──> /login, /enter, /oidc, /logout    what one brings becomes a session cookie
                  └────> Streamlit                         only with it; pages ask the API with it

The dashboard has no token of its own: what a page shows and does is what the API gives to the
session of its visitor. The cookie holds that session, which the API ends at log-out, with its
token, or after its time; never the token.

It has more than 500 lines so that everything that decides who comes in is read in one place.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import logging
import posixpath
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import plotly
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from calift_core.client import Client
from calift_core.errors import CaliftError, ServiceError, ServiceUnavailableError
from calift_core.schema.wire.operations import SavedView

HERE = Path(__file__).parent
#: What others publish and pages load; its licence lies beside it.
_VENDOR = HERE / "vendor"
#: Scripts by the names that pages give: Plotly's part, and all of it as its package has it.
_SCRIPTS = {path.name: path for path in _VENDOR.glob("*.js")} | {
    f"plotly-{plotly.__version__}.min.js": Path(plotly.__file__).parent
    / "package_data"
    / "plotly.min.js"
}
log = logging.getLogger(__name__)

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
_FORM_BYTES = 8192
#: How often a path may be percent-encoded over.
_MAX_ENCODINGS = 5
#: How a browser marks a link that was followed from another page than one of ours.
_FOREIGN = ("cross-site", "same-site")
_KNOWN = 1000
#: Visitors whose connections to the API are kept for the next images.
_CLIENTS = 32
#: Pictures by what they begin with; nothing else is served as one.
_PICTURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}

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


@cache
def _packed(name: str) -> bytes:
    """A script, compressed once."""
    return gzip.compress(_SCRIPTS[name].read_bytes(), 6)


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
        self._known: dict[str, float] = {}
        self._clients: dict[str, Client] = {}
        self._lock = threading.Lock()

    async def holds(self, token: str) -> bool | None:
        """Whether a session is valid; None when the API does not say."""
        key = hashlib.sha256(token.encode()).hexdigest()
        now = time.monotonic()
        if self._known.get(key, 0.0) > now:
            return True
        try:
            await run_in_threadpool(self._ask, token)
        except ServiceError as error:
            if error.status in (401, 403):
                return False
            return None
        except CaliftError:
            return None
        while len(self._known) >= _KNOWN:
            self._known.pop(next(iter(self._known)))
        self._known[key] = now + _TRUST_S
        return True

    async def open(self, credential: str) -> str:
        """A session with a token or a link's code.

        Raises:
            ServiceError: the API refuses it, or does not answer.
        """
        return await run_in_threadpool(self._open, credential)

    async def place_of(self, token: str, view_id: str) -> str:
        """The address of a saved view in the dashboard.

        Raises:
            ServiceError: there is no such view, or the API does not answer.
        """
        view = await run_in_threadpool(self._view, token, view_id)
        path = "" if view.page == "overview" else view.page
        return f"/{path}?{view.query}" if view.query else f"/{path}"

    async def picture(
        self, token: str, owner: str, sample: str, size: int, *, training: bool
    ) -> bytes:
        """An image of an evaluation's samples, or with `training` of a run's training part.

        Raises:
            ServiceError: there is none, or the API does not answer.
        """
        return await run_in_threadpool(self._picture, token, owner, sample, size, training)

    async def end(self, token: str) -> None:
        """Log out, as far as the API can be reached."""
        self._known.pop(hashlib.sha256(token.encode()).hexdigest(), None)
        await run_in_threadpool(self._end, token)

    def _client(self, credential: str, wait_s: float = 10.0) -> Client:
        return Client(self._api_url, credential, timeout_s=wait_s)

    def _ask(self, token: str) -> None:
        with self._client(token) as client:
            client.visitor()

    def _view(self, token: str, view_id: str) -> SavedView:
        with self._client(token) as client:
            return client.view(view_id)

    def _picture(self, token: str, owner: str, sample: str, size: int, training: bool) -> bytes:
        with self._lock:
            # A page asks for many at once, and a client is dear to make.
            client = self._clients.pop(token, None) or self._client(token, _PICTURE_S)
            self._clients[token] = client
            while len(self._clients) > _CLIENTS:
                # Its connections go when the last answer has been read.
                self._clients.pop(next(iter(self._clients)))
        draw = client.training_thumbnail if training else client.thumbnail
        return draw(owner, sample, size=size)

    def _open(self, credential: str) -> str:
        with self._client(credential) as client:
            return client.open_session().token

    def _end(self, token: str) -> None:
        with self._client(token) as client:
            client.end_session()


class Door:
    """The middleware around Streamlit."""

    def __init__(
        self, app: ASGIApp, *, hosts: Sequence[str], sessions: Sessions, index: str
    ) -> None:
        """Guard an application.

        Args:
            app: Streamlit's.
            hosts: names, without port, that requests may give.
            sessions: who knows them.
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
        """Handle one connection."""
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
        token = _session_of(headers)
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
            return _page("One moment", f'<p><a href="{html.escape(here)}">Go on</a></p>', again="")
        place = "/login" if here == "/" else f"/login?{urlencode({'next': here})}"
        return RedirectResponse(place, 303)


@dataclass(frozen=True)
class Organisation:
    """The OpenID provider that people may log in with, instead of bringing a token.

    Attributes:
        issuer: its address.
        client_id: of this dashboard there.
        client_secret: of this dashboard there.
        dashboard: the address that people reach the dashboard by, which the provider knows too.
    """

    issuer: str
    client_id: str
    client_secret: str
    dashboard: str

    @property
    def callback(self) -> str:
        """Where the provider sends people back to."""
        return f"{self.dashboard.rstrip('/')}/oidc/callback"


def routes(sessions: Sessions, organisation: Organisation | None = None) -> list[Route]:
    """The log-in's own pages."""

    async def login(request: Request) -> Response:
        if request.method == "POST":
            return await _log_in(request, sessions)
        place = safe_path(request.query_params.get("next"))
        if (token := _session_of(request.headers)) and await sessions.holds(token):
            return RedirectResponse(place, 303)
        said = "You are logged out." if "out" in request.query_params else ""
        return _form(place, said, offered=organisation is not None)

    async def enter(request: Request) -> Response:
        if request.method not in ("GET", "POST"):
            return Response(
                status_code=405, headers={"Allow": "GET, POST"}
            )  # a look uses it not up
        given = await _fields(request) if request.method == "POST" else request.query_params
        place, code = safe_path(given.get("next")), given.get("code", "")
        if not code or not code.isascii() or not code.isprintable():
            return _form(place, "This link has no code.", status=400)
        token = _session_of(request.headers)
        if request.method == "GET":
            # Nobody becomes somebody else unasked: not from a page of somebody else's, and not
            # where a link of ours led on to another one.
            button = _button("/enter", "Log in", code=code, next=place)
            if request.headers.get("sec-fetch-site") in _FOREIGN:
                return _page("Log in?", button)
            if token is not None and await sessions.holds(token) is not False:
                return _page("Log in anew?", _already(place) + button)
        try:
            opened = await sessions.open(code)
        except CaliftError as error:
            if token is not None and await sessions.holds(token):
                return RedirectResponse(place, 303)  # logged in already: nothing is amiss
            return _refused(error, place)
        if token is not None:
            await _end(sessions, token)
        return _with_cookie(RedirectResponse(place, 303), request, opened)

    async def logout(request: Request) -> Response:
        # A link of ours logs out at once; one from elsewhere only asks.
        site = request.headers.get("sec-fetch-site")
        own = request.method == "POST" or (request.method == "GET" and site == "same-origin")
        if not own:
            return _page("Log out?", _button("/logout", "Log out"))
        if (token := _session_of(request.headers)) is not None:
            await _end(sessions, token)
        response = RedirectResponse("/login?out=1", 303)
        response.delete_cookie(
            cookie_name(request.headers.get("host", "")), httponly=True, samesite="strict"
        )
        return response

    async def saved_view(request: Request) -> Response:
        """Go where a saved view is; the door has seen to it that there is a session."""
        token = _session_of(request.headers) or ""
        try:
            place = await sessions.place_of(token, request.path_params["view"])
        except CaliftError as error:
            return _page("No such view", html.escape(error.message), status=404)
        return RedirectResponse(place, 303)

    async def thumbnail(request: Request) -> Response:
        """A sample's image for an `<img>`; the door has seen to it that there is a session.

        Of an evaluation, or of a run's training part where `run` is named.
        """
        asked = request.query_params
        size, training = asked.get("size", ""), "run" in asked
        try:
            body = await sessions.picture(
                _session_of(request.headers) or "",
                asked.get("run" if training else "evaluation", "")[:64],
                asked.get("sample", "")[:1024],
                int(size) if size.isdecimal() and len(size) < 5 else 160,
                training=training,
            )
        except CaliftError as error:
            refused = getattr(error, "status", 0) or 503
            later = {"Retry-After": "2"} if refused in (429, 503) else {}
            return PlainTextResponse(
                f"{error.message} {error.hint}".strip(),
                refused,
                {"Cache-Control": "no-store", **later},
            )
        kind = next((k for start, k in _PICTURES.items() if body.startswith(start)), None)
        if kind is None:
            return PlainTextResponse("The API gave no picture.\n", 502)
        # What an evaluation saw never changes; another visitor of the browser has another cookie.
        kept = {"Cache-Control": "private, max-age=86400, immutable", "Vary": "Cookie"}
        return Response(body, media_type=kind, headers=kept)

    def script(request: Request) -> Response:
        """A script that pages load once and browsers keep: its version is part of its name."""
        name = request.path_params["name"]
        if name not in _SCRIPTS:
            return PlainTextResponse("There is no such script.\n", 404)
        packed = "gzip" in request.headers.get("Accept-Encoding", "")
        body = _packed(name) if packed else _SCRIPTS[name].read_bytes()
        coded = {"Content-Encoding": "gzip"} if packed else {}
        kept = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
        return Response(body, media_type="text/javascript", headers={**kept, **coded})

    own = _organisation_routes(sessions, organisation) if organisation else []
    return [
        Route("/v/{view}", saved_view, methods=["GET"]),
        Route("/thumbnail", thumbnail, methods=["GET"]),
        Route("/scripts/{name}", script, methods=["GET"]),
        *own,
        Route("/login", login, methods=["GET", "POST"]),
        Route("/enter", enter, methods=["GET", "POST"]),
        Route("/logout", logout, methods=["GET", "POST"]),
    ]


def _organisation_routes(sessions: Sessions, organisation: Organisation) -> list[Route]:
    from authlib.integrations.starlette_client import OAuth

    oauth = OAuth()
    oauth.register(
        "organisation",
        client_id=organisation.client_id,
        client_secret=organisation.client_secret,
        server_metadata_url=f"{organisation.issuer.rstrip('/')}/.well-known/openid-configuration",
        client_kwargs={"scope": "openid email", "code_challenge_method": "S256"},
    )

    async def start(request: Request) -> Response:
        request.session["next"] = safe_path(request.query_params.get("next"))
        try:
            answer: Response = await oauth.organisation.authorize_redirect(
                request, organisation.callback
            )
        except Exception:  # of the provider, the network, and two libraries
            log.exception("the identity provider could not be asked")
            return _form("/", "The identity provider does not answer.", status=503, offered=True)
        return answer

    async def callback(request: Request) -> Response:
        place = safe_path(request.session.pop("next", None))
        try:
            got = await oauth.organisation.authorize_access_token(request)
            id_token = str(got["id_token"])
        except Exception:
            log.exception("the identity provider did not log anybody in")
            return _form(place, "The log-in did not succeed.", status=403, offered=True)
        try:
            opened = await sessions.open(id_token)
        except CaliftError as error:
            return _refused(error, place, offered=True)
        return _with_cookie(RedirectResponse(place, 303), request, opened)

    return [
        Route("/oidc/start", start, methods=["GET"]),
        Route("/oidc/callback", callback, methods=["GET"]),
    ]


async def _log_in(request: Request, sessions: Sessions) -> Response:
    fields = await _fields(request)
    place, token = safe_path(fields.get("next")), fields.get("token", "").strip()
    if not token or not token.isascii() or not token.isprintable():
        return _form(place, "This is not a token: it looks like id.secret.", status=400)
    try:
        opened = await sessions.open(token)
    except CaliftError as error:
        return _refused(error, place)
    if (before := _session_of(request.headers)) is not None:
        await _end(sessions, before)
    return _with_cookie(RedirectResponse(place, 303), request, opened)


async def _fields(request: Request) -> dict[str, str]:
    """What a form of ours sent; nothing of one that is too long to be ours."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _FORM_BYTES:
            return {}
    return {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}


async def _end(sessions: Sessions, token: str) -> None:
    try:
        await sessions.end(token)
    except CaliftError:
        return  # ended before, or the API is away: then it ends with its time


def _with_cookie(response: Response, request: Request, session: str) -> Response:
    headers = request.headers
    schemes = (
        request.url.scheme,
        urlsplit(headers.get("origin", "")).scheme,
        headers.get("x-forwarded-proto", "").partition(",")[0].strip(),
    )
    response.set_cookie(
        cookie_name(headers.get("host", "")),
        session,
        httponly=True,
        samesite="strict",
        secure="https" in schemes,
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def session_of(cookies: Mapping[str, str], host: str) -> str | None:
    """The session among a browser's cookies; a token is not taken for one."""
    found = cookies.get(cookie_name(host), "")
    return found if re.fullmatch(r"clfs_[A-Za-z0-9_.-]{1,200}", found) else None


def _session_of(headers: Headers) -> str | None:
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


def _refused(error: CaliftError, place: str, *, offered: bool = False) -> Response:
    if isinstance(error, ServiceUnavailableError):
        said = "The API does not answer; try again in a moment."
        return _form(place, said, status=503, offered=offered)
    said = f"{error.message[:1].upper()}{error.message[1:]}"
    code = error.problem.get("code") if isinstance(error, ServiceError) else None
    hint = error.hint if code in ("LINK_USED", "IDENTITY") else ""
    status = 429 if getattr(error, "status", 0) == 429 else 403
    return _form(place, f"{said} {hint}".strip(), status=status, offered=offered)


_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;color:light-dark(#1c2733,#e6ebf0);
background:light-dark(#f5f7f9,#11171d);margin:0}
main{max-width:26rem;margin:12vh auto;padding:2rem;
background:light-dark(#fff,#1a232c);
border:1px solid light-dark(#e1e6eb,#2f3b46);border-radius:.5rem}
img{height:2rem}h1{font-size:1.25rem;margin:1rem 0 .5rem}
p{margin:.5rem 0;color:light-dark(#4a5763,#a9b6c3)}
label{display:block;font-weight:600;margin-top:1rem}
input{width:100%;box-sizing:border-box;font:inherit;padding:.5rem;margin:.25rem 0 1rem;
border:1px solid light-dark(#8a97a3,#6d7b88);border-radius:.4rem}
button,a.button{font:inherit;display:inline-block;text-decoration:none;font-weight:600;color:#fff;background:#0b6394;border:0;border-radius:.4rem;
padding:.5rem 1.25rem;cursor:pointer}
a:not(.button){color:light-dark(#0b6394,#74bdec)}
code{background:light-dark(#f0f3f6,#26313b);padding:0 .25rem;border-radius:.25rem}
p.said{color:light-dark(#8a1c1c,#ffaab1);font-weight:600}
"""


def _button(action: str, words: str, **fields: str) -> str:
    hidden = "".join(
        f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
        for name, value in fields.items()
    )
    button = f"<button>{html.escape(words)}</button>"
    return f'<form method="post" action="{action}">{hidden}{button}</form>'


def _already(place: str) -> str:
    return (
        "<p>You are logged in. This link ends your session and logs you in as whoever made it. "
        f'Or <a href="{html.escape(place)}">stay logged in as you are</a>.</p>'
    )


def _form(place: str, said: str = "", *, status: int = 200, offered: bool = False) -> Response:
    start = html.escape(f"/oidc/start?{urlencode({'next': place})}")
    other = f'<p><a class="button" href="{start}">Log in with your organisation</a></p>'
    told = f'<p class="said" role="alert">{html.escape(said)}</p>' if said else ""
    body = (
        f'{told}{other if offered else ""}<form method="post" action="/login">'
        f'<input type="hidden" name="next" value="{html.escape(place)}">'
        # For password managers, which want a name.
        '<input type="text" name="username" value="calift" autocomplete="username" hidden>'
        '<label for="token">Token</label>'
        '<input id="token" name="token" type="password" autocomplete="current-password" '
        "required autofocus>"
        "<button>Log in</button></form>"
        "<p>On the machine that runs <code>calift up</code>, <code>calift link</code> prints a "
        "link that logs you in without a token. Elsewhere, use the token that whoever runs the "
        "service gave you. It is exchanged for a session and not kept.</p>"
    )
    return _page("Log in", body, status=status)


def _page(title: str, body: str, *, status: int = 200, again: str | None = None) -> Response:
    logo, icon = (
        "data:image/svg+xml;base64," + base64.b64encode((HERE / name).read_bytes()).decode()
        for name in ("logo.svg", "icon.svg")
    )
    refresh = "" if again is None else '<meta http-equiv="refresh" content="0">'
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'{refresh}<title>{html.escape(title)} · calift</title><link rel="icon" href="{icon}">'
        f"<style>{_STYLE}</style></head>"
        f'<body><main><img alt="calift" src="{logo}">'
        f"<h1>{html.escape(title)}</h1>{body}</main></body></html>",
        status,
        headers={"Cache-Control": "no-store"},
    )


def names(hosts: Iterable[str]) -> list[str]:
    """Host names as Streamlit's own check spells them."""
    return [host.strip("[]") for host in hosts]
