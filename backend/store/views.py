"""Pages of the dashboard as people left them, under an id that is short enough to send."""

import secrets
from typing import Any

from sqlalchemy import Engine, Row, delete, func, insert, select

from backend.store.engine import NOW, reading, writing
from backend.store.errors import ConflictError
from backend.store.models import View
from calift_core.errors import NotFoundError
from calift_core.schema.wire.operations import SavedView, ViewSave

#: One owner keeps at most so many.
MOST_VIEWS = 500


class Views:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, view: ViewSave, *, owner: str) -> SavedView:
        """Keep a view.

        Raises:
            ConflictError: the owner has as many as may be kept.
        """
        made = secrets.token_hex(4)
        with writing(self._engine) as connection:
            held = connection.execute(
                select(func.count()).select_from(View).where(View.owner == owner)
            ).scalar_one()
            if held >= MOST_VIEWS:
                raise ConflictError(
                    f"{owner} has {held} saved views, and {MOST_VIEWS} may be kept.",
                    hint="Delete some first.",
                )
            connection.execute(
                insert(View).values(id=made, owner=owner, created_at=NOW, **view.model_dump())
            )
        return self.get(made)

    def get(self, view_id: str) -> SavedView:
        """One view.

        Raises:
            NotFoundError: there is none of this id.
        """
        with reading(self._engine) as connection:
            row = connection.execute(
                select(*View.__table__.columns).where(View.id == view_id)
            ).first()
        if row is None:
            raise NotFoundError(f"there is no saved view {view_id!r}.")
        return _view(row)

    def all(self, *, page: str | None = None) -> list[SavedView]:
        """Everybody's views, of one page or of all, the newest first; at most 200."""
        query = select(*View.__table__.columns).order_by(View.created_at.desc(), View.id).limit(200)
        if page is not None:
            query = query.where(View.page == page)
        with reading(self._engine) as connection:
            return [_view(row) for row in connection.execute(query).all()]

    def delete(self, view_id: str) -> None:
        """Forget a view; repeatable."""
        with writing(self._engine) as connection:
            connection.execute(delete(View).where(View.id == view_id))


def _view(row: Row[*tuple[Any, ...]]) -> SavedView:
    return SavedView.model_validate(row, from_attributes=True)
