"""Sweeps in the dashboard: from the form of a run to the verdict, against a real API."""

import re
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from calift_core.client import Client
from tests.backend.test_sweeps import ACCURACY, predict_as
from tests.frontend.conftest import pointed_at
from tests.frontend.driving import charts_of, page, words
from tests.frontend.driving import listed as rows_of


@pytest.fixture
def dashboard(served, home, settings, monkeypatch):
    """The dashboard on an API of this test's own, where nothing has run."""
    settings.admin_token()
    with pointed_at(monkeypatch, served, home), Client(served, settings.admin_token()) as client:
        yield client


def button(app: AppTest, label: str) -> Any:
    return next(b for b in app.button if b.label == label)


def test_sweep__from_the_form_to_its_verdict_and_what_the_page_says_on_the_way(
    dashboard, app, finished_run
):
    services = app.state.services
    form = page("new")
    assert not [b for b in form.button if b.label == "Start the sweep"]
    form.toggle(key="url-sweep").set_value(True).run()  # click 2, after the page itself
    assert not [b for b in form.button if b.label == "Submit"], "what is filled in is a sweep now"
    form.multiselect(key="url-methods").set_value(["flyp", "carot"]).run()
    form.text_input(key="sweep-seeds").set_value("0, 1").run()
    form.text_input(key="sweep-ladder").set_value("1e-4, 1e-3").run()
    form.text_area(key="sweep-values").set_value("train.epochs 2").run()
    assert "a colon and its values" in words(form)
    form.text_area(key="sweep-values").set_value("train.epochs: 0").run()
    assert "train/epochs" in words(form).replace("\\", "")
    assert button(form, "Start the sweep").disabled
    form.text_area(key="sweep-values").set_value("").run()
    assert "Configurations: flyp, carot" in words(form).replace("\\", "")
    assert "max_runs: 200" in words(form)  # the same as a file
    button(form, "Start the sweep").click().run()
    assert not form.exception
    (sweep,) = dashboard.sweeps().items
    assert sweep.phase == "RUNNING"
    assert "0 of " in words(page("sweep", id=sweep.id))

    for _ in range(4):
        for run in dashboard.sweep_runs(sweep.id, limit=200).items:
            if run.phase == "QUEUED":
                spec = dashboard.run(run.id).spec
                accuracy = ACCURACY.get((run.method, spec["train"]["lr"]), 0.3)
                finished_run(
                    services.store,
                    services.artifacts,
                    run_id=run.id,
                    predict=predict_as(accuracy, run.seed),
                    selection={"validation": {"val_accuracy": accuracy}},
                )
        services.sweeping.advance(sweep.id)
    shown = page("sweep", id=sweep.id)
    assert dashboard.get_sweep(sweep.id).phase == "SUCCEEDED"
    verdict = dashboard.sweep_verdict(sweep.id)
    text = words(shown).replace("\\", "")
    assert shown.markdown[0].value.replace("\\", "") == f"## {verdict.sentence}"
    assert "carot" in text
    assert "<dt>To come</dt><dd>nothing" in words(shown)
    assert ">0.01</td>" in text
    curves, ladders, *_ = charts_of(shown)
    assert re.match(r"Accuracy \(ID validation\) over steps: 4 of flyp end between", curves)
    assert ladders.startswith("ID validation accuracy against")
    assert re.search(r"%</td>.* ± .* %</td>", words(shown).replace("\xa0", " "))
    judged = [g for g in dashboard.run_groups() if len(g.run_ids) > 1]
    assert {(g.sweep_id, g.numbers["ood_accuracy"].n) for g in judged} == {(sweep.id, 2)}
    assert sorted(g.method for g in judged) == ["carot", "flyp"]
    grouped = page("runs", group="1")
    assert sum("±" in row["id_accuracy"] for row in rows_of(grouped)) == 2
    listed = page("sweeps")
    assert sweep.name in words(listed)
    of_run = page("run", id=dashboard.sweep_runs(sweep.id).items[0].id)
    assert "Its sweep" in words(of_run)


def test_run__its_three_seeds_are_two_clicks_away(dashboard, app, finished_run):
    services = app.state.services
    run_id = finished_run(services.store, services.artifacts, train={"seed": 4})
    shown = page("run", id=run_id)
    button(shown, "Start three runs").click().run()
    assert not shown.exception
    (sweep,) = dashboard.sweeps().items
    assert sweep.preset == "three-seeds"
    runs = dashboard.sweep_runs(sweep.id).items
    assert sorted((run.method, run.seed) for run in runs) == [
        ("carot", 4), ("carot", 5), ("carot", 6),
    ]  # fmt: skip
    paused = page("sweep", id=sweep.id)
    button(paused, "Pause").click().run()
    assert dashboard.get_sweep(sweep.id).phase == "PAUSED"
    assert "Resume" in [b.label for b in page("sweep", id=sweep.id).button]


def test_sweeps__says_that_there_is_none_and_where_to_begin(dashboard):
    output = words(page("sweeps"))
    assert "No sweep yet" in output
    assert "Compare all methods" in output
    assert "No sweep is named" in words(page("sweep"))
    form = page("new", sweep="1", what="compare-methods")
    assert "Configurations: zero_shot, linear_probe" in words(form).replace("\\", "")
