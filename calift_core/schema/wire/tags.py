"""Tags on images of a data set, and the map of its features."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from calift_core.schema.base import Frozen
from calift_core.schema.wire.queries import Query, SampleFilter, StorableText
from calift_core.schema.wire.results import Source


def _nameable(tag: str) -> str:
    """Refuse what a condition could not name: `tag == "blurry"`."""
    if not tag.strip() or tag != tag.strip() or not tag.isprintable() or set(tag) & set("\"'"):
        raise ValueError("a tag must be printable text without quotes and outer blanks")
    return tag


Tag = Annotated[StorableText, Field(max_length=40), AfterValidator(_nameable)]


MapState = Literal["none", "making", "ready", "failed"]


class FeatureMap(Frozen):
    """Image features of an evaluation in a plane, N images; empty columns until it is `ready`.

    Near points are alike, distances between clusters mean little. `clusters` are of k-means in the
    features themselves, −1 where there are none.
    """

    source: Source
    state: MapState
    reason: str = ""
    class_names: list[str] = []
    cluster_names: list[str] = []
    ids: list[str] = []
    x: list[float] = []
    y: list[float] = []
    labels: list[int] = []
    predicted: list[int] = []
    confidences: list[float] = []
    clusters: list[int] = []


class ImageTag(Frozen):
    """A tag on an image."""

    sample: str
    tag: str


class ImageTags(Frozen):
    """All tags on the images of the data that an evaluation is of, whichever run they came with."""

    dataset: str
    items: list[ImageTag]


class ImageTagsChange(Query):
    """Tags that are put on images and taken off: on those that are named, or that meet a filter."""

    add: list[Tag] = Field(default=[], max_length=20)
    remove: list[Tag] = Field(default=[], max_length=20)
    samples: list[str] | None = Field(default=None, max_length=1000, examples=[["cat/1.jpg"]])
    where: SampleFilter | None = None

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if (self.samples is None) == (self.where is None):
            raise ValueError("either samples or where must say which images are meant")
        return self
