"""What somebody will ask of a finished run.

Its differences to zero-shot and within its sweep, and how well it tells other images from its own.
"""

from contextlib import suppress
from importlib import import_module

from backend.dispatch.periodic import Periodic
from backend.explore.memory import Remembered
from backend.store.stores import Stores
from calift_core.analysis.comparer import Comparer
from calift_core.analysis.explorer import Explorer
from calift_core.errors import CaliftError, UnknownNameError
from calift_core.schema.wire.queries import CompareQuery, LeadersQuery, LedgerQuery, OodQuery
from calift_core.schema.wire.runs import RunSummary

#: Seconds between two looks at which runs have finished.
_EVERY_S = 5.0
#: The newest finished runs that are looked at; what was compared before costs a look alone.
_NEWEST = 200
#: Seconds that nobody has asked for an analysis, and data sets that are scored until the next look.
_UNASKED_S, _SETS = 10.0, 10
#: What takes a third of a second to import, so that no visitor waits for it.
_IMPORTED_BY_FIRST_ANSWER = ("scipy.optimize", "pandas")
#: Runs of its sweep that a run is compared with.
_MATES = 20


class ComparisonPrecomputer(Periodic):
    """A thread that compares finished runs before somebody asks. Any number may run at once.

    It compares one data set at a time, so that whoever asks meanwhile waits for no more than that,
    and scores for OOD where nobody has asked for a while.
    """

    def __init__(
        self, store: Stores, comparer: Comparer, explorer: Explorer, memory: Remembered
    ) -> None:
        super().__init__("precomputer", _EVERY_S)
        self._store, self._comparer, self._explorer = store, comparer, explorer
        self._memory = memory
        self._compared: set[tuple[str, int]] = set()
        self._scored: set[tuple[str, int]] = set()

    def run_once(self) -> None:
        """Compare the finished runs that were not compared yet, then score them for OOD."""
        newest, _, _ = self._store.runs.page(phase=("SUCCEEDED",), limit=_NEWEST)
        runs = {(run.id, run.revision): run for run in newest}
        with self._memory.unasked():
            for key, run in runs.items():
                if key not in self._compared and not self._stopping.is_set():
                    self._compare(run)
                    self._compared.add(key)
            for key in runs:
                if key not in self._scored:
                    if not self._score(key[0]):
                        return
                    self._scored.add(key)

    def _score(self, run: str) -> bool:
        """Compute the OOD scores of a run, as long as nobody asks; whether that is all of them."""
        evaluations = self._store.results.run_evaluations(run)
        shifts = [e.dataset for e in evaluations if e.role == "shift"]
        parts = [shifts[at : at + _SETS] for at in range(0, len(shifts), _SETS)]
        for part in (*parts, ()):  # the last is of all, far sets with them
            if self._stopping.is_set() or self._memory.asked_within(_UNASKED_S):
                return False
            # The calibrator's choice takes seconds; a run may lack ID test images or their logits.
            with suppress(CaliftError):
                self._explorer.ood(run, OodQuery(dataset=tuple(part)))
        return True

    def _loop(self) -> None:
        for name in _IMPORTED_BY_FIRST_ANSWER:
            import_module(name)
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
