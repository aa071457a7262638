"""Rows of plain values and their columns, and what is made of them: HTML, CSV and JSON.

Rows hold fractions under the names that the API uses, so an export can be computed with; percent
is made only by `to_html`, by a column's kind. Every value is escaped unless it is `Markup`, which
only code of this package makes. Tables that commands show
too stand in this package, those of single figures beside them.
"""

import csv
import io
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from calift_core.schema.wire.runs import Spread
from calift_core.untrusted import mark_formula
from frontend import text

Row = Mapping[str, Any]


class Run(NamedTuple):
    """What a chart needs to know of a run: its id gives the style, its label is read."""

    id: str
    label: str


class Markup(str):
    """HTML that is safe because this package made it from escaped parts."""

    __slots__ = ()


class Column(NamedTuple):
    """One column: the rows' key, its heading, and how its values read.

    Kinds: `text`, `prose` (text that may take several lines), `percent`, `points`,
    `square_points`, `number`, `count`, `yes`. Only `page.grid` and `page.rows` know `open` (what
    opens something), `mark` (a word on a coloured ground) and `share` (a bar from 0 to 1).
    """

    name: str
    label: str
    kind: str = "text"


_SAYS: dict[str, Callable[[Any], str]] = {
    "text": text.plain,
    "prose": text.plain,
    "percent": text.percent,
    "points": text.points,
    "square_points": text.square_points,
    "number": text.number,
    "count": text.count,
    "yes": lambda value: "yes" if value else "no",
}


#: Kinds whose values stand right-aligned.
NUMERIC = frozenset({"percent", "points", "square_points", "number", "count"})


class Table(NamedTuple):
    """Rows with the columns that are shown, in order. An export holds the same columns."""

    columns: Sequence[Column]
    rows: Sequence[Row]


def headline(names: Iterable[str] = text.HEADLINES, *, floors: bool = False) -> list[Column]:
    """The columns of a run's headline numbers.

    Args:
        names: of `text.HEADLINES`; default: all.
        floors: put the floor of each calibration error beside it.
    """
    columns = []
    for name in names:
        look = text.HEADLINES[name]
        columns.append(Column(name, look.title, "percent" if look.fraction else "number"))
        if floors and name.endswith("_ece"):
            columns.append(Column(f"{name}_floor", "floor", "percent"))
    return columns


def to_html(
    table: Table, *, caption: str, limit: int = 500, stick: bool = True, stack: bool = False
) -> Markup:
    """A table that screen readers can walk; it scrolls inside itself where the page is narrow.

    Args:
        caption: names the table for those who do not see the chart beside it.
        limit: rows shown; a last line counts the rest.
        stick: keep the first column in sight while the rest scrolls.
        stack: on a narrow screen, put a row's values below each other; for tables of words.
    """
    head = "".join(
        f'<th scope="col" class="{"num" if c.kind in NUMERIC else ""}">{text.esc(c.label)}</th>'
        for c in table.columns
    )
    body = []
    for row in table.rows[:limit]:
        cells = []
        for index, column in enumerate(table.columns):
            value = row.get(column.name)
            if isinstance(value, Markup):
                words: str = value
            elif value is None or value == "":
                words = text.DASH
            else:
                words = text.esc(cell_text(column, value))
                if column.kind == "prose":
                    words = f'<div class="wrap">{words}</div>'
            tag = 'th scope="row"' if index == 0 else "td"
            kind = "num" if column.kind in NUMERIC else "txt"
            label = f' data-label="{text.esc(column.label)}"' if stack else ""
            cells.append(f'<{tag} class="{kind}"{label}>{words}</{tag[:2]}>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    rest = len(table.rows) - limit
    if rest > 0:
        body.append(
            f'<tr><td colspan="{len(table.columns)}" class="rest">and {rest:,} more rows in the '
            "CSV export</td></tr>"
        )
    return Markup(
        f'<div class="calift-table{" stick" * stick}{" stack" * stack}" tabindex="0" role="region"'
        f' aria-label="{text.esc(caption)}"><table><caption>{text.esc(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def to_csv(table: Table) -> str:
    """Comma-separated values, names in the first line, fractions as they are."""
    table = _apart(table)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.name for column in table.columns])
    for row in table.rows:
        writer.writerow([_cell(row.get(column.name)) for column in table.columns])
    return out.getvalue()


def to_json(table: Table) -> str:
    table = _apart(table)
    rows = [{c.name: row.get(c.name) for c in table.columns} for row in table.rows]
    return json.dumps(rows, ensure_ascii=False, indent=1)


def _apart(table: Table) -> Table:
    """A table whose means, standard errors and counts have columns of their own."""
    columns, rows = list[Column](), [dict(row) for row in table.rows]
    for column in table.columns:
        columns.append(column)
        name, values = column.name, [row.get(column.name) for row in table.rows]
        if not any(isinstance(value, Spread) for value in values):
            continue
        columns += [Column(f"{name}_se", "SE", column.kind), Column(f"{name}_n", "n", "count")]
        for row, value in zip(rows, values, strict=True):
            if isinstance(value, Spread):
                row |= {name: value.mean, f"{name}_se": value.se, f"{name}_n": value.n}
    return Table(columns, rows)


def _cell(value: Any) -> Any:
    if isinstance(value, text.Mark):
        return value.word
    return "" if value is None else mark_formula(value)


def to_markdown(table: Table) -> str:
    """A table of GitHub's Markdown, in the words that people see; names format nothing."""
    lines = [[text.md(c.label) for c in table.columns], [_rule(c) for c in table.columns]]
    lines += [[text.md(visible(w)) for w in words_of(table, row)] for row in table.rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def to_latex(table: Table, *, caption: str = "") -> str:
    """A `tabular` with the rules of booktabs, in a `table` where there is a caption.

    More rows than a page has room for are a `longtable`, which goes on over the next ones.

    Every value is escaped. Letters beyond Latin-1 stand as they are: XeLaTeX and LuaLaTeX set them
    where the font has them.
    """
    shape = "".join("r" if c.kind in NUMERIC else "l" for c in table.columns)
    rows = [" & ".join(tex(w) for w in words_of(table, row)) + r" \\" for row in table.rows]
    head = [r"\toprule", " & ".join(tex(c.label) for c in table.columns) + r" \\", r"\midrule"]
    needs = "% needs \\usepackage{booktabs}\n"
    title = [rf"\caption{{{tex(caption)}}}"] if caption else []
    if len(rows) > _ON_A_PAGE:
        needs += "% needs \\usepackage{longtable}\n"
        first = [*(f"{line} \\\\" for line in title), *head, r"\endfirsthead"]
        lines = [rf"\begin{{longtable}}{{{shape}}}", *first, *head, r"\endhead", *rows,
                 r"\bottomrule", r"\end{longtable}"]  # fmt: skip
        return needs + "\n".join(lines) + "\n"
    lines = [rf"\begin{{tabular}}{{{shape}}}", *head, *rows, r"\bottomrule", r"\end{tabular}"]
    if caption:
        lines = [r"\begin{table}", r"\centering", *title, *lines, r"\end{table}"]
    return needs + "\n".join(lines) + "\n"


def _rule(column: Column) -> str:
    return "---:" if column.kind in NUMERIC else "---"


def words_of(table: Table, row: Row) -> list[str]:
    """What people see of a row, as plain text."""
    found = []
    for column in table.columns:
        value = row.get(column.name)
        missing = value is None or value == ""
        found.append(text.DASH if missing else cell_text(column, value))
    return found


def visible(words: str) -> str:
    """Without control characters and marks that turn the direction of what follows."""
    return "".join(
        " " if c.isspace() and c != text.NBSP else c
        for c in words
        if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co")
    )


#: Rows that a page of paper surely has room for.
_ON_A_PAGE = 40
_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
    # After the end of a row these would be its options.
    "[": "{[}",
    "*": "{*}",
    text.NBSP: "~",
    "−": "$-$",
    "–": "--",
    "·": r"$\cdot$",
    # What calift's own words are written with; pdflatex knows none of it.
    "²": "$^2$",
    "₀": "$_0$",
    "₁": "$_1$",
    "ᵀ": r"$^\top$",
    "‖": r"$\|$",
    "→": r"$\to$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "≈": r"$\approx$",
    "√": r"$\surd$",
    "∞": r"$\infty$",
    "✓": r"$\surd$",
    "✗": r"$\times$",
    "✕": r"$\times$",
    "▲": r"$\triangle$",
    "▼": r"$\bigtriangledown$",
    "★": r"$\star$",
    "○": r"$\circ$",
    "◇": r"$\diamond$",
    "›": "$>$",
    "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}",
    **{
        letter: rf"$\{name}$"
        for letter, name in {
            "α": "alpha",
            "β": "beta",
            "γ": "gamma",
            "δ": "delta",
            "ε": "varepsilon",
            "κ": "kappa",
            "λ": "lambda",
            "ρ": "rho",
            "σ": "sigma",
            "Δ": "Delta",
            "Σ": "Sigma",
        }.items()
    },
    "…": r"\ldots{}",
    "’": "'",
}


def cell_text(column: Column, value: Any) -> str:
    """A value as it reads in a column; words stay as they are."""
    if isinstance(value, str | text.Mark):
        return value if isinstance(value, str) else value.word
    if isinstance(value, Spread):
        mean = cell_text(column, value.mean)
        se = "" if value.se is None else cell_text(column, value.se).removeprefix("+")
        return f"{mean} ± {se}" if se else mean
    return _SAYS.get(column.kind, text.plain)(value)


def tex(value: object) -> str:
    """Escape what somebody typed for LaTeX's text mode."""
    return "".join(_TEX.get(c, c) for c in visible(str(value)))
