"""The GPU benchmark's own paths, on the CPU; its figures are a GPU's to make."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.core.conftest import environment

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(home: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment(home, PYTHONPATH=str(SCRIPT.parents[1])),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_benchmark__without_cuda_says_so(tmp_path: Path) -> None:
    assert "There is no CUDA device here" in run(tmp_path)


def test_benchmark__goes_through_steps_and_loader(configs: dict[str, Path], tmp_path: Path) -> None:
    numbers = tmp_path / "gpu.json"
    said = run(
        tmp_path, "--device", "cpu", "--models", str(configs["vit"]), "--batch-size", "4",
        "--rounds", "2", "--steps", "1", "--photos", "4", "--workers", "0", "--no-memory",
        "--json", str(numbers),
    )  # fmt: skip
    assert "calift / published" in said
    found = json.loads(numbers.read_text())
    assert [row["draft"] for row in found["loader"]] == [False, True] * 2
    assert all(row["images_per_s"] > 0 for row in found["loader"])
