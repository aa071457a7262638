"""Every page against a real API: it draws, keeps its state in the URL, and says what fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from calift_core.schema.methods import METHOD_SPECS
from tests.conftest import free_port
from tests.core.conftest import write_classes
from tests.frontend.conftest import Service, pointed_at, service

APP = Path(__file__).parents[2] / "frontend" / "app.py"
TABS = ("Curves", "Shifts", "Calibration", "Spectrum", "Config", "Artifacts", "Logs")


def page(name: str, **params: str) -> AppTest:
    """Run a page by its file, with query parameters."""
    app = AppTest.from_file(str(APP), default_timeout=60)
    for key, value in params.items():
        app.query_params[key] = value
    app.switch_page(f"views/{name}.py")
    app.run()
    assert not app.exception, [e.value for e in app.exception]
    return app


def submit_of(app: AppTest) -> Any:
    """The form's button."""
    return next(b for b in app.button if b.label == "Submit")


def words(app: AppTest) -> str:
    """All that the page says."""
    kinds = ("html", "markdown", "caption", "error", "warning", "info", "subheader", "code")
    said = [str(e.value if kind != "html" else e.proto.body)
            for kind in kinds for e in app.get(kind)]  # fmt: skip
    said += [re.sub(r"\\(.)", r"\1", link.proto.label) for link in app.get("page_link")]
    return " ".join([*said, *(frame.value.to_csv() for frame in app.dataframe)])


def listed(app: AppTest) -> list[dict[str, Any]]:
    """The rows of the page's first table that can be opened and chosen from."""
    return list(app.dataframe[0].value.to_dict("records")) if app.dataframe else []


def charts_of(app: AppTest) -> list[str]:
    """The descriptions of the charts on the page."""
    return [element.proto.alt for element in app.get("plotly_chart")]


def three(service: Service) -> str:
    return ",".join(service.ids[name] for name in ("zero-shot", "FLYP", "CaRot"))


def test_overview__shows_work_failure_and_the_newest_result(dashboard: Service) -> None:
    said = words(page("overview"))
    for name in ("CaRot (second seed)", "CaRot with a large batch", "CaRot on fashion-mnist"):
        assert name in said
    assert "out of memory" in said
    assert "pp to zero-shot" in said


def test_runs__lists_every_run_with_its_floor(dashboard: Service) -> None:
    rows = listed(page("runs"))
    assert len(rows) == len(dashboard.ids)
    carot = next(row for row in rows if row["name"] == "CaRot on fashion-mnist")
    assert carot["id_ece_floor"] > 0
    assert carot["ood_ece_floor"] > 0


def test_runs__what_is_chosen_in_the_table_can_be_compared(dashboard: Service) -> None:
    app = page("runs")
    assert next(b for b in app.button if b.label == "Compare").disabled
    done = [i for i, row in enumerate(listed(app)) if row["id_accuracy"] > 0][:2]
    app.session_state[app.dataframe[0].key] = {"selection": {"rows": done, "columns": []}}
    app.run()
    compare = next(b for b in app.button if b.label == "Compare")
    assert not compare.disabled
    compare.click().run()
    assert not app.exception
    assert len(app.query_params["ids"].split(",")) == 2


def test_runs__filters_come_from_the_url_and_go_back_to_it(dashboard: Service) -> None:
    app = page("runs", status="FAILED")
    assert len(listed(app)) == 1
    app.multiselect(key="url-status").set_value(["SUCCEEDED", "FAILED"]).run()
    assert len(listed(app)) == 6
    assert app.query_params["status"] == "SUCCEEDED,FAILED"
    app.text_input(key="url-q").input("nothing is called so").run()
    assert "No run matches" in words(app)


@pytest.mark.parametrize("tab", TABS)
def test_run__each_tab_of_a_finished_run(dashboard: Service, tab: str) -> None:
    app = page("run", id=dashboard.ids["CaRot"], tab=tab)
    assert "CaRot on fashion-mnist" in words(app)
    expected = {"Curves": 6, "Shifts": 2, "Calibration": 2, "Spectrum": 3}
    assert len(charts_of(app)) == expected.get(tab, 0)


@pytest.mark.parametrize("name", ["running", "queued", "failed", "zero-shot"])
@pytest.mark.parametrize("tab", TABS)
def test_run__every_state_has_something_to_say(dashboard: Service, name: str, tab: str) -> None:
    app = page("run", id=dashboard.ids[name], tab=tab)
    assert len(words(app)) > 100


def test_run__a_waiting_run_says_what_it_waits_for(dashboard: Service) -> None:
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


def test_overview__a_worker_that_is_out_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backend.store.engine import open_engine
    from backend.store.stores import Stores
    from tests.conftest import spec_of

    with service(tmp_path, filled=False) as made, pointed_at(monkeypatch, made.url, made.home):
        store = Stores.on(open_engine(f"sqlite:///{made.home / 'calift.db'}"))
        store.workers.seen(
            "w", host="box", queues=["cpu"], device="cpu", trouble="1 MiB is free in /data"
        )
        run_id = store.runs.submit(spec_of())
        store.close()
        assert "out: 1 MiB is free in /data" in words(page("overview"))
        said = words(page("run", id=run_id)).replace("\\", "")  # escaped for Markdown
        assert "box: 1 MiB is free in /data" in said


def test_run__a_failure_says_why_and_what_to_do(dashboard: Service) -> None:
    said = re.sub(r"\\", "", words(page("run", id=dashboard.ids["failed"])))
    assert "OOM" in said
    assert "Raise train.accumulation_steps" in said


def test_run__an_unknown_id_is_an_error_with_its_request_id(dashboard: Service) -> None:
    app = page("run", id="000000000000")
    assert len(app.error) == 1
    assert "request id" in app.error[0].value
    assert "404" in app.error[0].value


def test_run__without_an_id_the_next_step_is_shown(dashboard: Service) -> None:
    assert "No run is named" in words(page("run"))


def test_compare__pairs_the_runs_of_the_url(dashboard: Service) -> None:
    base = dashboard.ids["zero-shot"]
    app = page("compare", ids=three(dashboard), baseline=base)
    said = words(app)
    assert "What differs" in said
    assert "method › kind" in said
    assert any("difference to zero-shot" in alt for alt in charts_of(app))
    assert "Which run is best by Accuracy?" in said
    assert "May be the best" in said
    app.session_state["url-metric"] = "ece"
    app.run()
    assert not app.exception
    said = words(app)
    assert "What decides is the squared L2 error" in said
    assert "pp²" in said
    app.selectbox(key="url-baseline").select(dashboard.ids["FLYP"]).run()
    assert not app.exception
    assert app.query_params["baseline"] == dashboard.ids["FLYP"]
    assert any("difference to FLYP" in alt for alt in charts_of(app))


def test_compare__one_run_is_too_few(dashboard: Service) -> None:
    assert "at least two" in words(page("compare", ids=dashboard.ids["CaRot"]))


def test_calibration__the_url_restores_the_view(dashboard: Service) -> None:
    app = page(
        "calibration", run=dashboard.ids["FLYP"], dataset="sketch", bins="7", scheme="equal_width",
        temperature="1.5",
    )  # fmt: skip
    assert app.number_input(key="url-bins").value == 7
    assert app.selectbox(key="url-dataset").value == "sketch"
    assert app.slider(key="url-temperature").value == 1.5
    assert "on sketch" in charts_of(app)[0]
    title = app.get("plotly_chart")[0].proto.spec
    assert "7 bins, equal width" in title
    assert "T = 1.5" in title


def test_calibration__changes_go_to_the_url_and_defaults_stay_out(dashboard: Service) -> None:
    app = page("calibration", run=dashboard.ids["FLYP"])
    assert "bins" not in app.query_params
    app.number_input(key="url-bins").set_value(5).run()
    assert app.query_params["bins"] == "5"
    app.number_input(key="url-bins").set_value(15).run()
    assert "bins" not in app.query_params


@pytest.mark.parametrize("nonsense", ["0", "-3", "many", "1e9"])
def test_calibration__nonsense_in_the_url_is_the_default(dashboard: Service, nonsense: str) -> None:
    app = page("calibration", run=dashboard.ids["FLYP"], bins=nonsense, dataset=nonsense,
               scheme=nonsense, temperature=nonsense)  # fmt: skip
    assert app.number_input(key="url-bins").value == 15
    assert app.slider(key="url-temperature").value == 1.0 or nonsense == "1e9"


def test_calibration__several_runs_side_by_side_and_overlaid(dashboard: Service) -> None:
    apart = page("calibration", run=three(dashboard))
    assert len(charts_of(apart)) == 3
    together = page("calibration", run=three(dashboard), overlay="1")
    assert len(charts_of(together)) == 1


def test_slices__the_url_restores_condition_grouping_and_order(dashboard: Service) -> None:
    app = page(
        "calibration", run=three(dashboard), dataset="sketch", view="slices", by="predicted",
        order="-gap", where="confidence >= 0.5",
    )  # fmt: skip
    assert app.selectbox(key="url-by").value == "predicted"
    assert app.text_input(key="url-where").value == "confidence >= 0.5"
    (alt,) = charts_of(app)
    assert alt.startswith("Gap by predicted class, 10 slices")
    for name in ("zero-shot", "FLYP", "CaRot"):
        assert f"{name} on fashion-mnist: " in alt
    app.text_input(key="url-where").set_value("rank >= 1").run()
    assert app.query_params["where"] == "rank >= 1"
    app.selectbox(key="url-by").set_value("dataset").run()
    assert not app.exception
    assert "Gap by data set, 8 slices" in charts_of(app)[0]


def test_slices__a_condition_that_is_none_is_explained_and_nothing_is_lost(
    dashboard: Service,
) -> None:
    app = page("calibration", run=dashboard.ids["FLYP"], view="slices", where="confidence is high")
    assert "INVALID" in app.error[0].value
    assert app.text_input(key="url-where").value == "confidence is high"
    app.text_input(key="url-where").set_value("rank > 99").run()
    assert "No sample meets the condition" in words(app)
    app.text_input(key="url-where").set_value("").run()
    assert "where" not in app.query_params
    assert len(charts_of(app)) == 1


def test_calibrators__before_after_and_the_matrix(dashboard: Service) -> None:
    app = page("calibration", run=dashboard.ids["FLYP"], view="calibrators", dataset="sketch")
    overlay, matrix = charts_of(app)
    assert "before and after temperature (fitted on fashion-mnist/calibration" in overlay
    assert "fashion-mnist/calibration: " in matrix
    assert "4 further rows are oracles" in matrix
    assert not app.warning
    app.selectbox(key="url-fit").set_value("sketch").run()
    assert not app.exception
    assert app.query_params["fit"] == "sketch"
    assert "Oracle" in app.warning[0].value
    assert "In-sample" in app.warning[1].value
    assert "ORACLE" in charts_of(app)[0]
    app.selectbox(key="url-kind").set_value("isotonic").run()
    assert app.query_params["kind"] == "isotonic"
    assert "isotonic" in charts_of(app)[1]
    left_out = app.multiselect(key="url-with")
    assert "gaussian noise, severity" in left_out.options[0]
    assert "gaussian_noise" not in charts_of(app)[1]
    left_out.set_value(["gaussian_noise/5"]).run()
    assert not app.exception
    assert app.query_params["with"] == "gaussian_noise/5"
    assert "gaussian_noise/5" in charts_of(app)[1]
    assert "5 further rows are oracles" in charts_of(app)[1]


def test_calibrators__tsp_without_perturbed_copies_says_what_is_missing(
    dashboard: Service,
) -> None:
    app = page("calibration", run=dashboard.ids["FLYP"], view="calibrators", kind="tsp")
    assert "perturbed" in app.error[0].value


def test_audit__every_estimator_of_every_run_with_its_floor(dashboard: Service) -> None:
    app = page("calibration", run=three(dashboard), view="audit")
    (alt,) = charts_of(app)
    assert "estimators" in alt
    said = words(app)
    for name in ("Batch-averaged ECE, batches of 64", "Smooth ECE", "Class-wise ECE"):
        assert said.count(name) >= 3
    assert "where a calibrated model reads" in said
    assert "view=audit" not in said
    assert app.query_params["view"] == "audit"


def test_diagram__a_smooth_curve_on_request(dashboard: Service) -> None:
    app = page("calibration", run=dashboard.ids["FLYP"])
    assert "smooth curve" not in app.get("plotly_chart")[0].proto.spec
    app.toggle(key="url-smooth").set_value(True).run()
    assert app.query_params["smooth"] == "1"
    assert "smooth curve" in app.get("plotly_chart")[0].proto.spec


def test_temperature__moves_confidence_and_never_accuracy(dashboard: Service) -> None:
    def card(temperature: str, label: str) -> str:
        app = page("calibration", run=dashboard.ids["FLYP"], temperature=temperature)
        found = re.search(rf"<dt>{label}</dt><dd>([^<]+)", words(app))
        assert found is not None
        return found[1]

    assert card("0.5", "Accuracy") == card("2", "Accuracy")
    assert card("0.5", "Confidence") != card("2", "Confidence")


@pytest.mark.parametrize("metric", ["accuracy", "ece", "nll"])
def test_shifts__heat_map_dots_and_corruptions(dashboard: Service, metric: str) -> None:
    app = page("shifts", run=three(dashboard), metric=metric)
    assert len(charts_of(app)) == 6
    assert all(charts_of(app))


def test_spectra__the_step_is_part_of_the_url(dashboard: Service) -> None:
    app = page("spectra", run=three(dashboard), step="20")
    assert "(step 20)" in charts_of(app)[0]
    assert "zero-shot" in words(app)  # it has no such step, and the page says so
    assert len(charts_of(app)) == 3


def frontier(service: Service, **params: str) -> AppTest:
    chosen = ",".join(service.ids[n] for n in ("zero-shot", "FLYP", "CaRot", "WiSE-FT"))
    return page("frontier", run=chosen, **params)


def test_frontier__both_charts_name_the_front_and_the_path(dashboard: Service) -> None:
    app = frontier(dashboard)
    robust, calibrated = charts_of(app)
    assert robust.startswith("OOD accuracy against ID accuracy")
    assert calibrated.startswith("OOD ECE against OOD accuracy")
    for alt in (robust, calibrated):
        assert "WiSE-FT of FLYP at α = 0.5" in alt
        assert "On the Pareto front" in alt
    said = words(app)
    assert "WiSE-FT of FLYP" in said
    assert "the NLL is lowest at" in said
    assert said.count("<td") > 11 * 10  # the path as a table
    assert "Launch WiSE-FT" not in said


def test_frontier__its_choices_are_in_the_url(dashboard: Service) -> None:
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


def test_frontier__without_a_path_the_next_step_is_a_link(dashboard: Service) -> None:
    flyp = dashboard.ids["FLYP"]
    app = page("frontier", run=f"{dashboard.ids['zero-shot']},{flyp}")
    assert "No path between two models" in words(app)
    assert len(charts_of(app)) == 2
    (link,) = [p.proto for p in app.get("page_link") if "WiSE" in p.proto.label]
    assert link.query_string == f"method=wise_ft&input={flyp}"
    alone = page("frontier", run=dashboard.ids["zero-shot"])
    (link,) = [p.proto for p in alone.get("page_link") if "WiSE" in p.proto.label]
    assert link.query_string == "method=wise_ft"


def test_data__lists_suites_and_models(dashboard: Service) -> None:
    said = words(page("data"))
    assert "fashion-mnist" in said
    assert "ViT-B-16" in said


@pytest.mark.parametrize("kind", [kind for kind, spec in METHOD_SPECS.items() if spec.offered])
def test_new__the_form_of_every_method_is_valid_as_it_stands(dashboard: Service, kind: str) -> None:
    app = page("new", method=kind)
    if kind in ("wise_ft", "model_stock"):  # somebody has to choose the runs
        assert "Field required" in app.error[0].value
        ids = [dashboard.ids["FLYP"], dashboard.ids["CaRot"]]
        key = f"new-quick-{kind}-method.run"
        if kind == "wise_ft":
            app.selectbox(key=key).set_value(ids[0]).run()
        else:
            app.multiselect(key=f"{key}s").set_value(ids).run()
    assert not app.error
    assert "Training images" in words(app)
    assert f"kind: {kind}" in words(app)


def test_new__a_method_that_lost_its_ablation_is_not_offered(dashboard: Service) -> None:
    chooser = page("new").selectbox(key="url-method")
    assert "CaRot" in chooser.options
    assert "CaRot+" not in chooser.options


def test_new__a_merge_of_a_run_takes_its_model_and_data(dashboard: Service) -> None:
    flyp = dashboard.ids["FLYP"]
    app = page("new", method="wise_ft", input=flyp)
    assert not app.error
    assert app.selectbox(key=f"new-input-{flyp}-wise_ft-wise_ft-method.run").value == flyp
    assert app.text_input(key=f"new-input-{flyp}-wise_ft-name").value == (
        "wise-ft of FLYP on fashion-mnist"
    )
    assert "gaussian_noise" in words(app)  # the run's own corruptions
    stock = page("new", method="model_stock", input=flyp)
    assert stock.multiselect(key=f"new-input-{flyp}-model_stock-model_stock-method.runs").value == [
        flyp
    ]
    assert "at least 2" in stock.error[0].value


def test_new__a_clone_takes_the_alpha_of_the_link(dashboard: Service) -> None:
    wise = dashboard.ids["WiSE-FT"]
    app = page("new", clone=wise, alpha="0.3")
    assert "alpha: 0.3" in words(app)
    assert "WiSE-FT of FLYP at 0.3" in words(app)
    for nonsense in ("2", "many", ""):
        assert "alpha" not in words(page("new", clone=wise, alpha=nonsense)).split("sweep")[0]


def test_new__the_name_follows_the_method_until_it_is_edited(dashboard: Service) -> None:
    app = page("new")
    name = "new-quick-name"
    assert app.text_input(key=name).value == "carot on fashion-mnist"
    app.selectbox(key="url-method").set_value("flyp").run()
    assert app.text_input(key=name).value == "flyp on fashion-mnist"
    app.text_input(key=name).set_value("mine").run()
    app.selectbox(key="url-method").set_value("carot").run()
    app.selectbox(key="new-quick-suite.id").set_value("pacs").run()
    assert app.text_input(key=name).value == "mine"
    app.text_input(key=name).set_value(" ").run()
    assert app.text_input(key=name).value == "carot on pacs"


def test_new__a_misspelt_corruption_is_refused_with_the_nearest(dashboard: Service) -> None:
    app = page("new")
    field = app.multiselect(key="new-quick-suite.corruptions.names")
    assert field.value == ["gaussian_noise", "jpeg_compression"]
    field.set_value(["fog", "gausian_noise"]).run()
    assert "Did you mean 'gaussian\\_noise'" in app.error[0].value
    below = [m.value for m in app.markdown if m.value.startswith(":red[")]
    assert len(below) == 1, "beside the field itself"
    assert "gausian" in below[0]
    assert submit_of(app).disabled
    app.multiselect(key="new-quick-suite.corruptions.names").set_value(["benchmark"]).run()
    assert not app.error
    assert "names: benchmark" in words(app)
    assert not submit_of(app).disabled


def test_new__what_is_not_there_cannot_be_submitted_and_a_bare_path_is_a_folder(
    bare: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from calift_core.client import Client

    write_classes(tmp_path / "birds", ("cat", "dog"), n=30)
    spec = {"name": "a run", "method": {"kind": "flyp"}, "train": {"epochs": 2}}

    def form(folder: str, **shifts: str) -> AppTest:
        """The form of a run on this folder: a box for typed values takes none here."""
        made = client.submit(spec | {"suite": {"id": str(tmp_path / folder), "shifts": shifts}})
        app = page("new", clone=made.id)
        client.cancel(made.id)
        client.delete(made.id)
        return app

    with pointed_at(monkeypatch, bare.url, bare.home), Client() as client:
        gone = form("nowhere")
        assert f"there is no folder '{tmp_path}/nowhere'" in gone.error[0].value.replace("\\", "")
        assert submit_of(gone).disabled
        here = form("birds")
        assert not here.error
        assert not submit_of(here).disabled
        assert f"folder:{tmp_path}/birds" in words(here)
        assert "Only 2 steps of training" in words(here)
        shift = form("birds", art=str(tmp_path / "art"))
        assert "the shift 'art': there is no folder" in shift.error[0].value.replace("\\", "")
        assert submit_of(shift).disabled


def test_new__says_what_is_evaluated_and_what_is_chosen_on(dashboard: Service) -> None:
    app = page("new", preset="blank")
    app.selectbox(key="new-blank-suite.id").set_value("cifar10-c").run()
    said = words(app)
    for figure in ("760,000", "test 10,000, corruptions 750,000", "39,859"):
        assert figure in said, figure
    assert submit_of(app).disabled  # nobody downloads it


def test_pickers__find_any_run_on_the_server_and_keep_the_chosen(dashboard: Service) -> None:
    app = page("shifts", run=dashboard.ids["FLYP"])
    app.text_input(key="url-find").set_value("zero").run()
    options = app.multiselect(key="url-run").options
    assert any("zero-shot" in option for option in options)
    assert not any(option.startswith("CaRot") for option in options)
    assert app.multiselect(key="url-run").value == [dashboard.ids["FLYP"]]


def test_new__a_fault_is_named_by_its_field_and_cannot_be_submitted(dashboard: Service) -> None:
    app = page("new")
    app.number_input(key="new-quick-train.batch_size").set_value(256).run()
    app.number_input(key="new-quick-train.accumulation_steps").set_value(3).run()
    assert "must be a multiple of accumulation" in re.sub(r"\\", "", app.error[0].value)
    submit = submit_of(app)
    assert submit.disabled


def test_new__a_clone_begins_with_the_runs_settings(dashboard: Service) -> None:
    app = page("new", clone=dashboard.ids["CaRot"])
    key = f"new-clone-{dashboard.ids['CaRot']}-train.epochs"
    assert app.number_input(key=key).value == 4
    assert "CaRot on fashion-mnist copy" in words(app)


@pytest.mark.parametrize(
    "name",
    ["overview", "runs", "compare", "calibration", "frontier", "shifts", "spectra", "new", "data"],
)
def test_empty__every_page_says_what_to_do(
    bare: Service, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with pointed_at(monkeypatch, bare.url, bare.home):
        app = page(name)
    assert not app.error
    if name not in ("new", "data"):
        assert re.search("No finished run yet|No run yet|Nothing has run", words(app))


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with pointed_at(monkeypatch, f"http://127.0.0.1:{free_port()}", tmp_path):
        yield


@pytest.mark.parametrize("name", ["overview", "runs", "calibration", "new", "data"])
def test_unreachable__every_page_says_where_it_looked(nowhere: None, name: str) -> None:
    app = page(name)
    assert "127" in app.error[0].value
    assert "calift up" in app.error[0].value


def test_unreachable__the_last_good_answer_stays_with_a_word(
    dashboard: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = page("runs")
    before = listed(app)
    assert before
    monkeypatch.setenv("CALIFT_API_URL", f"http://127.0.0.1:{free_port()}")
    app.run()
    assert not app.exception
    assert [row["name"] for row in listed(app)] == [row["name"] for row in before]
    assert "received at" in app.warning[0].value


def test_names__what_people_typed_is_shown_and_not_run(
    bare: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calift_core.client import Client

    with pointed_at(monkeypatch, bare.url, bare.home), Client() as client:
        notes = "<img src=x onerror=alert(1)> [link](javascript:alert(1))"
        made = client.submit(
            {"name": "a (plain) name", "method": {"kind": "flyp"}, "tags": ["<b>"],
             "notes": notes}
        )  # fmt: skip
        runs = page("runs")
        opened = page("run", id=made.id, tab="Config")
        client.cancel(made.id)
        client.delete(made.id)
    assert "<b>" not in "".join(e.proto.body for e in runs.get("html"))
    assert listed(runs)[0]["tags"] == "<b>"  # a cell of text, which formats nothing
    assert "<img" not in "".join(e.proto.body for e in opened.get("html"))
    assert opened.text[0].value == notes  # plain text, not Markdown
