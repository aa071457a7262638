"""The synthetic experiment: models trained on data whose shift is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calift_core.analysis.bound import bound_terms
from calift_core.analysis.ranks import SMALLEST_N
from calift_core.errors import SpecError
from research.bound.points import BoundPoint


@dataclass(frozen=True)
class SyntheticPlan:
    """The synthetic experiment (Oh et al. 2024; re-derived from its description).

    Labels are fair coins. On ID data feature 1 is `±separation + N(0, 1)` and feature 2 the same,
    with the sign of the label; the others are N(0, 1). On OOD data `mean_shift` is added to feature
    1 and feature 2 is multiplied by `scale`.

    Attributes:
        n_test: samples of the ID and of the OOD test set.
        width: D, of the linear representation layer W (hidden, D), D ≤ hidden; n_test > D, so that
            σ_min is not 0 by rank.
        batch_size: of training; n_train is a multiple of it.
        lambda_oc: weights of `‖WᵀW − 1‖_F²`; 0 first.
        lambda_sd: weights of the self-distillation; 0 first.
        seeds: repeats; each draws data and initial weights anew.
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
    from calift_core.evaluation.spectrum import Covariance, spectrum_report
    from calift_core.methods.terms import orthogonality

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
        truth = torch.sigmoid(2 * plan.separation * x_id[:, :2].sum(dim=1))
        id_squared = float((on_id - truth).square().mean())
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
        id_squared=id_squared,
        product=terms.covariance * id_squared,
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
