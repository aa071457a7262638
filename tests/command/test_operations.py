"""`calift workers`, `tokens`, `prune`, `audit` and what `doctor` finds, against a served API."""

import json
import socket

import pytest
import typer
from sqlalchemy import text

from backend.store import migrations
from backend.store.engine import open_engine, writing
from calift.commands.main import main
from calift_core.client import Client
from calift_core.errors import SpecError
from calift_core.schema.wire.queries import RunFilter
from tests.conftest import free_port, spec_of


@pytest.fixture
def calift(capsys, served, settings, monkeypatch):
    """Run the command in this process on the served API; what it prints."""
    monkeypatch.setenv("CALIFT_API_URL", served)
    monkeypatch.setenv("CALIFT_DATABASE_URL", settings.database_url)
    settings.admin_token()

    def run(*arguments, status=0):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        captured = capsys.readouterr()
        assert (ended.value.code or 0) == status, captured.err
        return json.loads(captured.out) if "--json" in arguments else captured.out

    return run


def test_runs__retry_and_archive_count_what_the_options_find_and_ask(calift, client, monkeypatch):
    ids = [client.submit(spec_of(name=f"old {k}", tags=["old"])).id for k in range(3)]
    other = client.submit(spec_of(name="other"))
    for run_id in ids[:2]:
        client.cancel(run_id)
    monkeypatch.setattr("typer.confirm", lambda words, **_: requested.append(words) or refuse())
    requested: list[str] = []

    def refuse() -> None:
        raise typer.Abort

    calift("runs", "retry", "--tag", "old", status=1)
    assert requested == ["retry 2 runs?"]  # of the three, those that can be
    assert calift("runs", "retry", "--tag", "old", "--yes") == "retry: 2 of 2 runs.\n"
    assert {client.run(run_id).phase for run_id in ids} == {"QUEUED"}
    done = calift("runs", "archive", "--tag", "old", "--yes", "--json")
    assert (set(done["done"]), done["refused"]) == (set(ids), {})
    assert [run.id for run in client.runs().items] == [other.id]
    calift("runs", "unarchive", ids[0])
    assert {run.id for run in client.runs().items} == {other.id, ids[0]}
    refused = calift("runs", "retry", "nobody", "--json", status=1)
    assert list(refused["refused"]) == ["nobody"]
    for wrong in (["--tag", "old", other.id], []):
        calift("runs", "archive", *wrong, status=1)
    assert {run.id for run in client.runs().items} == {other.id, ids[0]}


def test_commands__workers_tokens_audit_and_prune(calift, app, finished_run, client):
    store, artifacts = app.state.services.store, app.state.services.artifacts
    assert "No worker has reported in" in calift("workers", "list")
    store.workers.seen("box-1", host="box", queues=["cpu"], device="cpu")
    assert calift("workers", "drain", "box-1") == "box-1  drained by admin\n"
    assert calift("workers", "list", "--json")[0]["drained_by"] == "admin"
    assert calift("workers", "resume", "box-1") == "box-1  idle\n"

    token = calift(
        "tokens", "add", "ada", "--scope", "read", "--days", "30", "--note", "CI"
    ).strip()
    token_id = token.partition(".")[0]
    (listed,) = calift("tokens", "list", "--json")
    assert (listed["id"], listed["owner"], listed["state"]) == (token_id, "ada", "valid")
    calift("tokens", "revoke", token_id)
    assert "revoked" in calift("tokens", "list")

    run_id = finished_run(store, artifacts)
    store.runs.patch(run_id, archived=True)
    shown = calift("prune", "--dry-run", "--older-than", "0")
    assert shown.startswith("To be removed: 2 files of 1 runs.")
    assert calift("prune", "--older-than", "0", "--yes").startswith("Removed: 2 files")
    assert calift("prune", "--older-than", "0", "--json")["files"] == 0
    assert calift("prune", "nonsense", status=2) == ""

    actions = [entry["action"] for entry in calift("audit", "--json")["items"]]
    # An entry is written after its answer was sent, so two that follow at once may change places.
    wanted = ["prune", "revoke_token", "make_token", "resume_worker", "drain_worker"]
    assert sorted(actions) == sorted(wanted)
    assert "drain_worker" in calift("audit", "--target", "box-1")
    done = client.change_runs("unarchive", filter=RunFilter(archived=True))
    assert done.done == [run_id]
    with pytest.raises(SpecError, match="give ids or filter"):
        client.change_runs("cancel")


def checks(said: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    for check in said:
        assert check["state"] == "ok" or check["hint"], check
    return {check["name"]: check for check in said}


def test_doctor__of_a_service_whose_worker_is_out_and_whose_home_is_open(calift, app, settings):
    store = app.state.services.store
    store.workers.seen(
        "box-1", host="box", queues=["cpu"], device="cpu", trouble="the disk is full"
    )
    (settings.home / "token").chmod(0o644)
    run_id = store.runs.submit(spec_of())
    store.workers.seen("box-2", host="box", queues=["cpu"], device="cpu", run_id=run_id)
    with writing(store.engine) as connection:
        connection.execute(text("UPDATE workers SET seen_at = seen_at - 600 WHERE id = 'box-2'"))
    found = checks(calift("doctor", "--json", status=1))
    assert "others can read" in found["folder rights"]["detail"]
    assert "every worker is out: the disk is full" in found["service"]["detail"]
    assert "box-2 fell silent 10 min ago while it had a run" in found["worker"]["detail"]
    assert found["service parts"]["state"] == "ok"
    assert found["clock"]["state"] == "ok"
    assert "revision" in found["database"]["detail"]
    (settings.home / "token").chmod(0o600)
    app.state.services.readiness._celery.conf.broker_url = f"redis://127.0.0.1:{free_port()}/0"
    app.state.services.ready._ttl_s = -1.0
    found = checks(calift("doctor", "--json", status=1))
    assert found["service broker"]["state"] == "fail"


def test_doctor__of_a_clock_a_schema_and_a_port_that_are_wrong(calift, app, monkeypatch):
    monkeypatch.setattr(
        Client, "server_date", lambda self: "Wed, 21 Oct 2015 07:28:00 GMT", raising=True
    )
    with writing(app.state.services.store.engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    found = checks(calift("doctor", "--json", status=1))
    assert "behind" in found["clock"]["detail"]
    assert "newer version of calift" in found["database"]["detail"]
    with writing(app.state.services.store.engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0006'"))
    assert "of revision 0006" in checks(calift("doctor", "--json", status=1))["database"]["detail"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.delenv("CALIFT_API_URL")
        monkeypatch.setenv("CALIFT_PORT", str(taken.getsockname()[1]))
        monkeypatch.setattr("calift_core.client.connection.PATIENCE_S", 1.0)
        monkeypatch.setattr(Client, "stats", _refused)
        found = checks(calift("doctor", "--json", status=1))
    assert "is taken by something that is no calift API" in found["port of the API"]["detail"]


def _refused(self: Client) -> None:
    from calift_core.errors import ServiceUnavailableError

    raise ServiceUnavailableError("nobody answers.")


def test_doctor__of_a_database_that_is_not_there_yet(calift, tmp_path, monkeypatch):
    monkeypatch.setenv("CALIFT_DATABASE_URL", f"sqlite:///{tmp_path / 'none.db'}")
    found = checks(calift("doctor", "--json", status=1))
    assert "will be made by the first start" in found["database"]["detail"]
    engine = open_engine(f"sqlite:///{tmp_path / 'none.db'}")
    migrations.upgrade(engine)
    engine.dispose()
    assert checks(calift("doctor", "--json", status=1))["database"]["state"] == "ok"
