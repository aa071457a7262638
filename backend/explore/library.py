"""Stored evaluations, as the explorer finds them."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backend.explore.memory import Remembered
from backend.storage.artifacts import ArtifactStore
from backend.store.stores import Stores
from calift_core.analysis.calibrators import is_perturbed
from calift_core.analysis.choosing import Choice, choose_or_none
from calift_core.analysis.draws import Draws
from calift_core.analysis.library import (
    FitSet,
    PredictionsFile,
    Subject,
    Tags,
    no_prompts,
    open_predictions,
)
from calift_core.calibration import Binning
from calift_core.errors import LeakageError, NotFoundError, SpecError
from calift_core.files.disk_cache import DiskCache
from calift_core.predictions.prompts import PROMPTS
from calift_core.predictions.training import (
    TRAINING_IMAGES,
    TrainingImages,
    read_training_images,
    training_label,
)
from calift_core.predictions.types import Role
from calift_core.schema.wire.results import Evaluation, Source
from calift_core.schema.wire.runs import RunSummary

#: Other runs that are asked about a sample, and evaluations that are looked through for them.
_PEERS, _LOOKED_THROUGH = 11, 200
#: So many of the newest zero-shot runs are looked through for the one that a run began with.
_ZERO_SHOT_RUNS = 200


#: What answers may take on disk.
_ANSWERS_BYTES, _MAPS_BYTES = 256 << 20, 256 << 20


class StoreLibrary:
    """Targets are ids of evaluations, runs are ids of runs.

    Args:
        cache: a folder for answers and decoded logits, which outlive the process; None: nowhere.
    """

    def __init__(self, store: Stores, artifacts: ArtifactStore, cache: Path | None = None) -> None:
        self._store, self._artifacts, self._cache = store, artifacts, cache
        root = Path() if cache is None else cache
        self.maps = DiskCache(root / "maps", 0 if cache is None else _MAPS_BYTES)
        self._memory = Remembered(
            None if cache is None else DiskCache(cache / "answers", _ANSWERS_BYTES)
        )

    @property
    def memory(self) -> Remembered:
        return self._memory

    def subject(self, target: str) -> Subject:
        """A stored evaluation.

        Raises:
            NotFoundError: no such evaluation; opening it: its predictions are not stored.
            StorageError: opening it: its bytes are damaged.
        """
        return self.subject_of(self._store.results.get_evaluation(target))

    def subject_of(self, evaluation: Evaluation) -> Subject:
        return Subject(
            target=evaluation.id,
            source=Source(
                evaluation_id=evaluation.id,
                run_id=evaluation.run_id,
                run_name=evaluation.run_name,
                method=evaluation.method,
                dataset=evaluation.dataset,
                role=evaluation.role,
            ),
            n=evaluation.n,
            binning=Binning(evaluation.ece.n_bins, evaluation.ece.scheme),
            draws=Draws(evaluation.ece.n_resamples, evaluation.ece.seed),
            temperature=evaluation.temperature,
            open=partial(self._open_evaluation, evaluation.id),
        )

    def summaries(self, run_ids: Sequence[str]) -> list[RunSummary]:
        """Rows of the run list, in the order asked for."""
        return self._store.runs.summaries(run_ids)

    def spec(self, run_id: str) -> Mapping[str, Any]:
        return self._store.runs.spec(run_id)

    def evaluations(self, run_id: str) -> list[Evaluation]:
        return self._store.results.run_evaluations(run_id)

    def run(self, run: str) -> Source:
        """A run by its id.

        Raises:
            NotFoundError: no such run.
        """
        found = self._store.runs.summaries([run])[0]
        return Source(run_id=found.id, run_name=found.name, method=found.method)

    def tested(self, run: str) -> list[Subject]:
        return [self.subject_of(e) for e in self._store.results.run_evaluations(run)]

    def far(self, run: str) -> list[PredictionsFile]:
        return list(self._part(run, "far"))

    def peers(self, subject: Subject) -> list[Subject]:
        """The newest evaluations on data of that name, role and size, one a run of its suite."""
        own = subject.source
        found, _, _ = self._store.results.list_evaluations(
            datasets=[str(own.dataset)], roles=[str(own.role)], limit=_LOOKED_THROUGH
        )
        runs = list(dict.fromkeys([str(own.run_id), *(e.run_id for e in found)]))
        suites = {run.id: run.suite for run in self._store.runs.summaries(runs)}
        of_run = {
            e.run_id: e
            for e in reversed(found)
            if e.n == subject.n
            and e.run_id != own.run_id
            and suites.get(e.run_id) == suites.get(str(own.run_id))
        }
        return [self.subject_of(e) for e in reversed(of_run.values())][:_PEERS]

    def untested(self, run: str) -> NotFoundError:
        """A run that has not ended, or was evaluated on corruptions alone."""
        return NotFoundError(
            f"run {run} has no evaluations to compare; it is {self._store.runs.get(run).phase}.",
            hint="They come with the end of a run; corruptions are named with dataset=….",
        )

    def fit_set(
        self, subject: Subject, kind: str, fit_on: Sequence[str], *, oracle: bool
    ) -> FitSet:
        """The run's ID calibration split, or with `oracle` one of its evaluations."""
        if not fit_on:
            files = self._calibration_files(str(subject.source.run_id))
            return FitSet(files if kind == "tsp" else files[:1])
        other = self._store.results.get_evaluation(fit_on[0])
        if other.run_id != subject.source.run_id:
            raise SpecError(
                f"fit_on must be an evaluation of run {subject.source.run_id}, got one of run "
                f"{other.run_id}"
            )
        file = self._open_evaluation(other.id)
        # The guard comes before what is remembered: an oracle of an earlier request lets none in.
        if not oracle:
            raise LeakageError(
                "a calibrator must be fitted on the run's ID calibration split, got evaluation "
                f"{other.id} on {file.metadata.dataset!r}.",
                hint="Pass oracle=true to fit it all the same; it then counts as an oracle.",
            )
        return FitSet([file], other.id)

    def validation(self, subject: Subject) -> PredictionsFile | None:
        """The run's ID validation part."""
        return next(self._part(str(subject.source.run_id), "validation"), None)

    def choice(self, subject: Subject) -> Choice | None:
        """What `auto` chooses for the run, as for a picture that is tried."""
        part = self._part(str(subject.source.run_id), "calibration")
        clean = next((file for file in part if not is_perturbed(file.metadata)), None)
        own = self.validation(subject)
        if clean is None or own is None:
            return None

        def choose() -> dict[str, Any]:
            choice, note = choose_or_none(clean.path, own.path)
            return {"choice": choice and choice.model_dump(mode="json"), "note": note}

        # It takes seconds, and is the same for ever.
        found = self._memory.remember(
            "answers", ("choice", clean.digest, own.digest), choose, long=True
        )["choice"]
        return None if found is None else Choice.model_validate(found)

    def prompts(self, subject: Subject) -> tuple[str, Path]:
        """What lies beside the model of the subject's run."""
        try:
            stored = self._store.files.get(str(subject.source.run_id), f"checkpoint/{PROMPTS}")
        except NotFoundError:
            raise no_prompts(subject) from None
        return stored.sha256, self._artifacts.verified(stored.sha256)

    def training_images(self, run: str) -> tuple[str, TrainingImages] | None:
        """What lies beside the run's model."""
        try:
            stored = self._store.files.get(run, f"checkpoint/{TRAINING_IMAGES}")
        except NotFoundError:
            return None
        return stored.sha256, read_training_images(self._artifacts.verified(stored.sha256))

    def training_label(self, run: str, sample: str) -> int:
        """The class of an image of a run's training part, by its id.

        Raises:
            NotFoundError: no such run, it kept no features of training images, or none of this one.
            PredictionsError, StorageError: its file is damaged.
        """
        try:
            stored = self._store.files.get(run, f"checkpoint/{TRAINING_IMAGES}")
        except NotFoundError:
            self._store.runs.spec(run)  # says so where there is no such run
            raise NotFoundError(
                f"run {run} kept no features of training images.",
                hint="Runs do since train.keep_features is there, where it is not 0.",
            ) from None
        return training_label(self._artifacts.verified(stored.sha256), sample)

    def tags(self, file: PredictionsFile) -> Tags:
        return self._store.image_tags.of(file.data)

    def points(self, file: PredictionsFile) -> npt.NDArray[np.float32] | None:
        """As `backend.services.maps` keeps it."""
        body = self.maps.get(file.digest)
        if body is None or len(body) != 8 * len(file):
            return None
        return np.frombuffer(body, np.float32).reshape(len(file), 2)

    def initial_predictions(self, subject: Subject, file: PredictionsFile) -> PredictionsFile:
        """Those of a zero-shot run with the very weights that the subject's run began with.

        Raises:
            NotFoundError: no such run has predicted these samples.
        """
        run, wanted = str(subject.source.run_id), file.metadata
        started = self._store.results.report(run)["model"].get("start_sha256", "")
        finished = self._store.runs.page(
            phase=("SUCCEEDED",), method=("zero_shot",), limit=_ZERO_SHOT_RUNS
        )
        for one in finished[0]:
            for stored in self._store.files.of_run(one.id, kind="predictions"):
                found = self._open(stored.sha256)
                if found.metadata.model_sha256 != started:
                    break
                its = found.metadata
                same = (its.dataset, its.dataset_sha256) == (wanted.dataset, wanted.dataset_sha256)
                if same and its.role == wanted.role:
                    return found
        raise NotFoundError(
            f"no zero-shot run of the model that run {run} began with has predicted "
            f"{wanted.dataset!r}.",
            hint="Run zero_shot with the same model and suite; this calibrator reads its "
            "predictions too.",
        )

    def _open_evaluation(self, evaluation_id: str) -> PredictionsFile:
        return self._open(self._store.results.predictions_of(evaluation_id).sha256)

    def _open(self, digest: str) -> PredictionsFile:
        self._artifacts.keep(digest)  # its logits are read later
        decoded = None if self._cache is None else self._cache / "logits" / f"{digest}.npy"
        return self._memory.remember(
            "files",
            digest,
            lambda: open_predictions(self._artifacts.verified(digest), digest, decoded),
        )

    def _part(self, run_id: str, role: Role) -> Iterator[PredictionsFile]:
        """A run's predictions of a part of its ID data, or of far sets: in no evaluation."""
        evaluated = {e.predictions_sha256 for e in self._store.results.run_evaluations(run_id)}
        for stored in self._store.files.of_run(run_id, kind="predictions"):
            if stored.sha256 not in evaluated:
                file = self._open(stored.sha256)
                if file.metadata.role == role:
                    yield file

    def _calibration_files(self, run_id: str) -> list[PredictionsFile]:
        """A run's predictions of its ID calibration split, then of its perturbed copies.

        Raises:
            NotFoundError: the run has stored none.
        """
        found = list(self._part(run_id, "calibration"))
        found.sort(key=lambda f: (is_perturbed(f.metadata), f.metadata.dataset))
        if not found or is_perturbed(found[0].metadata):
            raise NotFoundError(
                f"run {run_id} stores no predictions of an ID calibration split.",
                hint="Calibrators and thresholds are fitted on it: give the suite a calibration "
                "part, or import one (`calift import-predictions FILE --role calibration --run "
                f"{run_id}`). Fitted on an evaluation (fit_on, oracle=true) it is a bound alone.",
            )
        return found
