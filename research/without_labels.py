"""How far accuracy without labels is off, on the study's FLYP runs: each shift left out once.

    python -m research.without_labels --out FOLDER --suite letters fashion-mnist [--write FILE]

For every seed the model is FLYP's last state with a temperature, and its ensemble with zero-shot,
each calibrated first. What `calift watch` would use on a shift is chosen and regressed on ID
validation data and the *other* shifts. Logits are those that `research.study confirm` left.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.calibration.bins import softmax
from calift_core.calibration.calibrators import fit_temperature
from calift_core.calibration.unlabelled import (
    REGRESSED,
    AccuracyEstimators,
    KnownSet,
    Labelled,
    estimate_regressed,
    recommended,
    validate_estimators,
)
from calift_core.methods.base import zero_shot_classifier
from research.benches import BENCHES, Data, load
from research.study import SEEDS, SOURCE, Place, initial_of, left_by, own_rate
from research.training import ask, captions_of

MODELS = ("FLYP, temperature", "FLYP beside zero-shot")


def known_sets(place: Place) -> Iterator[tuple[str, int, list[KnownSet]]]:
    """Model, seed, and ID validation data followed by the shifts, as the estimators see them."""
    data: Data | None = None
    first: dict[int, dict[str, NDArray[Any]]] = {}
    lr = own_rate(place, SOURCE, "end")
    assert lr is not None, "FLYP has no rate yet"
    for seed in SEEDS:
        left = left_by(place, lr, seed)
        if not left.logits.is_file():
            continue
        k = seed % 2
        if k not in first:
            initial = initial_of(place, k)
            data = data or load(place.bench, place.out, initial.preprocess)
            spec = place.bench.spec(
                place.out, {"kind": "zero_shot"}, lr=None, seed=0, pretraining=k
            )
            head = zero_shot_classifier(initial, captions_of(spec, data, initial))
            first[k] = ask(initial, head, data, list(data.pixels))
        assert data is not None
        own, start = left.read(), first[k]
        fitted = [
            fit_temperature(z["calibration"], data.labels["calibration"]) for z in (own, start)
        ]
        for model in MODELS:
            sets = {}
            for name in ("validation", *(n for n, kind in data.kinds.items() if kind == "shift")):
                probs = softmax(own[name], fitted[0])
                if model == MODELS[1]:
                    probs = (probs + softmax(start[name], fitted[1])) / 2
                sets[name] = Labelled(probs, start[name], data.labels[name])
            estimators = AccuracyEstimators(sets["validation"])
            yield model, seed, [estimators.known(name, each) for name, each in sets.items()]


def rows_of(found: list[list[KnownSet]]) -> Iterator[str]:
    """A table row for each estimator, and one for the choice, over all seeds of a model."""
    errors: dict[str, list[list[float]]] = defaultdict(list)
    covered: dict[str, list[bool]] = defaultdict(list)
    chosen, chosen_errors, chosen_covered = Counter[str](), [], []
    for own, *shifts in found:
        for error in validate_estimators(own, shifts):
            errors[error.estimator].append([100 * error.errors[s.name] for s in shifts])
        for at, shift in enumerate(shifts):
            others = [*shifts[:at], *shifts[at + 1 :]]
            judged = {e.estimator: e for e in validate_estimators(own, others)}
            estimates = {
                name: estimate_regressed(
                    [own, *others], e, shift.estimates[name.removesuffix(REGRESSED)]
                )
                for name, e in judged.items()
                if name.endswith(REGRESSED)
            }
            for name, e in estimates.items():
                covered[name].append(e.low <= shift.accuracy <= e.high)
            best = recommended(list(judged.values()))
            chosen[best] += 1
            if best in estimates:
                chosen_errors.append(100 * (estimates[best].value - shift.accuracy))
                chosen_covered.append(covered[best][-1])
            else:
                chosen_errors.append(100 * (shift.estimates[best] - shift.accuracy))
    for name, values in errors.items():
        e = np.array(values)
        share = f"{100 * np.mean(covered[name]):.0f} %" if name in covered else "–"
        yield (
            f"| {name.replace('_', ' ')} | {np.abs(e).mean():.1f} | {e.mean():+.1f} | "
            f"{np.abs(e.mean(axis=0)).max():.1f} | {share} |"
        )
    e = np.array(chosen_errors)
    often = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in chosen.most_common(3))
    yield (
        f"| **what `watch` uses** ({often}) | **{np.abs(e).mean():.1f}** | {e.mean():+.1f} | "
        f"{np.abs(e.reshape(len(found), -1).mean(axis=0)).max():.1f} | "
        f"{100 * np.mean(chosen_covered):.0f} % |"
    )


def page(places: list[Place]) -> str:
    """The whole page."""
    lines = [
        "# Accuracy without labels",
        "",
        "How far estimates are off on a shift that they have not seen, in points: mean absolute "
        "error, bias, the worst shift's bias, and how often the interval holds the accuracy. "
        "`python -m research.without_labels` makes it.",
    ]
    for place in places:
        found: dict[str, list[list[KnownSet]]] = defaultdict(list)
        for model, _, sets in known_sets(place):
            found[model].append(sets)
        for model, seeds in found.items():
            lines += ["", f"## {place.bench.name}: {model}, {len(seeds)} seeds", ""]
            lines += [
                "| estimator | error | bias | worst shift | covered |",
                "|---|---|---|---|---|",
            ]
            lines += rows_of(seeds)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the arguments; print the page or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--suite", nargs="+", choices=list(BENCHES), required=True)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    text = page([Place(BENCHES[name], options.out) for name in options.suite])
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
