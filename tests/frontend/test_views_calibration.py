"""Calibration against a real API: diagram, slices, calibrators, audit."""

import base64
import json
import re
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from calift_core.client import Client
from calift_core.schema.wire.answers import TextFeatures
from calift_core.schema.wire.results import Evaluation
from frontend import figures, text
from tests.conftest import until
from tests.frontend.driving import charts_of, components_of, page, three, words
from tests.frontend.seed import CLASSES


def diagrams_of(app: AppTest) -> list[dict[str, Any]]:
    """The figures whose bins can be chosen."""
    return [json.loads(c["figure"]) for c in components_of(app, "chart") if c["bins"]]


def traces(figure: dict[str, Any]) -> list[str]:
    return [trace.get("name", "") for trace in figure["data"]]


def test_calibration__the_url_restores_the_view_and_holds_what_is_changed(dashboard):
    app = page(
        "calibration", run=dashboard.ids["FLYP"], dataset="sketch", bins="7", scheme="equal_width",
        temperature="1.5",
    )  # fmt: skip
    assert app.number_input(key="url-bins").value == 7
    assert app.selectbox(key="url-dataset").value == "sketch"
    assert app.slider(key="url-temperature").value == 1.5
    (drawn,) = diagrams_of(app)
    for output in ("on sketch", "7 bins, equal width", "T = 1.5"):
        assert output in drawn["layout"]["title"]["text"]
    # Bins of equal width have counts that differ.
    assert "samples per bin" in traces(drawn)
    app.toggle(key="url-smooth").set_value(True).run()
    assert app.query_params["smooth"] == "1"
    assert len(traces(diagrams_of(app)[0])) == len(traces(drawn)) + 1
    for bins in (5, 15):
        app.number_input(key="url-bins").set_value(bins).run()
        assert app.query_params.get("bins") == (str(bins) if bins != 15 else None)


@pytest.mark.parametrize("nonsense", ["-3", "many"])
def test_calibration__nonsense_in_the_url_is_the_default(dashboard, nonsense):
    app = page("calibration", run=dashboard.ids["FLYP"], bins=nonsense, dataset=nonsense,
               scheme=nonsense, temperature=nonsense)  # fmt: skip
    assert app.number_input(key="url-bins").value == 15
    assert app.slider(key="url-temperature").value == 1.0 or nonsense == "1e9"


def test_calibration__several_runs_side_by_side_and_overlaid(dashboard):
    apart = page("calibration", run=three(dashboard))
    assert len(diagrams_of(apart)) == 3
    offered = [button.proto.label for button in apart.get("download_button")]
    assert all(offered.count(kind) == 3 for kind in ("HTML", "CSV", "JSON"))
    together = page("calibration", run=three(dashboard), overlay="1")
    assert len(charts_of(together)) == 1


def evaluation_of(calift: Client, run_id: str, dataset: str = "sketch") -> Evaluation:
    return next(e for e in calift.run_evaluations(run_id) if e.dataset == dataset)


def test_diagram__chosen_bins_open_their_samples_and_what_they_share(dashboard):
    with Client() as calift:
        evaluation, other = (
            evaluation_of(calift, dashboard.ids[name]) for name in ("FLYP", "zero-shot")
        )
        bins = calift.reliability(evaluation.id, n_bins=5, scheme="equal_mass").bins[-2:]
        edges = {"lower": bins[0].lower, "upper": bins[1].upper}
        first = calift.samples(evaluation.id, **edges, sort="gap", descending=True, limit=24)
        lost = calift.samples(evaluation.id, against=other.id, outcome="lost")
    view = {"run": dashboard.ids["FLYP"], "dataset": "sketch", "bins": "5", "scheme": "equal_mass"}
    app = page("calibration", **view)
    assert not components_of(app, "gallery")
    app = page("calibration", **view, images=urlencode({"evaluation": evaluation.id, **edges}))
    (drawn,) = diagrams_of(app)
    (rail,) = [given["bins"] for given in components_of(app, "chart") if given["bins"]]
    assert rail["chosen"] == [edges["lower"], edges["upper"]]
    assert [b["lower"] for b in rail["bins"][-2:]] == [b.lower for b in bins]
    assert sum(b.count for b in bins) == first.n_matching
    assert "density" in traces(drawn)
    output = words(app)
    assert (
        f"1 to 24 of {text.count(first.n_matching)} samples, of {text.count(first.n)} in all"
        in output
    )
    assert "What they share" in output
    (shown,) = components_of(app, "gallery")
    for item, sample in zip(shown["items"], first.items, strict=True):
        assert item["label"] == sample.label_name
        assert len(item["top"]) == 5
        assert parse_qs(urlsplit(item["src"]).query)["sample"] == [sample.id]
    app.button(key="gallery-next").click().run()
    assert f"25 to {min(48, first.n_matching)} of" in words(app)
    app.button(key="gallery-back").click().run()
    assert "1 to 24 of" in words(app)
    app.selectbox(key="gallery-beside").set_value(other.id).run()
    app.selectbox(key="gallery-which").set_value("both").run()
    assert not app.exception
    (shown,) = components_of(app, "gallery")
    for item in shown["items"]:
        assert [a["correct"] for a in item["answers"]] == [True, True]
        assert all(a["by"] for a in item["answers"])
    everything = urlencode({"evaluation": evaluation.id, "against": other.id, "outcome": "lost"})
    app = page("calibration", **view, images=everything)
    assert f" of {text.count(lost.n_matching)} samples" in words(app)
    app.button(key="gallery-close").click().run()
    assert not components_of(app, "gallery")
    assert "images" not in app.query_params


def test_images__are_ranked_by_what_is_searched_and_narrowed_by_a_condition(dashboard, monkeypatch):
    with Client() as calift:
        runs = dashboard.ids["FLYP"]
        evaluation = evaluation_of(calift, runs)
        last = calift.samples(evaluation.id, where="not correct", limit=200).items[-1]
        alike = calift.samples(evaluation.id, like=last.id, where="not correct", limit=24)

    def labels(app):
        (shown,) = components_of(app, "gallery")
        return [(item["label"], item["marks"][0]) for item in shown["items"]]

    app = page("calibration", run=runs, dataset="sketch", view="images", first="-nll")
    assert f" of {text.count(evaluation.n)} samples, of" in words(app)
    app.text_input(key="gallery-where").set_value("not correct").run()
    assert f" of {text.count(alike.n_matching)} samples, of" in words(app)
    monkeypatch.setattr(  # as it answers that has a model
        "backend.services.trying.Trials.text_features", text_features := Embedded(len(CLASSES))
    )
    assert app.selectbox(key="url-first").value == "-nll"
    app.text_input(key="gallery-text").set_value("a boot").run()
    assert app.selectbox(key="url-first").value == "-similarity"
    images = parse_qsl(app.query_params["images"]) + [("like", last.id)]
    app.query_params["images"] = urlencode([one for one in images if one[0] != "text"])
    app.run()
    assert app.selectbox(key="url-first").value == "-similarity"
    assert labels(app) == [(one.label_name, f"cosine {one.similarity:.3f}") for one in alike.items]
    app.text_input(key="gallery-text").set_value(" a shirt ").run()
    assert text_features.asked == [(runs, "a boot"), (runs, "a shirt")]
    assert "like" not in app.query_params["images"]
    assert [mark for _, mark in labels(app)] == sorted((m for _, m in labels(app)), reverse=True)
    app.text_input(key="gallery-text").set_value("").run()
    assert "text" not in app.query_params["images"]


def test_tags__of_an_image_narrow_the_gallery_and_others_are_a_key_away(dashboard):
    with Client() as calift:
        evaluation = evaluation_of(calift, dashboard.ids["CaRot"])
        ids = [one.id for one in calift.samples(evaluation.id, sort="nll", limit=3).items]
        app = page("calibration", run=dashboard.ids["CaRot"], dataset="sketch", view="images")
        assert not [b for b in app.button if b.key and b.key.startswith("tag-")]
        (shown,) = components_of(app, "gallery")
        assert shown["tags"] == {"known": [], "all": evaluation.n}
        calift.tag_images(evaluation.id, ids, add=["=odd"])
        try:
            st.cache_data.clear()
            app.run()
            app.button(key="tag-=odd").click().run()
            (shown,) = components_of(app, "gallery")
            assert [item["tags"] for item in shown["items"]] == [["=odd"]] * 3
            assert "of 3 samples" in words(app)
            opened = parse_qs(urlsplit(shown["items"][1]["href"]).query)
            app = page("sample", **{name: value for name, (value,) in opened.items()})
            assert "2 of 3" in words(app)
            before, after = (b for b in app.button if b.label in ("Previous", "Next"))
            assert [b.proto.shortcut for b in (before, after)] == ["left", "right"]
            after.click().run()
            assert "3 of 3" in words(app)
            assert [b.disabled for b in app.button if b.label in ("Previous", "Next")] == [
                False, True,
            ]  # fmt: skip
        finally:
            calift.tag_images(evaluation.id, ids, remove=["=odd"])


def test_map__is_made_on_demand_and_its_lasso_opens_a_gallery(dashboard, monkeypatch):
    with Client() as calift:
        evaluation = evaluation_of(calift, dashboard.ids["FLYP"])
        n = evaluation.n
        points = np.random.default_rng(0).uniform(-1, 1, size=(n, 2)).astype(np.float32)
        monkeypatch.setattr(  # as its process answers
            "backend.services.maps.ask_once", lambda child, question: points.tobytes()
        )
        view = {"run": dashboard.ids["FLYP"], "dataset": "sketch", "view": "map"}
        app = page("calibration", **view)
        assert not charts_of(app)
        next(b for b in app.button if "Make the map" in b.label).click().run()
        until(lambda: calift.feature_map(evaluation.id).state == "ready", what="the map")
    inside = int((points > 0).all(axis=1).sum())
    for colour in figures.feature_map.COLOURS:
        app = page("calibration", **view, colour=colour)
        (chart,) = components_of(app, "chart")
        traces = json.loads(chart["figure"])["data"]
        places = [place for trace in traces for place in decoded(trace["customdata"])[:, 0]]
        assert sorted(places) == list(range(n)), colour
    assert chart["areas"]
    images = urlencode({"evaluation": evaluation.id, "area": "0,0 1,0 1,1 0,1"})
    app = page("calibration", **view, images=images)
    assert f" of {inside} samples, of {text.count(n)}" in words(app)
    assert re.search(rf"inside the lasso</\w+><td[^>]*>{inside}<", words(app))  # the slice
    app.button(key="gallery-area").click().run()
    assert f" of {text.count(n)} samples, of" in words(app)


def decoded(packed):
    """An array as Plotly writes one."""
    flat = np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"])
    return flat.reshape([int(side) for side in packed["shape"].split(",")])


class Embedded:
    """The first axis, for any text."""

    def __init__(self, width):
        self.asked, self._width = [], width

    async def __call__(self, run_id, text):
        self.asked.append((run_id, text))
        return TextFeatures(values=[1.0] + [0.0] * (self._width - 1))


@pytest.mark.parametrize(
    "nonsense",
    ["evaluation=nobody", "%ff", "evaluation=a&lower=nan&upper=1e999",
     "evaluation=a&outcome=lost&temperature=-1"],
)  # fmt: skip
def test_diagram__nonsense_in_the_choice_is_none_of_the_page_s_faults(dashboard, nonsense):
    app = page("calibration", run=dashboard.ids["FLYP"], dataset="sketch", images=nonsense)
    assert len(diagrams_of(app)) == 1


def test_diagram__a_shift_that_is_chosen_next_shows_the_same_range(dashboard):
    with Client() as calift:
        one, other = (
            evaluation_of(calift, dashboard.ids["FLYP"], name) for name in ("sketch", "inverted")
        )
        expected = calift.samples(other.id, lower=0.5, upper=0.9).n_matching
    app = page(
        "calibration", run=dashboard.ids["FLYP"], dataset="inverted",
        images=urlencode({"evaluation": one.id, "lower": 0.5, "upper": 0.9}),
    )  # fmt: skip
    assert f" of {text.count(expected)} samples" in words(app)
    assert other.id in app.query_params["images"]


def test_sample__every_run_s_answers_on_its_page(dashboard):
    with Client() as calift:
        evaluation = evaluation_of(calift, dashboard.ids["FLYP"])
        sample = calift.samples(evaluation.id, where="not correct", limit=1).items[0]
    app = page("sample", evaluation=evaluation.id, sample=sample.id)
    output = words(app)
    assert f"Image of {sample.label_name}" in output
    assert text.percent(sample.confidence) in output
    (alt,) = charts_of(app)
    assert f"Probability of {sample.label_name}, 5 runs on 1 data sets" in alt
    (shown,) = components_of(app, "gallery")
    assert [item["label"] for item in shown["items"]] == ["sketch"]
    for wrong in ({}, {"evaluation": evaluation.id}, {"sample": sample.id}):
        assert "No image is named" in words(page("sample", **wrong))
    app = page("sample", evaluation=evaluation.id, sample="nobody")
    assert "no sample" in app.error[0].value


def test_slices__the_url_restores_condition_grouping_and_order(dashboard):
    app = page(
        "calibration", run=three(dashboard), dataset="sketch", view="slices", by="predicted",
        order="-gap", where="confidence >= 0.5",
    )  # fmt: skip
    assert app.selectbox(key="url-by").value == "predicted"
    assert app.text_input(key="url-where").value == "confidence >= 0.5"
    (alt,) = charts_of(app)
    assert alt.startswith("Gap by predicted class, 10 slices")
    tables = [frame.value for frame in app.dataframe]
    for name in ("zero-shot", "FLYP", "CaRot"):
        assert f"{name} on fashion-mnist: " in alt
    assert [len(table) for table in tables] == [10] * 3, "each run's slices below its own words"
    assert [list(table["title"]) for table in tables[1:]] == [list(tables[0]["title"])] * 2
    app.text_input(key="url-where").set_value("rank >= 1").run()
    assert app.query_params["where"] == "rank >= 1"
    app.selectbox(key="url-by").set_value("dataset").run()
    assert not app.exception
    assert "Gap by data set, 8 slices" in charts_of(app)[0]


def test_slices__a_condition_that_is_none_is_explained_and_nothing_is_lost(dashboard):
    app = page("calibration", run=dashboard.ids["FLYP"], view="slices", where="confidence is high")
    assert "INVALID" in app.error[0].value
    assert app.text_input(key="url-where").value == "confidence is high"
    app.text_input(key="url-where").set_value("rank > 99").run()
    assert "No sample meets the condition" in words(app)
    app.text_input(key="url-where").set_value("").run()
    assert "where" not in app.query_params
    assert len(charts_of(app)) == 1


def test_calibrators__before_after_and_the_matrix(dashboard):
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
    tsp = page("calibration", run=dashboard.ids["FLYP"], view="calibrators", kind="tsp")
    assert "perturbed" in tsp.error[0].value


def test_audit__every_estimator_of_every_run_with_its_floor(dashboard):
    app = page("calibration", run=three(dashboard), view="audit")
    (alt,) = charts_of(app)
    assert "estimators" in alt
    output = words(app)
    for name in ("Batch-averaged ECE, batches of 64", "Smooth ECE", "Class-wise ECE"):
        assert output.count(name) >= 3
    assert "where a calibrated model reads" in output
    assert "view=audit" not in output
    assert app.query_params["view"] == "audit"


def test_prompts__of_runs_that_kept_none_say_so(dashboard):
    app = page("calibration", run=three(dashboard), view="prompts")
    output = words(app).replace("\\", "")
    assert output.count("keeps no other prompts") == 3
    assert not app.exception
    assert not charts_of(app)


def test_temperature__moves_confidence_and_never_accuracy(dashboard):
    def card(temperature, label):
        app = page("calibration", run=dashboard.ids["FLYP"], temperature=temperature)
        found = re.search(rf"<dt>{label}</dt><dd>([^<]+)", words(app))
        return found[1]

    assert card("0.5", "Accuracy") == card("2", "Accuracy")
    assert card("0.5", "Confidence") != card("2", "Confidence")
