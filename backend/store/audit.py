"""Who did what to which object. Rows are only added, and leave when they are old."""

from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import CursorResult, Engine, delete, insert, select

from backend.store.engine import NOW, plain, reading, writing
from backend.store.models import AuditRow
from calift_core.schema.wire.operations import AuditEntry, AuditPage

_INSERT = insert(AuditRow).values(at=NOW)


class Audit:
    """The log of what people changed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(
        self,
        *,
        actor: str,
        token_id: str,
        action: str,
        target: str,
        request_id: str,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Note what somebody did.

        Args:
            token_id: which of that name's.
            action: the operation's name, such as `cancel_run`.
            target: the object's id; empty where there is none.
            request_id: of the request, as in the service's log.
            detail: what else tells, such as the ids of a bulk action.
        """
        with writing(self._engine) as connection:
            connection.execute(
                _INSERT,
                {
                    "actor": plain(actor[:120]),
                    "token_id": token_id[:64],
                    "action": action[:64],
                    "target": plain(target[:300]),
                    "request_id": request_id[:64],
                    "detail": dict(detail or {}),
                },
            )

    def page(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        target: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> AuditPage:
        """Entries, the newest first; `next_before` of a page is what to ask for next.

        Args:
            actor: of this one alone.
            action: of this operation alone.
            target: of this object alone.
            before: older than the entry of this id.
        """
        query = select(*AuditRow.__table__.columns).order_by(AuditRow.id.desc()).limit(limit + 1)
        given = ((AuditRow.actor, actor), (AuditRow.action, action), (AuditRow.target, target))
        for column, wanted in given:
            if wanted is not None:
                query = query.where(column == wanted)
        if before is not None:
            query = query.where(AuditRow.id < before)
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        items = [AuditEntry.model_validate(row, from_attributes=True) for row in rows[:limit]]
        return AuditPage(items=items, next_before=items[-1].id if len(rows) > limit else None)

    def forget(self, *, age_s: float) -> int:
        """Remove entries that are older; how many."""
        with writing(self._engine) as connection:
            result = connection.execute(delete(AuditRow).where(AuditRow.at < NOW - age_s))
            return int(cast("CursorResult[Any]", result).rowcount)
