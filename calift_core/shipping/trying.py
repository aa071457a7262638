"""The process that says what runs make of a picture.

`python -m calift_core.shipping.trying DEVICE` is told to open finished runs, to answer about a
picture, and to forget runs (`calift_core.shipping.questions`). It chooses a run's calibrator as
`calift calibrate` does, and keeps the choice in a folder that is the run's own. One process for
several runs, because its start, torch above all, takes longer than loading a model. Nobody having
asked for a while, it ends.
"""

import base64
import io
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core import threads
from calift_core.analysis.choosing import NONE, Choice, choose_or_none, read_choice
from calift_core.analysis.clusters import cosines
from calift_core.analysis.deciding import answer_scores
from calift_core.analysis.report import read_report
from calift_core.child_process import LENGTH, answer_all
from calift_core.errors import CaliftError, DataError
from calift_core.predictions.read import read_index, read_metadata
from calift_core.predictions.rows import read_features
from calift_core.predictions.training import TRAINING_IMAGES, read_training_images
from calift_core.predictions.types import Strings, predictions_name
from calift_core.schema.report import Report
from calift_core.schema.wire.answers import (
    AlikePicture,
    AlikeRole,
    Guess,
    KeptAt,
    NoneOfTheseAt,
    TextFeatures,
    TrainingPictures,
    TriedPicture,
)
from calift_core.shipping.choosing import part_of, save_choice
from calift_core.shipping.promises import chosen_thresholds, promising_part
from calift_core.shipping.questions import ASK, EMBED, FORGET

#: Classes that an answer lists, and images of the training part and of the evaluated sets.
TOP, NEAREST = 5, 6
#: Seconds without a question after which the process ends: a model takes memory.
IDLE_S = 600


@dataclass(frozen=True)
class FeatureSet:
    """A set of images: whose they are, (M,), and their features (M, D), L2-normalised."""

    dataset: str
    role: AlikeRole
    ids: Strings
    labels: NDArray[np.int64]
    features: NDArray[np.float16]


def feature_set_of(folder: Path, report: Report) -> Iterator[FeatureSet]:
    """The sets of a run whose features are stored: its ID test images, and perhaps its shifts.

    Raises:
        PredictionsError: a predictions file is missing or damaged.
    """
    for one in report.evaluations:
        path = folder / predictions_name(one.dataset)
        if one.role == "corruption" or not path.is_file():
            continue
        features = read_features(path)
        if features is not None:
            ids, labels, _ = read_index(path)
            yield FeatureSet(one.dataset, one.role, ids, labels, features)


def trained_on(folder: Path) -> tuple[FeatureSet, int] | None:
    """A run's training images whose features are kept, and how many the whole part has.

    None where none are: a run may ask for none.

    Raises:
        PredictionsError: the file is damaged.
        StorageError: it cannot be read.
    """
    path = folder / "checkpoint" / TRAINING_IMAGES
    if not path.is_file():
        return None
    one = read_training_images(path)
    return FeatureSet(one.dataset, "train", one.ids, one.labels, one.features), one.of


def nearest(
    feature: NDArray[np.float32],
    sets: list[FeatureSet],
    classes: tuple[str, ...],
    most: int = NEAREST,
) -> list[AlikePicture]:
    """The images whose features have the largest cosines with one, the largest first.

    Args:
        feature: (D,), L2-normalised.
    """
    found: list[tuple[float, FeatureSet, int]] = []
    for one in sets:
        alike = cosines(one.features, feature)
        best = np.argsort(-alike, kind="stable")[:most]
        found += [(float(alike[at]), one, int(at)) for at in best]
    found.sort(key=lambda each: -each[0])
    return [
        AlikePicture(
            dataset=one.dataset,
            role=one.role,
            sample_id=str(one.ids[at]),
            label=classes[one.labels[at]],
            cosine=cosine,
        )
        for cosine, one, at in found[:most]
    ]


def chosen_for(folder: Path, kept: Path, report: Report) -> tuple[Choice | None, str]:
    """A run's calibrator, and a sentence where its own probabilities are told for want of one.

    Args:
        kept: where the choice is kept, and looked for.
    """
    with suppress(DataError):  # damaged: chosen anew
        choice = read_choice(kept)
        if choice is not None:
            return choice, ""
    parts = (next(iter(part_of(folder, report, p)), None) for p in ("calibration", "validation"))
    choice, note = choose_or_none(*parts)
    if choice is not None:
        kept.mkdir(parents=True, exist_ok=True, mode=0o700)
        save_choice(kept, choice)
    return choice, note


class Trial:
    """A run's model, calibrator and thresholds, and the images of its training and its tests."""

    def __init__(self, folder: Path, kept: Path, device: str) -> None:
        from calift_core.models.finished import read_finished
        from calift_core.shipping.classifier import CalibratedClassifier

        report = read_report(folder)
        self.model = CalibratedClassifier.load(folder, device=device)
        # As on every other page: the names that the run's predictions are stored under.
        self.model.classes = tuple(read_finished(folder)[1]["class_names"])
        self.choice, self.note = chosen_for(folder, kept, report)
        self.model.calibrator = None if self.choice is None else self.choice.fitted()
        self.sets = list(feature_set_of(folder, report))
        self.trained = trained_on(folder)
        self.promised_on: str | None = None
        self.thresholds: dict[float, float | None] = {}
        part = promising_part(folder, report, self.model.calibrator)
        if part is not None:
            self.thresholds = chosen_thresholds(answer_scores(part, self.model.calibrator))
            self.promised_on = read_metadata(part).dataset

    def hello(self) -> dict[str, Any]:
        """What the model takes."""
        return {"preprocess": self.model.clip.preprocess.described()}

    def answer(self, question: bytes) -> bytes:
        """What the run says of one picture, (S, S, 3) uint8 pixels, as JSON."""
        size = self.model.clip.image_size
        pixels = np.frombuffer(question, np.uint8).reshape(1, size, size, 3)
        features, answers = self.model.encode(pixels.copy())
        top = [Guess(label=label, probability=p) for label, p in answers.top(TOP)[0]]
        sure = top[0].probability
        choice = self.choice
        tried = TriedPicture(
            calibrator=NONE if choice is None else choice.kind,
            fitted_on=None if choice is None else choice.fitted_on.dataset,
            note=self.note or " ".join([] if choice is None else choice.notes),
            n_classes=len(answers.classes),
            top=top,
            promised_on=self.promised_on,
            kept=[
                KeptAt(risk=risk, threshold=at, kept=None if at is None else sure >= at)
                for risk, at in self.thresholds.items()
            ],
            unlike=self._unlike(answers.logits),
            trained=self._trained(features[0], answers.classes),
            searched=[one.dataset for one in self.sets],
            nearest=nearest(features[0], self.sets, answers.classes),
            seen=base64.b64encode(_png(pixels[0])).decode(),
        )
        return tried.model_dump_json().encode()

    def _unlike(self, logits: NDArray[np.float32]) -> list[NoneOfTheseAt]:
        found = self.model.none_of_these
        if found is None:
            return []
        like = float(found.scores(logits)[0])
        return [
            NoneOfTheseAt(
                false_alarms=one.false_alarms,
                threshold=one.threshold,
                none_of_these=None if one.threshold is None else like < one.threshold,
            )
            for one in found.thresholds
        ]

    def _trained(
        self, feature: NDArray[np.float32], classes: tuple[str, ...]
    ) -> TrainingPictures | None:
        if self.trained is None:
            return None
        images, of = self.trained
        return TrainingPictures(
            dataset=images.dataset,
            n=len(images.ids),
            of=of,
            nearest=nearest(feature, [images], classes),
        )


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=1)
    return out.getvalue()


class Trials:
    """The runs that are open, by folder."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._open: dict[str, Trial] = {}

    def answer(self, question: bytes) -> bytes:
        """A run's preprocessing, or why it has no model; what it says of a picture or a text."""
        signal.alarm(IDLE_S)
        n = LENGTH.unpack_from(question)[0]
        request, body = (
            json.loads(question[LENGTH.size : LENGTH.size + n]),
            question[LENGTH.size + n :],
        )
        folder = str(request["folder"])
        if request["do"] == FORGET:
            self._open.pop(folder, None)
            return b"{}"
        try:
            if folder not in self._open:
                self._open[folder] = Trial(Path(folder), Path(request["kept"]), self._device)
        except CaliftError as error:
            why = {"message": error.message, "hint": error.hint}
            return json.dumps({"error": why}).encode()
        trial = self._open[folder]
        if request["do"] == EMBED:
            values = trial.model.encode_text(body.decode()).tolist()
            return TextFeatures(values=values).model_dump_json().encode()
        return trial.answer(body) if request["do"] == ASK else json.dumps(trial.hello()).encode()


def main(argv: list[str]) -> None:
    """Answer."""
    threads.settle()
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever a library prints must not lie between two answers
    signal.alarm(IDLE_S)
    answer_all(b"{}", Trials(argv[0]).answer, answers=answers)


if __name__ == "__main__":
    main(sys.argv[1:])
