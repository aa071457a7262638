"""Settings: defaults, what they refuse, and the token file."""

import os
import stat
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from backend.__main__ import main
from backend.main import create_app
from backend.settings import Settings, check_token, load_settings, new_token, read_or_make_token
from calift_core.errors import SpecError, StorageError
from tests.conftest import at_once

TOKEN = "ci." + "s" * 32


def test_settings__defaults_live_in_the_home(home):
    settings = load_settings()
    assert settings.database_url == f"sqlite:///{home}/calift.db"
    assert settings.broker_url == f"redis+socket://{home}/run/broker.sock?virtual_host=0"
    assert settings.artifacts_dir == home / "artifacts"
    assert settings.is_loopback
    assert settings.allow_remote_models
    settings.check_exposure()


def test_settings__come_from_the_environment(home, monkeypatch):
    monkeypatch.setenv("CALIFT_PORT", "9000")
    monkeypatch.setenv("CALIFT_ALLOWED_HOSTS", "a.example, b.example")
    monkeypatch.setenv("CALIFT_DATA_ROOTS", f"/data{os.pathsep}/more")
    settings = load_settings()
    assert settings.port == 9000
    assert settings.hosts == ("a.example", "b.example")
    assert settings.data_roots == (Path("/data"), Path("/more"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "calift.example"])
def test_exposure__needs_token_and_host_names(home, host):
    with pytest.raises(SpecError, match="CALIFT_TOKEN .* and CALIFT_ALLOWED_HOSTS"):
        create_app(Settings(host=host))
    with pytest.raises(SpecError, match="CALIFT_ALLOWED_HOSTS"):
        create_app(Settings(host=host, token=TOKEN))
    settings = Settings(host=host, token=TOKEN, allowed_hosts=["calift.example"])
    settings.check_exposure()
    assert not settings.allow_remote_models
    assert not (home / "token").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "localhost", "::1"])
def test_exposure__loopback_needs_nothing(home, host):
    Settings(host=host).check_exposure()


def test_settings__heartbeat_must_fit_the_lease(home):
    with pytest.raises(ValidationError, match="heartbeat_s must be less than lease_ttl_s"):
        Settings(heartbeat_s=60, lease_ttl_s=60)


@pytest.mark.parametrize("token", ["", "x", "id.", ".secretsecretsecret", "id.short", "id.ü" * 9])
def test_token__of_the_wrong_form_is_refused(token):
    with pytest.raises(SpecError, match="id.secret"):
        check_token(token, "CALIFT_TOKEN")


def test_token__made_once_for_its_owner_alone(tmp_path):
    path = tmp_path / "new" / "token"
    found = at_once(*[lambda: read_or_make_token(path)] * 8)
    assert len(set(found)) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["token"]
    assert found[0] != new_token()


def test_token__file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "token"
    path.write_text(new_token())
    path.chmod(0o644)
    with pytest.raises(StorageError, match="chmod 600"):
        read_or_make_token(path)


def test_settings__never_show_the_token(home):
    assert "s" * 32 not in repr(Settings(token=TOKEN))


@pytest.fixture
def backend(home, monkeypatch, capsys):
    """`python -m backend` in this process: status, stdout and stderr."""
    monkeypatch.setattr("backend.__main__.set_up", lambda *_, **__: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["backend", *arguments])
        status = main()
        return (status, *capsys.readouterr())

    return run


def test_main__exposed_bind_says_why_it_does_not_start(backend, monkeypatch):
    monkeypatch.setenv("CALIFT_HOST", "0.0.0.0")
    status, _, error = backend()
    assert status == 2
    assert "can be reached from other machines" in error


def test_main__tokens_are_made_shown_and_revoked(backend, sqlite_url, monkeypatch):
    monkeypatch.setenv("CALIFT_DATABASE_URL", sqlite_url)
    _, made, _ = backend("token", "add", "ci", "--scope", "read", "--days", "1")
    made = made.strip()
    identity, _, secret = made.partition(".")
    settings = Settings(database_url=sqlite_url, broker_url="memory://")
    with TestClient(create_app(settings, housekeeping=False), base_url="http://localhost") as api:
        headers = {"Authorization": f"Bearer {made}"}
        assert api.get("/api/v1/runs", headers=headers).status_code == 200
        assert api.post("/api/v1/runs", headers=headers, json={"spec": {}}).status_code == 403
        _, listed, _ = backend("token", "list")
        assert listed == f"{identity}\tread\tvalid\tci\n"
        assert secret not in listed
        assert backend("token", "revoke", identity)[0] == 0
        assert api.get("/api/v1/runs", headers=headers).status_code == 401
    status, answer, error = backend("token", "revoke", identity)
    assert (status, answer) == (2, "")
    assert "no token" in error
