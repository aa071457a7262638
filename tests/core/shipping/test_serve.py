"""`calift serve` with real processes: the same answers, limits, strangers' files, kill -9."""

import asyncio
import io
import os
import signal
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from typer.testing import CliRunner

from calift.commands.main import app
from calift.serving.app import Limits, Server, make_app
from calift_core.child_process import Child, ChildEndedError
from calift_core.errors import SpecError
from calift_core.jobs.folder import run_in_folder
from calift_core.shipping.choosing import choose_calibrator, save_choice
from calift_core.shipping.classifier import CalibratedClassifier
from tests.conftest import SEARCH, free_port, until
from tests.core.conftest import tiny_spec

LIMITS = Limits(image_bytes=3_000_000, request_bytes=6_000_000, images=8, pixels=4_000_000)
TOKEN = "a token of this test"


class Served:
    """A server in a thread of this process; its model and its decoders are processes."""

    def __init__(self, model: Path, token: str | None = None) -> None:
        self.server = Server(model, device="cpu", limits=LIMITS)
        port = free_port()
        config = uvicorn.Config(make_app(self.server, token), port=port, log_level="error")
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, daemon=True)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)

    def __enter__(self) -> "Served":
        self.thread.start()
        until(lambda: self.uvicorn.started or not self.thread.is_alive(), timeout_s=120,
              what="the server")  # fmt: skip
        assert self.thread.is_alive()
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.close()
        self.uvicorn.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()
        assert all(child._process is None for child in self.children)

    @property
    def children(self) -> list[Child]:
        return [*self.server.workers, *self.server.decoders]

    def predict(self, image: bytes, **params: Any) -> httpx.Response:
        return self.client.post("/predict", content=image, params=params)


@pytest.fixture(scope="module")
def model(tmp_path_factory, configs, photos):
    folder = tmp_path_factory.mktemp("served") / "run"
    list(run_in_folder(tiny_spec("zero_shot", configs, photos), folder))
    save_choice(folder, choose_calibrator(folder, "temperature"))
    return folder


@pytest.fixture(scope="module")
def served(model):
    with Served(model) as served:
        yield served


@pytest.fixture(scope="module")
def files(photos):
    return sorted(photos.rglob("*.png"))


def png(width: int, height: int, level: int = 90) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (level, 20, 30)).save(out, "PNG")
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that claims to be so large."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_predict__answers_as_the_model_does_alone_and_together(served, model, files):
    expected = CalibratedClassifier.load(model, device="cpu").predict(files[:24]).top(3)
    alone = [served.predict(file.read_bytes(), top=3).json()["answers"][0] for file in files[:24]]
    with ThreadPoolExecutor(12) as threads:  # these share passes
        at_once = list(
            threads.map(lambda f: served.predict(f.read_bytes(), top=3).json(), files[:24])
        )
    form = [("images", (f.name, f.read_bytes(), "image/png")) for f in files[:6]]
    together = served.client.post("/predict", files=form, params={"top": 3}).json()["answers"]
    for i, guesses in enumerate(expected):
        output = [alone[i], at_once[i]["answers"][0], *together[i : i + 1]]
        for answer in output:
            assert answer["label"] == guesses[0][0] == answer["top"][0]["label"]
            probs = [guess["probability"] for guess in answer["top"]]
            assert probs == pytest.approx([p for _, p in guesses], abs=1e-5)
            assert answer["confidence"] == probs[0]
    # 14 images of validation have a threshold for one false alarm in ten.
    unlike = CalibratedClassifier.load(model, device="cpu").tells_unlike()
    logits = CalibratedClassifier.load(model, device="cpu").predict(files[:24]).logits
    alarms = unlike.alarms(logits, 0.1)
    for file, alarm in zip(files[:24], alarms.tolist(), strict=True):
        (answer,) = served.predict(file.read_bytes(), false_alarms=0.1).json()["answers"]
        assert (answer["none_of_these"], answer["false_alarms"]) == (alarm, 0.1)
    assert alone[0]["none_of_these"] is alone[0]["false_alarms"] is None  # 0.05: too few images
    refused = served.predict(files[0].read_bytes(), false_alarms=0.3)
    assert (refused.status_code, "0.01, 0.05, 0.1, got 0.3" in refused.text) == (422, True)
    reply = served.client.get("/model").json()
    assert reply["none_of_these"] == unlike.model_dump(mode="json")
    assert (reply["calibrator"], len(reply["classes"])) == ("temperature", 3)
    assert "/predict" in served.client.get("/openapi.json").json()["paths"]
    assert 'calift_serve_requests_total{status="200"}' in served.client.get("/metrics").text


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"", "image/png", 422, "UNREADABLE_IMAGE"),
        (b"GIF89a, or so it says", "image/gif", 422, "UNREADABLE_IMAGE"),
        (b'{"url": "http://127.0.0.1/a.png"}', "application/json", 415, "NOT_AN_IMAGE"),
        (b"no form", "multipart/form-data", 400, "BAD_FORM"),
        (b"no form", "multipart/form-data; boundary=x", 400, "BAD_FORM"),
        (b"--x\r\nnot a header", "multipart/form-data; boundary=x", 400, "BAD_FORM"),
        (bytes(3_000_001), "image/png", 413, "TOO_LARGE"),
    ],
)  # fmt: skip
def test_predict__what_is_wrong_is_a_problem_with_a_sentence(content, kind, status, code, served):
    output = served.client.post("/predict", content=content, headers={"content-type": kind})
    assert (output.status_code, output.json()["code"]) == (status, code)
    assert output.headers["content-type"] == "application/problem+json"
    assert output.json()["detail"]


def test_problems__are_one_form_whatever_is_wrong_with_a_request(served):
    for output, code in (
        (served.client.get("/nothing"), "NOT_FOUND"),
        (served.client.get("/predict"), "METHOD_NOT_ALLOWED"),
        (served.predict(b"x", top="many"), "INVALID_REQUEST"),
        (served.predict(bomb(4_000, 1_001)), "UNREADABLE_IMAGE"),
        (served.predict(bomb(40_000, 40_000)), "UNREADABLE_IMAGE"),
    ):
        assert output.headers["content-type"] == "application/problem+json"
        problem = output.json()
        assert problem.keys() == {"type", "title", "status", "code", "detail"}
        assert (problem["status"], problem["code"]) == (output.status_code, code)
        assert code != "UNREADABLE_IMAGE" or "at most 4,000,000 are read" in problem["detail"]


def test_serve__a_bad_port_is_refused_before_anything_is_loaded(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", str(tmp_path / "none"), "--port", str(port)])
    assert isinstance(result.exception, SpecError)
    assert f"--port {port} cannot be listened on: Address already in use" in str(result.exception)
    assert CliRunner().invoke(app, ["serve", "none", "--port", "70000"]).exit_code == 2


def test_predict__of_a_form_one_bad_file_costs_no_other_its_answer(served, files):
    contents = [files[0].read_bytes(), b"none", files[1].read_bytes()]
    form = [("images", (f"{i}.png", data, "image/png")) for i, data in enumerate(contents)]
    answers = served.client.post("/predict", files=form).json()["answers"]
    assert [answer.get("code") for answer in answers] == [None, "UNREADABLE_IMAGE", None]
    many = [("images", ("a.png", contents[0], "image/png"))] * 9
    assert served.client.post("/predict", files=many).json()["code"] == "TOO_MANY_IMAGES"


def test_predict__strangers_files_end_nothing(served, files):
    rng = np.random.default_rng(0)
    good = files[0].read_bytes()
    jpeg = io.BytesIO()
    Image.open(files[0]).resize((64, 64)).save(jpeg, "JPEG")
    tiff = io.BytesIO()
    Image.open(files[0]).save(tiff, "TIFF")
    fixed = [
        bomb(10_000, 10_000),
        bomb(50_000, 50_000),
        bomb(1, 4_000_000),
        bomb(2_000, 2_000),
        png(2_001, 2_000),
        png(1, 3_000),
        good + b"<html><script>alert(1)</script>",
        b"<?php ?>" + good,
        b"\x1f\x8b" + good,
        b"%PDF-1.7 " + good,
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        b"\0" * 2_000_000,
    ]

    def damaged(index):
        source = [good, jpeg.getvalue(), tiff.getvalue()][index % 3]
        content = bytearray(source)
        for at in rng.integers(len(content), size=rng.integers(1, 12)):
            content[at] = rng.integers(256)
        return bytes(content[: rng.integers(1, len(content) + 1)] if index % 2 else content)

    hostile = fixed + [damaged(i) for i in range(2_000 if SEARCH else 60)]
    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(lambda data: served.predict(data).status_code, hostile))
    assert set(statuses) <= {200, 422}
    assert statuses[0] == statuses[1] == statuses[4] == 422
    assert served.predict(good).status_code == 200
    for child in served.children:
        peak = Path(f"/proc/{child._process.pid}/status").read_text()
        held = int(peak.split("VmHWM:")[1].split()[0])
        assert held < 1_600_000, peak  # kB
    assert served.server.workers[0].starts == 1


def test_predict__a_killed_model_costs_nobody_an_answer(served, files):
    worker = served.server.workers[0]
    before, data = worker.starts, files[0].read_bytes()
    expected = served.predict(data).json()
    os.kill(worker._process.pid, signal.SIGSTOP)  # it holds what comes until it is killed
    with ThreadPoolExecutor(24) as threads:
        pending = [threads.submit(served.predict, data) for _ in range(48)]
        until(worker._lock.locked, what="a pass to begin")
        os.kill(worker._process.pid, signal.SIGKILL)
        answers = [one.result() for one in pending]
    assert {answer.status_code for answer in answers} == {200}
    assert all(
        a.json()["answers"][0]["confidence"]
        == pytest.approx(expected["answers"][0]["confidence"], abs=1e-5)
        for a in answers
    )
    assert worker.starts == before + 1
    for decoder in served.server.decoders:
        os.kill(decoder._process.pid, signal.SIGKILL)
    # The image that meets a dead decoder is decoded by the one that takes its place.
    assert [served.predict(data).status_code for _ in range(4)] == [200] * 4


def test_token__is_asked_for_everywhere_but_of_health(model):
    class NoModel(Server):
        async def start(self):
            self.model = {"classes": ["a"]}

        async def answers(self, *_):
            raise AssertionError("asked without a token")

    from starlette.testclient import TestClient

    with TestClient(make_app(NoModel(model), TOKEN)) as client:
        assert client.get("/health").status_code == 200
        for path in ("/model", "/metrics", "/openapi.json", "/docs"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"authorization": f"Bearer {TOKEN}"}).is_success
        for given in ("Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"):
            output = client.post(
                "/predict", content=b"x", headers={"authorization": given.encode("latin-1")}
            )
            assert (output.status_code, output.json()["code"]) == (401, "UNAUTHORIZED")


def test_child__that_cannot_start_or_hangs_is_an_error_and_is_replaced():
    import sys

    with pytest.raises(SpecError, match="the cook cannot be started"):
        Child([sys.executable, "-c", "raise SystemExit"], "the cook", timeout_s=5).start()
    echo = (
        "import sys, time\n"
        "from calift_core.child_process import answer_all\n"
        "answer_all(b'{}', lambda q: q if q != b'sleep' else time.sleep(600))"
    )
    child = Child([sys.executable, "-c", echo], "the echo", timeout_s=0.5)
    assert child.ask(b"a") == b"a"
    with pytest.raises(ChildEndedError, match="took too long"):
        child.ask(b"sleep")
    assert child.ask(b"b" * 3_000_000) == b"b" * 3_000_000
    assert child.starts == 2
    child.stop()
    with pytest.raises(ChildEndedError, match="being stopped"):
        child.ask(b"c")


def test_batches__refuse_what_would_wait_too_long():
    from calift.serving.batches import Batches, BusyError

    async def ask():
        batches = Batches([Child(["false"], "nobody", timeout_s=1)], 3, max_waiting=1)
        first = asyncio.create_task(batches.answer([b""]))
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await batches.answer([b""])
        await batches.stop()
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(ask())
