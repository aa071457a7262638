"""The wheel has all that runs, and works away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from calift_core import __version__

ROOT = Path(__file__).parents[1]
PACKAGES = ("calift", "calift_core", "backend", "worker", "frontend")
#: What lies in the packages' folders and is for containers and the checkout alone.
ELSEWHERE = {"Dockerfile", "Dockerfile.cuda", "alembic.ini"}


def tracked() -> set[str]:
    """Files of the packages, as git knows them or as they lie there."""
    listed = subprocess.run(
        ["git", "ls-files", "--", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = listed.stdout.split("\n") if listed.returncode == 0 else []
    return {name for name in names if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder of an earlier version lends it files."""
    folder = tmp_path_factory.mktemp("wheel")
    names = tracked()
    if not names:
        pytest.skip("there is no git to say which files belong to the packages")
    for name in (*names, "pyproject.toml", "README.md", "LICENSE"):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--disable-pip-version-check"]
        + ["-w", str(folder), str(folder / "source")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("setuptools cannot be fetched here")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("calift-*.whl"))


def test_wheel__holds_every_file_of_the_packages_and_nothing_else(wheel):
    assert wheel.name.startswith(f"calift-{__version__}-py3-none-any")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    wanted = {name for name in tracked() if Path(name).name not in ELSEWHERE}
    assert wanted - held == set()
    assert held - wanted == set()
    assert f"Version: {__version__}" in text
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert "License-Expression: Apache-2.0" in text


def test_wheel__runs_away_from_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import calift, pathlib, backend.main, worker, frontend\n"
        "assert 'site' in calift.__file__, calift.__file__\n"
        "folder = pathlib.Path(frontend.__file__).parent\n"
        "assert (folder / 'style.css').is_file() and list(folder.glob('views/*.py'))\n"
        "print(calift.ece([[0.9, 0.1], [0.2, 0.8]], [0, 1]).value)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CALIFT_")}
    environment |= {"PYTHONPATH": str(tmp_path / "site"), "CALIFT_HOME": str(tmp_path / "home")}
    environment["CALIFT_API_URL"] = "http://127.0.0.1:9"  # somebody may have a service of theirs up
    for arguments in (["-c", code], ["-m", "calift", "list", "methods"]):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_wheel__says_how_an_extra_is_added_without_the_checkout(wheel, tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(wheel)], check=True)
    code = "from calift_core.installed import install_extra; print(install_extra('train'))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith(" -m pip install 'calift[train]'\n")
