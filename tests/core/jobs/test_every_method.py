"""Every method as a job: it ends, with its own options, its own curves and a summary."""

import json
from typing import Any

import pytest

from calift_core.jobs.folder import run_in_folder
from calift_core.schema.methods import METHOD_SPECS
from calift_core.schema.report import Report

#: One option of each method that is not its default, to see that it arrives.
OPTIONS: dict[str, dict[str, Any]] = {
    "zero_shot": {},
    "linear_probe": {"head_start": "zeros"},
    "finetune": {"head_scale": "learned"},
    "lp_ft": {"lp_epochs": 2},
    "flyp": {},
    "carot": {"lambda_x": 0.01, "teacher_update_every": 2},
    "lipsum_ft": {"n_texts": 7},
    "car_ft": {"alpha": 0.5},
    "tracer": {"preset": "paper"},
    "anchored": {"lambda_0": 0.5},
    "averaged": {"beta": 0.25},
    "zs_norm": {},
    "coop": {"n_context": 4},
    "tip_adapter": {"alpha": 0.5},
    "wise_ft": {"alpha": 0.25, "sweep": [0.0, 0.5, 1.0]},
    "model_stock": {},
    "vrf": {},
    "dawin": {},
    "pretrain": {"multi_positive": False},
}


@pytest.fixture(scope="module")
def made():
    """The folders of runs that were made already."""
    return {}


@pytest.fixture
def run(run_spec, paintings, home, tmp_path, made):
    """Run a method for an epoch with its option, once; the folder."""

    def run(kind, lr=1e-3, **method):
        if (kind, lr) in made:
            return made[kind, lr]
        suite = {"shifts": {"art": f"folder:{paintings}"}}
        if kind == "pretrain":
            suite = {"fractions": {"pretrain": 0.3}}
        train = {"epochs": 1, "lr": lr}
        spec = run_spec(kind, method={**OPTIONS[kind], **method}, suite=suite, train=train)
        folder = tmp_path / f"{kind}-{lr}"
        assert list(run_in_folder(spec, folder))[-1].kind == "done"
        made[kind, lr] = folder
        return folder

    return run


@pytest.mark.parametrize("kind", sorted(METHOD_SPECS))
def test_method__succeeds_with_its_options_and_its_own_curves(run, kind):
    method = METHOD_SPECS[kind]
    merged = {}
    if kind == "model_stock":
        merged = {"runs": [str(run("finetune")), str(run("finetune", lr=2e-3))]}
    elif method.family == "merge":
        merged = {"run": str(run("finetune"))}
    folder = run(kind, **merged)
    report = Report.model_validate_json((folder / "report.json").read_bytes())
    stored = report.spec["method"]
    assert {name: stored[name] for name in OPTIONS[kind]} == OPTIONS[kind]
    curve = folder / "metrics.jsonl"
    lines = curve.read_text().splitlines() if curve.exists() else []
    names = {name for line in lines for name in json.loads(line)}
    assert set(method.terms) <= names
    assert ("loss" in names) == method.trains
    assert report.summary.id_accuracy is not None
    assert (report.summary.ood_ece is None) == (kind == "pretrain")
