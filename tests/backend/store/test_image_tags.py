"""Tags on images."""

from sqlalchemy import insert

from backend.store.engine import writing
from backend.store.models import ImageTagRow


def test_tag__that_two_people_put_at_once_is_one_and_goes_as_one(store):
    for _ in range(2):  # what two transactions leave that did not see each other
        with writing(store.engine) as connection:
            connection.execute(insert(ImageTagRow), [{"data": "d", "sample": "s", "tag": "blurry"}])
    assert store.image_tags.of("d") == (("s", "blurry"),)
    store.image_tags.change("d", ["s"], add=["dark"], remove=["blurry"])
    assert store.image_tags.of("d") == (("s", "dark"),)
    assert store.image_tags.of("other") == ()
