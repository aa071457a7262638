"""An exported folder on its way to a hub: what is said first, and what a hub receives."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from calift.commands.main import app
from calift_core.errors import CheckpointError, ModelUnavailableError, SpecError
from calift_core.shipping.choosing import choose_calibrator, save_choice
from calift_core.shipping.export import export_run
from calift_core.shipping.push import prepare_upload, push
from tests.core.conftest import tiny_spec
from tests.core.jobs.test_job import go


@pytest.fixture(scope="module")
def exported(tmp_path_factory, configs, photos):
    """A zero-shot model, exported: not to be changed."""
    run = tmp_path_factory.mktemp("pushed") / "run"
    go(tiny_spec("zero_shot", configs, photos), run)
    save_choice(run, choose_calibrator(run, "temperature"))
    return export_run(run, run.parent / "model").folder


class Hub(ThreadingHTTPServer):
    """What of the hub's protocol a push needs: it keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.requests = []
        self.created = []
        self.files = {}
        self.is_private = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests look at what was asked."""

    def answer(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.server.requests.append(f"GET {self.path}")
        if self.headers["Authorization"] != "Bearer hf_right":
            self.answer({"error": "who are you"}, 401)
            return
        self.answer({"id": "lab/photos", "private": self.server.is_private, "tags": []})

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer hf_right":
            self.answer({"error": "who are you"}, 401)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(raw))
            self.answer({"url": f"{self.server.url}/lab/photos", "id": "lab/photos"})
        elif self.path.endswith("/preupload/main"):
            files = [f | {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for f in json.loads(raw)["files"]]  # fmt: skip
            self.answer({"files": files})
        elif self.path == "/api/validate-yaml":  # the head of the model card
            self.answer({"errors": [], "warnings": []})
        else:
            for line in raw.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            self.answer({"commitUrl": f"{self.server.url}/lab/photos/commit/1", "commitOid": "1"})


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_parcel__names_what_the_export_wrote_and_nothing_else(exported, tmp_path):
    what = prepare_upload(exported, "lab/photos")
    assert {*what.files} == {path.name for path in exported.iterdir()}
    assert what.size == sum(path.stat().st_size for path in exported.iterdir())
    assert what.private
    assert not what.kept
    (exported / "notes.txt").write_text("my own")
    try:
        assert prepare_upload(exported, "lab/photos").kept == ("notes.txt",)
        assert prepare_upload(exported, "lab/photos").files == what.files
    finally:
        (exported / "notes.txt").unlink()
    with pytest.raises(CheckpointError, match="no exported model"):
        prepare_upload(tmp_path, "lab/photos")


@pytest.mark.parametrize("name", ["photos", "", "lab/", "/photos", "a/b/c", "lab/ph otos"])
def test_parcel__what_is_no_name_of_a_repository_is_refused(exported, name):
    with pytest.raises(SpecError, match="ORG/NAME"):
        prepare_upload(exported, name)


def test_push__the_hub_receives_every_file_in_a_private_repository_or_says_why_not(exported, hub):
    push(prepare_upload(exported, "lab/photos"), token="hf_right")
    assert hub.files == {path.name: path.read_bytes() for path in exported.iterdir()}
    (created,) = hub.created
    assert created["visibility"] == "private"
    assert (created["organization"], created["name"]) == ("lab", "photos")
    hub.is_private = False
    hub.files.clear()
    with pytest.raises(SpecError, match="already and public.*nothing was sent"):
        push(prepare_upload(exported, "lab/photos"), token="hf_right")
    assert not hub.files
    push(prepare_upload(exported, "lab/photos", private=False), token="hf_right")
    assert hub.files


def test_push__a_token_that_the_hub_does_not_know_is_an_error(exported, hub):
    with pytest.raises(SpecError, match="refuses lab/photos"):
        push(prepare_upload(exported, "lab/photos"), token="hf_wrong")
    assert not hub.files


def test_push__without_a_network_it_says_so_at_once(exported, hub, monkeypatch):
    gone = prepare_upload(exported, "lab/photos")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailableError, match="HF_HUB_OFFLINE is set.*nothing was sent"):
        push(gone, token="hf_right")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ModelUnavailableError, match="cannot be reached.*nothing was sent"):
        push(gone, token="hf_right")


def test_command__sends_nothing_without_yes(exported, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    output = CliRunner().invoke(app, ["push", str(exported), "lab/photos"])
    assert output.exit_code == 0, output.output
    assert "seen by its owner alone" in " ".join(output.output.split())
    assert "Nothing was sent" in output.output
    assert not hub.requests
    assert CliRunner().invoke(app, ["push", str(exported), "lab/photos", "--yes"]).exit_code == 0
    assert len(hub.files) == len(list(exported.iterdir()))
