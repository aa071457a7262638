"""How many threads torch gets and how they wait: found out, set, and seen by the real library."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from calift_core.schema.report import Report
from calift_core.threads import SETTINGS, openmp_environment, usable_cores
from tests.core.conftest import calift, python
from worker.runner import runner_environment

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path):
    """Make a machine's root folder: files by path, with a core's siblings in each topology."""

    def make(files, siblings=None):
        found = dict(files)
        for cpu, listed in enumerate(siblings or []):
            found[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = listed
        for name, text in found.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path

    return make


V2 = "0::/app.slice/run.scope"
V1 = "12:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": V2}, 8),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/app.slice/run.scope/cpu.max": "max 100000"}, 8),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/app.slice/run.scope/cpu.max": "200000 100000"}, 2),
        # The tightest of all groups above counts, and a part of a core is no core.
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/app.slice/run.scope/cpu.max": "700000 100000",
          "sys/fs/cgroup/app.slice/cpu.max": "350000 100000"}, 3),
        # In a container the group is the root of what it sees.
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "10000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "9900000 100000"}, 8),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "what is this"}, 8),
        # The first version: another folder, two files, and a container's own path is not there.
        ({"proc/self/cgroup": V1,
          "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "400000",
          "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"}, 4),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000"}, 5),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)  # fmt: skip
def test_usable_cores__are_within_the_limits_of_the_control_groups(tree, files, cores):
    assert usable_cores(root=tree(files), allowed=set(range(8))) == cores


def test_usable_cores__two_threads_of_one_core_are_one(tree):
    root = tree({}, siblings=["0,4", "1,5", "2-3", "2-3", "0,4", "1,5"])
    assert usable_cores(root=root, allowed={0, 1, 2, 3, 4, 5}) == 3
    assert usable_cores(root=root, allowed={0, 4}) == 1
    assert usable_cores(root=root, allowed={1, 2}) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="processes have an affinity on Linux")
def test_usable_cores__follow_the_affinity_of_this_very_process():
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one}}}); "
        "from calift_core.threads import usable_cores; print(usable_cores())"
    )
    assert python("-c", code)[0] == "1\n"


def test_environment__a_limit_that_torch_does_not_see_sets_the_number_else_torch_does(tree):
    chosen = openmp_environment({}, root=tree({}), allowed={0, 1, 2})
    assert chosen == {"GOMP_SPINCOUNT": "1000"}
    root = tree({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"})
    chosen = openmp_environment({}, root=root, allowed=set(range(8)))
    assert chosen == {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "2"}
    assert "OMP_NUM_THREADS" not in openmp_environment({}, root=root, allowed={0, 1})


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_NUM_THREADS"}),
        ({"GOMP_SPINCOUNT": "5"}, {"OMP_NUM_THREADS"}),
        ({"OMP_NUM_THREADS": "7"}, {"GOMP_SPINCOUNT"}),
        ({"MKL_NUM_THREADS": "7"}, {"GOMP_SPINCOUNT"}),
        ({"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "PASSIVE"}, set()),
        ({"OMP_NUM_THREADS": ""}, {"OMP_NUM_THREADS", "GOMP_SPINCOUNT"}),
    ],
)
def test_environment__what_a_person_has_set_stays(tree, given, left):
    root = tree({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"})
    assert set(openmp_environment(given, root=root, allowed=set(range(8)))) == left


def without_settings(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return kept | {"OMP_DISPLAY_ENV": "VERBOSE"} | changes


def test_runner__is_given_the_choice_or_what_a_person_has_set():
    assert runner_environment(without_settings())["GOMP_SPINCOUNT"] == "1000"
    own = runner_environment(without_settings(GOMP_SPINCOUNT="77"))
    assert own["GOMP_SPINCOUNT"] == "77"


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux")
def test_command__sets_it_before_torch_is_loaded(run_spec, home, tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(run_spec("zero_shot").model_dump(mode="json")))
    env = without_settings(CALIFT_HOME=str(home), HF_HUB_OFFLINE="1")
    _, words = python("-m", "calift", "train", path, "--out", tmp_path / "o", env=env)
    assert "GOMP_SPINCOUNT = '1000'" in words  # GNU's OpenMP says so when it is loaded
    report = Report.model_validate_json((tmp_path / "o" / "report.json").read_bytes())
    assert report.environment["openmp"]["GOMP_SPINCOUNT"] == "1000"
    assert report.environment["usable_cores"] == usable_cores()


def test_command__that_needs_no_torch_does_not_load_it_for_this(home):
    assert calift("version", home=home).returncode == 0
    code = (
        "import sys, calift_core.threads as t; t.settle(); "
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    assert python("-c", code)[0] == "[]\n"
