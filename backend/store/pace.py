"""How fast finished runs were, as their reports tell."""

from sqlalchemy import Engine, select

from backend.store.engine import reading
from backend.store.models import ReportRow, Run
from calift_core.data.workload import Pace, Workload, recorded_pace
from calift_core.schema.spec import RunSpec

#: Reports of a model that are looked at for the pace of a run.
_PACE_REPORTS = 50


def stored_pace(engine: Engine, spec: RunSpec, work: Workload) -> Pace | None:
    """How fast finished runs say that a run like this one is, if any do."""
    body = ReportRow.body
    parts = ("spec", "environment", "data", "timings_s")
    wall = (Run.finished_at - Run.started_at).label("wall_s")
    with reading(engine) as connection:
        rows = connection.execute(
            select(*(body[part].label(part) for part in parts), wall)
            .join(Run, Run.id == ReportRow.run_id)
            .where(Run.model == spec.model.label, Run.phase == "SUCCEEDED")
            # The report of a run that was taken up again tells of its last attempt alone.
            .where(ReportRow.attempt == 1)
            .order_by(Run.finished_at.desc())
            .limit(_PACE_REPORTS)
        ).all()
    return recorded_pace([row._asdict() for row in rows], spec, work)
