"""Slices of an evaluation: the samples that a condition holds for, in groups.

The condition is a small language of its own, read by hand and never evaluated as code::

    condition  = term { "or" term }
    term       = factor { "and" factor }
    factor     = "not" factor | "(" condition ")" | "correct" | comparison
    comparison = COLUMN ("==" | "!=" | "<" | "<=" | ">" | ">=") VALUE
               | COLUMN ["not"] "in" "(" VALUE { "," VALUE } ")"
    VALUE      = number | "text" | 'text' | true | false

Columns: `confidence` (of the predicted class, a fraction), `correct`, `label`, `predicted` (class
indices, or class names as text), `rank` (classes before the true one), `nll` (nats), `brier`, `id`
and, where the file has it, `cluster`. An example: ``confidence >= 0.9 and not correct and label in
("shirt", 3)``.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from calift_core import calibration
from calift_core.calibration import Binning, SampleScores, TopLabel
from calift_core.calibration.bins import Bools, Ints
from calift_core.errors import SpecError, UnknownNameError
from calift_core.schema.wire import Slice

By = Literal["all", "class", "predicted", "confidence", "cluster"]
Sort = Literal["key", "n", "accuracy", "gap", "ece"]
Strings = npt.NDArray[np.str_]

MAX_CONDITION = 500
_MAX_DEPTH = 20
_Z95 = float(ndtri(0.975))


@dataclass(frozen=True, eq=False)
class Samples:
    """The columns that slices are cut by; N samples, C classes.

    Attributes:
        scores: (N,) each.
        ids: (N,) names of the samples.
        class_names: C names.
        clusters: (N,) names of the samples' sources, None where the file has none.
    """

    scores: SampleScores
    ids: Strings
    class_names: tuple[str, ...]
    clusters: Strings | None = None

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column (N,) by the name it has in a condition.

        Raises:
            UnknownNameError: there is no such column.
            SpecError: this file has no `cluster`.
        """
        columns: dict[str, npt.NDArray[Any] | None] = {
            "confidence": self.scores.confidences,
            "correct": self.scores.correct,
            "label": self.scores.labels,
            "predicted": self.scores.predicted,
            "rank": self.scores.rank,
            "nll": self.scores.nll,
            "brier": self.scores.brier,
            "id": self.ids,
            "cluster": self.clusters,
        }
        if name not in columns:
            raise UnknownNameError("column", name, columns)
        found = columns[name]
        if found is None:
            raise SpecError(f"column {name!r} must be in the predictions, got a file without it")
        return found


# ---- The condition -----------------------------------------------------------------------------


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?(?![\w.]))
    | (?P<word>[A-Za-z_]\w*)
    | (?P<text>"[^"]*"|'[^']*')
    | (?P<sign>==|!=|<=|>=|<|>|\(|\)|,)
    | (?P<end>$))""",
    re.VERBOSE,
)
_WORDS = frozenset({"and", "or", "not", "in", "true", "false"})
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_Value = str | float | bool


def _tokens(condition: str) -> list[_Token]:
    found, at = [], 0
    while True:
        match = _TOKEN.match(condition, at)
        if match is None:
            start = len(condition) - len(condition[at:].lstrip())
            raise SpecError(
                f"a condition must be made of columns, values and comparisons, got "
                f"{condition[start : start + 12]!r} at character {start + 1}"
            )
        kind = str(match.lastgroup)
        found.append(_Token(kind, match[kind], match.start(kind)))
        if kind == "end":
            return found
        at = match.end()


class _Condition:
    """One pass over the tokens; every rule of the grammar is a method and gives a mask (N,)."""

    def __init__(self, condition: str, samples: Samples) -> None:
        if len(condition) > MAX_CONDITION:
            raise SpecError(
                f"a condition must have at most {MAX_CONDITION} characters, got {len(condition)}"
            )
        self._tokens, self._at, self._depth = _tokens(condition), 0, 0
        self._samples = samples

    def mask(self) -> Bools:
        found = self._any()
        if self._next.kind != "end":
            raise self._expected("'and', 'or' or the end")
        return found

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, *texts: str) -> bool:
        if self._next.kind in ("word", "sign") and self._next.text in texts:
            self._at += 1
            return True
        return False

    def _need(self, text: str) -> None:
        if not self._take(text):
            raise self._expected(repr(text))

    def _expected(self, what: str) -> SpecError:
        token = self._next
        got = repr(token.text) if token.kind != "end" else "the end"
        return SpecError(
            f"a condition must have {what} at character {token.at + 1}, got {got}",
            hint="An example: confidence >= 0.9 and not correct and label in (3, 5)",
        )

    def _any(self) -> Bools:
        found = self._all()
        while self._take("or"):
            found = found | self._all()
        return found

    def _all(self) -> Bools:
        found = self._factor()
        while self._take("and"):
            found = found & self._factor()
        return found

    def _factor(self) -> Bools:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise SpecError(f"a condition must nest at most {_MAX_DEPTH} deep, got more")
        if self._take("not"):
            found = ~self._factor()
        elif self._take("("):
            found = self._any()
            self._need(")")
        else:
            found = self._comparison()
        self._depth -= 1
        return found

    def _comparison(self) -> Bools:
        if self._next.kind != "word" or self._next.text in _WORDS:
            raise self._expected("a column")
        name = self._next.text
        values = self._samples.column(name)
        self._at += 1
        if self._take(*_COMPARE):
            sign = self._tokens[self._at - 1].text
            value = self._value(name, values)
            if isinstance(value, str | bool) and sign not in ("==", "!="):
                raise SpecError(f"{name} {sign} must have a number, got {value!r}")
            return np.asarray(_COMPARE[sign](values, value), dtype=np.bool_)
        if self._next.text == "not" and self._tokens[self._at + 1].text == "in":
            self._at += 1
            return ~self._membership(name, values)
        if self._next.kind == "word" and self._next.text == "in":
            return self._membership(name, values)
        if values.dtype == np.bool_:
            return np.asarray(values, dtype=np.bool_)
        raise self._expected("a comparison")

    def _membership(self, name: str, values: npt.NDArray[Any]) -> Bools:
        self._need("in")
        self._need("(")
        members = [self._value(name, values)]
        while self._take(","):
            members.append(self._value(name, values))
        self._need(")")
        return np.isin(values, np.array(members))

    def _value(self, name: str, values: npt.NDArray[Any]) -> _Value:
        """Read one value of the kind that a column holds."""
        token = self._next
        self._at += 1
        if values.dtype == np.bool_:
            if token.kind == "word" and token.text in ("true", "false"):
                return token.text == "true"
            wanted = "true or false"
        elif values.dtype.kind == "U":
            if token.kind == "text":
                return token.text[1:-1]
            wanted = "text in quotes"
        elif token.kind == "number":
            return float(token.text)
        elif name in ("label", "predicted") and token.kind == "text":
            return self._class(token.text[1:-1])
        else:
            wanted = "a number" if name not in ("label", "predicted") else "a class"
        self._at -= 1
        raise self._expected(f"{wanted} for {name}")

    def _class(self, name: str) -> float:
        names = self._samples.class_names
        if name not in names:
            raise UnknownNameError("class", name, names)
        return float(names.index(name))


def matching(samples: Samples, where: str | None) -> Bools:
    """Return which samples (N,) a condition holds for; all of them without one.

    Raises:
        SpecError: it is no condition; the message says where and what was expected.
        UnknownNameError: a column or a class that does not exist.
    """
    if where is None or not where.strip():
        return np.ones(len(samples.scores), dtype=np.bool_)
    return _Condition(where, samples).mask()


# ---- The groups --------------------------------------------------------------------------------


class Group(NamedTuple):
    """Samples that make one slice: what they share, and their positions (M,)."""

    key: str
    title: str
    positions: Ints


def groups_by(samples: Samples, by: By, index: Ints, binning: Binning) -> list[Group]:
    """Put the samples at `index` (M,) in groups; groups without samples are left out.

    Args:
        samples: all N of them.
        by: `all` makes one group, `confidence` the bins of a reliability diagram.
        index: positions of the samples to group.
        binning: of `confidence`.

    Raises:
        UnknownNameError: an unknown `by`.
        SpecError: `cluster` without such a column.
    """
    if by not in get_args(By):
        raise UnknownNameError("grouping", by, get_args(By))
    if not len(index):
        return []
    if by == "all":
        return [Group("all", "all samples", index)]
    if by == "confidence":
        chosen = samples.scores.confidences[index]
        edges = calibration.bin_edges(chosen, binning)
        of = calibration.assign_bins(chosen, edges)
        return [
            Group(str(k), f"{edges[k]:.3f} to {edges[k + 1]:.3f}", members)
            for k, members in _split(of, index)
        ]
    if by == "cluster":
        names, of = np.unique(samples.column("cluster")[index], return_inverse=True)
        return [Group(str(names[k]), str(names[k]), m) for k, m in _split(of, index)]
    of = samples.column("label" if by == "class" else "predicted")[index]
    return [Group(str(k), samples.class_names[k], members) for k, members in _split(of, index)]


def _split(of: Ints, index: Ints) -> list[tuple[int, Ints]]:
    order = np.argsort(of, kind="stable")
    keys, starts = np.unique(of[order], return_index=True)
    return list(zip([int(k) for k in keys], np.split(index[order], starts[1:]), strict=True))


def binning_for(n: int, binning: Binning) -> Binning:
    """Return how a slice of n samples is binned: as asked, but ten samples or more a bin."""
    return replace(binning, n_bins=min(binning.n_bins, max(1, n // 10)))


def slice_of(
    scores: SampleScores,
    binning: Binning,
    *,
    key: str,
    title: str,
    n_total: int,
    min_n: int,
    n_resamples: int,
    seed: int,
) -> Slice:
    """Measure one slice; below `min_n` samples its calibration error is left out, and it says so.

    Args:
        scores: of the slice's M ≥ 1 samples.
        binning: of a slice that is large enough; see `binning_for`.
        key: what the samples share.
        title: the same for people.
        n_total: samples that the slice was cut from.
        min_n: fewest samples that a calibration error is given for.
        n_resamples: behind the floor and the interval.
        seed: of the draws.
    """
    n, own = len(scores), binning_for(len(scores), binning)
    residual = scores.confidences - scores.correct
    half = _Z95 * float(residual.std()) / n**0.5
    gap = float(residual.mean())
    hits = float(scores.correct.sum())
    low, high = calibration.wilson_interval(np.array([hits]), np.array([float(n)]))
    report: dict[str, Any] = {}
    if n >= min_n:
        report = calibration.ece_report(scores, own, n_resamples=n_resamples, seed=seed)
    return Slice(
        key=key,
        title=title,
        n=n,
        share=n / n_total,
        accuracy=hits / n,
        accuracy_interval=(float(low[0]), float(high[0])),
        mean_confidence=float(scores.confidences.mean()),
        gap=gap,
        gap_interval=(gap - half, gap + half) if n >= min_n else None,
        nll=float(scores.nll.mean()),
        too_small=n < min_n,
        n_bins=own.n_bins if report else None,
        ece=report.get("value"),
        null_mean=report.get("null_mean"),
        null_q95=report.get("null_q95"),
        interval=tuple(report["interval"]) if report else None,
        debiased=report.get("debiased"),
    )


def sorted_groups(
    samples: Samples,
    groups: Sequence[Group],
    sort: Sort,
    binning: Binning,
    *,
    descending: bool,
) -> list[Group]:
    """Order groups by what they show; equal ones keep the order of their keys.

    Raises:
        UnknownNameError: an unknown `sort`.
    """
    if sort not in get_args(Sort):
        raise UnknownNameError("order", sort, get_args(Sort))
    if sort == "key":
        return list(reversed(groups)) if descending else list(groups)
    scores = samples.scores

    def value(group: Group) -> float:
        if sort == "n":
            return float(len(group.positions))
        confidences, correct = scores.confidences[group.positions], scores.correct[group.positions]
        if sort == "accuracy":
            return float(correct.mean())
        if sort == "gap":
            return float((confidences - correct).mean())
        return calibration.ece(
            TopLabel(confidences, correct), binning_for(len(group.positions), binning)
        )

    return sorted(groups, key=lambda group: -value(group) if descending else value(group))
