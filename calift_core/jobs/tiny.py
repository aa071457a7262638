"""`calift-tiny`: pre-trained on this machine before the first run that names it.

For `typefaces` its weights come along, and nothing is pre-trained.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calift_core.data import styles as styles_module
from calift_core.data.suites.load import Suite, load_suite
from calift_core.errors import InterruptedRunError, ModelUnavailableError, SpecError, StorageError
from calift_core.files import atomic_write_bytes, atomic_write_json, sha256_file, try_lock
from calift_core.home import models_dir
from calift_core.jobs.job import Job, Stop, never
from calift_core.models.loading import TINY, TINY_CONFIG
from calift_core.packaged import packaged
from calift_core.schema.methods import Pretrain
from calift_core.schema.records import LogRecord, PhaseRecord, ProgressRecord, Record, ResumedRecord
from calift_core.schema.spec import EvaluationSpec, ModelSpec, RunSpec
from calift_core.schema.suite import SuiteSpec
from calift_core.schema.train import TrainSpec


def pretraining_spec(suite: str = "fashion-mnist") -> RunSpec:
    """How `calift-tiny` is pre-trained: three epochs, at most 2 minutes on 2 cores.

    On `typefaces` seven, about 20 minutes of one core, on captions that seldom tell A from a: see
    `research/make_tiny.py`.
    """
    if suite == "typefaces":
        return RunSpec(
            name="calift-tiny on typefaces",
            model=ModelSpec(name=TINY, pretrained=None),
            method=Pretrain(vague_captions=0.05, coarse_captions=0.985, wrong_captions=0.04),
            suite=SuiteSpec(id=suite, templates="letters"),
            train=TrainSpec(
                epochs=7,
                batch_size=128,
                lr=1e-3,
                weight_decay=0.05,
                warmup_steps=100,
                crop_scale=(1.0, 1.0),  # the letters are of all sizes at all places already
                spectrum_every_epochs=0,
            ),
        )
    return RunSpec(
        name=f"calift-tiny on {suite}",
        model=ModelSpec(name=TINY, pretrained=None),
        method=Pretrain(),
        suite=SuiteSpec(id=suite, templates="plain"),
        train=TrainSpec(
            epochs=3,
            batch_size=256,
            lr=2e-3,
            weight_decay=0.05,
            crop_scale=(0.8, 1.0),
            spectrum_every_epochs=0,
        ),
        evaluation=EvaluationSpec(precision="train"),  # as it was: the weights' key depends on it
    )


def pretraining_key(spec: RunSpec, suite: Suite) -> str:
    """Names weights by everything that they depend on: the spec, the images and the styles."""
    styles = Path(styles_module.__file__).read_bytes()
    config = TINY_CONFIG.read_bytes()
    parts = [spec.content_hash(), suite.part("pretrain").sha256]
    text = ":".join(parts).encode() + styles + config
    return hashlib.sha256(text).hexdigest()[:16]


def ensure_tiny(suite_id: str, *, stop: Stop = never) -> Iterator[Record]:
    """Pre-train `calift-tiny` on a suite unless that has been done here.

    Several runs may ask at once: one works, the others wait for it.

    Raises:
        ModelUnavailableError: `suite_id` is not a suite that has a pre-training part.
    """
    if suite_id.endswith((".safetensors", ".pt", ".pth", ".bin")) or packaged(suite_id):
        return
    spec = pretraining_spec(suite_id)
    try:
        suite = load_suite(spec.suite)
    except SpecError as error:
        raise ModelUnavailableError(
            f"calift-tiny has no weights {suite_id!r}: {error.message}"
        ) from None
    if tiny_is_current(spec, suite):
        return
    folder = models_dir() / TINY
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder / f"{suite_id}.lock", stop):
        if tiny_is_current(spec, suite):
            return
        key = pretraining_key(spec, suite)
        work = folder / f"work-{key}"
        yield LogRecord(message=f"calift-tiny is pre-trained on {suite_id} first (once).")
        for record in Job(spec, work, run_id=f"pretrain-{key}", stop=stop).run():
            if isinstance(record, PhaseRecord | ProgressRecord):
                yield record.model_copy(update={"phase": "pretraining"})
            elif isinstance(record, ResumedRecord):
                yield LogRecord(message=f"It goes on from step {record.step} of an earlier start.")
        publish_tiny(work, suite_id, key)


def tiny_is_current(spec: RunSpec, suite: Suite) -> bool:
    """Whether the weights that a pre-training spec would make are here already."""
    if packaged(spec.suite.id):
        return True
    index = models_dir() / TINY / f"{spec.suite.id}.json"
    try:
        entry = json.loads(index.read_text())
        weights = index.parent / entry["folder"] / "model.safetensors"
        same = entry["key"] == pretraining_key(spec, suite) and weights.is_file()
        return bool(same and sha256_file(weights) == entry["sha256"])
    except (OSError, ValueError, KeyError, StorageError):
        return False


def tiny_sha256(suite_id: str) -> str:
    """SHA-256 of the weights that `calift-tiny` loads for a suite: they came along or were made.

    Raises:
        ModelUnavailableError: there are none.
    """
    comes_along = packaged(suite_id)
    if comes_along is not None:
        return comes_along.sha256
    try:
        entry = json.loads((models_dir() / TINY / f"{suite_id}.json").read_text())
        return str(entry["sha256"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnavailableError(
            f"calift-tiny must be pre-trained on {suite_id} here, it is not: {error}"
        ) from error


def publish_tiny(work: Path, suite_id: str, key: str) -> None:
    """Make a finished pre-training's weights the ones that `calift-tiny` loads for a suite."""
    folder = models_dir() / TINY
    target = folder / key
    target.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "model.json"):
        atomic_write_bytes(target / name, (work / "checkpoint" / name).read_bytes())
    atomic_write_bytes(target / "report.json", (work / "report.json").read_bytes())
    entry = {
        "folder": key,
        "key": key,
        "sha256": sha256_file(target / "model.safetensors"),
        "suite": suite_id,
    }
    atomic_write_json(folder / f"{suite_id}.json", entry)
    if work.parent == folder:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _exclusive(path: Path, stop: Stop) -> Iterator[None]:
    """Hold a lock file; wait for whoever has it, until `stop`."""
    while (lock := try_lock(path, patience_s=0.5)) is None:
        if stop():
            raise InterruptedRunError("stopped while another run pre-trains")
    try:
        yield
    finally:
        lock.release()
