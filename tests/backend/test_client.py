"""The typed client against a served API: one view of everything, and errors that help."""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import httpx2 as httpx
import pytest

from backend.main import create_app
from calift_core.client import Client, connection
from calift_core.errors import CaliftError, ServiceError, ServiceUnavailableError, StorageError
from calift_core.predictions.read import read_predictions
from calift_core.schema import records as r
from tests.conftest import example_predictions, free_port, serving, spec_of, until


def test_client__every_method_against_the_service(client, services, finished_run, tmp_path):
    assert client.health().status == "ok"
    assert client.ready().checks == ["database", "schema", "broker", "artifacts", "disk"]
    store, artifacts = services.store, services.artifacts
    done = [finished_run(store, artifacts, seed=s, name=f"done {s}") for s in (0, 0)]
    queued = client.submit(spec_of(), priority=2)
    assert (queued.phase, queued.priority) == ("QUEUED", 2)
    assert client.run(queued.id) == queued
    assert client.validate({"name": "x", "method": {"kind": "carot"}, "train": {"lr": 2}}).errors
    assert client.validate(spec_of()).valid
    assert {run.id for run in client.all_runs(limit=1)} == {*done, queued.id}
    assert [run.id for run in client.runs(phase=["QUEUED"]).items] == [queued.id]
    assert client.patch(queued.id, tags=["t"], archived=True).tags == ["t"]
    assert client.runs(archived="any", tag=["t"]).total == 1
    assert client.runs(archived=True).total == 1
    assert client.cancel(queued.id).phase == "CANCELLED"
    assert client.retry(queued.id).phase == "QUEUED"
    clone = client.clone(queued.id, {"train": {"seed": 7}}, name="clone")
    assert (clone.seed, clone.cloned_from) == (7, queued.id)
    client.delete(clone.id)

    run_id = done[0]
    more = client.continue_run(run_id, 1, name="more")
    assert (more.name, more.spec["train"]["initial_run"]) == ("more", run_id)
    client.delete(more.id)
    assert client.metrics(run_id, names=["loss"], max_points=5).last_step == 20
    events = list(client.events(run_id))
    assert events == client.events_after(run_id)
    assert list(client.events(run_id, after=events[2].id)) == events[3:]
    assert client.checkpoints(run_id) == []
    artifacts_ = client.artifacts(run_id)
    assert [a.name for a in artifacts_] == ["predictions/id.parquet", "predictions/sketch.parquet"]
    path = client.download_artifact(run_id, artifacts_[0].name, tmp_path / "a.parquet")
    assert path.stat().st_size == artifacts_[0].size_bytes
    assert "all went well" in client.logs(run_id).text
    evaluations = client.run_evaluations(run_id)
    assert client.evaluation(evaluations[0].id) == evaluations[0]
    assert client.evaluations(run_id=[run_id]).total == 2
    assert client.reliability(evaluations[0].id, n_bins=5).n_bins == 5
    saved = client.download_predictions(evaluations[0].id, tmp_path / "p.parquet")
    assert (read_predictions(saved).logits == example_predictions(0).logits).all()
    assert [s.final for s in client.spectra(run_id)] == [False, True]
    assert client.report(run_id).summary == client.run(run_id).summary
    with pytest.raises(ServiceError, match="no frontier") as none:
        client.frontier(run_id)
    assert none.value.status == 404
    assert client.compare(run_id=done).parameters == {}
    assert client.methods()
    assert client.models()
    assert client.datasets()
    assert client.workers() == []
    assert client.stats().runs_by_phase == {"SUCCEEDED": 2, "QUEUED": 1}
    assert client.wait(run_id).phase == "SUCCEEDED"


def test_client__follows_a_run_while_it_works(client, services):
    store = services.store
    run_id = client.submit(spec_of()).id
    assert store.claims.claim(run_id, worker_id="w", ttl_s=60) is not None
    seen = []
    follower = threading.Thread(target=lambda: seen.extend(client.events(run_id)))
    follower.start()
    until(lambda: services.limits["streams"].admitted == 1, what="the stream to open")
    for step in (1, 2, 3):
        store.records.record(
            run_id, 1, [r.MetricsRecord(step=step, epoch=0.1, values={"loss": 1.0})]
        )
    store.claims.finish(
        run_id, 1, phase="FAILED", reason="OOM", message="no memory left", hint="less"
    )
    assert client.wait(run_id, 0.05, timeout_s=10).reason == "OOM"
    follower.join(20)
    assert not follower.is_alive()
    assert seen == client.events_after(run_id)
    until(lambda: services.limits["streams"].admitted == 0, what="the stream to close")


def test_client__stream_survives_a_service_that_restarts(settings):
    first, second = (create_app(settings, housekeeping=False) for _ in range(2))
    port = free_port()
    seen = []
    with Client(f"http://127.0.0.1:{port}", settings.admin_token()) as client:
        with serving(first, port):
            store = first.state.services.store
            run_id = client.submit(spec_of()).id
            store.claims.claim(run_id, worker_id="w", ttl_s=60)
            follower = threading.Thread(target=lambda: seen.extend(client.events(run_id)))
            follower.start()
            until(lambda: len(seen) == 2, what="the first events")
        assert follower.is_alive(), "an ended stream is not an ended run"
        with serving(second, port):
            second.state.services.store.claims.finish(run_id, 1, phase="SUCCEEDED")
            follower.join(30)
            assert not follower.is_alive()
            assert seen == client.events_after(run_id)
            assert len(seen) == 3


def test_client__wait_gives_up_in_time(client):
    run_id = client.submit(spec_of()).id
    with pytest.raises(TimeoutError, match=run_id):
        client.wait(run_id, 0.05, timeout_s=0.2)


def test_client__errors_carry_the_servers_sentence_and_hint(client):
    with pytest.raises(ServiceError, match="there is no run 'nobody'") as caught:
        client.run("nobody")
    assert caught.value.status == 404
    assert caught.value.problem["code"] == "NOT_FOUND"
    bad = {"name": "x", "method": {"kind": "carot"}, "train": {"lr": 2, "epochs": 0}}
    with pytest.raises(ServiceError, match="#/spec/train/epochs") as caught:
        client.submit(bad)
    assert caught.value.status == 422
    done = client.submit(spec_of())
    for evil in ("../workers", "..", ".", "a/b", "%2e%2e"):
        with pytest.raises(ServiceError) as caught:
            client.run(evil)
        assert caught.value.status in (404, 405), evil
    assert client.run(done.id)


def test_client__a_service_that_does_not_answer_in_time_is_not_told_as_none(home):
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections and says nothing
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url, "a.b", timeout_s=0.25) as client:
            with pytest.raises(ServiceUnavailableError) as read:
                client.runs()
            with pytest.raises(ServiceUnavailableError) as sent:
                client.submit(spec_of())
    for caught in (read, sent):
        assert f"{url} has not answered within 0.25 s; it may be busy" in caught.value.message
        assert "calift up" not in caught.value.hint
        assert "Try again" in caught.value.hint


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda _: httpx.Response(404, text="hi"), "not as calift"),
        (lambda _: httpx.Response(200, json={"status": "fine"}), "same version"),
    ],
    ids=["something else", "another version"],
)
def test_client__what_answers_and_is_not_this_calift_is_named(home, answer, words):
    transport = httpx.MockTransport(answer)
    with (
        Client("http://127.0.0.1:1", "a.b", transport=transport) as client,
        pytest.raises(ServiceError, match=words),
    ):
        client.health()


def test_client__submit_whose_answer_was_lost_is_asked_for_again(app, settings, served):
    lost = []

    class Losing(httpx.HTTPTransport):
        """Delivers the first request and loses its answer."""

        def handle_request(self, request):
            response = super().handle_request(request)
            if request.method == "POST" and not lost:
                response.read()
                response.close()
                lost.append(request.headers["idempotency-key"])
                raise httpx.ReadError("connection reset")
            return response

    with Client(served, settings.admin_token(), transport=Losing()) as client:
        run = client.submit(spec_of())
        assert lost
        assert [r.id for r in client.runs().items] == [run.id]


def test_client__damaged_download_leaves_no_file(
    client, services, finished_run, tmp_path, settings
):
    run_id = finished_run(services.store, services.artifacts)

    class Damaging(httpx.HTTPTransport):
        def handle_request(self, request):
            response = super().handle_request(request)
            body = bytearray(response.read())
            body[10] ^= 1
            response.close()
            headers = {"etag": response.headers["etag"]}
            return httpx.Response(200, headers=headers, content=bytes(body))

    target = tmp_path / "out" / "p.parquet"
    with (
        Client(client.base_url, settings.admin_token(), transport=Damaging()) as other,
        pytest.raises(StorageError, match="damaged"),
    ):
        other.download_artifact(run_id, "predictions/id.parquet", target)
    assert list(target.parent.iterdir()) == []


@pytest.fixture
def no_address(home, monkeypatch):
    """A home and nothing that names a service."""
    for name in ("CALIFT_API_URL", "CALIFT_PORT", "CALIFT_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return home


def say_running(home: Path, url: str, pid: int) -> None:
    (home / "run").mkdir(exist_ok=True)
    state = {"pid": pid, "urls": {"api": url}, "pids": {}, "logs": ""}
    (home / "run" / "stack.json").write_text(json.dumps(state))


def test_client__follows_the_stack_that_runs(served, settings, no_address, monkeypatch):
    say_running(no_address, served, os.getpid())
    settings.admin_token()
    with Client() as client:
        assert client.base_url == served
        assert client.runs().total == 0
    # The stack that runs is asked, whatever port one would be started on next.
    monkeypatch.setenv("CALIFT_PORT", "1")
    with Client() as client:
        assert client.base_url == served
    monkeypatch.setenv("CALIFT_API_URL", "http://calift.example/api/v1/")
    with Client() as client:
        assert client.base_url == "http://calift.example"


def test_client__port_of_the_environment_where_no_stack_runs(
    served, settings, no_address, monkeypatch
):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    say_running(no_address, "http://127.0.0.1:1", gone.pid)
    with Client() as client:
        assert client.base_url == "http://127.0.0.1:8000", "a stack that was killed is not asked"
    monkeypatch.setenv("CALIFT_PORT", served.rpartition(":")[2])
    settings.admin_token()
    with Client() as client:
        assert client.base_url == served
        assert client.runs().total == 0
    for broken in ("", "[]", '{"pid": 1e400}', '{"pid": "x", "urls": {}}', "\x00"):
        (no_address / "run" / "stack.json").write_text(broken)
        with Client() as client:
            assert client.base_url == served


def test_client__token_that_is_refused_names_the_address_and_where_both_came_from(
    served, no_address, monkeypatch
):
    (no_address / "token").write_text("x.yyyyyyyyyyyyyyyyyyyyyyy")
    monkeypatch.setenv("CALIFT_PORT", served.rpartition(":")[2])
    with Client() as client, pytest.raises(ServiceError) as caught:
        client.runs()
    assert caught.value.message == f"{served} says: the token is not valid."
    assert str(no_address / "token") in caught.value.hint
    assert "CALIFT_PORT" in caught.value.hint
    monkeypatch.setenv("CALIFT_API_URL", served)
    monkeypatch.setenv("CALIFT_TOKEN", "z.yyyyyyyyyyyyyyyyyyyyyyy")
    with Client() as client, pytest.raises(ServiceError) as caught:
        client.runs()
    assert "CALIFT_API_URL" in caught.value.hint
    assert "from CALIFT_TOKEN" in caught.value.hint


def test_client__no_answer_says_why_that_address_was_asked(no_address, monkeypatch):
    port = free_port()
    monkeypatch.setenv("CALIFT_PORT", str(port))
    with Client() as client, pytest.raises(ServiceUnavailableError) as caught:
        client.health()
    assert f"127.0.0.1:{port}" in caught.value.message
    assert "calift up" in str(caught.value)
    assert "CALIFT_PORT" in caught.value.hint


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("localhost:8000", "a.b"),
        ("ftp://127.0.0.1", "a.b"),
        ("http://127.0.0.1:port", "a.b"),
        ("http://[::1", "a.b"),
        ("", "a.b"),
        ("http://127.0.0.1:1", "ü.ö"),
        ("http://127.0.0.1:1", "a.b\nc"),
    ],
)
def test_client__address_or_token_that_cannot_be_used_is_a_sentence(
    no_address, monkeypatch, url, token
):
    monkeypatch.setenv("CALIFT_API_URL", url)
    monkeypatch.setenv("CALIFT_TOKEN", token)
    monkeypatch.setenv("CALIFT_PORT", str(free_port()))
    with pytest.raises(CaliftError), Client() as client:
        client.health()


def test_client__reads_the_authorities_once_and_again_where_others_are_named(monkeypatch, tmp_path):
    read = []

    def reading(**how):
        read.append(how["trust_env"])
        return ssl.create_default_context()

    monkeypatch.setattr(connection.httpx, "create_ssl_context", reading)
    connection._certificates.cache_clear()
    for _ in range(3):
        Client("https://calift.example", "a.token").close()
        Client("http://127.0.0.1:8000", "a.token").close()
    assert read == [True, False]  # what the environment names is not for a service of our own
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ours.pem"))
    Client("https://calift.example", "a.token").close()
    assert read == [True, False, True]
    connection._certificates.cache_clear()
