"""The samples of an evaluation one by one, and their images."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from numpy.typing import NDArray

from backend.http.concurrency import Admission
from backend.routes.deps import (
    ANALYSIS,
    EvaluationId,
    IfNoneMatch,
    PrincipalDep,
    RunId,
    ServicesDep,
    admission_for,
    allow,
    changes_nothing,
    note,
    slot_for,
)
from backend.routes.files import knows
from backend.store.cursors import scope_of
from calift_core.analysis.gallery import compared_looks, hashes_of
from calift_core.data.duplicates import near_copies
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
    SampleHistory,
    SampleLooks,
    SamplePage,
    SampleTraits,
    Source,
)
from calift_core.schema.wire.tags import FeatureMap, ImageTag, ImageTags, ImageTagsChange

router = APIRouter(tags=["results"])


class _Drawing:
    """How a picture is wanted, and by whom."""

    def __init__(
        self,
        services: ServicesDep,
        principal: PrincipalDep,
        admission: Annotated[Admission, admission_for("thumbnails")],
        size: Annotated[int, Query(ge=64, le=512, description="Pixels of the longer side")] = 160,
        known: IfNoneMatch = None,
    ) -> None:
        self._services, self._principal, self._admission = services, principal, admission
        self._size, self._known = size, known

    async def draw(self, make_request: Callable[[int], dict[str, object]]) -> Response:
        """A picture, or word that the browser has it."""
        async with self._services.limits["analyses"].slot(self._principal.name):
            request = await run_in_threadpool(make_request, self._size)
        picture = await self._services.thumbnails.draw(request, self._admission.slot)
        digest = hashlib.sha256(picture.body).hexdigest()
        headers = {"ETag": f'"{digest}"', "Cache-Control": "private, no-cache"}
        if self._known is not None and knows(self._known, digest):
            return Response(status_code=304, headers=headers)
        headers["X-Content-Type-Options"] = "nosniff"
        return Response(picture.body, media_type=picture.media_type, headers=headers)


def _responses(description: str) -> dict[int | str, dict[str, Any]]:
    content: dict[str, Any] = {"image/png": {}, "image/jpeg": {}}
    return {
        200: {"content": content, "description": description},
        304: {"description": "The copy with this ETag is still the image"},
    }


async def _text_features(
    evaluation_id: EvaluationId,
    services: ServicesDep,
    principal: PrincipalDep,
    query: Annotated[SamplesQuery, Query()],
) -> NDArray[np.float64] | None:
    """What the run's text tower makes of the text that is searched for; asked once."""
    if query.text is None:
        return None
    subject = await run_in_threadpool(services.library.subject, evaluation_id)
    run_id = str(subject.source.run_id)
    key, memory = ("text-features", run_id, query.text), services.library.memory
    found: NDArray[np.float64] | None = memory.get("numbers", key)
    if found is None:
        with services.limits["pictures"].admit(principal.name) as admission:
            async with admission.slot():
                models = services.model_host or services.trials
                found = np.array((await models.text_features(run_id, query.text)).values)
        memory.put("numbers", key, found)
    return found


@router.get("/evaluations/{evaluation_id}/samples", responses={409: {}})
@allow("read")
def list_samples(
    evaluation_id: EvaluationId,
    services: ServicesDep,
    query: Annotated[SamplesQuery, Query()],
    text_features: Annotated[Any, Depends(_text_features)],
    _: Annotated[None, ANALYSIS],  # after the model's slot: nothing waits for that
) -> SamplePage:
    """Samples one by one: of a bin, a cell or a condition, with what the model says of each.

    With `against` each comes with the other model's answer, and may be asked for by what was gained
    or lost. With `text` or `like` those come first whose stored features have the largest cosine
    with what the run's own towers make of that text or image.
    """
    cursors = services.store.cursors
    subject = services.library.subject(evaluation_id)
    filters = query.model_dump(mode="json", exclude={"cursor", "top", "limit"})
    scope = scope_of("samples", evaluation_id, subject.open().digest, filters)
    offset = 0 if query.cursor is None else int(cursors.read(query.cursor, scope)[0])
    page = services.explorer.samples(subject, query, offset=offset, text_features=text_features)
    end = offset + len(page.items)
    if end >= page.n_matching:
        return page
    return page.model_copy(update={"next_cursor": cursors.write(scope, [end])})


@router.get("/evaluations/{evaluation_id}/tags", dependencies=[ANALYSIS])
@allow("read")
def list_image_tags(evaluation_id: EvaluationId, services: ServicesDep) -> ImageTags:
    """Tags on images of the data that an evaluation is of, put there with this run or another."""
    file = services.library.subject(evaluation_id).open()
    items = [ImageTag(sample=s, tag=t) for s, t in services.library.tags(file)]
    return ImageTags(dataset=file.metadata.dataset, items=items)


@router.post("/evaluations/{evaluation_id}/tags", dependencies=[ANALYSIS])
@allow("submit")
def tag_images(
    evaluation_id: EvaluationId, body: ImageTagsChange, services: ServicesDep, request: Request
) -> ImageTags:
    """Put tags on images, or take them off: on those that are named, or that meet a filter.

    They are kept with the data, so that every run that was tested on them has them. A condition
    reads them: `tag == "blurry"`.
    """
    subject = services.library.subject(evaluation_id)
    ids = services.explorer.to_tag(subject, body)
    note(request, add=body.add, remove=body.remove, images=len(ids))
    data = subject.open().data
    services.store.image_tags.change(data, ids, add=body.add, remove=body.remove)
    return list_image_tags(evaluation_id, services)


@router.get("/evaluations/{evaluation_id}/map", dependencies=[ANALYSIS])
@allow("read")
def get_feature_map(
    evaluation_id: EvaluationId, services: ServicesDep, query: Annotated[MapQuery, Query()]
) -> FeatureMap:
    """Image features in a plane by t-SNE, each image with what the model says of it.

    It is made when it is first asked for by a POST, and kept; until then `state` says how far it
    is. 404 where no features are stored.
    """
    subject = services.library.subject(evaluation_id)
    found = services.explorer.feature_map(subject, query)
    if found is not None:
        return found
    state, reason = services.maps.state(subject.open())
    return FeatureMap(source=subject.source, state=state, reason=reason)


@router.post(
    "/evaluations/{evaluation_id}/map", status_code=202, dependencies=[slot_for("exports")]
)
@allow("submit")
def make_feature_map(evaluation_id: EvaluationId, services: ServicesDep) -> FeatureMap:
    """Have the map of an evaluation's image features made, by a process of its own: repeatable.

    Seconds for thousands of images, minutes for 50,000; one is made at a time.
    """
    found = get_feature_map(evaluation_id, services, MapQuery())
    if found.state == "ready":
        return FeatureMap(source=found.source, state="ready")
    services.maps.begin(services.library.subject(evaluation_id).open())
    return FeatureMap(source=found.source, state="making")


@router.get("/evaluations/{evaluation_id}/samples/traits", dependencies=[ANALYSIS])
@allow("read")
def get_sample_traits(
    evaluation_id: EvaluationId, services: ServicesDep, query: Annotated[SampleFilter, Query()]
) -> SampleTraits:
    """Classes that the chosen samples have more often than the rest, each with a test."""
    return services.explorer.sample_traits(services.library.subject(evaluation_id), query)


@router.get("/evaluations/{evaluation_id}/samples/doubtful", dependencies=[ANALYSIS])
@allow("read")
def list_doubtful_labels(
    evaluation_id: EvaluationId, services: ServicesDep, query: Annotated[DoubtfulQuery, Query()]
) -> DoubtfulLabels:
    """Likely label errors: the runs of the suite all say the same other class, and surely.

    The evaluation's own run and up to eleven others of its suite that judged the same samples; with
    less than two runs there is none.
    """
    return services.explorer.doubtful_labels(services.library.subject(evaluation_id), query)


@router.post(
    "/evaluations/{evaluation_id}/corrected", responses={404: {}}, dependencies=[slot_for("scans")]
)
@allow("read")
@changes_nothing
def correct_labels(
    evaluation_id: EvaluationId, body: CorrectionsRequest, services: ServicesDep
) -> CorrectedManifest:
    """A manifest of the data that was evaluated, with corrected labels; nothing is written.

    The data must be image files that this service may read. 404 with the code `NO_IMAGE` where
    none are known.
    """
    return services.corrections.make(services.store.results.get_evaluation(evaluation_id), body)


@router.get("/evaluations/{evaluation_id}/samples/looks", dependencies=[ANALYSIS])
@allow("read")
async def get_sample_looks(
    evaluation_id: EvaluationId,
    services: ServicesDep,
    principal: PrincipalDep,
    query: Annotated[LooksQuery, Query()],
) -> SampleLooks:
    """Brightness, contrast and sharpness of the chosen images against the rest, and near-copies.

    Drawn evenly from both where there are more than `most`, decoded as thumbnails are.
    """

    def thumbnail_requests() -> tuple[Source, list[str], list[list[dict[str, object]]]]:
        evaluation = services.store.results.get_evaluation(evaluation_id)
        subject = services.library.subject_of(evaluation)
        parts = services.explorer.to_look_at(subject, query)
        thumbnail_request = services.thumbnails.request
        requests = [
            [thumbnail_request(evaluation, name, label, 64) for name, label in part]
            for part in parts
        ]
        return subject.source, [name for name, _ in parts[0]], requests

    source, names, (own, others) = await run_in_threadpool(thumbnail_requests)
    found = await services.thumbnails.measure(
        [*own, *others], partial(services.limits["thumbnails"].slot, principal.name)
    )
    reason = next((f for f in found if isinstance(f, str)), "")
    seen = [(n, f) for n, f in zip(names, found, strict=False) if not isinstance(f, str)]
    rest = [f for f in found[len(own) :] if not isinstance(f, str)]
    near = near_copies(hashes_of([f for _, f in seen]))
    looks = await run_in_threadpool(compared_looks, [f for _, f in seen], rest)
    return SampleLooks(
        source=source,
        n=len(seen),
        n_rest=len(rest),
        n_missing=len(found) - len(seen) - len(rest),
        reason=reason,
        items=looks,
        near=[(seen[a][0], seen[b][0]) for a, b in near],
    )


@router.get("/samples/{evaluation_id}/{sample_id:path}/answers", dependencies=[ANALYSIS])
@allow("read")
def list_sample_answers(
    evaluation_id: EvaluationId,
    sample_id: Annotated[str, Path(max_length=1024, description="A sample's id")],
    services: ServicesDep,
    query: Annotated[SampleAnswersQuery, Query()],
) -> SampleHistory:
    """What a run says of one image wherever it met it: on ID data and under each corruption."""
    subject = services.library.subject(evaluation_id)
    return services.explorer.history(
        subject, sample_id, run=query.run_id or str(subject.source.run_id), top=query.top
    )


@router.get(
    "/samples/{evaluation_id}/{sample_id:path}/thumbnail",
    response_class=Response,
    responses=_responses("The image as the model saw it, with its corruption"),
)
@allow("read")
async def get_thumbnail(
    evaluation_id: EvaluationId,
    sample_id: Annotated[str, Path(max_length=1024, description="A sample's id")],
    services: ServicesDep,
    drawing: Annotated[_Drawing, Depends()],
) -> Response:
    """The image of a sample, found by the data that its run named.

    It is decoded by a process with limits, and only from folders of that data or in
    CALIFT_DATA_ROOTS. 404 with the code `NO_IMAGE` where none is known.
    """

    def request(size: int) -> dict[str, object]:
        evaluation = services.store.results.get_evaluation(evaluation_id)
        label = services.explorer.label_of(services.library.subject_of(evaluation), sample_id)
        return services.thumbnails.request(evaluation, sample_id, label, size)

    return await drawing.draw(request)


@router.get(
    "/runs/{run_id}/images/{sample_id:path}/thumbnail",
    response_class=Response,
    responses=_responses("The image as it lies in its set, without augmentation"),
)
@allow("read")
async def get_run_thumbnail(
    run_id: RunId,
    sample_id: Annotated[str, Path(max_length=1024, description="An image's id in its set")],
    services: ServicesDep,
    drawing: Annotated[_Drawing, Depends()],
    dataset: Annotated[
        str, Query(max_length=64, description="`train`, or a far set of the run's suite")
    ] = "train",
) -> Response:
    """An image that is in no evaluation: of the training part, as `try` names them, or a far set.

    Decoded as the images of samples are, from the same folders. 404 where the run kept no features
    of a training image, or with the code `NO_IMAGE` where no image is known.
    """

    def request(size: int) -> dict[str, object]:
        label = services.library.training_label(run_id, sample_id) if dataset == "train" else 0
        return services.thumbnails.request_of_run(run_id, dataset, sample_id, label, size)

    return await drawing.draw(request)
