"""A run in its folder.

The folder of a run::

    spec.json  job.json          what is asked (job.json only under a worker)
    records.jsonl                everything that happened, in order, over all attempts
    metrics.jsonl spectra.jsonl  the curves: one line per logged step, none twice
    checkpoint/                  where a stopped run goes on; the finished model at the end
    predictions/*.parquet        per-sample predictions, one file per data set
    evaluating/                  where a stopped evaluation goes on; gone at the end
    report.json                  the numbers; written last
    result.json                  how the runner ended
    tracked_as                   its id in live trackers, where there are any
"""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Unpack

from calift_core.data.ranks import ALONE
from calift_core.data.suites.load import load_suite
from calift_core.errors import CheckpointError, SpecError
from calift_core.files import atomic_write_bytes, atomic_write_json
from calift_core.jobs.curves import Curves, JsonlAppender
from calift_core.jobs.job import Job, RunOptions, never
from calift_core.jobs.tiny import ensure_tiny, pretraining_key, pretraining_spec, publish_tiny
from calift_core.models.loading import TINY
from calift_core.packaged import packaged
from calift_core.schema.methods import Pretrain
from calift_core.schema.records import DoneRecord, Record
from calift_core.schema.spec import RunSpec, load_spec
from calift_core.trackers import LiveTrackers, TrackedRun, flat


def run_job(spec: RunSpec, folder: Path, **options: Unpack[RunOptions]) -> Iterator[Record]:
    """Train, evaluate, report. Yields what happens; the folder holds the result.

    A folder with checkpoints of the same spec is gone on with.

    Args:
        folder: the run's own folder; made if need be.
        **options: see `RunOptions`.

    Raises:
        CaliftError: whatever stands in the way, in a sentence.
        InterruptedRunError: `stop` said so; a checkpoint is saved.
    """
    if (
        spec.model.name == TINY
        and spec.model.pretrained is not None
        and not isinstance(spec.method, Pretrain)
    ):
        yield from ensure_tiny(spec.model.pretrained, stop=options.get("stop", never))
    options.get("ranks", ALONE).wait()
    yield from Job(spec, folder, **options).run()


def run_in_folder(spec: RunSpec, folder: Path, **options: Unpack[RunOptions]) -> Iterator[Record]:
    """`run_job`, with `records.jsonl` and the curves written as it goes, by the first rank alone.

    Raises:
        CheckpointError: the folder holds another spec's run.
        CaliftError: as `run_job`.
    """
    ranks, resume_from = options.get("ranks", ALONE), options.get("resume_from")
    if not ranks.first:
        spec = ranks.from_first(spec)  # it looks at the folder, and has what is gone on with
        yield from run_job(spec, folder, **options)
        return
    folder.mkdir(parents=True, exist_ok=True)
    spec_file = folder / "spec.json"
    if spec_file.is_file():
        try:
            old = load_spec(spec_file)
        except SpecError as error:
            raise CheckpointError(f"the spec in {str(folder)!r} is damaged: {error}") from None
        if old.content_hash() != spec.content_hash():
            raise CheckpointError(
                f"{str(folder)!r} holds a run of another RunSpec ({old.name!r})",
                hint="Give another --out folder, or --overwrite to start anew.",
            )
    atomic_write_json(spec_file, spec.model_dump(mode="json"))
    ranks.from_first(spec)
    if isinstance(spec.method, Pretrain) and spec.model.name == TINY:
        after: Callable[[], None] | None = _publisher(spec, folder)
    else:
        after = None
    resumed = resume_from is not None or (folder / "records.jsonl").is_file()

    def describe() -> TrackedRun:
        settings = dict(flat(spec.model_dump(mode="json")))
        place = folder.absolute()
        return TrackedRun(
            options.get("run_id") or _tracked_id(place), spec.name, place, settings, resumed
        )

    with (
        Curves(folder, resume_from) as curves,
        JsonlAppender(folder / "records.jsonl") as records,
        LiveTrackers(spec.train.trackers, describe) as trackers,
    ):
        for record in run_job(spec, folder, **options):
            curves.take(record)
            if isinstance(record, DoneRecord) and after is not None:
                after()
            for written in (*trackers.take(record), record):
                records.add(written.model_dump_json())
                yield written


def _tracked_id(folder: Path) -> str:
    """What the run of a folder is called in trackers, in every attempt."""
    file = folder / "tracked_as"
    if not file.is_file():
        atomic_write_bytes(file, secrets.token_hex(6).encode())
    return file.read_text(encoding="utf-8").strip()


def _publisher(spec: RunSpec, folder: Path) -> Callable[[], None] | None:
    """Publishes a submitted pre-training if it is the one that `calift-tiny` stands for."""
    is_made = ":" not in spec.suite.id and packaged(spec.suite.id) is None
    standard = pretraining_spec(spec.suite.id) if is_made else None
    if standard is None or standard.content_hash() != spec.content_hash():
        return None

    def publish() -> None:
        key = pretraining_key(spec, load_suite(spec.suite))
        publish_tiny(folder, spec.suite.id, key)

    return publish
