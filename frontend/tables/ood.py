"""How well scores tell ID images from others: the answer in a sentence, and its table."""

from collections.abc import Sequence

import numpy as np

from calift_core.schema.wire.ood import OodDetection, OodMeasure, OodScore, OodSet
from frontend import text
from frontend.tables import Column, Table

TITLES = {
    "max_softmax": "maximum softmax",
    "energy": "energy",
    "mcm": "MCM",
    "knn": "kNN",
    "relative_mahalanobis": "relative Mahalanobis",
}


def set_name(one: OodSet) -> str:
    """A set as it reads in charts and tables."""
    return one.dataset.replace("_", " ")


#: Sets by their kind, as a sentence begins with them.
_GROUPS = {"far": "Of the far sets, ", "shift": "Of the shifts, ", "corruption": "Of corruptions, "}


def best_score(sets: Sequence[OodSet]) -> str:
    """The score with the largest mean AUROC over sets, far ones where there are some.

    It is one that all of them have.
    """
    sets = [one for one in sets if one.role == "far"] or sets
    by_set = [{one.score: one.auroc.value for one in s.scores} for s in sets]
    return max(
        (name for name in TITLES if all(name in own for own in by_set)),
        key=lambda name: float(np.mean([own[name] for own in by_set])),
    )


def of_score(one: OodSet, score: str) -> OodScore:
    """A set's row of a score that it has."""
    return next(row for row in one.scores if row.score == score)


def answer(found: OodDetection) -> str:
    """What came out, in sentences: of the far sets, and of the others."""
    if not found.sets:
        return "There is no shift or far set to hold against the ID test images."
    groups = {
        lead: [one for one in found.sets if one.role == role] for role, lead in _GROUPS.items()
    }
    answers = {lead: _answer(sets) for lead, sets in groups.items() if sets}
    if len(answers) > 1:
        return " ".join(f"{lead}{answer}" for lead, answer in answers.items())
    (alone,) = answers.values()
    return f"{alone[0].upper()}{alone[1:]}"


def _answer(sets: Sequence[OodSet]) -> str:
    best = best_score(sets)
    rows = {set_name(one): of_score(one, best) for one in sets}
    easy = max(rows, key=lambda name: rows[name].auroc.value)
    hard = min(rows, key=lambda name: rows[name].auroc.value)
    sentence = (
        f"{TITLES[best]} tells {easy} from the ID test images best "
        f"(AUROC {_auroc(rows[easy].auroc)})"
    )
    if hard != easy:
        sentence += f" and {hard} worst ({_auroc(rows[hard].auroc)})"
    sentence += (
        f". Accepting 95 % of the ID images lets {text.percent(rows[easy].fpr95.value)} of {easy}"
        + (f" and {text.percent(rows[hard].fpr95.value)} of {hard}" if hard != easy else "")
        + " pass."
    )
    if best == "max_softmax":
        return f"{sentence} No other score has a larger AUROC on average."
    ends = [row.auroc.difference_interval or (0.0, 0.0) for row in rows.values()]
    better, worse = sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends)
    return (
        f"{sentence} Against maximum softmax its AUROC is larger beyond chance on {better} of "
        f"{len(rows)} sets and smaller on {worse}."
    )


def _auroc(measure: OodMeasure) -> str:
    return f"{measure.value:.3f}, {_ends(measure.interval)}"


def _ends(interval: tuple[float, float] | None) -> str | None:
    return None if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def table(found: OodDetection) -> Table:
    """One row a set and a score."""
    rows = []
    for one in found.sets:
        for row in one.scores:
            cells = {
                "dataset": set_name(one),
                "n": one.n,
                "score": TITLES[row.score],
                "kind": one.role,
            }
            for name in ("auroc", "aupr", "fpr95"):
                measure: OodMeasure = getattr(row, name)
                ends = text.interval(*measure.interval) if name == "fpr95" else None
                cells |= {name: measure.value, f"{name}_ends": ends or _ends(measure.interval)}
            cells |= {
                "difference": row.auroc.difference,
                "difference_ends": _ends(row.auroc.difference_interval),
            }
            rows.append(cells)
    ends = "95 % interval"
    return Table(
        [
            Column("dataset", "Data"),
            Column("kind", "Kind"),
            Column("score", "Score"),
            Column("auroc", "AUROC", "number"),
            Column("auroc_ends", ends),
            Column("difference", "less maximum softmax", "number"),
            Column("difference_ends", ends),
            Column("fpr95", "FPR95", "percent"),
            Column("fpr95_ends", ends),
            Column("aupr", "AUPR", "number"),
            Column("aupr_ends", ends),
            Column("n", "n", "count"),
        ],
        rows,
    )
