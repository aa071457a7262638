"""Records to figures, one file a subject: each chart and, below it, its twin as a table.

Pure: wire models in, `plotly.graph_objects.Figure` and `frontend.tables.Table` out; no Streamlit.
"""

from frontend.figures import (
    bound,
    calibrators,
    compare,
    curves,
    deciding,
    estimators,
    feature_map,
    frontier,
    ledger,
    ood,
    parallel,
    planning,
    prompts,
    reliability,
    sample,
    shifts,
    slices,
    spectra,
    style,
    sweeps,
    unlabelled,
)

__all__ = [
    "bound",
    "calibrators",
    "compare",
    "curves",
    "deciding",
    "estimators",
    "feature_map",
    "frontier",
    "ledger",
    "ood",
    "parallel",
    "planning",
    "prompts",
    "reliability",
    "sample",
    "shifts",
    "slices",
    "spectra",
    "style",
    "sweeps",
    "unlabelled",
]
