"""The first run in line, found without looking at every run that waits.

Each owner's line in each queue is a stretch of one partial index (`ix_runs_line`), so that its head
is one probe. A claim compares the heads: owners × queues, however many runs wait.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    Connection,
    Integer,
    Row,
    Select,
    String,
    Subquery,
    and_,
    bindparam,
    func,
    select,
    true,
    union_all,
)
from sqlalchemy.orm import aliased
from sqlalchemy.sql.elements import ColumnElement

from backend.store.fairness import fairness
from backend.store.models import Run
from backend.store.states import waiting

#: Heads that are tried when other claims hold the first ones at this moment.
_TRIED = 20

_Found = Row[*tuple[Any, ...]]


def first_in_line(
    connection: Connection,
    served: Sequence[str],
    *,
    message_run: str | None,
    quota_running: int = 0,
) -> _Found | None:
    """`id` and `queue` of the run that is next, its row locked. None: none waits that may be taken.

    Args:
        served: queues, `auto` among them where it is served.
        message_run: a run that may be taken whatever its queue is.
        quota_running: owners who have so many runs at work wait; 0: nobody does.
    """
    params: dict[str, Any] = {} if message_run is None else {"message_run": message_run}
    if quota_running:
        params |= {"quota": quota_running}
    query = _heads_in_order(tuple(served), message_run is not None, bool(quota_running))
    found = connection.execute(query, params).all()
    for head in found:
        taken = connection.execute(_locked(_behind(head, served))).first()
        if taken is not None:
            return taken
    if not found:
        return None
    # Other claims hold all of these at this very moment: whatever is free, then, in any turn.
    fair = fairness()
    allowed = fair.at_work < quota_running if quota_running else true()
    rest = and_(waiting(Run), Run.queue.in_(list(served)), allowed)
    return connection.execute(_locked(rest, fair.joined)).first()


# Put together once and not at each claim, which it would take longer than the database.
@lru_cache(maxsize=256)
def _heads_in_order(served: tuple[str, ...], message_run: bool, quota: bool) -> Select[Any]:
    """The first runs of all lines, the next one first; parameters `message_run` and `quota`."""
    fair = fairness()
    heads = _heads(served, message_run)
    wanted = select(Run.id, Run.queue, Run.submitted_by, Run.priority)
    query = fair.joined(wanted.join(heads, heads.c.id == Run.id))
    if quota:
        query = query.where(fair.at_work < bindparam("quota", type_=Integer))
    order = (Run.priority.desc(), *fair.order, Run.line_at, Run.id)
    return query.order_by(*order).limit(_TRIED)


def _behind(head: _Found, served: Sequence[str]) -> ColumnElement[bool]:
    if head.queue not in served:  # came by its message, and nobody behind it may be taken
        return and_(waiting(Run), Run.id == head.id)
    owner: ColumnElement[bool] = Run.submitted_by.is_(None)
    if head.submitted_by is not None:
        owner = Run.submitted_by == head.submitted_by
    return and_(waiting(Run), owner, Run.queue == head.queue, Run.priority == head.priority)


def _locked(condition: ColumnElement[bool], joined: Any = lambda query: query) -> Select[Any]:
    return (  # type: ignore[no-any-return]
        joined(select(Run.id, Run.queue))
        .where(condition)
        .order_by(Run.priority.desc(), Run.line_at, Run.id)
        .limit(1)
        # SQLite has one writer and no such clause.
        .with_for_update(skip_locked=True, of=Run)
    )


def _heads(served: Sequence[str], message_run: bool) -> Subquery:
    """The id of the first run of each owner in each queue, and that of the message's run."""
    owners = _owners()
    parts: list[Select[Any]] = []
    for queue in served:
        parts.append(select(_head(queue, owners).label("id")).select_from(owners))
        parts.append(select(_head(queue, None).label("id")))
    if message_run:
        named = Run.id == bindparam("message_run", type_=String)
        parts.append(select(Run.id).where(named, Run.phase == "QUEUED"))
    return union_all(*parts).subquery("heads")


def _owners() -> CTE:
    """Who has a run that waits, one probe each; a null at the end, which equals nobody."""
    owners = (
        select(func.min(Run.submitted_by).label("owner"))
        .where(waiting(Run))
        .cte("owners", recursive=True)
    )
    line = aliased(Run)
    following = select(func.min(line.submitted_by)).where(
        waiting(line), line.submitted_by > owners.c.owner
    )
    return owners.union_all(
        select(following.correlate(owners).scalar_subquery()).where(owners.c.owner.is_not(None))
    )


def _head(queue: str, owners: CTE | None) -> Any:
    def of_owner(line: Any) -> ColumnElement[bool]:
        whose = (
            line.submitted_by.is_(None) if owners is None else line.submitted_by == owners.c.owner
        )
        return and_(waiting(line), whose, line.queue == queue)

    line, highest = aliased(Run), aliased(Run)
    top = select(func.max(highest.priority)).where(of_owner(highest))
    if owners is not None:
        top = top.correlate(owners)
    first = (
        select(line.id)
        .where(of_owner(line), line.priority == top.scalar_subquery())
        .order_by(line.line_at, line.id)
        .limit(1)
    )
    return (first.correlate(owners) if owners is not None else first).scalar_subquery()
