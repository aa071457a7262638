"""Owners take turns, within a priority; quotas hold; on both databases."""

import shutil
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.store.engine import open_engine
from backend.store.errors import ArtifactQuotaError, QueueFullError
from backend.store.evaluation_jobs import EvaluationJobs
from backend.store.fairness import Quotas
from backend.store.runs import Runs
from backend.store.stores import Stores
from calift_core.schema.evaluation_job import EvaluationJobSpec
from tests.conftest import spec_of


def take(store: Stores, **options: Any) -> str | None:
    """Claim what is next in line; its id."""
    claim = store.claims.claim_next(["cpu"], message_run=None, worker_id="w", ttl_s=60.0, **options)
    return None if claim is None else claim.run_id


def submit(store: Stores, owner: str | None, count: int = 1, priority: int = 0) -> list[str]:
    return [
        store.runs.submit(spec_of(), submitted_by=owner, priority=priority) for _ in range(count)
    ]


_JOBS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1)), min_size=1, max_size=12)


@settings(max_examples=25)
@given(jobs=_JOBS, workers=st.integers(1, 3), data=st.data())
def test_turns__nobody_who_waits_has_fewer_at_work_than_who_is_served(
    sqlite_template, tmp_path_factory, jobs, workers, data
):
    path = tmp_path_factory.mktemp("turns") / "calift.db"
    shutil.copy(sqlite_template, path)
    one_store = Stores.on(open_engine(f"sqlite:///{path}"))
    owner, priority = {}, {}
    for name, level in jobs:
        (run_id,) = submit(one_store, name, priority=level)
        owner[run_id], priority[run_id] = name, level
    waiting, working, served = set(owner), [], []
    while waiting or working:
        if working and (len(working) == workers or not waiting or data.draw(st.booleans())):
            ended = working.pop(data.draw(st.integers(0, len(working) - 1)))
            assert one_store.claims.finish(ended, 1, phase="SUCCEEDED")
            continue
        at_work = Counter(owner[run_id] for run_id in working)
        taken = take(one_store)
        assert taken in waiting
        assert priority[taken] == max(priority[r] for r in waiting)
        rivals = {owner[r] for r in waiting if priority[r] == priority[taken]}
        assert at_work[owner[taken]] == min(at_work[name] for name in rivals)
        # Among those with as many at work, the one who was served longest ago.
        last = {name: max((i for i, n in enumerate(served) if n == name), default=-1)
                for name in rivals if at_work[name] == at_work[owner[taken]]}  # fmt: skip
        never = [name for name, at in last.items() if at < 0]
        if not never:
            assert owner[taken] == min(last, key=lambda name: last[name])
        waiting.discard(taken)
        working.append(taken)
        served.append(owner[taken])
    one_store.close()


def test_quota__of_running_runs_keeps_an_owner_waiting_and_says_so(store):
    mine, theirs = submit(store, "ada", 2), submit(store, "ben", 2)
    runs = Runs(store.engine, store.cursors, Quotas(running=1))
    assert take(store, quota_running=1) == mine[0]
    assert take(store, quota_running=1) == theirs[0]
    assert take(store, quota_running=1) is None
    assert runs.get(mine[1]).waiting == "1 runs of ada are at work, and 1 may be."
    assert store.claims.finish(mine[0], 1, phase="SUCCEEDED")
    assert take(store, quota_running=1) == mine[1]
    jobs = EvaluationJobs(store.engine, store.cursors, Quotas(running=1))
    judging = EvaluationJobSpec(runs=(mine[0],), shifts={"art": "folder:art"})
    judges = jobs.submit(judging, submitted_by="ada")
    assert jobs.get(judges).waiting == "1 runs of ada are at work, and 1 may be."
    assert [job.waiting for job in jobs.page()[0]] == [jobs.get(judges).waiting]


def test_quota__of_waiting_runs_and_of_stored_bytes(store):
    runs = Runs(store.engine, store.cursors, Quotas(queued=2, artifact_bytes=100))
    first = runs.submit(spec_of(), submitted_by="ada")
    runs.submit(spec_of(), submitted_by="ada")
    with pytest.raises(QueueFullError, match="2 runs of ada are waiting, and 2 may"):
        runs.submit(spec_of(), submitted_by="ada")
    runs.submit(spec_of(), submitted_by="ben")
    assert store.claims.claim(first, worker_id="w", ttl_s=60) is not None
    for name, size in (("a", 99), ("b", 99), ("c", 1)):
        store.files.add(first, 1, name=name, kind="other", sha256=f"{size:064d}", size_bytes=size)
    with pytest.raises(ArtifactQuotaError, match=r"ada's runs take up 100 bytes, and 100 may"):
        runs.submit(spec_of(), submitted_by="ada")
    store.claims.finish(first, 1, phase="FAILED")
    with pytest.raises(ArtifactQuotaError):
        runs.retry(first)
