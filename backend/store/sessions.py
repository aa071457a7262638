"""Log-ins and the links that become one; only hashes are kept."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import CursorResult, Engine, and_, delete, insert, select, update

from backend.store.engine import NOW, moment, reading, writing
from backend.store.models import Session


@dataclass(frozen=True)
class StoredSession:
    """A log-in, or a link that becomes one, as the database knows it.

    Attributes:
        kind: `session` or `link`.
        subject: the name of a person who logged in without any token.
        valid: neither ended, used nor too old; what the token may still do is not looked at.
    """

    id: str
    kind: str
    secret_sha256: str
    token_id: str
    token_sha256: str
    expires_at: datetime
    subject: str | None
    valid: bool


class Sessions:
    """Log-ins and links."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(
        self,
        session_id: str,
        *,
        kind: Literal["session", "link"],
        secret_sha256: str,
        token_id: str,
        token_sha256: str,
        ttl_s: float,
        link_id: str | None = None,
        subject: str | None = None,
    ) -> StoredSession | None:
        """Store a log-in's hash, and forget those that are too old.

        Args:
            kind: a `session`, or a `link` that can become one once.
            link_id: the link that it is made of, used up in the same step.
            subject: the name of a person who logs in without any token.

        Returns:
            None when that link was used before, or is too old; then nothing is stored.
        """
        with writing(self._engine) as connection:
            if link_id is not None:
                used = connection.execute(
                    update(Session)
                    .where(
                        Session.id == link_id,
                        Session.kind == "link",
                        Session.ended_at.is_(None),
                        Session.expires_at > NOW,
                    )
                    .values(ended_at=NOW)
                )
                if cast("CursorResult[Any]", used).rowcount != 1:
                    return None
            # A used link is kept for a day, so that it is told from one that never was.
            connection.execute(delete(Session).where(Session.expires_at < NOW - 86_400.0))
            connection.execute(
                insert(Session).values(
                    id=session_id,
                    kind=kind,
                    secret_sha256=secret_sha256,
                    token_id=token_id,
                    token_sha256=token_sha256,
                    created_at=NOW,
                    expires_at=NOW + ttl_s,
                    subject=subject,
                )
            )
        return self.get(session_id)

    def get(self, session_id: str) -> StoredSession | None:
        """A log-in or link by its public half."""
        valid = and_(Session.ended_at.is_(None), Session.expires_at > NOW).label("valid")
        with reading(self._engine) as connection:
            row = connection.execute(
                select(*Session.__table__.columns, valid).where(Session.id == session_id)
            ).first()
        if row is None:
            return None
        return StoredSession(
            id=row.id,
            kind=row.kind,
            secret_sha256=row.secret_sha256,
            token_id=row.token_id,
            token_sha256=row.token_sha256,
            expires_at=moment(row.expires_at),
            subject=row.subject,
            valid=bool(row.valid),
        )

    def end(self, session_id: str) -> None:
        """Log out; repeatable."""
        with writing(self._engine) as connection:
            connection.execute(
                update(Session)
                .where(Session.id == session_id, Session.ended_at.is_(None))
                .values(ended_at=NOW)
            )
