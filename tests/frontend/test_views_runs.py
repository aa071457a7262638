"""Overview, Runs and Run against a real API."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calift_core.client import Client
from calift_core.errors import StorageError
from frontend import page as dashboard_page
from frontend import tables
from frontend.figures.style import PALETTE
from frontend.tables import Column, Table
from tests.frontend.conftest import pointed_at, service
from tests.frontend.driving import TABS, charts_of, choose, components_of, listed, page, words


def test_overview__shows_work_failure_and_the_newest_result_and_opens_its_evidence(dashboard):
    app = page("overview")
    output = words(app)
    for name in ("CaRot (second seed)", "CaRot with a large batch", "CaRot on fashion-mnist"):
        assert name in output
    assert "out of memory" in output
    assert "To mend it" in output
    assert "pp to zero-shot" in output
    for part in ("Lowest accuracy", "Largest over-confidence", "Leaderboard", "Forgotten",
                 "Suggested recipe", "points too sure", "of what was right before"):  # fmt: skip
        assert part in output
    links = {x.proto.label: x.proto.query_string for x in app.get("page_link")}
    assert f"baseline={dashboard.ids['zero-shot']}" in links["Ledger and images"]
    assert dashboard.ids["CaRot"] in links["Compare them"]
    assert "dataset=" in links["Its diagram and images"]
    assert links["Change and run again"] == f"clone={dashboard.ids['failed']}"
    assert app.button(key=f"retry-{dashboard.ids['failed']}").label == "Retry"


def test_overview__judges_files_that_are_dropped(dashboard):
    rows = "\n".join(f"{'ab'[i % 2]},0.{3 + i % 5},0.{7 - i % 5}" for i in range(60))
    csv = f"label,probs_a,probs_b\n{rows}".encode()
    app = page("overview")
    drop = app.file_uploader(key="judge-files")
    drop.set_value([("mine.csv", csv, "text/csv")]).run()
    assert "On mine it is right on" in words(app)
    assert "There is no confidence from which on" in words(app)
    assert "A temperature" in words(app)
    assert any("Reliability diagram of mine" in alt for alt in charts_of(app))
    drop = app.file_uploader(key="judge-files")
    drop.set_value([(f"{name}.csv", csv, "text/csv") for name in ("mine", "night", "rival")]).run()
    assert "Of 2 shifts" in words(app)
    rival = next(box for box in app.selectbox if box.label.startswith("Another model"))
    rival.select_index(1).run()
    output = words(app).replace("\\", "")
    assert "Against rival, on the same samples: accuracy cannot be told apart" in output
    app.file_uploader(key="judge-files").set_value([("plain.csv", b"a,b\n1,2", "text/csv")]).run()
    assert "plain.csv must hold probs or logits, got a, b" in words(app).replace("\\", "")


def test_runs__lists_every_run_with_its_floor_and_those_that_are_chosen_can_be_compared(dashboard):
    app = page("runs")
    rows = listed(app)
    assert len(rows) == len(dashboard.ids)
    carot = next(row for row in rows if row["name"] == "CaRot on fashion-mnist")
    assert carot["id_ece"].endswith("floor 1.4\u00a0%")
    assert carot["ood_ece"].endswith("floor 4.2\u00a0%")
    assert next(b for b in app.button if b.label == "Compare").disabled
    done = [i for i, row in enumerate(rows) if row["id_accuracy"]][:2]
    choose(app, done)
    app.run()
    compare = next(b for b in app.button if b.label == "Compare")
    assert not compare.disabled
    compare.click().run()
    assert not app.exception
    assert len(app.query_params["ids"].split(",")) == 2


def test_runs__filters_come_from_the_url_and_go_back_to_it(dashboard):
    app = page("runs", status="FAILED")
    assert len(listed(app)) == 1
    app.multiselect(key="url-status").set_value(["SUCCEEDED", "FAILED"]).run()
    assert len(listed(app)) == 6
    assert app.query_params["status"] == "SUCCEEDED,FAILED"
    app.text_input(key="url-q").input("nothing is called so").run()
    assert "No run matches" in words(app)


def test_runs__columns_and_their_order_come_from_the_url(dashboard):
    app = page("runs", sort="-ood_accuracy", columns="method,ood_accuracy,id_ece,owner")
    found = listed(app)
    assert set(found[0]) == {"name", "method", "ood_accuracy", "id_ece", "owner"}
    (given,) = components_of(app, "rows")
    assert (given["sorted"], given["kept"]["value"]) == (
        "-ood_accuracy", "method.ood_accuracy.id_ece.owner"
    )  # fmt: skip
    values = [float(row["ood_accuracy"].split("\xa0")[0]) for row in found if row["ood_accuracy"]]
    assert values == sorted(values, reverse=True)
    assert len(values) > 3
    app.pills(key="url-columns").set_value(tables.runs.SHOWN).run()
    assert "columns" not in app.query_params
    assert components_of(app, "rows")[0]["kept"]["value"] == ""
    odd = page("runs", sort="nonsense", columns="nonsense")
    assert components_of(odd, "rows")[0]["sorted"] == "-created"


def test_runs__groups_show_means_with_their_standard_errors(dashboard):
    with Client() as client:
        groups = client.run_groups()
    app = page("runs", group="1")
    assert {row["name"] for row in listed(app)} == {group.name for group in groups}
    assert f"groups of {len(dashboard.ids)} runs" in words(app)


@given(
    st.lists(st.one_of(st.none(), st.floats(allow_nan=False), st.integers()), max_size=12),
    st.booleans(),
)
def test_order__is_that_of_the_values_and_what_has_none_comes_last(values, down):
    shown = Table([Column("x", "X", "number")], [{"x": value} for value in values])
    places = dashboard_page._sorted(shown, "-x" if down else "x")
    assert sorted(places) == list(range(len(values)))
    found = [values[k] for k in places]
    known = [value for value in values if value is not None]
    assert found == sorted(known, reverse=down) + [None] * (len(values) - len(known))
    aged = Table(shown.columns, [{"x": "words", "x_by": -k} for k in range(5)])
    assert dashboard_page._sorted(aged, "x") == [4, 3, 2, 1, 0]
    assert dashboard_page._sorted(shown, "nothing") == list(range(len(values)))


@pytest.mark.parametrize("tab", TABS)
def test_run__each_tab_of_a_finished_run(dashboard, tab):
    app = page("run", id=dashboard.ids["CaRot"], tab=tab)
    assert "CaRot on fashion-mnist" in words(app)
    expected = {"Curves": 8, "Shifts": 2, "Calibration": 2, "Spectrum": 3}
    drawn = len(charts_of(app))
    assert drawn == expected.get(tab, 0)


@pytest.mark.parametrize(
    ("name", "tab"),
    [
        pytest.param(name, tab, marks=() if (i + j) % 2 else pytest.mark.thorough)
        for i, name in enumerate(["running", "queued", "failed", "zero-shot"])
        for j, tab in enumerate(TABS)
    ],
)
def test_run__every_state_has_something_to_say(dashboard, name, tab):
    app = page("run", id=dashboard.ids[name], tab=tab)
    assert len(words(app)) > 100


def test_run__ships_two_towers_where_a_zero_shot_run_holds_its_start(dashboard):
    def ship(name, kind="disagreement"):
        app = page("run", id=dashboard.ids[name])
        return app.selectbox(key="ship-kind").set_value(kind).run()

    def make(app):
        return app.button(key="ship-make")

    one = ship("FLYP", "temperature")
    assert not make(one).disabled
    assert "Two towers" not in words(one)
    two = ship("FLYP")
    assert not two.exception
    assert two.selectbox(key="ship-initial").value == dashboard.ids["zero-shot"]
    assert "twice the weights and twice the time of an answer" in words(two)
    assert not make(two).disabled
    # Nothing is known of what CaRot started from, and a zero-shot run started from itself.
    none = ship("CaRot")
    assert "No finished zero-shot run of this suite holds the model" in words(none)
    assert make(none).disabled
    base = page("run", id=dashboard.ids["zero-shot"]).selectbox(key="ship-kind")
    assert not any("two towers" in option for option in base.options)


def test_run__a_model_that_cannot_be_made_is_reported_on_the_page(dashboard):
    app = page("run", id=dashboard.ids["FLYP"])
    refused = app.button(key="ship-make").click().run()
    assert not refused.exception
    assert f"run {dashboard.ids['FLYP']} has no finished model" in words(refused)
    assert "Imported predictions have none" in words(refused)
    # No file that nobody can have is offered; the visitor may try again.
    assert "Model, ZIP" not in [b.proto.label for b in refused.get("download_button")]
    assert not refused.button(key="ship-make").disabled


def test_run__a_waiting_run_says_what_it_waits_for(dashboard):
    from backend.store.engine import open_engine
    from backend.store.stores import Stores

    # A worker that was silent for a minute counts as gone, and the service may be older than that.
    store = Stores.on(open_engine(f"sqlite:///{dashboard.home / 'calift.db'}"))
    store.workers.seen(
        "worker-1", host="bench-01", queues=["cpu"], device="CPU, 8 cores",
        run_id=dashboard.ids["running"],
    )  # fmt: skip
    store.close()
    assert "could take it is busy" in words(page("run", id=dashboard.ids["queued"]))


def test_overview__a_worker_that_is_out_says_why(tmp_path, monkeypatch):
    from backend.store.engine import open_engine
    from backend.store.stores import Stores
    from tests.conftest import spec_of

    with service(tmp_path) as made, pointed_at(monkeypatch, made.url, made.home):
        store = Stores.on(open_engine(f"sqlite:///{made.home / 'calift.db'}"))
        store.workers.seen(
            "w", host="box", queues=["cpu"], device="cpu", trouble="1 MiB is free in /data"
        )
        run_id = store.runs.submit(spec_of())
        store.close()
        assert "out: 1 MiB is free in /data" in words(page("overview"))
        output = words(page("run", id=run_id)).replace("\\", "")  # escaped for Markdown
        assert "box: 1 MiB is free in /data" in output


def test_run__a_failure_says_why_and_what_to_do(dashboard):
    output = re.sub(r"\\", "", words(page("run", id=dashboard.ids["failed"])))
    assert "OOM" in output
    assert "Raise train.accumulation_steps" in output


def test_run__an_unknown_id_is_an_error_with_its_request_id_and_none_is_none(dashboard):
    (error,) = page("run", id="000000000000").error
    assert "request id" in error.value
    assert "404" in error.value
    assert "No run is named" in words(page("run"))


def test_run__looks_on_its_own_page_as_the_service_says(dashboard):
    run_id = dashboard.ids["CaRot"]
    with Client() as client:
        index = client.run(run_id).color_index
    for tab in ("Shifts", "Calibration"):
        app = page("run", id=run_id, tab=tab)
        assert app.session_state["run-slots"][run_id] == index % len(PALETTE)


def test_files__one_that_the_service_refuses_says_why_and_the_next_try_saves_it(
    dashboard, monkeypatch
):
    app = page("run", id=dashboard.ids["FLYP"], tab="Artifacts")
    key = f"get-{dashboard.ids['FLYP']}"

    def refuse(*given):
        raise StorageError("the stored bytes are not those that were stored")

    with monkeypatch.context() as patch:
        patch.setattr(Client, "download_artifact", refuse)
        refused = app.button(key=f"make-{key}").click().run()
    assert "the stored bytes are not those that were stored" in refused.error[0].value
    assert not refused.exception
    app = refused.button(key=f"make-{key}").click().run()
    assert not app.error
    assert "Save the file" in [b.proto.label for b in app.get("download_button")]
    other = app.selectbox(key=f"artifact-{dashboard.ids['FLYP']}")
    assert len(other.options) > 1
    app = other.select_index(1).run()
    assert app.button(key=f"make-{key}").label == "Get the file"
