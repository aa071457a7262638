"""Logging in to the dashboard: who gets in, from where, and what they may do inside."""

import http.client
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from backend.http.authentication import hash_token
from tests.conftest import free_port, until
from tests.e2e.conftest import Dashboard, query, serving_dashboard, settle
from tests.frontend.conftest import Service

pytestmark = pytest.mark.browser

#: What the seeded API would show on any page.
SECRETS = ("CaRot on fashion-mnist", "sweep-1", "fashion-mnist")


def log_in(tab: Any, token: str) -> None:
    """Type a token into the page that asks for one."""
    tab.get_by_label("Token").fill(token)
    tab.get_by_role("button", name="Log in").click()


def ask(dashboard, path, *, method="GET", body="", **headers):
    """One request as it stands, without what a browser or a library would add."""
    connection = http.client.HTTPConnection(urlsplit(dashboard.url).netloc, timeout=20)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body or None, sent)
    response = connection.getresponse()
    text = response.read().decode(errors="replace")
    connection.close()
    return response.status, {k.lower(): v for k, v in response.getheaders()}, text


def handshake(dashboard: Dashboard, **headers: str) -> int:
    """The status that a web socket's opening gets: 101 lets it in."""
    opening = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    opening |= {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="} | headers
    return ask(dashboard, "/_stcore/stream", **opening)[0]


def ours(tab: Any) -> list[Any]:
    """The cookies that we have set."""
    return [c for c in tab.context.cookies() if c["name"].startswith("calift")]


def cookie(state: Any) -> str:
    return "; ".join(f"{c['name']}={c['value']}" for c in state["cookies"])


@contextmanager
def foreign_page(html: str) -> Iterator[str]:
    """A page of somebody else's on another loopback port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_host__foreign_name_is_refused_everywhere(dashboard, logged_in):
    own = urlsplit(dashboard.url)
    for path in ("/", "/login", "/runs", "/_stcore/health", "/_stcore/host-config", "/static/x.js"):
        for host in (f"evil.example:{own.port}", "evil.example", "localhost.evil.example", ""):
            status, _, body = ask(dashboard, path, Host=host, Cookie=cookie(logged_in))
            assert status == 400, (path, host)
            assert not any(word in body for word in SECRETS)
    # A name of another's that was bound to this address anew.
    rebound = {"Host": f"evil.example:{own.port}", "Origin": f"http://evil.example:{own.port}"}
    assert handshake(dashboard, Cookie=cookie(logged_in), **rebound) == 403
    for host in (own.netloc, f"localhost:{own.port}"):
        status, _, _ = ask(dashboard, "/login", Host=host)
        assert status in (200, 303)


def test_socket__only_from_the_dashboards_own_origin(dashboard, logged_in):
    own = urlsplit(dashboard.url)
    known = {"Host": own.netloc, "Cookie": cookie(logged_in)}
    assert handshake(dashboard, Origin=dashboard.url, **known) == 101
    for origin in (
        f"http://127.0.0.1:{free_port()}",
        "http://127.0.0.1",
        f"http://localhost:{own.port}",
        f"https://127.0.0.1:{free_port()}",
        "http://evil.example",
        f"http://evil.example:{own.port}",
        f"http://127.0.0.1:{own.port}.evil.example",
        f"http://evil.example@127.0.0.1:{own.port}",
        "null",
    ):
        assert handshake(dashboard, Origin=origin, **known) == 403, origin
    assert handshake(dashboard, **known) == 403  # no browser leaves it out


def test_frame__of_any_page_is_refused(dashboard, tab):
    frames = "".join(
        f'<iframe name="{name}" src="{dashboard.url}/{name}"></iframe>'
        for name in ("login", "runs", "logout")
    )
    with foreign_page(f"<!doctype html><title>theirs</title>{frames}") as theirs:
        tab.goto(theirs)
        tab.wait_for_load_state("load")
        inside = {frame.name: frame.url for frame in tab.frames if frame.name}
    assert inside == dict.fromkeys(("login", "runs", "logout"), "chrome-error://chromewebdata/")


def test_headers__stand_on_every_answer(dashboard, logged_in):
    known = {"Cookie": cookie(logged_in)}
    places = [
        ask(dashboard, "/login"),
        ask(dashboard, "/runs", Accept="text/html"),
        ask(dashboard, "/runs", Accept="text/html", **known),
        ask(dashboard, "/media/none.bin"),
        ask(dashboard, "/_stcore/health"),
        ask(dashboard, "/", Host="evil.example"),
        ask(dashboard, "/login", method="POST", Origin="http://evil.example"),
    ]
    assert {status for status, _, _ in places} >= {200, 303, 400, 401, 403}
    for _, headers, _ in places:
        wanted = headers["content-security-policy"]
        assert "frame-ancestors 'none'" in wanted
        script = re.search(r"script-src ([^;]+)", wanted)
        assert script
        assert "unsafe" not in script[1]
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers


def test_stranger__is_shown_nothing(dashboard, stranger):
    """Although the dashboard's process could read the service's token."""
    for path in ("/", "/runs", "/overview", f"/run?id={dashboard.service.ids['CaRot']}"):
        status, headers, body = ask(dashboard, path, Accept="text/html")
        assert (status, body) == (303, "")
        assert headers["location"].startswith("/login")
    for path in (
        "/media/a.csv",
        "/component/x/index.html",
        "/_stcore/upload_file/a/b",
        "/_stcore/agent/openapi.json",
        "/_stcore/metrics",
    ):
        assert ask(dashboard, path)[0] == 401, path
    for token in ("", "clfs_made.up", dashboard.admin_token):
        sent = {"Cookie": f"calift_session_{urlsplit(dashboard.url).port}={token}"} if token else {}
        assert handshake(dashboard, Origin=dashboard.url, **sent) == 403
    stranger.goto(dashboard.at("runs"))
    assert urlsplit(stranger.url).path == "/login"
    text = stranger.locator("body").inner_text()
    assert not any(word in text for word in SECRETS)


def test_token__logs_in_and_goes_on_to_the_permalink(dashboard, stranger):
    stranger.goto(dashboard.at("calibration?run={FLYP}&dataset=sketch"))
    log_in(stranger, "clft_wrong.token-of-nobody")
    stranger.get_by_role("alert").get_by_text("The token is not valid.").wait_for()
    log_in(stranger, dashboard.admin_token)
    settle(stranger)
    until(lambda: "dataset=sketch" in query(stranger), what="the permalink")
    (found,) = ours(stranger)
    assert found["httpOnly"]
    assert found["sameSite"] == "Strict"
    assert found["expires"] == -1
    assert found["value"] not in (dashboard.admin_token, "")
    assert stranger.evaluate("() => document.cookie").count("calift") == 0


def test_link__logs_in_once_then_no_more(dashboard, stranger, chromium):
    link = dashboard.link("/runs")
    status, headers, _ = ask(dashboard, link.removeprefix(dashboard.url), method="HEAD")
    assert "set-cookie" not in headers  # looking at it does not use it up
    stranger.goto(link)
    settle(stranger)
    assert stranger.url == f"{dashboard.url}/runs"
    other = stranger.context.new_page()
    other.goto(dashboard.at("run?id={CaRot}"))
    settle(other)
    assert other.locator(".calift-head h1").inner_text() == "CaRot on fashion-mnist"
    other.goto(link)  # who is in already is asked before another session begins
    other.get_by_role("heading", name="Log in anew?").wait_for()
    other.get_by_role("link", name="stay logged in").click()
    settle(other)
    assert other.url == f"{dashboard.url}/runs"
    other.goto(link)
    other.get_by_role("button", name="Log in").click()  # used up: nothing changes
    settle(other)
    thief = chromium.new_context().new_page()
    answer = thief.goto(link)
    assert answer.status == 403
    assert "used before" in thief.get_by_role("alert").inner_text()
    assert not thief.context.cookies()
    thief.context.close()
    assert status == 405


def test_link__on_a_page_of_somebody_elses_only_asks(dashboard, stranger):
    """Else it would make people work as somebody whom they do not know."""
    link = dashboard.link("/runs")
    for host in ("127.0.0.1", "localhost"):
        with foreign_page(f'<!doctype html><title>theirs</title><a href="{link}">x</a>') as theirs:
            stranger.goto(theirs.replace("127.0.0.1", host))
            stranger.get_by_role("link", name="x").click()
            stranger.get_by_role("heading", name="Log in?").wait_for()
            assert not ours(stranger)
    stranger.get_by_role("button", name="Log in").click()
    settle(stranger)
    assert stranger.url == f"{dashboard.url}/runs"


def test_permalink__from_another_site_finds_who_is_logged_in(dashboard, tab):
    """A strict cookie is not sent along with it, and yet nobody logs in twice."""
    place = dashboard.at("run?id={CaRot}")
    with foreign_page(f'<!doctype html><title>theirs</title><a href="{place}">look</a>') as theirs:
        tab.goto(theirs.replace("127.0.0.1", "localhost"))
        tab.get_by_role("link", name="look").click()
        settle(tab)
    assert tab.locator(".calift-head h1").inner_text() == "CaRot on fashion-mnist"


def test_logout__ends_the_session_everywhere(dashboard, stranger):
    stranger.goto(dashboard.link("/runs"))
    settle(stranger)
    held = stranger.context.cookies()
    open_still = stranger.context.new_page()
    open_still.goto(dashboard.at("compare?ids={all}"))
    settle(open_still)
    # A page of somebody else's that links here only gets a question.
    with foreign_page(f'<a href="{dashboard.url}/logout">cheap offers</a>') as theirs:
        tab = stranger.context.new_page()
        tab.goto(theirs.replace("127.0.0.1", "localhost"))
        tab.get_by_role("link").click()
        tab.get_by_role("heading", name="Log out?").wait_for()
    stranger.get_by_role("link", name="Log out").click()
    stranger.get_by_text("You are logged out").wait_for()
    assert not ours(stranger)
    # A tab that was left open says so at its next step.
    open_still.get_by_role("link", name="Runs", exact=True).click()
    open_still.get_by_text("Your session has ended").wait_for()
    main = open_still.locator("[data-testid=stMain]")
    until(  # what stood there is taken away when the page has ended
        lambda: not any(word in main.inner_text() for word in SECRETS),
        what="the page to show nothing of the service",
    )
    # Neither does the old cookie help.
    stranger.context.add_cookies(held)
    until(
        lambda: ask(dashboard, "/", Accept="text/html", Cookie=cookie({"cookies": held}))[0] == 303,
        what="the session's end",
    )
    stranger.goto(dashboard.at("runs"))
    assert urlsplit(stranger.url).path == "/login"


def test_restart__of_the_dashboard_needs_no_new_log_in_nor_a_second_one_beside_it(
    dashboard, stranger, tmp_path
):
    """Neither does one that another dashboard on this host has logged in, beside it."""
    port = free_port()
    with serving_dashboard(dashboard.service, tmp_path, port=port) as first:
        stranger.goto(first.link("/runs"))
        settle(stranger)
        stranger.goto(dashboard.link("/login"))
        assert len({c["name"] for c in ours(stranger)}) == 2
    names = {"CALIFT_ALLOWED_HOSTS": "127.0.0.1,calift.example"}
    with serving_dashboard(dashboard.service, tmp_path, port=port, variables=names) as second:
        stranger.goto(second.at("run?id={CaRot}"))
        settle(stranger)
        assert stranger.locator(".calift-head h1").inner_text() == "CaRot on fashion-mnist"
        require_proxy_with_tls(second)


def reader_token(service: Service) -> str:
    from backend.settings import Settings
    from backend.store.engine import open_engine
    from backend.store.stores import Stores

    token = f"clft_reader.{'r' * 32}"
    store = Stores.on(open_engine(Settings(home=service.home).database_url))
    if store.tokens.get("clft_reader") is None:
        store.tokens.add("clft_reader", name="Ada", scope="read", secret_sha256=hash_token(token))
    store.close()
    return token


def test_scope__of_a_reader_shows_runs_and_cancels_none(dashboard, stranger):
    stranger.goto(dashboard.at("run?id={running}"))
    log_in(stranger, reader_token(dashboard.service))
    settle(stranger)
    stranger.get_by_text("Ada · read").wait_for(state="attached")
    assert stranger.get_by_role("button", name="Cancel").is_disabled()
    assert stranger.get_by_role("button", name="Edit").count() == 0


def test_exposed__bind_needs_names(monkeypatch, capsys):
    from frontend.__main__ import main

    monkeypatch.delenv("CALIFT_ALLOWED_HOSTS", raising=False)
    monkeypatch.setenv("CALIFT_DASHBOARD_HOST", "0.0.0.0")
    assert main() == 2
    assert "CALIFT_ALLOWED_HOSTS" in capsys.readouterr().err


def require_proxy_with_tls(made: Dashboard) -> None:
    """Behind a proxy with TLS a dashboard goes by the name that it was given, and by no other."""
    link = made.link().removeprefix(made.url)
    named = {"Host": "calift.example", "X_Forwarded_Proto": "https"}
    status, headers, _ = ask(made, link, **named)
    assert status == 303
    assert headers["set-cookie"].startswith("calift_session=")
    assert "Secure" in headers["set-cookie"]
    session = headers["set-cookie"].partition(";")[0]
    own = {"Host": "calift.example", "Cookie": session}
    assert handshake(made, Origin="https://calift.example", **own) == 101
    assert handshake(made, Origin="https://calift.example:8443", **own) == 403
    assert ask(made, "/login", Host="localhost")[0] == 400


def test_api_away__shows_nothing_and_says_so(stranger, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text("clft_nobody.0123456789abcdef\n")
    away = Service(f"http://127.0.0.1:{free_port()}", home, {})
    with serving_dashboard(away, tmp_path) as made:
        port = urlsplit(made.url).port
        stranger.goto(made.at("login"))
        log_in(stranger, made.admin_token)
        stranger.get_by_role("alert").get_by_text("does not answer").wait_for()
        stranger.context.add_cookies(
            [{"name": f"calift_session_{port}", "value": "clfs_any.thing", "url": made.url}]
        )
        stranger.goto(made.at("runs"))
        stranger.get_by_text("Could not ask the API who you are").wait_for()


def test_organisation__logs_people_in_with_their_own_scope(dashboard, stranger, tmp_path):
    from tests.frontend.conftest import service
    from tests.identity_provider import identity_provider

    with identity_provider() as idp:
        granted = {
            "oidc_issuer": idp.issuer,
            "oidc_client_id": idp.client_id,
            "oidc_readers": ("@example.org",),
        }
        port = free_port()
        variables = {
            "CALIFT_OIDC_ISSUER": idp.issuer,
            "CALIFT_OIDC_CLIENT_ID": idp.client_id,
            "CALIFT_OIDC_CLIENT_SECRET": idp.client_secret,
            # The provider is on another site than the dashboard, as it would be.
            "CALIFT_DASHBOARD_URL": f"http://localhost:{port}",
        }
        with (
            # Another API on the same runs.
            service(dashboard.service.home, **granted) as api,
            serving_dashboard(api, tmp_path, port=port, variables=variables),
        ):
            stranger.goto(f"http://localhost:{port}/run?id={dashboard.service.ids['CaRot']}")
            stranger.get_by_role("link", name="Log in with your organisation").click()
            settle(stranger)
            assert urlsplit(stranger.url).path == "/run"
            assert stranger.locator(".calift-head h1").inner_text() == "CaRot on fashion-mnist"
            stranger.get_by_text("ada@example.org · read").wait_for(state="attached")
            stranger.get_by_role("link", name="Log out").click()
            stranger.get_by_text("You are logged out").wait_for()
            idp.claims["email"] = "eve@evil.example"
            stranger.get_by_role("link", name="Log in with your organisation").click()
            stranger.get_by_role("alert").get_by_text("eve@evil.example may not use").wait_for()
            # An answer that this browser did not ask for logs nobody in.
            forged = stranger.goto(f"http://localhost:{port}/oidc/callback?code=x&state=y")
            assert forged.status == 403
            assert not [c for c in ours(stranger) if c["name"].startswith("calift_session")]
