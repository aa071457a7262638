"""Compare, Shifts, Spectra, Frontier, Data against a real API."""

import re

import pytest
from streamlit.testing.v1 import AppTest

from calift_core.client import Client
from frontend import text
from frontend.tables import ood
from tests.frontend.conftest import Service
from tests.frontend.driving import charts_of, components_of, page, three, words


def test_compare__pairs_the_runs_of_the_url(dashboard):
    base = dashboard.ids["zero-shot"]
    app = page("compare", ids=three(dashboard), baseline=base)
    output = words(app)
    assert "What differs" in output
    assert "method › kind" in output
    assert any("difference to zero-shot" in alt for alt in charts_of(app))
    first = re.search(r"Over the 3 shifts .*?FLYP.*?over the 4 corruptions .*?on ID data", output)
    assert first.start() < output.index("Of 8 data sets: better on")
    assert "95 % interval" in first[0]
    assert output.count("statistically tied for best") >= 3
    assert "forgotten" in output
    assert "ID data: 1 data set, Shifts, mean: 3 data sets" in output
    app.session_state["url-metric"] = "ece"
    app.run()
    assert not app.exception
    output = words(app)
    assert "The interval is of the L2 error" in output
    app.selectbox(key="url-baseline").select(dashboard.ids["FLYP"]).run()
    assert not app.exception
    assert app.query_params["baseline"] == dashboard.ids["FLYP"]
    assert any("difference to FLYP" in alt for alt in charts_of(app))
    assert "at least two" in words(page("compare", ids=dashboard.ids["CaRot"]))


def test_compare__what_was_forgotten_opens_its_images(dashboard):
    app = page("compare", ids=three(dashboard), baseline=dashboard.ids["zero-shot"])
    for outcome in ("lost", "gained"):
        app.button(key=f"ledger-{outcome}").click().run()
        assert not app.exception
        requested = dict(part.split("=") for part in app.query_params["images"].split("&"))
        assert requested["outcome"] == outcome
        assert requested["against"] != requested["evaluation"]
        assert "Images: " in words(app)


def test_runs__that_nobody_chose_are_compared_with_the_zero_shot_run(dashboard):
    for name, param in (("compare", "ids"), ("calibration", "run")):
        assert dashboard.ids["zero-shot"] in page(name).query_params[param]
    app = page("calibration", run=dashboard.ids["CaRot"])
    assert re.search(r"CaRot.* than zero|of .*CaRot.* and zero", words(app))
    app.switch_page("views/compare.py").run()
    assert "accuracy is" in words(app)


def test_decide__says_what_each_threshold_keeps(dashboard):
    runs = f"{dashboard.ids['zero-shot']},{dashboard.ids['CaRot']}"
    app = page("decide", run=runs, risk="0.1", beside="sketch")
    output = words(app)
    assert output.count("keep predictions whose confidence is at least") == 2
    assert len(charts_of(app)) == 3
    (kept,) = [alt for alt in charts_of(app) if alt.startswith("sketch")]
    (own,) = [a for a in charts_of(app) if a.startswith("fashion")]
    assert "CaRot on fashion-mnist keeps" in kept
    links = [x.proto for x in app.get("page_link") if x.proto.label.startswith("Errors that are")]
    assert all("where=confidence" in link.query_string for link in links)
    for run in runs.split(","):
        with Client(dashboard.url) as client:
            test = client.decision(run, risk=0.1).test
        doubt = test.distinguishable or (test.risk or 0.0) > 0.1
        assert (f"a difference of {text.points(test.difference)}" in output) == doubt
        assert ("the promise is broken on fashion" in output) >= (test.holds is False)
    app.select_slider(key="url-risk").set_value("0.001").run()
    assert "no threshold can promise at most 0.1" in words(app).replace("\\", "")
    assert app.query_params["risk"] == "0.001"
    assert own


def test_decide__says_how_well_shifts_are_told_from_id_data(dashboard):
    run = dashboard.ids["CaRot"]
    app = page("decide", run=run, view="ood")
    with Client(dashboard.url) as client:
        found = client.ood(run)
    output = words(app).replace("\\", "")
    assert "from the ID test images best (AUROC" in output
    assert "kNN and relative Mahalanobis are missing" in output
    shift, best = found.sets[0], ood.best_score(found.sets)
    (chart,) = charts_of(app)
    assert f"AUROC {ood.of_score(shift, best).auroc.value:.3f}" in chart
    other = next(row.score for row in shift.scores if row.score != best)
    app.selectbox(key="url-score").select(other).run()
    assert not app.exception
    assert app.query_params["score"] == other
    assert charts_of(app)[0].startswith(f"{ood.TITLES[other]} of ")
    # A far set is no shift: it has a sentence and rows of its own, and images by its run.
    assert "Of the far sets, " in output
    assert {row["kind"] for row in ood.table(found).rows} == {"shift", "far"}
    app = page("decide", run=run, view="ood", beside="textures")
    assert " of textures" in charts_of(app)[0]
    images = [item for one in components_of(app, "gallery") for item in one["items"]]
    row = ood.of_score(found.sets[-1], best)
    assert [item["label"] for item in images] == [*row.above, *row.below]
    assert all(f"run={run}&dataset=textures&sample=" in item["src"] for item in images)


def test_bound__shows_every_run_and_says_what_is_missing(dashboard):
    app = page("bound", term="effective_rank")
    assert charts_of(app) == ["OOD ECE against Effective rank: 5 runs of 5 methods."]
    assert "at least 8 runs, got 5" in words(app).replace("\\", "")
    with Client() as client:
        points = client.bound(suite=client.run(dashboard.ids["FLYP"]).suite).runs
        looks = [client.run(point.run_id).color_index for point in points]
    assert [point.color_index for point in points] == looks
    assert len(set(looks)) == len(points)


def test_plan__fewer_samples_do_in_pairs(dashboard):
    runs = {"run": f"{dashboard.ids['FLYP']},{dashboard.ids['CaRot']}", "dataset": "sketch"}

    def needed(**params):
        output = words(page("plan", **runs, **params))
        return int(re.findall(r"CaRot.*? takes \*\*([\d,]+)\*\*", output)[-1].replace(",", ""))

    alone = needed()
    assert needed(against=dashboard.ids["FLYP"]) < alone
    assert needed(difference="2") == pytest.approx(alone / 4, abs=1)


@pytest.mark.parametrize("metric", ["accuracy", "ece", "nll"])
def test_shifts__heat_map_dots_and_corruptions(dashboard, metric):
    app = page("shifts", run=three(dashboard), metric=metric)
    assert len(charts_of(app)) == 6
    assert all(charts_of(app))


def test_spectra__the_step_is_part_of_the_url(dashboard):
    app = page("spectra", run=three(dashboard), step="20")
    assert "(step 20)" in charts_of(app)[0]
    assert "zero-shot" in words(app)  # it has no such step, and the page says so
    assert len(charts_of(app)) == 3


def frontier(service: Service, **params: str) -> AppTest:
    chosen = ",".join(service.ids[n] for n in ("zero-shot", "FLYP", "CaRot", "WiSE-FT"))
    return page("frontier", run=chosen, **params)


def test_frontier__both_charts_name_the_front_and_the_path(dashboard):
    app = frontier(dashboard)
    robust, calibrated = charts_of(app)
    assert robust.startswith("OOD accuracy against ID accuracy")
    assert calibrated.startswith("OOD ECE against OOD accuracy")
    for alt in (robust, calibrated):
        assert "WiSE-FT of FLYP at α = 0.5" in alt
        assert "On the Pareto front" in alt
    output = words(app)
    assert "WiSE-FT of FLYP" in output
    assert "the NLL is lowest at" in output
    assert output.count("<td") > 11 * 10  # the path as a table
    assert "Launch WiSE-FT" not in output


def test_frontier__its_choices_are_in_the_url(dashboard):
    wise = dashboard.ids["WiSE-FT"]
    app = frontier(dashboard, **{"on": "id", f"alpha-{wise}": "0.3"})
    assert "ID ECE against ID accuracy" in charts_of(app)[1]
    assert app.select_slider(key=f"url-alpha-{wise}").value == "0.3"
    links = {p.proto.label: p.proto.query_string for p in app.get("page_link")}
    assert links["Keep the model at α = 0.3"] == f"clone={wise}&alpha=0.3"
    app.select_slider(key=f"url-alpha-{wise}").set_value("0.5").run()
    assert f"alpha-{wise}" not in app.query_params
    app.button_group(key="url-on").set_value("ood").run()
    assert "on" not in app.query_params


def test_frontier__without_a_path_the_next_step_is_a_link(dashboard):
    flyp = dashboard.ids["FLYP"]
    app = page("frontier", run=f"{dashboard.ids['zero-shot']},{flyp}")
    assert "No path between two models" in words(app)
    assert len(charts_of(app)) == 2
    (link,) = [p.proto for p in app.get("page_link") if "WiSE" in p.proto.label]
    assert link.query_string == f"method=wise_ft&input={flyp}"
    alone = page("frontier", run=dashboard.ids["zero-shot"])
    (link,) = [p.proto for p in alone.get("page_link") if "WiSE" in p.proto.label]
    assert link.query_string == "method=wise_ft"


def test_pickers__find_any_run_on_the_server_and_keep_the_chosen(dashboard):
    app = page("shifts", run=dashboard.ids["FLYP"])
    app.text_input(key="url-find").set_value("zero").run()
    options = app.multiselect(key="url-run").options
    assert any("zero-shot" in option for option in options)
    assert not any(option.startswith("CaRot") for option in options)
    assert app.multiselect(key="url-run").value == [dashboard.ids["FLYP"]]
