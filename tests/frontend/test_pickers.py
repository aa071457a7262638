"""Choosing runs among many: the server searches them, pages begin with one suite; live logs."""

import logging
import re
from dataclasses import dataclass
from typing import Any

import pytest

from frontend import api
from frontend.figures import style
from tests.conftest import serving, spec_of
from tests.frontend.conftest import pointed_at
from tests.frontend.driving import listed, page, words

#: More than a picker offers at once.
MANY = 230


@dataclass(frozen=True)
class Crowd:
    """A service with many runs: its store, and ids by name."""

    store: Any
    ids: dict[str, str]


@pytest.fixture(scope="module")
def crowd_service(tmp_path_factory):
    from backend.main import create_app
    from backend.settings import Settings
    from backend.store.engine import open_engine
    from backend.store.migrations import upgrade
    from backend.store.stores import Stores

    home = tmp_path_factory.mktemp("crowd")
    settings = Settings(home=home, broker_url="memory://", free_space_floor_bytes=0)
    settings.admin_token()
    store = Stores.on(open_engine(settings.database_url))
    upgrade(store.engine)
    ids = {}

    def add(name, suite, **changes):
        ids[name] = store.runs.submit(spec_of(name=name, suite={"id": suite}, **changes))
        assert store.claims.claim(ids[name], worker_id="w", ttl_s=600) is not None
        assert store.claims.finish(ids[name], 1, phase="SUCCEEDED")

    add("the very first", "pacs:sketch")
    for index in range(MANY):
        add(f"sketch {index}", "pacs:sketch")
    for name in ("one", "two", "three", "four"):
        add(f"photo {name}", "pacs:photo", method={"kind": "flyp"})
    ids["working"] = store.runs.submit(spec_of(name="working"))
    assert store.claims.claim(ids["working"], worker_id="w", ttl_s=600) is not None
    with serving(create_app(settings, housekeeping=False)) as url:
        yield url, home, Crowd(store, ids)
    store.close()


@pytest.fixture
def crowd(crowd_service, monkeypatch):
    url, home, made = crowd_service
    with pointed_at(monkeypatch, url, home):
        yield made


def chosen(app: Any, key: str = "url-run") -> list[str]:
    return list(app.multiselect(key=key).value)


def test_pages__begin_with_the_newest_runs_suite_and_widen(crowd):
    app = page("shifts")
    suites = app.selectbox(key="url-suite")
    assert suites.value == "pacs:photo"
    assert suites.options == [
        "pacs:photo (4)",
        f"pacs:sketch ({MANY + 1})",
        f"all data ({MANY + 5})",
    ]
    offered = app.multiselect(key="url-run").options
    assert len(offered) == 4
    assert all("photo" in words_ for words_ in offered)
    assert chosen(app) == [crowd.ids[f"photo {n}"] for n in ("four", "three", "two")]
    suites.set_value("*").run()
    assert app.query_params["suite"] == "*"
    assert len(app.multiselect(key="url-run").options) == 200
    assert "pacs:sketch" in app.multiselect(key="url-run").options[-1]
    assert f"The newest 200 of {MANY + 5} runs" in words(app)
    assert chosen(app) == [crowd.ids[f"photo {n}"] for n in ("four", "three", "two")]


@pytest.mark.parametrize(
    ("name", "key"),
    [("shifts", "url-run"), ("compare", "url-ids"), ("frontier", "url-run"),
     *(pytest.param(n, "url-run", marks=pytest.mark.thorough) for n in ("spectra", "calibration"))],
)  # fmt: skip
def test_find__reaches_the_oldest_of_many_runs_on_every_page(crowd, name, key):
    app = page(name)
    photos = set(chosen(app, key))
    app.selectbox(key="url-suite").set_value("pacs:sketch").run()
    assert len(chosen(app, key)) == 3, "the runs are those on the data that was chosen"
    assert not photos & set(chosen(app, key))
    assert not any("very first" in o for o in app.multiselect(key=key).options)
    app.text_input(key="url-find").set_value("very first").run()
    assert not app.exception
    assert any("the very first" in o for o in app.multiselect(key=key).options)
    kept = chosen(app, key)
    app.multiselect(key=key).set_value([*kept, crowd.ids["the very first"]]).run()
    assert crowd.ids["the very first"] in app.query_params[key.removeprefix("url-")]
    app.text_input(key="url-find").set_value("nothing is called so").run()
    assert chosen(app, key) == [*kept, crowd.ids["the very first"]]
    assert "There is no finished run" in words(app)


def test_link__its_own_runs_say_where_to_look(crowd):
    app = page("shifts", run=crowd.ids["the very first"])
    assert app.selectbox(key="url-suite").value == "pacs:sketch"
    assert chosen(app) == [crowd.ids["the very first"]]
    both = f"{crowd.ids['the very first']},{crowd.ids['photo one']}"
    mixed = page("shifts", run=both)
    assert mixed.selectbox(key="url-suite").value == "*"
    assert chosen(mixed) == both.split(",")


def test_new__a_merge_finds_any_finished_run(crowd):
    app = page("new", method="wise_ft", preset="blank")
    field = "new-blank-wise_ft-method.run"
    assert not any("very first" in o for o in app.selectbox(key=field).options)
    app.selectbox(key="url-suite").set_value("*").run()
    app.text_input(key="url-find").set_value("very first").run()
    assert not app.exception
    assert [o for o in app.selectbox(key=field).options if "very first" in o]
    app.selectbox(key=field).set_value(crowd.ids["the very first"]).run()
    app.text_input(key="url-find").set_value("").run()
    assert app.selectbox(key=field).value == crowd.ids["the very first"]
    assert f"run: {crowd.ids['the very first']}" in words(app)


def test_runs__are_filtered_by_their_data(crowd):
    app = page("runs")
    assert f"{MANY + 6} runs" in words(app)
    app.multiselect(key="url-suite").set_value(["pacs:photo"]).run()
    assert app.query_params["suite"] == "pacs:photo"
    assert "4 runs" in words(app)
    assert len(listed(app)) == 4


def test_log__of_a_working_run_grows_and_is_read_from_where_it_was(crowd, caplog):
    run_id = crowd.ids["working"]

    def requests():
        found = re.findall(rf"/runs/{run_id}/logs\?([^ ]*)", caplog.text)
        caplog.clear()
        return found

    def shown(app):
        return "\n".join(c.value for c in app.code)

    with caplog.at_level(logging.INFO, logger="uvicorn.access"):
        app = page("run", id=run_id, tab="Logs")
        assert "The log is empty" in words(app)
        caplog.clear()
        crowd.store.records.append_log(run_id, 1, "".join(f"line {i}\n" for i in range(20_000)))
        app.run()
        assert "line 19999" in shown(app)
        assert "line 19400" not in shown(app)
        requests()
        before = crowd.store.history.logs(run_id).size_bytes
        for index in range(3):
            crowd.store.records.append_log(run_id, 1, f"news {index} ü\n")
            app.run()
            assert shown(app).endswith(f"news {index} ü")
            assert shown(app).count(f"news {index} ü") == 1
        app.run()
        assert shown(app).count("news 2 ü") == 1
        offsets = [int(re.findall(r"offset=(-?\d+)", query)[0]) for query in requests()]
    news = len("news 0 ü\n".encode())
    assert offsets == [before, before + news, before + 2 * news, before + 3 * news]


def test_workspace__runs_baseline_and_data_go_along(dashboard):
    runs = f"{dashboard.ids['FLYP']},{dashboard.ids['CaRot']}"
    app = page("compare", ids=runs, baseline=dashboard.ids["CaRot"])
    app.switch_page("views/calibration.py").run()
    assert app.query_params["run"] == runs
    assert app.query_params["baseline"] == dashboard.ids["CaRot"]
    app.selectbox(key="url-dataset").select("sketch").run()
    assert not app.exception
    assert "data: sketch" in words(app)
    app.switch_page("views/compare.py").run()
    assert app.selectbox(key="url-baseline").value == dashboard.ids["CaRot"]
    assert {"ids", "baseline", "dataset"} <= set(app.query_params)
    # A link says otherwise, and is right.
    other = page("compare", ids=runs, baseline=dashboard.ids["FLYP"])
    assert other.selectbox(key="url-baseline").value == dashboard.ids["FLYP"]


def test_workspace__a_run_has_the_colour_that_the_service_gave_it(dashboard):
    looks = {run.id: run.color_index for run in api.client().runs(limit=200).items}
    one = {run: looks[run] for run in (dashboard.ids["FLYP"], dashboard.ids["CaRot"])}
    assert len(set(one.values())) == 2
    for run, look in one.items():
        alone = words(page("shifts", run=run))
        both = words(page("shifts", run=",".join(one)))
        mark = f"background:{style.both(style.PALETTE[look % len(style.PALETTE)])}"
        assert mark in alone
        assert mark in both
