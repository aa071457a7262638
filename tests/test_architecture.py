"""Who may import whom: the contracts, and what is really loaded."""

from __future__ import annotations

import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import calift_core
from tests.conftest import LONG, SHARED

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "open_clip", "safetensors", "timm")


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CALIFT_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def loaded_by(modules: str, suspects: tuple[str, ...]) -> list[str]:
    """Which suspects importing modules one after the other loads, and which module did it."""
    code = """
import importlib, sys
suspects, found = set(sys.argv[1].split()), set()
for module in sys.argv[2:]:
    importlib.import_module(module)
    found |= (new := suspects & sys.modules.keys() - found)
    print(*(f"{module}:{name}\\n" for name in sorted(new)), sep="", end="")
"""
    done = run(code, " ".join(suspects), *modules.split())
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_package__loads_nothing_heavy_and_what_loads_it_is_seen():
    suspects = (*HEAVY, "numpy", "scipy", "pydantic", "pyarrow", "httpx", "typer", "rich", "yaml")
    found = loaded_by("calift_core calift calift_core.schema.spec", suspects)
    assert "calift_core.schema.spec:pydantic" in found
    assert {line.partition(":")[0] for line in found} == {"calift_core.schema.spec"}


def test_services__load_no_torch():
    modules = "backend.main worker.app worker.tasks frontend.figures frontend.reports.files"
    assert loaded_by(modules, HEAVY) == []


def torch_free_modules() -> list[str]:
    found = ["errors", "files", "home", "installed", "checks", "threads", "client", "catalogue"]
    found += ["data.suites", "data.counting", "data.thumbnails", "data.workload", "jobs.curves"]
    for package in ("schema", "calibration", "predictions", "analysis"):
        folder = Path(calift_core.__file__).parent / package
        inside = pkgutil.walk_packages([str(folder)], f"{package}.")
        found += [package, *(module.name for module in inside)]
    return ["calift", "calift.commands.main", *(f"calift_core.{name}" for name in found)]


def test_what_crosses_a_process__imports_where_torch_is_not_installed():
    code = """
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Missing())
try:
    import torch
except ModuleNotFoundError:
    pass
else:
    sys.exit("torch was not blocked")
for name in sys.argv[2:]:
    importlib.import_module(name)
print(len(sys.argv[2:]))
"""
    modules = torch_free_modules()
    assert "calift_core.calibration.bins" in modules
    done = run(code, ",".join(HEAVY), *modules)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(modules))]


def test_contracts__hold():
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("import-linter is not installed")
    done = subprocess.run(
        [command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_order_of_tests__names_files_that_are_there():
    assert [file for file in (*LONG, *SHARED) if not (ROOT / file).is_file()] == []
