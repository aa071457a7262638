"""`make` from a bare checkout: what stands in the way is told before anything long is begun."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments, f"PYTHON={sys.executable}"],
        cwd=checkout,
        env={k: v for k, v in os.environ.items() if not k.startswith("CALIFT_")} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make` looks at first, without a .venv. Anything after that fails at once."""
    (tmp_path / "backend" / "stack").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "backend" / "stack" / "ports.py", tmp_path / "backend" / "stack")
    return tmp_path


@pytest.mark.parametrize("target", ["demo", "up"])
@pytest.mark.parametrize("variable", ["CALIFT_PORT", "CALIFT_DASHBOARD_PORT"])
def test_make__notices_a_taken_port_before_it_installs(checkout, target, variable):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ports = {"CALIFT_PORT": "0", "CALIFT_DASHBOARD_PORT": "0"} | {variable: port}
        done = make(checkout, target, **ports)
    assert done.returncode != 0
    assert f"Port {port} of 127.0.0.1" in done.stderr
    assert variable in done.stderr
    assert "Traceback" not in done.stderr
    assert "Installing" not in done.stdout
    assert not (checkout / ".venv").exists()


def test_ports__are_no_reason_against_a_calift_that_is_up(served):
    """`calift demo` uses the stack that is up, and says what else stands in the way."""
    port = served.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, str(ROOT / "backend" / "stack" / "ports.py")],
        env={"CALIFT_PORT": port, "CALIFT_DASHBOARD_PORT": port},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_ports__that_are_none_are_named():
    done = subprocess.run(
        [sys.executable, str(ROOT / "backend" / "stack" / "ports.py")],
        env={"CALIFT_PORT": "eight"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "CALIFT_PORT must be a port, got 'eight'" in done.stderr
