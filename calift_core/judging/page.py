"""A judgement as one HTML page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

from calift_core import __version__
from calift_core.judging.sets import JudgedSet
from calift_core.words import nats, percent

_STYLE = """
.calift-judgement { font: 16px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 60rem;
  margin: 0 auto; padding: 1rem; }
.calift-judgement h1 { font-size: 1.5rem; }
.calift-judgement table { border-collapse: collapse; display: block; overflow-x: auto; }
.calift-judgement th, .calift-judgement td { padding: .3rem .7rem; text-align: right;
  border-bottom: 1px solid #8885; }
.calift-judgement th:first-child, .calift-judgement td:first-child { text-align: left; }
.calift-judgement figure { display: inline-block; margin: .5rem; max-width: 100%; }
.calift-judgement svg { max-width: 100%; height: auto; }
.calift-judgement svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
@media (prefers-color-scheme: dark) {
  body { background: #10161d; }
  .calift-judgement { color: #e6ecf2; }
}
"""
_SIDE, _LEFT, _BOTTOM = 280, 44, 40
_HEADINGS = ("data", "n", "accuracy", "mean confidence", "ECE", "95 %", "floor", "NLL", "Brier")


def page(sentences: Sequence[str], sets: Sequence[JudgedSet], *, title: str = "") -> str:
    """The whole page, UTF-8."""
    heading = title or f"Predictions on {sets[0].name}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(heading)}</title></head>\n<body>"
        f"{fragment(sentences, sets, heading=heading)}\n</body></html>\n"
    )


def fragment(sentences: Sequence[str], sets: Sequence[JudgedSet], *, heading: str = "") -> str:
    """What stands in the page, and in a notebook's cell."""
    parts = [f'<style>{_STYLE}</style><main class="calift-judgement">']
    if heading:
        parts.append(f"<h1>{html.escape(heading)}</h1>")
    parts += [f"<p>{html.escape(sentence)}</p>" for sentence in sentences]
    parts.append("<table><thead><tr>")
    parts += [f'<th scope="col">{name}</th>' for name in _HEADINGS]
    parts.append("</tr></thead><tbody>")
    for one in sets:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in _row(one))
        parts.append(f"<tr>{cells}</tr>")
    parts.append("</tbody></table>")
    parts += [_figure(one) for one in sets]
    parts.append(
        "<p><small>ECE: of the top label over the whole set, equal-mass bins. Floor: what a "
        "perfectly calibrated model of this size shows on average. Band: where 19 of 20 of its "
        f"points lie. Intervals: 95 %. calift {html.escape(__version__)}.</small></p></main>"
    )
    return "\n".join(parts)


def _row(one: JudgedSet) -> Iterator[str]:
    n = one.numbers
    yield one.name
    yield f"{n['n']:,}"
    yield from (percent(n["accuracy"]), percent(n["mean_confidence"]), percent(n["ece"]))
    yield f"{100 * n['interval'][0]:.1f} to {100 * n['interval'][1]:.1f}"
    yield from (percent(n["null_mean"]), nats(n["nll"]), f"{n['brier']:.3f}")


def _figure(one: JudgedSet) -> str:
    n = one.numbers
    alt = (
        f"Reliability of {one.name}: accuracy against confidence in {len(n['bins'])} bins, ECE "
        f"{percent(n['ece'])}, floor {percent(n['null_mean'])}."
    )
    return (
        f"<figure>{_svg(n['bins'], html.escape(alt, quote=True))}"
        f"<figcaption><strong>{html.escape(one.name)}</strong>: {n['n']:,} samples, ECE "
        f"{percent(n['ece'])} (floor {percent(n['null_mean'])})</figcaption></figure>"
    )


def _svg(bins: list[dict[str, Any]], label: str) -> str:
    def x(value: float) -> str:
        return f"{_LEFT + _SIDE * value:.1f}"

    def y(value: float) -> str:
        return f"{8 + _SIDE * (1 - value):.1f}"

    forth = [f"{x(b['mean_confidence'])},{y(b['band_low'])}" for b in bins]
    back = [f"{x(b['mean_confidence'])},{y(b['band_high'])}" for b in reversed(bins)]
    parts = [
        f'<svg viewBox="0 0 {_LEFT + _SIDE + 12} {_SIDE + 8 + _BOTTOM}" '
        f'width="{_LEFT + _SIDE + 12}" role="img" aria-label="{label}">',
        f'<rect x="{_LEFT}" y="8" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#8888"/>',
        f'<polygon points="{" ".join(forth + back)}" fill="#8886"/>',
        f'<line x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}" stroke="#888" '
        'stroke-dasharray="4 4"/>',
    ]
    for b in bins:
        at = x(b["mean_confidence"])
        parts.append(
            f'<line x1="{at}" x2="{at}" y1="{y(b["interval_low"])}" y2="{y(b["interval_high"])}" '
            'stroke="#3b6fb6"/>'
            f'<circle cx="{at}" cy="{y(b["accuracy"])}" r="4" fill="#3b6fb6"><title>'
            f"{b['count']:,} samples, {percent(b['mean_confidence'])} sure, "
            f"{percent(b['accuracy'])} right</title></circle>"
        )
    for tick in (0.0, 0.5, 1.0):
        parts.append(
            f'<text x="{x(tick)}" y="{_SIDE + 24}" text-anchor="middle">{tick:g}</text>'
            f'<text x="{_LEFT - 6}" y="{y(tick)}" dy="4" text-anchor="end">{tick:g}</text>'
        )
    parts.append(
        f'<text x="{x(0.5)}" y="{_SIDE + 42}" text-anchor="middle">confidence</text>'
        f'<text x="12" y="{y(0.5)}" text-anchor="middle" '
        f'transform="rotate(-90 12 {y(0.5)})">accuracy</text></svg>'
    )
    return "".join(parts)
