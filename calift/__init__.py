"""calift: fine-tune vision-language models, measure how far to trust their confidence.

What `__all__` names is loaded when it is first asked for: `import calift` loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from calift_core import __version__

if TYPE_CHECKING:
    from calift_core.analysis.reliability import reliability_numbers
    from calift_core.calibration import (
        accuracy,
        brier,
        ece,
        evaluate_all,
        nll,
        reliability_curve,
        smooth_ece,
    )
    from calift_core.client import Client
    from calift_core.data.suites.load import load_suite
    from calift_core.jobs.evaluate import evaluate_finished, evaluate_many
    from calift_core.jobs.folder import run_in_folder
    from calift_core.models.loading import load_clip
    from calift_core.predictions.export import export_predictions
    from calift_core.predictions.foreign.load import load_predictions
    from calift_core.predictions.read import read_predictions, read_scores
    from calift_core.schema.spec import RunSpec, load_spec

#: Name → the module that has it.
_HOME = {
    "Client": "calift_core.client",
    "RunSpec": "calift_core.schema.spec",
    "accuracy": "calift_core.calibration",
    "brier": "calift_core.calibration",
    "ece": "calift_core.calibration",
    "evaluate_all": "calift_core.calibration",
    "evaluate_finished": "calift_core.jobs.evaluate",
    "evaluate_many": "calift_core.jobs.evaluate",
    "export_predictions": "calift_core.predictions.export",
    "load_clip": "calift_core.models.loading",
    "load_predictions": "calift_core.predictions.foreign.load",
    "load_spec": "calift_core.schema.spec",
    "load_suite": "calift_core.data.suites.load",
    "nll": "calift_core.calibration",
    "read_predictions": "calift_core.predictions.read",
    "read_scores": "calift_core.predictions.read",
    "reliability_curve": "calift_core.calibration",
    "reliability_numbers": "calift_core.analysis.reliability",
    "run_in_folder": "calift_core.jobs.folder",
    "smooth_ece": "calift_core.calibration",
}

__all__ = [
    "Client",
    "RunSpec",
    "__version__",
    "accuracy",
    "brier",
    "ece",
    "evaluate_all",
    "evaluate_finished",
    "evaluate_many",
    "export_predictions",
    "load_clip",
    "load_predictions",
    "load_spec",
    "load_suite",
    "nll",
    "read_predictions",
    "read_scores",
    "reliability_curve",
    "reliability_numbers",
    "run_in_folder",
    "smooth_ece",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'calift' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
