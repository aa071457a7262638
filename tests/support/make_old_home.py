"""Make the home that the upgrade test opens, with the program of an earlier revision.

::

    git worktree add /tmp/calift-0.1 8e8ea51
    python -m tests.support.make_old_home /tmp/calift-0.1

Packs into `tests/data/home-0.1.tar.xz`, with the runs' ids beside it::

    data/        the pictures, the model's config and its weights, a spec of each method with its
                 hash
    home/        CALIFT_HOME: a finished run, one that was killed after a checkpoint, a shorter one
                 that waits, imported predictions
    local/run/   what the command of that time left when it was killed after a checkpoint

Everything is named relative to `home/run`, the working folder of the stack's processes, so that it
opens wherever it is unpacked. Rows of the token embedding that no caption uses are zero, and stay
zero in training: so it packs small. The config has a `preprocess_cfg`, which that revision did not
look at: the models were made otherwise than they would be made today.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import until
from tests.core.conftest import CLASSES, PHOTO, write_classes

DATA = Path(__file__).parents[1] / "data"
PACKED = DATA / "home-0.1.tar.xz"
NAMES = DATA / "home-0.1.json"

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 16,
        "layers": 1,
        "width": 16,
        "head_width": 8,
        "patch_size": 8,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
#: The killed run is killed once this step's checkpoint is there.
KILLED_AFTER = 20
EPOCHS, STEPS_PER_EPOCH = 20, 3
SEEN_FROM_RUN = "../../data"

_STACK = """
import sys
from pathlib import Path
from backend.embedded import EmbeddedStack

with EmbeddedStack(Path(sys.argv[1]), api_port=0, dashboard=False) as stack:
    stack.wait_ready()
    stack.run_forever()
"""


_SPECS = """
import json
from calift_core.schema.methods import METHOD_SPECS
from calift_core.schema.spec import parse_spec

needed = {"wise_ft": {"run": "one"}, "model_stock": {"runs": ["one", "other"]}}
specs = [
    parse_spec({"name": kind, "method": {"kind": kind} | needed.get(kind, {})})
    for kind in METHOD_SPECS
]
print(json.dumps([[spec.model_dump(mode="json"), spec.content_hash()] for spec in specs]))
"""


def spec(name: str, *, epochs: int = EPOCHS) -> dict[str, Any]:
    """A RunSpec whose paths are relative to `home/run`."""
    return {
        "name": name,
        "model": {
            "name": f"{SEEN_FROM_RUN}/vit.json",
            "pretrained": f"{SEEN_FROM_RUN}/vit.safetensors",
        },
        "method": {"kind": "carot"},
        "suite": {
            "id": f"folder:{SEEN_FROM_RUN}/photos",
            "templates": list(PHOTO),
            "shifts": {"dark": f"folder:{SEEN_FROM_RUN}/dark"},
        },
        "train": {
            "epochs": epochs,
            "batch_size": 16,
            "lr": 1e-3,
            "device": "cpu",
            "log_every_steps": 1,
            "checkpoint_every_steps": 10,
            "keep_checkpoints": 1,
        },
        "evaluation": {"n_resamples": 20, "batch_size": 64},
    }


def write_data(folder: Path) -> None:
    """Square pictures of three classes, darker ones that are not square, a small ViT."""
    for path in write_classes(folder / "photos", n=36).glob("*/*.png"):
        Image.open(path).crop((0, 0, 18, 18)).save(path)
    write_classes(folder / "dark", n=8, seed=1, gain=0.5)
    described = {"model_cfg": MODEL, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "vit.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    weights = open_clip.CLIP(**MODEL).state_dict()
    captions = [text.format(name.replace("_", " ")) for text in PHOTO for name in CLASSES]
    used = open_clip.SimpleTokenizer(context_length=16)(captions).unique()
    embedding = weights["token_embedding.weight"]
    kept = torch.zeros(len(embedding), 1)
    kept[used] = 1
    weights["token_embedding.weight"] = embedding * kept
    save_file(weights, folder / "vit.safetensors")


class Old:
    """The program of an earlier revision, on a home of its own.

    Args:
        checkout: of that revision.
        root: receives `home`.
    """

    def __init__(self, checkout: Path, root: Path) -> None:
        self.home, self.cwd = root / "home", root / "home" / "run"
        self.cwd.mkdir(parents=True, mode=0o700)
        kept = {name: v for name, v in os.environ.items() if not name.startswith("CALIFT_")}
        self.environment = kept | {
            "CALIFT_HOME": str(self.home),
            "CALIFT_FREE_SPACE_FLOOR_BYTES": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(checkout),
        }

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start Python with its packages."""
        return subprocess.Popen(
            [sys.executable, "-P", *arguments], env=self.environment, cwd=self.cwd
        )

    @contextmanager
    def stack(self) -> Iterator[subprocess.Popen[bytes]]:
        """Its embedded stack, killed whole at the end: its parts die with their supervisor."""
        process = self.start("-c", _STACK, str(self.home))
        try:
            until(lambda: (self.cwd / "stack.json").exists(), what="the stack to start")
            until(self.works, timeout_s=120, what="the worker to report in")
            yield process
        finally:
            state = json.loads((self.cwd / "stack.json").read_text())
            process.send_signal(signal.SIGKILL)
            process.wait()
            for pid in state["pids"].values():
                until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), what="all to be gone")

    def works(self) -> bool:
        """Whether the API answers and knows a worker."""
        try:
            return any(worker["alive"] for worker in self.ask("workers"))
        except OSError:
            return False

    @property
    def url(self) -> str:
        """Where the API answers."""
        return str(json.loads((self.cwd / "stack.json").read_text())["urls"]["api"])

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the API answers."""
        request = urllib.request.Request(
            f"{self.url}/api/v1/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {(self.home / 'token').read_text().strip()}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def submit(self, name: str, **changes: Any) -> str:
        """Submit a run; its id."""
        return str(self.ask("runs", {"spec": spec(name, **changes)})["id"])


def has_checkpoint(folder: Path, step: int = KILLED_AFTER) -> bool:
    """Whether a folder of attempts, or a run's, has a checkpoint of this step or a later one."""
    found = folder.glob("**/checkpoint/steps/[0-9]*/manifest.json")
    return any(int(path.parent.name) >= step for path in found)


def make(checkout: Path, root: Path) -> dict[str, str]:
    """Fill a folder with `data`, `home` and `local`; the ids of the runs in it."""
    (root / "data").mkdir(parents=True)
    write_data(root / "data")
    old = Old(checkout, root)
    with old.stack():
        finished = old.submit("finished")
        until(lambda: old.ask(f"runs/{finished}")["phase"] == "SUCCEEDED", what="a finished run")
        imported = _import(old, root)
        killed, waiting = old.submit("killed"), old.submit("waiting", epochs=1)
        until(lambda: has_checkpoint(old.home / "jobs" / killed), what="a checkpoint")
    _train(old, root / "local" / "run")
    specs = subprocess.check_output([sys.executable, "-P", "-c", _SPECS], env=old.environment)
    (root / "data" / "specs.json").write_bytes(specs)
    return {"finished": finished, "killed": killed, "waiting": waiting, "imported": imported}


def _import(old: Old, root: Path) -> str:
    """Import predictions with the command of that time."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 3))
    file = root / "mine.npz"
    np.savez(file, labels=rng.integers(3, size=60), logits=logits)
    arguments = ["import-predictions", str(file), "--name", "imported", "--dataset", "mine"]
    old.environment["CALIFT_API_URL"] = old.url
    assert old.start("-m", "calift_core.cli", *arguments).wait() == 0
    file.unlink()
    (run,) = (run for run in old.ask("runs")["items"] if run["name"] == "imported")
    return str(run["id"])


def _train(old: Old, folder: Path) -> None:
    """A run of `calift train`, killed after a checkpoint."""
    given = folder.with_suffix(".json")
    given.parent.mkdir()
    given.write_text(json.dumps(spec("local")))
    process = old.start("-m", "calift_core.cli", "train", str(given), "--out", str(folder))
    try:
        until(lambda: has_checkpoint(folder), what="a checkpoint")
    finally:
        process.kill()
        process.wait()


def pack(root: Path, target: Path) -> None:
    """Pack the folders, without sockets and what is empty of meaning elsewhere."""

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return None if member.issym() or member.name.endswith((".sock", "-shm")) else member

    with tarfile.open(target, "w:xz", preset=9) as archive:
        for name in ("data", "home", "local"):
            archive.add(root / name, name, filter=kept)


def main() -> None:
    """Make the home, pack it, and write down its ids."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("checkout", type=Path, help="worktree of the earlier revision")
    checkout = parser.parse_args().checkout.resolve()
    asked = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    revision = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    root = Path(tempfile.mkdtemp(prefix="calift-old-"))
    try:
        ids = make(checkout, root)
        DATA.mkdir(exist_ok=True)
        pack(root, PACKED)
    finally:
        shutil.rmtree(root)
    NAMES.write_text(json.dumps({"revision": revision, **ids}, indent=2) + "\n")


if __name__ == "__main__":
    main()
