"""Runs as people see them: listed, filtered, changed. What they share with other jobs is `jobs`."""

import re
from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import (
    Connection,
    Row,
    Text,
    and_,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy import cast as cast_to
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.elements import ColumnElement

from backend.store.cursors import how_many, scope_of
from backend.store.engine import NOW, moment, reading, writing
from backend.store.jobs import JOB_COLUMNS, Jobs, completion
from backend.store.models import ReportRow, Run, RunTag, SpectrumRow, Sweep
from backend.store.outbox import enqueue
from backend.store.queues import queue_of
from backend.store.states import WORKING_PHASES, add_state_event
from backend.store.states import waiting as is_waiting
from backend.store.submitting import JobRequest, find_earlier, insert_row, next_color, set_tags
from backend.store.workers import why_jobs_wait
from calift_core.errors import NotFoundError
from calift_core.schema.report import SpectrumReport
from calift_core.schema.spec import RunSpec, without_seed
from calift_core.schema.wire.queries import RunFilter, RunsQuery
from calift_core.schema.wire.runs import (
    RunDetail,
    RunGroup,
    RunPhase,
    RunSummary,
    SortKey,
    Spread,
)
from calift_core.schema.wire.service import SuiteRuns


class Runs(Jobs[RunSpec, RunDetail]):
    kind, noun = "training", "run"
    instead_of_retry = "Clone it to run it again."

    def _insert(self, connection: Connection, spec: RunSpec, **values: Any) -> str:
        return queue_run(connection, spec, **values)

    def _read(self, connection: Connection, row: Row[*tuple[Any, ...]]) -> RunDetail:
        # One that never began has none.
        report = (
            row.attempt
            and connection.execute(
                select(ReportRow.body).where(ReportRow.run_id == row.id)
            ).scalar()
        )
        known = {name: (report or {}).get(name) or {} for name in ("environment", "resolved")}
        waits = why_jobs_wait(connection, self._quotas, [row])
        run = RunDetail.model_validate(row, from_attributes=True)
        return run.model_copy(update={"waiting": waits.get(row.id, ""), **known, **completion(run)})

    def earlier_request(self, request: JobRequest) -> str | None:
        """The run, or the evaluation job, that a request with this key made before, if any.

        Raises:
            IdempotencyError: the key came with another body then.
        """
        return find_earlier(self._engine, request)

    def patch(
        self,
        run_id: str,
        *,
        name: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] | None = None,
        archived: bool | None = None,
    ) -> RunDetail:
        """Change what people may change; None leaves a field as it is.

        Raises:
            NotFoundError: no such run.
        """
        given = {"name": name, "notes": notes, "tags": tags, "archived": archived}
        values = {key: value for key, value in given.items() if value is not None}
        if tags is not None:
            values["tags"] = list(dict.fromkeys(tags))
        with writing(self._engine) as connection:
            if values:
                connection.execute(update(Run).where(Run.id == run_id).values(**values))
            detail = self._get(connection, run_id)
            if tags is not None:
                set_tags(connection, run_id, tags)
            return detail

    def spec(self, run_id: str) -> dict[str, Any]:
        """What a run was asked to do, without its report, which may have megabytes.

        Raises:
            NotFoundError: no such run.
        """
        return cast("dict[str, Any]", self._field(run_id, Run.spec))

    def submitter(self, run_id: str) -> str | None:
        """Who submitted the run; None: it was made before that was stored.

        Raises:
            NotFoundError: no such run.
        """
        return cast("str | None", self._field(run_id, Run.submitted_by))

    def _field(self, run_id: str, field: InstrumentedAttribute[Any]) -> Any:
        with reading(self._engine) as connection:
            row = connection.execute(select(field).where(Run.id == run_id)).first()
        if row is None:
            raise NotFoundError(f"there is no run {run_id!r}.")
        return row[0]

    def summaries(self, run_ids: Sequence[str]) -> list[RunSummary]:
        """Rows of the run list, in the order asked for.

        Raises:
            NotFoundError: one of them does not exist.
        """
        with reading(self._engine) as connection:
            rows = {
                row.id: row
                for row in connection.execute(
                    select(*_LIST_COLUMNS).where(Run.id.in_(list(run_ids)), _IS_RUN)
                )
            }
        for run_id in run_ids:
            if run_id not in rows:
                raise NotFoundError(f"there is no run {run_id!r}.")
        return [summary_of(rows[run_id]) for run_id in run_ids]

    def page(
        self, query: RunsQuery | None = None, *, sweep: str | None = None, **params: Any
    ) -> tuple[list[RunSummary], str | None, int]:
        """A page of runs, of one sweep or of all, the next cursor, and `how_many` match.

        Raises:
            CursorError: the cursor is of another list.
        """
        query = RunsQuery.of(query, params)
        cursor, limit = query.cursor, query.limit
        where = _conditions(query, sweep)
        scope = scope_of(query.model_dump(exclude={"cursor", "limit"}), sweep)
        key, down = _sort_key(query.sort)
        position: ColumnElement[bool] = literal(True)
        if cursor is not None:
            value, last_id = self._cursors.read(cursor, scope)
            here = tuple_(key, Run.id)
            there = tuple_(literal(value), literal(last_id))
            position = here < there if down else here > there
        order = (key.desc(), Run.id.desc()) if down else (key.asc(), Run.id.asc())
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(*_LIST_COLUMNS, key.label("sort_key"))
                .where(*where, position)
                .order_by(*order)
                .limit(limit + 1)
            ).all()
            first_page = len(rows) if cursor is None else None
            total = how_many(connection, Run, where, first_page=first_page, limit=limit)
        next_cursor = None
        if len(rows) > limit:
            rows = rows[:limit]
            next_cursor = self._cursors.write(scope, [rows[-1].sort_key, rows[-1].id])
        return [summary_of(row) for row in rows], next_cursor, total

    def groups(self, filters: RunFilter) -> list[RunGroup]:
        """Runs in groups that differ in their seed alone, of the newest that match."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(*_LIST_COLUMNS, Run.spec, Sweep.name.label("sweep_name"))
                .outerjoin(Sweep, Sweep.id == Run.sweep_id)
                .where(*_conditions(filters))
                .order_by(Run.created_at.desc(), Run.id.desc())
                .limit(_GROUPED)
            ).all()
        found: dict[tuple[str | None, str], list[Row[*tuple[Any, ...]]]] = {}
        for row in rows:
            key = without_seed(row.spec)
            if row.sweep_id is not None:  # `3.evaluation.0.001.2` ends in the seed
                key = row.sweep_key.rpartition(".")[0]
            found.setdefault((row.sweep_id, key), []).append(row)
        return [_group(alike) for alike in found.values()]

    def with_spectra(
        self, suite: str, *, limit: int
    ) -> list[tuple[RunSummary, dict[str, Any], SpectrumReport]]:
        """The newest finished runs on a suite with their specs and the spectra of their models.

        Models made by `pretrain` were tuned on nothing and are left out.
        """
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(*_LIST_COLUMNS, Run.spec, SpectrumRow.spectrum)
                .join(SpectrumRow, and_(SpectrumRow.run_id == Run.id, SpectrumRow.final.is_(True)))
                .where(Run.phase == "SUCCEEDED", Run.suite == suite, Run.method != "pretrain")
                .where(Run.archived.is_(False), _IS_RUN)
                .order_by(Run.created_at.desc(), Run.id.desc())
                .limit(limit)
            ).all()
        return [
            (summary_of(row), row.spec, SpectrumReport.model_validate(row.spectrum)) for row in rows
        ]

    def suites(self, phases: Sequence[RunPhase] = (), *, limit: int = 200) -> list[SuiteRuns]:
        """The suites of runs that are not archived, that of the newest run first."""
        where = _conditions(RunFilter(phase=tuple(phases)))
        newest = func.max(Run.created_at)
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(Run.suite, func.count(), newest)
                .where(*where)
                .group_by(Run.suite)
                .order_by(newest.desc(), Run.suite)
                .limit(limit)
            ).all()
        return [SuiteRuns(suite=s, runs=n, newest_at=moment(at)) for s, n, at in rows]

    def unfinished_with(self, words: str) -> list[str]:
        """Ids of runs, evaluation jobs and sweeps that are not over, whose specs hold these words.

        Args:
            words: ASCII without quotes and backslashes, as JSON writes them.
        """
        pattern = f"%{words}%"
        with reading(self._engine) as connection:
            return [
                *connection.scalars(
                    select(Run.id)
                    .where(Run.phase.in_(("QUEUED", *WORKING_PHASES)))
                    .where(cast_to(Run.spec, Text).like(pattern))
                ),
                *connection.scalars(
                    select(Sweep.id)
                    .where(Sweep.phase.in_(("RUNNING", "PAUSED", "CANCELLING")))
                    .where(cast_to(Sweep.spec, Text).like(pattern))
                ),
            ]

    def by_phase(self) -> dict[str, int]:
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(Run.phase, func.count()).where(_IS_RUN).group_by(Run.phase)
            ).all()
        return {phase: int(count) for phase, count in rows}

    def queue_depth(self) -> int:
        """How many jobs wait, evaluation jobs among them."""
        with reading(self._engine) as connection:
            queued = select(func.count()).where(is_waiting(Run))
            return int(connection.execute(queued).scalar_one())

    def oldest_queued_s(self) -> float | None:
        """How long the job that waits longest has waited, in seconds."""
        with reading(self._engine) as connection:
            age = connection.execute(
                select(NOW - func.min(Run.queued_at)).where(is_waiting(Run))
            ).scalar()
        return None if age is None else max(0.0, float(age))


#: What is listed and counted as a run; evaluation jobs are rows of the same table.
_IS_RUN = Run.kind == "training"

_LIST_COLUMNS = tuple(c for c in JOB_COLUMNS if c.key not in ("spec", "notes"))


def summary_of(row: Row[*tuple[Any, ...]]) -> RunSummary:
    """The answer of a row of the list's columns."""
    run = RunSummary.model_validate(row, from_attributes=True)
    return run.model_copy(update=completion(run))


#: Newest runs that are looked at for groups.
_GROUPED = 1000
_NUMBERS = ("id_accuracy", "ood_accuracy", "id_ece", "ood_ece", "id_ece_floor", "ood_ece_floor",
            "sigma_min")  # fmt: skip


def _group(rows: Sequence[Row[*tuple[Any, ...]]]) -> RunGroup:
    newest, done = rows[0], [row.summary for row in rows if row.summary is not None]
    values = {name: [one[name] for one in done if one.get(name) is not None] for name in _NUMBERS}
    return RunGroup(
        name=re.sub(r" seed \d+$", "", newest.name),
        sweep_id=newest.sweep_id,
        sweep_name=newest.sweep_name or "",
        method=newest.method,
        model=newest.model,
        suite=newest.suite,
        run_ids=[row.id for row in rows],
        numbers={name: Spread.of(found) for name, found in values.items() if found},
    )


def queue_run(connection: Connection, spec: RunSpec, **values: Any) -> str:
    """Insert a run that waits, with its first event and its message; its id."""
    color_index, now = next_color(connection, spec.suite.id)
    run_id = insert_row(
        connection,
        spec,
        now,
        color_index=color_index,
        model=spec.model.label,
        seed=spec.train.seed,
        queue=queue_of(spec),
        **values,
    )
    add_state_event(connection, run_id, 1, 0, "QUEUED", now)
    enqueue(connection, run_id, values["priority"], now)
    return run_id


def _sort_key(sort: SortKey) -> tuple[ColumnElement[Any], bool]:
    down = sort.startswith("-")
    name = sort.lstrip("-")
    if name == "created":
        return Run.__table__.c.created_at, down
    if name in ("name", "method", "model", "suite", "phase", "seed"):
        return Run.__table__.c[name], down
    # A number that is missing sorts after all others, whichever way: no run is hidden by it.
    return func.coalesce(Run.__table__.c[name], -1e300 if down else 1e300), down


def _conditions(filters: RunFilter, sweep: str | None = None) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = [_IS_RUN]
    for column, values in (
        (Run.phase, filters.phase),
        (Run.method, filters.method),
        (Run.model, filters.model),
        (Run.suite, filters.suite),
    ):
        if values:
            where.append(column.in_(values))
    where += [exists().where(RunTag.run_id == Run.id, RunTag.tag == tag) for tag in filters.tag]
    if filters.archived != "any":
        where.append(Run.archived.is_(filters.archived))
    if sweep is not None:
        where.append(Run.sweep_id == sweep)
    for word in filters.q.split():
        where.append(
            or_(
                Run.name.icontains(word, autoescape=True),
                Run.notes.icontains(word, autoescape=True),
                Run.id.startswith(word, autoescape=True),
            )
        )
    return where
