"""How a run's row comes to be: one per request, and no more than may wait."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from sqlalchemy import Connection, Engine, bindparam, case, delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from backend.store.engine import NOW, reading, writing
from backend.store.errors import ConflictError, IdempotencyError, QueueFullError
from backend.store.fairness import Quotas
from backend.store.models import Run, RunTag, Sweep
from backend.store.states import waiting
from calift_core.schema.imported import ImportedSpec
from calift_core.schema.spec import RunSpec


class JobRequest(TypedDict, total=False):
    """Who asks for a job, and how it is to be queued.

    Attributes:
        max_attempts: attempts that may be lost (worker gone) before the job fails.
        idempotency_key: names this request among those of the token.
        body_hash: of the whole request; the key must come back with the same.
        cloned_from: the run that the spec was copied from.
        submitted_by: whose job it is: the name of the token.
    """

    priority: int
    max_attempts: int
    idempotency_key: str | None
    body_hash: str | None
    cloned_from: str | None
    token_id: str
    submitted_by: str | None
    request_id: str | None


def at_most_once(
    engine: Engine,
    make: Callable[[Connection], str],
    request: JobRequest,
    table: type[Run] | type[Sweep] = Run,
) -> str:
    """Make a run and return its id, or the id that the same key and body gave before.

    Args:
        request: without an idempotency key it is made in any case.
        table: what is made: a run or a sweep.

    Raises:
        IdempotencyError: the key came with another body before.
    """
    key = request.get("idempotency_key")
    for _ in range(2):
        try:
            with writing(engine) as connection:
                return earlier_request(connection, request, table) or make(connection)
        except IntegrityError:
            # Two requests with one key at the same moment: the loser reads the winner's row.
            if key is None:
                raise
    raise ConflictError(f"the idempotency key {key!r} is being used right now.")


def find_earlier(
    engine: Engine, request: JobRequest, table: type[Run] | type[Sweep] = Run
) -> str | None:
    """As `earlier_request`, in a transaction of its own.

    To be asked before a request is looked at: what it names may have gone since.
    """
    with reading(engine) as connection:
        return earlier_request(connection, request, table)


def earlier_request(
    connection: Connection, request: JobRequest, table: type[Run] | type[Sweep] = Run
) -> str | None:
    """The run, or the sweep, that a request with this key made before; None without a key.

    Raises:
        IdempotencyError: the key came with another body then.
    """
    key = request.get("idempotency_key")
    if key is None:
        return None
    row = connection.execute(
        select(table.id, table.body_hash).where(
            table.token_id == (request.get("token_id") or ""), table.idempotency_key == key
        )
    ).first()
    if row is None:
        return None
    if row.body_hash != request.get("body_hash"):
        raise IdempotencyError(
            f"the idempotency key {key!r} was used with another request before.",
            hint="Use a new key for a new request.",
        )
    return str(row.id)


def require_room(
    connection: Connection, quotas: Quotas, token_id: str, owner: str | None, max_queued: int | None
) -> None:
    """Raise unless a token and its owner may have one more job waiting.

    Raises:
        QueueFullError: as many are waiting as may.
        ArtifactQuotaError: the owner's files take up too much.
    """
    quotas.check(connection, owner)
    if max_queued is not None:
        check_queue(connection, token_id, max_queued)


def check_queue(connection: Connection, token_id: str, limit: int) -> None:
    """Raise unless a token may have one more run waiting.

    Raises:
        QueueFullError: it may not.
    """
    queued = connection.execute(_WAITING, {"token_id": token_id}).scalar_one()
    if queued >= limit:
        raise QueueFullError(
            f"{queued} of your runs are waiting, and {limit} may.",
            hint="Wait for some to start, or cancel some.",
        )


#: Newest runs that are looked through for one on the same suite.
_RECENT = 500


def insert_row(
    connection: Connection, spec: RunSpec | ImportedSpec, now: float, **values: Any
) -> str:
    """Insert a run and its tags; its id. What the spec does not say comes as `values`."""
    run_id = new_id()
    row = {
        "id": run_id,
        "name": spec.name,
        "notes": spec.notes,
        "tags": list(spec.tags),
        "spec": spec.model_dump(mode="json"),
        "spec_sha256": spec.content_hash(),
        "method": spec.method.kind,
        "suite": spec.suite.id,
        # One moment: created_at and queued_at of a new run are the same.
        "created_at": now,
        "queued_at": now,
        "line_at": now,
        "event_seq": 1,
    }
    connection.execute(_INSERT, row | values)
    _add_tags(connection, run_id, spec.tags)
    return run_id


_INSERT = insert(Run)
_NEWEST = (
    select(Run.suite, Run.color_index, Run.created_at)
    .where(Run.kind == "training")
    .order_by(Run.created_at.desc(), Run.id.desc())
    .limit(_RECENT)
    .subquery()
)
_OF_SUITE = case((_NEWEST.c.suite == bindparam("suite"), _NEWEST.c.color_index))
_COLOR = select(func.max(_OF_SUITE), NOW, func.max(_NEWEST.c.created_at))
_WAITING = select(func.count()).where(Run.token_id == bindparam("token_id"), waiting(Run))


def next_color(connection: Connection, suite: str) -> tuple[int, float]:
    """One more than the newest run on the suite has, and what the database's clock says.

    Two that come at once may have the same colour.
    """
    last, now, newest = connection.execute(_COLOR, {"suite": suite}).one()
    if newest is not None and now <= newest < now + 1e-3:
        now = newest + 1e-6  # SQLite's clock has milliseconds, and the first in line is the oldest
    return 0 if last is None else int(last) + 1, float(now)


def set_tags(connection: Connection, run_id: str, tags: Sequence[str]) -> None:
    connection.execute(delete(RunTag).where(RunTag.run_id == run_id))
    _add_tags(connection, run_id, tags)


def _add_tags(connection: Connection, run_id: str, tags: Sequence[str]) -> None:
    if tags:
        connection.execute(
            insert(RunTag), [{"run_id": run_id, "tag": t} for t in dict.fromkeys(tags)]
        )


def new_id() -> str:
    """A fresh run id: 12 hex digits, short enough to read out, and no number in anybody's YAML."""
    while True:
        made = secrets.token_hex(6)
        if not set(made) <= set("0123456789e"):  # `12e456789012` is infinite
            return made
