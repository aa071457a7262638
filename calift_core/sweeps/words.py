"""A verdict in a sentence or three, the answer first."""

from collections.abc import Sequence

from calift_core.schema.wire.sweeps import EqualAccuracy, VerdictRow, VerdictSet
from calift_core.words import percent

_WHERE = {"shifts": "under shift", "corruptions": "on corruptions", "id": "on the ID test set"}
_WORDS = {"accuracy": "accuracy", "squared": "calibration", "nll": "NLL"}


def sentence_of(
    rows: Sequence[VerdictRow],
    sets: Sequence[VerdictSet],
    equal: EqualAccuracy | None,
    evaluated_on: str,
    *,
    complete: bool,
) -> str:
    """The verdict at each method's own rate, and then at equal ID accuracy."""
    where = _WHERE[evaluated_on]
    so_far = "" if complete else "So far: "
    if len(rows) == 1:
        only = rows[0]
        return (
            f"{so_far}{only.label} has {percent(only.ood_accuracy.mean)} accuracy and "
            f"{percent(only.ood_ece.mean)} ECE (floor {percent(only.ood_ece_floor)}) {where}; "
            "there is nothing to compare it with."
        )
    words = [so_far + _own(sets, where)]
    if equal is None:
        words.append(
            "A comparison at equal ID accuracy needs two or more learning rates per method."
        )
    elif equal.id_accuracy is None:
        words.append("No two of them reach a common ID accuracy at any of their learning rates.")
    else:
        at = f"At equal ID accuracy ({percent(equal.id_accuracy)})"
        words.append(f"{at}: {_lower(_own(equal.sets, where))}")
        out = [one.label for one in equal.left_out]
        if out:
            words.append(f"{_list(out)} cannot be read there.")
    return " ".join(words)


def _own(sets: Sequence[VerdictSet], where: str) -> str:
    shared = [m for m in sets[0].members if all(m in s.members for s in sets[1:])]
    measures = _list([_WORDS[s.metric] for s in sets])
    if len(shared) == 1:
        clear = all(len(s.members) == 1 for s in sets)
        if clear:
            return f"{shared[0]} is the best {where} by {measures}, clear of all others."
        best = [_WORDS[s.metric] for s in sets if len(s.members) == 1]
        tied = [
            f"{_WORDS[s.metric]} (with {_list([m for m in s.members if m != shared[0]])})"
            for s in sets
            if len(s.members) > 1
        ]
        lead = f"is the best {where} by {_list(best)}; " if best else f"leads {where}, "
        return f"{shared[0]} {lead}tied on {_list(tied)}."
    if shared:
        return (
            f"No single method is shown to be the best {where}: {_list(shared)} are tied on "
            f"{measures}."
        )
    each = "; ".join(f"by {_WORDS[s.metric]} {_list(s.members, 'or')}" for s in sets)
    return f"No method is the best {where} at everything: {each}."


def _lower(sentence: str) -> str:
    return "no" + sentence[2:] if sentence.startswith("No ") else sentence


def _list(names: Sequence[str], word: str = "and") -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {word} {names[-1]}"
