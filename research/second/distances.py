"""Could T(d) be of another form? Asked of ID data; what each did under shift stands beside.

    python -m research.second.distances --out results/study

Every form of T is fitted on the ID calibration images of every trained run that lies in --out, and
the mean NLL on ID validation says which is best. What it gave under shift is told and chooses
nothing. The last rows are the form that is shipped with another prior on b, fitted on 126 images as
on a small data set: means over ten draws that all runs share. From stored predictions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from calift_core.calibration.calibrators import TEMPERATURE_RANGE, fit_temperature
from calift_core.calibration.initial_model import PRIOR, disagreement
from calift_core.predictions.read import read_metadata, read_predictions
from research.second.study import BENCHES, RECORDS, cells, predictions_of
from research.second.tables import keep_lines

Doubles = NDArray[np.float64]
FEW, DRAWS = 126, 10
PLAIN = "a alone (temperature)"
SHIPPED = "d: total variation of the raw probabilities (ours)"


@dataclass(frozen=True)
class Pair:
    """Two models on the same N images.

    Attributes:
        own: (N, C) logits of the tuned one.
        first: (N, C) of the initial one.
        labels: (N,).
    """

    own: Doubles
    first: Doubles
    labels: NDArray[np.int64]

    def take(self, at: NDArray[np.int64]) -> Pair:
        """Some of them."""
        return Pair(self.own[at], self.first[at], self.labels[at])


@dataclass(frozen=True)
class Seen:
    """What a distance may read: both models' probabilities, each after its own ID temperature."""

    pair: Pair
    q: Doubles
    q0: Doubles

    @property
    def top(self) -> NDArray[np.int64]:
        """(N,) the predicted classes."""
        found: NDArray[np.int64] = self.pair.own.argmax(axis=1)
        return found

    def at_top(self, of: Doubles) -> Doubles:
        """(N,) of the predicted class."""
        return np.take_along_axis(of, self.top[:, None], axis=1)[:, 0]


def _jensen_shannon(s: Seen) -> Doubles:
    middle = (s.q + s.q0) / 2

    def apart(p: Doubles) -> Doubles:
        return np.asarray((p * np.log((p + 1e-12) / (middle + 1e-12))).sum(axis=1))

    return np.sqrt(np.maximum((apart(s.q) + apart(s.q0)) / 2, 0))


#: Form → the features (N, K) that log T is linear in, beside a constant.
FORMS: dict[str, Callable[[Seen], list[Doubles]]] = {
    PLAIN: lambda s: [],
    SHIPPED: lambda s: [disagreement(s.pair.own, s.pair.first)],
    "d and d²": lambda s: [(d := disagreement(s.pair.own, s.pair.first)), d * d],
    "d: total variation after both temperatures": lambda s: [np.abs(s.q - s.q0).sum(axis=1) / 2],
    "d: root of Jensen–Shannon after both temperatures": lambda s: [_jensen_shannon(s)],
    "d: 1 where the predictions differ": lambda s: [(s.top != s.q0.argmax(axis=1)).astype(float)],
    "d: confidence less the initial model's in the same class": lambda s: [
        s.at_top(s.q) - s.at_top(s.q0)
    ],
    "d: 1 − the initial model's confidence": lambda s: [1 - s.q0.max(axis=1)],
    "d: 1 − what the initial model gives the predicted class": lambda s: [1 - s.at_top(s.q0)],
}


def features(pair: Pair, heat: tuple[float, float], form: str) -> Doubles:
    """(N, 1 + K)."""
    seen = Seen(pair, softmax(pair.own / heat[0], axis=1), softmax(pair.first / heat[1], axis=1))
    return np.stack([np.ones(len(pair.labels)), *FORMS[form](seen)], axis=1)


def fit(of: Doubles, pair: Pair, prior: float) -> Doubles:
    """Weights (1 + K) with the least NLL and ‖b‖²/(2σ²N)."""
    z = pair.own - pair.own.max(axis=1, keepdims=True)
    n = len(z)
    own = z[np.arange(n), pair.labels]
    ease = 0.0 if np.isinf(prior) else 1 / (prior**2 * n)

    def loss(w: Doubles) -> tuple[float, Doubles]:
        beta = np.exp(-(of @ w))
        weight = np.exp(z * beta[:, None])
        total = weight.sum(axis=1)
        value = (np.log(total) - beta * own).mean() + ease * (w[1:] ** 2).sum() / 2
        slope = -beta * ((weight * z).sum(axis=1) / total - own)
        gradient = (of * slope[:, None]).mean(axis=0)
        gradient[1:] += ease * w[1:]
        return float(value), gradient

    start = np.zeros(of.shape[1])
    start[0] = np.log(fit_temperature(pair.own.astype(np.float32), pair.labels))
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B").x)


def nll(of: Doubles, weights: Doubles, pair: Pair) -> float:
    """Mean NLL of softmax(z / T)."""
    heat = np.clip(np.exp(of @ weights), *TEMPERATURE_RANGE)
    said = log_softmax(pair.own / heat[:, None], axis=1)
    return float(-said[np.arange(len(of)), pair.labels].mean())


def pairs_of(folder: Path, initial: Path) -> Mapping[str, list[Pair]]:
    """Role → what both models say of its sets."""
    own, first = predictions_of(folder), predictions_of(initial)
    found: dict[str, list[Pair]] = {"calibration": [], "validation": [], "shift": []}
    for name, file in own.items():
        role = read_metadata(file).role
        if role in found:
            a, b = read_predictions(file), read_predictions(first[name])
            pair = Pair(a.logits.astype(np.float64), b.logits.astype(np.float64), a.labels)
            found[role].append(pair)
    return found


def asked(folder: Path, initial: Path) -> dict[str, tuple[float, float]]:
    """Form → NLL on ID validation and mean NLL over the shifts, of one run."""
    of = pairs_of(folder, initial)
    (clean,), (judged,) = of["calibration"], of["validation"]
    heat = tuple(fit_temperature(z.astype(np.float32), clean.labels)
                 for z in (clean.own, clean.first))  # fmt: skip
    found: dict[str, tuple[float, float]] = {}

    def tell(name: str, form: str, fitted_on: Sequence[Pair], prior: float) -> None:
        evaluated_on = [(features(p, heat, form), p) for p in (judged, *of["shift"])]
        said = []
        for on in fitted_on:
            weights = fit(features(on, heat, form), on, prior)
            said.append([nll(seen, weights, p) for seen, p in evaluated_on])
        means = np.mean(said, axis=0)
        found[name] = float(means[0]), float(means[1:].mean())

    for form in FORMS:
        tell(form, form, [clean], PRIOR)
    rng = np.random.default_rng(0)
    few = [clean.take(rng.choice(len(clean.labels), FEW, replace=False)) for _ in range(DRAWS)]
    tell(f"{FEW} images: temperature", PLAIN, few, PRIOR)
    for prior in (np.inf, PRIOR, 0.5):
        tell(f"{FEW} images: ours, σ = {prior:g}", SHIPPED, few, prior)
    return found


def finished(out: Path, suite: str) -> Iterator[Path]:
    """Folders of trained runs and their paths."""
    for cell in cells(BENCHES[suite]):
        folder = cell.folder(out)
        if cell.lr is not None and (folder / "report.json").is_file():
            yield folder


def main() -> None:
    """Read the arguments, fit, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/study"))
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--suite", choices=BENCHES, default="typefaces")
    options = parser.parse_args()
    initial = options.out / options.suite / "zero-shot"
    every: list[dict[str, Any]] = [asked(f, initial) for f in finished(options.out, options.suite)]
    lines = [
        "| log T linear in | ID validation NLL | lower than temperature's, runs | OOD NLL |",
        "|---|---|---|---|",
    ]
    for name in every[0]:
        base = f"{FEW} images: temperature" if name.startswith(str(FEW)) else PLAIN
        own = np.array([one[name] for one in every])
        plain = np.array([one[base] for one in every])
        better = int((own[:, 0] < plain[:, 0] - 1e-9).sum())
        validation, shift = own.mean(axis=0)
        lines.append(f"| {name} | {validation:.4f} | {better} of {len(every)} | {shift:.3f} |")
    keep_lines(BENCHES[options.suite], options.records, "distances", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
