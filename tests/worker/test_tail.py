"""What a runner says reaches the database, however long that is away."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from backend.store.claims import Claim
from backend.store.records import Records
from backend.store.stores import Stores
from calift_core.schema.records import MetricsRecord
from tests.conftest import spec_of
from worker.lease import FencedError
from worker.limits import Limits
from worker.tail import Follower


class Lease:
    """A lease that is over after so many calls."""

    def __init__(self, calls: int) -> None:
        self.left, self.progress = calls, None

    def call_with_retries(self, call: Any) -> Any:
        if not self.left:
            raise FencedError
        self.left -= 1
        return call()


class Away(Records):
    """The real store behind a line that is cut for its first writes."""

    failures = 3

    def record(self, *args: Any, **options: Any) -> bool:
        if self.failures:
            self.failures -= 1
            raise OperationalError("COMMIT", {}, ConnectionError("the server is gone"))
        return super().record(*args, **options)


def follower(store: Stores, folder: Path, lease: Lease) -> tuple[Follower, str]:
    run_id = store.runs.submit(spec_of())
    claim = store.claims.claim(run_id, worker_id="w", ttl_s=60)
    assert isinstance(claim, Claim)
    line = MetricsRecord(step=7, epoch=1.0, values={"loss": 0.5}).model_dump_json()
    (folder / "records.jsonl").write_text(line + "\n")
    made = Follower(
        Away(store.engine), claim, folder, lease=lease,
        limits=Limits(tick_s=0.001), on_checkpoint=lambda step: None,
    )  # fmt: skip
    return made, run_id


def test_rest__is_stored_once_the_database_is_back(store, tmp_path):
    made, run_id = follower(store, tmp_path, Lease(50))
    made.read_new(0.0, ended=True)
    made.store_rest()
    assert store.history.metrics(run_id).last_step == 7


def test_rest__is_given_up_with_the_lease_and_not_before(store, tmp_path):
    made, _ = follower(store, tmp_path, Lease(1))
    made.read_new(0.0, ended=True)
    with pytest.raises(FencedError):
        made.store_rest()
