"""Points of the study from the reports of finished runs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from pydantic import ValidationError

from calift_core.analysis.bound import bound_terms, method_label
from calift_core.errors import DataError
from calift_core.schema.report import Report
from research.bound.points import BoundPoint


def read_runs(folders: Sequence[Path]) -> tuple[list[BoundPoint], list[str]]:
    """The points of all finished runs under some folders, and why others were left out.

    A run counts once (by `spec_sha256`; of several reports the newest), models made by `pretrain`
    not at all. Reports evaluated on other images or shifts are another suite.

    Args:
        folders: searched for `report.json`.

    Raises:
        DataError: a folder is not there, or no report is found in any.
    """
    newest: dict[str, tuple[float, Report]] = {}
    left_out: Counter[str] = Counter()
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"there is no folder {str(folder)!r}")
        for path in sorted(folder.rglob("report.json")):
            try:
                report = Report.model_validate_json(path.read_bytes())
                changed = path.stat().st_mtime
            except (OSError, ValidationError):
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
    points = [_run_point(r, names[_evaluated_on(r)]) for r in usable]
    points.sort(key=lambda p: (p.suite, p.group, p.seed, p.name, p.spec_sha256))
    notes = [f"{count} left out: {reason}." for reason, count in sorted(left_out.items())]
    return points, notes


def _why_not(report: Report) -> str:
    s = report.summary
    if report.spec.get("method", {}).get("kind") == "pretrain":
        return "a pre-trained model, which was tuned on nothing"
    if None in (s.id_ece, s.id_accuracy) or not any(e.role == "id" for e in report.evaluations):
        return "no ID calibration error"
    if None in (s.ood_accuracy, s.ood_ece):
        return "not evaluated under any shift"
    if report.spectrum is None:
        return "no spectrum"
    if not report.spectrum.sigma_min:
        return "σ_min is 0 by rank or by a degenerate representation"
    return ""


def _evaluated_on(report: Report) -> str:
    sets = sorted((e.dataset, e.role, e.n) for e in report.evaluations)
    return json.dumps([report.data.get("suite"), report.data.get("test_sha256"), sets])


def _suite_names(reports: Sequence[Report]) -> dict[str, str]:
    """Names of what models were evaluated on.

    Suites that share one, as manifests that are all called `suite.csv`, have their folder's before
    it; those that still share one are told apart by a number.
    """
    places = {_evaluated_on(r): str((r.spec.get("suite") or {}).get("id", "")) for r in reports}
    plain = {key: str(json.loads(key)[0] or "unnamed") for key in sorted(places)}
    shared = Counter(plain.values())
    names: dict[str, str] = {}
    used: Counter[str] = Counter()
    for key, name in plain.items():
        folder = PurePath(places[key].partition(":")[2]).parent.name if shared[name] > 1 else ""
        label = f"{folder}/{name}" if folder else name
        used[label] += 1
        names[key] = label if used[label] == 1 else f"{label} ({used[label]})"
    return names


def _run_point(report: Report, suite: str) -> BoundPoint:
    s, spectrum = report.summary, report.spectrum
    assert spectrum is not None
    id_ece, id_accuracy = float(s.id_ece or 0.0), float(s.id_accuracy or 0.0)
    sigma = float(spectrum.sigma_min or 0.0)
    used = spectrum.n_features - spectrum.n_constant_features
    terms = bound_terms(id_ece, sigma, used)
    method = method_label(report.spec)
    squared = _id_brier(report)
    lr = report.spec.get("train", {}).get("lr")
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
        id_squared=squared,
        product=terms.covariance * squared,
        id_error=1 - id_accuracy,
        ood_error=1 - float(s.ood_accuracy or 0.0),
        ood_ece=float(s.ood_ece or 0.0),
        setting="" if lr is None else f"{lr:g}",
        zero_shot=report.spec.get("method", {}).get("kind") == "zero_shot",
        spec_sha256=report.spec_sha256,
    )


def _id_brier(report: Report) -> float:
    scores = [e.brier for e in report.evaluations if e.role == "id"]
    return math.fsum(scores) / len(scores) if scores else math.nan
