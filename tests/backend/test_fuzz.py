"""Generated calls of every operation, as its description says and as it does not: 0 server errors.

Each call goes to a service on SQLite and to one on Postgres, which must answer alike. The calls are
the same every time and few; `make fuzz` makes a long night of others (`CALIFT_FUZZ_CASES=50000`).
"""

import logging
import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from backend.http.middleware import UPLOAD_TYPE, ZIP_TYPE
from backend.main import create_app
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.sweep import parse_sweep
from tests.conftest import fresh_postgres, serving, spec_of

log = logging.getLogger(__name__)

#: Calls over all operations; none: a few of each.
CASES = int(os.environ.get("CALIFT_FUZZ_CASES", "0"))
EXAMPLES = 1
#: Each of these starts a process.
SLOW = {
    "import_predictions", "judge_predictions", "try_picture", "get_text_features",
    "make_feature_map", "download_model", "find_copies",
}  # fmt: skip
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def _as_bytes(_context: Any, value: Any) -> Any:
    return value if isinstance(value, bytes) else str(value).encode()


for _type in (UPLOAD_TYPE, ZIP_TYPE):
    schemathesis.serializer(_type)(_as_bytes)


@dataclass
class Side:
    """A service on one kind of database, and what is there to be named: the same on each."""

    name: str
    app: Any
    address: str
    caller: requests.Session
    known: dict[str, list[Any]]


def _a_sweep(store: Any) -> str:
    spec = parse_sweep({"name": "s", "methods": ["flyp", "carot"]})
    made: str = store.sweeps.create(
        spec, methods=["flyp", "carot"], estimate=[None, 1.0], runs_at_most=18, token_id="",
        submitted_by="admin",
    )  # fmt: skip
    return made


def _known(store: Any, finished: list[str]) -> dict[str, list[Any]]:
    waiting, cancelled = store.runs.submit(spec_of()), store.runs.submit(spec_of())
    store.runs.request_cancel(cancelled)
    evaluations = [e.id for run_id in finished for e in store.results.run_evaluations(run_id)]
    judging = EvaluationJobSpec(runs=tuple(finished), suites=("fashion-mnist",))
    jobs = [store.evaluation_jobs.submit(judging) for _ in range(3)]
    claim = store.claims.claim(jobs[0], worker_id="w", ttl_s=60)
    store.claims.finish(jobs[0], claim.attempt, phase="SUCCEEDED")
    store.evaluation_jobs.request_cancel(jobs[1])
    return {
        "run_id": [*finished, waiting, cancelled],
        "job_id": jobs,
        "evaluation_id": evaluations,
        "sweep_id": [_a_sweep(store), _a_sweep(store)],
        "name": ["predictions/id.parquet", "predictions/nothing.parquet"],
        "fit_on": evaluations,
        "against": evaluations,
        "baseline": finished,
        "run": [*finished, waiting],
        "cursor": [
            store.runs.page(limit=1)[1],
            store.runs.page(limit=1, sort="name")[1],
            store.results.list_evaluations(limit=1)[1],
        ],
        "dataset": ["id", "sketch"],
    }


@pytest.fixture
def sides(make_settings, sqlite_url, postgres, finished_run):
    with ExitStack() as stack:
        urls = {"sqlite": sqlite_url, "postgres": stack.enter_context(fresh_postgres(postgres))}
        made = []
        for name, url in urls.items():
            settings = make_settings(
                database_url=url, requests_per_minute=10_000_000, max_queued=1_000_000
            )
            app = create_app(settings, housekeeping=False)
            address = stack.enter_context(serving(app))
            services = app.state.services
            finished = [
                finished_run(services.store, services.artifacts, seed=seed) for seed in (0, 1)
            ]
            caller = stack.enter_context(requests.Session())
            caller.headers["Authorization"] = f"Bearer {settings.admin_token()}"
            made.append(Side(name, app, address, caller, _known(services.store, finished)))
        yield made


@pytest.mark.fuzz
@pytest.mark.timeout(600 + CASES)
def test_fuzz__every_operation(sides, caplog):
    document = sides[0].app.openapi()
    schema = schemathesis.openapi.from_dict(document)
    operations = sum(len(item) for item in document["paths"].values())
    # Right calls and wrong ones; some operations take no wrong one, and the slow ones are few.
    examples = max(EXAMPLES, math.ceil(1.2 * CASES / (2 * operations)))
    requested = {}
    faults = []
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:
            count = _fuzz(operation, mode, sides, faults, examples)
            requested[operation.label] = requested.get(operation.label, 0) + count
    log.info(
        "cases=%d operations=%d faults=%d", sum(requested.values()), len(requested), len(faults)
    )
    assert faults == [], "\n\n".join(faults[:20])
    assert len(requested) == operations
    assert all(requested.values()), requested
    assert sum(requested.values()) >= max(CASES, 30 * EXAMPLES)
    for side in sides:
        _check_alive(side)
    assert [r for r in caplog.records if r.exc_info and r.levelno >= logging.ERROR] == []


def _fuzz(operation, mode, sides, faults, examples):
    """Call one operation with generated requests; how many there were."""
    name = operation.definition.raw["operationId"]
    count = 0

    @hypothesis_settings(
        max_examples=max(3, examples // 20) if name in SLOW else examples,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    def call(case, data):
        nonlocal count
        count += 1
        chosen = _choose(name, case, data)
        _spare_what_is_there(name, case.body)
        statuses = {}
        for side in sides:
            for values, key, index in chosen:
                is_run = key == "job_id" and "/runs/" in operation.path
                one = side.known["run_id" if is_run else key][index]
                values[key] = [one] if isinstance(values[key], list) else one
            response = case.call(base_url=side.address, session=side.caller, timeout=60)
            statuses[side.name] = response.status_code
            try:
                case.validate_response(response, checks=CHECKS)
            except FailureGroup as error:
                told = "; ".join(str(one) for one in error.exceptions)
                faults.append(f"{side.name} {case.as_curl_command()[:1500]}\n{told[:3000]}")
        if len(set(statuses.values())) > 1:
            faults.append(f"{case.as_curl_command()[:1500]}\nanswers {statuses}")

    try:
        call()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "there is always a right call"
        return 0
    return count


def _spare_what_is_there(name: str, body: Any) -> None:
    """What removes runs removes those that are asked about later; it is to find nothing."""
    if name == "change_runs" and isinstance(body, dict) and body.get("action") == "delete":
        body["action"] = "cancel"
    if name == "prune" and isinstance(body, dict):
        body["older_than_days"] = 30_000.0


def _choose(name: str, case: Any, data: Any) -> list[tuple[Any, str, int]]:
    """Where the call names something that exists, and which: behind it lie the deeper paths."""
    if name in ("delete_run", "delete_evaluation_job"):
        return []  # what is deleted is missed by everything after it
    sizes = {"run_id": 4, "evaluation_id": 4, "name": 2, "fit_on": 4, "against": 4}
    sizes["sweep_id"] = 2
    sizes |= {"job_id": 3, "baseline": 2, "run": 3, "cursor": 3, "dataset": 2}
    if name == "stream_events":
        sizes["job_id"] = 2  # the stream of a run that waits has no end
    elif name == "stream_evaluation_job_events":
        sizes["job_id"] = 1
    return [
        (values, key, data.draw(st.integers(0, sizes[key] - 1)))
        for values in (case.path_parameters, case.query)
        for key in list(values or {})
        if key in sizes and data.draw(st.booleans())
    ]


def _check_alive(side: Side) -> None:
    """Submits answer, and what was stored is still there."""
    for _ in range(8):
        body = {"name": "alive", "method": {"kind": "zero_shot"}}
        submitted = side.caller.post(f"{side.address}/api/v1/runs", json=body)
        assert submitted.status_code == 202
        where = side.address + submitted.headers["location"]
        assert side.caller.get(where).status_code == 200
    for run_id in side.known["run_id"][:2]:
        assert side.caller.get(f"{side.address}/api/v1/runs/{run_id}/report").status_code == 200
