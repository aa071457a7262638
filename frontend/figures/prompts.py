"""The table of what other prompts would have said."""

from collections.abc import Sequence

from calift_core.schema.wire.results import PromptEffects
from frontend.tables import Column, Run, Table


def table(sets: Sequence[tuple[Run, PromptEffects]]) -> Table:
    """A row for each run and its prompts, the run's own first."""
    return Table(
        [
            Column("run", "Run"),
            Column("name", "Prompts", "prose"),
            Column("accuracy", "Accuracy", "percent"),
            Column("nll", "NLL", "number"),
            Column("ece", "ECE", "percent"),
            Column("null_mean", "Floor", "percent"),
            Column("mean_confidence", "Confidence", "percent"),
            Column("changed", "Changed", "percent"),
        ],
        [
            {"run": run.label} | effect.model_dump()
            for run, effects in sets
            for effect in effects.items
        ],
    )
