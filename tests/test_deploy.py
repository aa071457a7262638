"""What stands in deploy/ for other places than Docker is accepted by their schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from backend.settings import Settings

DEPLOY = Path(__file__).parents[1] / "deploy"


def items() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())["items"]
    return found


def test_kubernetes__every_object_is_one_and_what_it_names_is_there():
    validate = pytest.importorskip("kubernetes_validate")
    for item in items():
        validate.validate(item, "1.31", strict=True)
    services = {item["metadata"]["name"] for item in items() if item["kind"] == "Service"}
    workloads = [item for item in items() if item["kind"] in ("Deployment", "StatefulSet")]
    assert services <= {item["metadata"]["name"] for item in workloads}
    settings = {f"CALIFT_{name.upper()}" for name in Settings.model_fields}
    (config,) = [item["data"] for item in items() if item["kind"] == "ConfigMap"]
    assert set(config) - {"CALIFT_PULSE_DIR"} <= settings
    for item in workloads:
        (container,) = item["spec"]["template"]["spec"]["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        there = {v["name"] for v in item["spec"]["template"]["spec"].get("volumes", [])}
        there |= {c["metadata"]["name"] for c in item["spec"].get("volumeClaimTemplates", [])}
        assert mounted <= there, item["metadata"]["name"]


def test_skypilot__runs_an_example_that_is_there_and_keeps_its_folder_outside_the_machine():
    task = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    known = {"name", "resources", "envs", "workdir", "file_mounts", "setup", "run"}
    assert set(task) == known
    assert (DEPLOY.parent / task["envs"]["SPEC"]).is_file()
    assert list(task["file_mounts"]) == ["/runs"]
    assert '--out "/runs/$RUN"' in task["run"]
