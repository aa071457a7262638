"""What a run said, read back while it works and after: curves, spectra, events, log."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from sqlalchemy import Engine, func, select

from backend.store.engine import reading
from backend.store.models import Event, LogChunk, Metric, Run, SpectrumRow
from backend.store.states import must_exist
from calift_core.schema.wire.results import Spectrum
from calift_core.schema.wire.runs import (
    TERMINAL_PHASES,
    LogPage,
    Metrics,
    MetricSeries,
    RunEvent,
    RunPhase,
)


@dataclass(frozen=True)
class Position:
    """Where a run is: its phase, and the id of its newest event."""

    phase: RunPhase
    last_event: int


class History:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def metrics(
        self,
        run_id: str,
        *,
        names: Sequence[str] = (),
        since_step: int = -1,
        max_points: int | None = None,
    ) -> Metrics:
        """The curves after `since_step`, each thinned to `max_points` with its extremes kept.

        `last_step` is the run's newest step, or `since_step` when nothing is newer.

        Raises:
            NotFoundError: no such run.
        """
        query = (
            select(Metric.name, Metric.step, Metric.value)
            .where(Metric.run_id == run_id, Metric.step > since_step)
            .order_by(Metric.name, Metric.step)
        )
        if names:
            query = query.where(Metric.name.in_(list(names)))
        with reading(self._engine) as connection:
            must_exist(connection, run_id)
            newest = connection.execute(
                select(func.max(Metric.step)).where(Metric.run_id == run_id)
            ).scalar()
            curves: dict[str, tuple[list[int], list[float]]] = {}
            for name, step, value in connection.execute(query):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
        series = []
        for name, (steps, values) in curves.items():
            keep = thin(values, max_points)
            series.append(
                MetricSeries(
                    name=name, steps=[steps[i] for i in keep], values=[values[i] for i in keep]
                )
            )
        last = max(since_step, newest if newest is not None else since_step)
        return Metrics(series=series, last_step=max(last, 0))

    def spectra(self, run_id: str) -> list[Spectrum]:
        """A run's spectra by step, the finished model's last.

        Raises:
            NotFoundError: no such run.
        """
        with reading(self._engine) as connection:
            must_exist(connection, run_id)
            rows = connection.execute(
                select(*SpectrumRow.__table__.columns)
                .where(SpectrumRow.run_id == run_id)
                .order_by(SpectrumRow.final, SpectrumRow.step)
            ).all()
        return [
            Spectrum(**row.spectrum, run_id=row.run_id, step=row.step, final=row.final)
            for row in rows
        ]

    def events_after(
        self, run_id: str, after: int = 0, limit: int = 500
    ) -> tuple[list[RunEvent], RunPhase]:
        """Events with a greater id, and the phase as it was before they were read.

        A terminal phase with no events left means: that was all.

        Raises:
            NotFoundError: no such run.
        """
        with reading(self._engine) as connection:
            phase = cast("RunPhase", must_exist(connection, run_id).phase)
            rows = connection.execute(
                select(*Event.__table__.columns)
                .where(Event.run_id == run_id, Event.id > after)
                .order_by(Event.id)
                .limit(limit)
            ).all()
        events = [RunEvent.model_validate(row, from_attributes=True) for row in rows]
        return events, phase

    def positions(self, run_ids: Sequence[str]) -> dict[str, Position]:
        """Where these runs are, in one statement; those that are gone are left out."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(Run.id, Run.phase, Run.event_seq).where(Run.id.in_(list(run_ids)))
            ).all()
        return {r.id: Position(cast("RunPhase", r.phase), r.event_seq) for r in rows}

    def logs(
        self, run_id: str, *, offset: int = 0, limit: int = 65_536, tail: int | None = None
    ) -> LogPage:
        """A piece of the log from a byte offset (negative: from the end), cut between characters.

        Args:
            offset: byte; without meaning beside `tail`.
            limit: bytes at most.
            tail: the last lines, as far as they are within `limit`.

        Raises:
            NotFoundError: no such run.
        """
        if tail is not None:
            offset = -limit
        with reading(self._engine) as connection:
            run = must_exist(connection, run_id)
            start = max(0, run.log_bytes + offset) if offset < 0 else min(offset, run.log_bytes)
            first = (
                select(func.coalesce(func.max(LogChunk.start), 0))
                .where(LogChunk.run_id == run_id, LogChunk.start <= start)
                .scalar_subquery()
            )
            rows = connection.execute(
                select(LogChunk.start, LogChunk.body)
                .where(
                    LogChunk.run_id == run_id,
                    LogChunk.start >= first,
                    LogChunk.start < start + limit,
                )
                .order_by(LogChunk.start)
            ).all()
        raw = b"".join(bytes(r.body) for r in rows)
        base = rows[0].start if rows else start
        raw = raw[start - base : start - base + limit]
        lead = 0
        if offset < 0:
            while lead < min(3, len(raw)) and raw[lead] & 0xC0 == 0x80:
                lead += 1
        end = start + len(raw)
        finished = run.phase in TERMINAL_PHASES and end >= run.log_bytes
        if not finished:
            raw = raw[: _whole_characters(raw)]
        if tail is not None:
            lines = raw[lead:].splitlines(keepends=True)
            lead = len(raw) - sum(map(len, lines[-tail:] if tail else []))
        return LogPage(
            text=raw[lead:].decode("utf-8", "replace"),
            offset=start + lead,
            next_offset=start + len(raw),
            size_bytes=run.log_bytes,
            complete=finished,
        )


def thin(values: Sequence[float], max_points: int | None) -> list[int]:
    """Indices of at most `max_points` values: first, last, and each stretch's lowest and highest.

    The extremes of the whole curve always stay, so a spike cannot vanish by zooming out.
    """
    n = len(values)
    if max_points is None or n <= max_points:
        return list(range(n))
    if max_points < 4:
        # Too few for stretches: the last value, then the extremes, then the first.
        array = np.asarray(values)
        order = [n - 1, int(array.argmin()), int(array.argmax()), 0]
        return sorted(set(list(dict.fromkeys(order))[:max_points]))
    array = np.asarray(values)
    edges = np.linspace(1, n - 1, (max_points - 2) // 2 + 1).astype(int)
    keep = {0, n - 1}
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        if high > low:
            piece = array[low:high]
            keep.update((low + int(piece.argmin()), low + int(piece.argmax())))
    return sorted(keep)


def _whole_characters(raw: bytes) -> int:
    """How many bytes of UTF-8 end with a whole character; a character has at most four bytes."""
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        if byte & 0xC0 != 0x80:
            length = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(raw) if back >= length else len(raw) - back
    return len(raw)
