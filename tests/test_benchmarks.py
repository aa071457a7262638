"""Every script of `benchmarks/` at a toy size: that it ends, and says what it promises."""

from __future__ import annotations

import json
import logging
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from calift_core.schema.methods import CaRot
from tests.conftest import free_port

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = str(BENCHMARKS.parent / "calift_core" / "models" / "calift_tiny.json")

STEP = f"--model {TINY} --batch-size 4 --classes 3 --templates 2 --rounds 2 --no-memory --json"
#: Arguments of a toy run that needs nothing else.
TOYS = {
    "calibration": "--n 200 --classes 5 --rounds 1 --netcal-resamples 1 --json",
    "corruptions": "--side 32 --pictures 1 --rounds 1 --json",
    "evaluate": "--models 2 --images 12 --pixels 40 30 --batch-size 12 --rounds 1 --json",
    "api": "--samples 300 --classes 5 --requests 1 --json",
    "threads": "--rounds 1 --seconds 0.05 --batch-size 4 --neighbours 0 1 --settings passive "
    "--json",
    "serve": f"--config {TINY} --images 12 --batch 4",
    "two_towers": f"--config {TINY} --images 60 --rounds 1",
    "load": "--runs 20 --submits 20 --submit-s 0.2 --requests 2 --watchers 2 --watch-s 0.2 "
    "--points 20 --soak-s 3",
    "load_one_owner": "--only questions,streams --samples 200 --classes 3 --questions 2 "
    "--streams 2",
}
#: Those that start servers or train: `make test` only asks them for their options.
DEAR = {"two_towers", "serve", "evaluate", "api", "threads", "load", "load_one_owner"}
#: Those that other tests run, or whose parts they run.
ELSEWHERE = {
    "imagenet_size": "tests/core/data/test_names.py",
    "gpu": "tests/gpu/test_kit.py",
    "scale": "tests/test_scale.py",
}
#: Those of which a run takes minutes, a browser, or data that do not come along.
BY_HAND = {"adapt", "dashboard", "gallery"}


def run(
    name: str,
    arguments: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """What a script prints, run as its own program in this process."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments.split()])
    try:
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
    finally:
        logging.disable(logging.NOTSET)
    return capsys.readouterr().out


def last_json(printed: str) -> Any:
    """The JSON that a script ends with, on one line or on several."""
    lines = printed.splitlines()
    begins = [at for at, line in enumerate(lines) if line.startswith("{")]
    return json.loads("\n".join(lines[begins[-1] :]))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.thorough) if n in DEAR else n for n in sorted(TOYS)],
)
def test_benchmark__ends_at_a_toy_size(name, home, monkeypatch, capsys):
    takes_port = "--port" in (BENCHMARKS / f"{name}.py").read_text(encoding="utf-8")
    arguments = TOYS[name] + (f" --port {free_port()}" if takes_port else "")
    printed = run(name, arguments, monkeypatch, capsys)
    assert last_json(printed)


def test_benchmarks__have_the_options_that_a_toy_run_takes(monkeypatch, capsys):
    for name, arguments in TOYS.items():
        output = run(name, "--help", monkeypatch, capsys)
        for option in arguments.split():
            assert not option.startswith("--") or option in output, (name, option)


def test_train_step__loops_give_equal_losses_with_the_penalty_and_without(monkeypatch, capsys):
    found = last_json(run("train_step", STEP, monkeypatch, capsys))
    assert found["setting"]["lambda_x"] == CaRot().lambda_x
    assert set(found["loss_differences"]) == {"lambda_x=0.05", "lambda_x=0.0"}
    # Of the same terms on both sides: what they cost is then comparable.
    assert found["contenders"]["ours"]["flops_per_step"] > 0
    assert max(sum(found["loss_differences"].values(), [])) < 1e-3


def test_scripts__are_all_run_somewhere():
    scripts = {
        path.stem
        for path in BENCHMARKS.glob("*.py")
        if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    here = {"train_step", *TOYS}
    assert scripts == here | set(ELSEWHERE) | BY_HAND
    for name, test in ELSEWHERE.items():
        assert name in (BENCHMARKS.parent / test).read_text(encoding="utf-8")
