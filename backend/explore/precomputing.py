"""What somebody will ask of a finished run.

Its differences to zero-shot and within its sweep, and how well it tells other images from its own.
"""

import os
import sys
import threading
from contextlib import suppress

from backend.dispatch.periodic import Periodic
from backend.store.stores import Stores
from calift_core.analysis.comparer import Comparer
from calift_core.analysis.explorer import Explorer
from calift_core.errors import CaliftError, UnknownNameError
from calift_core.schema.wire.queries import CompareQuery, LeadersQuery, LedgerQuery
from calift_core.schema.wire.runs import RunSummary

#: Seconds between two looks at which runs have finished.
_EVERY_S = 5.0
#: The newest finished runs that are looked at; what was compared before costs a look alone.
_NEWEST = 200
#: Its thread's: a visitor's request has nine times its share of a core.
_NICE = 10
#: Runs of its sweep that a run is compared with.
_MATES = 20


class ComparisonPrecomputer(Periodic):
    """A thread that compares finished runs before somebody asks. Any number may run at once.

    It takes one data set at a time, so that whoever asks meanwhile waits for no more than that,
    and on Linux leaves them the processor.
    """

    def __init__(self, store: Stores, comparer: Comparer, explorer: Explorer) -> None:
        super().__init__("precomputer", _EVERY_S)
        self._store, self._comparer, self._explorer = store, comparer, explorer
        self._compared: set[tuple[str, int]] = set()
        self._scored: set[tuple[str, int]] = set()

    def run_once(self) -> None:
        """Compare the finished runs that were not compared yet, then score one for OOD."""
        newest, _, _ = self._store.runs.page(phase=("SUCCEEDED",), limit=_NEWEST)
        runs = {(run.id, run.revision): run for run in newest}
        for key, run in runs.items():
            if key not in self._compared and not self._stopping.is_set():
                self._compare(run)
                self._compared.add(key)
        for key in [key for key in runs if key not in self._scored][:1]:
            # The calibrator's choice takes seconds; a run may lack ID test images or their logits.
            with suppress(CaliftError):
                self._explorer.ood(key[0])
            self._scored.add(key)

    def _loop(self) -> None:
        if sys.platform == "linux":  # elsewhere the whole process would have it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        super()._loop()

    def _compare(self, run: RunSummary) -> None:
        for other in self._others(run):
            evaluations = self._store.results.run_evaluations(run.id)
            for dataset in dict.fromkeys(e.dataset for e in evaluations):
                if self._stopping.is_set():
                    return
                pair = (other, run.id)
                self._comparer.compare(CompareQuery(run_id=pair, dataset=(dataset,)))
                with suppress(UnknownNameError):  # the other was not tested on it
                    self._explorer.ledger(run.id, LedgerQuery(against=other, dataset=(dataset,)))
            self._comparer.leaders(LeadersQuery(run_id=(other, run.id)))

    def _others(self, run: RunSummary) -> list[str]:
        """The zero-shot run that pages set it against, and the runs of its sweep."""
        found = []
        if run.method not in ("zero_shot", "imported"):
            found += self._store.runs.page(
                phase=("SUCCEEDED",),
                method=("zero_shot",),
                model=(run.model,),
                suite=(run.suite,),
                limit=1,
            )[0]
        if run.sweep_id is not None:
            found += self._store.runs.page(sweep=run.sweep_id, phase=("SUCCEEDED",), limit=_MATES)[
                0
            ]
        return [other for other in dict.fromkeys(one.id for one in found) if other != run.id]
