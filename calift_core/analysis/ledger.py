"""The forgetting ledger: what a model has gained and lost against another, sample by sample."""

from typing import Any, get_args

import numpy as np

from calift_core.analysis.comparing import Shared
from calift_core.calibration import SampleScores
from calift_core.calibration.bins import Bools
from calift_core.calibration.diagrams import wilson_interval
from calift_core.schema.wire.answers import Surer
from calift_core.schema.wire.queries import Outcome


def outcomes(before: Bools, after: Bools) -> dict[Outcome, Bools]:
    """Which of N samples met which outcome; every sample met one.

    Args:
        before: (N,) whether the other model is right.
        after: (N,) whether this one is.
    """
    return {
        "gained": ~before & after,
        "lost": before & ~after,
        "both": before & after,
        "neither": ~before & ~after,
    }


def ledger_of(shared: Shared, run: str, base: str, *, step: float) -> dict[str, Any]:
    """The numbers of a `LedgerSet`, plain: `run` against `base` on the samples that both saw.

    Args:
        step: a confidence that moved by no more has not moved.
    """
    ours, theirs = shared.scores[run], shared.scores[base]
    met = outcomes(theirs.correct, ours.correct)
    counts: dict[str, int] = {name: int(mask.sum()) for name, mask in met.items()}
    known = counts["lost"] + counts["both"]
    found = shared.together.difference(run, base, "accuracy")
    forgotten = None
    if known:
        low, high = wilson_interval(np.array([float(counts["lost"])]), np.array([float(known)]))
        forgotten = float(low[0]), float(high[0])
    return {
        "n": len(ours),
        **counts,
        "difference": found.difference,
        "interval": (found.low, found.high),
        "distinguishable": found.distinguishable,
        "forgotten": counts["lost"] / known if known else None,
        "forgotten_interval": forgotten,
        "cells": [
            cell for name, mask in met.items() for cell in _cells(name, mask, ours, theirs, step)
        ],
    }


def _cells(
    outcome: Outcome, mask: Bools, ours: SampleScores, theirs: SampleScores, step: float
) -> list[dict[str, Any]]:
    change = ours.confidences - theirs.confidences
    moved: dict[Surer, Bools] = {
        "surer": change > step,
        "alike": np.abs(change) <= step,
        "less_sure": change < -step,
    }
    found = []
    for name in get_args(Surer):
        at = mask & moved[name]
        n = int(at.sum())
        found.append(
            {
                "outcome": outcome,
                "moved": name,
                "n": n,
                "confidence_before": float(theirs.confidences[at].mean()) if n else None,
                "confidence_after": float(ours.confidences[at].mean()) if n else None,
            }
        )
    return found
