"""The tests' own Postgres server goes when pytest goes, however that is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.service

_ROOT = Path(__file__).resolve().parents[1]
_TEST = """
import time
from pathlib import Path

def test_wait(postgres):
    Path({told!r}).write_text(postgres.url)
    time.sleep(600)
"""


def test_postgres__is_gone_with_a_pytest_that_was_killed(
    tmp_path: Path,
    until: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    postgres: Any,  # skips where there is no server
) -> None:
    monkeypatch.delenv("CALIFT_TEST_DATABASE_URL", raising=False)
    answer = tmp_path / "url"
    (tmp_path / "test_wait.py").write_text(_TEST.format(told=str(answer.with_suffix(".part"))))
    with (tmp_path / "log").open("wb") as log:
        pytest_ = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
            # Nobody's conftest.py above the temporary folder has a say.
            + ["--noconftest", "--rootdir", str(tmp_path), "-c", os.devnull]
            + [str(tmp_path / "test_wait.py")],
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            stdout=log,
            stderr=log,
        )
    try:
        part = answer.with_suffix(".part")
        until(
            lambda: (part.exists() and part.read_text()) or pytest_.poll() is not None,
            timeout_s=60,
            what="the server",
        )
        assert pytest_.poll() is None, (tmp_path / "log").read_text()
        folder = Path(part.read_text().split("host=")[1].replace("%2F", "/"))
        server = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        pytest_.send_signal(signal.SIGKILL)  # SIGTERM lets pytest clean up no more than this
        pytest_.wait(60)
        until(lambda: not Path(f"/proc/{server}").exists(), what="the server to be gone")
        until(lambda: not folder.exists(), what="its folder to be gone")
    finally:
        pytest_.kill()
        pytest_.wait()
