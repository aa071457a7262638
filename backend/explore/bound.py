"""The bound monitor: the finished runs of a suite as points."""

from backend.store.stores import Stores
from calift_core.analysis.bound import correlations_of, method_label, point_of
from calift_core.analysis.library import Memory
from calift_core.schema.report import Summary
from calift_core.schema.wire.answers import BoundMonitor

#: The newest finished runs that are looked at.
MOST_RUNS = 300


class Monitor:
    """Puts finished runs side by side with the terms of the bound."""

    def __init__(self, store: Stores, memory: Memory) -> None:
        self._store, self._memory = store, memory

    def monitor(self, suite: str) -> BoundMonitor:
        """The newest finished runs on a suite that were judged under shift and have a spectrum."""
        found = self._store.runs.with_spectra(suite, limit=MOST_RUNS)
        key = ("bound", suite, *((run.id, run.revision) for run, _, _ in found))

        def make() -> BoundMonitor:
            every = [
                point_of(
                    run.summary or Summary(),
                    spectrum,
                    run_id=run.id,
                    name=run.name,
                    method=run.method,
                    variant=method_label(spec),
                    model=run.model,
                    seed=run.seed,
                    color_index=run.color_index,
                )
                for run, spec, spectrum in found
            ]
            points = [point for point in every if point is not None]
            correlations, notes = correlations_of(points)
            return BoundMonitor(suite=suite, runs=points, correlations=correlations, notes=notes)

        return self._memory.remember("numbers", key, make)
