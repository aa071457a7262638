"""Measurements that were made once still run at a toy size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from research.measurements import copies, shards_memory


def test_copies__that_were_planted_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for i in range(30):
        path = tmp_path / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(path)
    words = ["copies.py", "--source", str(tmp_path), "--train", "20", "--test", "10"]
    monkeypatch.setattr(sys, "argv", words)
    copies.main()
    found = json.loads(capsys.readouterr().out)
    assert all(way["found"].endswith(" of 30") for way in found["ways"].values())


def test_shards__are_read_to_their_last_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CALIFT_HOME", str(tmp_path / "home"))
    shards_memory.write_shards(tmp_path / "shards", 60)
    shards_memory.read_all(str(tmp_path / "shards"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 60
