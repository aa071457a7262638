"""Tables and figures of a report, each with a caption that stands alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import plotly.graph_objects as go

from calift_core.recommendation import RECOMMENDED
from calift_core.schema.report import EceReport
from calift_core.schema.wire.results import (
    ComparedRun,
    Comparison,
    Evaluation,
    PairedDifference,
    Reliability,
)
from calift_core.schema.wire.runs import RunSummary
from frontend import answers, figures, tables, text
from frontend.reports.gathered import Gathered, ReportedRun
from frontend.tables import Column, Table, analysis, comparisons

#: Shifts whose diagrams are drawn where nobody says which: those with the lowest accuracy.
_WORST = 4
#: Reliability diagrams side by side.
_ACROSS = 3


class Picture(NamedTuple):
    """A figure of a report.

    Attributes:
        figure: of `frontend.figures`.
        caption: what it shows and of what, for those who see nothing else.
        wide: pixels that it needs to the side: a narrower page scrolls it.
    """

    name: str
    title: str
    figure: go.Figure
    twin: Table
    caption: str
    wide: int = 0


class Listing(NamedTuple):
    """A table of a report: its files' name, its title, and what its columns mean."""

    name: str
    title: str
    table: Table
    caption: str


@dataclass(frozen=True)
class Contents:
    """All that a report says.

    Attributes:
        answers: sentences in the Markdown of `frontend.answers`.
        listings: tables, the headline first.
        timings: seconds that each part took, by name.
    """

    title: str
    note: str
    made: datetime
    answers: list[str]
    listings: list[Listing]
    pictures: list[Picture]
    diagrams: list[Reliability]
    gathered: Gathered
    timings: dict[str, float]


def contents(
    gathered: Gathered,
    *,
    title: str = "",
    note: str = "",
    datasets: Sequence[str] = (),
    timings: dict[str, float] | None = None,
) -> Contents:
    """Make the tables and figures.

    Args:
        title: default: names the runs.
        note: a paragraph of one's own under the title.
        datasets: whose reliability diagrams are drawn; none: the ID data, the shifts with the
            lowest accuracy, and the lowest of the corruptions.
        timings: seconds that each part took.
    """
    runs = gathered.runs
    names = ", ".join(t.run.label for t in runs)
    diagrams = {
        dataset: [
            t.diagram(e) for t in runs for e in t.evaluations if e.dataset == dataset
        ]
        for dataset in datasets or _worth_drawing(runs)
    }  # fmt: skip
    diagrams = {dataset: found for dataset, found in diagrams.items() if found}
    return Contents(
        title=title or f"Accuracy and calibration of {names}",
        note=note,
        made=datetime.now(UTC),
        answers=_answers(gathered),
        listings=_listings(gathered),
        pictures=_pictures(gathered, diagrams),
        diagrams=[d for found in diagrams.values() for d in found],
        gathered=gathered,
        timings=timings or {},
    )


def _worth_drawing(runs: Sequence[ReportedRun]) -> list[str]:
    """ID data, the shifts with the lowest accuracy, the corruption with the lowest."""
    every = [e for t in runs for e in t.evaluations]

    def lowest(role: str, most: int) -> list[str]:
        found = sorted((e for e in every if e.role == role), key=lambda e: e.accuracy)
        return list(dict.fromkeys(e.dataset for e in found))[:most]

    own = list(dict.fromkeys(e.dataset for e in every if e.role == "id"))
    return [*own, *lowest("shift", _WORST), *lowest("corruption", 1)]


# ---- Words.


def named_runs(runs: Sequence[ReportedRun]) -> str:
    """`FLYP (flyp, seed 0) and CaRot (carot, seed 0), of calift-tiny/typefaces on typefaces`."""
    one = [
        f"{t.run.label} ({t.method}" + ("" if t.seed is None else f", seed {t.seed}") + ")"
        for t in runs
    ]
    models = ", ".join(dict.fromkeys(t.model for t in runs if t.model))
    data = ", ".join(dict.fromkeys(text.short_suite(t.suite) for t in runs if t.suite))
    listed = one[0] if len(one) == 1 else f"{', '.join(one[:-1])} and {one[-1]}"
    return listed + (f", of {models}" if models else "") + (f" on {data}" if data else "")


def estimator(runs: Sequence[ReportedRun]) -> str:
    """What ECE is in these numbers, and what its floor is made with."""
    found = [e.ece for t in runs for e in t.evaluations]
    kinds = dict.fromkeys((e.n_bins, e.scheme, e.norm, e.n_resamples, e.seed) for e in found)
    if len(kinds) != 1:
        return (
            "ECE: of the top label over the whole set; bins differ between runs, see the tables. "
            "Floor: what a perfectly calibrated model would show at this n."
        )
    return _estimator_words(found[0])


def _estimator_words(e: EceReport) -> str:
    return (
        f"ECE: {text.NORMS[e.norm]}, of the top label over the whole set, {e.n_bins} bins of "
        f"{text.SCHEMES[e.scheme]}. Floor: what a perfectly calibrated model would show at this n "
        f"on average ({e.n_resamples:,} draws, seed {e.seed}). Intervals: 95 %."
    )


def _sizes(found: Sequence[Evaluation]) -> str:
    sizes = {e.dataset: e.n for e in found}
    if len(sizes) == 1:
        return f"n = {next(iter(sizes.values())):,}"
    low, high = min(sizes.values()), max(sizes.values())
    of = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{len(sizes)} data sets of n = {of}"


def _answers(gathered: Gathered) -> list[str]:
    labels = {t.run.id: t.run.label for t in gathered.runs}
    base = gathered.baseline
    sentences = [answers.of_run(t.run.label, t.evaluations) for t in gathered.runs]
    for run, found in gathered.differences.items():
        every = answers.overall(run, base, gathered.boards, labels) or [
            answers.by_dataset(labels[run], labels[base], found, metric) for metric in answers.WORDS
        ]
        sentences += [one.sentence for one in every]
    sentences.append(f"Suggested by calift's study: {RECOMMENDED.recipe} {RECOMMENDED.limits}")
    return [sentence for sentence in sentences if sentence]


_MARKS = re.compile(r"\\(.)|(\*\*)", re.DOTALL)


def sentence_html(markdown: str) -> str:
    """A sentence of `frontend.answers` as HTML: bold names, everything else as typed."""
    out, at, bold = [], 0, False
    for found in _MARKS.finditer(markdown):
        out.append(text.esc(markdown[at : found.start()]))
        if found[2]:
            out.append("</strong>" if bold else "<strong>")
            bold = not bold
        else:
            out.append(text.esc(found[1]))
        at = found.end()
    return "".join(out) + text.esc(markdown[at:])


# ---- Tables.


def _listings(gathered: Gathered) -> list[Listing]:
    runs = gathered.runs
    caption = f"{named_runs(runs)}. {estimator(runs)}"
    headline = Table(
        [Column("run", "Run"), *tables.headline(floors=True),
         Column("worst_shift", "Lowest on"), Column("worst_severity", "Severity", "count"),
         Column("worst_shift_accuracy", "Lowest accuracy", "percent")],
        [{"run": t.run.label, "run_id": t.run.id,
          **(t.summary.model_dump() if t.summary else {})} for t in runs],
    )  # fmt: skip
    found = [
        Listing(
            "runs",
            "Headline",
            headline,
            f"Headline numbers of {caption} OOD: unweighted means over the shifts, or over the "
            "corruptions where there are none.",
        )
    ]
    if gathered.differences and not gathered.why_none:
        found.append(
            Listing(
                "differences",
                "Differences",
                comparisons.differences(_comparison(gathered)),
                f"Each run minus {_label(gathered, gathered.baseline)} on the samples that both "
                f"saw, with paired 95 % intervals; {caption} Differences of ECE are of the L2 "
                "errors with the noise taken out.",
            )
        )
    found.append(
        Listing("evaluations", "Every data set", _evaluations(runs), f"Every data set of {caption}")
    )
    found.append(
        Listing(
            "provenance",
            "How they were made",
            _provenance(runs),
            "Settings and environment of each run; the JSON file has the whole RunSpec.",
        )
    )
    return found


def _evaluations(runs: Sequence[ReportedRun]) -> Table:
    """One row per run and data set. Values are those of the API, unrounded."""
    columns = None
    rows = []
    for t in runs:
        one = analysis.evaluations(t.evaluations)
        columns = one.columns
        of = {text.evaluation_title(e): e for e in t.evaluations}
        for row in one.rows:
            e = of[row["title"]]
            rows.append({**row, "run": t.run.label, "n_bins": e.ece.n_bins, "scheme": e.ece.scheme})
    bins = [Column("n_bins", "Bins", "count"), Column("scheme", "Scheme")]
    return Table([Column("run", "Run"), *(columns or []), *bins], rows)


def _provenance(runs: Sequence[ReportedRun]) -> Table:
    rows = []
    for t in runs:
        spec = t.report.spec if t.report else {}
        train, environment = spec.get("train") or {}, t.report.environment if t.report else {}
        resolved = t.report.resolved if t.report else {}
        rows.append(
            {
                "run": t.run.label,
                "method": t.method,
                "model": t.model,
                "suite": t.suite,
                "seed": t.seed,
                "epochs": train.get("epochs"),
                "batch_size": train.get("batch_size"),
                "lr": resolved.get("lr"),
                "selected_on": (t.report.selection if t.report else {}).get("selected_on"),
                "device": environment.get("device"),
                "spec_sha256": (t.report.spec_sha256 if t.report else "")[:16],
                "source": t.source,
            }
        )
    return Table(
        [
            Column("run", "Run"),
            Column("method", "Method"),
            Column("model", "Model"),
            Column("suite", "Data"),
            Column("seed", "Seed"),
            Column("epochs", "Epochs"),
            Column("batch_size", "Batch"),
            Column("lr", "Learning rate"),
            Column("selected_on", "Chosen on"),
            Column("device", "Device"),
            Column("spec_sha256", "Spec, SHA-256"),
            Column("source", "Where"),
        ],
        rows,
    )


# ---- Figures.


def _pictures(gathered: Gathered, diagrams: dict[str, list[Reliability]]) -> list[Picture]:
    runs, styles = gathered.runs, gathered.styles
    data = [(t.run, t.evaluations) for t in runs if t.evaluations]
    every = [e for _, found in data for e in found]
    of, how = named_runs(runs), estimator(runs)
    made = [
        Picture(
            f"reliability-{_file(dataset)}",
            f"Reliability on {dataset.replace('_', ' ')}",
            figures.reliability.grid(
                found,
                columns=min(_ACROSS, len(found)),
                titles=[d.run_name for d in found],
                styles=styles,
            )
            if len(found) > 1
            else figures.reliability.diagram(found[0], colour=styles[found[0].run_id].colour),
            figures.reliability.bins_table(found),
            f"Reliability on {dataset} (n = {found[0].n:,}) of {of}. Points: accuracy against mean "
            f"confidence of {found[0].n_bins} bins of {text.SCHEMES[found[0].scheme]}, with 95 % "
            "intervals; grey band: where a calibrated model's bins would fall; below: samples by "
            f"confidence. {_errors(found)} {how}",
            wide=340 * min(_ACROSS, len(found)) if len(found) > 1 else 0,
        )
        for dataset, found in diagrams.items()
    ]
    for metric, tail in (("accuracy", ""), ("ece", " The tick is the floor.")):
        made.append(
            Picture(
                f"{metric}-by-shift",
                f"{text.METRICS[metric].title} by shift",
                figures.shifts.dots(data, metric=metric, styles=styles),
                figures.shifts.table(data, metric),
                f"{text.METRICS[metric].title} of {of}; {_sizes(every)}.{tail} {how}",
            )
        )
    if gathered.differences and not gathered.why_none:
        comparison = _comparison(gathered)
        for metric in ("accuracy", "ece"):
            made.append(
                Picture(
                    f"difference-{metric}",
                    f"{text.METRICS[metric].title}: difference to "
                    f"{_label(gathered, gathered.baseline)}",
                    figures.compare.differences(comparison, metric=metric, styles=styles),
                    comparisons.differences(comparison, metric),
                    f"Paired differences to {_label(gathered, gathered.baseline)} on the same "
                    f"samples; {of}; {_sizes(every)}. Filled: the 95 % interval excludes zero. "
                    + ("Of the L2 error with the noise taken out. " if metric == "ece" else "")
                    + how,
                )
            )
    if any(e.corruption for e in every):
        for metric in ("accuracy", "ece"):
            made.append(
                Picture(
                    f"{metric}-by-severity",
                    f"{text.METRICS[metric].title} by severity",
                    figures.shifts.severity_lines(data, metric=metric, styles=styles),
                    figures.shifts.corruptions_table(data, metric),
                    f"{text.METRICS[metric].title} under corruption, severity 0 being the clean "
                    f"images; {of}; {_sizes(every)}. {how}",
                )
            )
    final = [(t.run, t.spectra[-1]) for t in runs if t.spectra and t.spectra[-1].final]
    if final:
        n = ", ".join(f"{c:,}" for c in dict.fromkeys(s.n for _, s in final))
        made.append(
            Picture(
                "singular-values",
                "Singular values",
                figures.spectra.singular_values(final, styles=styles),
                figures.spectra.singular_values_table(final),
                f"Singular values of the covariance of standardised ID features (n = {n}) of {of}. "
                "Ring: σ_min.",
            )
        )
    moving = [(t.run, t.spectra) for t in runs if len(t.spectra) > 1]
    if moving:
        made.append(
            Picture(
                "sigma-min-over-training",
                "σ_min over training",
                figures.spectra.over_steps(moving, styles=styles),
                figures.spectra.table(moving),
                f"σ_min of validation features over training of {of}; ring: the finished model, on "
                "ID test images.",
            )
        )
    return made


def _errors(found: Sequence[Reliability]) -> str:
    each = [
        f"{d.run_name}: {figures.reliability.error_words(d)}, accuracy {text.percent(d.accuracy)}"
        for d in found
    ]
    return "; ".join(each) + "."


def _label(gathered: Gathered, run_id: str) -> str:
    return next(t.run.label for t in gathered.runs if t.run.id == run_id)


def _file(dataset: str) -> str:
    """A data set's name as part of a file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", dataset).strip(".-")[:80] or "data"


def _comparison(gathered: Gathered) -> Comparison:
    """What the charts of differences take, with the labels as names."""

    def column(reported: ReportedRun, found: Sequence[PairedDifference]) -> ComparedRun:
        run = RunSummary(
            id=reported.run.id, name=reported.run.label, phase="SUCCEEDED", method=reported.method,
            model=reported.model, suite=reported.suite, seed=reported.seed or 0, tags=[],
            created_at=datetime.now(UTC), summary=reported.summary,
        )  # fmt: skip
        return ComparedRun(run=run, evaluations=reported.evaluations, differences=list(found))

    return Comparison(
        baseline=gathered.baseline,
        runs=[column(t, gathered.differences.get(t.run.id, ())) for t in gathered.runs],
        parameters={},
    )
