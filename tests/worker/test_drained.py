"""A worker that somebody drained, and what it says of its GPU."""

import threading

from backend.store.engine import open_engine
from backend.store.stores import Stores
from tests.conftest import spec_of, until
from worker.devices import Device, gpu_usage, parse_usage
from worker.service import WorkerService


def test_worker__that_is_drained_takes_no_run_until_it_is_resumed(
    make_settings, sqlite_url, monkeypatch
):
    settings = make_settings(database_url=sqlite_url)
    given_back = []
    worker = WorkerService(
        settings, device=Device(label="cpu", queues=("cpu",)), give_back=given_back.append
    )
    store = Stores.on(open_engine(sqlite_url))
    worker._report_presence()
    store.workers.drain(worker.id, by="ada")
    run_id = store.runs.submit(spec_of())
    taken = []

    def supervised(_, __, claim, **___):
        taken.append(claim.run_id)
        assert store.claims.finish(claim.run_id, claim.attempt, phase="SUCCEEDED")
        return "succeeded"

    monkeypatch.setattr("worker.service.supervise", supervised)
    thread = threading.Thread(target=worker.answer, args=(run_id,))
    thread.start()
    try:
        until(lambda: given_back == [run_id], what="the message to go to another worker")
        worker._report_presence()
        (answer,) = store.workers.recent()
        assert answer.trouble == "ada asked it to take no run for now."
        assert (store.runs.get(run_id).phase, taken) == ("QUEUED", [])
        store.workers.drain(worker.id, by=None)
        until(lambda: taken == [run_id], what="the run to be taken")
    finally:
        worker.draining = True
        thread.join(20)
        worker.stop()
        store.close()
    assert not thread.is_alive()


_SAID = """\
GPU-aaaa, NVIDIA H100 80GB HBM3, 1024, 81559, 37
GPU-bbbb, NVIDIA A100, "weird", 40960, [N/A]
garbage
"""


def test_usage__is_of_the_runners_gpu_and_null_where_the_driver_does_not_say():
    first, second = parse_usage(_SAID)
    assert (first.name, first.memory_used_mib, first.memory_total_mib, first.utilisation) == (
        "NVIDIA H100 80GB HBM3",
        1024,
        81559,
        0.37,
    )
    assert (second.memory_used_mib, second.utilisation) == (None, None)
    assert parse_usage(_SAID, frozenset({"GPU-bbbb"})) == [second]
    assert gpu_usage({}) == []
