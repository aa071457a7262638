"""The third study: which runs there are, in which order, and what is kept of them.

    python -m research.study select --out FOLDER --suite letters     # rates, on ID data alone
    python -m research.study gate --out FOLDER --suite letters       # may the suite decide?
    python -m research.study confirm --out FOLDER --suite letters    # the runs that are judged
    python -m research.study derive --out FOLDER --suite letters     # rows made of FLYP's runs
    python -m research.study gather --out FOLDER --suite letters     # into research/records

What is run and how it is judged is in `research/protocol.md`. Runs follow one another in one
process, the most important first; each leaves one file below `--out`/runs, and what has a file is
not run again. Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from calift_core.calibration.means import variance_of_mean
from calift_core.evaluation.path import WeightPath
from calift_core.files import atomic_write_bytes
from calift_core.methods.base import zero_shot_classifier
from calift_core.models.clip import Clip
from calift_core.models.loading import weights_sha256
from research.benches import BENCHES, Bench, Data, load
from research.derived import DERIVED, NEEDED, Finished, made, peers, save_logits
from research.recipes import ZERO_SHOT
from research.records import gather, recorded, selection_record
from research.scoring import uses
from research.training import (
    ask,
    captions_of,
    is_finite,
    sigma_min,
    start,
    tune,
    walk,
)

#: Seeds that rates are chosen with; no result is of them.
SELECTION = (100, 101)
#: Fresh seeds: the even ones start from pre-training 0, the odd ones from 1.
SEEDS = tuple(range(10))
#: Of FLYP where a suite is let in; a rung of the ladder.
GATE_RATE = 3e-4
#: Rates beyond the ladder, in the order in which it is extended.
FINER, COARSER = (3e-5, 1e-5, 3e-6), (3e-3, 1e-2)


@dataclass(frozen=True)
class Row:
    """A way of fine-tuning.

    Attributes:
        name: in tables and files.
        method: as in a spec.
        confidence: of `train.confidence`.
        rate_of: the row whose rate it takes; None: it has a ladder of its own.
    """

    name: str
    method: dict[str, Any]
    confidence: dict[str, float] = field(default_factory=dict)
    rate_of: str | None = None


#: In the order in which they are run: what the claims and the recommendation need comes first.
ROWS = (
    Row("flyp", {"kind": "flyp"}),
    Row("carot", {"kind": "carot"}),
    Row("tracer", {"kind": "tracer"}),
    Row("ft", {"kind": "finetune"}),
    Row("carot-oc", {"kind": "carot", "lambda_sd": 0}, rate_of="carot"),
    Row("carot-sd", {"kind": "carot", "lambda_oc": 0, "lambda_x": 0}, rate_of="carot"),
    Row("lp-ft", {"kind": "lp_ft"}),
    Row("zs-norm", {"kind": "zs_norm"}),
    Row("car-ft", {"kind": "car_ft"}),
    Row("lipsum-ft", {"kind": "lipsum_ft"}),
    Row(
        "ls-entropy",
        {"kind": "finetune"},
        {"label_smoothing": 0.05, "entropy": 0.1},
    ),
)
BY_NAME = {row.name: row for row in ROWS}
#: The row that others are made of.
SOURCE = "flyp"
#: Rows that are run with every seed before any other.
FIRST = ("flyp", "carot", "tracer", "ft")


@dataclass(frozen=True)
class Place:
    """Where a suite's runs lie.

    Attributes:
        bench: the suite.
        out: folder of everything.
    """

    bench: Bench
    out: Path

    @property
    def runs(self) -> Path:
        """Of this suite."""
        return self.out / "runs" / self.bench.name

    def selected(self, row: str, lr: float, seed: int) -> Path:
        """What a selection run leaves."""
        return self.runs / "selection" / f"{row}-{lr:g}-{seed}.json"

    def confirmed(self, row: str, lr: float | None, seed: int) -> Path:
        """What a confirming run leaves."""
        name = row if lr is None else f"{row}-{lr:g}"
        return self.runs / "confirmation" / f"{name}-{seed}.npz"


# ---------------------------------------------------------------------------------- selection


def rates_of(place: Place, row: str) -> dict[float, list[dict[str, Any]]]:
    """Rate → what its selection runs found: those in the repository, and those that lie here."""
    known: dict[tuple[float, int], dict[str, Any]] = {}
    kept = selection_record(place.bench.name)
    own = (place.runs / "selection").glob(f"{row}-[0-9]*.json")
    stored = json.loads(kept.read_text()) if kept.is_file() else []
    for record in (*stored, *(json.loads(file.read_text()) for file in own)):
        if record["row"] == row:
            known[record["lr"], record["seed"]] = record
    found: dict[float, list[dict[str, Any]]] = defaultdict(list)
    for (lr, _), record in sorted(known.items()):
        found[lr].append(record)
    return dict(found)


def own_rate(place: Place, row: str, point: str) -> float | None:
    """The rate with the lowest mean ID validation NLL; None while a selection run is missing.

    Args:
        place: of the runs.
        row: the way of fine-tuning; one without a ladder takes another's rate.
        point: `end` or `path`.
    """
    row = BY_NAME[row].rate_of or row
    found = rates_of(place, row)
    complete = {lr: runs for lr, runs in found.items() if len(runs) == len(SELECTION)}
    if not set(place.bench.rates) <= set(complete):
        return None
    means = {lr: float(np.mean([r[point] for r in runs])) for lr, runs in complete.items()}
    return min(means, key=means.__getitem__)


def next_rates(place: Place, row: str) -> list[float]:
    """Rates that are still to be tried: the ladder, then beyond an end that is the best."""
    found = rates_of(place, row)
    missing = [lr for lr in place.bench.rates if len(found.get(lr, ())) < len(SELECTION)]
    if missing:
        return missing
    wanted = []
    for point in ("end", "path"):
        best = own_rate(place, row, point)
        assert best is not None
        lower = [lr for lr in (*found, *FINER) if lr < best]
        higher = [lr for lr in (*found, *COARSER) if lr > best]
        wanted += [max(lower, default=best), min(higher, default=best)]
    return [lr for lr in dict.fromkeys(wanted) if len(found.get(lr, ())) < len(SELECTION)]


def select_one(
    place: Place,
    data: Data,
    initial: Clip,
    row: Row,
    lr: float,
    seed: int,
    *,
    pretraining: int = 0,
) -> None:
    """A selection run: ID validation alone is looked at; rates are chosen on pre-training 0."""
    spec = place.bench.spec(
        place.out, row.method, lr=lr, seed=seed, pretraining=pretraining, confidence=row.confidence
    )
    tuned = tune(spec, data, initial)
    name = _on(row.name, pretraining)
    record: dict[str, Any] = {"row": name, "lr": lr, "seed": seed}
    if is_finite(tuned):
        captions = captions_of(spec, data, initial)
        path = WeightPath(initial, tuned.clip, tuned.classifier, tuned.head, captions)
        at = walk(path, data)
        record |= {
            "end": at.end,
            "path": at.nll,
            "begin": at.begin,
            "alpha": at.alpha,
            "accuracy": at.accuracy,
            "seconds": round(tuned.seconds, 1),
        }
        by_image = place.selected(name, lr, seed).with_suffix(".npy")
        by_image.parent.mkdir(parents=True, exist_ok=True)
        np.save(by_image, at.images.astype(np.float16))
    else:
        record |= {"end": 1e9, "path": 1e9, "diverged": True}
    _write(place.selected(name, lr, seed), json.dumps(record).encode())
    print(json.dumps(record), flush=True)


def select(place: Place, names: Sequence[str]) -> None:
    """Every selection run that is missing."""
    initial = initial_of(place, 0)
    data = load(place.bench, place.out, initial.preprocess, id_only=True)
    for name in names:
        row = BY_NAME[name]
        while row.rate_of is None and (rates := next_rates(place, name)):
            for lr in rates:
                done = {run["seed"] for run in rates_of(place, name).get(lr, [])}
                for seed in SELECTION:
                    if seed not in done:
                        select_one(place, data, initial, row, lr, seed)
        if row.rate_of is None:
            print(name, *(f"{p}: {own_rate(place, name, p):g}" for p in ("end", "path")))


def gate(place: Place) -> None:
    """Zero-shot and FLYP on ID validation, and zero-shot on the three ID parts."""
    for pretraining in (0, 1):
        if not place.bench.weights(pretraining, place.out).is_file():
            continue
        initial = initial_of(place, pretraining)
        data = load(place.bench, place.out, initial.preprocess, id_only=True)
        spec = place.bench.spec(
            place.out, {"kind": "zero_shot"}, lr=None, seed=0, pretraining=pretraining
        )
        classifier = zero_shot_classifier(initial, captions_of(spec, data, initial))
        parts = ["validation", "calibration", "test"]
        for part, logits in ask(initial, classifier, data, parts).items():
            right = (logits.argmax(axis=1) == data.labels[part]).astype(float)
            variance, _ = variance_of_mean(right, data.groups[part])
            print(
                f"{place.bench.name}, pre-training {pretraining}, {part}: zero-shot "
                f"{100 * right.mean():.1f} % ± {100 * variance**0.5:.1f}, {len(right):,} images",
                flush=True,
            )
        done = {run["seed"] for run in _gate_runs(place, pretraining)}
        for seed in SELECTION:
            if seed not in done:
                row = BY_NAME[SOURCE]
                select_one(place, data, initial, row, GATE_RATE, seed, pretraining=pretraining)
        for run in _gate_runs(place, pretraining):
            begin, _, end = run["accuracy"]
            passed = 0.5 <= begin <= 0.75 and end - begin >= 0.1
            print(
                f"pre-training {pretraining}, seed {run['seed']}, ID validation: zero-shot "
                f"{100 * begin:.1f} %, FLYP at 3e-4 {100 * end:.1f} %: "
                f"{'passes' if passed else 'fails'}"
            )


def _gate_runs(place: Place, pretraining: int) -> list[dict[str, Any]]:
    return rates_of(place, _on(SOURCE, pretraining)).get(GATE_RATE, [])


def _on(row: str, pretraining: int) -> str:
    return row if pretraining == 0 else f"{row}-on-{pretraining}"


# -------------------------------------------------------------------------------- confirmation


@dataclass(frozen=True)
class Cell:
    """A confirming run: its end, the model on its path, or both are judged."""

    row: Row
    lr: float
    seed: int
    points: tuple[str, ...]

    @property
    def pretraining(self) -> int:
        """Which weights it starts from."""
        return self.seed % 2


def cells(place: Place, names: Sequence[str]) -> Iterator[Cell]:
    """Confirming runs in their order: five rows first, then the others, seed by seed."""
    groups = ([n for n in names if n in FIRST], [n for n in names if n not in FIRST])
    for group in groups:
        for seed in SEEDS:
            for name in group:
                by_rate: dict[float, list[str]] = defaultdict(list)
                for point in ("end", "path"):
                    lr = own_rate(place, name, point)
                    if lr is not None:
                        by_rate[lr].append(point)
                for lr, points in by_rate.items():
                    yield Cell(BY_NAME[name], lr, seed, tuple(points))


def confirm(
    place: Place, names: Sequence[str], seeds: Sequence[int] = (), *, again: bool = False
) -> None:
    """Every confirming run that is missing, of all seeds where none are named.

    Args:
        place: of the runs.
        names: of rows.
        seeds: of runs; empty: all.
        again: also those that the repository keeps; what is derived needs FLYP's weights.
    """
    held: dict[int, tuple[Clip, dict[str, np.ndarray]]] = {}
    data: Data | None = None
    every = [c for c in cells(place, names) if c.seed in (seeds or SEEDS)]
    kept = set() if again else recorded(place.bench.name)
    todo = [
        cell
        for cell in every
        if not _file(place, cell).is_file()
        and (cell.row.name, cell.lr, cell.seed, cell.pretraining) not in kept
    ]
    print(f"{len(todo)} confirming runs on {place.bench.name}", flush=True)
    for cell in todo:
        if data is None:
            data = load(place.bench, place.out, initial_of(place, 0).preprocess)
        if cell.pretraining not in held:
            held[cell.pretraining] = _begin(place, data, cell.pretraining)
        confirm_one(place, data, *held[cell.pretraining], cell)


def _file(place: Place, cell: Cell) -> Path:
    return place.confirmed(cell.row.name, cell.lr, cell.seed)


def _begin(place: Place, data: Data, pretraining: int) -> tuple[Clip, dict[str, np.ndarray]]:
    """The initial model and its logits; its own scores are kept too."""
    initial = initial_of(place, pretraining)
    spec = place.bench.spec(
        place.out, {"kind": "zero_shot"}, lr=None, seed=0, pretraining=pretraining
    )
    classifier = zero_shot_classifier(initial, captions_of(spec, data, initial))
    logits = ask(initial, classifier, data, list(data.pixels))
    file = place.confirmed(ZERO_SHOT, None, pretraining)
    if not file.is_file():
        about = {
            "row": ZERO_SHOT,
            "pretraining": pretraining,
            "start_sha256": weights_sha256(initial.net),
            "sigma_min": {"end": sigma_min(initial, data)},
            "groups": {name: of.tolist() for name, of in data.groups.items()},
        }
        write_scores(file, {"end": logits}, None, data, about)
    return initial, logits


def confirm_one(
    place: Place, data: Data, initial: Clip, first: dict[str, np.ndarray], cell: Cell
) -> None:
    """One confirming run, judged once."""
    row = cell.row
    spec = place.bench.spec(
        place.out,
        row.method,
        lr=cell.lr,
        seed=cell.seed,
        pretraining=cell.pretraining,
        confidence=row.confidence,
    )
    tuned = tune(spec, data, initial)
    began = time.process_time()
    about: dict[str, Any] = {
        "row": row.name,
        "lr": cell.lr,
        "seed": cell.seed,
        "pretraining": cell.pretraining,
        "start_sha256": weights_sha256(initial.net),
        "spec_sha256": spec.content_hash(),
        "seconds": {"training": round(tuned.seconds, 1)},
        "sigma_min": {},
    }
    if not is_finite(tuned):
        write_scores(_file(place, cell), {}, None, data, about | {"diverged": True})
        return
    captions = captions_of(spec, data, initial)
    path = WeightPath(initial, tuned.clip, tuned.classifier, tuned.head, captions)
    logits: dict[str, dict[str, np.ndarray]] = {}
    if "end" in cell.points:
        logits["end"] = ask(tuned.clip, tuned.classifier, data, list(data.pixels))
        about["sigma_min"]["end"] = sigma_min(tuned.clip, data)
    if "path" in cell.points:
        at = walk(path, data)
        about |= {"alpha": at.alpha}
        classifier = path.classifier(at.alpha)
        clip = path.move(at.alpha)
        logits["path"] = ask(clip, classifier, data, list(data.pixels))
        about["sigma_min"]["path"] = sigma_min(clip, data)
    about["seconds"]["judging"] = round(time.process_time() - began, 1)
    write_scores(_file(place, cell), logits, first, data, about)
    if row.name == SOURCE and "end" in logits:
        left = left_by(place, cell.lr, cell.seed)
        save_logits(left.logits, logits["end"])
        save_file({k: v.contiguous() for k, v in tuned.clip.net.state_dict().items()}, left.weights)
    seconds = " ".join(f"{k} {v:.0f} s" for k, v in about["seconds"].items())
    print(f"{time.strftime('%H:%M:%S')} {_file(place, cell).name}: {seconds}", flush=True)


def derive(place: Place) -> None:
    """Rows that are made of FLYP's confirming runs, where all that a row needs are there."""
    lr = own_rate(place, SOURCE, "end")
    held: dict[int, tuple[Clip, dict[str, np.ndarray]]] = {}
    data: Data | None = None
    for name in DERIVED:
        for seed in SEEDS if lr is not None else ():
            assert lr is not None
            runs = [left_by(place, lr, p) for p in peers(seed, len(SEEDS))][: NEEDED.get(name, 1)]
            file = place.confirmed(name, None, seed)
            if file.is_file() or not all(r.weights.is_file() for r in runs):
                continue
            if data is None:
                data = load(place.bench, place.out, initial_of(place, 0).preprocess)
            k = seed % 2
            if k not in held:
                held[k] = _begin(place, data, k)
            initial, first = held[k]
            spec = place.bench.spec(
                place.out, {"kind": "zero_shot"}, lr=None, seed=0, pretraining=k
            )
            logits = made(name, runs, initial, captions_of(spec, data, initial), data)
            about = {"row": name, "lr": lr, "seed": seed, "pretraining": k, "sigma_min": {}}
            about["start_sha256"] = weights_sha256(initial.net)
            write_scores(file, {"end": logits}, first, data, about)
            print(f"{time.strftime('%H:%M:%S')} {file.name}", flush=True)


def left_by(place: Place, lr: float, seed: int) -> Finished:
    """Weights and logits that a confirming FLYP run leaves."""
    stem = place.confirmed(SOURCE, lr, seed).with_suffix("")
    return Finished(
        stem.with_name(f"{stem.name}.safetensors"), stem.with_name(f"{stem.name}.logits")
    )


def write_scores(
    file: Path,
    logits: dict[str, dict[str, np.ndarray]],
    first: dict[str, np.ndarray] | None,
    data: Data,
    about: dict[str, Any],
) -> None:
    """One file a run: NLL and top confidence in float16, correctness in bits, by point and use."""
    arrays: dict[str, np.ndarray] = {}
    chosen: dict[str, str] = {}
    for point, own in logits.items():
        for used in uses(own, first, data.labels):
            chosen[f"{point}/{used.use}"] = used.calibrator
            for name, scores in used.scores.items():
                at = f"{point}/{used.use}/{name.replace('/', '@')}"
                arrays[f"{at}/nll"] = scores.nll
                arrays[f"{at}/confidence"] = scores.confidence
                arrays[f"{at}/correct"] = np.packbits(scores.correct)
    about = about | {
        "calibrators": chosen,
        "sizes": {n: len(of) for n, of in data.labels.items()},
        "kinds": data.kinds,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.npz")
    np.savez_compressed(part, about=text, **arrays)
    os.replace(part, file)


def initial_of(place: Place, pretraining: int) -> Clip:
    """The model that fine-tuning starts from."""
    spec = place.bench.spec(
        place.out, {"kind": "zero_shot"}, lr=None, seed=0, pretraining=pretraining
    )
    return start(spec)


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(file, content)


# --------------------------------------------------------------------------------------- command


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("select", "gate", "confirm", "derive", "gather"))
    parser.add_argument("--out", type=Path, required=True, help="folder of weights and runs")
    parser.add_argument("--suite", choices=BENCHES, required=True)
    parser.add_argument("--rows", default=",".join(BY_NAME))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="of confirm")
    parser.add_argument(
        "--again", action="store_true", help="confirm also what the repository keeps"
    )
    options = parser.parse_args(arguments)
    place = Place(BENCHES[options.suite], options.out)
    names = options.rows.split(",")
    if options.what == "gather":
        names = [*BY_NAME, _on(SOURCE, 1)]
        every = [run for row in names for of in rates_of(place, row).values() for run in of]
        lines = ",\n".join(json.dumps(run) for run in every)
        _write(selection_record(options.suite), f"[\n{lines}\n]\n".encode())
        gather(place.runs / "confirmation", options.suite)
        return
    if options.what in ("gate", "derive"):
        {"gate": gate, "derive": derive}[options.what](place)
        return
    if options.what == "select":
        select(place, names)
    else:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        confirm(place, names, seeds, again=options.again)


if __name__ == "__main__":
    sys.exit(main())
