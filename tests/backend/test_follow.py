"""Following runs where no terminal is: lines that say how far they are."""

import threading

from calift.commands import follow, service
from calift_core.schema import records as r
from tests.conftest import spec_of, until


def test_follow__says_step_and_rest_without_a_terminal(client, services, capsys, monkeypatch):
    monkeypatch.setattr(follow, "SAY_EVERY_S", 0.0)
    store = services.store
    run_id = client.submit(spec_of(name="mine")).id
    output = []
    ended = []
    follower = threading.Thread(
        target=lambda: ended.extend(service.follow_runs(client, [run_id])), daemon=True
    )

    def hears(words):
        output.append(capsys.readouterr().err)
        return words in "".join(output)

    follower.start()
    until(lambda: hears("mine: queued"), what="the queue")
    store.claims.claim(run_id, worker_id="w", ttl_s=60)
    for step, eta_s in ((120, 90.0), (240, 45.0)):
        record = r.ProgressRecord(
            phase="training", step=step, total_steps=780, samples_per_s=1234.5, eta_s=eta_s
        )
        store.records.record(run_id, 1, [record])
        until(lambda step=step: hears(f"step {step} of 780"), what="the step")
    store.claims.finish(run_id, 1, phase="SUCCEEDED")
    follower.join(30)
    assert [run.phase for run in ended] == ["SUCCEEDED"]
    lines = "".join(output).splitlines()
    assert "mine: running training, step 120 of 780, 2 min left, 1,234 images/s" in lines
    assert "mine: running training, step 240 of 780, 45 s left, 1,234 images/s" in lines
    assert len(lines) == len(set(lines))


def test_follow__is_not_chatty(client, services, capsys):
    """Between two phases a line comes at most every ten seconds."""
    store = services.store
    run_id = client.submit(spec_of(name="mine")).id
    store.claims.claim(run_id, worker_id="w", ttl_s=60)
    done = threading.Event()

    def work():
        for step in range(1, 40):
            record = r.ProgressRecord(phase="training", step=step, total_steps=40)
            store.records.record(run_id, 1, [record])
            done.wait(0.05)
        store.claims.finish(run_id, 1, phase="SUCCEEDED")

    worker = threading.Thread(target=work)
    worker.start()
    service.follow_runs(client, [run_id])
    worker.join()
    assert capsys.readouterr().err.count("step") <= 2
