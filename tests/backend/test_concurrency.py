"""Expensive requests: an owner has a share, others are answered meanwhile, refusals say when."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import httpx2 as httpx
import pytest

from backend.http.authentication import hash_token
from backend.http.concurrency import FairLimiter
from backend.http.problems import HttpError
from backend.settings import new_token
from calift_core.schema.evaluation_job import JOB_PREFIX
from tests.backend.test_api import problem
from tests.conftest import spec_of

PATIENCE_S = 30


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


def test_limiter__owners_take_turns_and_each_has_a_share():
    async def work():
        limiter = FairLimiter(
            "things", capacity=6, capacity_each=4, concurrency=2, concurrency_each=1
        )
        order = []
        gates = {name: asyncio.Event() for name in ("a1", "a2", "a3", "b1", "b2", "c1")}

        async def one(name):
            with limiter.admit(name[0]) as admission:
                async with admission.slot():
                    order.append(name)
                    await gates[name].wait()

        tasks = [asyncio.create_task(one(name)) for name in gates]
        await until(lambda: len(order) == 2)
        assert order == ["a1", "b1"]  # one each, though a came first with three
        gates["a1"].set()
        await until(lambda: len(order) == 3)
        assert order[2] == "c1"  # who has had none comes before a's next
        for gate in gates.values():
            gate.set()
        await asyncio.gather(*tasks)
        assert sorted(order) == sorted(gates)
        assert limiter.admitted == 0

    asyncio.run(work())


def test_limiter__what_is_over_a_share_or_over_all_is_refused_with_the_time_to_wait():
    limiter = FairLimiter("things", capacity=3, capacity_each=2, retry_s=7)

    def refused(owner):
        with pytest.raises(HttpError) as caught, limiter.admit(owner):
            pass
        return caught.value

    with limiter.admit("a"), limiter.admit("a"):
        own = refused("a")
        assert (own.status, own.code, own.headers) == (503, "BUSY", {"Retry-After": "7"})
        assert own.message.startswith("2 of your things")
        with limiter.admit("b"):
            assert refused("c").message.startswith("3 things")
        with limiter.admit("c"):
            pass
    with limiter.admit("a"):
        pass


def test_limiter__who_gives_up_takes_no_turn():
    async def work():
        limiter = FairLimiter("things", capacity=9, capacity_each=9, concurrency=1)
        async with limiter.slot("a"):
            waiting = asyncio.create_task(limiter.slot("b").__aenter__())
            given = asyncio.create_task(limiter.slot("c").__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        # The turn is c's in this very moment, and c gives up before it is told.
        given.cancel()
        await asyncio.gather(given, return_exceptions=True)
        async with asyncio.timeout(PATIENCE_S), limiter.slot("d"):
            pass

    asyncio.run(work())


class Owner:
    """Calls the application in this loop with a token of its own."""

    def __init__(self, app: Any, name: str) -> None:
        token = new_token()
        app.state.services.store.tokens.add(
            token.partition(".")[0], name=name, scope="submit",
            secret_sha256=hash_token(token), ttl_s=None,
        )  # fmt: skip
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://127.0.0.1/api/v1",
            headers={"Authorization": f"Bearer {token}"},
            timeout=PATIENCE_S,
        )

    def ask(self, path: str, **more: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(self.http.get(path, **more))


def test_analysis__another_owner_is_answered_while_one_has_all_it_may(app, services, monkeypatch):
    gate, answered = threading.Event(), services.store.runs.submit(spec_of())

    def slow(run_id, query):
        assert query.against == "quick" or gate.wait(PATIENCE_S)
        raise HttpError(418, "ANSWERED", "it was its turn.")

    monkeypatch.setattr(services.explorer, "ledger", slow)
    limiter = services.limits["analyses"]
    path = f"/runs/{answered}/ledger"

    async def work():
        one, other = Owner(app, "one"), Owner(app, "other")
        requested = [one.ask(path, params={"against": "slow"}) for _ in range(40)]
        try:
            done, waiting = await asyncio.wait(requested, return_when="FIRST_COMPLETED")
            await until(lambda: sum(task.done() for task in requested) == 40 - limiter.admitted)
            refused = [task.result() for task in requested if task.done()]
            assert 0 < len(refused) < 40
            for answer in refused:
                problem(answer, 503, "BUSY")
                assert int(answer.headers["retry-after"]) >= 1
            # The other's are answered while all of the one's wait.
            problem(await other.ask(path, params={"against": "quick"}), 418, "ANSWERED")
            assert (await other.ask("/sessions/current")).json()["name"] == "other"
            # What costs nothing is not limited.
            assert (await one.ask("/runs")).status_code == 200
            assert not gate.is_set()
        finally:
            gate.set()
        statuses = [(await task).status_code for task in requested]
        assert set(statuses) == {503, 418}
        assert statuses.count(503) == len(refused)
        assert limiter.admitted == 0

    asyncio.run(work())


def test_picture__of_another_owner_comes_before_the_second_of_one(app, services, monkeypatch):
    order = []
    gate = threading.Event()

    def tried(run_id, picture):
        gate.wait(PATIENCE_S)
        order.append(picture.decode())
        raise HttpError(418, "ANSWERED", "it was its turn.")

    monkeypatch.setattr(services.trials, "_ask", tried)
    limiter = services.limits["pictures"]

    async def work():
        one, other = Owner(app, "one"), Owner(app, "other")

        def post(owner, body):
            kind = {"Content-Type": "application/octet-stream"}
            return asyncio.create_task(owner.http.post("/runs/a/try", content=body, headers=kind))

        try:
            requested = [post(one, b"one") for _ in range(20)]
            await until(lambda: sum(task.done() for task in requested) == 20 - limiter.admitted > 0)
            last = post(other, b"other")
            await until(lambda: len(limiter._waiting.get("other", ())) == 1)
        finally:
            gate.set()
        await asyncio.gather(*requested, last)
        assert order[:3] == ["one", "other", "one"]
        for task in requested:
            if task.result().status_code == 503:
                problem(task.result(), 503, "BUSY")
                assert int(task.result().headers["retry-after"]) >= 1
        assert len(order) < 16

    asyncio.run(work())


#: Operations that are refused where there is no place. What is added to them is added here; so is
#: what has many samples, images or files to go through.
LIMITED = {
    "compare_runs", "get_leaders", "get_ledger", "get_decision", "get_ood", "get_bound_monitor",
    "get_calibrator", "get_transfer", "get_reliability", "list_prompts", "get_measures",
    "get_audit", "list_slices", "get_budget", "list_run_slices", "get_sweep_verdict",
    "list_samples", "list_image_tags", "tag_images", "get_feature_map", "make_feature_map",
    "get_sample_traits", "list_doubtful_labels",
    "get_sample_looks", "list_sample_answers", "correct_labels", "get_thumbnail",
    "get_run_thumbnail",
    "try_picture", "get_text_features", "download_model", "import_predictions",
    "judge_predictions", "upload_dataset", "list_folders",
    "scan_dataset", "download_artifact", "download_predictions", "find_copies",
    "validate_run", "validate_sweep", "validate_evaluation",
    "stream_events", "stream_evaluation_job_events",
}  # fmt: skip


def test_limits__hold_for_what_is_expensive_and_for_nothing_else(api, app, monkeypatch):
    @contextmanager
    def full(self, owner):
        raise HttpError(503, "FULL", "no place.")
        yield

    monkeypatch.setattr(FairLimiter, "admit", full)
    job = {"job_id": f"{JOB_PREFIX}1"}
    found = set()
    for path, operations in app.openapi()["paths"].items():
        path = path.replace("/runs/{job_id}", "/runs/{run_id}")
        for method, operation in operations.items():
            own = operation.get("parameters", ())
            names = {"run_id", *(p["name"] for p in own if p["in"] == "path")}
            filled = path.format(**(dict.fromkeys(names, "a") | job))
            media = next(iter(operation.get("requestBody", {}).get("content", {})), None)
            body = {}
            if media is not None:
                body = {"content": b"{}", "headers": {"Content-Type": media}}
            answer = api.request(method, filled, **body)
            if answer.status_code == 503 and answer.json()["code"] == "FULL":
                found.add(operation["operationId"])
    assert found == LIMITED
