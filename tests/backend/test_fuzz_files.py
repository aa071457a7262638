"""Damaged and hostile files and names: each is read or refused in a sentence, and none leads out.

Checkpoints, archives, predictions, images, backups and paths share 500 cases, which are the same
every time; `make fuzz` makes a night of others (`CALIFT_FUZZ_FILES=20000`).
"""

import hashlib
import io
import json
import os
import random
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from backend.storage.artifacts import ArtifactStore, check_name
from backend.storage.backup import Manifest, read_manifest
from calift_core.data.decode import decode
from calift_core.errors import CaliftError
from calift_core.predictions.foreign.load import load_predictions
from calift_core.predictions.write import write_predictions
from calift_core.training.checkpoint import load_state, save_state
from tests.conftest import SEED, example_predictions
from tests.core.training.test_loop import state_of
from worker.folders import job_dir

CASES = int(os.environ.get("CALIFT_FUZZ_FILES", "500"))
pytestmark = pytest.mark.fuzz
SECRET = b"the secret that lies beside"


def damaged(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """A file as an accident or an attacker would leave it."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        length = rng.choice([1, 2, 4, 8, 64])
        match rng.randrange(8):
            case 0:
                data[at : at + length] = rng.randbytes(length)
            case 1:
                del data[at:]
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = rng.randbytes(length)
            case 4:  # sizes and offsets that promise too much
                data[at : at + length] = rng.choice([b"\xff", b"\x00", b"\x7f"]) * length
            case 5:
                data[at:at] = data[: rng.randrange(len(data) + 1)]
            case 6:
                other = rng.choice(others)
                data[at:] = other[rng.randrange(len(other)) :]
            case _:
                text = rng.choice([b"null", b"-1", b"1e999", b"[]", b'{"a":' * 50, b"../../etc"])
                data[at : at + len(text)] = text
    return bytes(data)


def shares(kinds: int) -> int:
    return max(1, CASES // kinds)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A good file of each kind that people bring."""
    folder = tmp_path_factory.mktemp("samples")
    predictions = example_predictions(0, n=40)
    write_predictions(folder / "x.parquet", predictions)
    archive, packed = io.BytesIO(), io.BytesIO()
    np.savez(archive, labels=predictions.labels, probs=predictions.probs())
    np.savez_compressed(packed, labels=predictions.labels, logits=predictions.logits)
    rows = "\n".join(f"{i},{p}" for i, p in zip(range(40), predictions.labels, strict=True))
    found = {
        "x.parquet": (folder / "x.parquet").read_bytes(),
        "x.npz": archive.getvalue(),
        "packed.npz": packed.getvalue(),
        "x.csv": f"label,p0\n{rows}\n".encode(),
    }
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        found[f"x.{kind.lower()}"] = buffer.getvalue()
    return found


def hammer(samples, names, folder, read):
    """Read damaged files; what is no sentence of ours is a crash, and nothing else may change."""
    rng = random.Random(f"{SEED} 1")
    place = folder / "inside"
    place.mkdir()
    (folder / "beside").write_bytes(SECRET)
    for index in range(shares(5)):
        name = names[index % len(names)]
        path = place / name
        content = damaged(rng, samples[name], list(samples.values()))
        path.write_bytes(content)
        with suppress(CaliftError):
            read(path)
        assert path.read_bytes() == content
        assert sorted(p.name for p in place.iterdir()) == [name]
        path.unlink()
    assert (folder / "beside").read_bytes() == SECRET
    assert sorted(p.name for p in folder.iterdir()) == ["beside", "inside"]


@pytest.mark.filterwarnings("ignore")  # what libraries say of nonsense is theirs
def test_predictions__damaged_archives_and_tables(samples, tmp_path):
    names = ["x.parquet", "x.npz", "packed.npz", "x.csv"]
    hammer(samples, names, tmp_path, lambda path: load_predictions(path, max_bytes=1 << 24))


@pytest.mark.filterwarnings("ignore")
def test_images__damaged(samples, tmp_path):
    names = [name for name in samples if name.rpartition(".")[2] not in ("parquet", "npz", "csv")]
    hammer(samples, names, tmp_path, decode)


def test_archives__members_that_lead_out_are_written_nowhere(tmp_path):
    outside = tmp_path / "escaped.npy"
    for name in ("../escaped.npy", str(outside), "a/../../escaped.npy", "labels.npy/../escaped"):
        path = tmp_path / "x.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, SECRET)
            archive.writestr("labels.npy", SECRET)
        with pytest.raises(CaliftError):
            load_predictions(path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["x.npz"]


def test_checkpoints__damaged_and_sealed_again(tmp_path):
    """With hashes that fit, too: whoever can write the files can write the manifest."""
    rng = random.Random(f"{SEED} 2")
    good = save_state(tmp_path / "good", state_of(n=4), keep=1)
    files = {path.name: path.read_bytes() for path in good.iterdir()}
    folder = tmp_path / "00000003"
    folder.mkdir()
    for index in range(shares(5)):
        victim = rng.choice(sorted(files))
        hurt = files | {victim: damaged(rng, files[victim], list(files.values()))}
        if index % 2 and victim != "manifest.json":
            hashes = {n: hashlib.sha256(c).hexdigest() for n, c in hurt.items()}
            hashes.pop("manifest.json")
            hurt["manifest.json"] = json.dumps(hashes).encode()
        for name, content in hurt.items():
            (folder / name).write_bytes(content)
        with suppress(CaliftError):
            load_state(folder)
        assert sorted(p.name for p in folder.iterdir()) == sorted(files)


def test_backups__damaged_manifests(tmp_path):
    rng = random.Random(f"{SEED} 3")
    good = Manifest(
        version="1", made_at="2026-01-01T00:00:00Z", kind="sqlite", revision="0001",
        database="calift.db", database_sha256="0" * 64, runs=1, contents={"0" * 64: 3},
    )  # fmt: skip
    content = good.model_dump_json().encode()
    for _ in range(shares(5)):
        (tmp_path / "manifest.json").write_bytes(damaged(rng, content, [b"[" * 5000, content]))
        with suppress(CaliftError):
            read_manifest(tmp_path)


_PIECES = [
    "..", ".", "/", "\\", "~", "a", "steps", "\0", "\n", " ", "%2e%2e", "%00", "‥", "．．", "／",
    "C:", "-rf", "con", "a" * 300, "🙂", "\ud800", "file://", "$HOME", "*", "attempt-1", "0" * 64,
]  # fmt: skip


def test_paths__no_name_leads_out(tmp_path):
    rng = random.Random(f"{SEED} 4")
    store = ArtifactStore(tmp_path / "artifacts")
    jobs = tmp_path / "jobs"
    accepted = 0
    for _ in range(shares(5)):
        name = "".join(rng.choice(_PIECES) for _ in range(rng.randint(1, 5)))
        for make, root in (
            (lambda n: tmp_path / "named" / check_name(n), tmp_path / "named"),
            (store.path, store.root),
            (lambda n: job_dir(jobs, n, 1), jobs),
        ):
            try:
                made = make(name)
            except (CaliftError, ValueError):
                continue
            accepted += 1
            assert made.resolve().is_relative_to(root.resolve())
            assert made.resolve() != root.resolve()
    assert accepted
    assert list(tmp_path.iterdir()) == []
