"""Sessions: what a dashboard's visitor holds instead of the token, and links that work once."""

from functools import partial
from typing import Any

import pytest
from starlette.testclient import TestClient

from backend.http.authentication import hash_token
from tests.conftest import as_admin, at_once

BASE = "/api/v1/sessions"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def reader(services):
    token = f"clft_reader.{'s' * 32}"
    services.store.tokens.add(
        "clft_reader", name="Ada", scope="read", secret_sha256=hash_token(token)
    )
    return token


def opened(bare: TestClient, token: str) -> str:
    response = bare.post(BASE, headers=bearer(token))
    assert response.status_code == 201, response.text
    return str(response.json()["token"])


def refused(response: Any, status: int, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code), response.text


def test_session__can_do_what_its_token_can_and_no_more(bare, reader):
    session = opened(bare, reader)
    me = bare.get(f"{BASE}/current", headers=bearer(session)).json()
    assert (me["name"], me["scope"]) == ("Ada", "read")
    assert me["expires_at"]
    assert bare.get("/api/v1/runs", headers=bearer(session)).is_success
    refused(bare.post("/api/v1/runs/abc/cancel", headers=bearer(session)), 403, "FORBIDDEN")
    assert bare.get(f"{BASE}/current", headers=bearer(reader)).json()["expires_at"] is None


def test_session__ends_with_logout_and_the_token_stays(bare, reader):
    session, other = opened(bare, reader), opened(bare, reader)
    assert bare.delete(f"{BASE}/current", headers=bearer(session)).status_code == 204
    refused(bare.get("/api/v1/runs", headers=bearer(session)), 401, "SESSION_ENDED")
    assert bare.get("/api/v1/runs", headers=bearer(other)).is_success
    refused(bare.delete(f"{BASE}/current", headers=bearer(reader)), 409, "NO_SESSION")


def test_session__ends_when_its_token_is_revoked(bare, services, reader):
    session = opened(bare, reader)
    services.store.tokens.revoke("clft_reader")
    refused(bare.get("/api/v1/runs", headers=bearer(session)), 401, "SESSION_ENDED")


def test_session__ends_when_the_admin_token_is_replaced(bare, settings, services):
    session = opened(bare, settings.admin_token())
    assert settings.token_file is not None
    identity = settings.admin_token().partition(".")[0]
    # The same id with another secret, as somebody who rotates CALIFT_TOKEN may choose.
    settings.token_file.write_text(f"{identity}.{'r' * 40}\n")
    with as_admin(settings) as restarted:
        refused(restarted.get("/api/v1/runs", headers=bearer(session)), 401, "SESSION_ENDED")


def test_session__of_another_secret_is_refused(bare, reader):
    session = opened(bare, reader)
    forged = f"{session.partition('.')[0]}.{'x' * 43}"
    refused(bare.get("/api/v1/runs", headers=bearer(forged)), 401, "SESSION_ENDED")
    refused(
        bare.get("/api/v1/runs", headers=bearer("clfs_nobody." + "x" * 43)), 401, "SESSION_ENDED"
    )


def test_session__too_old_is_refused_and_forgotten(services, bare):
    token = "clfs_old." + "o" * 43
    admin = services.settings.admin_token()
    common = {
        "kind": "session",
        "token_id": admin.partition(".")[0],
        "token_sha256": hash_token(admin),
    }
    services.store.sessions.add("clfs_old", secret_sha256=hash_token(token), ttl_s=-1.0, **common)
    refused(bare.get("/api/v1/runs", headers=bearer(token)), 401, "SESSION_ENDED")
    services.store.sessions.add("clfs_gone", secret_sha256="g" * 64, ttl_s=-90_000.0, **common)
    services.store.sessions.add("clfs_new", secret_sha256="n" * 64, ttl_s=60.0, **common)
    assert services.store.sessions.get("clfs_gone") is None
    assert services.store.sessions.get("clfs_old") is not None


def test_session__opens_no_other_one(bare, reader):
    session = opened(bare, reader)
    for path in (BASE, f"{BASE}/links"):
        refused(bare.post(path, headers=bearer(session)), 403, "FORBIDDEN")


def link(bare: TestClient, token: str) -> str:
    response = bare.post(f"{BASE}/links", headers=bearer(token))
    assert response.status_code == 201, response.text
    return str(response.json()["token"])


def test_link__opens_one_session(bare, reader):
    code = link(bare, reader)
    session = opened(bare, code)
    assert bare.get("/api/v1/runs", headers=bearer(session)).is_success
    refused(bare.post(BASE, headers=bearer(code)), 401, "LINK_USED")


def test_link__opened_many_times_at_once_opens_one_session(services, bare, reader):
    code = link(bare, reader)

    def open_it(number):
        return services.store.sessions.add(
            f"clfs_{number}",
            kind="session",
            secret_sha256="a" * 64,
            token_id="clft_reader",
            token_sha256=hash_token(reader),
            ttl_s=60.0,
            link_id=code.partition(".")[0],
        )

    opened = at_once(*(partial(open_it, number) for number in range(16)))
    assert sum(found is not None for found in opened) == 1


def test_link__does_nothing_else(bare, reader):
    code = link(bare, reader)
    for method, path in (
        ("GET", "/api/v1/runs"),
        ("GET", f"{BASE}/current"),
        ("DELETE", f"{BASE}/current"),
        ("POST", f"{BASE}/links"),
        ("GET", "/api/v1/stats"),
    ):
        refused(bare.request(method, path, headers=bearer(code)), 401, "LOG_IN_ONLY")
    assert opened(bare, code)


def test_link__that_waited_too_long_is_refused(services, bare):
    admin = services.settings.admin_token()
    code = "clfl_late." + "l" * 43
    services.store.sessions.add(
        "clfl_late",
        kind="link",
        secret_sha256=hash_token(code),
        token_id=admin.partition(".")[0],
        token_sha256=hash_token(admin),
        ttl_s=-1.0,
    )
    refused(bare.post(BASE, headers=bearer(code)), 401, "LINK_USED")


def test_sessions__no_secret_is_stored(bare, services, reader):
    from sqlalchemy import text

    made = [opened(bare, reader), link(bare, reader)]
    with services.store.engine.connect() as connection:
        rows = str(connection.execute(text("SELECT * FROM sessions")).all())
    for token in made:
        assert token.partition(".")[2] not in rows
