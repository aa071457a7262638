"""Makes `recorded_run.jsonl`: what one real run says, stopped once and gone on with.

`python -m tests.support.record_run` writes it anew. A tiny CLIP is fine-tuned on coloured squares
by the code that `calift train` and a worker's runner call. It is stopped after its second
checkpoint and that checkpoint is damaged, so that the second part has all that a resumed run says.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from calift_core.errors import InterruptedRunError
from calift_core.jobs.folder import run_in_folder
from calift_core.schema.records import CheckpointRecord
from calift_core.schema.spec import parse_spec
from tests.core.conftest import PHOTO, VIT, write_classes

SPEC = {
    "name": "recorded",
    "model": {"name": "tiny.json", "pretrained": None},
    "method": {"kind": "carot"},
    "suite": {
        "id": "folder:photos",
        "templates": list(PHOTO),
        "shifts": {"paintings": "folder:paintings"},
        "corruptions": {"names": ["gaussian_noise"], "severities": [1]},
    },
    "train": {
        "epochs": 3,
        "batch_size": 16,
        "lr": 1e-3,
        "device": "cpu",
        "log_every_steps": 2,
        "keep_checkpoints": 2,
    },
    "evaluation": {"n_resamples": 20, "batch_size": 64},
}


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder, so that no path of this machine gets into the recording."""
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


def record(root: Path) -> list[str]:
    """The lines of a real run's `records.jsonl`; the run's folder is `root/run`."""
    write_classes(root / "photos", n=60)
    write_classes(root / "paintings", n=8, seed=1, gain=0.5)
    (root / "tiny.json").write_text(json.dumps(VIT))
    folder = root / "run"
    checkpoints: list[CheckpointRecord] = []
    with _inside(root):
        spec = parse_spec(SPEC)
        try:
            for output in run_in_folder(spec, folder, stop=lambda: len(checkpoints) == 2):
                if isinstance(output, CheckpointRecord):
                    checkpoints.append(output)
        except InterruptedRunError:
            newest = max((folder / "checkpoint" / "steps").iterdir())
            next(newest.glob("*.safetensors")).write_bytes(b"damaged")
        else:
            raise AssertionError("the run did not stop when it was asked to")
        for _ in run_in_folder(spec, folder):
            pass
    return (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        lines = "".join(line + "\n" for line in record(Path(made)))
    Path(__file__).with_name("recorded_run.jsonl").write_text(lines, encoding="utf-8")
