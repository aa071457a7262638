"""Conditions on samples, as a person types them.

The condition is a small language of its own, read by hand and never evaluated as code::

    condition  = term { "or" term }
    term       = factor { "and" factor }
    factor     = "not" factor | "(" condition ")" | "correct" | comparison
    comparison = COLUMN ("==" | "!=" | "<" | "<=" | ">" | ">=") VALUE
               | COLUMN ["not"] "in" "(" VALUE { "," VALUE } ")"
    VALUE      = number | "text" | 'text' | true | false

Columns: `confidence` (of the predicted class, a fraction), `correct`, `label`, `predicted` (class
indices, or class names as text), `rank` (classes before the true one), `nll` (nats), `brier`, `id`,
`tag` (that an image has among its tags) and, where the file has it, `cluster`. An example:
``confidence >= 0.9 and not correct and label in ("shirt", 3)``.
"""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from calift_core.analysis.feature_map import inside
from calift_core.calibration import SampleScores
from calift_core.calibration.bins import Bools
from calift_core.errors import SpecError, UnknownNameError
from calift_core.schema.wire.queries import MAX_CONDITION

Strings = npt.NDArray[np.str_]

_MAX_DEPTH = 20


@dataclass(frozen=True, eq=False)
class Samples:
    """The columns that slices are cut by; N samples, C classes.

    Attributes:
        scores: (N,) each.
        ids: (N,) names of the samples.
        clusters: (N,) names of the samples' sources, None where the file has none.
        tags: each (sample, tag); None where none are kept.
        points: (N, 2) on the map of features; None where there is none.
    """

    scores: SampleScores
    ids: Strings
    class_names: tuple[str, ...]
    clusters: Strings | None = None
    tags: tuple[tuple[str, str], ...] | None = None
    points: npt.NDArray[np.float32] | None = None

    def tagged(self, names: Sequence[str]) -> Bools:
        """Which samples (N,) have one of these tags.

        Raises:
            SpecError: no tags are kept.
        """
        if self.tags is None:
            raise SpecError("tags on images are kept by a service, and these are files of your own")
        return np.isin(self.ids, [sample for sample, tag in self.tags if tag in names])

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
        if name == "tag":
            return self._tagged()
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

    def _tagged(self) -> Bools:
        self._at += 1
        text = np.array([""])
        negated = self._take("!=")
        if negated or self._take("=="):
            members = [self._value("tag", text)]
        else:
            negated = self._take("not")
            members = self._members("tag", text)
        found = self._samples.tagged([str(one) for one in members])
        return ~found if negated else found

    def _membership(self, name: str, values: npt.NDArray[Any]) -> Bools:
        return np.isin(values, np.array(self._members(name, values)))

    def _members(self, name: str, values: npt.NDArray[Any]) -> list[_Value]:
        self._need("in")
        self._need("(")
        members = [self._value(name, values)]
        while self._take(","):
            members.append(self._value(name, values))
        self._need(")")
        return members

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


def matching(samples: Samples, where: str | None, area: str | None = None) -> Bools:
    """Return which samples (N,) a condition holds for; all of them without one.

    Args:
        area: they lie in it as well; see `SampleFilter.area`.

    Raises:
        SpecError: it is no condition, and the message says where and what was expected; or an area
            of a map that has not been made.
        UnknownNameError: a column or a class that does not exist.
    """
    mask = np.ones(len(samples.scores), dtype=np.bool_)
    if where is not None and where.strip():
        mask = _Condition(where, samples).mask()
    if area is None:
        return mask
    if samples.points is None:
        raise SpecError("an area must be one of a map of features, which has not been made")
    return mask & inside(samples.points, area)
