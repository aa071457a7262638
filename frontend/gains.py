"""How far a run's headline is from its zero-shot model's, on data that both were judged on."""

from collections.abc import Sequence
from dataclasses import dataclass

from calift_core.analysis.report import group_mean, ood_groups
from calift_core.schema.report import EvaluationReport
from calift_core.schema.wire.answers import Board


@dataclass(frozen=True)
class Gain:
    """A difference of a headline number.

    Attributes:
        value: the run minus the other, in the number's own unit.
        all: sets that the run's own number is taken over.
    """

    value: float
    common: int
    all: int


def gains(
    run: Sequence[EvaluationReport], base: Sequence[EvaluationReport]
) -> dict[str, Gain | None]:
    """The differences of `id_accuracy`, `ood_accuracy`, `id_ece` and `ood_ece`.

    Means over different data are no comparison: an evaluation that came later, a smaller part of
    the test set or another severity changes them. Only sets of the same name and size count.

    Args:
        base: evaluations of what it is set against.

    Returns:
        None where both were judged on nothing of the kind in common.
    """
    known = {(e.dataset, e.n): e for e in base}
    both = [(e, known[e.dataset, e.n]) for e in run if (e.dataset, e.n) in known]
    mine, theirs = [a for a, _ in both], [b for _, b in both]
    found: dict[str, Gain | None] = {}
    own = next((a for a in mine if a.role == "id"), None)
    other = next((b for b in theirs if b.role == "id"), None)
    of_own = [e for group in ood_groups(run).values() for e in group]
    kind = of_own[0].role if of_own else "shift"
    common = [pair for pair in both if pair[0].role == kind]
    for name, read in (("accuracy", lambda e: e.accuracy), ("ece", lambda e: e.ece.value)):
        found[f"id_{name}"] = (
            Gain(read(own) - read(other), 1, 1) if own is not None and other is not None else None
        )
        means = [group_mean(ood_groups(side), read) for side in zip(*common, strict=True)]
        found[f"ood_{name}"] = (
            Gain(means[0] - means[1], len(common), len(of_own))
            if len(means) == 2 and means[0] is not None and means[1] is not None
            else None
        )
    return found


def clear_gains(boards: Sequence[Board], run_id: str) -> dict[str, bool]:
    """By which headline numbers a run is better (true) or worse than another at 95 %.

    Args:
        boards: of the two runs; a set of one confidence is an interval that excludes zero.
    """
    found: dict[str, bool] = {}
    for role, prefix in (("id", "id"), ("corruption", "ood"), ("shift", "ood")):
        for board in boards:
            name = f"{prefix}_{board.metric}"
            if board.role == role and board.metric in ("accuracy", "ece"):
                found.pop(name, None)  # shifts, where there are any, are what the mean is over
                if not all(standing.leads for standing in board.standings):
                    found[name] = board.standings[0].run_id == run_id
    return found
