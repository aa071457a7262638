"""The log-in, and what the dashboard hands out besides Streamlit's pages: images and scripts."""

import gzip
import html
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import plotly
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from calift_core.errors import CaliftError, ServiceError, ServiceUnavailableError
from frontend.authentication import Sessions, cookie_name, safe_path, session_in
from frontend.html_page import HERE, html_page

#: What others publish and pages load; its licence lies beside it.
_VENDOR = HERE / "vendor"
#: Scripts by the names that pages give: Plotly's part, and all of it as its package has it.
_SCRIPTS = {path.name: path for path in _VENDOR.glob("*.js")} | {
    f"plotly-{plotly.__version__}.min.js": Path(plotly.__file__).parent
    / "package_data"
    / "plotly.min.js"
}
log = logging.getLogger(__name__)

_FORM_BYTES = 8192
#: How a browser marks a link that was followed from another page than one of ours.
_FOREIGN = ("cross-site", "same-site")
#: Pictures by what they begin with; nothing else is served as one.
_PICTURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@cache
def _packed(name: str) -> bytes:
    """A script, compressed once."""
    return gzip.compress(_SCRIPTS[name].read_bytes(), 6)


@dataclass(frozen=True)
class Organisation:
    """The OpenID provider that people may log in with, instead of bringing a token.

    Attributes:
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

    async def login(request: Request) -> Response:
        if request.method == "POST":
            return await _log_in(request, sessions)
        place = safe_path(request.query_params.get("next"))
        if (token := session_in(request.headers)) and await sessions.holds(token):
            return RedirectResponse(place, 303)
        message = "You are logged out." if "out" in request.query_params else ""
        return _form(place, message, offered=organisation is not None)

    async def enter(request: Request) -> Response:
        if request.method not in ("GET", "POST"):
            return Response(
                status_code=405, headers={"Allow": "GET, POST"}
            )  # a look uses it not up
        given = await _fields(request) if request.method == "POST" else request.query_params
        place, code = safe_path(given.get("next")), given.get("code", "")
        if not code or not code.isascii() or not code.isprintable():
            return _form(place, "This link has no code.", status=400)
        token = session_in(request.headers)
        if request.method == "GET":
            # Nobody becomes somebody else unasked: not from a page of somebody else's, and not
            # where a link of ours led on to another one.
            button = _button("/enter", "Log in", code=code, next=place)
            if request.headers.get("sec-fetch-site") in _FOREIGN:
                return html_page("Log in?", button)
            if token is not None and await sessions.holds(token) is not False:
                return html_page("Log in anew?", _already(place) + button)
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
            return html_page("Log out?", _button("/logout", "Log out"))
        if (token := session_in(request.headers)) is not None:
            await _end(sessions, token)
        response = RedirectResponse("/login?out=1", 303)
        response.delete_cookie(
            cookie_name(request.headers.get("host", "")), httponly=True, samesite="strict"
        )
        return response

    async def saved_view(request: Request) -> Response:
        """Go where a saved view is; `AuthMiddleware` has seen to it that there is a session."""
        token = session_in(request.headers) or ""
        try:
            place = await sessions.place_of(token, request.path_params["view"])
        except CaliftError as error:
            return html_page("No such view", html.escape(error.message), status=404)
        return RedirectResponse(place, 303)

    async def thumbnail(request: Request) -> Response:
        """A sample's image for an `<img>`; `AuthMiddleware` has seen to it that there is a session.

        Of an evaluation; where `run` is named, of its training part or the far set `dataset`.
        """
        query = request.query_params
        size, of_run = query.get("size", ""), "run" in query
        try:
            body = await sessions.picture(
                session_in(request.headers) or "",
                query.get("run" if of_run else "evaluation", "")[:64],
                query.get("sample", "")[:1024],
                int(size) if size.isdecimal() and len(size) < 5 else 160,
                dataset=query.get("dataset", "train")[:64] if of_run else None,
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
    if (before := session_in(request.headers)) is not None:
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


def _refused(error: CaliftError, place: str, *, offered: bool = False) -> Response:
    if isinstance(error, ServiceUnavailableError):
        message = "The API does not answer; try again in a moment."
        return _form(place, message, status=503, offered=offered)
    message = f"{error.message[:1].upper()}{error.message[1:]}"
    code = error.problem.get("code") if isinstance(error, ServiceError) else None
    hint = error.hint if code in ("LINK_USED", "IDENTITY") else ""
    status = 429 if getattr(error, "status", 0) == 429 else 403
    return _form(place, f"{message} {hint}".strip(), status=status, offered=offered)


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


def _form(place: str, message: str = "", *, status: int = 200, offered: bool = False) -> Response:
    start = html.escape(f"/oidc/start?{urlencode({'next': place})}")
    other = f'<p><a class="button" href="{start}">Log in with your organisation</a></p>'
    alert = f'<p class="said" role="alert">{html.escape(message)}</p>' if message else ""
    body = (
        f'{alert}{other if offered else ""}<form method="post" action="/login">'
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
    return html_page("Log in", body, status=status)
