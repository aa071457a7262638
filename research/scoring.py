"""What is kept of a model: per image its NLL, its top confidence and whether it is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calift_core.calibration import INITIAL_MODEL_CALIBRATORS
from calift_core.calibration.bins import softmax
from calift_core.calibration.calibrators import Calibrator
from calift_core.calibration.registry import known

#: Calibrators of one model, and those that read the initial model beside it but keep predictions.
PUBLISHED = ("temperature", "ets", "svs", "sms", "sals")
#: A model beside the initial one, each with its own temperature first.
ENSEMBLE = "ensemble"
DISAGREEMENT = "disagreement"
#: How a model is used: as it is, after a temperature, after the published calibrator that ID
#: validation prefers, beside the initial model, and after disagreement temperature.
USES = ("raw", "temperature", "published", ENSEMBLE, DISAGREEMENT)

Logits = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Scores:
    """Of one model on one set, by image.

    Attributes:
        nll: (N,) float16.
        confidence: (N,) float16, of the predicted class.
        correct: (N,) bool.
    """

    nll: NDArray[np.float16]
    confidence: NDArray[np.float16]
    correct: NDArray[np.bool_]


def scored(probs: NDArray[np.floating], labels: NDArray[np.int64]) -> Scores:
    """Scores of probabilities (N, C)."""
    own = probs[np.arange(len(labels)), labels].astype(np.float64)
    top = probs.argmax(axis=1)
    nll = -np.log(np.maximum(own, 1e-30))
    confidence = probs[np.arange(len(labels)), top]
    return Scores(nll.astype(np.float16), confidence.astype(np.float16), top == labels)


@dataclass(frozen=True)
class Used:
    """A model in one of its uses.

    Attributes:
        use: of `USES`.
        calibrator: which stands behind it.
        scores: set → scores; the calibration set is none of them.
    """

    use: str
    calibrator: str
    scores: dict[str, Scores]


def uses(
    own: Logits, initial: Logits | None, labels: Mapping[str, NDArray[np.int64]]
) -> Iterator[Used]:
    """A model in every use.

    Args:
        own: set → logits (N, C); calibrators are fitted on `calibration` and the published one is
            chosen on `validation`.
        initial: those of the initial model; None: this is the initial model.
        labels: set → (N,).
    """
    judged = [name for name in own if name != "calibration"]
    plain = {name: scored(softmax(own[name]), labels[name]) for name in judged}
    yield Used("raw", "raw", plain)
    wanted = [*PUBLISHED, ENSEMBLE, DISAGREEMENT]
    found: dict[str, dict[str, Scores]] = {"raw": plain}
    for kind in wanted:
        beside = kind in INITIAL_MODEL_CALIBRATORS
        if beside and initial is None:
            continue
        first = initial if beside else None
        calibrator = known(kind)().fit(
            own["calibration"],
            labels["calibration"],
            split="calibration",
            role="id",
            initial=None if first is None else first["calibration"],
        )
        # The others are needed only where the validation set prefers them.
        sets = judged if kind not in PUBLISHED[1:] else ["validation"]
        found[kind] = _applied(calibrator, sets, own, first, labels)
        if kind in ("temperature", ENSEMBLE, DISAGREEMENT):
            yield Used(kind, kind, found[kind])
        elif kind in PUBLISHED and _is_best(kind, found):
            found[kind] = _applied(calibrator, judged, own, first, labels)
    best = min(("raw", *(k for k in PUBLISHED if k in found)), key=lambda k: _nll(found[k]))
    yield Used("published", best, found[best])


def _applied(
    calibrator: Calibrator,
    names: Sequence[str],
    own: Logits,
    first: Logits | None,
    labels: Mapping[str, NDArray[np.int64]],
) -> dict[str, Scores]:
    return {
        n: scored(calibrator.transform(own[n], None if first is None else first[n]), labels[n])
        for n in names
    }


def _nll(scores: Mapping[str, Scores]) -> float:
    return float(scores["validation"].nll.astype(np.float64).mean())


def _is_best(kind: str, found: Mapping[str, Mapping[str, Scores]]) -> bool:
    others = [_nll(found[k]) for k in ("raw", *PUBLISHED) if k in found and k != kind]
    return _nll(found[kind]) < min(others)
