"""Single samples, and what they share."""

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt

from calift_core.analysis.clusters import Clusters, clustered, cosines, nearest_prompts
from calift_core.analysis.condition import Samples
from calift_core.analysis.explorer.scored import ScoredPredictions
from calift_core.analysis.gallery import (
    chosen,
    contradicted,
    described,
    drawn,
    ordered,
    shared_traits,
)
from calift_core.analysis.library import PredictionsFile, Subject
from calift_core.calibration.bins import Ints
from calift_core.errors import NotFoundError, UnpairedError
from calift_core.predictions.rows import read_features, read_scores_at, read_top
from calift_core.schema.wire.queries import (
    DoubtfulQuery,
    LooksQuery,
    MapQuery,
    SampleFilter,
    SamplesQuery,
)
from calift_core.schema.wire.results import (
    DoubtfulLabels,
    Sample,
    SampleHistory,
    SamplePage,
    SampleTraits,
    SeenSample,
    SharedTrait,
    Source,
)
from calift_core.schema.wire.tags import FeatureMap, ImageTagsChange

#: Prompts that are told of an image.
_NEAREST = 3


class SampleAnswers(ScoredPredictions):
    """Samples one by one."""

    def samples(
        self,
        subject: Subject,
        query: SamplesQuery | None = None,
        *,
        offset: int = 0,
        text_features: npt.NDArray[np.floating[Any]] | None = None,
    ) -> SamplePage:
        """A page of samples one by one.

        Args:
            offset: samples before it, whatever the cursor says.
            text_features: (D,) what the run's text tower makes of the query's text.

        Raises:
            PredictionsError: the predictions cannot be read.
            SpecError: the condition, the bin or the order is not valid.
            UnpairedError: `against` shares no samples.
            NotFoundError: a search where no image features are stored, or there is no such image,
                or the one that the page is around is not chosen.
        """
        query = query or SamplesQuery()
        (sort, descending), top = query.order(), query.top
        file, degrees = subject.open(), subject.degrees(query.temperature)
        samples = self._samples(file, degrees, self._library.tags(file), query.area)
        if query.like is not None:
            text_features = self._features(file)[_position(file, query.like)]
        similar = None
        if text_features is not None:
            similar = cosines(self._features(file), text_features)
        against = self._against(query)
        baseline = self._baseline(file, against)
        index = chosen(samples, query, query.over(subject.binning), baseline)
        index = ordered(
            samples.scores, index, sort, descending=descending, baseline=baseline, similar=similar
        )
        if query.around is not None:
            place = np.flatnonzero(index == _position(file, query.around))
            if not len(place):
                raise NotFoundError(f"{query.around[:200]!r} is none of the chosen samples.")
            offset = max(0, int(place[0]) - 1)
        page = index[offset : offset + query.limit]
        likely = read_top(file.path, page, top, degrees) if top and len(page) else []
        return SamplePage(
            source=subject.source,
            against=against and against.source,
            where=query.where or "",
            sort=sort,
            descending=descending,
            temperature=degrees,
            n=len(file),
            n_matching=len(index),
            offset=offset,
            items=described(
                samples, page, likely, baseline, self._near(subject, file, page, top), similar
            ),
        )

    def _near(
        self, subject: Subject, file: PredictionsFile, page: Ints, top: int
    ) -> list[list[tuple[str, float]]]:
        """The nearest prompts of the samples of a page; none where they cannot be told."""
        if not top or not len(page):
            return []
        try:
            _, heads = self._heads(subject)
        except NotFoundError:
            return []
        features = read_features(file.path, page)
        if features is None or features.shape[1] != heads.heads.shape[2]:
            return []
        return nearest_prompts(heads, features, _NEAREST)

    def _clusters(self, file: PredictionsFile) -> Clusters | None:
        def make() -> Clusters | None:
            try:
                features = self._features(file)
            except NotFoundError:
                return None
            return clustered(features, file.labels, file.metadata.class_names)

        return self._memory.remember("fits", ("clusters", file.digest), make, long=True)

    def _against(self, query: SampleFilter) -> Subject | None:
        return None if query.against is None else self._library.subject(query.against)

    def sample_traits(self, subject: Subject, query: SampleFilter | None = None) -> SampleTraits:
        """What samples share that the rest of the data set does not; see `shared_traits`.

        Raises:
            PredictionsError: the predictions cannot be read.
            SpecError: the condition or the bin is not valid.
            UnpairedError: `against` shares no samples.
        """
        query = query or SampleFilter()
        file, samples, degrees = self._opened(subject, query.temperature, query)
        binning, against = query.over(subject.binning), self._against(query)
        other = against and (against.target, against.open().digest)

        clusters = self._clusters(file)  # before the short turn: it takes the long one

        def make() -> tuple[int, list[SharedTrait]]:
            index = chosen(samples, query, binning, self._baseline(file, against))
            return len(index), shared_traits(samples, index, clusters)

        key = ("traits", file.digest, query, binning, other, degrees, samples.tags)
        n, items = self._memory.remember("numbers", key, make)
        return SampleTraits(source=subject.source, n=len(file), n_matching=n, items=items)

    def history(self, subject: Subject, sample: str, *, run: str, top: int = 5) -> SampleHistory:
        """What a run says of one image, on ID data and under each corruption of them.

        Args:
            subject: that has the sample; of a shift, which has images of its own, no other data set
                is looked at.
            run: a run that was tested, the subject's or another.
            top: how many of the most probable classes each answer comes with.

        Raises:
            PredictionsError: predictions cannot be read.
            NotFoundError: there is no such sample, or no such run.
        """
        label, own = self.label_of(subject, sample), subject.source
        name = subject.open().metadata.class_names[label]
        items = []
        for other in self._library.tested(run):
            theirs = other.source
            # An id is a picture's within its data and their corruptions; elsewhere it says nothing.
            apart = "shift" in (own.role, theirs.role)
            if apart and theirs.dataset != own.dataset:
                continue
            file = other.open()
            found = np.flatnonzero(file.ids == sample)
            if len(found) and file.metadata.class_names[file.labels[found[0]]] == name:
                answer = self._one(file, found, other.temperature, top)
                items.append(SeenSample(source=theirs, sample=answer))
        return SampleHistory(source=self._library.run(run), sample=sample, items=items)

    def _one(self, file: PredictionsFile, at: Ints, temperature: float, top: int) -> Sample:
        """The sample at one position (1,), read without all the others."""
        clusters = None if file.clusters is None else file.clusters[at]
        alone = Samples(
            scores=read_scores_at(file.path, at, temperature),
            ids=file.ids[at],
            class_names=file.metadata.class_names,
            clusters=clusters,
        )
        likely = read_top(file.path, at, top, temperature) if top else []
        return described(alone, np.zeros(1, dtype=np.int64), likely, None)[0]

    def doubtful_labels(
        self, subject: Subject, query: DoubtfulQuery | None = None
    ) -> DoubtfulLabels:
        """Labels that this run and the others of its suite surely contradict; see `contradicted`.

        Raises:
            PredictionsError: predictions cannot be read.
        """
        query = query or DoubtfulQuery()
        threshold, top = query.threshold, query.top
        file, samples, degrees = self._opened(subject, None)
        every = [subject, *self._library.peers(subject)]
        digests = tuple(s.open().digest for s in every)

        def make() -> tuple[Ints, list[Source]]:
            answered = []
            for one in every:
                with contextlib.suppress(UnpairedError):
                    answered.append((self._baseline(file, one), one.source))
            answers = [answer for answer, _ in answered if answer is not None]
            return contradicted(answers, threshold)[0], [source for _, source in answered]

        key = ("doubtful", digests, threshold, degrees)
        index, runs = self._memory.remember("numbers", key, make)
        page = index[: query.limit]
        likely = read_top(file.path, page, top, degrees) if top and len(page) else []
        return DoubtfulLabels(
            source=subject.source,
            runs=runs,
            threshold=threshold,
            n=len(index),
            items=described(samples, page, likely, None),
        )

    def to_look_at(
        self, subject: Subject, query: LooksQuery | None = None
    ) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Ids and labels of chosen samples and of others, at most so many of each; see `drawn`."""
        query = query or LooksQuery()
        file, index = self._selected(subject, query)

        def named(part: Ints) -> list[tuple[str, int]]:
            return [(str(file.ids[k]), int(file.labels[k])) for k in part.tolist()]

        own, rest = drawn(index, len(file), query.most)
        return named(own), named(rest)

    def feature_map(self, subject: Subject, query: MapQuery | None = None) -> FeatureMap | None:
        """The map of the features, with what the model says of each image; None: it is not made.

        Raises:
            PredictionsError: the predictions cannot be read.
            NotFoundError: no image features are stored.
        """
        file, samples, _ = self._opened(subject, (query or MapQuery()).temperature)
        points = self._library.points(file)
        if points is None:
            self._features(file)
            return None
        scores, clusters = samples.scores, self._clusters(file)
        return FeatureMap(
            source=subject.source,
            state="ready",
            class_names=list(samples.class_names),
            cluster_names=[] if clusters is None else list(clusters.titles),
            ids=file.ids.tolist(),
            x=points[:, 0].round(4).astype(float).tolist(),
            y=points[:, 1].round(4).astype(float).tolist(),
            labels=scores.labels.tolist(),
            predicted=scores.predicted.tolist(),
            confidences=scores.confidences.round(4).tolist(),
            clusters=[-1] * len(file) if clusters is None else clusters.of.tolist(),
        )

    def _selected(self, subject: Subject, query: SampleFilter) -> tuple[PredictionsFile, Ints]:
        file, samples, _ = self._opened(subject, query.temperature, query)
        baseline = self._baseline(file, self._against(query))
        return file, chosen(samples, query, query.over(subject.binning), baseline)

    def to_tag(self, subject: Subject, change: ImageTagsChange) -> list[str]:
        """Ids of the images that a change of tags means.

        Raises:
            SpecError: the filter is not valid.
            NotFoundError: there is no image of a name.
        """
        if change.where is not None:
            file, index = self._selected(subject, change.where)
            return [str(one) for one in file.ids[index]]
        file, named = subject.open(), list(dict.fromkeys(change.samples or ()))
        missing = np.setdiff1d(np.array(named, dtype=np.str_), file.ids)
        if len(missing):
            _position(file, str(missing[0]))
        return named

    def label_of(self, subject: Subject, sample: str) -> int:
        """The class of the sample of this id.

        Raises:
            PredictionsError: the predictions cannot be read.
            NotFoundError: there is no such sample.
        """
        file = subject.open()
        return int(file.labels[_position(file, sample)])


def _position(file: PredictionsFile, sample: str) -> int:
    found = np.flatnonzero(file.ids == sample)
    if not len(found):
        raise NotFoundError(f"{file.metadata.dataset} has no sample {sample[:200]!r}.")
    return int(found[0])
