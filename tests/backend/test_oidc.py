"""People whom an OpenID provider vouches for: who is let in, and what they may do."""

import base64
import hmac
import json
import time
from typing import Any

import pytest
from joserfc.jwk import RSAKey
from starlette.testclient import TestClient

from backend.http import oidc
from backend.main import create_app
from calift_core.errors import SpecError
from tests.conftest import spec_of
from tests.identity_provider import IdentityProvider, identity_provider

BASE = "/api/v1/sessions"


@pytest.fixture(scope="module")
def running():
    with identity_provider() as made:
        yield made


@pytest.fixture
def idp(running):
    running.claims = {"sub": "1234", "email": "Ada@Example.org", "email_verified": True}
    return running


def settings_of(make_settings: Any, idp: IdentityProvider, **changes: Any) -> Any:
    usual = {
        "oidc_issuer": idp.issuer,
        "oidc_client_id": idp.client_id,
        "oidc_readers": ("*",),
        "oidc_submitters": ("@example.org",),
    }
    return make_settings(**(usual | changes))


@pytest.fixture
def bare(make_settings, idp):
    app = create_app(settings_of(make_settings, idp), housekeeping=False)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as caller:
        yield caller


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def session(bare: TestClient, token: str) -> str:
    response = bare.post(BASE, headers=bearer(token))
    assert response.status_code == 201, response.text
    return str(response.json()["token"])


def code_of(response: Any) -> tuple[int, str]:
    return response.status_code, response.json().get("code")


def test_id_token__opens_a_session_of_its_person(bare, idp):
    held = session(bare, idp.id_token())
    me = bare.get(f"{BASE}/current", headers=bearer(held)).json()
    assert (me["name"], me["scope"]) == ("ada@example.org", "submit")
    spec = {"spec": spec_of().model_dump(mode="json")}
    made = bare.post("/api/v1/runs", headers=bearer(held), json=spec)
    assert made.json()["owner"] == "ada@example.org"
    assert bare.delete(f"{BASE}/current", headers=bearer(held)).status_code == 204
    assert code_of(bare.get("/api/v1/runs", headers=bearer(held))) == (401, "SESSION_ENDED")


def test_id_token__does_nothing_but_open_a_session(bare, idp):
    token = idp.id_token()
    for method, path in (
        ("GET", "/api/v1/runs"),
        ("GET", f"{BASE}/current"),
        ("POST", f"{BASE}/links"),
    ):
        answer = bare.request(method, path, headers=bearer(token))
        assert code_of(answer) == (401, "LOG_IN_ONLY")


def _part(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _by_hand(idp: IdentityProvider, algorithm: str) -> str:
    claims = {"iss": idp.issuer, "aud": idp.client_id, "exp": int(time.time()) + 60, "sub": "1"}
    return f"{_part({'alg': algorithm, 'kid': idp.key.kid})}.{_part(claims)}"


def _unsigned(idp: IdentityProvider) -> str:
    return _by_hand(idp, "none") + "."


def _with_public_key_as_secret(idp: IdentityProvider) -> str:
    text = _by_hand(idp, "HS256")
    public = idp.key.as_pem(private=False)
    return f"{text}.{_part(hmac.new(public, text.encode(), 'sha256').digest())}"


@pytest.mark.parametrize(
    "forge",
    [
        lambda idp: idp.id_token(aud="another-client"),
        lambda idp: idp.id_token(aud=[idp.client_id, "x"], azp="another-client"),
        lambda idp: idp.id_token(iss="https://evil.example"),
        lambda idp: idp.id_token(exp=int(time.time()) - 3600),
        lambda idp: idp.id_token(exp=None),
        lambda idp: idp.id_token(sub=None),
        lambda idp: idp.id_token(sub=""),
        lambda idp: idp.id_token(sub=["a"]),
        lambda idp: idp.id_token(key=RSAKey.generate_key(2048, auto_kid=True)),
        lambda idp: idp.id_token(
            key=RSAKey.generate_key(2048), header={"alg": "RS256", "kid": idp.key.kid}
        ),
        _unsigned,
        _with_public_key_as_secret,
        lambda idp: idp.id_token()[:-4] + "AAAA",
        lambda _: "eyJ.eyJ.x",
        lambda _: "ey..",
    ],
)
def test_id_token__that_is_forged_or_for_another_is_refused(bare, idp, forge):
    assert code_of(bare.post(BASE, headers=bearer(forge(idp)))) == (401, "IDENTITY")


def test_grants__go_by_verified_addresses_alone(make_settings, idp):
    provider = oidc.Provider(
        idp.issuer,
        idp.client_id,
        {"admin": ["root@example.org"], "submit": ["@example.org"], "read": ["abc", "@x.org"]},
    )

    def scope(**claims):
        try:
            return provider.person(idp.id_token(**claims)).scope
        except oidc.IdentityError as error:
            return "none" if "may not use" in error.message else error.message

    assert scope(email="ROOT@example.org") == "admin"
    assert scope(email="ada@example.org") == "submit"
    assert scope(email="root@example.org", email_verified=False) == "none"
    assert scope(email="root@example.org", email_verified="true") == "none"
    assert scope(email="a@sub.example.org") == "none"
    assert scope(email="a@example.org@evil.example") == "none"
    assert scope(email="ada@x.org") == "read"
    assert scope(email=None, sub="abc") == "read"
    assert scope(email=None, sub="root@example.org") == "none"
    assert scope(email=None, sub="@example.org") == "none"
    assert scope(email=None, sub="admin") == "none"
    assert scope(email=None, sub="*") == "none"


def test_grants__taken_away_end_at_once(make_settings, idp):
    def app(**changes):
        made = create_app(settings_of(make_settings, idp, **changes), housekeeping=False)
        return TestClient(made, base_url="http://127.0.0.1")

    with app() as first:
        held = session(first, idp.id_token())
    with app(oidc_submitters=("somebody@else.org",)) as second:
        me = second.get(f"{BASE}/current", headers=bearer(held)).json()
        assert me["scope"] == "read"
    with app(oidc_readers=("somebody@else.org",), oidc_submitters=()) as third:
        assert code_of(third.get("/api/v1/runs", headers=bearer(held))) == (401, "SESSION_ENDED")
    with app(oidc_client_id="another-client") as fourth:
        assert code_of(fourth.get("/api/v1/runs", headers=bearer(held))) == (401, "SESSION_ENDED")


def test_keys__are_asked_for_again_when_they_changed_but_not_by_anybodys_nonsense(
    make_settings, idp, monkeypatch
):
    provider = oidc.Provider(idp.issuer, idp.client_id, {"read": ["*"]})
    before = idp.asked_for_keys
    provider.person(idp.id_token())
    for _ in range(20):
        with pytest.raises(oidc.IdentityError):
            provider.person(idp.id_token(key=RSAKey.generate_key(2048, auto_kid=True)))
    assert idp.asked_for_keys == before + 1
    old = idp.key
    monkeypatch.setattr(idp, "key", RSAKey.generate_key(2048, auto_kid=True))
    monkeypatch.setattr(provider, "_asked_at", -1e9)
    assert provider.person(idp.id_token()).scope == "read"
    with pytest.raises(oidc.IdentityError):
        provider.person(idp.id_token(key=old))


def test_provider__that_does_not_answer_lets_nobody_in_and_nobody_wait(make_settings):
    from tests.conftest import free_port

    provider = oidc.Provider(f"http://127.0.0.1:{free_port()}", "c", {"read": ["*"]})
    with pytest.raises(oidc.IdentityError, match="does not answer"):
        provider.person("eyJhbGciOiJSUzI1NiJ9.e30.AAAA")


def test_settings__half_of_them_are_refused(make_settings):
    for changes, named in (
        ({"oidc_issuer": "https://idp.example"}, "CALIFT_OIDC_CLIENT_ID"),
        ({"oidc_issuer": "https://idp.example", "oidc_client_id": "c"}, "CALIFT_OIDC_READERS"),
    ):
        with pytest.raises(SpecError, match=named):
            create_app(make_settings(**changes), housekeeping=False)


def test_without_a_provider__an_id_token_is_no_token(make_settings, idp):
    with TestClient(create_app(make_settings(), housekeeping=False), "http://127.0.0.1") as caller:
        assert code_of(caller.post(BASE, headers=bearer(idp.id_token())))[0] == 401
