"""Runs that were imported: finished at once, and extended set by set."""

from typing import Any

import pytest

from backend.store.errors import ConflictError, IdempotencyError
from backend.store.imports import ImportedPredictions
from calift_core.analysis.imported import imported_report, imported_spec
from calift_core.predictions.types import predictions_name
from tests.conftest import example_evaluation, example_predictions, spec_of


def stored(predictions: Any, sha256: str) -> ImportedPredictions:
    dataset = predictions.metadata.dataset
    return ImportedPredictions(
        dataset=dataset,
        name=predictions_name(dataset),
        sha256=sha256,
        size_bytes=1000,
        evaluation=example_evaluation(predictions, sha256),
    )


def test_store__an_import_is_a_finished_run_that_takes_further_sets(store):
    clean = example_predictions(dataset="clean")
    night = example_predictions(1, dataset="night", role="shift")
    first, second = stored(clean, "a" * 64), stored(night, "b" * 64)
    spec = imported_spec("mine", clean.metadata)
    requested = {"token_id": "t", "idempotency_key": "k", "body_hash": "h"}
    run_id = store.imports.add_run(spec, first, report=imported_report, **requested)
    assert store.imports.add_run(spec, first, report=imported_report, **requested) == run_id
    with pytest.raises(IdempotencyError):
        store.imports.add_run(
            spec, first, report=imported_report, **{**requested, "body_hash": "another"}
        )
    for _ in range(2):  # the same file once more changes nothing
        store.imports.extend(run_id, second, report=imported_report)
    with pytest.raises(ConflictError, match="other predictions of 'night'"):
        store.imports.extend(run_id, stored(night, "c" * 64), report=imported_report)
    run = store.runs.get(run_id)
    assert (run.phase, run.method) == ("SUCCEEDED", "imported")
    evaluations = store.results.run_evaluations(run_id)
    assert [e.dataset for e in evaluations] == ["clean", "night"]
    assert run.summary.id_accuracy == first.evaluation.accuracy
    assert run.summary.ood_accuracy == second.evaluation.accuracy
    assert store.results.predictions_of(evaluations[1].id).sha256 == "b" * 64
    assert {artifact.sha256 for artifact in store.files.of_run(run_id)} >= {"a" * 64, "b" * 64}


def test_store__a_run_that_was_not_imported_takes_no_import(store):
    run_id = store.runs.submit(spec_of())
    with pytest.raises(ConflictError, match="must be an imported one"):
        store.imports.extend(
            run_id, stored(example_predictions(), "a" * 64), report=imported_report
        )
