"""A database as a lab's is after a while, in bulk: what `scale.py` and `load.py` measure on.

Rows are those that a real run leaves, with a real evaluation's report; only their number is chosen.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from sqlalchemy import Engine, insert

from backend.store.engine import writing
from backend.store.models import EvaluationRow, Event, Metric, Outbox, Run, RunTag
from calift_core.calibration import evaluate_all
from calift_core.schema.report import EvaluationReport
from calift_core.schema.spec import parse_spec

METHODS = ("carot", "flyp", "standard_ft", "lp_ft", "wise_ft")
DATASETS = ("test", "v2", "rendition", "sketch", "adversarial", "objects", "noise", "blur")
#: A moment that all rows lie before.
_BEGAN = 1.7e9
_AT_ONCE = 500
_HEADLINE = ("id_accuracy", "ood_accuracy", "id_ece", "ood_ece")
_FLOORS = {"id_ece_floor": 0.01, "ood_ece_floor": 0.02, "worst_shift_accuracy": 0.2}


def report(n: int = 400, n_classes: int = 10) -> dict[str, Any]:
    """What an evaluation leaves in its row."""
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(n_classes, 0.3), size=n)
    made = evaluate_all(probs, rng.integers(n_classes, size=n), n_resamples=20)
    return EvaluationReport.model_validate(
        made | {"dataset": "", "role": "shift", "n_classes": n_classes, "predictions_sha256": ""}
    ).model_dump(mode="json")


def add_runs(
    engine: Engine,
    first: int,
    last: int,
    *,
    evaluations: int = 8,
    summaries: bool = False,
    points: int = 0,
    phase: str = "SUCCEEDED",
    owners: int = 10,
    token: str = "",
) -> None:
    """Add the runs of these numbers.

    Args:
        engine: of a migrated database.
        first: the first number.
        last: the number behind the last.
        evaluations: of each run, the later ones on `shift-08` and so on; none while it waits.
        summaries: runs have the headline that pages show.
        points: of each run's curves.
        phase: of all of them. Those that wait have a message.
        owners: whose they are in turn.
        token: that submitted them.
    """
    spec = parse_spec({"name": "simulated", "method": {"kind": "carot"}})
    body, template = spec.model_dump(mode="json"), report() if evaluations else {}
    waits = phase == "QUEUED"
    for at in range(first, last, _AT_ONCE):
        numbers = range(at, min(last, at + _AT_ONCE))
        rows = [_run(number, body, phase, f"owner {number % owners}", token) for number in numbers]
        for row in rows if summaries else ():
            row["summary"] = {k: row[k] for k in _HEADLINE} | _FLOORS | {"worst_shift": "sketch"}
        tables: list[tuple[Any, list[dict[str, Any]]]] = [
            (Run, rows),
            (
                RunTag,
                [
                    {"run_id": r["id"], "tag": f"tag {n % 7}"}
                    for n, r in zip(numbers, rows, strict=True)
                ],
            ),
            (Event, [event for row in rows for event in _events(row["id"], 1 if waits else 6)]),
            (Outbox, [{"run_id": row["id"], "created_at": _BEGAN} for row in rows if waits]),
            (Metric, [point for row in rows for point in _points(row["id"], points)]),
            (
                EvaluationRow,
                [
                    made
                    for n, row in zip(numbers, rows, strict=True)
                    for made in _evaluations(n, row["id"], template, 0 if waits else evaluations)
                ],
            ),
        ]
        with writing(engine) as connection:
            for table, values in tables:
                if values:
                    connection.execute(insert(table), values)


def _run(number: int, spec: dict[str, Any], phase: str, owner: str, token: str) -> dict[str, Any]:
    chance = random.Random(number)
    done = phase == "SUCCEEDED"
    at = _BEGAN + number
    return {
        "id": f"{number:012x}",
        "name": f"{chance.choice(METHODS)} {chance.choice(('base', 'wide', 'long'))} {number}",
        "notes": "A line or two about what this run was for, as people write it.",
        "spec": spec,
        "spec_sha256": f"{number:064x}",
        "method": METHODS[number % len(METHODS)],
        "model": f"ViT-B-{16 * (1 + number % 2)}/openai",
        "suite": ("imagenet", "fashion-mnist", "domains")[number % 3],
        "seed": number % 5,
        "phase": phase,
        "queue": "gpu",
        "token_id": token,
        "submitted_by": owner,
        "created_at": at,
        "queued_at": at,
        "line_at": at,
        "finished_at": at + 1 if done else None,
        "event_seq": 6 if done else 1,
        "attempt": 1 if done else 0,
        **{key: chance.random() if done else None for key in ("id_accuracy", "ood_accuracy")},
        **{key: chance.random() if done else None for key in ("id_ece", "ood_ece")},
    }


def _events(run_id: str, n: int) -> list[dict[str, Any]]:
    data = {"phase": "QUEUED", "reason": None, "message": None}
    return [
        {"run_id": run_id, "id": k + 1, "attempt": 1, "kind": "state", "at": _BEGAN, "data": data}
        for k in range(n)
    ]


def _points(run_id: str, n: int) -> list[dict[str, Any]]:
    return [
        {"run_id": run_id, "name": "loss", "step": k, "value": 1.0 / (k + 1)}
        | {"epoch": 0.0, "attempt": 1}
        for k in range(n)
    ]


def _datasets(n: int) -> list[str]:
    return [*DATASETS, *(f"shift-{k:02d}" for k in range(len(DATASETS), n))][:n]


def _evaluations(number: int, run_id: str, body: dict[str, Any], n: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{run_id}-{dataset}",
            "run_id": run_id,
            "dataset": dataset,
            "role": "id" if k == 0 else "shift",
            "attempt": 1,
            "position": k,
            "created_at": _BEGAN + number + k / 10,
            "predictions": f"predictions/{dataset}.parquet",
            "predictions_sha256": "",
            "report": body | {"dataset": dataset, "role": "id" if k == 0 else "shift"},
        }
        for k, dataset in enumerate(_datasets(n))
    ]
