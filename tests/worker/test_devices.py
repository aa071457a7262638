"""Which GPU a worker takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.settings import Settings
from backend.store.queues import Live, multi_queues, queue_of, why_waits
from tests.conftest import spec_of
from worker.devices import Device, Gpu, parse_gpus, take_device, visible_gpus
from worker.runner import RUNNER_ARGV, command_of, runner_environment
from worker.service import environment_for

LISTING = """\
0, GPU-aaaa1111-0000-0000-0000-000000000000, NVIDIA H100 80GB HBM3, 81559
1, GPU-bbbb2222-0000-0000-0000-000000000000, NVIDIA H100 80GB HBM3, 81559
"""
GPUS = parse_gpus(LISTING)


@pytest.fixture
def machine(tmp_path):
    """A PATH on which `nvidia-smi` knows two GPUs."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTING}END\n")
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:/usr/bin:/bin"}


def test_parse_gpus__reads_what_the_driver_lists():
    assert GPUS[0] == Gpu(
        "0", "GPU-aaaa1111-0000-0000-0000-000000000000", "NVIDIA H100 80GB HBM3", "81559"
    )
    assert [g.index for g in GPUS] == ["0", "1"]


@given(st.text(max_size=80))
def test_parse_gpus__anything_else_is_no_gpu(text):
    assert parse_gpus(f"{text}\nNo devices were found\n") == []


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, ["0", "1"]),
        ("", []),
        ("1", ["1"]),
        ("1,0", ["1", "0"]),
        ("GPU-bbbb2222", ["1"]),
        ("0,7,1", ["0"]),  # as CUDA does: what follows an unknown entry is not seen
        ("-1", []),
    ],
)
def test_visible_gpus__follows_the_variable_as_cuda_does(visible, indices):
    assert [g.index for g in visible_gpus(GPUS, visible)] == indices


def test_take_device__every_worker_gets_a_gpu_of_its_own(machine, tmp_path):
    taken = [take_device(tmp_path / "run", machine) for _ in range(3)]
    assert [d.environment["CUDA_VISIBLE_DEVICES"] for d in taken] == [
        GPUS[0].uuid,
        GPUS[1].uuid,
        "",
    ]
    assert [d.queues for d in taken] == [("gpu", "cpu"), ("gpu", "cpu"), ("cpu",)]
    assert "H100" in taken[0].label
    lock = taken[0].lock
    lock.release()  # its worker has ended
    again = take_device(tmp_path / "run", machine)
    assert again.environment["CUDA_VISIBLE_DEVICES"] == GPUS[0].uuid
    for device in (again, taken[1]):
        device.lock.release()


def test_take_device__a_worker_of_several_gpus_serves_runs_on_as_many_or_fewer(
    machine, tmp_path, caplog
):
    both = take_device(tmp_path / "run", machine, count=2)
    assert both.environment["CUDA_VISIBLE_DEVICES"] == f"{GPUS[0].uuid},{GPUS[1].uuid}"
    assert both.queues == ("gpu-multi-2", "gpu", "cpu")
    assert both.label.startswith("cuda: 2 × NVIDIA H100")
    assert take_device(tmp_path / "run", machine).queues == ("cpu",)  # both are taken
    for lock in (both.lock, *both.more_locks):
        lock.release()
    fewer = take_device(tmp_path / "run", machine, count=4)
    assert fewer.queues == ("gpu-multi-2", "gpu", "cpu")
    assert "4 GPUs are wanted (CALIFT_WORKER_GPUS), 2 are free" in caplog.text
    for lock in (fewer.lock, *fewer.more_locks):
        lock.release()


def test_run_on_several_gpus__waits_for_a_worker_that_has_them():
    spec = spec_of(train={"device": "cuda"}, resources={"gpus": 2})
    queue = queue_of(spec)
    assert queue == "gpu-multi-2"
    one, two = Live("a", ("gpu", "cpu")), Live("b", (*multi_queues(4), "gpu", "cpu"))
    assert "CALIFT_WORKER_GPUS=2" in why_waits(queue, [one])
    assert why_waits(queue, [one, two]) == ""
    assert command_of(spec)[1:] == ("-m", "calift_core.jobs.launch", "--ranks", "2")
    assert command_of(spec_of()) == RUNNER_ARGV


def test_take_device__without_a_driver_or_with_one_that_fails_it_is_the_cpu(machine, tmp_path):
    device = take_device(tmp_path / "run", {"PATH": str(tmp_path)})
    assert (device.label, device.queues, dict(device.environment)) == ("cpu", ("cpu",), {})
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert take_device(tmp_path / "run", machine).queues == ("cpu",)


@pytest.mark.parametrize("allowed", [True, False])
def test_environment_for__runners_reach_the_hub_where_remote_models_are_allowed(
    home, monkeypatch, allowed
):
    for name in ("HF_HUB_OFFLINE", "MLFLOW_TRACKING_URI", "TRACKIO_DIR", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TENSORBOARD_LOGDIR", "/logs")
    settings = Settings(home=home, allow_remote_models=allowed)
    device = Device("GPU 1", ("cuda",), {"CUDA_VISIBLE_DEVICES": "1"})
    passed = runner_environment(environment_for(settings, device))
    assert passed.get("HF_HUB_OFFLINE") == (None if allowed else "1")
    assert passed["CUDA_VISIBLE_DEVICES"] == "1"
    assert passed["CALIFT_HOME"] == str(home)
    # Trackers keep their settings, and write nothing into a folder that is removed.
    assert (passed["WANDB_MODE"], passed["TENSORBOARD_LOGDIR"]) == ("offline", "/logs")
    for name in ("MLFLOW_TRACKING_URI", "TRACKIO_DIR", "WANDB_DIR"):
        assert str(home / "trackers") in passed[name]


def test_take_device__an_apple_gpu_has_a_queue_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    for machine, queues in (("arm64", ("mps", "cpu")), ("x86_64", ("cpu",))):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert take_device(tmp_path / "run", {"PATH": str(tmp_path)}).queues == queues
