"""Where predictions are found, how they were evaluated, and what is remembered of them.

The explorer asks a `Library`: the API's looks into the store and keeps what it computed between
requests, the command's looks into folders of this machine.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from calift_core.analysis.choosing import Choice
from calift_core.analysis.draws import Draws
from calift_core.calibration import Binning
from calift_core.errors import NotFoundError
from calift_core.predictions.read import read_index, read_metadata
from calift_core.predictions.training import TrainingImages
from calift_core.predictions.types import PredictionsMetadata
from calift_core.schema.wire.results import Source

#: What is remembered: numbers, opened files, scores, fitted calibrators, and answers: plain values
#: that JSON knows, by keys that mean the same to any process, which may be kept beyond this one.
Kind = Literal["numbers", "files", "scores", "fits", "answers"]
#: Each (sample, tag).
Tags = tuple[tuple[str, str], ...]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class PredictionsFile:
    """A predictions file and what is small of it; N samples.

    Attributes:
        digest: what its numbers are remembered by: equal ones mean equal bytes.
        ids: (N,) names of the samples.
        labels: (N,) class indices.
        clusters: (N,) names of the samples' sources, or none.
        decoded: where its logits may be kept decoded; None: nowhere.
    """

    digest: str
    path: Path
    metadata: PredictionsMetadata
    ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    clusters: npt.NDArray[np.str_] | None
    decoded: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def data(self) -> str:
        """A digest of the data that was predicted, the same of every run."""
        identity = self.metadata.dataset_sha256 or "\n".join([self.metadata.dataset, *self.ids])
        return sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        clusters = 0 if self.clusters is None else self.clusters.nbytes
        return self.ids.nbytes + self.labels.nbytes + clusters


def open_predictions(path: Path, digest: str, decoded: Path | None = None) -> PredictionsFile:
    """Read all of a predictions file but its logits; `decoded` is where these may be kept decoded.

    Raises:
        PredictionsError: it is no predictions file.
    """
    return PredictionsFile(digest, path, read_metadata(path), *read_index(path), decoded)


@dataclass(frozen=True)
class Subject:
    """Predictions that a question is about, and how they were evaluated.

    Attributes:
        temperature: that their logits were divided by.
        open: gives the file; a set that is only listed is never read.
    """

    target: str
    source: Source
    n: int
    binning: Binning
    draws: Draws
    temperature: float
    open: Callable[[], PredictionsFile]

    def degrees(self, temperature: float | None) -> float:
        """A temperature that is asked for; None: the one of the evaluation."""
        return self.temperature if temperature is None else temperature


@dataclass(frozen=True)
class FitSet:
    """What a calibrator is fitted on: files, and the evaluation that they are of, if any."""

    files: Sequence[PredictionsFile]
    evaluation_id: str | None = None


def no_prompts(subject: Subject) -> NotFoundError:
    """A run whose text tower under other prompts was not kept."""
    return NotFoundError(
        f"{subject.source.run_name or subject.target} keeps no other prompts.",
        hint="Runs keep them whose classifier is their text tower's; imported ones have none.",
    )


class Memory(Protocol):
    """Keeps what was computed, by a kind and a key that decides the value."""

    def get(self, kind: Kind, key: Hashable) -> Any | None:
        """What is kept, or None."""

    def put(self, kind: Kind, key: Hashable, value: Any) -> None:
        """Keep a value."""

    def remember(
        self, kind: Kind, key: Hashable, make: Callable[[], T], *, long: bool = False
    ) -> T:
        """What is kept; where nothing is, what `make` gives. `long`: making it takes seconds."""

    def long_slot(self) -> AbstractContextManager[Any]:
        """Held by whoever makes several things that take seconds."""


class Plain:
    """A memory without bounds and locks, for one person's one question."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Kind, Hashable], Any] = {}

    def get(self, kind: Kind, key: Hashable) -> Any | None:
        """What is kept, or None."""
        return self._kept.get((kind, key))

    def put(self, kind: Kind, key: Hashable, value: Any) -> None:
        """Keep a value."""
        self._kept[kind, key] = value

    def remember(
        self, kind: Kind, key: Hashable, make: Callable[[], T], *, long: bool = False
    ) -> T:
        """What is kept; where nothing is, what `make` gives."""
        if (kind, key) not in self._kept:
            self._kept[kind, key] = make()
        kept: T = self._kept[kind, key]
        return kept

    def long_slot(self) -> AbstractContextManager[Any]:
        """Nobody else waits."""
        return nullcontext()


class Library(Protocol):
    """Finds predictions.

    A target names one set of predictions and a run all that one model made: an evaluation and a run
    of a service, or a file and a folder.
    """

    @property
    def memory(self) -> Memory:
        """What is remembered of these predictions."""

    def subject(self, target: str) -> Subject:
        """One set of predictions.

        Raises:
            CaliftError: there is none of that name.
        """

    def run(self, run: str) -> Source:
        """What a run is called.

        Raises:
            CaliftError: there is none of that name.
        """

    def tested(self, run: str) -> Sequence[Subject]:
        """What a run was tested on: ID data, shifts and corruptions, in this order."""

    def far(self, run: str) -> Sequence[PredictionsFile]:
        """What a run predicted of the far sets of its suite."""

    def peers(self, subject: Subject) -> Sequence[Subject]:
        """Predictions of the same data by other runs of the same suite, a run's newest, few."""

    def untested(self, run: str) -> NotFoundError:
        """Why a run has neither ID data nor shifts that it was tested on."""

    def fit_set(
        self, subject: Subject, kind: str, fit_on: Sequence[str], *, oracle: bool
    ) -> FitSet:
        """What a kind of calibrator is fitted on for a subject.

        Args:
            kind: a name in `CALIBRATORS`.
            fit_on: targets; none: the ID calibration split of the subject's run, and for `tsp` its
                perturbed copies.

        Raises:
            NotFoundError: the run has no such split.
            LeakageError: other data without `oracle`.
        """

    def validation(self, subject: Subject) -> PredictionsFile | None:
        """The ID validation part of the subject's run, where it is stored."""

    def choice(self, subject: Subject) -> Choice | None:
        """The calibrator that the model of the subject's run is used with.

        None: it answers with its own probabilities.
        """

    def training_images(self, run: str) -> tuple[str, TrainingImages] | None:
        """Features of images of the run's training part, with their digest; None: kept none."""

    def prompts(self, subject: Subject) -> tuple[str, Path]:
        """Digest and place of what other prompts make of the subject's model, see `PromptHeads`.

        Raises:
            NotFoundError: the run kept none.
        """

    def tags(self, file: PredictionsFile) -> Tags | None:
        """What people put on the images of a file; None: nothing keeps tags here."""

    def points(self, file: PredictionsFile) -> npt.NDArray[np.float32] | None:
        """The map of a file's features, (N, 2); None: it has not been made."""

    def initial_predictions(self, subject: Subject, file: PredictionsFile) -> PredictionsFile:
        """The initial model's predictions of the samples of a file of the subject's run.

        Raises:
            NotFoundError: there are none; the hint says how to make them.
        """
