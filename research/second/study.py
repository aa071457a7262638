"""The second study: how it is run, and the small records that it leaves.

    python -m research.second.study --out results/study         # everything that is not finished
    python -m research.second.study --out results/study --plan  # only say what that would be
    python -m research.second.study --out results/study --suites typefaces

What is run and how it is judged is in `research/second/protocol.md`. A run lives in a folder below
`--out`, and what is kept of it for good is a record of some kilobytes (`records/`).
A run with a record is not run again, wherever the record came from; the tables that need every
image's prediction say which of the runs are elsewhere. Runs follow one another in one process, the
rows that the verdict needs before the others. Killed, it goes on where it was. The suites whose
shifts are styles must lie in `--out`/suites: `research/make_suites.py` draws them. Pre-training
gives other bits on another kind of processor, and rows of two pre-trainings are not compared: runs
from other weights than those of the records are refused, and go into records of their own
(`--records research/second/records/again`).

Long, because what is run, what is kept of it and in which order are read together.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tarfile
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calift_core.analysis.calibrators import calibrated_scores, fit_calibrator, read_to_fit
from calift_core.calibration import INITIAL_MODEL_CALIBRATORS, SampleScores, score_probs, softmax
from calift_core.calibration.bundle import ece_report
from calift_core.calibration.calibrators import Calibrator
from calift_core.calibration.measures import accuracy, nll
from calift_core.calibration.squared import SquaredError
from calift_core.errors import CaliftError
from calift_core.files import atomic_write_bytes
from calift_core.jobs.folder import run_in_folder
from calift_core.predictions.read import read_metadata, read_predictions
from calift_core.schema.spec import RunSpec, parse_spec
from research.benches import CORRUPTIONS


def unpacked(packed: Path = Path(__file__).parent / "records") -> Path:
    """The folder of the records, unpacked from one file a suite when they are first asked for."""
    folder = packed / "unpacked"
    for file in sorted(packed.glob("*.tar.xz")):
        done = folder / f".{file.name}"
        if not done.is_file():
            with tarfile.open(file) as archive:
                archive.extractall(folder, filter="data")
            done.touch()
    return folder


RECORDS = unpacked()
SEEDS = tuple(range(5))
LADDER = (3e-5, 1e-4, 3e-4)
BATCH = 64
#: Published calibrators: the best of them is chosen on ID validation, row by row.
PUBLISHED = ("temperature", "vector", "svs", "sms", "histogram", "isotonic", "sals")
OURS = "disagreement"
#: Ours with b ≥ 0: a row beside, of which the criterion does not speak.
CAUTIOUS = "cautious"
#: Not a calibrator by the letter, for predictions change: a row of its own, of each trained one.
ENSEMBLE = "ensemble"

#: Trained rows: label → method.
TRAINED: dict[str, dict[str, Any]] = {
    "FT": {"kind": "finetune"},
    "FLYP": {"kind": "flyp"},
    "CaRot": {"kind": "carot"},
    "TRACER": {"kind": "tracer"},
    "FLYP, anchored": {"kind": "anchored"},
    "FLYP, averaged": {"kind": "averaged"},
    "ZS-Norm": {"kind": "zs_norm"},
}
#: Rows that take the one-standard-error path of a trained one.
PATHS = {f"{label}, path": label for label in ("FT", "FLYP", "CaRot", "TRACER")}
#: Rows that the verdict is about.
JUDGED = {"FLYP", "CaRot", "TRACER", "FLYP, path", "CaRot, path"}
#: Rows that are made of finished runs of `OF`, at its own rate.
OF = "FLYP"
MERGED: dict[str, dict[str, Any]] = {
    "WiSE-FT": {"kind": "wise_ft", "alpha": 0.5, "sweep": []},
    "Model Stock": {"kind": "model_stock"},
    "VRF": {"kind": "vrf"},
    "DaWin": {"kind": "dawin"},
}
#: Rates that are tried too where a method's best of the ladder is at its end.
BEYOND = {LADDER[0]: 1e-5, LADDER[-1]: 1e-3}


@dataclass(frozen=True, eq=False)
class Bench:
    """A suite of the study, and the model that is fine-tuned on it.

    Attributes:
        name: of the suite.
        suite: as in a spec; `{out}` stands for the folder of the runs.
        weights: of `calift-tiny`, likewise.
        epochs: of fine-tuning.
        styled: whether its shifts are its test images in other styles, and so of one population.
    """

    name: str
    suite: Mapping[str, Any]
    weights: str
    epochs: int
    styled: bool = False


def _styled(name: str, epochs: int) -> Bench:
    folder = "{out}/suites/" + name
    return Bench(
        name,
        {
            "id": f"manifest:{folder}/suite.csv",
            "templates": "plain",
            "corruptions": {**CORRUPTIONS, "limit": 500},
        },
        f"{folder}/model.safetensors",
        epochs,
        styled=True,
    )


BENCHES = {
    "typefaces": Bench(
        "typefaces", {"id": "typefaces", "corruptions": CORRUPTIONS}, "typefaces", epochs=2
    ),
    "fashion-mnist": _styled("fashion-mnist", epochs=1),
    "cifar10": _styled("cifar10", epochs=1),
    "caltech101": _styled("caltech101", epochs=5),
}


@dataclass(frozen=True)
class Cell:
    """One run: a row of a suite at a rate with a seed."""

    bench: Bench
    label: str
    lr: float | None = None
    seed: int = 0
    inputs: tuple[Cell, ...] = field(default=(), compare=False)

    @property
    def row(self) -> str:
        """Its label, as in file names."""
        return self.label.lower().replace(",", "").replace(" ", "-")

    @property
    def name(self) -> str:
        """As in file names."""
        return self.row if self.lr is None else f"{self.row}-{self.lr:g}-{self.seed}"

    def folder(self, out: Path) -> Path:
        """Of the run."""
        return out / self.bench.name / self.name

    def record(self, records: Path) -> Path:
        """What is kept of it."""
        return records / self.bench.name / f"{self.name}.json"

    def method(self, out: Path) -> dict[str, Any]:
        """As in a spec."""
        at = [str(run.folder(out).absolute()) for run in self.inputs]
        if self.label in PATHS:
            path = {"kind": "wise_ft", "choose": "one_se", "alpha": 1.0, "sweep": []}
            return {**path, "run": at[0]}
        if self.label in MERGED:
            named = {"runs": at} if len(at) > 1 else {"run": at[0]}
            return {**MERGED[self.label], **named}
        return TRAINED.get(self.label, {"kind": "zero_shot"})

    def spec(self, out: Path) -> RunSpec:
        """What is asked."""
        place = str(out.absolute())
        suite = {**self.bench.suite, "id": self.bench.suite["id"].format(out=place)}
        train = {
            "epochs": self.bench.epochs,
            "batch_size": BATCH,
            "lr": self.lr,
            "seed": self.seed,
            "crop_scale": [1.0, 1.0],
            "spectrum_every_epochs": 0,
            "cache_images": True,
            "checkpoint_every_steps": 10**6,
            "keep_features": 0,
        }
        return parse_spec(
            {
                "name": f"{self.name} on {self.bench.name}",
                "model": {
                    "name": "calift-tiny",
                    "pretrained": self.bench.weights.format(out=place),
                },
                "method": self.method(out),
                "suite": suite,
                "train": train,
                "evaluation": {"precision": "train"},
            }
        )


def cells(bench: Bench) -> Iterator[Cell]:
    """Every run of a suite along the ladder."""
    yield Cell(bench, "zero-shot")
    for seed in SEEDS:
        for lr in LADDER:
            trained = {label: Cell(bench, label, lr, seed) for label in TRAINED}
            yield from trained.values()
            for label, of in PATHS.items():
                yield Cell(bench, label, lr, seed, (trained[of],))


def later(bench: Bench, records: Path) -> Iterator[Cell]:
    """Runs that depend on what the others showed on ID validation, when all seeds are there."""
    found = stored(cells(bench), records)
    own = own_rates(found)
    for label in TRAINED:
        if _is_complete(found, label) and own[label] in BEYOND:
            lr = BEYOND[own[label]]
            for seed in SEEDS:
                run = Cell(bench, label, lr, seed)
                yield run
                yield from (Cell(bench, p, lr, seed, (run,)) for p, of in PATHS.items()
                            if of == label)  # fmt: skip
    if not _is_complete(found, OF):
        return
    beyond = [Cell(bench, OF, BEYOND[own[OF]], seed) for seed in SEEDS if own[OF] in BEYOND]
    if not all(run.record(records).is_file() for run in beyond):
        return
    lr = own_rates([*found, *stored(beyond, records)])[OF]
    for seed in SEEDS:
        one, next_one = (Cell(bench, OF, lr, (seed + more) % len(SEEDS)) for more in (0, 1))
        for label in MERGED:
            inputs = (one, next_one) if label == "Model Stock" else (one,)
            yield Cell(bench, label, lr, seed, inputs)


def in_order(bench: Bench, records: Path) -> Iterator[Cell]:
    """Every run of a suite, some twice: what the verdict needs first, rates beyond among it."""
    yield from (cell for cell in cells(bench) if cell.label in {"zero-shot", *JUDGED})
    yield from (cell for cell in later(bench, records) if cell.label in JUDGED)
    yield from cells(bench)
    yield from later(bench, records)


def _is_complete(found: Sequence[Mapping[str, Any]], label: str) -> bool:
    return sum(r["row"] == label for r in found) == len(SEEDS) * len(LADDER)


def stored(some: Iterable[Cell], records: Path) -> list[dict[str, Any]]:
    """The records of those runs that have one."""
    files = (cell.record(records) for cell in some)
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def own_rates(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Row → the rate with the lowest ID validation NLL after an ID temperature, over all seeds."""
    scores: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["lr"] is not None and "numbers" in record:
            of = record["numbers"]["temperature"]
            (name,) = (n for n, role in record["roles"].items() if role == "validation")
            scores[record["row"]][record["lr"]].append(of[name]["nll"])
    return {row: min(of, key=lambda lr: float(np.mean(of[lr]))) for row, of in scores.items()}


# ------------------------------------------------------------------------------------ judging


def predictions_of(folder: Path) -> dict[str, Path]:
    """Data set → predictions file of a finished run."""
    return {read_metadata(file).dataset: file for file in sorted(folder.glob("predictions/*"))}


@dataclass(frozen=True)
class Judged:
    """Scores of a finished run, raw and after each calibrator.

    Attributes:
        scores: calibrator, `raw` among them → data set → scores.
        roles: data set → role.
        parameters: calibrator → what was fitted.
    """

    scores: dict[str, dict[str, SampleScores]]
    roles: dict[str, str]
    parameters: dict[str, Any]

    @property
    def validation(self) -> str:
        """The ID validation set."""
        return next(name for name, role in self.roles.items() if role == "validation")

    @property
    def published(self) -> str:
        """The published calibrator, or none, with the lowest NLL on ID validation."""
        known = [name for name in ("raw", *PUBLISHED) if name in self.scores]
        return min(known, key=lambda name: nll(self.scores[name][self.validation]))


def judge(folder: Path, initial: Path) -> Judged:
    """Fit every calibrator on ID calibration images, and score every set through it."""
    own, first = predictions_of(folder), predictions_of(initial)
    roles = {name: read_metadata(file).role for name, file in own.items()}
    at = next(name for name, role in roles.items() if role == "calibration")
    fitted: dict[str, Calibrator] = {}
    parameters: dict[str, Any] = {}
    for kind in (*PUBLISHED, OURS, CAUTIOUS, ENSEMBLE):
        calibrator, told = fit_calibrator(
            kind, [read_to_fit(own[at])], oracle=False, initial=_initial(kind, first[at])
        )
        fitted[kind] = calibrator
        if kind in ("temperature", OURS, CAUTIOUS):
            parameters[kind] = told.parameters
    scores: dict[str, dict[str, SampleScores]] = {kind: {} for kind in ("raw", *fitted)}
    for name, file in own.items():
        if roles[name] == "calibration":
            continue
        found = calibrated_scores(file, list(fitted.values()), initial=first[name])
        raw = read_predictions(file)
        scores["raw"][name] = score_probs(softmax(raw.logits), raw.labels)
        for kind, one in zip(fitted, found, strict=True):
            scores[kind][name] = one
    return Judged(scores, roles, parameters)


def _initial(kind: str, file: Path) -> Any:
    return read_predictions(file) if kind in INITIAL_MODEL_CALIBRATORS else None


def numbers(scores: SampleScores) -> dict[str, float]:
    """What a record says of a set."""
    ece = ece_report(scores, n_resamples=100)
    found = {
        "accuracy": accuracy(scores),
        "nll": nll(scores),
        "squared": SquaredError(scores).value,
        "ece": ece["value"],
        "floor": ece["null_mean"],
        "confidence": float(scores.confidences.mean()),
    }
    return {key: round(float(value), 5) for key, value in found.items()}  # type: ignore[arg-type]


def record_of(
    cell: Cell, folder: Path, judged: Judged, processor_s: float | None = None
) -> dict[str, Any]:
    """What is kept of a run; `processor_s` is what all of it took, where this process made it."""
    report = json.loads((folder / "report.json").read_text())
    timings = report["timings_s"]
    if processor_s is not None:
        timings["processor_s"] = processor_s
    return {
        "suite": cell.bench.name,
        "row": cell.label,
        "lr": cell.lr,
        "seed": cell.seed,
        "spec_sha256": report["spec_sha256"],
        "start_sha256": report["model"]["start_sha256"],
        "sha256": report["model"]["sha256"],
        "alpha": report["resolved"].get("alpha"),
        "sigma_min": report["summary"]["sigma_min"],
        "published": judged.published,
        "parameters": judged.parameters,
        "roles": judged.roles,
        "seconds": {key: round(timings[key], 2) for key in sorted(timings)},
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "numbers": {
            kind: {name: numbers(one) for name, one in of.items()}
            for kind, of in judged.scores.items()
        },
    }


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """A key a line, and a line for each calibrator's numbers: small, and easy to compare."""
    lines = [f"{json.dumps(key)}: {json.dumps(record[key])}" for key in record if key != "numbers"]
    numbers = record.get("numbers", {})
    rows = [f"{json.dumps(kind)}: {json.dumps(of)}" for kind, of in numbers.items()]
    if rows:
        lines.append('"numbers": {\n' + ",\n".join(rows) + "\n}")
    atomic_write_bytes(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


# ------------------------------------------------------------------------------------ running


def _run(cell: Cell, out: Path) -> None:
    deque(run_in_folder(cell.spec(out), cell.folder(out)), maxlen=0)


def work(cell: Cell, out: Path, records: Path) -> None:
    """Run a cell unless its report is there, and write its record."""
    folder, kept = cell.folder(out), cell.record(records)
    kept.parent.mkdir(parents=True, exist_ok=True)
    began, processor_s = time.monotonic(), None
    try:
        if not (folder / "report.json").is_file():
            start = sum(os.times()[:4])  # of its loaders too
            _run(cell, out)
            processor_s = sum(os.times()[:4]) - start
    except CaliftError as error:
        if error.code != "NAN_LOSS":
            raise
        asked = {"suite": cell.bench.name, "row": cell.label, "lr": cell.lr, "seed": cell.seed}
        write_record(kept, {**asked, "diverged": str(error)})
        return
    initial = Cell(cell.bench, "zero-shot").folder(out)
    judged = judge(folder, initial)
    write_record(kept, record_of(cell, folder, judged, processor_s))
    if processor_s is not None:
        _let_go(cell, out)
    cpu = "" if processor_s is None else f", {processor_s:.0f} s of a processor before its judging"
    print(f"{cell.bench.name} {cell.name}: {time.monotonic() - began:.0f} s{cpu}", flush=True)


def begin(bench: Bench, out: Path, records: Path) -> None:
    """Have the suite's zero-shot run in `out`: every other is judged beside its predictions.

    Raises:
        SystemExit: it is another model than the one that the records begin with.
    """
    cell = Cell(bench, "zero-shot")
    report, kept = cell.folder(out) / "report.json", cell.record(records)
    if not kept.is_file():
        work(cell, out, records)
        return
    if not report.is_file():
        _run(cell, out)
    here = json.loads(report.read_text())["model"]["start_sha256"]
    if here != (there := json.loads(kept.read_text())["start_sha256"]):
        raise SystemExit(
            f"{bench.name}: the model in {out} is {here[:12]}, and the runs in {records} begin "
            f"with {there[:12]}. Rows of two pre-trainings are not compared: give a folder of its "
            "own with --records."
        )


def _have_weights(cell: Cell, out: Path, records: Path) -> None:
    """Make a run once more whose weights are elsewhere, or were let go, and say if they differ."""
    folder = cell.folder(out)
    if (folder / "checkpoint" / "model.safetensors").is_file():
        return
    if (folder / "report.json").is_file():
        shutil.rmtree(folder)
    _run(cell, out)
    here = json.loads((folder / "report.json").read_text())["model"]["sha256"]
    kept = stored([cell], records)
    there = kept[0].get("sha256") if kept else here
    as_kept = "as the record says" if here == there else f"not the record's, {there}: {here}"
    print(f"{cell.bench.name} {cell.name} once more: weights {as_kept}", flush=True)


def _let_go(cell: Cell, out: Path) -> None:
    """Remove weights that no row is made of any more; those of `OF` stay."""
    for run in (cell, *cell.inputs):
        waits = run.label in PATHS.values() and run is cell
        if run.label not in (OF, "zero-shot") and not waits:
            (run.folder(out) / "checkpoint" / "model.safetensors").unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/study"))
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--suites", default=",".join(BENCHES))
    parser.add_argument("--rows", help="of these alone, as in file names: zero-shot,flyp,ft")
    parser.add_argument("--plan", action="store_true", help="only say what would be run")
    parser.add_argument(
        "--anew", action="store_true", help="make the records of the runs in --out anew"
    )
    options = parser.parse_args(arguments)
    benches = [BENCHES[name] for name in options.suites.split(",")]
    if options.anew:
        for bench in benches:
            for cell in (*cells(bench), *later(bench, options.records)):
                if (cell.folder(options.out) / "report.json").is_file():
                    work(cell, options.out, options.records)
        return
    rows = options.rows and options.rows.split(",")

    def is_due(cell: Cell) -> bool:
        wanted = not rows or cell.row in rows
        return wanted and not cell.record(options.records).is_file()

    todo = [c for bench in benches for c in cells(bench) if is_due(c)]
    todo += [c for bench in benches for c in later(bench, options.records) if is_due(c)]
    print(f"{len(todo)} runs, about {len(todo) * 75 / 3600:.1f} hours of one core.", flush=True)
    if options.plan:
        return
    for bench in benches:
        begun = False
        for cell in in_order(bench, options.records):
            if is_due(cell) and not begun:
                begin(bench, options.out, options.records)
                begun = True
            if is_due(cell):  # another process may have made it
                for run in cell.inputs:
                    _have_weights(run, options.out, options.records)
                work(cell, options.out, options.records)


if __name__ == "__main__":
    sys.exit(main())
