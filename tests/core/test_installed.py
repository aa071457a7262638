"""Hints that say what to type say what works here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from calift_core.installed import as_typed, command, install_extra, pip_install
from tests.core.conftest import environment

ROOT = Path(__file__).parents[2]
SCRIPT = Path(sys.executable).with_name("calift")

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the command is not installed here")


@pytest.fixture
def bare(monkeypatch):
    """A shell's path that knows nothing of the virtual environment."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def test_command__is_its_name_where_the_shell_finds_it(monkeypatch):
    monkeypatch.setenv("PATH", f"{SCRIPT.parent}{os.pathsep}/usr/bin")
    assert command() == "calift"
    assert as_typed("Start one with `calift up`.") == "Start one with `calift up`."


def test_command__is_its_path_elsewhere(bare, tmp_path, monkeypatch):
    assert shutil.which("calift") is None
    monkeypatch.chdir(SCRIPT.parents[2])
    assert command() == str(SCRIPT.relative_to(SCRIPT.parents[2]))
    monkeypatch.chdir(tmp_path)
    assert command() == str(SCRIPT)
    assert as_typed("`calift up`, or `calift`, not calift up") == (
        f"`{SCRIPT} up`, or `calift`, not calift up"
    )


def test_command__of_another_installation_on_the_path_is_not_this_one(tmp_path, monkeypatch):
    other = tmp_path / "calift"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert command() == str(SCRIPT)


def test_install_extra__names_this_python_and_a_folder_that_pip_can_install(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = install_extra("train")
    python, *words, what = line.split()
    assert words == ["-m", "pip", "install", "-e"]
    assert Path(python) == Path(sys.executable)
    folder, extra = re.fullmatch(r"'(.*)\[(.*)\]'", what).groups()
    assert (Path(folder) / "pyproject.toml").is_file()
    assert extra == "train"
    monkeypatch.chdir(ROOT)
    assert install_extra("api").endswith("-m pip install -e '.[api]'")
    assert pip_install("transformers>=5").endswith("-m pip install 'transformers>=5'")


def test_hints__of_the_command_can_be_typed_as_they_stand(bare, home):
    done = subprocess.run(
        [sys.executable, "-m", "calift", "doctor"],
        cwd=ROOT,
        env=environment(home, PATH="/usr/bin:/bin", CALIFT_API_URL="http://127.0.0.1:9"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    output = re.findall(r"`([^`]+)`", done.stdout)
    (up,) = (words for words in output if words.endswith(" up"))
    assert (ROOT / up.split()[0]).is_file() or Path(up.split()[0]).is_file()
