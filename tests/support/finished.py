"""Real finished runs, trained in this process and stored as a worker stores them."""

from pathlib import Path
from typing import Any

from backend.storage.artifacts import publish_artifact
from calift_core.jobs.folder import run_in_folder
from calift_core.predictions.types import predictions_name
from calift_core.schema.records import EvaluationRecord, Record
from calift_core.schema.report import Report
from calift_core.schema.spec import parse_spec
from tests.core.conftest import PHOTO
from worker.folders import files_of


def small_spec(kind: str, tower: Path, photos: Path, **suite: Any) -> Any:
    """A run of a tiny model on the tiny suite, judged in batches of 8."""
    return parse_spec(
        {
            "name": kind,
            "model": {"name": str(tower), "pretrained": None},
            "method": {"kind": kind},
            "suite": {"id": f"folder:{photos}", "templates": list(PHOTO)} | suite,
            "train": {"epochs": 1, "batch_size": 16, "lr": 1e-3, "device": "cpu"},
            "evaluation": {"n_resamples": 20, "batch_size": 8},
        }
    )


def run_once(spec: Any, folder: Path) -> Path:
    """Run a spec in a folder, to its end."""
    records: list[Record] = list(run_in_folder(spec, folder))
    assert records[-1].kind == "done"
    return folder


def store_run(store, artifacts, folder, *, submitted_by=None):
    """Make the run in a folder one of the service's that has succeeded; its id."""
    report = Report.model_validate_json((folder / "report.json").read_bytes())
    run_id = store.runs.submit(parse_spec(report.spec), submitted_by=submitted_by)
    assert store.claims.claim(run_id, worker_id="w", ttl_s=60) is not None
    answer = [
        EvaluationRecord(evaluation=e, predictions=predictions_name(e.dataset))
        for e in report.evaluations
    ]
    assert store.records.record(run_id, 1, answer)
    for name, kind in files_of(folder):
        assert publish_artifact(
            store.files, artifacts, run_id, 1, name=name, kind=kind, path=folder / name
        )
    body = report.model_dump(mode="json") | {"run_id": run_id}
    assert store.claims.finish(run_id, 1, phase="SUCCEEDED", report=body)
    return run_id
