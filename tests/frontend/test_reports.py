"""Reports: their numbers are the API's, names are harmless in every format, one page is enough."""

import csv
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from calift_core.analysis.imported import import_into_folder
from calift_core.client import Client
from calift_core.errors import CaliftError, SpecError
from calift_core.recommendation import RECOMMENDED
from frontend import tables
from frontend.reports import document, files
from frontend.reports.contents import contents, sentence_html
from frontend.reports.gathered import from_folders, from_service
from frontend.tables import Column, Table
from tests.conftest import unavailable
from tests.frontend import seed
from tests.frontend.driving import page

HOSTILE = "</script><script>alert(1)</script> & ${7*7} \\input{/etc/passwd} _x^% \u202egnp =1+1"


@pytest.fixture(scope="module")
def made(seeded):
    with Client(seeded.url, (seeded.home / "token").read_text().strip()) as client:
        return contents(from_service(client, [seeded.ids[n] for n in ("zero-shot", "FLYP")]))


def stored(page: str) -> dict[str, str]:
    """The files that a page hands over."""
    found = re.search(r'<script type="application/json" id="files">(.*?)</script>', page, re.S)
    return dict(json.loads(found[1]))


def test_report__every_format_has_the_numbers_of_the_api(seeded, made):
    with Client(seeded.url, (seeded.home / "token").read_text().strip()) as client:
        requested = {
            (e.run_name, e.dataset): e
            for name in ("zero-shot", "FLYP")
            for e in client.run_evaluations(seeded.ids[name])
        }
        runs = [client.run(seeded.ids[name]) for name in ("zero-shot", "FLYP")]
        drawn = {
            d.evaluation_id: client.reliability(d.evaluation_id).ece for d in made.diagrams
        }  # fmt: skip
    given = stored(document.to_html(made))
    rows = list(csv.DictReader(io.StringIO(given["evaluations.csv"])))
    assert len(rows) == len(requested)
    by_title = {(n, e.corruption and f"{e.corruption.replace('_', ' ')}, severity {e.severity}"
                 or e.dataset): e for (n, _), e in requested.items()}  # fmt: skip
    for row in rows:
        e = by_title[row["run"], row["title"]]
        assert float(row["accuracy"]) == e.accuracy
        assert float(row["ece"]) == e.ece.value
        assert float(row["ece_null_mean"]) == e.ece.null_mean
        assert (float(row["ece_low"]), float(row["ece_high"])) == e.ece.interval
    headline = list(csv.DictReader(io.StringIO(given["runs.csv"])))
    for row, run in zip(headline, runs, strict=True):
        assert float(row["ood_ece"]) == run.summary.ood_ece
    whole = json.loads(given["report.json"])
    assert [r["summary"] for r in whole["runs"]] == [r.summary.model_dump() for r in runs]
    assert {d["evaluation_id"]: d["ece"] for d in whole["reliability"]} == drawn


def test_report__a_caption_stands_alone(made):
    for picture in made.pictures:
        if picture.name.startswith("reliability"):
            for word in ("n = 400", "15 bins", "floor", "draws, seed 0", "seed 0", "flyp"):
                assert word in picture.caption, (picture.name, word)
    inside = " ".join(
        str(a.text)
        for p in made.pictures
        for a in files.captioned(p.figure, p.caption).layout.annotations
    )
    assert "draws, seed 0" in inside


def test_report__one_page_is_enough(made):
    written = document.to_html(made)
    assert not re.search(r'(?:src|href)="(?!data:|#)', written.split("</head>", 1)[1])
    assert written.count("plotly.js v") == 1
    assert "default-src 'none'" in written


def folder_of(path: Path, name: str, kind: str) -> Path:
    for dataset, role, harm in (("test", "id", 0.0), ("sketch", "shift", 0.2)):
        made = seed.predictions(seed.KINDS[kind], dataset, role, n=300, harm=harm, seed=1)
        import_into_folder(made, path, name=name)
    return path


def test_report__folders_are_read_without_a_service_and_paired(tmp_path):
    some = [folder_of(tmp_path / "a", "first", "FLYP"), folder_of(tmp_path / "b", "two", "CaRot")]
    gathered = from_folders(some)
    found = {d.dataset: d for d in next(iter(gathered.differences.values())) if d.metric == "ece"}
    for answer, position in ((gathered.runs[0], "baseline"), (gathered.runs[1], "value")):
        for e in answer.evaluations:
            assert getattr(found[e.dataset], position) == pytest.approx(e.ece.value, abs=1e-6)
            assert answer.diagram(e).ece == pytest.approx(e.ece.value, abs=1e-6)
    first, second, *answers, suggested = contents(gathered).answers
    assert all("accuracy" in one and "ECE" in one for one in (first, second))
    assert any("calibration error" in sentence for sentence in answers)
    assert RECOMMENDED.recipe in suggested
    with pytest.raises(CaliftError, match=r"report\.json"):
        from_folders([tmp_path])
    with pytest.raises(SpecError, match="1 to 8 runs"):
        from_folders([])


def test_report__hostile_names_are_text_in_every_format(tmp_path):
    folder = folder_of(tmp_path / "a", "plain", "FLYP")
    report = json.loads((folder / "report.json").read_text())
    report["name"] = HOSTILE
    (folder / "report.json").write_text(json.dumps(report))
    made = contents(from_folders([folder]))
    written = document.to_html(made)
    assert "<script>alert" not in written
    assert html.escape(HOSTILE) in written
    given = stored(written)
    assert given["runs.csv"].count("\n") == 2
    assert "\\input" not in given["runs.tex"]
    assert "\u202e" not in given["runs.tex"] + given["runs.md"]
    assert "<script>" not in re.sub(r"\\.", "", given["runs.md"])
    assert json.loads(given["runs.json"])[0]["run"] == HOSTILE


TEX = re.compile(
    "|".join(re.escape(v) for v in sorted(tables._TEX.values(), key=len, reverse=True))
)


@given(st.text(max_size=60))
def test_tex__nothing_is_left_that_latex_would_obey(typed):
    left = TEX.sub("", tables.tex(typed))
    assert not set(left) & set('\\{}$&#%_~^<>|[*`"\n\r')


def compiled(folder: Path, parts: dict[str, str], pictures: list[str]) -> bytes:
    """What pdflatex makes of tables and figures, each in a file of its own; it must obey them all.

    It stops at the first fault, and is not allowed to run or read anything else.
    """
    latex = shutil.which("pdflatex")
    if (
        latex is None
        or subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).returncode
    ):
        pytest.skip("no pdflatex with booktabs on this machine (texlive-latex-recommended)")
    packages = {p for part in parts.values() for p in re.findall(r"^% needs (.*)$", part, re.M)}
    for name in pictures:
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    for name, part in parts.items():
        (folder / name).write_text(part, encoding="utf-8")
    inputs = "\n".join(rf"\input{{{name}}}\clearpage" for name in parts)
    whole = "\n".join([r"\documentclass{article}", *sorted(packages), r"\begin{document}", inputs,
                       r"\end{document}"])  # fmt: skip
    (folder / "all.tex").write_text(whole, encoding="utf-8")
    argv = [latex, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "all.tex"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-1500:]
    return (folder / "all.pdf").read_bytes()


def test_tex__every_table_and_figure_of_a_report_compiles(made, tmp_path):
    given = stored(document.to_html(made))
    parts = {name: content for name, content in given.items() if name.endswith(".tex")}
    assert len(parts) >= 3
    parts["figures.tex"] = files._latex(made.pictures)
    typed = Table(
        [Column("a", HOSTILE)], [{"a": c} for c in (HOSTILE, "# $ % & ~ _ ^ { } \\ ' \"")]
    )
    parts["typed.tex"] = tables.to_latex(typed, caption=HOSTILE)
    assert compiled(tmp_path, parts, [p.name for p in made.pictures]).startswith(b"%PDF")


@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_to_markdown__a_row_stays_a_row(typed):
    table = Table([Column(str(i), "a|b") for i in range(len(typed))],
                  [{str(i): t for i, t in enumerate(typed)}])  # fmt: skip
    lines = tables.to_markdown(table).splitlines()
    assert len(lines) == 3
    for line in lines:
        assert len(re.sub(r"\\.", "", line).split("|")) == len(typed) + 2


@given(st.text(max_size=60))
def test_sentence_html__says_what_was_typed(typed):
    from frontend import text

    output = sentence_html(f"**{text.md(typed)}** leads")
    assert html.unescape(output) == f"<strong>{typed.replace(chr(10), ' ')}</strong> leads"


@pytest.mark.parametrize("name", ["run", "compare"])
def test_pages__offer_a_report(dashboard, name):
    ids = ",".join(dashboard.ids[n] for n in ("zero-shot", "FLYP"))
    params = {"id": dashboard.ids["FLYP"], "tab": "Logs"} if name == "run" else {"ids": ids}
    drawn = page(name, **params)
    drawn.button("make-report-html").click().run()
    assert not drawn.error
    assert "Save the page" in [b.proto.label for b in drawn.get("download_button")]


def test_write__says_what_a_report_can_be(made, tmp_path):
    with pytest.raises(SpecError, match=r"\.html or \.pdf"):
        files.write(made, tmp_path / "report.docx")


def test_write__without_a_browser_says_so_and_keeps_the_page(made, tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    output = []
    page = files.write(made, tmp_path / "report", output.append)
    assert page.read_text().startswith("<!doctype html>")
    assert len(output) == 1
    assert "need an installed Chrome" in output[0]
    assert "Traceback" not in output[0]
    with pytest.raises(CaliftError, match="no PDF"):
        files.to_pdf(made)


@pytest.mark.browser
def test_to_pdf__is_a_pdf(made):
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        unavailable("no chromium on this machine")
    few = replace(made, pictures=made.pictures[:1])
    assert files.to_pdf(few).startswith(b"%PDF")
