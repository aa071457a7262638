"""Calls about sweeps."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from calift_core.client.connection import Connection, url_path
from calift_core.schema.sweep import SweepSpec
from calift_core.schema.wire.runs import RunPage, SortKey
from calift_core.schema.wire.sweeps import (
    SWEEP_ENDS,
    SweepDetail,
    SweepPage,
    SweepResume,
    SweepValidation,
    SweepVerdict,
)


def _sweep_body(spec: SweepSpec | Mapping[str, Any]) -> dict[str, Any]:
    return spec.model_dump(mode="json") if isinstance(spec, SweepSpec) else dict(spec)


class SweepCalls(Connection):
    """Sweeps."""

    def sweep(
        self, spec: SweepSpec | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> SweepDetail:
        """Begin a sweep. With an own key, the same request gives the same sweep."""
        return self._post_once("/sweeps", SweepDetail, _sweep_body(spec), idempotency_key)

    def validate_sweep(self, spec: SweepSpec | Mapping[str, Any]) -> SweepValidation:
        """A dry run: faults, what is missing, how many runs, hours and bytes a sweep takes."""
        return self._post("/sweeps/validate", SweepValidation, _sweep_body(spec))

    def sweeps(self, *, cursor: str | None = None, limit: int = 50) -> SweepPage:
        """A page of sweeps, the newest first."""
        return self._get("/sweeps", SweepPage, cursor=cursor, limit=limit)

    def get_sweep(self, sweep_id: str) -> SweepDetail:
        """One sweep: its contenders with their rates, what it has cost and will cost."""
        return self._get(url_path("/sweeps", sweep_id), SweepDetail)

    def sweep_runs(
        self,
        sweep_id: str,
        *,
        sort: SortKey = "created",
        cursor: str | None = None,
        limit: int = 50,
    ) -> RunPage:
        """A page of the runs that a sweep has queued so far."""
        return self._get(
            url_path("/sweeps", sweep_id, "runs"), RunPage, sort=sort, cursor=cursor, limit=limit
        )

    def sweep_verdict(self, sweep_id: str) -> SweepVerdict:
        """What a sweep says so far; a 404 while no method has all of its evaluation runs."""
        return self._get(url_path("/sweeps", sweep_id, "verdict"), SweepVerdict)

    def cancel_sweep(self, sweep_id: str) -> SweepDetail:
        """Cancel a sweep and its runs that have not ended; repeatable."""
        return self._steer(sweep_id, "cancel")

    def pause_sweep(self, sweep_id: str) -> SweepDetail:
        """Queue nothing more of a sweep and take waiting runs out of line; repeatable."""
        return self._steer(sweep_id, "pause")

    def resume_sweep(self, sweep_id: str, *, max_hours: float | None = None) -> SweepDetail:
        """Go on with a paused sweep, with another cap on its hours if one is given."""
        return self._steer(sweep_id, "resume", SweepResume(max_hours=max_hours))

    def retry_sweep(self, sweep_id: str) -> SweepDetail:
        """Queue the failed and cancelled runs of a sweep again, and go on with it."""
        return self._steer(sweep_id, "retry")

    def _steer(self, sweep_id: str, action: str, body: BaseModel | None = None) -> SweepDetail:
        return self._post(url_path("/sweeps", sweep_id, action), SweepDetail, body)

    def wait_sweep(
        self, sweep_id: str, poll_s: float = 2.0, *, timeout_s: float | None = None
    ) -> SweepDetail:
        """Wait until a sweep has ended or is paused, and return it.

        A service that is away for less than a minute is waited for.

        Raises:
            TimeoutError: `timeout_s` seconds went by.
        """
        return self._wait(
            lambda: self.get_sweep(sweep_id),
            f"sweep {sweep_id}",
            poll_s,
            timeout_s,
            ends=(*SWEEP_ENDS, "PAUSED"),
        )
