"""What everybody else waits for while one token asks for all it can, over real HTTP.

    python benchmarks/load_one_owner.py
    python benchmarks/load_one_owner.py --only questions,zip --samples 2000 --questions 10

The API is a process of its own on SQLite, with a simulated evaluation and a zero-shot run of
`calift-tiny`. One owner's token sends, one kind after the other and all at once:

- **questions**: every measure at 100 bins and a temperature that nobody asked for before;
- **pictures**: pictures of 7,000 × 7,000 pixels to *Try a picture*;
- **thumbnails**: images of samples at sizes that were not drawn yet;
- **streams**: event streams, which stay open;
- **zip**: a zip of 20 images, each 30,000 folders deep.

Meanwhile another owner has its log-in looked up and lists runs, ten times a second each, and asks
once for the same kind of thing. Milliseconds of its answers stand beside those of a quiet service.
Only 127.0.0.1 is spoken to.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import socket
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from api import fill, served
from PIL import Image

from backend.http.authentication import hash_token
from backend.settings import Settings, new_token
from backend.storage.artifacts import ArtifactStore
from backend.store.engine import open_engine
from backend.store.stores import Stores
from calift_core.predictions.read import read_index
from calift_core.schema.spec import parse_spec
from tests.support.finished import run_once, store_run

_TIMEOUT_S = 300.0
KINDS = ("questions", "pictures", "thumbnails", "streams", "zip")
_SPEC = {
    "name": "zero-shot",
    "model": {"name": "calift-tiny", "pretrained": "typefaces"},
    "method": {"kind": "zero_shot"},
    "suite": {"id": "typefaces"},
    "train": {"device": "cpu"},
    "evaluation": {"n_resamples": 20},
}


@dataclass(frozen=True)
class Answer:
    """A status, what it took, and the Retry-After of a refusal."""

    status: int
    ms: float
    later: str = ""


class Caller:
    """Asks the service as one owner."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> Answer:
        """One request on a connection of its own."""
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        try:
            connection.request("GET" if body is None else "POST", f"/api/v1{path}", body, headers)
            response = connection.getresponse()
            response.read()
            later = response.getheader("Retry-After", "")
            return Answer(response.status, 1e3 * (time.perf_counter() - began), later)
        except OSError:
            return Answer(0, 1e3 * (time.perf_counter() - began))
        finally:
            connection.close()

    def open_stream(self, run_id: str) -> tuple[int, socket.socket]:
        """The status of an event stream, and its connection."""
        one = socket.create_connection(("127.0.0.1", self._port), timeout=_TIMEOUT_S)
        one.sendall(
            f"GET /api/v1/runs/{run_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {self._token}\r\n\r\n".encode()
        )
        return int(one.recv(4096).split()[1]), one


def deep_zip(entries: int = 20, depth: int = 30_000) -> bytes:
    """A small zip whose images lie deep."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for k in range(entries):
            archive.writestr(f"{'d/' * depth}{k % 2}/{k}.png", b"x")
    return out.getvalue()


def large_picture(side: int) -> bytes:
    """A PNG of so many pixels a side that takes few bytes."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (9, 20, 30)).save(out, "PNG")
    return out.getvalue()


def quantiles(answers: list[Answer]) -> dict[str, Any]:
    """Of the answers that were good, and how many were not."""
    good = [a.ms for a in answers if a.status == 200]
    q = np.quantile(good, (0.5, 0.95, 1.0)) if good else (float("nan"),) * 3
    named = {n: round(float(v), 1) for n, v in zip(("p50", "p95", "most"), q, strict=True)}
    return {"n": len(answers), "failed": len(answers) - len(good), **named}


class Bystander:
    """Another owner's requests, ten of each kind a second whether the last came back or not.

    Milliseconds count from the moment at which a request was due.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller, self._over = caller, threading.Event()
        self._threads = ThreadPoolExecutor(400)
        self._clock = threading.Thread(target=self._tick)
        self.answers: dict[str, list[Answer]] = {"/sessions/current": [], "/runs": []}

    def _tick(self) -> None:
        due = time.perf_counter()
        while not self._over.wait(max(0.0, due - time.perf_counter())):
            for path in self.answers:
                self._threads.submit(self._one, path, due)
            due += 0.1

    def _one(self, path: str, due: float) -> None:
        late = time.perf_counter() - due
        found = self._caller.ask(path)
        self.answers[path].append(Answer(found.status, found.ms + 1e3 * late))

    def __enter__(self) -> Bystander:
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._clock.join()
        self._threads.shutdown()

    def rows(self) -> dict[str, Any]:
        """Quantiles by what was asked."""
        return {path: quantiles(found) for path, found in self.answers.items()}


@dataclass
class Scene:
    """What is there to ask about."""

    run_id: str
    tried: str
    evaluation: str
    samples: list[str]
    owner: Caller
    other: Caller


@contextlib.contextmanager
def scene(options: argparse.Namespace, home: Path) -> Iterator[Scene]:
    """Fill a service and start it."""
    settings = Settings(home=home, broker_url="memory://")
    run_id, evaluation = fill(settings, home, n=options.samples, n_classes=options.classes)
    stores = Stores.on(open_engine(settings.database_url))
    artifacts = ArtifactStore(settings.artifacts_dir)
    tried, samples = "", ["/nobody"]
    if {"pictures", "thumbnails"} & set(options.only.split(",")):
        tried = store_run(stores, artifacts, run_once(parse_spec(_SPEC), home / "made"))
        samples = thumbnails_of(stores, artifacts, tried)
    waiting = stores.runs.submit(parse_spec(_SPEC | {"name": "watched"}))
    tokens = []
    for name in ("one", "another"):
        tokens.append(new_token())
        stores.tokens.add(
            tokens[-1].partition(".")[0], name=name, scope="submit",
            secret_sha256=hash_token(tokens[-1]), ttl_s=None,
        )  # fmt: skip
    stores.close()
    with served(settings, options.port, {"CALIFT_REQUESTS_PER_MINUTE": "100000"}):
        yield Scene(waiting, tried, evaluation, samples, *(Caller(options.port, t) for t in tokens))


def thumbnails_of(stores: Stores, artifacts: ArtifactStore, run_id: str) -> list[str]:
    """Addresses of the images of a run's first evaluation."""
    evaluation = stores.results.run_evaluations(run_id)[0].id
    path = artifacts.verified(stores.results.predictions_of(evaluation).sha256)
    names = (quote(str(name), safe="") for name in read_index(path)[0])
    return [f"/samples/{evaluation}/{name}/thumbnail" for name in names]


def attacks(found: Scene, options: argparse.Namespace) -> dict[str, list[Callable[[Caller], Any]]]:
    """What the one sends of each kind; the other asks for the first, with a number of its own."""
    picture = large_picture(7_000)
    small = large_picture(64)
    packed = deep_zip()
    octets = "application/octet-stream"

    def question(k: int) -> Callable[[Caller], Answer]:
        return lambda c: c.ask(
            f"/evaluations/{found.evaluation}/metrics"
            f"?classwise=true&n_bins={options.bins}&temperature=2.{k:03d}"
        )

    def thumbnail(k: int) -> Callable[[Caller], Answer]:
        at, size = k % len(found.samples), 64 + k // len(found.samples)
        return lambda c: c.ask(f"{found.samples[at]}?size={size}")

    def trial(body: bytes) -> Callable[[Caller], Answer]:
        return lambda c: c.ask(f"/runs/{found.tried}/try", body, octets)

    own = {
        "questions": question(900),
        "pictures": trial(small),
        "thumbnails": thumbnail(300 * len(found.samples)),
        "zip": lambda c: c.ask("/datasets?name=a.zip", deep_zip(2, 1), "application/zip"),
    }
    sent = {
        "questions": [question(k) for k in range(options.questions)],
        "pictures": [trial(picture)] * options.pictures,
        "thumbnails": [thumbnail(k) for k in range(options.thumbnails)],
        "zip": [lambda c: c.ask("/datasets?name=d.zip", packed, "application/zip")],
    }
    return {kind: [own[kind], *sent[kind]] for kind in own}


def answered(row: Counter[tuple[int, str]]) -> dict[str, int]:
    """Statuses, with whether a refusal said when to ask again."""
    return {
        f"{status}{', Retry-After' if later else ''}": n
        for (status, later), n in sorted(row.items())
    }


def at_once(found: Scene, kind: str, own: Any, sent: list[Any]) -> dict[str, Any]:
    """Send all of a kind together; what it did to the other."""
    said: dict[str, Any] = {}
    with Bystander(found.other) as others, ThreadPoolExecutor(len(sent) + 1) as threads:
        began = time.perf_counter()
        answers = [threads.submit(one, found.owner) for one in sent]
        time.sleep(0.5)
        mine = own(found.other)
        said["another's own"] = {"status": mine.status, "ms": round(mine.ms, 1)}
        taken = [one.result() for one in answers]
        said["seconds"] = round(time.perf_counter() - began, 1)
    good = [a.ms / 1e3 for a in taken if a.status in (200, 201)]
    said["answered"] = answered(Counter((a.status, bool(a.later)) for a in taken))
    said["longest_good_s"] = round(max(good, default=0.0), 1)
    return {**said, **others.rows()}


def streams(found: Scene, n: int) -> dict[str, Any]:
    """Open streams and keep them; what it did to the other."""
    opened: list[socket.socket] = []
    said: dict[str, Any] = {}
    try:
        with Bystander(found.other) as others:
            statuses: Counter[int] = Counter()
            for _ in range(n):
                status, one = found.owner.open_stream(found.run_id)
                opened.append(one)
                statuses[status] += 1
            began = time.perf_counter()
            status, one = found.other.open_stream(found.run_id)
            opened.append(one)
            mine = {"status": status, "ms": round(1e3 * (time.perf_counter() - began), 1)}
            time.sleep(3.0)
        said = {"another's own": mine, "answered": {str(k): v for k, v in statuses.items()}}
    finally:
        for one in opened:
            one.close()
    return {**said, **others.rows()}


def main() -> None:
    """Fill, serve, ask, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=62)
    parser.add_argument("--questions", type=int, default=44)
    parser.add_argument("--bins", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--thumbnails", type=int, default=1500)
    parser.add_argument("--streams", type=int, default=600)
    parser.add_argument("--only", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--port", type=int, default=8767)
    options = parser.parse_args()
    kinds = options.only.split(",")
    if unknown := sorted(set(kinds) - set(KINDS)):
        parser.error(f"--only takes {', '.join(KINDS)}, got {', '.join(unknown)}")
    with (
        tempfile.TemporaryDirectory(prefix="calift-load-") as name,
        scene(options, Path(name)) as found,
    ):
        said: dict[str, Any] = {}
        prepared = attacks(found, options)
        for kind in kinds:  # what is loaded by the first question is loaded
            if kind in prepared:
                prepared[kind][0](found.other)
        with Bystander(found.other) as quiet:
            time.sleep(3.0)
        said["quiet"] = quiet.rows()
        print("quiet", said["quiet"], flush=True)
        for kind in kinds:
            if kind == "streams":
                said[kind] = streams(found, options.streams)
            else:
                own, *sent = prepared[kind]
                said[kind] = at_once(found, kind, own, sent)
            print(kind, said[kind], flush=True)
    said |= {"load_1min": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
