"""Which calibrator a run is shipped with: fitted on ID calibration data, chosen on ID validation.

The choice is by the mean NLL, a proper score: it is lowest for the true probabilities, where a
calibration error alone can be had by a model that says the base rate of everything. The simplest
one is taken that is within one standard error of the best, image by image: few images are no
evidence for many parameters. Where there are fewer than `LEAST_FITTED` images to fit on, fewer than
`LEAST_OF_CLASS` of a class or fewer than `LEAST_CHOSEN` to choose on, the answer is temperature, or
none, and the choice says why. No shift and no test image has a say.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from calift_core.analysis.calibrators import fit_calibrator, read_to_fit
from calift_core.calibration import Calibrator, SampleScores, brier, ece, nll, score_probs, softmax
from calift_core.calibration.bins import Doubles, Floats
from calift_core.calibration.registry import calibrator_from_dict
from calift_core.errors import CaliftError, DataError
from calift_core.predictions.read import read_predictions
from calift_core.predictions.types import Predictions

#: The names of the choice in a run's folder, and of the initial model that it may need.
CHOICE_NAME, INITIAL_NAME = "calibrator.json", "initial"
NONE = "none"
AUTO = "auto"
#: What `auto` chooses from, in the order in which it prefers them among equals: the fewer
#: parameters the earlier. Histogram and isotonic come last: they ask the top confidence alone, and
#: CalArena (arXiv 2605.30188) ranks them behind the others by NLL, SMS and SVS first.
CANDIDATES = (NONE, "temperature", "ets", "svs", "vector", "sms", "histogram", "isotonic")
#: Classes up to which `auto` tries SMS, which stores C² numbers.
MOST_CLASSES_OF_MATRIX = 200
#: Images that a temperature is fitted on at least, and that calibrators are compared on at least.
LEAST_TEMPERATURE = LEAST_CHOSEN = 30
#: Images that anything else is fitted on at least: ten a bin of a histogram, and a few more.
LEAST_FITTED = 200
#: Images of each class that a calibrator with weights of its own for a class is fitted on at least.
LEAST_OF_CLASS = 5
BY_CLASS = frozenset({"svs", "sms", "vector"})
#: What needs `LEAST_FITTED`.
FLEXIBLE = BY_CLASS | {"ets", "histogram", "isotonic"}


class Candidate(BaseModel, frozen=True):
    """What a calibrator gave on ID validation data, lower is better; fractions and nats."""

    kind: str
    nll: float
    brier: float
    ece: float


class FittedTo(BaseModel, frozen=True):
    """A part of the ID data."""

    dataset: str
    n: int


class Choice(BaseModel, frozen=True):
    """A run's calibrator, and why it is that one.

    Attributes:
        kind: its kind, or `none` where the model's own probabilities were better.
        requested: what was asked for, `auto` or a kind.
        calibrator: of `Calibrator.to_dict`; None for `none`.
        chosen_on: the ID validation part; None where there is none.
        candidates: all that were compared on it, the best first.
        notes: sentences on what there were too few images for.
    """

    format: Literal[1] = 1
    kind: str
    requested: str
    calibrator: dict[str, Any] | None
    fitted_on: FittedTo
    chosen_on: FittedTo | None = None
    candidates: list[Candidate] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @property
    def digest(self) -> str:
        """SHA-256 of the calibrator's parameters."""
        return hashlib.sha256(json.dumps(self.calibrator, sort_keys=True).encode()).hexdigest()

    def fitted(self) -> Calibrator | None:
        """The calibrator, ready to use; None where the model's own probabilities are used."""
        return None if self.calibrator is None else calibrator_from_dict(self.calibrator)


def choose(
    kind: str,
    parts: Sequence[Predictions],
    validation: Predictions | None,
    *,
    initial: Predictions | None = None,
    initial_on_validation: Floats | None = None,
) -> Choice:
    """Fit calibrators to a run's predictions and choose one.

    Args:
        kind: of the calibrator, `none`, or `auto`.
        parts: of the ID calibration part, and for `tsp` of its perturbed copies.
        validation: of the ID validation part; `auto` needs it.
        initial: the initial model's of the ID calibration part, for calibrators that read them.
        initial_on_validation: the initial model's logits (N, C) on the ID validation part.

    Raises:
        SpecError, PredictionsError: as `fit_calibrator`.
    """
    clean = parts[0]
    fitted: dict[str, Calibrator | None] = {}
    kinds = CANDIDATES if kind == AUTO else tuple(dict.fromkeys((kind, NONE)))
    lacking = {name: _lacking(name, clean) for name in kinds}
    allowed = [name for name in kinds if kind != AUTO or not lacking[name]]
    notes = _lacking_words(kind, lacking)
    for name in allowed:
        own = parts if name == "tsp" else parts[:1]
        fitted[name] = (
            None if name == NONE else fit_calibrator(name, own, oracle=False, initial=initial)[0]
        )
    best, candidates, chosen_on = kind, [], None
    if validation is not None:
        scores = {
            name: score_probs(
                calibrated(
                    validation.logits,
                    c,
                    initial_on_validation if c is not None and c.reads_initial else None,
                ),
                validation.labels,
            )
            for name, c in fitted.items()
        }
        candidates = sorted(
            (_candidate(name, own) for name, own in scores.items()), key=lambda c: c.nll
        )
        chosen_on = FittedTo(dataset=validation.metadata.dataset, n=len(validation))
        if kind == AUTO and len(validation) < LEAST_CHOSEN:
            best = "temperature" if "temperature" in fitted else NONE
            if len(fitted) > 1:
                notes.append(
                    f"Calibrators were not compared: {chosen_on.dataset} has "
                    f"{_images(len(validation))}, at least {LEAST_CHOSEN} are needed."
                )
        elif kind == AUTO:
            best = _simplest(scores, candidates[0].kind)
    calibrator = fitted[best]
    return Choice(
        kind=best,
        requested=kind,
        calibrator=None if calibrator is None else dict(calibrator.to_dict()),
        fitted_on=FittedTo(dataset=clean.metadata.dataset, n=len(clean)),
        chosen_on=chosen_on,
        candidates=candidates,
        notes=notes,
    )


def choose_or_none(calibration: Path | None, validation: Path | None) -> tuple[Choice | None, str]:
    """What `auto` chooses for a run, and a sentence where it can choose nothing."""
    if calibration is None or validation is None:
        return None, (
            "The run has no ID calibration and validation parts to fit a calibrator on: these are "
            "its own probabilities."
        )
    try:
        return choose(AUTO, [read_to_fit(calibration)], read_predictions(validation)), ""
    except CaliftError as error:
        return None, f"No calibrator can be fitted, these are its own probabilities: {error}"


def _lacking(kind: str, clean: Predictions) -> str:
    """What there are too few images of to fit a calibrator; nothing where there are enough."""
    n, n_classes = len(clean), clean.logits.shape[1]
    fewest = int(np.bincount(clean.labels, minlength=n_classes).min())
    if kind == NONE:
        return ""
    if kind == "sms" and n_classes > MOST_CLASSES_OF_MATRIX:
        return (
            f"it stores a number for each two of {n_classes:,} classes, at most "
            f"{MOST_CLASSES_OF_MATRIX} are tried"
        )
    least = LEAST_FITTED if kind in FLEXIBLE else LEAST_TEMPERATURE
    if n < least:
        return f"{clean.metadata.dataset} has {_images(n)}, at least {least} are needed"
    if kind in BY_CLASS and fewest < LEAST_OF_CLASS:
        return (
            f"{clean.metadata.dataset} has a class of {_images(fewest)}, at least {LEAST_OF_CLASS} "
            "of each are needed"
        )
    return ""


def _images(n: int) -> str:
    return f"{n:,} image" if n == 1 else f"{n:,} images"


def _lacking_words(kind: str, lacking: Mapping[str, str]) -> list[str]:
    """Sentences on what there were too few images for."""
    if kind != AUTO:
        return [f"Do not rely on {kind}: {lacking[kind]}."] if lacking[kind] else []
    by_reason: dict[str, list[str]] = {}
    for name, why in lacking.items():
        if why:
            by_reason.setdefault(why, []).append(name)
    return [f"Not considered: {', '.join(names)}. {why}." for why, names in by_reason.items()]


def calibrated(
    logits: Floats, calibrator: Calibrator | None, initial: Floats | None = None
) -> Doubles:
    """Probabilities (N, C) of logits (N, C), the model's own where there is no calibrator.

    Args:
        initial: (N, C) of the initial model, for calibrators that read them.

    Raises:
        SpecError: the calibrator reads the initial model's logits, and there are none.
    """
    probs = softmax(logits) if calibrator is None else calibrator.transform(logits, initial)
    return np.asarray(probs, dtype=np.float64)


def _simplest(scores: Mapping[str, SampleScores], best: str) -> str:
    """The first of `CANDIDATES` that the best one is not clearly better than."""
    for name in filter(scores.__contains__, CANDIDATES):
        behind = scores[name].nll - scores[best].nll  # (N,)
        if behind.mean() <= behind.std(ddof=1) / np.sqrt(len(behind)):
            return name
    return best


def _candidate(kind: str, scores: SampleScores) -> Candidate:
    return Candidate(kind=kind, nll=nll(scores), brier=brier(scores), ece=ece(scores))


def read_choice(folder: Path) -> Choice | None:
    """The choice that a run's folder keeps, None where there is none yet.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / CHOICE_NAME
    try:
        return Choice.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{str(path)!r} is no calibrator of a run: {error}",
            hint=f"`calift calibrate {folder}` makes it anew.",
        ) from None
