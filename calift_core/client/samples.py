"""Calls about single samples and their images."""

from collections.abc import Sequence
from typing import Any

from calift_core.client.connection import Connection, url_path
from calift_core.client.operations import OperationOf
from calift_core.schema.wire.queries import (
    DoubtfulQuery,
    LooksQuery,
    MapQuery,
    SampleAnswersQuery,
    SampleFilter,
    SamplesQuery,
)
from calift_core.schema.wire.results import (
    CorrectedManifest,
    CorrectionsRequest,
    DoubtfulLabels,
    LabelCorrection,
    SampleHistory,
    SampleLooks,
    SamplePage,
    SampleTraits,
)
from calift_core.schema.wire.tags import FeatureMap, ImageTags, ImageTagsChange


class SampleCalls(Connection):
    """Samples of an evaluation."""

    samples = OperationOf("/evaluations/{}/samples", SamplesQuery, SamplePage, 300.0)
    """Samples of an evaluation one by one, with what the model says of each.

    With `text` or `like` those come first that the run's own towers see as most alike; a model that
    is asked for the first time is loaded for seconds.
    """

    feature_map = OperationOf("/evaluations/{}/map", MapQuery, FeatureMap)
    """Image features in a plane, each image with what the model says of it; see `state`."""

    def make_feature_map(self, evaluation_id: str) -> FeatureMap:
        """Have that map made; `feature_map` has it when it is `ready`."""
        return self._post(url_path("/evaluations", evaluation_id, "map"), FeatureMap)

    def image_tags(self, evaluation_id: str) -> ImageTags:
        """Tags on images of the data that an evaluation is of."""
        return self._get(url_path("/evaluations", evaluation_id, "tags"), ImageTags)

    def tag_images(
        self,
        evaluation_id: str,
        samples: Sequence[str] | None = None,
        *,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        where: SampleFilter | None = None,
    ) -> ImageTags:
        """Put tags on images and take others off; every run that was tested on them has them.

        Args:
            samples: ids of images, at most 1,000; None: those that meet `where`.
        """
        change = {"samples": samples, "where": where, "add": list(add), "remove": list(remove)}
        body = ImageTagsChange.of(params=change)
        path = url_path("/evaluations", evaluation_id, "tags")
        return self._post(path, ImageTags, body)

    sample_traits = OperationOf("/evaluations/{}/samples/traits", SampleFilter, SampleTraits)
    """Classes that the chosen samples have more often than the rest."""

    sample_looks = OperationOf("/evaluations/{}/samples/looks", LooksQuery, SampleLooks)
    """How the chosen images look against the rest."""

    doubtful_labels = OperationOf("/evaluations/{}/samples/doubtful", DoubtfulQuery, DoubtfulLabels)
    """Likely label errors: all runs of the suite say the same other class, and surely."""

    def correct_labels(
        self, evaluation_id: str, corrections: Sequence[LabelCorrection]
    ) -> CorrectedManifest:
        """The manifest of an evaluation's data with some labels corrected; nothing is written.

        Args:
            evaluation_id: of an evaluation on images that are files, not on a corruption.
            corrections: of some of its samples; see `doubtful_labels`.

        Raises:
            ServiceError: 422 where they are of other data or name other classes; says which.
        """
        path = url_path("/evaluations", evaluation_id, "corrected")
        request = CorrectionsRequest(corrections=list(corrections))
        return self._post(path, CorrectedManifest, request)

    def sample_answers(
        self,
        evaluation_id: str,
        sample_id: str,
        query: SampleAnswersQuery | None = None,
        **params: Any,
    ) -> SampleHistory:
        """What a run says of one image on ID data and under each corruption."""
        path = url_path("/samples", evaluation_id, sample_id, "answers")
        return self._ask(path, SampleHistory, SampleAnswersQuery.of(query, params))

    def thumbnail(self, evaluation_id: str, sample_id: str, *, size: int = 160) -> bytes:
        """The image of a sample as the model saw it, as PNG or JPEG.

        Args:
            evaluation_id: of the evaluation that it is in.
            sample_id: its id there.
            size: pixels of its longer side, from 64 to 512.

        Raises:
            ServiceError: 404 with the code `NO_IMAGE` where no image of it is known.
        """
        return self._picture(url_path("/samples", evaluation_id, sample_id, "thumbnail"), size)

    def run_thumbnail(
        self, run_id: str, sample_id: str, *, dataset: str = "train", size: int = 160
    ) -> bytes:
        """A training image that `try_picture` named, or one of a far set, as PNG or JPEG.

        Args:
            run_id: of the run that was asked.
            sample_id: the image's id.
            dataset: `train`, or the far set's name in the run's suite.
            size: pixels of its longer side, from 64 to 512.

        Raises:
            ServiceError: 404 where the run kept no features of it, or no image of it is known.
        """
        path = url_path("/runs", run_id, "images", sample_id, "thumbnail")
        return self._picture(path, size, dataset=dataset)

    def _picture(self, path: str, size: int, **params: str) -> bytes:
        query = {"size": size, **params}
        return self._send("GET", path, params=query, headers={"Accept": "*/*"}).content
