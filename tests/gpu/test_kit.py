"""The GPU benchmark's own paths, on the CPU; its figures are a GPU's to make."""

import json

import pytest
import torch

from tests.test_benchmarks import run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_benchmark__without_cuda_says_so(home, monkeypatch, capsys):
    assert "There is no CUDA device here" in run("gpu", "", monkeypatch, capsys)


def test_benchmark__goes_through_steps_and_loader(configs, home, monkeypatch, capsys):
    numbers = home / "gpu.json"
    arguments = (
        f"--device cpu --models {configs['vit']} --batch-size 4 --rounds 2 --steps 1 --photos 4 "
        f"--workers 0 --no-memory --json {numbers}"
    )
    assert "calift / published" in run("gpu", arguments, monkeypatch, capsys)
    found = json.loads(numbers.read_text())
    assert [row["draft"] for row in found["loader"]] == [False, True] * 2
    assert all(row["images_per_s"] > 0 for row in found["loader"])
