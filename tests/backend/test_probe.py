"""The health check of containers: who shows no sign of life is asked to end, then killed."""

import os
import signal

from backend.children.process import Pulse, pulse_path
from backend.probe import has_heartbeat, main
from tests.conftest import free_port, until


def test_probe__what_is_silent_is_asked_to_end_and_then_killed(tmp_path):
    sent = []
    nobody = f"http://127.0.0.1:{free_port()}/api/v1/health"
    argv = ["--lives", nobody, "--restart-after", "2", "--memory", str(tmp_path / "count")]
    results = [main(argv, kill=lambda *what: sent.append(what)) for _ in range(4)]
    assert results == [1, 1, 1, 1]
    assert sent == [(1, signal.SIGTERM), (1, signal.SIGTERM), (-1, signal.SIGKILL)]


def test_probe__one_that_is_alive_and_not_ready_is_unhealthy_and_left_alone(served, tmp_path):
    sent = []
    count = tmp_path / "count"
    count.write_text("5")
    away = f"http://127.0.0.1:{free_port()}/"
    argv = ["--ready", away, "--lives", f"{served}/api/v1/health", "--memory", str(count)]
    assert main(argv, kill=lambda *what: sent.append(what)) == 1
    assert sent == []
    assert count.read_text() == "0"
    argv[1] = f"{served}/api/v1/readyz"
    assert main(argv) == 0


def test_probe__pulse_of_a_worker(home, tmp_path, monkeypatch):
    monkeypatch.setenv("CALIFT_PULSE_DIR", str(tmp_path / "own"))
    path = pulse_path(home, 7)
    assert path == tmp_path / "own" / "7.pulse"
    assert not has_heartbeat(path.parent)
    pulse = Pulse(path)
    pulse.start()
    try:
        until(path.exists, what="the first beat")
        assert main(["--pulse", str(path.parent), "--memory", str(tmp_path / "count")]) == 0
    finally:
        pulse.stop()
    path.touch()
    os.utime(path, (1.0, 1.0))
    assert not has_heartbeat(path.parent)
