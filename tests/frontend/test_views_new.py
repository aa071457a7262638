"""New run against a real API: a valid form, faults beside their fields, what is begun with."""

import shutil
from pathlib import Path

import pytest
import streamlit as st
import yaml
from streamlit.testing.v1 import AppTest

from calift_core.client import Client
from calift_core.schema.methods import METHOD_SPECS
from calift_core.schema.wire.operations import TokenMake
from tests.core.conftest import write_classes
from tests.frontend.conftest import pointed_at, service
from tests.frontend.driving import page, submit_of, unfold, words

#: A method of each kind of form; the widgets of all are drawn in `test_forms.py`.
FORMS = {"zero_shot", "linear_probe", "flyp", "carot", "coop", "wise_ft", "model_stock", "pretrain"}


@pytest.mark.parametrize(
    "kind", [k if k in FORMS else pytest.param(k, marks=pytest.mark.thorough) for k in METHOD_SPECS]
)
def test_new__the_form_of_every_method_is_valid_as_it_stands(dashboard, kind):
    app = page("new", method=kind)
    if METHOD_SPECS[kind].family == "merge":  # somebody has to choose the runs
        assert "Field required" in app.error[0].value
        ids = [dashboard.ids["FLYP"], dashboard.ids["CaRot"]]
        key = f"new-quick-{kind}-method.run"
        if kind != "model_stock":
            app.selectbox(key=key).set_value(ids[0]).run()
        else:
            app.multiselect(key=f"{key}s").set_value(ids).run()
    if kind == "pretrain":  # the embedded suite comes with its weights, not with what made them
        assert "no images in pretrain" in words(app)
        return
    assert not app.error
    assert "Training images" in words(app)
    assert f"kind: {kind}" in words(app)


def test_new__a_merge_of_a_run_takes_its_model_and_data(dashboard):
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


def test_new__a_clone_takes_the_runs_settings_and_the_alpha_of_the_link(dashboard):
    carot, wise = dashboard.ids["CaRot"], dashboard.ids["WiSE-FT"]
    app = page("new", clone=carot)
    assert app.number_input(key=f"new-clone-{carot}-train.epochs").value == 4
    assert "CaRot on fashion-mnist copy" in words(app)
    app = page("new", clone=wise, alpha="0.3")
    assert "alpha: 0.3" in words(app)
    assert "WiSE-FT of FLYP at 0.3" in words(app)
    for nonsense in ("2", "many", ""):
        assert "alpha" not in words(page("new", clone=wise, alpha=nonsense)).split("sweep")[0]


def test_new__the_name_follows_the_method_until_it_is_edited(dashboard):
    app = page("new")
    name = "new-quick-name"
    assert app.text_input(key=name).value == "flyp on typefaces"
    app.selectbox(key="url-method").set_value("carot").run()
    assert app.text_input(key=name).value == "carot on typefaces"
    app.text_input(key=name).set_value("mine").run()
    app.selectbox(key="url-method").set_value("carot").run()
    app.selectbox(key="new-quick-suite.id").set_value("pacs").run()
    assert app.text_input(key=name).value == "mine"
    app.text_input(key=name).set_value(" ").run()
    assert app.text_input(key=name).value == "carot on pacs"


def test_new__a_misspelt_corruption_is_refused_with_the_nearest(dashboard):
    app = page("new")
    field = app.multiselect(key="new-quick-suite.corruptions.names")
    assert field.value == []
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
    bare, monkeypatch, tmp_path
):
    write_classes(tmp_path / "birds", ("cat", "dog"), n=30)
    spec = {"name": "a run", "method": {"kind": "flyp"}, "train": {"epochs": 2}}

    def form(folder, **shifts):
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


def test_new__says_what_is_evaluated_and_what_is_chosen_on(dashboard):
    app = page("new", preset="blank")
    app.selectbox(key="new-blank-suite.id").set_value("cifar10-c").run()
    output = words(app)
    for figure in ("760,000", "test 10,000, corruptions 750,000", "39,859"):
        assert figure in output, figure
    assert submit_of(app).disabled  # nobody downloads it


def spec_of(app: AppTest) -> str:
    """The run as the form says it, YAML."""
    return next(c.value for c in app.get("code") if "method:" in c.value)


FOLDED = ("training", "more", "splits", "rest")


def test_new__what_is_folded_holds_what_it_would_show(dashboard):
    for params in ({}, {"preset": "blank"}, {"clone": dashboard.ids["CaRot"]},
                   {"clone": dashboard.ids["WiSE-FT"]}):  # fmt: skip
        app = page("new", **params)
        output, mark = spec_of(app), f"clone-{params['clone']}" if "clone" in params else ""
        before = len(app.number_input)
        unfold(app, *FOLDED, yaml.safe_load(output)["method"]["kind"],
               mark=mark or params.get("preset", "quick"))  # fmt: skip
        assert len(app.number_input) > before + 10
        assert spec_of(app) == output


def test_new__a_part_that_was_opened_once_keeps_what_was_written_in_it(dashboard):
    app = page("new")
    assert "new-quick-train.seed" not in {box.key for box in app.number_input}
    unfold(app, "training")
    app.number_input(key="new-quick-train.seed").set_value(7).run()
    app.session_state["new-quick-training-open"] = False
    app.run()
    assert "seed: 7" in spec_of(app)


def test_new__another_intent_begins_with_its_method(dashboard):
    app = page("new")
    assert app.selectbox(key="url-method").value == "flyp"
    assert page("new", intent="evaluate").selectbox(key="url-method").value == "zero_shot"
    compare = page("new", intent="compare")
    assert "Configurations" in words(compare)
    assert [b.label for b in compare.button if b.label in ("Submit", "Start the sweep")] == [
        "Start the sweep"
    ]
    assert "preset: compare-methods" in words(compare)


def test_new__a_folder_is_looked_at_as_soon_as_it_is_named(bare, monkeypatch, tmp_path):
    write_classes(tmp_path / "birds", ("<b>cat", "dog"), n=30)
    with pointed_at(monkeypatch, bare.url, bare.home), Client() as client:
        made = client.submit(
            {"name": "a run", "method": {"kind": "flyp"},
             "suite": {"id": f"folder:{tmp_path / 'birds'}"}}
        )  # fmt: skip
        output = words(page("new", clone=made.id))
        client.cancel(made.id)
        client.delete(made.id)
    assert "30 per class" in output
    assert output.count("data:image/png") > 2
    assert "<b>cat" not in output
    assert "Nothing is changed: this is a run once more" in output.replace("\\", "")


def test_changes__are_the_settings_that_differ_with_defaults_filled_in():
    from frontend.panels.new.differs import changes

    before = {"name": "a", "method": {"kind": "flyp"}}
    same = {"name": "b", "method": {"kind": "flyp"}, "train": {"epochs": 10, "seed": 0}}
    assert changes(before, {**same, "train": {"seed": 0}}) == []
    found = changes(before, {"name": "b", "method": {"kind": "carot"}, "train": {"seed": 3}})
    assert {"setting": "train › seed", "before": "0", "after": "3"} in found
    assert {"setting": "method › kind", "before": "flyp", "after": "carot"} in found


def test_new__a_folder_is_chosen_from_the_registered_ones(monkeypatch, tmp_path):
    write_classes(tmp_path / "data" / "birds", ("cat", "dog"), n=30)
    (tmp_path / "data" / "empty").mkdir()
    roots = (tmp_path / "data",)
    with (
        service(tmp_path / "home", data_roots=roots) as made,
        pointed_at(monkeypatch, made.url, made.home),
    ):
        app = page("new")
        opened = app.selectbox(key="bring-open")
        assert opened.options == ["birds · 2 folders, 60 images", "empty · 0 folders, 0 images"]
        assert app.button(key="bring-up").disabled
        app.selectbox(key="bring-open").set_value(str(tmp_path / "data" / "birds")).run()
        assert app.selectbox(key="bring-open").options[0] == "cat · 0 folders, 30 images"
        app.button(key="bring-use").click().run()
        assert not app.exception
        assert app.selectbox(key="new-quick-suite.id").value == f"folder:{tmp_path}/data/birds"
        output = words(app)
        for answer in ("30 per class", "calift-tiny is a toy", "30 epochs are proposed for"):
            assert answer in output.replace("\\", ""), answer
        chosen = yaml.safe_load(spec_of(app))
        assert chosen["train"]["epochs"] == 30
        assert "templates" not in chosen["suite"]
        assert app.text_input(key="new-quick-name").value == "flyp on birds"
        app.selectbox(key="new-quick-model.name").set_value("ViT-B-32").run()
        assert "toy" not in words(app)
        assert "lr" not in yaml.safe_load(spec_of(app))["train"]
        app.button(key="bring-up").click().run()
        assert app.selectbox(key="bring-open").options[0] == "birds · 2 folders, 60 images"
        assert app.selectbox(key="new-quick-suite.id").value == f"folder:{tmp_path}/data/birds"
        app.selectbox(key="bring-open").set_value(str(tmp_path / "data" / "empty")).run()
        (tmp_path / "data" / "empty").rmdir()
        st.cache_data.clear()
        app.run()
        assert "there is no folder" in app.warning[0].value
        app.button(key="bring-top").click().run()
        assert app.selectbox(key="bring-open").options == ["birds · 2 folders, 60 images"]


def test_new__a_zip_is_brought_once_and_named_in_the_form(bare, monkeypatch, tmp_path):
    write_classes(tmp_path / "birds", ("cat", "dog"), n=30)
    made = shutil.make_archive(str(tmp_path / "my birds"), "zip", tmp_path, "birds")
    with pointed_at(monkeypatch, bare.url, bare.home):
        app = page("new")
        drop = app.file_uploader(key="bring-zip")
        drop.set_value(("my birds.zip", Path(made).read_bytes(), "application/zip")).run()
        assert not app.exception
        suite = app.selectbox(key="new-quick-suite.id").value
        assert suite.startswith("zip:")
        assert suite.endswith("/my-birds.zip")
        assert "30 per class" in words(app)
        assert "60 images of 2 classes" in app.success[0].value
        app.selectbox(key="new-quick-suite.id").set_value("typefaces").run()
        assert app.selectbox(key="new-quick-suite.id").value == "typefaces"
        refused = app.file_uploader(key="bring-zip")
        refused.set_value(("x.zip", b"no zip at all", "application/zip")).run()
        assert "x.zip is no whole zip" in app.error[0].value.replace("\\", "")
        assert app.selectbox(key="new-quick-suite.id").value == "typefaces"


def test_data__a_zip_that_was_brought_is_deleted_and_its_owner_alone_may(
    bare, monkeypatch, tmp_path
):
    write_classes(tmp_path / "fish", ("cod", "eel"), n=5)
    made = shutil.make_archive(str(tmp_path / "fish"), "zip", tmp_path, "fish")
    admin = (bare.home / "token").read_text().strip()
    with Client(bare.url, admin) as client:
        suite = client.upload_zip(made, "fish.zip").suite
        reader = client.make_token(TokenMake(owner="reader", scope="read")).token
        other = client.make_token(TokenMake(owner="other", scope="submit")).token
        for token in (reader, other):
            with pointed_at(monkeypatch, bare.url, bare.home, visitor=token):
                app = page("data")
                assert "fish" in words(app)
                assert "zip-to-delete" not in [box.key for box in app.selectbox]
        with pointed_at(monkeypatch, bare.url, bare.home):
            app = page("data")
            app.selectbox(key="zip-to-delete").set_value(suite).run()
            app.button(key="delete-zip").click().run()
            assert not app.exception
            assert "fish is deleted" in app.success[0].value
        assert suite not in [d.id for d in client.datasets()]
