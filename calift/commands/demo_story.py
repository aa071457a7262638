"""What the demo found: one table and three sentences, made by rules from stored predictions.

A sentence says what the papers claim only where this machine's numbers show it: where an interval
holds zero, it says that the claim does not show.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calift.commands.console import percent, sigma_text
from calift_core.analysis.calibrators import calibrated_scores, fit_calibrator, read_to_fit
from calift_core.calibration import SampleScores, measures, score_probs, softmax
from calift_core.calibration.bins import Doubles
from calift_core.calibration.means import standard_error, t_quantile, variance_of_mean
from calift_core.calibration.squared import SquaredDifference, SquaredError, Units
from calift_core.calibration.uncertainty import null_floor
from calift_core.predictions.read import read_index, read_metadata, read_predictions
from calift_core.words import nats

#: Draws behind a floor.
_DRAWS = 100


@dataclass(frozen=True)
class DemoModel:
    """A model of the demo on its test sets.

    Attributes:
        sets: data set → scores, ID first.
        families: data set → (N,) font family of each image: the unit that is drawn independently.
        sigma_min: smallest singular value of its ID features; None for two models together.
    """

    name: str
    sets: Mapping[str, SampleScores]
    families: Mapping[str, np.ndarray]
    sigma_min: float | None

    @property
    def id_set(self) -> str:
        """The ID test set."""
        return next(iter(self.sets))

    @property
    def shifts(self) -> list[str]:
        """Every other set."""
        return list(self.sets)[1:]


@dataclass(frozen=True)
class Difference:
    """A mean difference with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or −1 where the interval excludes zero, else 0."""
        return (self.low > 0) - (self.high < 0)


def read_models(files: Mapping[str, Sequence[Path]], sigma_min: Mapping[str, float | None],
                recipe: tuple[str, str, str]) -> list[DemoModel]:  # fmt: skip
    """Score stored predictions, and those of a recipe that is made of two of them.

    Args:
        files: model → its predictions files; the first model is the initial one.
        recipe: name for people, the model that it is made of, the calibrator's kind.

    Returns:
        The models in their order, the recipe last.
    """
    by_role = {
        name: {
            (read_metadata(f).role, read_metadata(f).dataset): f
            for f in sorted(paths, key=lambda f: (read_metadata(f).role != "id", f.name))
        }
        for name, paths in files.items()
    }
    models = []
    for name, found in by_role.items():
        sets, families = {}, {}
        for (role, dataset), file in found.items():
            if role not in ("id", "shift"):
                continue
            stored = read_predictions(file)
            sets[dataset] = score_probs(softmax(stored.logits), stored.labels)
            families[dataset] = _families(file)
        models.append(DemoModel(name, sets, families, sigma_min[name]))
    label, of, kind = recipe
    initial = by_role[next(iter(files))]
    at = next(key for key in by_role[of] if key[0] == "calibration")
    calibrator, _ = fit_calibrator(
        kind, [read_to_fit(by_role[of][at])], oracle=False, initial=read_predictions(initial[at])
    )
    base = next(model for model in models if model.name == of)
    recommended = {
        dataset: calibrated_scores(file, [calibrator], initial=initial[role, dataset])[0]
        for (role, dataset), file in by_role[of].items()
        if dataset in base.sets
    }
    return [*models, DemoModel(label, recommended, base.families, None)]


def _families(file: Path) -> np.ndarray:
    """Genre and family of each image, the first two parts of its id."""
    return np.array(["/".join(str(one).split("/")[:2]) for one in read_index(file)[0]])


def mean_difference(parts: Sequence[tuple[Doubles, np.ndarray]]) -> Difference:
    """The unweighted mean over data sets of the mean of paired differences.

    Each set's standard error takes whole clusters for its units; their sum has a t distribution
    with Satterthwaite's degrees of freedom.

    Args:
        parts: per data set the differences (N,) and the cluster of each (N,).
    """
    value = float(np.mean([own.mean() for own, _ in parts]))
    se, df = standard_error(variance_of_mean(own, clusters) for own, clusters in parts)
    half = t_quantile(df, 0.975) * se / len(parts)
    return Difference(value, value - half, value + half)


def difference(a: DemoModel, b: DemoModel, metric: str, sets: Sequence[str]) -> Difference:
    """Mean of a metric of `a` minus that of `b` on the same images.

    Args:
        metric: `accuracy`, `nll`, or `squared_ece`, the debiased squared L2 error.
    """
    if metric == "squared_ece":
        found = [
            SquaredDifference.of(*(
                SquaredError(m.sets[s], Units(m.families[s], len(m.sets[s]))) for m in (a, b)
            ))
            for s in sets
        ]  # fmt: skip
        value = float(np.mean([f.value for f in found]))
        half = 1.96 * math.sqrt(sum(f.variance for f in found)) / len(found)
        return Difference(value, value - half, value + half)
    column = {"accuracy": "correct", "nll": "nll"}[metric]
    return mean_difference(
        [
            (
                getattr(a.sets[s], column).astype(np.float64)
                - getattr(b.sets[s], column).astype(np.float64),
                a.families[s],
            )
            for s in sets
        ]
    )


@dataclass(frozen=True)
class DemoNumbers:
    """Unweighted means over data sets; fractions, and nats for `nll`."""

    accuracy: float
    confidence: float
    ece: float
    floor: float
    nll: float


@dataclass(frozen=True)
class DemoRow:
    """A model's line of the table: on ID test images, and the mean over the shifts."""

    model: str
    id: DemoNumbers
    shift: DemoNumbers
    sigma_min: float | None


def table_rows(models: Sequence[DemoModel]) -> list[DemoRow]:
    """Measure each model."""
    return [
        DemoRow(m.name, _numbers(m, [m.id_set]), _numbers(m, m.shifts), m.sigma_min) for m in models
    ]


def _numbers(model: DemoModel, names: Sequence[str]) -> DemoNumbers:
    found = [model.sets[name] for name in names]
    columns = (
        [measures.accuracy(s) for s in found],
        [float(s.confidences.mean()) for s in found],
        [measures.ece(s) for s in found],
        [null_floor(s, n_resamples=_DRAWS).mean for s in found],
        [measures.nll(s) for s in found],
    )
    return DemoNumbers(*(float(np.mean(values)) for values in columns))


def sentences(models: Sequence[DemoModel]) -> list[str]:
    """Three sentences: what fine-tuning gains, what it does to confidence, and what helps."""
    zero, flyp, carot, recipe = models
    zero_row, flyp_row, carot_row, recipe_row = table_rows(models)
    own, shifts = [zero.id_set], zero.shifts
    gained = difference(flyp, zero, "accuracy", own), difference(flyp, zero, "accuracy", shifts)
    error = difference(flyp, zero, "squared_ece", shifts)
    less = difference(carot, flyp, "squared_ece", shifts)
    paid = difference(carot, flyp, "accuracy", own)
    advised = difference(recipe, flyp, "nll", shifts)
    return [
        _gain(*gained, flyp_row, zero_row, len(shifts)),
        _confidence(error, flyp_row, zero_row),
        _remedies(less, paid, carot_row, flyp_row)
        + _advice(advised, recipe_row, flyp_row, zero_row),
    ]


def _gain(own: Difference, shifted: Difference, flyp: DemoRow, zero: DemoRow, shifts: int) -> str:
    numbers = (
        f"{flyp.model} reads {percent(flyp.id.accuracy)} of letters of new sans-serif fonts right "
        f"and the model before it {percent(zero.id.accuracy)} ({_points(own)})"
    )
    lead = {
        1: f"Fine-tuning pays: {numbers}",
        0: f"That fine-tuning pays does not show here: {numbers}",
        -1: f"Fine-tuning costs accuracy here: {numbers}",
    }[own.sign]
    where = f"{shifts} kinds of fonts that it was not tuned on"
    tail = {
        1: f"; on {where} it gains as well ({_points(shifted)}).",
        0: f"; on {where} no difference can be told ({_points(shifted)}).",
        -1: f"; on {where} it loses ({_points(shifted)}).",
    }[shifted.sign]
    return lead + tail


def _confidence(error: Difference, flyp: DemoRow, zero: DemoRow) -> str:
    numbers = (
        f"on those fonts it is {percent(flyp.shift.confidence)} sure on average and right in "
        f"{percent(flyp.shift.accuracy)}, a calibration error of {percent(flyp.shift.ece)} "
        f"(floor {percent(flyp.shift.floor)}) against {percent(zero.shift.ece)} before."
    )
    return {
        1: f"But its confidence lies under shift: {numbers}",
        0: f"That fine-tuning spoils confidence under shift does not show here: {numbers}",
        -1: f"Its confidence under shift is better than before fine-tuning: {numbers}",
    }[error.sign]


def _remedies(error: Difference, accuracy: Difference, carot: DemoRow, flyp: DemoRow) -> str:
    numbers = f"{percent(carot.shift.ece)}, at an ID accuracy that differs by {_points(accuracy)}"
    claim = {
        -1: f"{carot.model}'s calibration error under shift is lower, {numbers}",
        0: f"That {carot.model}'s is lower does not show here: {numbers}",
        1: f"{carot.model}'s calibration error under shift is higher here, {numbers}",
    }[error.sign]
    raised = (carot.sigma_min or 0) > (flyp.sigma_min or 0)
    return (
        f"{claim}, and σ_min, the features' smallest singular value, is "
        f"{sigma_text(carot.sigma_min)} {'instead of' if raised else 'and not above'} "
        f"{sigma_text(flyp.sigma_min)}"
    )


def _advice(gain: Difference, recipe: DemoRow, flyp: DemoRow, zero: DemoRow) -> str:
    word = {-1: "lower than", 0: "not told apart from", 1: "higher than"}[gain.sign]
    return (
        f"; the {recipe.model} has an NLL under shift of {nats(recipe.shift.nll)}, "
        f"{word} {flyp.model}'s {nats(flyp.shift.nll)} ({gain.value:+.3f}, {gain.low:+.3f} to "
        f"{gain.high:+.3f}); {zero.model}'s is {nats(zero.shift.nll)}."
    )


def _points(found: Difference) -> str:
    return (
        f"{100 * found.value:+.1f} points, 95 % interval {100 * found.low:+.1f} to "
        f"{100 * found.high:+.1f}"
    )
