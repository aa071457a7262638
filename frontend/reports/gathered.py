"""What a report is made of: runs of a service, or folders of finished runs, asked alike."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calift_core.analysis.comparer import Comparer
from calift_core.analysis.explorer import Explorer
from calift_core.analysis.folder import FolderLibrary
from calift_core.analysis.library import Subject
from calift_core.analysis.report import read_report
from calift_core.client import Client
from calift_core.errors import DataError, ServiceError, SpecError
from calift_core.schema.report import Report, Summary
from calift_core.schema.wire.answers import Board, Standing
from calift_core.schema.wire.queries import CompareQuery, LeadersQuery
from calift_core.schema.wire.results import Evaluation, PairedDifference, Reliability, Spectrum
from calift_core.schema.wire.runs import RunDetail
from frontend import text
from frontend.figures.style import PALETTE, RunStyle, run_styles
from frontend.tables import Run
from frontend.text import labels

#: Runs that one report takes: as many as there are colours that can be told apart.
MOST = len(PALETTE)


@dataclass(frozen=True)
class ReportedRun:
    """One finished run and what it says of itself; numbers are those that the API gives.

    Attributes:
        run: its id and the label that tells it from the others.
        source: where it is: an address of a service, or a folder.
        model: `name/weights`.
        seed: of its training; None where it was made elsewhere.
        color_index: its place among the runs of its suite, which its colour is made from.
        evaluations: in the order of `text.evaluation_order`.
        spectra: by step, the finished model's last.
        report: its `report.json`; None where the service has none.
        diagram: gives the reliability diagram of an evaluation.
    """

    run: Run
    source: str
    method: str
    model: str
    suite: str
    seed: int | None
    color_index: int | None
    summary: Summary | None
    evaluations: list[Evaluation]
    spectra: list[Spectrum]
    report: Report | None
    diagram: Callable[[Evaluation], Reliability]


@dataclass(frozen=True)
class Gathered:
    """Several runs, and what is known of them together.

    Attributes:
        runs: in the order that was asked for.
        baseline: id of the run that differences are to.
        differences: run id → that run minus the baseline, on the samples that both saw.
        boards: the runs by their means, which overall answers come from.
        why_none: why there are no differences, in a sentence; empty where there are some.
    """

    runs: list[ReportedRun]
    baseline: str
    differences: Mapping[str, Sequence[PairedDifference]] = field(default_factory=dict)
    why_none: str = ""
    boards: Sequence[Board] = ()

    @property
    def styles(self) -> dict[str, RunStyle]:
        """The looks of the runs: as on the pages, where the service gave them."""
        known = {
            t.run.id: t.color_index % len(PALETTE) for t in self.runs if t.color_index is not None
        }
        return run_styles([t.run.id for t in self.runs], known)


def from_service(
    client: Client, run_ids: Sequence[str], *, baseline: str | None = None, paired: bool = True
) -> Gathered:
    """Ask a service.

    Args:
        baseline: one of them; None: the zero-shot one, else the first.
        paired: ask for the differences between them, which may take seconds.

    Raises:
        SpecError: no run, too many, or one that has not finished.
        ServiceError: the service does not give what is asked.
    """
    ids = _bounded(run_ids)
    details = [client.run(run_id) for run_id in ids]
    for detail in details:
        if detail.phase != "SUCCEEDED":
            raise SpecError(
                f"a report is of finished runs; {detail.id} ({detail.name}) is {detail.phase}."
            )
    names = labels(details, whole=True)
    reported = [_reported(client, detail, names[detail.id]) for detail in details]
    base = _baseline(reported, baseline)
    if len(reported) < 2 or not paired:
        return Gathered(reported, base, why_none="Only one run is in this report.")
    found = client.compare(run_id=ids, baseline=base)
    differences = {c.run.id: c.differences for c in found.runs if c.run.id != base}
    boards = client.leaders(run_id=ids).boards
    return Gathered(
        reported, base, differences, "" if any(differences.values()) else _NO_PAIRS, boards
    )


_NO_PAIRS = "The runs share no samples of the same data set."


def from_folders(folders: Sequence[Path], *, baseline: str | None = None) -> Gathered:
    """Read folders of finished runs, as `calift train` and `import-predictions --out` leave them.

    Args:
        folders: each holds `report.json` and `predictions/`.
        baseline: one of the folders, as given; None: the zero-shot one, else the first.

    Raises:
        SpecError: no folder, or too many.
        DataError: a folder is not one of a finished run.
        PredictionsError: predictions cannot be read.
    """
    paths = [Path(p) for p in _bounded([str(folder) for folder in folders])]
    library = FolderLibrary()
    explorer = Explorer(library)
    reports = [read_report(path) for path in paths]
    same = len({report.name for report in reports}) < len(reports)
    reported = [
        _read(
            path, report, f"{report.name} ({path.name})" if same else report.name, explorer, library
        )
        for path, report in zip(paths, reports, strict=True)
    ]
    wanted = None if baseline is None else _folder_id(Path(baseline))
    base = _baseline(reported, wanted)
    if len(reported) < 2:
        return Gathered(reported, base, why_none="Only one run is in this report.")
    ids = {str(path): t.run.id for t, path in zip(reported, paths, strict=True)}
    comparer = Comparer(library, explorer)
    own = next(place for place, run_id in ids.items() if run_id == base)
    found = comparer.compare(CompareQuery.of(params={"run_id": list(ids), "baseline": own}))
    differences = {ids[c.run.id]: c.differences for c in found.runs if c.run.id != own}
    boards = [
        board.model_copy(update={"standings": [_renamed(s, ids) for s in board.standings]})
        for board in comparer.leaders(LeadersQuery.of(params={"run_id": list(ids)})).boards
    ]
    return Gathered(
        reported, base, differences, "" if any(differences.values()) else _NO_PAIRS, boards
    )


def _renamed(standing: Standing, ids: Mapping[str, str]) -> Standing:
    reach = {ids[place]: width for place, width in standing.reach.items()}
    return standing.model_copy(update={"run_id": ids[standing.run_id], "reach": reach})


def _bounded(names: Sequence[str]) -> list[str]:
    distinct = list(dict.fromkeys(names))
    if not 1 <= len(distinct) <= MOST:
        raise SpecError(f"a report takes 1 to {MOST} runs, got {len(distinct)}.")
    return distinct


def _baseline(reported: Sequence[ReportedRun], baseline: str | None) -> str:
    ids = [t.run.id for t in reported]
    if baseline is not None and baseline not in ids:
        raise SpecError("the baseline must be one of the report's runs.")
    return baseline or next((t.run.id for t in reported if t.method == "zero_shot"), ids[0])


def _reported(client: Client, run: RunDetail, label: str) -> ReportedRun:
    try:
        report = client.report(run.id)
    except ServiceError as error:
        if error.status != 404:
            raise
        report = None
    evaluations = client.run_evaluations(run.id)
    return ReportedRun(
        run=Run(run.id, label),
        source=f"{client.base_url} · run {run.id}",
        method=run.method,
        model=run.model,
        suite=run.suite,
        seed=None if run.method == "imported" else run.seed,
        color_index=run.color_index,
        summary=run.summary,
        evaluations=sorted(evaluations, key=text.evaluation_order),
        spectra=client.spectra(run.id),
        report=report,
        diagram=lambda evaluation: client.reliability(evaluation.id).model_copy(
            update={"run_name": label}
        ),
    )


# ---- Folders.


def _folder_id(path: Path) -> str:
    """A folder's id: the same for the same place, however it is spelled."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]


def _read(
    path: Path, report: Report, label: str, explorer: Explorer, library: FolderLibrary
) -> ReportedRun:
    run_id = _folder_id(path)
    spec: Mapping[str, Any] = report.spec
    method = str(spec.get("method", {}).get("kind", "imported"))
    model = spec.get("model") or {}
    made = datetime.fromtimestamp((path / "report.json").stat().st_mtime, UTC)
    evaluations = [
        Evaluation(
            id=f"{run_id}/{e.dataset}",
            run_id=run_id,
            run_name=label,
            method=method,
            created_at=made,
            **e.model_dump(),
        )
        for e in report.evaluations
    ]
    subjects: dict[str | None, Subject] = {}

    def diagram(evaluation: Evaluation) -> Reliability:
        if not subjects:
            subjects.update({s.source.dataset: s for s in library.tested(str(path))})
        if evaluation.dataset not in subjects:
            raise DataError(f"{str(path)!r} holds no predictions of {evaluation.dataset!r}.")
        found = explorer.reliability(subjects[evaluation.dataset])
        return found.model_copy(
            update={
                "run_id": run_id,
                "run_name": label,
                "method": method,
                "evaluation_id": evaluation.id,
            }
        )

    spectra = [] if report.spectrum is None else [
        Spectrum(run_id=run_id, step=0, final=True, **report.spectrum.model_dump())
    ]  # fmt: skip
    return ReportedRun(
        run=Run(run_id, label),
        source=str(path),
        method=method,
        model="/".join(str(model[k]) for k in ("name", "pretrained") if model.get(k)),
        suite=str((spec.get("suite") or {}).get("id", "")),
        seed=None if method == "imported" else (spec.get("train") or {}).get("seed"),
        color_index=None,
        summary=report.summary,
        evaluations=sorted(evaluations, key=text.evaluation_order),
        spectra=spectra,
        report=report,
        diagram=diagram,
    )
