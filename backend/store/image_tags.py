"""Tags that people put on images: of data, whichever run was tested on it."""

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import Engine, delete, func, insert, select

from backend.store.engine import reading, writing
from backend.store.errors import ConflictError
from backend.store.models import ImageTagRow

#: Tags on the images of one data set: each question about them reads them all.
MOST_TAGS = 20_000
#: Values in one statement.
_AT_ONCE = 500


class ImageTags:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def of(self, data: str) -> tuple[tuple[str, str], ...]:
        """Each (sample, tag) of the data with this digest, in order.

        Two people may put the same tag at the same time: both rows are one tag.
        """
        query = select(ImageTagRow.sample, ImageTagRow.tag).where(ImageTagRow.data == data)
        with reading(self._engine) as connection:
            return tuple(sorted({(row.sample, row.tag) for row in connection.execute(query)}))

    def change(
        self, data: str, samples: Sequence[str], *, add: Collection[str], remove: Iterable[str]
    ) -> None:
        """Put tags on images and take others off; repeatable.

        Raises:
            ConflictError: the data would have more tags than are kept.
        """
        tags = {*add, *remove}
        with writing(self._engine) as connection:
            for start in range(0, len(samples), _AT_ONCE):
                some = samples[start : start + _AT_ONCE]
                connection.execute(
                    delete(ImageTagRow).where(
                        ImageTagRow.data == data,
                        ImageTagRow.tag.in_(tags),
                        ImageTagRow.sample.in_(some),
                    )
                )
                rows = [{"data": data, "sample": s, "tag": t} for s in some for t in set(add)]
                if rows:
                    connection.execute(insert(ImageTagRow), rows)
            held = connection.execute(
                select(func.count()).select_from(ImageTagRow).where(ImageTagRow.data == data)
            ).scalar_one()
            if add and held > MOST_TAGS:
                raise ConflictError(
                    f"a data set keeps at most {MOST_TAGS:,} tags, and would have {held:,}.",
                    hint="Take some off, or tag fewer images.",
                )
