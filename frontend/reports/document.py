"""A report as one HTML page that needs nothing else: with Plotly in it once, or with pictures."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from plotly.offline import get_plotlyjs

from calift_core import __version__
from frontend import tables, text
from frontend.figures import style
from frontend.reports.contents import Contents, Listing, Picture, sentence_html
from frontend.tables import Table

_STYLE = """
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:#1c2733;background:#fff;margin:0 auto;
max-width:1100px;padding:24px;overflow-wrap:break-word}
h1{font-size:26px;line-height:1.25;margin:0 0 4px}h2{font-size:19px;margin:40px 0 8px}
p.note,figcaption,.caption{color:#4a5763;max-width:80ch;font-size:14px}
ul.answers{padding-left:20px;max-width:80ch}ul.answers li{margin:6px 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
th,td{text-align:left;padding:5px 10px;border-bottom:1px solid #e3e8ee;white-space:nowrap;
font-weight:400}
thead th{font-weight:600}.num{text-align:right}
.calift-table{overflow-x:auto;max-width:100%;background:
linear-gradient(to left,#fff 40%,#fff0) right/3rem 100% no-repeat local,
linear-gradient(to left,rgb(28 39 51/18%),#fff0) right/1rem 100% no-repeat}
.calift-table::-webkit-scrollbar{height:10px}
.calift-table::-webkit-scrollbar-thumb{background:#c4ccd4;border-radius:5px;border:2px solid #fff}
.calift-table:focus-visible,.figure:focus-visible{outline:2px solid #0072B2}
figure{margin:0}.figure{overflow-x:auto}.figure img{max-width:100%;height:auto}
summary{cursor:pointer;color:#005a8e;font-size:14px;margin:6px 0}
.files{display:flex;gap:8px;flex-wrap:wrap;margin:8px 0}
button{font:inherit;font-size:14px;color:#1c2733;background:#fff;border:1px solid #8a96a3;
border-radius:6px;padding:4px 12px;cursor:pointer}
nav a{display:inline-block;margin-right:14px;color:#005a8e}
@media(max-width:700px){body{padding:16px}.plotly-graph-div{min-width:var(--wide,0)}}
@media print{body{max-width:none;padding:0;font-size:11pt}h2{break-after:avoid}
figure,tr,li{break-inside:avoid}details,button,nav{display:none}
table{font-size:6.5pt}th,td{padding:2px 4px;white-space:normal}}
@page{size:A4;margin:14mm}
"""

#: Hands a table or the JSON over as a file; what it hands over stands in the page as text.
_SCRIPT = """
const files = JSON.parse(document.getElementById("files").textContent);
document.addEventListener("click", (event) => {
  const name = event.target.dataset && event.target.dataset.file;
  if (!name) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([files[name]], {type: "text/plain"}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
"""

#: How a table is written: the end of its file's name, and how it is made.
KINDS = ("csv", "json", "md", "tex")


def written(table: Table, kind: str, caption: str) -> str:
    """A table as one of `KINDS`."""
    match kind:
        case "csv":
            return tables.to_csv(table)
        case "json":
            return tables.to_json(table) + "\n"
        case "md":
            return f"{text.md(tables.visible(caption))}\n\n{tables.to_markdown(table)}"
        case "tex":
            return tables.to_latex(table, caption=caption)
    raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")


def body_json(made: Contents) -> dict[str, Any]:
    """Everything behind the report, unrounded: what the API gives."""
    gathered = made.gathered
    return {
        "title": made.title,
        "calift": __version__,
        "made_at": made.made.isoformat(),
        "note": made.note,
        "timings_s": made.timings,
        "baseline": gathered.baseline,
        "runs": [
            {
                "id": t.run.id,
                "label": t.run.label,
                "source": t.source,
                "method": t.method,
                "model": t.model,
                "suite": t.suite,
                "seed": t.seed,
                "summary": t.summary and t.summary.model_dump(mode="json"),
                "evaluations": [e.model_dump(mode="json") for e in t.evaluations],
                "spectra": [s.model_dump(mode="json") for s in t.spectra],
                "report": t.report and t.report.model_dump(mode="json"),
            }
            for t in gathered.runs
        ],
        "differences": {
            run_id: [d.model_dump(mode="json") for d in found]
            for run_id, found in gathered.differences.items()
        },
        "reliability": [d.model_dump(mode="json") for d in made.diagrams],
        "captions": {p.name: p.caption for p in made.pictures}
        | {found.name: found.caption for found in made.listings},
    }


def to_html(made: Contents, drawn: Mapping[str, bytes] | None = None) -> str:
    """The page.

    Args:
        drawn: figures as SVG, by name, for a page that is printed; None: they can be used, and
            Plotly's script is in the page once.
    """
    printed = drawn is not None
    scripts = "'none'" if printed else "'unsafe-inline'"
    files = {"report.json": json.dumps(body_json(made), ensure_ascii=False, indent=1)}
    for name, table, caption in every_table(made):
        files |= {f"{name}.{kind}": written(table, kind, caption) for kind in KINDS}
    head = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # What somebody typed is escaped; were it not, nothing could be fetched or sent.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"img-src data: blob:; style-src 'unsafe-inline'; script-src {scripts}\">",
        f"<title>{text.esc(made.title)}</title><style>{_STYLE}</style>",
        "" if printed else f"<script>{get_plotlyjs()}</script>",
        "</head><body><main>",
        f"<h1>{text.esc(made.title)}</h1>",
        f'<p class="note">Made {text.moment(made.made)} by calift {text.esc(__version__)}. Every '
        "calibration error stands beside its floor: what a perfectly calibrated model would show "
        "at this number of samples.</p>",
    ]
    if made.note:
        head.append(f'<p class="note">{text.esc(made.note)}</p>')
    if made.answers:
        items = "".join(f"<li>{sentence_html(sentence)}</li>" for sentence in made.answers)
        head.append(f'<ul class="answers">{items}</ul>')
    elif made.gathered.why_none and len(made.gathered.runs) > 1:
        head.append(f'<p class="note">{text.esc(made.gathered.why_none)}</p>')
    first, *rest = made.listings
    body = [_listing(first)]
    body += [_picture(p, None if drawn is None else drawn.get(p.name)) for p in made.pictures]
    body += [_listing(found) for found in rest]
    if made.timings:
        items = "".join(
            f"<tr><th>{text.esc(name)}</th><td class=num>{seconds:.0f} s</td></tr>"
            for name, seconds in made.timings.items()
        )
        body.append(f"<h2>What took how long</h2><table>{items}</table>")
    if printed:
        tail = ["</main></body></html>"]
    else:
        stored = json.dumps(files, ensure_ascii=False).replace("<", "\\u003c")
        tail = [
            '<div class="files"><button data-file="report.json">All numbers, JSON</button></div>',
            f'<script type="application/json" id="files">{stored}</script>',
            f"<script>{_SCRIPT}</script></main></body></html>",
        ]
    return "\n".join([*head, *body, *tail])


def every_table(made: Contents) -> list[tuple[str, Table, str]]:
    """Every table of a report: its file's name, and its caption."""
    return [(found.name, found.table, found.caption) for found in made.listings] + [
        (p.name, p.twin, p.caption) for p in made.pictures
    ]


def _buttons(name: str) -> str:
    words = {"csv": "CSV", "json": "JSON", "md": "Markdown", "tex": "LaTeX"}
    return "".join(
        f'<button data-file="{text.esc(name)}.{kind}" aria-label="{words[kind]} of '
        f'{text.esc(name)}">{words[kind]}</button>'
        for kind in KINDS
    )


def _listing(found: Listing) -> str:
    shown = tables.to_html(found.table, caption=found.title, limit=200)
    return (
        f"<h2>{text.esc(found.title)}</h2>{shown}"
        f'<p class="caption">{text.esc(found.caption)}</p>'
        f'<div class="files">{_buttons(found.name)}</div>'
    )


def _picture(picture: Picture, svg: bytes | None) -> str:
    alt = text.esc(style.alt_text(picture.figure))
    if svg is not None:
        # As an image: a script in it, were there one, would not run.
        source = base64.b64encode(svg).decode()
        inner = f'<img src="data:image/svg+xml;base64,{source}" alt="{alt}">'
    else:
        inner = picture.figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            config={
                **style.CONFIG,
                "toImageButtonOptions": {
                    **style.CONFIG["toImageButtonOptions"],
                    "filename": picture.name,
                },
            },
        )
        # Not an image: its bar of buttons can be reached.
        inner = f'<div role="group" aria-label="{alt}">{inner}</div>'
    wide = f' style="--wide:{picture.wide}px"' if picture.wide else ""
    shown = tables.to_html(picture.twin, caption=picture.title, limit=100)
    return (
        f"<h2>{text.esc(picture.title)}</h2><figure>"
        f'<div class="figure" tabindex="0"{wide}>{inner}</div>'
        f"<figcaption>{text.esc(picture.caption)}</figcaption></figure>"
        f"<details><summary>Its numbers</summary>{shown}"
        f'<div class="files">{_buttons(picture.name)}</div></details>'
    )
