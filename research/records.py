"""What the repository keeps of a suite's confirming runs: one compressed file.

A run's own file has NLL and top confidence (float16) and correctness (a bit) of every image, in
every use: about 1.6 MB, hundreds of them. Every interval needs less, and that is kept here: by
image the mean over runs of NLL and correctness, of every recipe that is compared; by run and set
the means, the ECE, and the debiased squared L2 error with its jackknife over groups of images; and
what a run says of itself.
"""

from __future__ import annotations

import io
import json
import lzma
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.calibration import Binning, TopLabel, ece
from calift_core.calibration.squared import SquaredError
from calift_core.files import atomic_write_bytes
from research.recipes import COMPARED

RECORDS = Path(__file__).with_name("records")
#: Groups of images that the jackknife leaves out, one at a time.
GROUPS = 10
#: Numbers of a run on a set.
NUMBERS = ("nll", "accuracy", "ece", "squared")

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A confirming run's file.

    Attributes:
        about: what it says of itself.
        arrays: `point/use/set/what` → by image.
    """

    about: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @classmethod
    def read(cls, file: Path) -> Run:
        """From `file`."""
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(arrays.pop("about").tobytes())
        return cls(about, arrays)

    def recipes(self) -> Iterator[tuple[str, str]]:
        """Each point and use."""
        seen = dict.fromkeys(tuple(name.split("/")[:2]) for name in self.arrays)
        yield from ((point, use) for point, use in seen)

    def scores(self, point: str, use: str, name: str) -> tuple[Doubles, TopLabel]:
        """NLL (n,) and top-label scores of a set."""
        at = f"{point}/{use}/{name.replace('/', '@')}"
        n = self.about["sizes"][name]
        nll = self.arrays[f"{at}/nll"].astype(np.float64)
        confidence = np.clip(self.arrays[f"{at}/confidence"].astype(np.float64), 0, 1)
        correct = np.unpackbits(self.arrays[f"{at}/correct"], count=n).astype(bool)
        return nll, TopLabel(confidence, correct)


def selection_record(suite: str) -> Path:
    """What the repository keeps of a suite's selection runs."""
    return RECORDS / f"{suite}-selection.json"


def numbers(nll: Doubles, scores: TopLabel) -> tuple[float, float, float, float]:
    """`NUMBERS` of a run on a set."""
    return (
        float(nll.mean()),
        float(scores.correct.mean()),
        float(ece(scores, Binning())),
        squared(scores),
    )


def squared(scores: TopLabel) -> float:
    """Debiased squared L2 calibration error of the top label, 15 bins of equal mass."""
    return float(SquaredError(scores).value)


def left_out(scores: TopLabel) -> Doubles:
    """(G,) the squared error without each group of images, which are dealt in turn."""
    group = np.arange(len(scores.correct)) % GROUPS
    kept = [group != g for g in range(GROUPS)]
    return np.array([squared(TopLabel(scores.confidences[k], scores.correct[k])) for k in kept])


def gather(folder: Path, suite: str, *, target: Path = RECORDS) -> Path:
    """Make the suite's record of the runs in a folder; returns its file.

    A row of which the record has runs that are not in the folder keeps them: the folder's others
    are added to it.
    """
    stored, arrays = _stored(suite, target)
    files = [f for f in sorted(folder.glob("*.npz")) if not f.name.endswith(".part.npz")]
    found = [Run.read(file) for file in files]
    here = {identity(run.about) for run in found}
    older = {run["row"] for run in stored if identity(run) not in here}
    known = {identity(run) for run in stored if run["row"] in older}
    new, new_arrays = _summary([run for run in found if identity(run.about) not in known])
    runs = [run for run in stored if run["row"] in older]
    place = {i: runs.index(run) for i, run in enumerate(stored) if run["row"] in older}
    kept = {at: of for at, of in arrays.items() if at.split("/")[1] in older}
    for at, of in kept.items():
        if at.startswith("runs/"):  # the first column is the run's place in `about`
            of[:, :, 0] = np.vectorize(place.__getitem__)(of[:, :, 0].astype(int))
    merged = dict(kept)
    for at, of in new_arrays.items():
        if at.startswith("runs/"):
            of[:, :, 0] += len(runs)
            merged[at] = np.concatenate([kept[at], of]) if at in kept else of
        elif at in kept:
            key = "runs/" + "/".join(at.split("/")[1:4])
            n, m = len(kept[key]), len(new_arrays[key])
            merged[at] = ((n * kept[at].astype(float) + m * of) / (n + m)).astype(of.dtype)
        else:
            merged[at] = of
    runs += new
    merged["about"] = np.frombuffer(json.dumps({"runs": runs}).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **merged)  # type: ignore[arg-type]
    target.mkdir(parents=True, exist_ok=True)
    out = target / f"{suite}.npz.xz"
    atomic_write_bytes(out, lzma.compress(buffer.getvalue(), preset=6))
    print(f"{out}: {len(runs)} runs, {out.stat().st_size:,} bytes")
    return out


def identity(about: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a run from the others of its suite."""
    return about["row"], about.get("lr"), about.get("seed"), about["pretraining"]


def recorded(suite: str, folder: Path = RECORDS) -> set[tuple[Any, ...]]:
    """Runs that the repository keeps."""
    return {identity(about) for about in _stored(suite, folder)[0]}


def _stored(suite: str, folder: Path) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    return read(suite, folder=folder) if (folder / f"{suite}.npz.xz").is_file() else ([], {})


def _summary(found: list[Run]) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """What is kept of runs: what each says of itself, and the arrays."""
    runs: list[dict[str, Any]] = []
    sums: dict[str, Doubles] = {}
    rows: dict[str, list[list[list[float]]]] = defaultdict(list)
    jackknife: dict[str, Any] = {}
    counts: dict[str, int] = defaultdict(int)
    for run in found:
        runs.append(run.about)
        if run.about.get("diverged"):
            continue
        sets = [name for name in run.about["sizes"] if name != "calibration"]
        for point, use in run.recipes():
            key = f"{run.about['row']}/{point}/{use}"
            by_set, without = [], []
            for name in sets:
                nll, scores = run.scores(point, use, name)
                by_set.append(list(numbers(nll, scores)))
                if run.about["kinds"][name] == "shift":
                    without.append(left_out(scores))
                if (run.about["row"], point, use) not in COMPARED:
                    continue
                for what, values in (("nll", nll), ("correct", scores.correct.astype(float))):
                    at = f"{key}/{name.replace('/', '@')}/{what}"
                    sums[at] = sums.get(at, np.zeros(len(values))) + values
            rows[key].append([[float(len(runs) - 1), *one] for one in by_set])
            jackknife[key] = jackknife.get(key, 0.0) + np.stack(without, axis=1)
            counts[key] += 1
    arrays: dict[str, NDArray[Any]] = {}
    for at, total in sums.items():
        key = "/".join(at.split("/")[:3])
        arrays[f"images/{at}"] = (total / counts[key]).astype(np.float16)
    for key, of in rows.items():
        arrays[f"runs/{key}"] = np.array(of, dtype=np.float32)  # (S, K, 1 + numbers)
        arrays[f"jackknife/{key}"] = (jackknife[key] / counts[key]).astype(np.float32)
    return runs, arrays


def read(suite: str, *, folder: Path = RECORDS) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What each run says of itself, and the arrays."""
    raw = lzma.decompress((folder / f"{suite}.npz.xz").read_bytes())
    with np.load(io.BytesIO(raw), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return json.loads(arrays.pop("about").tobytes())["runs"], arrays
