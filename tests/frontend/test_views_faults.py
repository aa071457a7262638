"""Pages with nothing to show, without an API, and with what people typed."""

import re
import socket

import pytest

from calift_core.client import Client
from tests.conftest import free_port
from tests.frontend.conftest import pointed_at
from tests.frontend.driving import listed, page, words


@pytest.mark.parametrize(
    "name",
    ["overview", "runs", "compare", "calibration", "frontier", "shifts", "spectra", "new", "data"],
)
def test_empty__every_page_says_what_to_do(bare, monkeypatch, name):
    with pointed_at(monkeypatch, bare.url, bare.home):
        app = page(name)
    assert not app.error
    if name not in ("new", "data"):
        assert re.search("No finished run yet|No run yet|Nothing has run", words(app))


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    with pointed_at(monkeypatch, f"http://127.0.0.1:{free_port()}", tmp_path):
        yield


@pytest.mark.parametrize("name", ["overview", "runs", "calibration", "new", "data"])
def test_unreachable__every_page_says_where_it_looked(nowhere, name):
    app = page(name)
    assert "127" in app.error[0].value
    assert "calift up" in app.error[0].value


def test_unreachable__a_service_that_is_busy_is_not_to_be_started(tmp_path, monkeypatch):
    monkeypatch.setattr("frontend.api._client", lambda url, token: Client(url, token, 0.25))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pointed_at(monkeypatch, url, tmp_path):
            output = page("runs").error[0].value.replace("\\", "")
    assert "has not answered within 0.25 s" in output
    assert "calift up" not in output


def test_unreachable__the_last_good_answer_stays_with_a_word(dashboard, monkeypatch):
    app = page("runs")
    before = listed(app)
    assert before
    monkeypatch.setenv("CALIFT_API_URL", f"http://127.0.0.1:{free_port()}")
    app.run()
    assert not app.exception
    assert [row["name"] for row in listed(app)] == [row["name"] for row in before]
    assert "received at" in app.warning[0].value


def test_names__what_people_typed_is_shown_and_not_run(bare, monkeypatch):
    with pointed_at(monkeypatch, bare.url, bare.home), Client() as client:
        notes = "<img src=x onerror=alert(1)> [link](javascript:alert(1))"
        made = client.submit(
            {"name": "a (plain) name", "method": {"kind": "flyp"}, "tags": ["<b>"],
             "notes": notes}
        )  # fmt: skip
        runs = page("runs")
        opened = page("run", id=made.id, tab="Config")
        client.cancel(made.id)
        client.delete(made.id)
    assert "<b>" not in "".join(e.proto.body for e in runs.get("html"))
    assert listed(runs)[0]["tags"] == "<b>"  # a text node, which formats nothing
    assert "<img" not in "".join(e.proto.body for e in opened.get("html"))
    assert opened.text[0].value == notes  # plain text, not Markdown
