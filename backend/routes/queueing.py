"""How runs and evaluation jobs are submitted: what their routes share."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Depends, Response

from backend.routes.deps import PrincipalDep, RequestId, ServicesDep
from backend.store.jobs import JobRequest, Jobs
from calift_core.schema.base import Frozen
from calift_core.schema.wire.runs import Job, RunDetail

_Spec = TypeVar("_Spec", bound=Frozen)
_Job = TypeVar("_Job", bound=Job)


class Queueing:
    """Puts jobs in line, one for each `Idempotency-Key`, and wakes whoever passes them on."""

    def __init__(
        self,
        response: Response,
        services: ServicesDep,
        principal: PrincipalDep,
        request_id: RequestId,
    ) -> None:
        self._response, self._services, self._principal = response, services, principal
        self._request_id = request_id

    def submit(
        self,
        jobs: Jobs[_Spec, _Job],
        key: str | None,
        meaning: str,
        make: Callable[[], tuple[_Spec, JobRequest]],
    ) -> _Job:
        """The job that this request asks for, or the one that it made before.

        Args:
            key: its `Idempotency-Key`.
            meaning: of the request, see `body_hash`.
            make: checks a new request, and says how its job is to be queued.
        """
        token_id = self._principal.token_id
        job_id = self._services.store.runs.earlier_request(token_id, key, meaning)
        if job_id is None:
            spec, wanted = make()
            request: JobRequest = {
                **wanted,
                "idempotency_key": key,
                "body_hash": meaning,
                "token_id": token_id,
                "submitted_by": self._principal.name,
                "request_id": self._request_id,
            }
            max_queued = self._services.settings.max_queued
            job_id = jobs.submit(spec, max_queued=max_queued, **request)
        return self._accepted(jobs.get(job_id))

    def cancel(self, jobs: Jobs[_Spec, _Job], job_id: str) -> _Job:
        return self._accepted(jobs.request_cancel(job_id))

    def retry(self, jobs: Jobs[_Spec, _Job], job_id: str) -> _Job:
        max_queued = self._services.settings.max_queued
        return self._accepted(jobs.retry(job_id, max_queued=max_queued))

    def _accepted(self, job: _Job) -> _Job:
        self._services.housekeeper.wake()
        place = "runs" if isinstance(job, RunDetail) else "evaluation-jobs"
        self._response.headers["Location"] = f"/api/v1/{place}/{job.id}"
        return job


QueueingDep = Annotated[Queueing, Depends()]
