"""Cursors of paged lists: where a page ended, signed, so that nobody else's values come back.

A cursor goes into SQL as values. Whoever could write one could send numbers and texts that a
database driver chokes on; so only what this service signed is read at all.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from itsdangerous import BadData, URLSafeSerializer
from sqlalchemy import Connection, Double, Row, Select, func, literal, select, tuple_
from sqlalchemy.sql.elements import ColumnElement

from backend.store.models import Base
from calift_core.errors import SpecError
from calift_core.schema.wire.queries import MAX_CURSOR
from calift_core.schema.wire.runs import COUNTED


def how_many(
    connection: Connection,
    table: type[Base],
    where: Sequence[ColumnElement[bool]],
    *,
    first_page: int | None = None,
    limit: int,
) -> int:
    """How many rows match, counted to `COUNTED` + 1 at most.

    Args:
        where: what they must be.
        first_page: rows that the list begins with, one more than `limit` where there are more; so
            a short list needs no count. None: the page is a later one.
    """
    if first_page is not None and first_page <= limit:
        return first_page
    some = select(literal(1)).select_from(table).where(*where).limit(COUNTED + 1).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


class CursorError(SpecError):
    """A cursor that this list did not give."""

    code = "INVALID_CURSOR"


class Cursors:
    """Writes and reads cursors.

    Args:
        key: secret; processes that share it read each other's cursors.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def _signed(self, scope: str) -> URLSafeSerializer:
        return URLSafeSerializer(
            self._key,
            # A cursor of another list has another salt, so its signature is wrong here.
            salt=f"calift.cursor.{scope}",
            signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
        )

    def write(self, scope: str, values: Sequence[Any]) -> str:
        """The cursor behind the row with these sort values, of the list called `scope`."""
        written = self._signed(scope).dumps(list(values))
        return written if isinstance(written, str) else written.decode()

    def read(self, cursor: str, scope: str) -> list[Any]:
        """The values that were written.

        Raises:
            CursorError: it is longer than any of ours, or was not signed by us for this list.
        """
        try:
            if len(cursor) > MAX_CURSOR or not cursor.isascii():
                raise BadData("not one of ours")
            found: list[Any] = self._signed(scope).loads(cursor)
        except BadData as error:
            raise CursorError(
                "the cursor does not belong to this list.",
                hint="Take it from next_cursor of the same filters and order, or leave it out.",
            ) from error
        return found

    def newest(
        self,
        connection: Connection,
        query: Select[Any],
        table: Any,
        scope: str,
        cursor: str | None,
        limit: int,
    ) -> tuple[Sequence[Row[Any]], str | None]:
        """A page of a list that begins with what was made last, and the cursor of the next one.

        Args:
            query: gives `created_at` and `id` of the table, among what else is wanted.
            table: that has `created_at` and `id`.
            scope: of the list, see `scope_of`.
            cursor: of the page before; None: the first page.

        Raises:
            CursorError: the cursor is of another list.
        """
        if cursor is not None:
            created, last_id = self.read(cursor, scope)
            query = query.where(
                tuple_(table.created_at, table.id)
                < tuple_(literal(created, Double), literal(last_id))
            )
        last_first = query.order_by(table.created_at.desc(), table.id.desc())
        rows = connection.execute(last_first.limit(limit + 1)).all()
        if len(rows) <= limit:
            return rows, None
        rows = rows[:limit]
        return rows, self.write(scope, [rows[-1].created_at, rows[-1].id])


def scope_of(*parts: Any) -> str:
    """What a list is asked for, as the scope that its cursors are signed for."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
