"""What the dashboard does to many runs, to workers and with saved views, against a real API."""

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from backend.http.authentication import hash_token
from backend.settings import Settings
from backend.storage.bucket import open_artifacts
from backend.store.engine import open_engine
from backend.store.stores import Stores
from calift_core.client import Client
from calift_core.schema.wire.service import GpuUse
from frontend import authentication, login
from tests.conftest import spec_of
from tests.frontend.conftest import pointed_at, service
from tests.frontend.driving import choose, listed, page, words


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A service with two waiting runs and a worker that works on a third."""
    with service(tmp_path) as made, pointed_at(monkeypatch, made.url, made.home):
        store = Stores.on(open_engine(f"sqlite:///{made.home / 'calift.db'}"))
        working = store.runs.submit(spec_of(name="at work"))
        store.claims.claim(working, worker_id="box-1", ttl_s=3600)
        gpu = GpuUse(name="H100", memory_used_mib=2048, memory_total_mib=4096, utilisation=0.5)
        store.workers.seen(
            "box-1", host="box", queues=["gpu"], device="cuda", run_id=working, gpus=[gpu]
        )
        for name in ("one", "two"):
            store.runs.submit(spec_of(name=name))
        yield made, store
        store.close()


def test_overview__shows_the_gpu_and_drains_a_worker(small):
    _, store = small
    app = page("overview")
    output = words(app).replace("\N{NO-BREAK SPACE}", " ")
    assert "50.0 %, 2.1 GB of 4.3 GB" in output
    assert "at work" in output
    app.button(key="drain-box-1").click().run()
    assert not app.exception
    assert store.workers.drained_by("box-1") == "admin"
    assert "drained by admin, after this run" in words(page("overview"))
    page("overview").button(key="drain-box-1").click().run()
    assert store.workers.drained_by("box-1") is None


def test_tokens__one_is_made_shown_once_and_revoked(small):
    _, store = small
    app = page("tokens")
    app.text_input[0].input("ada")
    app.text_input[1].input("CI")
    app.radio[0].set_value("read")
    next(b for b in app.button if b.label == "Make a token").click().run()
    assert not app.exception
    (token,) = store.tokens.all()
    assert (token.name, token.scope, token.note) == ("ada", "read", "CI")
    assert token.expires_at is not None
    assert (token.expires_at - token.created_at).days == 90
    (shown,) = app.code
    assert hash_token(shown.value) == token.secret_sha256
    app.run()
    assert not app.code, "its text is shown once"
    app.button(key="revoke-token").click().run()
    assert not app.exception
    assert store.tokens.all()[0].revoked
    assert "revoked" in words(page("tokens"))


def test_runs__chosen_ones_are_tagged_and_cancelled_at_once(small):
    _, store = small
    app = page("runs")
    choose(app, [0, 1])
    app.run()
    app.text_input(key="bulk-tags").input("photos, mine").run()
    app.button(key="bulk-tag").click().run()
    assert not app.exception
    assert {tuple(r.tags) for r in store.runs.page()[0] if r.name != "at work"} == {
        ("photos", "mine")
    }
    choose(app, [0, 1])
    app.run()
    app.button(key="bulk-cancel").click().run()
    assert not app.exception
    assert store.runs.by_phase() == {"STARTING": 1, "CANCELLED": 2}
    app = page("runs", status="CANCELLED", sort="name")
    assert [row["name"] for row in listed(app)] == ["one", "two"]
    choose(app, [0, 1])
    app.run()
    retry = app.button(key="bulk-retry")
    assert retry.label == "Retry: 2 runs"
    assert "one, two." in words(app)
    retry.click().run()
    assert store.runs.by_phase() == {"STARTING": 1, "QUEUED": 2}
    app = page("runs", status="QUEUED", sort="-name")
    choose(app, [1])
    app.run()
    assert app.button(key="bulk-archive").label == "Archive: 1 run"
    app.button(key="bulk-archive").click().run()
    assert [run.name for run in store.runs.page(archived=True)[0]] == ["one"]


def test_run__more_epochs_are_a_new_run_that_says_what_it_begins_with(small, finished_run):
    made, store = small
    done = finished_run(store, open_artifacts(Settings(home=made.home)), name="flyp")
    app = page("run", id=done)
    app.button(key=f"continue-{done}").click().run()
    assert not app.exception
    (more,) = [run.id for run in store.runs.page()[0] if run.name == "flyp (2 more epochs)"]
    assert "flyp (2 more epochs) is queued" in [
        toast.value.replace("\\", "") for toast in app.toast
    ]
    app = page("run", id=more)
    link = next(x for x in app.get("page_link") if "Begins with the model of" in x.proto.label)
    assert link.proto.query_string == f"id={done}"


def test_view__is_saved_and_its_short_address_leads_to_it(small):
    made, store = small
    app = page("runs", status="QUEUED", q="one")
    app.text_input(key="view-name-runs").input("what waits").run()
    app.button(key="view-save-runs").click().run()
    assert not app.exception
    (view,) = store.views.all()
    assert (view.name, view.page) == ("what waits", "runs")
    assert set(view.query.split("&")) == {"status=QUEUED", "q=one"}
    assert "what waits" in words(page("runs"))
    with Client(made.url, (made.home / "token").read_text().strip()) as client:
        session = client.open_session().token
    app_of_login = Starlette(routes=login.routes(authentication.Sessions(made.url)))
    with TestClient(app_of_login, base_url="http://127.0.0.1:8501") as browser:
        browser.cookies.set(authentication.cookie_name("127.0.0.1:8501"), session)
        answer = browser.get(f"/v/{view.id}", follow_redirects=False)
        assert answer.status_code == 303
        assert answer.headers["location"] == f"/runs?{view.query}"
        missing = browser.get("/v/nothing", follow_redirects=False)
        assert missing.status_code == 404
        assert "there is no saved view" in missing.text
