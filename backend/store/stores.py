"""Every role on one engine, for those who may touch everything: the API and the tests."""

import secrets
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Engine

from backend.store.audit import Audit
from backend.store.claims import Claims
from backend.store.cursors import Cursors
from backend.store.evaluated import EvaluatedRuns
from backend.store.evaluation_jobs import EvaluationJobs
from backend.store.fairness import Quotas
from backend.store.files import Files
from backend.store.history import History
from backend.store.image_tags import ImageTags
from backend.store.imports import ImportedRuns
from backend.store.notifications import Notifications
from backend.store.outbox import OutboxStore
from backend.store.reaper import LeaseReaper
from backend.store.records import Records
from backend.store.results import Results
from backend.store.retention import Retention
from backend.store.runs import Runs
from backend.store.sessions import Sessions
from backend.store.sweeps import Sweeps
from backend.store.tokens import Tokens
from backend.store.views import Views
from backend.store.workers import Workers
from calift_core.errors import NotFoundError
from calift_core.schema.wire.results import Evaluation


@dataclass(frozen=True)
class Stores:
    """The roles. Safe to share between threads; not across a fork."""

    engine: Engine
    cursors: Cursors
    audit: Audit
    claims: Claims
    outbox: OutboxStore
    evaluation_jobs: EvaluationJobs
    files: Files
    history: History
    image_tags: ImageTags
    imports: ImportedRuns
    notifications: Notifications
    evaluated: EvaluatedRuns
    records: Records
    results: Results
    retention: Retention
    runs: Runs
    sessions: Sessions
    reaper: LeaseReaper
    sweeps: Sweeps
    tokens: Tokens
    views: Views
    workers: Workers

    @classmethod
    def on(
        cls, engine: Engine, *, cursor_key: bytes | None = None, quotas: Quotas | None = None
    ) -> Self:
        """Every role on an engine of `open_engine`.

        Args:
            cursor_key: signs cursors; None: a key of these stores alone.
            quotas: what each owner may have; None: anything.
        """
        cursors = Cursors(cursor_key or secrets.token_bytes(32))
        return cls(
            engine=engine,
            cursors=cursors,
            audit=Audit(engine),
            claims=Claims(engine),
            outbox=OutboxStore(engine),
            evaluation_jobs=EvaluationJobs(engine, cursors, quotas),
            files=Files(engine),
            history=History(engine),
            image_tags=ImageTags(engine),
            imports=ImportedRuns(engine),
            notifications=Notifications(engine),
            evaluated=EvaluatedRuns(engine),
            records=Records(engine),
            results=Results(engine, cursors),
            retention=Retention(engine),
            runs=Runs(engine, cursors, quotas),
            sessions=Sessions(engine),
            reaper=LeaseReaper(engine),
            sweeps=Sweeps(engine, cursors, quotas),
            tokens=Tokens(engine),
            views=Views(engine),
            workers=Workers(engine),
        )

    def suites_of(self, evaluation: Evaluation) -> list[dict[str, Any]]:
        """Suites that may hold an evaluation's data, as a spec has them; its run's own is the last.

        Raises:
            NotFoundError: no such run.
        """
        own = dict(self.runs.spec(evaluation.run_id).get("suite") or {})
        if evaluation.job_id is None:
            return [own]
        try:
            job = self.evaluation_jobs.get(evaluation.job_id).spec
        except NotFoundError:
            return [own]
        corruptions = job.corruptions.model_dump(mode="json")
        added = {**own, "shifts": job.all_shifts, "corruptions": corruptions}
        return [added, *({"id": suite} for suite in job.suites), own]

    def close(self) -> None:
        self.engine.dispose()
