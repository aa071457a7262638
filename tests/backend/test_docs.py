"""The commands of docs/api.md are run as they stand, against a served application."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import unavailable

DOC = Path(__file__).parents[2] / "docs" / "api.md"


def shell_blocks() -> list[str]:
    return [
        block
        for block in re.findall(r"```sh\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
        if "curl" in block
    ]


def run_script(script: str, home: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "CALIFT_HOME": str(home),
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_docs__every_curl_line_works(app, served, client, home, finished_run, tmp_path):
    if shutil.which("curl") is None or shutil.which("bash") is None:
        unavailable("no curl on this machine")
    services = app.state.services
    finished_run(services.store, services.artifacts)
    script = "\n".join(shell_blocks())
    assert script.count("curl ") >= 12
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    script = script.replace("http://127.0.0.1:8000", served)
    done = run_script(script, home, folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    submitted, imported = (
        next(run for run in client.all_runs() if run.name == name) for name in ("carot", "imported")
    )
    assert (submitted.phase, submitted.tags) == ("CANCELLED", ["try"])
    assert imported.phase == "SUCCEEDED"
    assert '"ece"' in done.stdout
    assert "event: end" in done.stdout
    # The same lines fail where they should: a line that cannot fail shows nothing.
    (home / "token").write_text("a." + "b" * 32)
    refused = run_script(script, home, folder)
    assert refused.returncode != 0
    assert "TOKEN_INVALID" in refused.stdout
