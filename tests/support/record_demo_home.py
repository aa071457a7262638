"""Record what `make demo` leaves, for the tests that open every page on it.

::

    python -m tests.support.record_demo_home            runs the demo, some minutes
    python -m tests.support.record_demo_home HOME       a demo's CALIFT_HOME that is there already

Packs every run of the demo into `tests/data/demo-home.tar.xz`: the database, each run's reports and
predictions. It is small enough for git: of each data set a few images a class are kept, the same
for all runs, with logits and features rounded, and what is said of them is computed anew from
these. The models' weights stay out, and so do the features of all runs but one.
"""

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from backend.storage.artifacts import ArtifactStore
from calift_core.analysis.report import summarise
from calift_core.calibration import evaluate_all
from calift_core.evaluation.path import point_of
from calift_core.files import sha256_file
from calift_core.predictions.read import read_predictions
from calift_core.predictions.rows import read_features
from calift_core.predictions.training import TRAINING_IMAGES
from calift_core.predictions.types import Predictions
from calift_core.predictions.write import write_predictions
from calift_core.schema.report import EvaluationReport

PACKED = Path(__file__).parents[1] / "data" / "demo-home.tar.xz"
#: Images of a class that are kept by role: a threshold needs many to be chosen on.
MOST = {"calibration": 16, "shift": 3}
OTHERS = 6
#: The run whose features are kept: of its images and of training images.
FEATURED = "CaRot"
#: Values are rounded to multiples of these.
LOGIT, FEATURE = 1 / 8, 1 / 64
#: Larger files are left out: weights, and the features of other runs' training images.
LARGEST = 100_000
#: Of a service that runs; nothing of it is about a run.
_VOLATILE = ("outbox", "sessions", "tokens", "turns", "audit", "chores", "workers")


def run_demo(home: Path) -> None:
    """The demo as `make demo` runs it, ended when its report is there."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith("CALIFT_")}
    ports = ["--api-port", "0", "--dashboard-port", "0"]
    subprocess.run(
        [sys.executable, "-m", "calift", "demo", "--headless", *ports]
        + ["--out", str(home.with_name("demo-report"))],
        env=kept | {"CALIFT_HOME": str(home)},
        check=True,
    )


def trimmed(given: Predictions) -> Predictions:
    """Some images of each class, the same in every run, with rounded logits and features."""
    most = MOST.get(given.metadata.role, OTHERS)
    order = np.argsort(given.ids)
    kept = [
        own[np.linspace(0, len(own) - 1, min(most, len(own))).astype(int)]
        for label in np.unique(given.labels)
        if len(own := order[given.labels[order] == label])
    ]
    places = np.sort(np.concatenate(kept))
    features = given.features
    return replace(
        given,
        ids=given.ids[places],
        labels=given.labels[places],
        logits=_rounded(given.logits[places], LOGIT),
        features=None if features is None else _rounded(features[places], FEATURE),
    )


def _rounded(values: Any, step: float) -> Any:
    return (np.round(values.astype(np.float32) / step) * step).astype(values.dtype)


class Recorder:
    """Copies a home, with less in its predictions."""

    def __init__(self, source: Path, target: Path) -> None:
        self.source = ArtifactStore(source / "artifacts")
        self.target = ArtifactStore(target / "artifacts")
        shutil.copy(source / "calift.db", target / "calift.db")
        self.database = sqlite3.connect(target / "calift.db")

    def record(self) -> None:
        """Every run, and what is said of its images."""
        with closing(self.database):
            for table in _VOLATILE:
                self.database.execute(f"DELETE FROM {table}")
            self.database.execute("UPDATE runs SET owner = 'worker'")
            for run_id, name in self._rows("SELECT id, name FROM runs"):
                self._run(run_id, featured=name == FEATURED)
            self.database.commit()
            self.database.execute("VACUUM")

    def _rows(self, query: str, *values: Any) -> list[Any]:
        return self.database.execute(query, values).fetchall()

    def _run(self, run_id: str, *, featured: bool) -> None:
        (body,) = self._rows("SELECT body FROM reports WHERE run_id = ?", run_id)[0]
        report = json.loads(body)
        evaluated = {one["dataset"]: one for one in report["evaluations"]}
        for name, sha256, size in self._rows(
            "SELECT name, sha256, size_bytes FROM artifacts WHERE run_id = ?", run_id
        ):
            path = self.source.path(sha256)
            if name.startswith("predictions/"):
                whole = read_predictions(path)
                if featured:
                    whole = replace(whole, features=read_features(path))
                self._predictions(run_id, name, whole, evaluated)
            elif name.endswith("prompts.npz"):
                self._rounded(run_id, name, path, "heads")
            elif name.endswith(TRAINING_IMAGES) and featured:
                self._rounded(run_id, name, path, "features")
            elif size <= LARGEST:
                self._store(run_id, name, path)
        judged = [EvaluationReport.model_validate(one) for one in evaluated.values()]
        summary = summarise(judged, report["summary"]["sigma_min"]).model_dump(mode="json")
        report |= {"evaluations": list(evaluated.values()), "summary": summary}
        if report["frontier"] is not None:
            alpha = report["resolved"]["alpha"]
            own = point_of(alpha, judged, report["selection"]).model_dump(mode="json")
            report["frontier"] = [own if p["alpha"] == alpha else p for p in report["frontier"]]
        self._update("reports", "run_id", run_id, body=json.dumps(report))
        columns = ("id_accuracy", "ood_accuracy", "id_ece", "ood_ece")
        found = {name: summary[name] for name in columns}
        self._update("runs", "id", run_id, summary=json.dumps(summary), **found)

    def _predictions(
        self, run_id: str, name: str, whole: Predictions, evaluated: dict[str, Any]
    ) -> None:
        kept = trimmed(whole)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kept.parquet"
            digest = write_predictions(file, kept)
            self._store(run_id, name, file)
        of = kept.metadata.dataset
        if (before := evaluated.get(of)) is None:  # an ID part, of which there is no evaluation
            return
        numbers = evaluate_all(kept.probs(), kept.labels, n_resamples=before["ece"]["n_resamples"])
        evaluated[of] = before | numbers | {"predictions_sha256": digest}
        for (one,) in self._rows(
            "SELECT id FROM evaluations WHERE run_id = ? AND dataset = ?", run_id, of
        ):
            output = {"report": json.dumps(evaluated[of]), "predictions_sha256": digest}
            self._update("evaluations", "id", one, **output)

    def _rounded(self, run_id: str, name: str, path: Path, of: str) -> None:
        with np.load(path, allow_pickle=False) as file:
            held = {key: file[key] for key in file.files}
        held[of] = _rounded(held[of], FEATURE)
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "made.npz"
            np.savez_compressed(made, **held)
            self._store(run_id, name, made)

    def _store(self, run_id: str, name: str, path: Path) -> None:
        sha256 = sha256_file(path)
        target = self.target.path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        self.database.execute(
            "UPDATE artifacts SET sha256 = ?, size_bytes = ? WHERE run_id = ? AND name = ?",
            (sha256, path.stat().st_size, run_id, name),
        )

    def _update(self, table: str, key: str, of: str, **values: Any) -> None:
        answer = ", ".join(f"{name} = ?" for name in values)
        self.database.execute(
            f"UPDATE {table} SET {answer} WHERE {key} = ?", (*values.values(), of)
        )


def pack(source: Path, packed: Path = PACKED) -> None:
    """Pack a demo's home."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        Recorder(source, home).record()
        with tarfile.open(packed, "w:xz", preset=9) as archive:
            for path in _files(home):
                archive.add(path, path.relative_to(folder).as_posix(), filter=_anonymous)


def _files(folder: Path) -> Iterator[Path]:
    return iter(sorted(path for path in folder.rglob("*") if path.is_file()))


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def main() -> None:
    """Run the demo, unless a home of it is named, and pack what it left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path, nargs="?", help="of a demo that has been run")
    given = parser.parse_args().home
    with tempfile.TemporaryDirectory() as folder:
        home = given or Path(folder) / "home"
        if given is None:
            run_demo(home)
        pack(home)
    sys.stdout.write(f"{PACKED}: {PACKED.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
