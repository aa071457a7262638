"""Tokens of people and machines; only hashes are kept."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import CursorResult, Engine, Row, func, insert, select, update

from backend.store.engine import NOW, moment, reading, when, writing
from backend.store.models import Token
from calift_core.errors import SpecError

#: The owner of runs that the service's own token submits.
ADMIN_NAME = "admin"


_LONGEST_TOKEN_S = 36_500 * 86_400.0


@dataclass(frozen=True)
class StoredToken:
    id: str
    name: str
    scope: Literal["read", "submit", "admin"]
    secret_sha256: str
    expired: bool
    revoked: bool
    created_at: datetime
    expires_at: datetime | None
    note: str = ""


class Tokens:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(
        self,
        token_id: str,
        *,
        name: str,
        scope: Literal["read", "submit", "admin"],
        secret_sha256: str,
        ttl_s: float | None = None,
        note: str = "",
    ) -> None:
        """Store a token's hash.

        Args:
            token_id: the token's public half.
            name: whose it is. Runs belong to the name, so that a new token of the same person may
                go on with them.
            ttl_s: seconds until it expires; None: never.

        Raises:
            SpecError: there is no name, it is the administrator's, or the time is not positive or
                longer than a hundred years.
        """
        if not name.strip() or len(name) > 120 or not name.isprintable():
            raise SpecError(f"a token's name must have 1 to 120 printable characters, got {name!r}")
        if name == ADMIN_NAME and scope != "admin":
            raise SpecError(
                f"the name {ADMIN_NAME!r} must have the scope admin, got {scope}.",
                hint="Runs belong to names, and this one is the service's own token's.",
            )
        if ttl_s is not None and not 0 < ttl_s <= _LONGEST_TOKEN_S:
            raise SpecError(
                f"a token must expire after more than 0 and at most {_LONGEST_TOKEN_S / 86_400:g} "
                f"days, got {ttl_s / 86_400:g}"
            )
        with writing(self._engine) as connection:
            connection.execute(
                insert(Token).values(
                    id=token_id,
                    name=name,
                    scope=scope,
                    secret_sha256=secret_sha256,
                    note=note,
                    created_at=NOW,
                    expires_at=None if ttl_s is None else NOW + ttl_s,
                )
            )

    def revoke(self, token_id: str) -> bool:
        """Make a token worthless. False: there is no such token that was not revoked already."""
        with writing(self._engine) as connection:
            result = cast(
                "CursorResult[Any]",
                connection.execute(
                    update(Token)
                    .where(Token.id == token_id, Token.revoked_at.is_(None))
                    .values(revoked_at=NOW)
                ),
            )
            return result.rowcount == 1

    def get(self, token_id: str) -> StoredToken | None:
        expired = func.coalesce(Token.expires_at <= NOW, False).label("expired")
        with reading(self._engine) as connection:
            row = connection.execute(
                select(*Token.__table__.columns, expired).where(Token.id == token_id)
            ).first()
        return None if row is None else _token(row)

    def all(self) -> list[StoredToken]:
        """Every token, the oldest first."""
        expired = func.coalesce(Token.expires_at <= NOW, False).label("expired")
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(*Token.__table__.columns, expired).order_by(Token.created_at, Token.id)
            ).all()
        return [_token(row) for row in rows]


def _token(row: Row[*tuple[Any, ...]]) -> StoredToken:
    return StoredToken(
        id=row.id,
        name=row.name,
        scope=row.scope,
        secret_sha256=row.secret_sha256,
        expired=bool(row.expired),
        revoked=row.revoked_at is not None,
        created_at=moment(row.created_at),
        expires_at=when(row.expires_at),
        note=row.note,
    )
