"""The study of CaRot's bound: do its two ID terms rank the errors under shift?

Oh et al. 2024, section 3: OOD calibration error and OOD classification error share an upper bound
`ε_ID + D/σ_min + …`, made of the ID calibration error and the smallest singular value of the
standardised ID covariance. The bound is numerically loose (σ_min ≤ 1, so the second term is at
least D while errors are at most 1): only ranks are read here. docs/theory.md has the derivation.

Two sources of points: a synthetic experiment (`synthetic_points`) and the reports of finished runs
(`read_runs`). `analyse` computes the rank correlations of either, `write_study` the files.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from scipy.stats import t as student_t

from calift_core.errors import DataError, SpecError
from calift_core.files import atomic_write_bytes, atomic_write_json
from calift_core.schema.methods import METHOD_SPECS
from calift_core.schema.report import Report
from calift_core.schema.spec import ConfidenceSpec

Doubles = npt.NDArray[np.float64]
Strings = Sequence[str]

#: Fewer points than this carry no rank correlation worth an interval.
SMALLEST_N = 8
_RESAMPLES = 2000
_PERMUTATIONS = 9999
#: A report is far smaller; a larger file of an artifact store is something else.
_LARGEST_REPORT = 16 << 20


# ------------------------------------------------------------------------------- the bound's terms


@dataclass(frozen=True)
class BoundTerms:
    """What of the bound's right-hand side can be measured on ID data.

    Attributes:
        calibration: ε_ID, an ID calibration error, a fraction.
        covariance: D/σ_min, at least D.
    """

    calibration: float
    covariance: float

    @property
    def rhs(self) -> float:
        """`ε_ID + D/σ_min`, without Δ and the sampling term, which ID data do not show."""
        return self.calibration + self.covariance


def bound_terms(calibration_error: float, sigma_min: float, n_features: int) -> BoundTerms:
    """Both measurable terms of the bound (Oh et al. 2024).

    Args:
        calibration_error: ε_ID in [0, 1].
        sigma_min: smallest singular value of the standardised ID covariance, in (0, 1]: their mean
            is 1.
        n_features: D, the features it was taken over.

    Raises:
        SpecError: an argument is out of its range; σ_min = 0 is a rank-deficient representation.
    """
    if not 0 <= calibration_error <= 1:
        raise SpecError(f"calibration_error must lie in [0, 1], got {calibration_error}")
    if n_features < 1:
        raise SpecError(f"n_features must be ≥ 1, got {n_features}")
    if not 0 < sigma_min <= 1 + 1e-9:
        raise SpecError(f"sigma_min must lie in (0, 1], got {sigma_min}")
    return BoundTerms(float(calibration_error), n_features / sigma_min)


@dataclass(frozen=True)
class BoundPoint:
    """One model: the bound's ID terms and its measured errors under shift.

    Attributes:
        part: `synthetic` or `runs`.
        suite: what it was judged on; ranks are taken inside one suite.
        group: models that differ by less than this, such as the seed, are no independent evidence.
        variant: what the legend shows.
        name: of the run or setting.
        seed: of the training.
        id_calibration: ε_ID. Synthetic: squared binned error of P(y = 1); runs: the report's ECE.
        sigma_min: of the standardised ID representation.
        n_features: D.
        covariance_term: D/σ_min.
        rhs: ε_ID + D/σ_min.
        id_error: ID counterpart of `ood_error`, for comparison; no term of the bound.
        ood_error: synthetic: MSE; runs: 1 − mean accuracy over the shifts.
        ood_ece: synthetic: ECE of P(y = 1); runs: mean top-label ECE over the shifts.
        zero_shot: the model was not fine-tuned.
        spec_sha256: of the run.
    """

    part: str
    suite: str
    group: str
    variant: str
    name: str
    seed: int
    id_calibration: float
    sigma_min: float
    n_features: int
    covariance_term: float
    rhs: float
    id_error: float
    ood_error: float
    ood_ece: float
    zero_shot: bool = False
    spec_sha256: str = ""


# --------------------------------------------------------------------------------- rank statistics


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ρ with what is needed to judge it.

    Attributes:
        rho: in [−1, 1]; over several strata, ranks are taken inside each.
        low: lower end of the interval.
        high: upper end of the interval.
        p_value: two-sided, of "no association", from permuting whole groups inside strata.
        n: points.
        n_groups: independent units, which are resampled and permuted; n when nothing is grouped.
        level: nominal coverage of the interval.
    """

    rho: float
    low: float
    high: float
    p_value: float
    n: int
    n_groups: int
    level: float = 0.95


def rank_correlation(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    groups: Strings | None = None,
    strata: Strings | None = None,
    n_resamples: int = _RESAMPLES,
    n_permutations: int = _PERMUTATIONS,
    level: float = 0.95,
    seed: int = 0,
) -> RankCorrelation:
    """Spearman's rank correlation of N points, with an interval and a p-value over groups.

    The interval: whole groups are drawn with replacement, the standard deviation of the resampled
    Fisher z = atanh ρ is the standard error, but not less than that of n independent points (Bonett
    & Wright 2000), and z ± t(G − strata)·error is mapped back. In simulations with 6 to 48 groups
    it covered the truth in 94 to 100 % of cases; a percentile interval fell to 92 % and BCa to 85 %
    where groups were few. The p-value permutes the groups' mean ranks inside strata: single runs of
    a group are not exchangeable with those of another, and permuting them would overstate it.

    Args:
        x: (N,).
        y: (N,).
        groups: (N,) labels of units that belong together; None: every point is one.
        strata: (N,) labels; ranks are taken and groups permuted inside one. None: one stratum.
        n_resamples: R, bootstrap draws.
        n_permutations: of the p-value, whose smallest value is 1/(permutations + 1).
        level: nominal coverage.
        seed: of the draws; equal seeds give equal answers.

    Raises:
        SpecError: fewer than 8 points, fewer than 2 groups more than strata, lengths that differ,
            values that are not finite, or x or y the same everywhere.
    """
    a, b = (np.asarray(v, dtype=np.float64) for v in (x, y))
    n = len(a)
    group_labels = [str(i) for i in range(n)] if groups is None else list(groups)
    stratum_labels = [""] * n if strata is None else list(strata)
    if not (a.shape == b.shape == (len(group_labels),) == (len(stratum_labels),)):
        raise SpecError(
            "x, y, groups and strata must be of one length, got "
            f"{a.shape}, {b.shape}, {len(group_labels)}, {len(stratum_labels)}"
        )
    if n < SMALLEST_N:
        raise SpecError(f"a rank correlation needs at least {SMALLEST_N} points, got {n}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise SpecError("x and y must be finite")
    if n_resamples < 2 or n_permutations < 1 or not 0 < level < 1:
        raise SpecError(
            "n_resamples must be ≥ 2, n_permutations ≥ 1 and level in (0, 1), got "
            f"{n_resamples}, {n_permutations}, {level}"
        )
    stratum = np.unique(stratum_labels, return_inverse=True)[1]
    # A group never spans strata: what is drawn or permuted lies inside one.
    pairs = [f"{s}\0{g}" for s, g in zip(stratum, group_labels, strict=True)]
    member_of = np.unique(pairs, return_inverse=True)[1]
    members = np.eye(member_of.max() + 1)[member_of].T  # (G, N)
    n_groups = len(members)
    n_strata = int(stratum.max()) + 1
    if n_groups < n_strata + 2:
        raise SpecError(
            f"an interval over groups needs at least {n_strata + 2} of them, got {n_groups}"
        )
    below_a, below_b = (_below(v, stratum) for v in (a, b))
    same = (stratum[:, None] == stratum[None, :]).astype(np.float64)
    (rho,) = _weighted_rho(np.ones((1, n)), below_a, below_b, same)
    if not np.isfinite(rho):
        raise SpecError("x and y must vary inside a stratum: one of them is constant")
    rng = np.random.default_rng(seed)
    group_stratum = np.array([stratum[row.argmax()] for row in members])
    draws = np.zeros((n_resamples, n_groups))
    for s in range(group_stratum.max() + 1):
        own = np.flatnonzero(group_stratum == s)
        draws[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), n_resamples)
    resampled = _weighted_rho(draws @ members, below_a, below_b, same)
    resampled = resampled[np.isfinite(resampled)]  # a draw of one group alone has no ρ
    z, error = float(_fisher(np.array([rho]), n)[0]), float(_fisher(resampled, n).std(ddof=1))
    error = max(error, math.sqrt((1 + rho**2 / 2) / (n - 3)))
    reach = float(student_t.ppf((1 + level) / 2, n_groups - n_strata)) * error
    p_value = _group_p_value(a, b, stratum, members, group_stratum, n_permutations, rng)
    # Fisher's z is cut short of ±∞, and must not cut ρ itself out of its interval.
    low, high = min(math.tanh(z - reach), rho), max(math.tanh(z + reach), rho)
    return RankCorrelation(float(rho), float(low), float(high), p_value, n, n_groups, level)


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Spearman's ρ of N points, ties at their mean rank; NaN if x or y is constant."""
    a, b = (np.asarray(v, dtype=np.float64) for v in (x, y))
    one = np.zeros(len(a), dtype=np.int64)
    weights = np.ones((1, len(a)))
    rho = _weighted_rho(weights, _below(a, one), _below(b, one), np.ones((len(a), len(a))))
    return float(rho[0])


def scaled_ranks(values: npt.ArrayLike, strata: Strings | None = None) -> Doubles:
    """Mid-ranks inside each stratum, scaled to (0, 1), with mean ½; (N,) to (N,)."""
    v = np.asarray(values, dtype=np.float64)
    stratum = np.unique([""] * len(v) if strata is None else list(strata), return_inverse=True)[1]
    below = _below(v, stratum)
    return np.asarray(below.sum(axis=1) / np.bincount(stratum)[stratum], dtype=np.float64)


def _below(values: Doubles, stratum: npt.NDArray[np.int64]) -> Doubles:
    """(N, N): 1 where j is below i in the same stratum, ½ where they tie.

    Weighted by how often each point was drawn, a row's sum is the point's mid-rank less ½, so all
    resamples are ranked by one product.
    """
    order = (values[None, :] < values[:, None]) + 0.5 * (values[None, :] == values[:, None])
    return np.asarray(order * (stratum[None, :] == stratum[:, None]), dtype=np.float64)


def _weighted_rho(counts: Doubles, below_x: Doubles, below_y: Doubles, same: Doubles) -> Doubles:
    """ρ of R resamples whose points were drawn `counts` (R, N) times."""
    size = counts @ same
    size[size == 0] = 1
    u, v = counts @ below_x.T / size - 0.5, counts @ below_y.T / size - 0.5
    squares = (counts * u * u).sum(axis=1) * (counts * v * v).sum(axis=1)
    squares[squares <= 1e-24] = np.nan
    return np.asarray((counts * u * v).sum(axis=1) / np.sqrt(squares), dtype=np.float64)


def _fisher(rho: Doubles, n: int) -> Doubles:
    limit = 1 - 1 / n
    return np.asarray(np.arctanh(np.clip(rho, -limit, limit)), dtype=np.float64)


def _group_p_value(
    a: Doubles,
    b: Doubles,
    stratum: npt.NDArray[np.int64],
    members: Doubles,
    group_stratum: npt.NDArray[np.int64],
    n_permutations: int,
    rng: np.random.Generator,
) -> float:
    size = np.bincount(stratum)[stratum]
    means = [
        members @ (_below(v, stratum).sum(axis=1) / size) / members.sum(axis=1) for v in (a, b)
    ]
    u, v = (_below(m, group_stratum).sum(axis=1) for m in means)
    per_stratum = np.bincount(group_stratum)[group_stratum]
    u, v = u / per_stratum - 0.5, v / per_stratum - 0.5
    observed = abs(float(u @ v))
    shuffled = np.tile(v, (n_permutations, 1))
    for s in range(group_stratum.max() + 1):
        own = np.flatnonzero(group_stratum == s)
        shuffled[:, own] = rng.permuted(shuffled[:, own], axis=1)
    as_extreme = int((np.abs(shuffled @ u) >= observed - 1e-12).sum())
    return (as_extreme + 1) / (n_permutations + 1)


# ---------------------------------------------------------------------------- the tables' contents

#: What is ranked against the errors, by name.
TERMS: dict[str, str] = {
    "rhs": "ε_ID + D/σ_min",
    "id_calibration": "ε_ID",
    "covariance_term": "D/σ_min",
    "mean_rank": "mean rank of both",
    "id_error": "ID error, to compare",
}
#: The measured errors, by name.
ERRORS: dict[str, str] = {"ood_error": "OOD error", "ood_ece": "OOD ECE"}


@dataclass(frozen=True)
class Association:
    """One row: a term against an error over a scope's points."""

    scope: str
    term: str
    error: str
    correlation: RankCorrelation


@dataclass(frozen=True)
class Analysis:
    """The rank correlations of one part, and what was left out and why."""

    part: str
    points: tuple[BoundPoint, ...]
    associations: tuple[Association, ...]
    notes: tuple[str, ...]


def analyse(
    part: str,
    points: Sequence[BoundPoint],
    *,
    scopes: Sequence[tuple[str, Sequence[BoundPoint]]] | None = None,
    notes: Iterable[str] = (),
    n_resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Analysis:
    """Rank correlations of every term with both errors.

    Args:
        part: `synthetic` or `runs`.
        points: all of them.
        scopes: named subsets; ranks are taken inside suites. None: each suite, all suites together,
            and the widest of these without zero-shot models where there are any.
        notes: sentences to go before those found here.
        n_resamples: bootstrap draws of each interval.
        seed: of the draws.

    Raises:
        SpecError: no scope has 8 points.
    """
    if scopes is None:
        scopes = _default_scopes(points)
    associations: list[Association] = []
    said = list(notes)
    for scope, chosen in scopes:
        if len(chosen) < SMALLEST_N:
            said.append(
                f"{scope}: a rank correlation needs at least {SMALLEST_N} models, got "
                f"{len(chosen)}; none is given."
            )
            continue
        strata = [p.suite for p in chosen]
        groups = [p.group for p in chosen]
        columns = {name: [float(getattr(p, name)) for p in chosen] for name in _COLUMNS}
        columns["mean_rank"] = list(
            scaled_ranks(columns["id_calibration"], strata)
            + scaled_ranks(columns["covariance_term"], strata)
        )
        for term, error in itertools.product(TERMS, ERRORS):
            try:
                found = rank_correlation(
                    columns[term],
                    columns[error],
                    groups=groups,
                    strata=strata,
                    n_resamples=n_resamples,
                    seed=seed,
                )
            except SpecError as problem:
                said.append(f"{scope}, {TERMS[term]} against {ERRORS[error]}: {problem.message}.")
                continue
            associations.append(Association(scope, term, error, found))
    if not associations:
        raise SpecError(
            f"a rank correlation needs at least {SMALLEST_N} models judged on the same data, got "
            f"{len(points)} in {len({p.suite for p in points})} suites",
            hint=" ".join(said),
        )
    return Analysis(part, tuple(points), tuple(associations), tuple(said))


_COLUMNS = ("rhs", "id_calibration", "covariance_term", "id_error", "ood_error", "ood_ece")


def _default_scopes(points: Sequence[BoundPoint]) -> list[tuple[str, list[BoundPoint]]]:
    suites = list(dict.fromkeys(p.suite for p in points))
    scopes = [(suite, [p for p in points if p.suite == suite]) for suite in suites]
    enough = [suite for suite, chosen in scopes if len(chosen) >= SMALLEST_N]
    if len(enough) > 1:
        scopes.append(("all suites, ranked inside", [p for p in points if p.suite in enough]))
    widest, chosen = scopes[-1]
    if any(p.zero_shot for p in chosen):
        scopes.append((f"{widest}, no zero-shot", [p for p in chosen if not p.zero_shot]))
    return scopes


# ------------------------------------------------------------------------- the synthetic experiment


@dataclass(frozen=True)
class SyntheticPlan:
    """The synthetic experiment (Oh et al. 2024; re-derived from its description).

    Labels are fair coins. On ID data feature 1 is `±separation + N(0, 1)` and feature 2 the same,
    with the sign of the label; the others are N(0, 1). On OOD data `mean_shift` is added to feature
    1 and feature 2 is multiplied by `scale`.

    Attributes:
        n_features: of the input.
        n_train: training samples.
        n_test: samples of the ID and of the OOD test set.
        hidden: width of the ReLU layer.
        width: D, of the linear representation layer W (hidden, D), D ≤ hidden; n_test > D, so that
            σ_min is not 0 by rank.
        batch_size: of training; n_train is a multiple of it.
        lr: of Adam.
        lengths: training lengths, epochs.
        lambda_oc: weights of `‖WᵀW − 1‖_F²`; 0 first.
        lambda_sd: weights of the self-distillation; 0 first.
        seeds: repeats; each draws data and initial weights anew.
        separation: of the class means.
        mean_shift: δ.
        scale: κ.
    """

    n_features: int = 1000
    n_train: int = 4000
    n_test: int = 5000
    hidden: int = 64
    width: int = 16
    batch_size: int = 100
    lr: float = 1e-3
    lengths: tuple[int, ...] = (4, 12)
    lambda_oc: tuple[float, ...] = (0.0, 1e-3, 1e-2, 1e-1)
    lambda_sd: tuple[float, ...] = (0.0, 0.5, 1.5, 4.5)
    seeds: tuple[int, ...] = (0, 1, 2)
    separation: float = 1.0
    mean_shift: float = 1.0
    scale: float = 0.3

    def settings(self) -> list[Setting]:
        """Every model to train, in order."""
        return [
            Setting(*values)
            for values in itertools.product(
                self.seeds, self.lengths, self.lambda_oc, self.lambda_sd
            )
        ]


@dataclass(frozen=True)
class Setting:
    """One model of the synthetic experiment."""

    seed: int
    epochs: int
    lambda_oc: float
    lambda_sd: float

    @property
    def variant(self) -> str:
        """Which of the two regularisers are on."""
        if self.lambda_oc:
            return "both" if self.lambda_sd else "L_OC"
        return "L_SD" if self.lambda_sd else "plain"


FULL = SyntheticPlan()
QUICK = SyntheticPlan(
    n_features=60,
    n_train=400,
    n_test=1000,
    hidden=32,
    width=8,
    lengths=(12,),
    lambda_oc=(0.0, 1e-1),
    lambda_sd=(0.0, 1.5),
    seeds=(0, 1, 2),
)


def synthetic_points(plan: SyntheticPlan = FULL, *, seed: int = 0) -> Iterator[BoundPoint]:
    """Train the models of the synthetic experiment one by one, in the order of `plan.settings()`.

    Every model is `sigmoid(relu(x A + a) W w + b)`, trained on the squared error against the 0/1
    label, plus `λ_OC ‖WᵀW − 1‖_F²`, plus `λ_SD` times the squared difference from the output of an
    averaged teacher: CaRot's schedule, about 50 updates a run, momentum 0.05 to 0.9 over the first
    fifth. Models of one repeat share data and initial weights.

    Args:
        plan: sizes and strengths.
        seed: added to the plan's seeds; equal seeds give equal points on one number of threads.

    Raises:
        SpecError: the plan leaves σ_min undefined or its batches do not divide the data.
    """
    import torch

    if not plan.width <= plan.hidden or not plan.n_test > plan.width:
        raise SpecError(
            "a plan needs width ≤ hidden and n_test > width, or σ_min is 0 by rank, got "
            f"width {plan.width}, hidden {plan.hidden}, n_test {plan.n_test}"
        )
    if plan.n_train % plan.batch_size:
        raise SpecError(
            f"n_train must be a multiple of batch_size {plan.batch_size}, got {plan.n_train}"
        )
    if plan.n_features < 2:
        raise SpecError(f"n_features must be ≥ 2, got {plan.n_features}")
    data: tuple[Any, ...] = ()
    of_seed: int | None = None
    for setting in plan.settings():
        if setting.seed != of_seed:
            of_seed = setting.seed
            rng = np.random.default_rng([seed, setting.seed])
            data = tuple(
                torch.from_numpy(array)
                for n, ood in ((plan.n_train, False), (plan.n_test, False), (plan.n_test, True))
                for array in draw_samples(plan, n, rng, ood=ood)
            )
        yield _synthetic_point(plan, setting, data, seed=seed)


def draw_samples(
    plan: SyntheticPlan, n: int, rng: np.random.Generator, *, ood: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Inputs (n, n_features) and labels (n,) in {0, 1}."""
    labels = rng.integers(0, 2, n)
    x = rng.standard_normal((n, plan.n_features), dtype=np.float32)
    x[:, :2] += (plan.separation * (2 * labels - 1))[:, None]
    if ood:
        x[:, 0] += plan.mean_shift
        x[:, 1] *= plan.scale
    return x, labels.astype(np.float32)


def _synthetic_point(
    plan: SyntheticPlan, setting: Setting, data: Sequence[Any], *, seed: int
) -> BoundPoint:
    import torch

    from calift_core.calibration import Binning, TopLabel, ece
    from calift_core.methods.terms import orthogonality
    from calift_core.spectrum import Covariance, spectrum_report

    x, y, x_id, y_id, x_ood, y_ood = data
    generator = torch.Generator().manual_seed(1_000_003 * seed + setting.seed)

    def uniform(*shape: int) -> torch.Tensor:
        reach = 1 / math.sqrt(shape[0])
        return ((2 * torch.rand(*shape, generator=generator) - 1) * reach).requires_grad_()

    first, w, head = (
        uniform(plan.n_features, plan.hidden),
        uniform(plan.hidden, plan.width),
        uniform(plan.width),
    )
    student = [first, torch.zeros(plan.hidden, requires_grad=True), w, head]
    student.append(torch.zeros((), requires_grad=True))
    teacher = [p.detach().clone() for p in student]

    def forward(p: list[torch.Tensor], inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.relu(inputs @ p[0] + p[1]) @ p[2]  # (B, D)
        return features, torch.sigmoid(features @ p[3] + p[4])  # (B,)

    optimizer = torch.optim.Adam(student, lr=plan.lr)
    steps = setting.epochs * plan.n_train // plan.batch_size
    every = max(1, steps // 50)
    step = 0
    for _ in range(setting.epochs):
        order = torch.randperm(plan.n_train, generator=generator)
        for chosen in order.reshape(-1, plan.batch_size):
            batch = x[chosen]
            _, output = forward(student, batch)
            loss = (output - y[chosen]).square().mean()
            if setting.lambda_oc:
                loss = loss + setting.lambda_oc * orthogonality(w, "squared")
            if setting.lambda_sd:
                with torch.no_grad():
                    _, target = forward(teacher, batch)
                loss = loss + setting.lambda_sd * (output - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if setting.lambda_sd and step % every == 0:
                momentum = 0.05 + 0.85 * min(1.0, step / (0.2 * steps))
                with torch.no_grad():
                    for average, current in zip(teacher, student, strict=True):
                        average.lerp_(current, 1 - momentum)

    with torch.inference_mode():
        features, on_id = forward(student, x_id)
        _, on_ood = forward(student, x_ood)
        covariance = Covariance(plan.width)
        covariance.add(features.numpy())
        id_error = float((on_id - y_id).square().mean())
        ood_error = float((on_ood - y_ood).square().mean())
    spectrum = spectrum_report(covariance)
    scores = TopLabel(on_id.numpy(), y_id.numpy() == 1)
    calibration = ece(scores, Binning(norm="l2")) ** 2
    used = plan.width - spectrum.n_constant_features
    terms = bound_terms(calibration, spectrum.sigma_min or 0.0, used)
    what = f"{setting.epochs} epochs, λ_OC {setting.lambda_oc:g}, λ_SD {setting.lambda_sd:g}"
    return BoundPoint(
        part="synthetic",
        suite="synthetic",
        group=what,
        variant=setting.variant,
        name=f"{what}, repeat {setting.seed}",
        seed=setting.seed,
        id_calibration=terms.calibration,
        sigma_min=float(spectrum.sigma_min or 0.0),
        n_features=used,
        covariance_term=terms.covariance,
        rhs=terms.rhs,
        id_error=id_error,
        ood_error=ood_error,
        ood_ece=ece(TopLabel(on_ood.numpy(), y_ood.numpy() == 1)),
    )


def synthetic_scopes(points: Sequence[BoundPoint]) -> list[tuple[str, list[BoundPoint]]]:
    """All models, those of each training length, and those with and without L_OC."""
    lengths = list(dict.fromkeys(p.group.partition(",")[0] for p in points))
    parts = [(n, [p for p in points if p.group.startswith(f"{n},")]) for n in lengths]
    on = [p for p in points if p.variant in ("L_OC", "both")]
    parts += [("L_OC off", [p for p in points if p not in on]), ("L_OC on", on)]
    enough = [(n, own) for n, own in parts if SMALLEST_N <= len(own) < len(points)]
    return [("all", list(points)), *enough]


def synthetic_means(
    points: Sequence[BoundPoint],
) -> list[tuple[str, int, tuple[float, float, float, float, float]]]:
    """Per variant: how many models, and their mean σ_min, ε_ID, ID MSE, OOD MSE and OOD ECE."""
    rows = []
    for variant in dict.fromkeys(p.variant for p in points):
        own = [p for p in points if p.variant == variant]
        values = np.array(
            [(p.sigma_min, p.id_calibration, p.id_error, p.ood_error, p.ood_ece) for p in own]
        )
        a, b, c, d, e = (float(v) for v in values.mean(axis=0))
        rows.append((variant, len(own), (a, b, c, d, e)))
    return rows


# ----------------------------------------------------------------------------------- finished runs


def read_runs(folders: Sequence[Path]) -> tuple[list[BoundPoint], list[str]]:
    """The points of all finished runs under some folders, and why others were left out.

    A run counts once (by `spec_sha256`; of several reports the newest), models made by `pretrain`
    not at all. Reports judged on other images or shifts are another suite.

    Args:
        folders: searched for `report.json`, and for the reports of an artifact store (files named
            by their SHA-256), whose names do not say what they are.

    Raises:
        DataError: a folder is not there, or no report is found in any.
    """
    newest: dict[str, tuple[float, Report]] = {}
    left_out: Counter[str] = Counter()
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"there is no folder {str(folder)!r}")
        for path in _report_files(folder):
            try:
                report = Report.model_validate_json(path.read_bytes())
                changed = path.stat().st_mtime
            except (OSError, ValidationError):
                if path.name == "report.json":
                    left_out["its report cannot be read"] += 1
                continue
            known = newest.get(report.spec_sha256)
            if known is not None:
                left_out["the same spec again"] += 1
            if known is None or changed > known[0]:
                newest[report.spec_sha256] = (changed, report)
    if not newest:
        raise DataError(
            "no report of a finished run was found in "
            + ", ".join(repr(str(folder)) for folder in folders),
            hint="Give folders that `calift train --out` or a study wrote.",
        )
    usable: list[Report] = []
    for _, report in newest.values():
        reason = _why_not(report)
        if reason:
            left_out[reason] += 1
        else:
            usable.append(report)
    names = _suite_names(usable)
    points = [_run_point(r, names[_judged_on(r)]) for r in usable]
    points.sort(key=lambda p: (p.suite, p.group, p.seed, p.name, p.spec_sha256))
    notes = [f"{count} left out: {reason}." for reason, count in sorted(left_out.items())]
    return points, notes


def stored_run_folders(home: Path) -> list[Path]:
    """Where the embedded service keeps reports: its artifacts, and jobs under way."""
    return [p for p in (home / "artifacts", home / "jobs") if p.is_dir()]


def _report_files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.rglob("report.json"))
    for path in sorted(folder.rglob("sha256/??/??/*")):
        try:
            if path.is_file() and path.stat().st_size <= _LARGEST_REPORT:
                with path.open("rb") as file:
                    if file.read(1) == b"{":
                        yield path
        except OSError:
            continue  # collected by the service meanwhile


def _why_not(report: Report) -> str:
    s = report.summary
    if report.spec.get("method", {}).get("kind") == "pretrain":
        return "a pre-trained model, which was tuned on nothing"
    if None in (s.id_ece, s.id_accuracy):
        return "no ID calibration error"
    if None in (s.ood_accuracy, s.ood_ece):
        return "not judged under any shift"
    if report.spectrum is None:
        return "no spectrum"
    if not report.spectrum.sigma_min:
        return "σ_min is 0 by rank or by a degenerate representation"
    return ""


def _judged_on(report: Report) -> str:
    sets = sorted((e.dataset, e.role, e.n) for e in report.evaluations)
    return json.dumps([report.data.get("suite"), report.data.get("test_sha256"), sets])


def _suite_names(reports: Sequence[Report]) -> dict[str, str]:
    """Names of what models were judged on, told apart by a number where suites share one."""
    names: dict[str, str] = {}
    used: Counter[str] = Counter()
    for key in sorted({_judged_on(r) for r in reports}):
        name = str(json.loads(key)[0] or "unnamed")
        used[name] += 1
        names[key] = name if used[name] == 1 else f"{name} ({used[name]})"
    return names


def _run_point(report: Report, suite: str) -> BoundPoint:
    s, spectrum = report.summary, report.spectrum
    assert spectrum is not None
    id_ece, id_accuracy = float(s.id_ece or 0.0), float(s.id_accuracy or 0.0)
    sigma = float(spectrum.sigma_min or 0.0)
    used = spectrum.n_features - spectrum.n_constant_features
    terms = bound_terms(id_ece, sigma, used)
    method = method_label(report.spec)
    return BoundPoint(
        part="runs",
        suite=suite,
        group=method,
        variant=method,
        name=report.name,
        seed=int(report.spec.get("train", {}).get("seed", 0)),
        id_calibration=terms.calibration,
        sigma_min=sigma,
        n_features=used,
        covariance_term=terms.covariance,
        rhs=terms.rhs,
        id_error=1 - id_accuracy,
        ood_error=1 - float(s.ood_accuracy or 0.0),
        ood_ece=float(s.ood_ece or 0.0),
        zero_shot=report.spec.get("method", {}).get("kind") == "zero_shot",
        spec_sha256=report.spec_sha256,
    )


#: Options that make no independent evidence: points of one path, or the runs a merge is made of.
_NO_METHOD = frozenset({"alpha", "run", "runs", "teacher_update_every"})


def method_label(spec: dict[str, Any]) -> str:
    """A method's kind with the options that differ from its defaults; seeds and rates are not in.

    Args:
        spec: of a report; options that this version does not know are passed over.
    """
    kind = str(spec.get("method", {}).get("kind", "unknown"))
    changed: list[str] = []
    for given, model in (
        (spec.get("method", {}), METHOD_SPECS.get(kind)),
        (spec.get("train", {}).get("confidence") or {}, ConfidenceSpec),
    ):
        known = {} if model is None else model.model_fields
        changed += [
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in sorted(given.items())
            if name in known
            and name not in _NO_METHOD
            and isinstance(value, bool | int | float | str)
            and not known[name].is_required()
            and value != known[name].get_default(call_default_factory=True)
        ]
    return kind if not changed else f"{kind} ({', '.join(changed)})"


# ----------------------------------------------------------------------------------------- files


def write_study(folder: Path, analyses: Sequence[Analysis], *, about: dict[str, Any]) -> list[Path]:
    """Write `bound.json`, `bound.csv`, `bound.md` and one figure per suite.

    Args:
        folder: made when it is not there.
        analyses: of one part each.
        about: what goes to the JSON beside them, such as the seed.

    Returns:
        The files written.

    Raises:
        StorageError: a file cannot be written.
    """
    written = [folder / "bound.json", folder / "bound.csv", folder / "bound.md"]
    atomic_write_json(written[0], study_document(analyses, about=about))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, [f.name for f in fields(BoundPoint)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(p) for a in analyses for p in a.points)
    atomic_write_bytes(written[1], table.getvalue().encode())
    tables = [t for a in analyses for t in study_tables(a)]
    text = "\n\n".join([*map(_markdown, tables), *(n for a in analyses for n in a.notes)])
    atomic_write_bytes(written[2], f"{text}\n".encode())
    for analysis in analyses:
        for suite in dict.fromkeys(p.suite for p in analysis.points):
            chosen = [p for p in analysis.points if p.suite == suite]
            name = "synthetic" if analysis.part == "synthetic" else f"runs-{_file_name(suite)}"
            path = folder / f"{name}.svg"
            atomic_write_bytes(path, _suite_figure(analysis, suite, chosen).encode())
            written.append(path)
    return written


@dataclass(frozen=True)
class TextTable:
    """A table for people: the first `n_left` columns are words, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_left: int


def study_tables(analysis: Analysis) -> list[TextTable]:
    """The tables that the command prints and that `bound.md` holds."""
    tables = []
    if analysis.part == "synthetic":
        header = ("regularisers", "models", "σ_min", "ε_ID", "ID MSE", "OOD MSE", "OOD ECE")
        rows = tuple(
            (variant, str(n), *(f"{value:.4f}" for value in means))
            for variant, n, means in synthetic_means(analysis.points)
        )
        tables.append(TextTable("Synthetic models, means over repeats", header, rows, 1))
    found = {(a.scope, a.term, a.error): a.correlation for a in analysis.associations}
    lines = []
    for scope, term in itertools.product(
        dict.fromkeys(a.scope for a in analysis.associations), TERMS
    ):
        pair = [found.get((scope, term, error)) for error in ERRORS]
        cells = [c for r in pair for c in (_interval_text(r), f"{r.p_value:.4f}" if r else "–")]
        size = next((f"{r.n} ({r.n_groups})" for r in pair if r), "–")
        lines.append((scope, TERMS[term], *cells, size))
    columns = [name for error in ERRORS.values() for name in (f"ρ with {error}", "p")]
    title = f"Rank correlations: {analysis.part}"
    tables.append(TextTable(title, ("models", "term", *columns, "n (groups)"), tuple(lines), 2))
    return tables


def _interval_text(r: RankCorrelation | None) -> str:
    return "–" if r is None else f"{r.rho:+.2f} [{r.low:+.2f}, {r.high:+.2f}]"


def _markdown(table: TextTable) -> str:
    rule = ["---" if i < table.n_left else "--:" for i in range(len(table.header))]
    lines = ["| " + " | ".join(row) + " |" for row in (table.header, rule, *table.rows)]
    return f"**{table.title}**\n\n" + "\n".join(lines)


def study_document(analyses: Sequence[Analysis], *, about: dict[str, Any]) -> dict[str, Any]:
    """The study as plain data: fractions, and names of `TERMS` and `ERRORS`."""
    return {
        "format_version": 1,
        "about": about,
        "terms": TERMS,
        "errors": ERRORS,
        "parts": {
            a.part: {
                "notes": list(a.notes),
                "associations": [
                    {"scope": r.scope, "term": r.term, "error": r.error} | asdict(r.correlation)
                    for r in a.associations
                ],
                "points": [asdict(p) for p in a.points],
            }
            for a in analyses
        },
    }


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def _suite_figure(analysis: Analysis, suite: str, points: Sequence[BoundPoint]) -> str:
    synthetic = analysis.part == "synthetic"
    scope = "all" if synthetic else suite
    x_label = "ε_ID + D/σ_min"
    labels = {
        "ood_error": "OOD MSE" if synthetic else "OOD error (1 − accuracy)",
        "ood_ece": "OOD ECE",
    }
    panels = []
    for error, label in labels.items():
        found = [
            a.correlation
            for a in analysis.associations
            if (a.scope, a.term, a.error) == (scope, "rhs", error)
        ]
        title = label
        if found:
            r = found[0]
            title = f"{label}: ρ = {r.rho:+.2f} [{r.low:+.2f}, {r.high:+.2f}]"
        marks = [Mark(p.rhs, getattr(p, error), p.variant, hollow=p.zero_shot) for p in points]
        panels.append(Panel(title, x_label, label, tuple(marks)))
    groups, units = len({p.group for p in points}), "settings" if synthetic else "methods"
    caption = (
        f"{len(points)} models in {groups} {units}. x: the bound's right-hand side as far as ID "
        "data show it, on a logarithmic axis; as a bound it is far above every error, so only the "
        f"order is read. ρ: Spearman, with a 95 % interval over {units}."
        + (" Hollow: zero-shot." if any(p.zero_shot for p in points) else "")
    )
    name = "The bound on synthetic data" if synthetic else f"The bound on {suite}"
    return scatter_svg(panels, title=name, caption=caption)


# ---------------------------------------------------------------------------------------- figures

#: Okabe & Ito's colours, told apart by people with colour-blindness too; shapes say the same.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_INK, _MUTED, _GRID = "#1c2733", "#5b6875", "#e8ecf0"
_R = 4.5

_SHAPES: tuple[Callable[[float, float], str], ...] = (
    lambda x, y: f"M{x - _R:.1f},{y:.1f}a{_R},{_R} 0 1,0 {2 * _R},0a{_R},{_R} 0 1,0 {-2 * _R},0Z",
    lambda x, y: _polygon(x, y, ((-1, -1), (1, -1), (1, 1), (-1, 1)), 0.88),
    lambda x, y: _polygon(x, y, ((0, -1), (1, 0), (0, 1), (-1, 0)), 1.3),
    lambda x, y: _polygon(x, y, ((0, -1.1), (1, 0.8), (-1, 0.8)), 1.2),
    lambda x, y: _polygon(x, y, ((0, 1.1), (1, -0.8), (-1, -0.8)), 1.2),
    lambda x, y: _polygon(
        x,
        y,
        (
            (-0.4, -1.2),
            (0.4, -1.2),
            (0.4, -0.4),
            (1.2, -0.4),
            (1.2, 0.4),
            (0.4, 0.4),
            (0.4, 1.2),
            (-0.4, 1.2),
            (-0.4, 0.4),
            (-1.2, 0.4),
            (-1.2, -0.4),
            (-0.4, -0.4),
        ),
        1.0,
    ),
)


def _polygon(x: float, y: float, corners: Sequence[tuple[float, float]], size: float) -> str:
    spots = (f"{x + size * _R * dx:.1f},{y + size * _R * dy:.1f}" for dx, dy in corners)
    return "M" + "L".join(spots) + "Z"


@dataclass(frozen=True)
class Mark:
    """A point of a scatter plot; `series` decides colour and shape."""

    x: float
    y: float
    series: str
    hollow: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes; x is logarithmic and positive."""

    title: str
    x_label: str
    y_label: str
    marks: tuple[Mark, ...]


def scatter_svg(panels: Sequence[Panel], *, title: str, caption: str) -> str:
    """Scatter plots side by side under one title, with one legend, as a stand-alone SVG.

    Raises:
        SpecError: there are no panels, a panel has no marks, or an x is not positive.
    """
    if not panels or any(not p.marks for p in panels):
        raise SpecError("a figure needs at least one panel with marks")
    if any(m.x <= 0 for p in panels for m in p.marks):
        raise SpecError("x must be positive on a logarithmic axis")
    series = list(dict.fromkeys(m.series for p in panels for m in p.marks))
    style = {
        name: (_COLOURS[i % len(_COLOURS)], _SHAPES[i % len(_SHAPES)])
        for i, name in enumerate(series)
    }
    inner_w, inner_h, left, top, gap = 330, 290, 70, 84, 84
    width = left + len(panels) * inner_w + (len(panels) - 1) * gap + 24
    body: list[str] = []
    for i, panel in enumerate(panels):
        body += _panel_svg(panel, style, left + i * (inner_w + gap), top, inner_w, inner_h)
    y = float(top + inner_h + 70)
    x = float(left)
    for name in series:
        advance = 26 + 6.8 * len(name)
        if x > left and x + advance > width - 24:
            x, y = float(left), y + 22
        colour, shape = style[name]
        body.append(f'<path d="{shape(x, y - 4)}" fill="{colour}" fill-opacity="0.85"/>')
        body.append(_text(x + 11, y, name))
        x += advance
    y += 28
    for line in textwrap.wrap(caption, int((width - left - 24) / 6.1)):
        body.append(_text(left, y, line, fill=_MUTED))
        y += 16
    height = int(y + 8)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" '
            'font-family="Segoe UI, Helvetica, Arial, sans-serif" font-size="12">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(caption)}</desc>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            _text(left, 32, title, size=17, weight="600"),
            *body,
            "</svg>\n",
        ]
    )


def _panel_svg(
    panel: Panel,
    style: dict[str, tuple[str, Callable[[float, float], str]]],
    left: float,
    top: float,
    width: float,
    height: float,
) -> list[str]:
    xs = [math.log10(m.x) for m in panel.marks]
    ys = [m.y for m in panel.marks]
    x_low, x_high = _padded(min(xs), max(xs), 1e-3)
    y_low, y_high = _padded(min(ys), max(ys), 1e-6)

    def across(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * width

    def down(value: float) -> float:
        return top + (1 - (value - y_low) / (y_high - y_low)) * height

    body = [_text(left, top - 14, panel.title, size=13, weight="600")]
    y_ticks = linear_ticks(y_low, y_high)
    digits = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    for value in y_ticks:
        at = down(value)
        body.append(_line(left, at, left + width, at, _GRID))
        body.append(_text(left - 8, at + 4, f"{value:.{digits}f}", anchor="end", fill=_MUTED))
    for value in log_ticks(10**x_low, 10**x_high):
        at = across(math.log10(value))
        body.append(_line(at, top, at, top + height, _GRID))
        body.append(_text(at, top + height + 18, _short(value), anchor="middle", fill=_MUTED))
    body.append(
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" '
        f'stroke="{_MUTED}"/>'
    )
    for mark, x, y in zip(panel.marks, xs, ys, strict=True):
        colour, shape = style[mark.series]
        fill = "#ffffff" if mark.hollow else colour
        body.append(
            f'<path d="{shape(across(x), down(y))}" fill="{fill}" fill-opacity="0.75" '
            f'stroke="{colour}" stroke-width="{1.8 if mark.hollow else 0.8}"/>'
        )
    middle = top + height / 2
    body.append(_text(left + width / 2, top + height + 40, panel.x_label, anchor="middle"))
    body.append(
        f'<text x="{left - 52}" y="{middle}" text-anchor="middle" fill="{_INK}" '
        f'transform="rotate(-90 {left - 52} {middle})">{escape(panel.y_label)}</text>'
    )
    return body


def _padded(low: float, high: float, smallest: float) -> tuple[float, float]:
    margin = max(0.06 * (high - low), smallest)
    return low - margin, high + margin


def linear_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Round numbers in [low, high], about `target` and at least 2 of them."""
    raw = (high - low) / target
    unit = 10.0 ** math.floor(math.log10(raw))
    for factor in (5, 2, 1, 0.5):
        step = factor * unit
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 >= min(target, 4):
            break
    return [round(k * step, 12) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high]; the powers alone when there are many."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        ticks = [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]
        if len(ticks) >= 3:
            return ticks if len(ticks) <= 8 else ticks[:: math.ceil(len(ticks) / 8)]
    return linear_ticks(low, high)


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if value >= 1e4 else f"{value:g}"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<path d="M{x1:.1f},{y1:.1f}L{x2:.1f},{y2:.1f}" stroke="{colour}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    fill: str = _INK,
    size: int = 12,
    weight: str = "400",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" '
        f'font-size="{size}" font-weight="{weight}">{escape(text)}</text>'
    )
