"""calift: fine-tune vision-language models, measure how far to trust their confidence.

What `__all__` names is loaded when it is first asked for: `import calift` loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from calift_core import __version__
from calift_core.errors import SpecError
from calift_core.installed import missing_extra

if TYPE_CHECKING:
    from calift.notebook import LoadedRun, ece, evaluate, load, reliability_diagram
    from calift_core.client import Client
    from calift_core.data.suites.load import load_suite
    from calift_core.jobs.evaluate import evaluate_finished
    from calift_core.jobs.folder import run_in_folder
    from calift_core.judging.calibrated import ProbabilityCalibrator, calibrate
    from calift_core.judging.judgement import judge
    from calift_core.models.loading import load_clip
    from calift_core.predictions.export import export_predictions
    from calift_core.predictions.foreign.load import load_predictions
    from calift_core.predictions.read import read_predictions
    from calift_core.schema.spec import RunSpec, load_spec

#: Name → the module that has it.
_HOME = {
    "Client": "calift_core.client",
    "LoadedRun": "calift.notebook",
    "RunSpec": "calift_core.schema.spec",
    "calibrate": "calift_core.judging.calibrated",
    "ProbabilityCalibrator": "calift_core.judging.calibrated",
    "ece": "calift.notebook",
    "evaluate": "calift.notebook",
    "evaluate_finished": "calift_core.jobs.evaluate",
    "export_predictions": "calift_core.predictions.export",
    "judge": "calift_core.judging.judgement",
    "load": "calift.notebook",
    "load_clip": "calift_core.models.loading",
    "load_predictions": "calift_core.predictions.foreign.load",
    "load_spec": "calift_core.schema.spec",
    "load_suite": "calift_core.data.suites.load",
    "read_predictions": "calift_core.predictions.read",
    "reliability_diagram": "calift.notebook",
    "run_in_folder": "calift_core.jobs.folder",
}

__all__ = [
    "Client",
    "LoadedRun",
    "ProbabilityCalibrator",
    "RunSpec",
    "__version__",
    "calibrate",
    "ece",
    "evaluate",
    "evaluate_finished",
    "export_predictions",
    "judge",
    "load",
    "load_clip",
    "load_predictions",
    "load_spec",
    "load_suite",
    "read_predictions",
    "reliability_diagram",
    "run_in_folder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'calift' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if missing := missing_extra(error):
            raise SpecError(missing[0], hint=missing[1]) from None
        raise


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
