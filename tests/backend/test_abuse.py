"""What a hostile or careless caller may send, on both databases: never a 5xx, never a stale answer.

Every parameter of every operation and every field of a RunSpec is given nasty values in turn: in
`make fuzz` every value, each database every other pair; else every eighth, so that each value still
comes to all kinds of places, and each place sees several.
"""

import json
import logging
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
import pytest

from backend.http.problems import MEDIA_TYPE
from backend.main import create_app
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.wire.service import Problem
from tests.conftest import SEARCH, serving, spec_of

#: A database sees one pair in so many. Prime to the numbers of values, which are odd: the values
#: that a place is spared are those that the next places are given.
SHARE = 2 if SEARCH else 16

#: Sent as they are, percent-encoded where a URL needs it.
TEXTS = [
    "", " ", "0", "-1", "-0.0", "1e999", "nan", "inf", "-inf", "9" * 400, str(2**63),
    str(-(2**63) - 1), str(2**31), "0x10", "1_000", "٣", "true", "null", "[]", "{}",
    "'; DROP TABLE runs; --", "%", "_", "\\", "../../etc/passwd", "..", ".", "a/b", "\t\r\n",
    "\x7f", "\u202e", "é" * 200, "🙂" * 100, "x" * 5000,
]  # fmt: skip
#: Percent-encoded bytes that are no text: half a surrogate pair, a lone continuation, NUL.
BYTES = ["%ED%A0%80", "%FF", "%80%80", "%00", "a%00b", "%C0%AF", "%uD800"]

#: JSON values for every field.
VALUES: list[Any] = [
    None, True, -1, 0, 2**31, 2**53 + 1, 2**63, 2**64, 10**400, -(10**30), 1e308, 5e-324, -0.0,
    float("nan"), float("inf"), "", "a\x00b", "\ud800", "\udfff\ud800", "x" * 100_000, [], [[]],
    ["\ud800"], {}, {"": ""}, {"\ud800": 1}, {"a\x00": 1},
]  # fmt: skip


ALIVE = {"name": "alive", "method": {"kind": "zero_shot"}}


@pytest.fixture
def database_url(each_database):
    """Each kind of database has values of its own that it cannot hold."""
    return each_database


#: Of what comes no further than the HTTP layer.
ON_SQLITE = pytest.mark.parametrize("each_database", ["sqlite"], indirect=True)


@pytest.fixture
def settings(make_settings, database_url):
    """Nobody is held back for asking often."""
    return make_settings(
        database_url=database_url, requests_per_minute=10_000_000, max_queued=1_000_000
    )


class Service:
    """A served application with a finished and a waiting run, and what it must never answer."""

    def __init__(self, app: Any, address: str, caller: httpx.Client, finished: str) -> None:
        self.app, self.address, self.caller = app, address, caller
        self.finished = finished
        self.store = app.state.services.store
        self.evaluation = self.store.results.run_evaluations(finished)[0].id
        self.waiting = self.store.runs.submit(spec_of())
        judging = EvaluationJobSpec(runs=(finished,), suites=("fashion-mnist",))
        self.judging = self.store.evaluation_jobs.submit(judging)
        claim = self.store.claims.claim(self.judging, worker_id="w", ttl_s=60)
        assert claim is not None
        # One that waits has events without an end.
        assert self.store.claims.finish(self.judging, claim.attempt, phase="SUCCEEDED")
        self._turn = 0 if self.store.engine.dialect.name == "sqlite" else SHARE // 2

    def path(self, path: str) -> str:
        """A path with its parameters filled in with what is there."""
        known = {
            "run_id": self.finished,
            "evaluation_id": self.evaluation,
            "job_id": self.judging,
            "sweep_id": "none",
            "sample_id": "image 0",
            "name": "predictions/id.parquet",
            "worker_id": "nobody",
            "view_id": "none",
            "token_id": "none",
        }
        path = path.replace("/runs/{job_id}", "/runs/{run_id}")
        return re.sub(r"\{([^}]+)\}", lambda found: known[found.group(1)], path)

    def ask(self, method: str, address: str, **options: Any) -> httpx.Response:
        """Send one request; the answer is checked for what holds of every answer."""
        response = self.caller.request(method, self.address + address, **options)
        place = f"{method} {address[:300]} {str(options)[:300]}"
        assert response.status_code < 500, f"{place}: {response.text[:2000]}"
        if response.status_code >= 400 and method != "HEAD":
            assert response.headers["content-type"] == MEDIA_TYPE, place
            found = Problem.model_validate(response.json())
            assert found.status == response.status_code, place
            assert found.request_id == response.headers["x-request-id"], place
            assert "Traceback" not in response.text, place
            assert "sqlalche" not in response.text, place
        return response

    def mine(self) -> bool:
        """Whether the next pair is this database's: one of `SHARE` is."""
        self._turn += 1
        return self._turn % SHARE == 0

    def operations(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        for path, item in self.app.openapi()["paths"].items():
            for method, operation in item.items():
                # What is deleted or logged out is missed by everything after it.
                if method != "delete":
                    yield method.upper(), path, operation

    def check_alive(self) -> None:
        """Submits answer, on every connection of the pool."""
        for _ in range(8):
            submitted = self.ask("POST", "/api/v1/runs", json=ALIVE)
            assert submitted.status_code == 202
            run_id = submitted.json()["id"]
            assert self.ask("GET", f"/api/v1/runs/{run_id}").status_code == 200
        listed = self.ask("GET", "/api/v1/runs?limit=1").json()
        assert listed["items"][0]["id"] == run_id


@pytest.fixture
def service(app, settings, finished_run, caplog):
    services = app.state.services
    headers = {"Authorization": f"Bearer {settings.admin_token()}"}
    with serving(app) as address, httpx.Client(headers=headers, timeout=60) as caller:
        found = Service(app, address, caller, finished_run(services.store, services.artifacts))
        yield found
        found.check_alive()
    blamed = [r for r in caplog.records if r.exc_info and r.levelno >= logging.ERROR]
    assert blamed == []


@pytest.mark.fuzz
def test_abuse__every_parameter_takes_every_nasty_value(service):
    assert len(TEXTS + BYTES) % 2 == len(VALUES) % 2 == 1
    tried = 0
    for method, path, operation in service.operations():
        filled = service.path(path)
        for parameter in operation.get("parameters", []):
            name, place = parameter["name"], parameter["in"]
            for text in filter(lambda _: service.mine(), [*map(quote_all, TEXTS), *BYTES]):
                if place == "path":
                    address = path.replace("{" + name + "}", text)
                    service.ask(method, service.path(address))
                elif place == "query":
                    twice = parameter["schema"].get("type") == "array"
                    again = f"&{quote(name)}={text}x" if twice else ""
                    service.ask(method, f"{filled}?{quote(name)}={text}{again}")
                else:
                    raw = text.encode("latin-1", "replace")[:4000]
                    service.ask(method, filled, headers=[(name.encode(), raw)])
                tried += 1
    assert tried > 3000 // SHARE


def quote_all(text: str) -> str:
    return quote(text, safe="", errors="surrogatepass")


def every_field(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of a JSON document, the containers too."""
    if place:
        yield place
    if isinstance(value, dict):
        for key, item in value.items():
            yield from every_field(item, (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from every_field(item, (*place, index))


def changed(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of a JSON document with another value at a place."""
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return copy


def sent(value: Any) -> dict[str, Any]:
    return {"content": json.dumps(value).encode(), "headers": {"Content-Type": "application/json"}}


@pytest.mark.fuzz
def test_abuse__every_field_of_a_spec_takes_every_nasty_value(service):
    suite = {"id": "fashion-mnist", "class_names": {"Shirt": "shirt"}}
    suite |= {"corruptions": {"names": ["fog"], "severities": [1]}}
    whole = spec_of(name="whole", tags=["a"], notes="n", suite=suite).model_dump(mode="json")
    places = list(every_field(whole))
    assert len(places) > 50
    for place in places:
        for value in filter(lambda _: service.mine(), VALUES):
            body = changed(whole, place, value)
            service.ask("POST", "/api/v1/runs", **sent(body))
    # Beside the spec, and in the bodies that change a run.
    for field in ("spec", "priority", "max_attempts", "extra", "\ud800", ""):
        for value in filter(lambda _: service.mine(), VALUES):
            service.ask("POST", "/api/v1/runs", **sent({"spec": ALIVE} | {field: value}))
            service.ask("POST", "/api/v1/runs/validate", **sent({"spec": ALIVE} | {field: value}))
    for field in ("name", "notes", "tags", "archived", "extra"):
        for value in filter(lambda _: service.mine(), VALUES):
            service.ask("PATCH", f"/api/v1/runs/{service.waiting}", **sent({field: value}))
            service.ask("POST", f"/api/v1/runs/{service.waiting}/clone", **sent({field: value}))
            service.ask(
                "POST",
                f"/api/v1/runs/{service.waiting}/clone",
                **sent({"changes": {field: value, "train": {"seed": value}}}),
            )


@ON_SQLITE
@pytest.mark.fuzz
def test_abuse__bodies_that_are_no_documents(service):
    bodies = [
        b"", b"{", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 200_000, b'{"a":' * 50_000,
        b'{"spec":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"spec":{"name":"a","name":"b","method":{"kind":"zero_shot"}}}', b"1" * 100_000,
        b'"' + b"\\ud800" * 1000 + b'"',
        b"{" + b",".join(b'"k%d":1' % i for i in range(20_000)) + b"}", b"NaN", b"Infinity",
        b"null", json.dumps(ALIVE).encode("utf-16"), json.dumps(ALIVE).encode("utf-32-be"),
        b" " * 500_000, b"x" * 2_000_000,
    ]  # fmt: skip
    kinds = [
        "application/json", "application/JSON; charset=utf-16", "application/vnd.api+json",
        "text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
        "multipart/form-data", "application/vnd.apache.parquet", "application/zip", "application/",
        ";;;", "\xff", "",
    ]  # fmt: skip
    run = f"/api/v1/runs/{service.waiting}"
    targets = [
        ("POST", "/api/v1/runs"), ("POST", "/api/v1/runs/validate"), ("PATCH", run),
        ("POST", f"{run}/clone"), ("POST", f"{run}/cancel"), ("POST", "/api/v1/predictions"),
        ("POST", "/api/v1/datasets"), ("GET", "/api/v1/runs"), ("DELETE", "/api/v1/runs/nobody"),
    ]  # fmt: skip
    for method, path in targets:
        for body in bodies:
            pairs = kinds if len(body) < 1000 else kinds[:1]
            for kind in filter(lambda _: service.mine(), pairs):
                if path.endswith("/predictions") and kind == "application/vnd.apache.parquet":
                    continue  # each of these starts a process; see test_import
                service.ask(
                    method, path, content=body, headers={"Content-Type": kind.encode("latin-1")}
                )


@ON_SQLITE
def test_abuse__addresses_and_headers(service):
    token = service.caller.headers["authorization"]
    for path in (
        "/", "//", "/api", "/api/v1//runs", "/api/v1/runs//", "/api/v1/runs/./x", "/%2e%2e/token",
        "/api/v1/runs/%2e%2e/%2e%2e/token", "/api/v1/runs;a=b", "/api/v1/RUNS",
        "/api/v1/runs/" + "x" * 30_000, "/api/v1/runs?" + "&".join(["tag=a"] * 5000),
        "/api/v1/runs?" + "q=" + "%41" * 9000, "/api/v1/runs?=&&=&a",
        "/api/v1/runs%20", "/api/v1/runs?limit=1;limit=2",
        f"/api/v1/runs/{service.finished}/artifacts/" + "a/" * 400,
        f"/api/v1/runs/{service.finished}/artifacts/%2e%2e/%2e%2e/%2e%2e/token",
        "/api/v1/compare?" + "&".join(f"run_id={i}" for i in range(500)),
    ):  # fmt: skip
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "FOO", "get"):
            if not (method == "DELETE" and service.finished in path):
                service.ask(method, path)
    file = f"/api/v1/runs/{service.finished}/artifacts/predictions/id.parquet"
    for name, value in (
        ("Range", "bytes=0-"), ("Range", "bytes=-1"), ("Range", "bytes=5-1"), ("Range", "bytes=x"),
        ("Range", "bytes=0-0,2-2,4-"), ("Range", "bytes=" + ",".join(["0-1"] * 2000)),
        ("Range", "bytes=" + "9" * 500 + "-"), ("Range", "lines=1-2"), ("If-Range", '"x"'),
        ("If-None-Match", '"' * 3000), ("If-None-Match", "x" * 10_000), ("Accept", "image/png"),
        ("Accept-Encoding", "x" * 1000), ("X-Request-ID", "a b\tc"), ("X-Request-ID", "x" * 9000),
        ("Last-Event-ID", "9" * 400), ("Last-Event-ID", "\xff"), ("Cookie", "a=" + "b" * 8000),
        ("Authorization", "Bearer"), ("Authorization", "Bearer " + "x" * 10_000),
        ("Authorization", "Bearer \xff.\xfe"), ("Authorization", "Basic YTpi"),
        ("Authorization", f"{token}, {token}"), ("Host", "evil.example"), ("Host", ""),
        ("Host", "127.0.0.1:99999999"), ("Host", "[::1"), ("X-Forwarded-For", "x" * 1000),
        ("Expect", "100-continue"), ("Idempotency-Key", "\xff"),
    ):  # fmt: skip
        for path in (file, "/api/v1/runs", "/api/v1/health", "/docs"):
            service.ask("GET", path, headers=[(name.encode(), value.encode("latin-1"))])


#: What is hardly HTTP.
RAW = [
    b"",
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /api/v1/runs HTTP/1.0\r\n\r\n",
    b"GET /api/v1/runs HTTP/1.1\r\n\r\n",
    b"GET /api/v1/\xff\xfe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /api/v1/runs?q=\xed\xa0\x80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /api/v1/runs?\xff=\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET http://evil/api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /api/v1/runs HTTP/1.1\r\nHost: a\r\nHost: 127.0.0.1\r\n\r\n",
    b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1e3\r\n\r\n",
    b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
]


def test_abuse__what_is_hardly_http(make_settings, sqlite_url, caplog):
    app = create_app(make_settings(database_url=sqlite_url), housekeeping=False)
    with serving(app) as address, httpx.Client() as caller:
        port = int(address.rpartition(":")[2])
        for raw in RAW:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
                answer = b""
                while piece := connection.recv(65536):
                    answer += piece
            assert not re.match(rb"HTTP/1\.1 (2|5)", answer), (raw, answer[:500])
            assert caller.get(f"{address}/api/v1/health").status_code == 200, raw
            assert [r for r in caplog.records if r.exc_info] == [], raw
