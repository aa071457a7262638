"""A webhook hears of every end once it can be reached, signed as the standard says."""

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from sqlalchemy import text

from backend.dispatch.notifier import Notifier
from backend.settings import Settings
from backend.store.engine import reading, writing
from backend.store.stores import Stores
from calift_core.errors import SpecError
from calift_core.schema.sweep import parse_sweep
from calift_core.webhook import Event, Webhook, WebhookError, body_of, deliver, signature
from tests.conftest import spec_of

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
EVENT = Event("m1", "run.failed", 1_790_000_000.0, "a <b> & c", {"id": "r"})


class Receiver(HTTPServer):
    """A real server that keeps what it is sent and answers as it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?a=b"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append(({k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(self.server.status)
        if 300 <= self.server.status < 400:
            self.send_header("Location", self.server.url)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def receiver():
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def verified(headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """Check the signature as a receiver does, from the standard's text."""
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(KEY, content, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 300
    answer: dict[str, Any] = json.loads(body)
    return answer


def notifier(store: Stores, receiver: Receiver, **more: Any) -> Notifier:
    given = {"webhook_url": receiver.url, "webhook_secret": SECRET, "webhook_private": True}
    return Notifier(store, Settings(**(given | more)))


def ended(store: Stores, phase: Any = "SUCCEEDED") -> str:
    run_id = store.runs.submit(spec_of())
    assert store.claims.claim(run_id, worker_id="w", ttl_s=60) is not None
    assert store.claims.finish(run_id, 1, phase=phase, message="no more memory")
    return run_id


def waiting(store: Stores) -> int:
    with reading(store.engine) as connection:
        return int(connection.execute(text("SELECT count(*) FROM notifications")).scalar_one())


def test_ends__are_sent_once_signed_and_in_their_order(store, receiver):
    first, second = ended(store), ended(store, "FAILED")
    queued = store.runs.submit(spec_of())
    store.runs.request_cancel(queued)
    deliver_due = notifier(store, receiver).run_once
    deliver_due()
    deliver_due()
    answer = [verified(*each) for each in receiver.heard]
    assert [(one["type"], one["data"]["id"]) for one in answer] == [
        ("run.succeeded", first),
        ("run.failed", second),
        ("run.cancelled", queued),
    ]
    assert "has failed: no more memory" in answer[1]["text"]
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 3
    assert waiting(store) == 0


def test_ends__that_could_not_be_sent_are_sent_later_with_the_same_id(store, receiver):
    ended(store)
    receiver.status = 503
    deliver_due = notifier(store, receiver).run_once
    deliver_due()
    deliver_due()  # not yet again: it waits
    assert len(receiver.heard) == 1
    with writing(store.engine) as connection:
        connection.execute(text("UPDATE notifications SET next_at = next_at - 60"))
    receiver.status = 204
    deliver_due()
    assert len(receiver.heard) == 2
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 1
    assert waiting(store) == 0
    ended(store)
    with writing(store.engine) as connection:
        connection.execute(text("UPDATE notifications SET at = at - 300000"))
    receiver.status = 500
    deliver_due()
    assert waiting(store) == 0, "given up after two days"


def test_ends__are_not_kept_where_there_is_no_webhook(store):
    ended(store)
    Notifier(store, Settings()).run_once()
    assert waiting(store) == 0


@pytest.mark.parametrize(
    "url",
    ["ftp://h", "http://", "http://u:p@h/", "http://h:0/", "http://h:99999/", "http://[::1/",
     f"http://{'a' * 64}.org/", "http://a..b/"],
)  # fmt: skip
def test_address__that_is_none_is_refused_before_anything_has_ended(store, url):
    with pytest.raises(SpecError, match="a webhook must be"):
        Notifier(store, Settings(webhook_url=url))


def test_end__that_is_being_delivered_keeps_no_other_waiting(store):
    first, second = ended(store), ended(store)
    taken = [store.notifications.take() for _ in range(3)]
    assert [each and each.subject for each in taken] == [first, second, None]


def test_delivery__goes_to_the_next_address_where_one_takes_no_connection(receiver, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
            for port in (closed.getsockname()[1], receiver.server_port)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        deliver(Webhook("http://two.example/", private=True), EVENT, now=0)
    assert len(receiver.heard) == 1


def test_delivery__goes_to_public_addresses_alone_and_follows_no_redirect(receiver):
    for url in (receiver.url, receiver.url.replace("127.0.0.1", "localhost")):
        with pytest.raises(WebhookError, match="is no public address"):
            deliver(Webhook(url), EVENT, now=0)
    with pytest.raises(WebhookError, match=r"169.254.169.254 is no public address"):
        deliver(Webhook("http://169.254.169.254/latest", private=True), EVENT, now=0)
    assert receiver.heard == []
    receiver.status = 302
    with pytest.raises(WebhookError, match="answered with 302"):
        deliver(Webhook(receiver.url, private=True), EVENT, now=0)
    assert len(receiver.heard) == 1
    assert "webhook-signature" not in receiver.heard[0][0]


def test_body__in_slacks_form_is_a_text_that_names_nobody():
    assert json.loads(body_of(EVENT, "slack")) == {"text": "a &lt;b&gt; &amp; c"}
    assert json.loads(body_of(EVENT, "json"))["timestamp"] == "2026-09-21T14:13:20+00:00"


def test_signature__is_the_example_of_the_standard():
    """The example of its reference libraries."""
    found = signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1_614_265_330,
        b'{"test": 2432232314}',
    )
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    with pytest.raises(SpecError, match="base64"):
        Webhook("https://example.org", "whsec_no base64!")


def test_sweep__is_announced_at_its_end_and_its_runs_only_where_they_fail(store, receiver):
    sweep_id = store.sweeps.create(
        parse_sweep({"name": "s", "methods": ["flyp"]}),
        methods=["flyp"], estimate=[None], runs_at_most=2, token_id="", submitted_by="ada",
    )  # fmt: skip
    for phase in ("SUCCEEDED", "FAILED"):
        run_id = ended(store, phase)
        with writing(store.engine) as connection:
            connection.execute(
                text("UPDATE runs SET sweep_id = :sweep, sweep_key = :key WHERE id = :run"),
                {"sweep": sweep_id, "key": phase, "run": run_id},
            )
    assert store.sweeps.move(sweep_id, "SUCCEEDED", before=["RUNNING"])
    assert not store.sweeps.move(sweep_id, "SUCCEEDED", before=["RUNNING"])
    notifier(store, receiver).run_once()
    types = [verified(*each)["type"] for each in receiver.heard]
    assert types == ["run.failed", "sweep.succeeded"]
    assert waiting(store) == 0
