"""What the API computes of stored predictions: relations between its answers, and the guard."""

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from backend.explore.precomputing import ComparisonPrecomputer
from backend.main import create_app
from calift_core import calibration
from calift_core.analysis.condition import Samples, matching
from calift_core.analysis.draws import Draws
from calift_core.analysis.slices import slice_page
from calift_core.calibration import Binning
from calift_core.errors import ServiceError, SpecError
from calift_core.predictions.read import read_predictions
from calift_core.schema.wire.queries import SlicesQuery
from calift_core.schema.wire.results import Source
from tests.conftest import example_predictions

SETS = (("id", "id"), ("sketch", "shift"), ("noise/3", "corruption"))


@pytest.fixture
def make_run(services, finished_run):
    """A finished run with predictions of its evaluations and of its ID calibration split."""

    def make(
        *,
        seed=0,
        calibration_split=True,
        perturbed=0,
        far="",
        keep="full",
        kind="carot",
        started="",
        **spec,
    ):
        def stamped(predictions):
            if kind != "zero_shot":
                return predictions
            return replace(
                predictions, metadata=replace(predictions.metadata, model_sha256=started)
            )

        def predict(dataset, role):
            at = [name for name, _ in SETS].index(dataset)
            made = example_predictions(at, dataset=dataset, role=role)
            noise = np.random.default_rng(100 + seed).normal(size=made.logits.shape)
            sources = np.array([f"source {i % 30}" for i in range(len(made))])
            return stamped(
                replace(
                    made,
                    logits=made.logits + seed * noise.astype(np.float32),
                    clusters=sources if role == "corruption" else None,
                )
            )

        def part(number, name, role="calibration", **about):
            dataset = f"suite/{name}"
            return {
                dataset: stamped(example_predictions(number, dataset=dataset, role=role, **about))
            }

        parts = {}
        if calibration_split:
            parts = part(50, "calibration") | part(51, "validation", "validation")
        for level in range(perturbed):
            source = {"source_dataset": "suite/calibration"}
            parts |= part(60 + level, f"calibration+noise/{level}", **source)
        if far:  # the same images, as a far set
            made = predict(far, dict(SETS)[far])
            about = replace(made.metadata, dataset="far", role="far")
            parts["far"] = replace(made, metadata=about)
        named = {"name": f"run {seed}", "method": {"kind": kind}} | spec
        return finished_run(
            services.store, services.artifacts, datasets=SETS, predict=predict, more=parts,
            keep=keep, model={"start_sha256": started}, **named,
        )  # fmt: skip

    return make


def evaluations(api: TestClient, run_id: str) -> dict[str, Any]:
    found = api.get(f"/api/v1/runs/{run_id}/evaluations").json()
    return {e["dataset"]: e for e in found}


def get(api: TestClient, path: str, **params: Any) -> Any:
    response = api.get(f"/api/v1{path}", params=params)
    assert response.status_code == 200, response.text
    return response.json()


def refused(api: TestClient, path: str, status: int, code: str, **params: Any) -> dict[str, Any]:
    response = api.get(f"/api/v1{path}", params=params)
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    return body


@pytest.fixture
def one(api, make_run):
    """A run's evaluations by data set."""
    return evaluations(api, make_run())


def test_reliability__agrees_with_the_stored_report(api, one):
    for e in one.values():
        diagram = get(api, f"/evaluations/{e['id']}/reliability")
        for name in ("value", "null_mean", "null_q95", "debiased"):
            got = diagram["ece" if name == "value" else name]
            assert got == pytest.approx(e["ece"][name], abs=1e-5)
        assert diagram["interval"] == pytest.approx(e["ece"]["interval"], abs=1e-5)
        assert diagram["smooth"]["smooth_ece"] == pytest.approx(e["smooth_ece"], abs=1e-5)
        x, density = diagram["smooth"]["confidence"], diagram["smooth"]["density"]
        assert np.trapezoid(density, x) == pytest.approx(1, abs=0.05)


def test_measures__are_those_of_the_report_and_each_has_its_floor(api, one):
    e = one["id"]
    found = get(api, f"/evaluations/{e['id']}/metrics")
    by_name = {m["name"]: m for m in found["measures"]}
    assert (found["n"], found["n_classes"]) == (e["n"], e["n_classes"])
    for name in (
        "accuracy", "mean_confidence", "nll", "brier", "mce", "smooth_ece", "ks_error", "aurc",
        "overconfidence", "underconfidence", "mean_per_class_accuracy", "macro_f1",
    ):  # fmt: skip
        assert by_name[name]["value"] == pytest.approx(e[name], abs=1e-6), name
    assert by_name["classwise_ece_equal_mass"]["value"] == pytest.approx(e["classwise_ece"])
    assert "top5_accuracy" not in by_name  # five classes
    for name in ("ece", "mce", "smooth_ece", "ks_error", "classwise_ece_equal_mass"):
        assert 0 < by_name[name]["null_mean"] < by_name[name]["null_q95"], name
    for name in ("ece", "accuracy", "nll", "brier", "mean_confidence"):
        low, high = by_name[name]["interval"]
        assert low < high, name


@pytest.mark.parametrize(("norm", "name"), [("l2", "ece_l2"), ("max", "mce")])
def test_measures__norm_and_temperature_are_those_asked_for(api, one, norm, name):
    path = f"/evaluations/{one['id']['id']}"
    requested = {"norm": norm, "n_bins": 8, "scheme": "equal_width", "temperature": 1.7}
    found = get(api, f"{path}/metrics", classwise=False, **requested)
    (row,) = [m for m in found["measures"] if m["name"] == name]
    diagram = get(api, f"{path}/reliability", **requested)
    assert row["value"] == pytest.approx(diagram["ece"])
    assert row["null_q95"] == pytest.approx(diagram["null_q95"])
    assert not [m for m in found["measures"] if m["name"].startswith("classwise")]
    assert len({m["name"] for m in found["measures"]}) == len(found["measures"])


def test_audit__batches_read_higher_the_smaller_they_are(api, one):
    e = one["id"]
    rows = {m["name"]: m for m in get(api, f"/evaluations/{e['id']}/audit")["measures"]}
    sizes = [64, 128, 256]  # of 300 samples
    for key in ("value", "null_mean"):
        values = [rows[f"ece_batch_averaged_{size}"][key] for size in sizes]
        assert values == sorted(values, reverse=True), key
    assert rows["ece_batch_averaged_256"]["batch_size"] == 256
    assert "ece_batch_averaged_512" not in rows
    # Whole-set ECE is never above the mean of its batches'.
    assert rows["ece_l1_10_equal_width"]["value"] <= rows["ece_batch_averaged_256"]["value"] + 0.02
    assert rows["ece_l1_15_equal_mass"]["value"] == pytest.approx(e["ece"]["value"])
    assert rows["ece_l1_15_equal_width"]["value"] == pytest.approx(e["ece_equal_width"]["value"])
    assert rows["ece_l2_15_equal_mass"]["value"] >= rows["ece_l1_15_equal_mass"]["value"]
    assert rows["debiased_l2"]["null_mean"] < rows["ece_l2_15_equal_mass"]["null_mean"]
    for row in rows.values():
        assert row["null_mean"] is not None
        assert row["note"]


def test_slices__classes_make_up_the_whole(api, one):
    e = one["id"]
    path = f"/evaluations/{e['id']}/slices"
    page = get(api, path)
    assert page["total"] == 5
    assert [s["title"] for s in page["items"]] == [f"class {c}" for c in range(5)]
    assert sum(s["n"] for s in page["items"]) == e["n"] == page["n"] == page["n_matching"]
    mean = sum(s["n"] * s["accuracy"] for s in page["items"]) / e["n"]
    assert mean == pytest.approx(e["accuracy"])
    (whole,) = get(api, path, by="all")["items"]
    assert whole["ece"] == pytest.approx(e["ece"]["value"])
    assert whole["interval"] == pytest.approx(e["ece"]["interval"])
    assert whole["gap"] == pytest.approx(e["mean_confidence"] - e["accuracy"])


def test_slices__by_confidence_are_the_bins_of_the_diagram(api, one):
    e = one["id"]
    bins = get(api, f"/evaluations/{e['id']}/reliability", n_bins=6)["bins"]
    items = get(api, f"/evaluations/{e['id']}/slices", by="confidence", n_bins=6)["items"]
    assert [s["n"] for s in items] == [b["count"] for b in bins]
    assert [s["accuracy"] for s in items] == pytest.approx([b["accuracy"] for b in bins])


def test_slices__too_small_ones_say_so_and_give_no_error(api, one):
    e = one["noise/3"]
    page = get(api, f"/evaluations/{e['id']}/slices", by="cluster", min_n=11)
    assert page["total"] == 30
    for item in page["items"]:
        assert item["n"] == 10
        assert item["too_small"]
        assert item["ece"] is None
        assert item["gap_interval"] is None
        assert item["accuracy_interval"][0] <= item["accuracy"] <= item["accuracy_interval"][1]
    large = get(api, f"/evaluations/{e['id']}/slices", by="cluster", min_n=10)
    assert not any(item["too_small"] for item in large["items"])
    assert {item["n_bins"] for item in large["items"]} == {1}
    refused(api, f"/evaluations/{one['id']['id']}/slices", 422, "INVALID_SPEC", by="cluster")


def test_slices__pages_and_orders(api, one):
    path = f"/evaluations/{one['id']['id']}/slices"
    whole = get(api, path)["items"]
    walked = [s for at in range(0, 6, 2) for s in get(api, path, offset=at, limit=2)["items"]]
    assert walked == whole
    for key in ("n", "accuracy", "gap", "ece"):
        rising = [s[key] for s in get(api, path, sort=key)["items"]]
        assert rising == sorted(rising)
        falling = [s[key] for s in get(api, path, sort=key, descending=True)["items"]]
        assert falling == sorted(rising, reverse=True)
    assert get(api, path, offset=99)["items"] == []


def test_slices__condition_and_its_opposite_share_the_samples(api, one):
    path = f"/evaluations/{one['id']['id']}/slices"
    condition = "confidence >= 0.8 and (not correct or label in ('class 1', 3))"
    some = get(api, path, by="all", where=condition)
    rest = get(api, path, by="all", where=f"not ({condition})")
    assert some["n_matching"] + rest["n_matching"] == some["n"]
    wrong = get(api, path, by="all", where="correct == false and rank >= 1")
    assert wrong["items"][0]["accuracy"] == 0
    assert get(api, path, where="confidence > 1")["items"] == []


def test_slices__what_is_no_condition_is_refused_with_the_place(api, one):
    path = f"/evaluations/{one['id']['id']}/slices"
    for where in (
        "__import__('os')", "confidence", "confidence >", "confidence > 'high'", "speed > 3",
        "correct > true", "label == 'no such class'", "confidence > 0.5 or", "(correct",
        "correct)", "label in ()", "label in 3", "confidence >= 1e999999", "not", "id < 'a'",
        "confidence == 0.5.5", "correct; correct", "(" * 60 + "correct" + ")" * 60,
    ):  # fmt: skip
        response = api.get(f"/api/v1{path}", params={"where": where})
        assert response.status_code == 422, (where, response.text)
        assert response.json()["code"] in ("INVALID_SPEC", "UNKNOWN_NAME"), where


@pytest.mark.parametrize("by", ["class", "predicted", "confusion", "confidence", "cluster"])
@pytest.mark.parametrize("where", [None, "confidence > 0.4 or rank >= 1"])
def test_slices__the_condition_of_each_holds_for_its_samples_alone(samples, by, where):
    page = slice_page(
        samples,
        Source(),
        SlicesQuery(by=by, where=where, min_n=10**5, limit=200),
        Binning(4),
        Draws(20, 0),
    )
    assert page.items
    found = [matching(samples, one.condition or where) for one in page.items]
    assert [int(mask.sum()) for mask in found] == [one.n for one in page.items]
    whole = matching(samples, where)
    if by == "confusion":
        whole = whole & ~samples.scores.correct
    assert (np.sum(found, axis=0) == whole).all()


def test_run_slices__one_condition_on_every_data_set(api, one):
    run_id = one["id"]["run_id"]
    page = get(api, f"/runs/{run_id}/slices", where="confidence >= 0.9")
    assert [s["key"] for s in page["items"]] == [name for name, _ in SETS]
    for item in page["items"]:
        alone = get(
            api, f"/evaluations/{item['evaluation_id']}/slices", by="all", where="confidence >= 0.9"
        )["items"][0]
        for name in ("n", "accuracy", "ece", "interval", "null_q95"):
            assert item[name] == alone[name]
    requested = {"n_bins": 4, "scheme": "equal_width", "norm": "max"}
    page = get(api, f"/runs/{run_id}/slices", **requested)
    assert (page["scheme"], page["norm"]) == ("equal_width", "max")
    for item in page["items"]:
        path = f"/evaluations/{item['evaluation_id']}/slices"
        alone = get(api, path, by="all", **requested)["items"][0]
        assert {k: item[k] for k in ("ece", "n_bins")} == {k: alone[k] for k in ("ece", "n_bins")}
    shifts = get(api, f"/runs/{run_id}/slices", role="shift")
    assert [s["role"] for s in shifts["items"]] == ["shift"]
    refused(api, "/runs/none/slices", 404, "NOT_FOUND")


_LEAVES = st.one_of(
    st.tuples(st.just("confidence"), st.sampled_from(["<", "<=", ">", ">="]), st.floats(0, 1)).map(
        lambda t: f"{t[0]} {t[1]} {t[2]!r}"
    ),
    st.sampled_from(["correct", "correct == false", "label == 2", "predicted != 'class 0'"]),
    st.lists(st.integers(0, 4), min_size=1, max_size=3).map(
        lambda v: f"label in ({', '.join(map(str, v))})"
    ),
    st.lists(st.integers(0, 4), min_size=1, max_size=2).map(
        lambda v: f"predicted not in ({', '.join(map(str, v))})"
    ),
)
CONDITIONS = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: f"({t[0]}) and ({t[1]})"),
        st.tuples(inner, inner).map(lambda t: f"({t[0]}) or ({t[1]})"),
        inner.map(lambda c: f"not ({c})"),
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def samples():
    predictions = example_predictions(0)
    return Samples(
        scores=calibration.score_samples(predictions.logits, predictions.labels),
        ids=predictions.ids,
        class_names=predictions.metadata.class_names,
        clusters=np.array([f'photo {k % 7} of "the" set' for k in range(len(predictions.ids))]),
    )


@given(a=CONDITIONS, b=CONDITIONS)
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_condition__follows_the_laws_of_logic(samples, a, b):
    def of(condition):
        return matching(samples, condition)

    if max(len(a), len(b)) > 200:
        return
    assert ((of(a) & of(b)) == of(f"({a}) and ({b})")).all()
    assert ((of(a) | of(b)) == of(f"({a}) or ({b})")).all()
    assert (of(f"not ({a}) and not ({b})") == of(f"not (({a}) or ({b}))")).all()
    # `and` binds tighter than `or`.
    assert (of(f"({a}) or ({a}) and ({b})") == of(a)).all()


@given(text=st.text(max_size=60))
@hypothesis_settings(max_examples=100)
def test_condition__any_text_is_a_condition_or_refused(samples, text):

    try:
        found = matching(samples, text)
    except SpecError:
        return
    assert found.shape == (len(samples.scores),)
    assert found.dtype == np.bool_


def test_condition__by_hand(samples):
    scores = samples.scores
    assert matching(samples, None).all()
    assert matching(samples, " ").all()
    named = matching(samples, "id in ('image 3', \"image 7\")")
    assert np.flatnonzero(named).tolist() == [3, 7]
    assert (matching(samples, "label == 'class 2'") == (scores.labels == 2)).all()
    odd = matching(samples, "confidence >= .5 and correct == false or rank > 2")
    assert (odd == (scores.confidences >= 0.5) & ~scores.correct | (scores.rank > 2)).all()


KINDS = ("temperature", "vector", "histogram", "isotonic")


@pytest.mark.parametrize("kind", KINDS)
def test_calibrator__is_fitted_on_the_runs_own_calibration_split(api, services, one, kind):
    e = one["sketch"]
    effect = get(api, f"/evaluations/{e['id']}/calibrators", kind=kind)
    answer = effect["calibrator"]
    assert answer["kind"] == kind
    assert not answer["oracle"]
    assert answer["fitted_on"] == {
        "dataset": "suite/calibration", "split": "calibration", "role": "calibration", "n": 300,
        "evaluation_id": None,
    }  # fmt: skip
    split = example_predictions(50, dataset="suite/calibration", role="calibration")
    expected = calibration.CALIBRATORS[kind]().fit(
        split.logits, split.labels, split="calibration", role="id"
    )
    stored = read_predictions(
        services.artifacts.path(services.store.results.predictions_of(e["id"]).sha256)
    )
    probs = expected.transform(stored.logits)
    assert effect["after"]["nll"] == pytest.approx(
        calibration.nll(calibration.score_probs(probs, stored.labels)), rel=1e-5
    )
    if kind in ("histogram", "isotonic"):  # of the top label: the predicted class stays
        confidences = expected.confidences(stored.logits)
        correct = stored.logits.argmax(axis=1) == stored.labels
        assert effect["after"]["accuracy"] == effect["before"]["accuracy"]
    else:
        scores = calibration.score_probs(probs, stored.labels)
        confidences, correct = scores.confidences, scores.correct
    error = calibration.ece(
        calibration.TopLabel(confidences, correct), calibration.Binning(n_bins=e["ece"]["n_bins"])
    )
    assert effect["after"]["ece"] == pytest.approx(error, abs=1e-6)
    assert effect["before"] == get(api, f"/evaluations/{e['id']}/reliability")
    overlay = get(api, f"/evaluations/{e['id']}/reliability", calibrator=kind)
    assert overlay == effect["after"]
    if kind == "temperature":
        assert effect["after"]["accuracy"] == effect["before"]["accuracy"]
        warmer = get(
            api, f"/evaluations/{e['id']}/reliability",
            temperature=answer["parameters"]["temperature"],
        )  # fmt: skip
        assert warmer["ece"] == pytest.approx(effect["after"]["ece"], abs=1e-6)


@pytest.mark.parametrize("kind", sorted(calibration.INITIAL_MODEL_CALIBRATORS))
def test_calibrator__that_reads_the_initial_model_finds_its_zero_shot_run(
    api, make_run, services, kind
):
    run = make_run(seed=1, started="a" * 64)
    e = evaluations(api, run)["sketch"]
    path = f"/api/v1/evaluations/{e['id']}/calibrators"
    make_run(seed=2, kind="zero_shot", started="b" * 64)  # of another model
    refused = api.get(path, params={"kind": kind})
    assert refused.status_code == 404
    assert "no zero-shot run of the model" in refused.json()["detail"]
    first = evaluations(api, make_run(seed=0, kind="zero_shot", started="a" * 64))["sketch"]
    effect = get(api, f"/evaluations/{e['id']}/calibrators", kind=kind)

    def logits(evaluation):
        digest = services.store.results.predictions_of(evaluation["id"]).sha256
        return read_predictions(services.artifacts.path(digest))

    own = example_predictions(50, dataset="suite/calibration", role="calibration")
    expected = calibration.INITIAL_MODEL_CALIBRATORS[kind]().fit(
        own.logits, own.labels, initial=own.logits, split="calibration", role="id"
    )
    tuned = logits(e)
    probs = expected.transform(tuned.logits, logits(first).logits)
    assert effect["after"]["nll"] == pytest.approx(
        calibration.nll(calibration.score_probs(probs, tuned.labels)), rel=1e-4
    )
    matrix = get(api, f"/runs/{run}/calibrators/transfer", kind=kind)
    assert [row["calibrator"] is None for row in matrix["rows"]][:2] == [True, False]


def test_calibrator__other_data_need_to_be_called_an_oracle(api, one):
    e, shift = one["id"], one["sketch"]
    path = f"/evaluations/{e['id']}/calibrators"
    for _ in range(2):  # also after an oracle was fitted and remembered
        body = refused(api, path, 422, "LEAKAGE", fit_on=shift["id"])
        assert "oracle=true" in body["hint"]
        refused(
            api, f"/evaluations/{e['id']}/reliability", 422, "LEAKAGE",
            calibrator="temperature", fit_on=e["id"],
        )  # fmt: skip
        effect = get(api, path, fit_on=shift["id"], oracle=True)
        assert effect["calibrator"]["oracle"]
        assert effect["after"]["calibrator"]["oracle"]
        assert effect["calibrator"]["fitted_on"]["role"] == "shift"
        assert effect["calibrator"]["fitted_on"]["evaluation_id"] == shift["id"]
    # The word alone makes no oracle of the honest split.
    assert not get(api, path, oracle=True)["calibrator"]["oracle"]
    # A fit on what it is judged by cannot do worse there by the fit's own measure.
    own = get(api, path, fit_on=e["id"], oracle=True)
    honest = get(api, path)
    assert own["after"]["nll"] <= honest["after"]["nll"] + 1e-9
    # Only that one is shown on what it was fitted on, where no floor holds.
    assert own["after"]["in_sample"]
    others = (own["before"], honest["after"], effect["after"])
    assert not any(diagram["in_sample"] for diagram in others)
    isotonic = get(api, path, kind="isotonic", fit_on=e["id"], oracle=True)["after"]
    assert isotonic["ece"] < 0.2 * isotonic["null_mean"]


def test_calibrator__what_cannot_be_fitted_is_named(api, make_run):
    alone = evaluations(api, make_run(calibration_split=False))["id"]
    path = f"/evaluations/{alone['id']}"
    refused(api, f"{path}/calibrators", 404, "NOT_FOUND")
    assert get(api, f"{path}/calibrators", fit_on=alone["id"], oracle=True)["calibrator"]["oracle"]
    refused(api, f"{path}/calibrators", 422, "INVALID_REQUEST", kind="magic")
    refused(
        api, f"{path}/reliability", 422, "INVALID_SPEC", calibrator="temperature", temperature=2
    )
    other = evaluations(api, make_run(seed=1))["id"]
    refused(api, f"{path}/calibrators", 422, "INVALID_SPEC", fit_on=other["id"], oracle=True)
    refused(api, f"/evaluations/{other['id']}/calibrators", 422, "INVALID_SPEC", kind="tsp")


def test_calibrator__tsp_takes_the_perturbed_copies(api, make_run):
    e = evaluations(api, make_run(perturbed=2))["id"]
    effect = get(api, f"/evaluations/{e['id']}/calibrators", kind="tsp")
    assert effect["calibrator"]["fitted_on"]["n"] == 900
    assert not effect["calibrator"]["oracle"]
    plain = get(api, f"/evaluations/{e['id']}/calibrators", kind="temperature")
    assert plain["calibrator"]["fitted_on"]["n"] == 300


def test_transfer__one_honest_row_and_the_diagonal_is_the_best_fit(api, one):
    run_id = one["id"]["run_id"]
    matrix = get(api, f"/runs/{run_id}/calibrators/transfer", dataset=[name for name, _ in SETS])
    assert matrix["notes"] == []
    plain, honest, *oracles = matrix["rows"]
    assert plain["calibrator"] is None
    assert not honest["calibrator"]["oracle"]
    assert all(row["calibrator"]["oracle"] for row in oracles)
    assert [row["calibrator"]["fitted_on"]["dataset"] for row in oracles] == [s for s, _ in SETS]
    for column, (dataset, _) in enumerate(SETS):
        cells = [row["cells"][column] for row in matrix["rows"]]
        assert {cell["dataset"] for cell in cells} == {dataset}
        # A temperature fitted by NLL on a set has the least NLL there.
        best = oracles[column]["cells"][column]
        assert best["nll"] <= min(cell["nll"] for cell in cells) + 1e-6
        assert cells[0]["gain"] == cells[0]["nll_gain"] == cells[0]["brier_gain"] == 0
        assert best["nll_gain"] >= 0
        assert [cell["in_sample"] for cell in cells] == [False, False] + [
            row is oracles[column] for row in oracles
        ]
        for cell in cells:
            assert cell["gain"] == pytest.approx(cells[0]["ece"] - cell["ece"])
            assert cell["nll_gain"] == pytest.approx(cells[0]["nll"] - cell["nll"])
            assert cell["brier_gain"] == pytest.approx(cells[0]["brier"] - cell["brier"])
            assert cell["accuracy"] == cells[0]["accuracy"]
        effect = get(api, f"/evaluations/{one[dataset]['id']}/calibrators")
        assert honest["cells"][column]["ece"] == pytest.approx(effect["after"]["ece"])
        assert plain["cells"][column]["ece"] == pytest.approx(effect["before"]["ece"])
    shown = get(api, f"/runs/{run_id}/calibrators/transfer")
    assert [c["dataset"] for c in shown["rows"][0]["cells"]] == ["id", "sketch"]
    assert "1 corruptions are left out" in shown["notes"][0]
    refused(api, f"/runs/{run_id}/calibrators/transfer", 422, "UNKNOWN_NAME", dataset="x")


def test_transfer__without_a_calibration_split_every_row_is_an_oracle(api, make_run):
    matrix = get(api, f"/runs/{make_run(calibration_split=False)}/calibrators/transfer")
    assert all(row["calibrator"]["oracle"] for row in matrix["rows"][1:])
    assert any("Every row here is an oracle" in note for note in matrix["notes"])


def test_budget__a_smaller_difference_takes_more_and_what_is_detectable_takes_n(api, make_run):
    a, b = evaluations(api, make_run(seed=0))["id"], evaluations(api, make_run(seed=1))["id"]
    path = f"/evaluations/{a['id']}/budget"
    for metric in ("accuracy", "ece", "nll"):
        one = get(api, path, difference=0.02, metric=metric)
        half = get(api, path, difference=0.01, metric=metric)
        if metric == "ece":  # whose noise grows with the error itself
            assert 2 * one["needed"] < half["needed"] < 5 * one["needed"]
            assert one["standard_error"] is None
        else:
            assert half["needed"] == pytest.approx(4 * one["needed"], rel=0.01)
        assert one["enough"] == (one["needed"] <= one["n"])
        at_limit = get(api, path, difference=one["detectable"], metric=metric)
        assert at_limit["needed"] == pytest.approx(one["n"], abs=1 if metric != "ece" else 6)
        paired = get(api, path, difference=0.02, metric=metric, against=b["id"])
        assert paired["paired"]
        assert paired["against"]["evaluation_id"] == b["id"]
        if metric == "ece":
            assert -0.2 < paired["observed"] < 0.2
        else:
            assert paired["observed"] == pytest.approx(a[metric] - b[metric], abs=1e-5)
    own = get(api, path, difference=0.02, metric="accuracy")
    spread = math.sqrt(2 * a["accuracy"] * (1 - a["accuracy"]) / a["n"])
    assert own["standard_error"] == pytest.approx(spread, rel=0.1)
    refused(api, path, 422, "INVALID_REQUEST", difference=0)
    refused(api, path, 422, "INVALID_REQUEST")


def test_compare__confidence_sets_hold_every_run_once(api, make_run):
    ids = [make_run(seed=s) for s in (0, 1, 4)]
    comparison = api.get("/api/v1/compare", params={"run_id": ids}).json()
    sets = comparison["confidence_sets"]
    assert {(found["dataset"], found["metric"]) for found in sets} == {
        (dataset, metric)
        for dataset in ("id", "sketch", "noise/3")
        for metric in ("accuracy", "ece", "nll", "brier")
    }
    for found in sets:
        assert sorted(found["members"] + found["excluded"]) == sorted(ids)
        assert (found["n"], found["level"]) == (300, 0.95)
        assert all(found["p_values"][run] >= 0.05 for run in found["members"])
        assert all(found["p_values"][run] < 0.05 for run in found["excluded"])
    (by_accuracy,) = [f for f in sets if (f["dataset"], f["metric"]) == ("id", "accuracy")]
    # Noise of four logits makes the last run worse beyond doubt.
    assert by_accuracy["excluded"][-1] == ids[2]


def test_compare__parts_are_the_whole_and_are_kept(api, make_run, settings):
    ids = [make_run(seed=s) for s in (0, 1, 4)]
    bare = get(api, "/compare", run_id=ids, paired=False)
    assert bare["confidence_sets"] == []
    assert not any(column["differences"] for column in bare["runs"])
    whole = get(api, "/compare", run_id=ids)
    parts = [get(api, "/compare", run_id=ids, dataset=[d]) for d in ("id", "sketch", "noise/3")]
    for k, column in enumerate(whole["runs"]):
        assert column["differences"] == [d for p in parts for d in p["runs"][k]["differences"]]
    assert whole["confidence_sets"] == [s for p in parts for s in p["confidence_sets"]]
    assert get(api, "/compare", run_id=ids, dataset=["nothing"])["confidence_sets"] == []
    # Another process opens no predictions for what was asked before.
    shutil.rmtree(settings.artifacts_dir)
    later_app = create_app(settings, housekeeping=False)
    with TestClient(later_app, base_url="http://127.0.0.1", headers=api.headers) as later:
        assert get(later, "/compare", run_id=ids) == whole
        turned = get(later, "/compare", run_id=ids, baseline=ids[1])
    forth = {(d["dataset"], d["metric"]): d for d in whole["runs"][1]["differences"]}
    for back in turned["runs"][0]["differences"]:
        d = forth[back["dataset"], back["metric"]]
        assert back["difference"] == -d["difference"]
        assert (back["value"], back["baseline"]) == (d["baseline"], d["value"])
        decided, other = (d["squared"], back["squared"]) if d["squared"] else (d, back)
        assert other["interval"] == [-x for x in reversed(decided["interval"])]


def test_leaders__stand_on_the_mean_of_what_all_were_tested_on(api, make_run):
    ids = [make_run(seed=s) for s in (0, 1, 4)]
    boards = get(api, "/compare/leaders", run_id=ids)["boards"]
    own = {run: evaluations(api, run) for run in ids}
    assert {(b["role"], b["metric"]) for b in boards} == {
        (role, metric)
        for role in ("id", "shift", "corruption")
        for metric in ("accuracy", "ece", "nll", "brier")
    }
    for board in boards:
        standings = board["standings"]
        assert sorted(s["run_id"] for s in standings) == sorted(ids)
        assert standings[0]["leads"]
        for s in standings:
            found = [own[s["run_id"]][name][board["metric"]] for name in board["datasets"]]
            values = [f["value"] if board["metric"] == "ece" else f for f in found]
            assert s["value"] == pytest.approx(sum(values) / len(values), abs=1e-5)
            assert (s["floor"] is None) == (board["metric"] != "ece")
    # Over one data set, a board is what the confidence set of that data set says.
    sets = get(api, "/compare", run_id=ids)["confidence_sets"]
    for found in sets:
        board = next(
            b for b in boards if (b["role"], b["metric"]) == (found["role"], found["metric"])
        )
        assert board["datasets"] == [found["dataset"]]
        assert {s["run_id"]: s["p_value"] for s in board["standings"]} == found["p_values"]
        assert board["n_resamples"] == found["n_resamples"] == 5000
    by_accuracy = next(b for b in boards if (b["role"], b["metric"]) == ("id", "accuracy"))
    assert not by_accuracy["standings"][-1]["leads"]
    assert by_accuracy["standings"][-1]["run_id"] == ids[2]


def test_precomputed__a_finished_run_is_compared_with_zero_shot_before_anybody_asks(
    api, app, make_run, settings, monkeypatch
):
    services = app.state.services
    base = make_run(seed=0, method={"kind": "zero_shot"})
    run = make_run(seed=1)
    memory = services.library.memory
    precomputer = ComparisonPrecomputer(
        services.store, services.comparer, services.explorer, memory
    )
    memory.get("numbers", "what somebody asks")
    with monkeypatch.context() as asked:
        asked.setattr("calift_core.analysis.explorer.ood.compared", None)
        precomputer.run_once()  # it leaves the processor to whoever asks
    monkeypatch.setattr("backend.explore.precomputing._UNASKED_S", 0)
    precomputer.run_once()
    # Neither the calibrator nor the scores are computed again for the OOD view.
    monkeypatch.setattr("backend.explore.library.choose_or_none", None)
    monkeypatch.setattr("calift_core.analysis.explorer.ood.compared", None)
    for each in (run, base):
        assert [s["dataset"] for s in get(api, f"/runs/{each}/ood")["sets"]] == ["sketch"]
    shutil.rmtree(settings.artifacts_dir)
    found = get(api, "/compare", run_id=[base, run])
    assert {d["dataset"] for d in found["runs"][1]["differences"]} == {"id", "sketch", "noise/3"}
    assert found["warnings"] == []
    assert len(get(api, f"/runs/{run}/ledger", against=base)["sets"]) == 3


def test_ledger__is_what_numpy_counts_and_turns_round(api, make_run):
    base, run = make_run(seed=0), make_run(seed=3)
    found = get(api, f"/runs/{run}/ledger", against=base, step=0.2)
    assert (found["run"]["run_id"], found["against"]["run_id"]) == (run, base)
    assert [one["dataset"] for one in found["sets"]] == ["id", "sketch", "noise/3"]
    back = get(api, f"/runs/{base}/ledger", against=run, step=0.2)
    own, other = evaluations(api, run), evaluations(api, base)
    for one, turned in zip(found["sets"], back["sets"], strict=True):
        assert one["gained"] + one["lost"] + one["both"] + one["neither"] == one["n"] == 300
        assert (one["gained"], one["lost"]) == (turned["lost"], turned["gained"])
        assert one["difference"] == -turned["difference"]
        assert one["difference"] == pytest.approx((one["gained"] - one["lost"]) / one["n"])
        before, after = (samples_of(api, e[one["dataset"]]["id"]) for e in (other, own))
        right = [np.array([before[k]["correct"] for k in before]) for before in (before, after)]
        moved = np.array([after[k]["confidence"] - before[k]["confidence"] for k in before])
        masks = {
            "gained": ~right[0] & right[1], "lost": right[0] & ~right[1],
            "both": right[0] & right[1], "neither": ~right[0] & ~right[1],
        }  # fmt: skip
        ways = {"surer": moved > 0.2, "alike": np.abs(moved) <= 0.2, "less_sure": moved < -0.2}
        for cell in one["cells"]:
            at = masks[cell["outcome"]] & ways[cell["moved"]]
            assert cell["n"] == at.sum()
            if at.any():
                step = cell["confidence_after"] - cell["confidence_before"]
                assert step == pytest.approx(moved[at].mean())
        # The images of a row are as many as the row says.
        page = get(
            api, f"/evaluations/{one['evaluation_id']}/samples", against=one["against_id"],
            outcome="lost", limit=1,
        )  # fmt: skip
        assert page["n_matching"] == one["lost"]
        low, high = one["forgotten_interval"]
        assert low < one["forgotten"] == one["lost"] / (one["lost"] + one["both"]) < high
    same = get(api, f"/runs/{run}/ledger", against=run, dataset=["id"])["sets"]
    assert [(s["dataset"], s["gained"], s["lost"]) for s in same] == [("id", 0, 0)]
    refused(api, f"/runs/{run}/ledger", 422, "UNKNOWN_NAME", against=base, dataset=["nothing"])
    refused(api, f"/runs/{run}/ledger", 404, "NOT_FOUND", against="nobody")


def test_decision__is_what_the_samples_say_at_its_threshold(api, make_run):
    # Without all logits there is no calibrator: the pages of samples then show what is kept.
    run = make_run(seed=1, keep=3)
    found = get(api, f"/runs/{run}/decision", risk=0.6)
    assert (found["calibrator"], found["warnings"]) == ("none", [])
    assert found["chosen_on"]["dataset"] == "suite/validation"
    assert found["chosen_on"]["risk_interval"][0] <= found["chosen_on"]["risk"] <= 0.6
    assert [one["dataset"] for one in found["sets"]] == ["id", "sketch", "noise/3"]
    for one in found["sets"]:
        at = f"confidence >= {found['threshold']!r}"
        path = f"/evaluations/{one['evaluation_id']}/samples"
        kept = get(api, path, where=at, limit=1)["n_matching"]
        wrong = get(api, path, where=f"{at} and not correct", limit=1)["n_matching"]
        assert (one["kept"], one["errors"], one["n"]) == (kept, wrong, 300)
        assert one["curve"][-1]["coverage"] == 1
        assert one["curve"][-1]["risk"] == pytest.approx(
            1 - evaluations(api, run)[one["dataset"]]["accuracy"], abs=1e-6
        )
        assert one["holds"] in (None, one["risk"] <= 0.6)
    test, own = found["test"], found["sets"][0]
    assert (test["dataset"], test["risk"], test["holds"]) == ("id", own["risk"], own["holds"])
    assert test["accuracy"] == pytest.approx(evaluations(api, run)["id"]["accuracy"])
    assert test["interval"][0] < test["difference"] < test["interval"][1]
    assert test["difference"] == pytest.approx(test["chosen_on_accuracy"] - test["accuracy"])
    none = get(api, f"/runs/{run}/decision", risk=1e-4)
    assert none["threshold"] is none["test"] is None
    assert all(one["kept"] == 0 and one["risk"] is None for one in none["sets"])
    bare = make_run(seed=2, calibration_split=False)
    refused(api, f"/runs/{bare}/decision", 404, "NOT_FOUND")
    refused(api, f"/runs/{run}/decision", 422, "UNKNOWN_NAME", dataset=["nothing"])


def samples_of(api: TestClient, evaluation: str) -> dict[str, Any]:
    """Every sample of an evaluation by its id."""
    found: dict[str, Any] = {}
    page: dict[str, Any] = {"next_cursor": None}
    while not found or page["next_cursor"]:
        requested = {"cursor": page["next_cursor"]} if page["next_cursor"] else {}
        page = get(api, f"/evaluations/{evaluation}/samples", limit=200, top=0, **requested)
        found |= {one["id"]: one for one in page["items"]}
    return found


def test_compare__an_ece_is_shown_and_its_square_decides(api, make_run):
    ids = [make_run(seed=s) for s in (0, 4)]
    comparison = api.get("/api/v1/compare", params={"run_id": ids}).json()
    base, run = ({e["dataset"]: e for e in c["evaluations"]} for c in comparison["runs"])
    for d in comparison["runs"][1]["differences"]:
        if d["metric"] != "ece":
            assert d["squared"] is None
            low, high = d["interval"]
            assert d["distinguishable"] == (low > 0 or high < 0)
            continue
        assert d["interval"] is None
        assert d["value"] == pytest.approx(run[d["dataset"]]["ece"]["value"], abs=1e-6)
        assert d["baseline"] == pytest.approx(base[d["dataset"]]["ece"]["value"], abs=1e-6)
        assert d["difference"] == pytest.approx(d["value"] - d["baseline"])
        squared = d["squared"]
        low, high = squared["interval"]
        assert d["distinguishable"] == (low > 0 or high < 0)
        assert low < squared["difference"] < high
        assert squared["difference"] == pytest.approx(squared["value"] - squared["baseline"])


def test_compare__is_written_for_people(client, make_run, capsys, monkeypatch):
    from calift.commands import console
    from calift.commands.service import show_comparison
    from frontend.tables.comparisons import decided
    from frontend.text import points

    monkeypatch.setattr(console.out, "_width", 140)
    ids = [make_run(seed=s) for s in (0, 4)]
    comparison = client.compare(run_id=ids)
    show_comparison(comparison, client.leaders(run_id=ids).boards)
    output = capsys.readouterr().out
    (found,) = (d for d in comparison.runs[1].differences if (d.dataset, d.metric) == ("id", "ece"))
    table = output[output.index("same samples: ECE") :]
    row = next(line for line in table.splitlines() if " id " in line)
    assert points(found.difference).replace("\u00a0", " ") in row
    assert points(decided(found)[0]).replace("\u00a0", " ") in row
    assert (" yes " in row) is found.distinguishable
    assert "no interval of a difference of ECEs can be trusted" in " ".join(output.split())
    assert output.startswith("On ")
    assert output.index("95 % interval") < output.index("same samples")


def test_memory__a_new_name_shows_in_what_is_remembered(api, one):
    e = one["id"]
    paths = [f"/evaluations/{e['id']}/{what}" for what in ("reliability", "slices", "metrics")]
    before = [get(api, path) for path in paths]
    api.patch(f"/api/v1/runs/{e['run_id']}", json={"name": "another name"})
    after = [get(api, path) for path in paths]
    assert after[0]["run_name"] == "another name"
    assert {body["source"]["run_name"] for body in after[1:]} == {"another name"}
    assert after[0] | {"run_name": ""} == before[0] | {"run_name": ""}
    assert after[1]["items"] == before[1]["items"]


def test_turns__fits_and_diagrams_at_once_never_wait_for_each_other(api, one):
    e, run_id = one["id"], one["id"]["run_id"]
    requested = [
        (f"/runs/{run_id}/calibrators/transfer", {"kind": "isotonic"}),
        (f"/evaluations/{e['id']}/reliability", {"calibrator": "isotonic", "n_bins": 9}),
        (f"/evaluations/{e['id']}/reliability", {"n_bins": 9}),
        (f"/evaluations/{one['sketch']['id']}/calibrators", {"kind": "isotonic"}),
        (f"/evaluations/{e['id']}/audit", {}),
        (f"/runs/{run_id}/calibrators/transfer", {"kind": "vector"}),
        (f"/evaluations/{e['id']}/metrics", {}),
        (f"/evaluations/{e['id']}/slices", {}),
    ]
    with ThreadPoolExecutor(len(requested)) as pool:
        together = list(pool.map(lambda question: get(api, question[0], **question[1]), requested))
    alone = [get(api, path, **params) for path, params in requested]
    assert together == alone


def test_client__parameters_are_those_of_the_query_and_checked_before_anything_is_asked(
    client, make_run
):
    e, shift = client.run_evaluations(make_run())[:2]
    page = client.slices(e.id, by="confidence", where="correct", n_bins=4, sort="n", limit=2)
    assert (page.total, len(page.items), page.where) == (4, 2, "correct")
    assert page == client.slices(e.id, SlicesQuery(by="confidence", where="correct"), n_bins=4,
                                 sort="n", limit=2)  # fmt: skip
    assert client.run_slices(e.run_id, where="correct", role=["shift"]).total == 1
    assert client.calibrate(e.id, kind="isotonic", fit_on=shift.id, oracle=True).calibrator.oracle
    with pytest.raises(ServiceError) as refusal:
        client.calibrate(e.id, fit_on=shift.id)
    assert refusal.value.problem["code"] == "LEAKAGE"
    with pytest.raises(SpecError, match="n_bins: .* greater than or equal to 1, got 0"):
        client.measures("nobody", n_bins=0)
    with pytest.raises(SpecError, match="colour: Extra inputs are not permitted"):
        client.measures("nobody", colour=1)


def test_top_k__what_needs_all_logits_says_so(api, make_run):
    e = evaluations(api, make_run(keep=2))["id"]
    assert get(api, f"/evaluations/{e['id']}/reliability")["ece"] == pytest.approx(
        e["ece"]["value"], abs=1e-5
    )
    for what in ("metrics", "audit"):
        names = [m["name"] for m in get(api, f"/evaluations/{e['id']}/{what}")["measures"]]
        assert "ks_error" in names
        assert not [name for name in names if name.startswith("classwise")]
    body = refused(api, f"/evaluations/{e['id']}/calibrators", 422, "INVALID_SPEC")
    assert "2 largest" in body["detail"]
    refused(api, f"/runs/{e['run_id']}/calibrators/transfer", 422, "INVALID_SPEC")
    refused(api, f"/evaluations/{e['id']}/slices", 422, "INVALID_SPEC", temperature=2)


@pytest.mark.parametrize("settings_of_the_command", [(), ("--bins", "4")])
def test_command__asks_as_evaluated_and_learns_what_an_id_is_of(
    served, settings, make_run, capsys, monkeypatch, settings_of_the_command
):
    from calift.commands.main import main
    from calift_core.client import Client

    settings.admin_token()
    monkeypatch.setenv("CALIFT_API_URL", served)
    run_id = make_run()
    with Client(served, settings.admin_token()) as client:
        by_set = {e.dataset: e for e in client.evaluations(run_id=[run_id]).items}

    def slices(target, command="slices"):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["analyse", command, target, "--json", *settings_of_the_command])
        answer = capsys.readouterr()
        return ended.value.code, json.loads(answer.out) if answer.out else answer.err

    status, of_run = slices(run_id)
    assert status == 0
    assert of_run["by"] == "dataset"
    assert of_run["items"][0]["n_bins"] == (4 if settings_of_the_command else 15)
    status, of_evaluation = slices(by_set["sketch"].id)
    assert status == 0
    assert (of_evaluation["by"], of_evaluation["source"]["dataset"]) == ("class", "sketch")
    for gone in ("0123456789ab", "0123456789ab-01234567", "a-b"):
        status, answer = slices(gone)
        assert status == 1
        assert f"no evaluation and no run '{gone}'" in answer["error"]["message"]
    status, answer = slices(run_id, "metrics")
    assert status == 1
    assert "is a run" in answer["error"]["message"]
    assert f"{by_set['sketch'].id} (sketch)" in answer["error"]["hint"]


def test_ood__is_of_stored_logits_and_what_is_missing_is_said(api, make_run):
    run = make_run(seed=1, far="sketch")
    found = get(api, f"/runs/{run}/ood")
    sets = [(one["dataset"], one["role"]) for one in found["sets"]]
    assert sets == [("sketch", "shift"), ("far", "far")]
    shift, far = found["sets"]
    # The same images as a far set: the same scores, and nothing else.
    assert far["scores"] == shift["scores"]
    assert get(api, f"/runs/{run}/ood", dataset=["far"])["sets"] == [far]
    assert set(evaluations(api, run)) == {"id", "sketch", "noise/3"}
    assert [row["score"] for row in shift["scores"]] == ["max_softmax", "energy", "mcm"]
    assert found["notes"][0].startswith("kNN and relative Mahalanobis are missing: ")
    samples = samples_of(api, shift["evaluation_id"])
    for row in shift["scores"]:
        auroc, base = row["auroc"], shift["scores"][0]["auroc"]
        assert auroc["interval"][0] < auroc["value"] < auroc["interval"][1]
        gain = None if row["score"] == "max_softmax" else auroc["value"] - base["value"]
        assert auroc["difference"] == (gain if gain is None else pytest.approx(gain))
        assert sum(row["histogram"]["ood"]) == pytest.approx(1)
        assert len(row["below"]) == len(row["above"]) == 12
        assert set(row["above"]) <= set(samples)
        assert not set(row["above"]) & set(row["below"])
    of_noise = get(api, f"/runs/{run}/ood", dataset=["noise/3"])
    assert [one["dataset"] for one in of_noise["sets"]] == ["noise/3"]
    refused(api, f"/runs/{run}/ood", 422, "UNKNOWN_NAME", dataset=["nothing"])
    top = make_run(seed=2, keep=3)
    assert "all logits" in refused(api, f"/runs/{top}/ood", 422, "INVALID_SPEC")["detail"]
