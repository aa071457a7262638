"""The log-in: where it goes on to, cookies, the page's policy, what a visitor may do."""

import asyncio
import socket
import string
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
import streamlit as st
import uvicorn
from hypothesis import given
from hypothesis import strategies as some
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest
from streamlit.web.server.starlette.starlette_server import _bind_socket

from calift_core.client import Client
from frontend.authentication import (
    AuthMiddleware,
    Sessions,
    cookie_name,
    policy,
    safe_path,
    session_of,
)
from frontend.components import PLOTLY, WHOLE
from frontend.login import routes
from tests.frontend.conftest import Service, pointed_at

HERE = "http://127.0.0.1:8501/login"
ROOT = Path(__file__).parents[2]


@given(
    some.text(max_size=30)
    | some.text(alphabet="/\\.:@?#%\t\n" + string.ascii_letters, max_size=12)
    | some.sampled_from(
        ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)"]
    )
)
def test_next__never_leads_elsewhere(given):
    found = urlsplit(urljoin(HERE, safe_path(given)))
    assert (found.scheme, found.netloc) == ("http", "127.0.0.1:8501")
    assert safe_path(given).startswith("/")
    assert not safe_path(given).startswith(("//", "/\\"))


def test_next__keeps_a_permalink_and_drops_the_log_in_itself():
    assert safe_path("/run?id=abc&tab=Logs") == "/run?id=abc&tab=Logs"
    for path in ("", None, "run", "/logout", "/login?next=/runs", "/enter?code=x"):
        assert safe_path(path) == "/"
    for path in ("/run?id=a%2Fb", "/v/a%20b", "/runs?q=//x&next=/enter", "/runs/x%25"):
        assert safe_path(path) == path  # encoded for a reason


SPELLINGS = (
    "/%65nter?code=x /%2565nter?code=x /./enter?code=x /%2e/enter?code=x /runs/../enter?code=x "
    "/enter/?code=x /enter#?code=x /%5cevil.example /%2f/evil.example /.//evil.example "
    "/%0d%0aSet-Cookie:x /%256Cogout " + "/%" + "25" * 9 + "65nter"
).split()


@pytest.mark.parametrize("spelt", SPELLINGS)
def test_next__is_read_as_a_browser_and_the_server_read_it(spelt):
    assert safe_path(spelt) == "/"


class _Visitors(Sessions):
    """Links of two people, and who is logged in."""

    def __init__(self) -> None:
        self.held = {"clfs_ann.s"}

    async def holds(self, token: str) -> bool:
        return token in self.held

    async def open(self, credential: str) -> str:
        self.held.add(f"clfs_{credential}.s")
        return f"clfs_{credential}.s"

    async def end(self, token: str) -> None:
        self.held.discard(token)


DASHBOARD = "http://127.0.0.1:8501"
COOKIE = "calift_session_8501"


@pytest.fixture
def visitors():
    return _Visitors()


@pytest.fixture
def dashboard(visitors):
    """The log-in and the middleware before it; redirects are not followed."""
    app = AuthMiddleware(
        Starlette(routes=routes(visitors)), hosts=["127.0.0.1"], sessions=visitors, index=""
    )
    return TestClient(app, base_url=DASHBOARD, follow_redirects=False)


@pytest.mark.parametrize("session", ["clfs_ended.s", None])
def test_link__without_a_session_logs_in(dashboard, session):
    cookies = {"Cookie": f"{COOKIE}={session}"} if session else {}
    answer = dashboard.get("/enter?code=eve&next=/runs", headers=cookies)
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs")
    assert answer.headers["set-cookie"].startswith(f"{COOKIE}=clfs_eve.s")


def test_link__over_a_session_asks(dashboard, visitors):
    own = {"Sec-Fetch-Site": "same-origin", "Origin": DASHBOARD, "Cookie": f"{COOKIE}=clfs_ann.s"}
    answer = dashboard.get("/enter?code=eve&next=/runs", headers=own)
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert visitors.held == {"clfs_ann.s"}
    assert 'href="/runs"' in answer.text
    # Only who says yes becomes somebody else.
    answer = dashboard.post("/enter", data={"code": "eve", "next": "/runs"}, headers=own)
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs")
    assert answer.headers["set-cookie"].startswith(f"{COOKIE}=clfs_eve.s")
    assert visitors.held == {"clfs_eve.s"}


@pytest.mark.parametrize(
    "origin",
    ["null", "", "http://", "//127.0.0.1:8501", "file://", "http://127.0.0.1:9", "http://["],
)
@pytest.mark.parametrize("path", ["/enter", "/login", "/logout"])
def test_origin__that_is_none_is_foreign(dashboard, visitors, origin, path):
    """As `null` a browser names a page on another port that sends no referrer."""
    headers = {"Origin": origin, "Cookie": f"{COOKIE}=clfs_ann.s"}
    answer = dashboard.post(path, data={"code": "eve", "token": "eve"}, headers=headers)
    assert answer.status_code == 403
    assert visitors.held == {"clfs_ann.s"}


def test_cookie__has_the_port_in_its_name_and_no_token_is_a_session():
    for host, port in (("127.0.0.1:8501", "_8501"), ("[::1]:8502", "_8502"), ("[::1]", ""),
                       ("calift.example", ""), ("", "")):  # fmt: skip
        assert cookie_name(host) == f"calift_session{port}"
    host = "127.0.0.1:8501"
    for value in ("clft_abc.secret", "admin.0123456789abcdef", "clfl_abc.secret", "clfs_a b", ""):
        assert session_of({cookie_name(host): value}, host) is None
    assert session_of({cookie_name(host): "clfs_a.b-c_d"}, host) == "clfs_a.b-c_d"
    assert session_of({"calift_session_1": "clfs_a.b"}, host) is None


def test_policy__allows_streamlits_inline_scripts_by_their_hash_alone():
    index = (Path(st.__file__).parent / "static" / "index.html").read_text()
    assert "unsafe" not in policy(index).split("script-src")[1].split(";")[0]
    assert policy(index).count("sha256-") == index.count("<script>") == 1
    # Of the standard's own example.
    assert "sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng=" in policy(
        "<script>alert('Hello, world.');</script>"
    )


def _run_page(service: Service) -> AppTest:
    at = AppTest.from_file(str(ROOT / "frontend" / "views" / "run.py"), default_timeout=60)
    at.query_params["id"] = service.ids["running"]
    return at


def test_scope__page_that_believes_too_much_changes_nothing(seeded, monkeypatch):
    """Buttons are a courtesy: it is the API that refuses, by the visitor's own session."""
    from backend.http.authentication import hash_token
    from backend.settings import Settings
    from backend.store.engine import open_engine
    from backend.store.stores import Stores
    from calift_core.schema.wire.service import Visitor

    token = f"clft_eve.{'d' * 32}"
    store = Stores.on(open_engine(Settings(home=seeded.home).database_url))
    store.tokens.add("clft_eve", name="Eve", scope="read", secret_sha256=hash_token(token))
    store.close()
    with pointed_at(monkeypatch, seeded.url, seeded.home, visitor=token):
        at = _run_page(seeded).run()
        (cancel,) = [b for b in at.button if b.label == "Cancel"]
        assert cancel.disabled
        at.session_state["visitor"] = Visitor(name="admin", scope="admin")
        at.run()
        (cancel,) = [b for b in at.button if b.label == "Cancel"]
        assert not cancel.disabled
        cancel.click().run()
        assert "scope submit, yours has read" in at.error[0].value
    with Client(seeded.url, (seeded.home / "token").read_text().strip()) as client:
        assert client.run(seeded.ids["running"]).phase == "RUNNING"


def test_page__without_a_session_shows_nothing(seeded, monkeypatch):
    with pointed_at(monkeypatch, seeded.url, seeded.home):
        monkeypatch.setenv("CALIFT_TOKEN", (seeded.home / "token").read_text().strip())
        monkeypatch.setattr("frontend.api.session_token", lambda: None)
        at = _run_page(seeded).run()
        assert not at.exception
        shown = " ".join(e.proto.body for e in at.get("html")) + str(at.main)
        assert "You are not logged in." in shown
        assert "CaRot" not in shown


def test_script__is_kept_by_browsers_and_no_other_file_is_served():
    app = Starlette(routes=routes(Sessions("http://127.0.0.1:9")))
    client = TestClient(app)
    whole = client.get(f"/scripts/{WHOLE}").content
    plain = client.get(f"/scripts/{PLOTLY}", headers={"Accept-Encoding": "identity"})
    packed = client.get(f"/scripts/{PLOTLY}", headers={"Accept-Encoding": "gzip"})
    assert len(plain.content) < len(whole) / 3
    assert plain.content == packed.content  # as a browser unpacks it
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    for answer in (plain, packed):
        assert answer.headers["content-type"].startswith("text/javascript")
        assert "immutable" in answer.headers["cache-control"]
    for name in ("plotly.LICENSE", "..%2Flogin.py", "%2e%2e/login.py", "nothing.js"):
        assert client.get(f"/scripts/{name}").status_code == 404


def test_connections__send_a_small_answer_at_once():
    """On a socket that Streamlit binds, in the loop that its server takes.

    With Nagle's algorithm an answer's second part waits until the browser acknowledges the first,
    which takes 40 ms where nothing else is to be sent.
    """

    async def no_delay():
        loop = asyncio.get_running_loop()
        found = loop.create_future()

        class Asked(asyncio.Protocol):
            def connection_made(self, transport):
                accepted = transport.get_extra_info("socket")
                found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        listener = _bind_socket("127.0.0.1", 0, 5)
        server = await loop.create_server(Asked, sock=listener)
        _, writer = await asyncio.open_connection(*listener.getsockname())
        value = await found
        writer.close()
        server.close()
        return value

    loop = uvicorn.Config("frontend.app").get_loop_factory()
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(no_delay()) == 1
