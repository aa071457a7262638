"""Weight space: the ends of a path, what Model Stock keeps, and runs made from finished runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from calift_core.analysis.report import summarise
from calift_core.calibration import Binning, accuracy, ece, nll, score_probs, softmax
from calift_core.errors import CheckpointError, DataError, ModelError, SpecError
from calift_core.evaluation.path import one_standard_error
from calift_core.methods.merge import interpolate, model_stock
from calift_core.models.finished import load_finished
from calift_core.models.loading import load_clip, weights_sha256
from calift_core.predictions.read import read_predictions
from calift_core.schema.methods.merge import ONE_SE_PATH
from calift_core.schema.report import FrontierPoint, Report
from calift_core.schema.spec import RunSpec
from tests.core.conftest import write_classes
from tests.core.jobs.test_job import go, report_in

seeds = st.integers(0, 2**32 - 1)


def state(seed: int, *, scale: float = 1.0, count: int = 3) -> dict[str, Tensor]:
    """Weights of two shapes, a scalar and a counter."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv": scale * torch.randn(4, 3, 2, generator=generator),
        "bias": scale * torch.randn(5, generator=generator),
        "logit_scale": scale * torch.randn((), generator=generator),
        "num_batches_tracked": torch.tensor(count),
    }


def moved(origin: dict[str, Tensor], change: dict[str, Tensor], by: float) -> dict[str, Tensor]:
    return {
        name: tensor + by * change[name] if tensor.is_floating_point() else tensor.clone()
        for name, tensor in origin.items()
    }


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


@given(seeds, seeds)
def test_interpolate__ends_are_the_two_states_bit_for_bit(a, b):
    start, end = state(a, count=3), state(b, scale=7.0, count=9)
    for alpha, expected in ((0.0, start), (1.0, end)):
        found = interpolate(start, end, alpha)
        assert same_bits(found, expected)
        for name, tensor in found.items():  # no memory is shared
            tensor.zero_()
            assert expected[name].data_ptr() != tensor.data_ptr()


@given(seeds, seeds, st.floats(0, 1))
def test_interpolate__is_the_convex_combination(a, b, alpha):
    start, end = state(a, count=3), state(b, scale=7.0, count=9)
    middle = interpolate(start, end, alpha)
    for name in ("conv", "bias", "logit_scale"):
        expected = (1 - alpha) * start[name].double() + alpha * end[name].double()
        torch.testing.assert_close(middle[name].double(), expected, rtol=1e-5, atol=1e-5)
        low, high = torch.minimum(start[name], end[name]), torch.maximum(start[name], end[name])
        assert bool(((middle[name] >= low - 1e-5) & (middle[name] <= high + 1e-5)).all())
    if 0 < alpha < 1:
        assert middle["num_batches_tracked"] == 9


def test_states__that_do_not_fit_are_refused_by_the_tensors_name():
    start, end = state(0), state(1)
    with pytest.raises(ModelError, match=r"conv has shape \(4, 3, 2\).* and \(4, 3\)"):
        interpolate(start, end | {"conv": torch.zeros(4, 3)}, 0.5)
    with pytest.raises(ModelError, match="bias is missing"):
        interpolate(start, {k: v for k, v in end.items() if k != "bias"}, 0.5)
    with pytest.raises(ModelError, match="the initial model has no more"):
        model_stock(start, [end, end | {"more": torch.zeros(1)}])
    with pytest.raises(ModelError, match=r"bias is torch\.float32 .* torch\.int64"):
        interpolate(start, end | {"bias": torch.zeros(5, dtype=torch.int64)}, 0.5)
    with pytest.raises(SpecError, match="at least 2 runs, got 1"):
        model_stock(start, [end])
    with pytest.raises(SpecError, match=r"alpha must be in \[0, 1\], got nan"):
        interpolate(start, end, float("nan"))


@given(seeds, seeds, st.integers(2, 5))
def test_model_stock__equal_changes_give_their_mean(a, b, n):
    start = state(a)
    end = moved(start, state(b), 0.3)
    merged, ratios = model_stock(start, [end] * n)
    for name in end:
        torch.testing.assert_close(merged[name], end[name], rtol=1e-6, atol=1e-6)
    assert set(ratios) == {"conv", "bias", "logit_scale"}
    assert all(ratio == pytest.approx(1.0) for ratio in ratios.values())


@given(seeds, seeds)
def test_model_stock__result_lies_between_the_initial_weights_and_the_mean(a, b):
    start, runs = state(a), [state(b), state(b + 1)]
    merged, ratios = model_stock(start, runs)
    for name, ratio in ratios.items():
        mean = torch.stack([run[name] for run in runs]).double().mean(dim=0)
        expected = ratio * mean + (1 - ratio) * start[name].double()
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-5, atol=1e-5)


def test_model_stock__three_changes_by_hand():
    # Two equal, one at a right angle: mean cosine 1/3, t = 3·⅓ / (1 + 2·⅓) = 3/5.
    start = {"w": torch.zeros(2)}
    tuned = [{"w": torch.tensor(v)} for v in ([2.0, 0.0], [2.0, 0.0], [0.0, 2.0])]
    merged, ratios = model_stock(start, tuned)
    assert ratios["w"] == pytest.approx(3 / 5)
    torch.testing.assert_close(merged["w"], 3 / 5 * torch.tensor([4 / 3, 2 / 3]))


@pytest.mark.parametrize("second", [[0.0, 1.0], [-1.0, 0.0], [-1.0, 0.2]])
def test_model_stock__right_and_obtuse_angles_stay_at_the_initial_weights(second):
    start = {"w": torch.tensor([5.0, 5.0])}
    tuned = [{"w": start["w"] + torch.tensor(d)} for d in ([1.0, 0.0], second)]
    merged, ratios = model_stock(start, tuned)
    assert ratios["w"] == 0.0
    assert torch.equal(merged["w"], start["w"])


def test_model_stock__unchanged_tensors_stay_and_have_no_ratio():
    start = state(0)
    frozen = {"conv": start["conv"]}
    merged, ratios = model_stock(start, [state(1) | frozen, state(2) | frozen])
    assert torch.equal(merged["conv"], start["conv"])
    assert set(ratios) == {"bias", "logit_scale"}
    none, nothing = model_stock(start, [start, start])
    assert same_bits(none, start)
    assert nothing == {}


def test_model_stock__a_tensor_that_one_run_left_alone_is_finite_and_sizes_do_not_matter():
    for size in (1e-30, 1e15):
        moves = [{"w": size * torch.tensor([1.0, y])} for y in (0.0, 1.0)]
        _, ratios = model_stock({"w": torch.zeros(2)}, moves)
        assert ratios["w"] == pytest.approx(2 * 2**-0.5 / (1 + 2**-0.5))
    start, tuned = state(0), state(1)
    merged, ratios = model_stock(start, [tuned, tuned, start])
    assert all(bool(torch.isfinite(tensor).all()) for tensor in merged.values())
    # Cosines 1, 0, 0: mean 1/3.
    assert ratios["conv"] == pytest.approx(3 / 5)


def logits_in(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {
        path.name: read_predictions(path).logits
        for path in sorted((folder / "predictions").glob("*.parquet"))
    }


Make = Callable[..., RunSpec]


@pytest.fixture
def make(run_spec, paintings, home):
    """Specs on the tiny suite with a shift and two severities of a corruption."""

    def make(kind, **changes):
        suite = {
            "shifts": {"art": f"folder:{paintings}"},
            "corruptions": {"names": ["contrast"], "severities": [1, 5], "limit": 8},
        }
        return run_spec(kind, **({"suite": suite} | changes))

    return make


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Finished runs that tests share and leave as they are."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def tuned(make, shelf):
    """The folder of an epoch of a method with its defaults."""

    def tuned(kind, tower="vit", lr=1e-3):
        folder = shelf / f"{kind}-{tower}-{lr}"
        if not folder.exists():
            go(make(kind, tower=tower, train={"epochs": 1, "lr": lr}), folder)
        return folder

    return tuned


@pytest.mark.parametrize(("tower", "kind"), [("resnet", "finetune"), ("vit", "flyp")])
def test_wise_ft__ends_are_the_zero_shot_model_and_the_finished_run(
    make, tuned, tmp_path, kind, tower
):
    ends = {0.0: tuned("zero_shot", tower), 1.0: tuned(kind, tower)}
    for alpha, other in ends.items():
        folder = tmp_path / f"wise-{alpha}"
        method = {"run": str(ends[1.0]), "alpha": alpha, "sweep": [0.0, 0.5, 1.0]}
        go(make("wise_ft", tower=tower, method=method), folder)
        expected, got = logits_in(other), logits_in(folder)
        assert expected.keys() == got.keys()
        for name in expected:
            assert np.array_equal(expected[name], got[name]), name
        report, theirs = report_in(folder), report_in(other)
        assert report.model["sha256"] == theirs.model["sha256"]
        assert report.summary == theirs.summary
        assert report.resolved["alpha"] == alpha
        assert report.resolved["head"] == ("linear" if kind == "finetune" else "prompts")
    # One path, whichever of its models is kept: that one is judged, the others along the way.
    paths = [report_in(tmp_path / f"wise-{alpha}").frontier or [] for alpha in ends]
    assert len(paths[0]) == len(paths[1]) == 3
    assert paths[0][1] == paths[1][1]
    for path in paths:
        for alpha, other in ends.items():
            point = next(p for p in path if p.alpha == alpha)
            assert_point_is_the_runs(point, report_in(other))


def assert_point_is_the_runs(point: FrontierPoint, report: Report) -> None:
    """A point of the path says what the run that was judged on its own says."""
    for name in ("accuracy", "ece", "ece_floor", "nll"):
        for place in ("id", "ood"):
            expected = getattr(report.summary, f"{place}_{name}")
            assert getattr(point, f"{place}_{name}") == pytest.approx(expected, abs=1e-9)
        chosen = report.selection["validation"][f"val_{name}"]
        assert getattr(point, f"val_{name}") == pytest.approx(chosen, abs=1e-9)
    for one, other in zip(point.datasets, report.evaluations, strict=True):
        assert (one.dataset, one.role, one.n) == (other.dataset, other.role, other.n)
        assert (one.corruption, one.severity) == (other.corruption, other.severity)
        assert one.accuracy == other.accuracy
        assert one.ece == pytest.approx(other.ece.value)
        assert one.ece_floor == pytest.approx(other.ece.null_mean)
        assert one.nll == pytest.approx(other.nll)


def test_wise_ft__a_model_between_is_evaluated_as_it_is_swept(make, tuned, tmp_path):
    run, folder = tuned("carot"), tmp_path / "wise"
    # The α that is kept is on the path, listed or not.
    spec = make("wise_ft", method={"run": str(run), "alpha": 0.35, "sweep": [1.0, 0.0, 0.0]})
    records = go(spec, folder)
    report = report_in(folder)
    assert [p.alpha for p in report.frontier] == [0.0, 0.35, 1.0]
    assert_point_is_the_runs(report.frontier[1], report)
    # The weights that are kept are the interpolated ones.
    start = load_clip(spec.model.name, None, generator=torch.Generator().manual_seed(0))
    end, _, _ = load_finished(run)
    kept, _, _ = load_finished(folder)
    expected = interpolate(start.net.state_dict(), end.net.state_dict(), 0.35)
    assert same_bits(dict(kept.net.state_dict()), expected)
    assert weights_sha256(kept.net) == report.model["sha256"]
    assert report.model["start_sha256"] == report_in(run).model["start_sha256"]
    swept = [r for r in records if r.kind == "progress" and "every α" in r.detail]
    images = sum(e.n for e in report.evaluations) + report.data["parts"]["validation"]
    # The model that is kept is judged once, for its report and its point alike.
    assert swept[-1].step == swept[-1].total_steps == 2 * images
    assert [r.step for r in swept] == sorted({r.step for r in swept})
    assert records[-1].kind == "done"
    assert records[-1].steps == 0
    assert (folder / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("kind", ["vrf", "dawin"])
def test_mixture__of_equal_models_is_that_model_and_is_refused_as_one_model(
    make, tuned, tmp_path, kind
):
    same, folder = tmp_path / "same", tmp_path / kind
    go(make("wise_ft", method={"run": str(tuned("flyp")), "alpha": 0.0, "sweep": []}), same)
    go(make(kind, method={"run": str(same)}), folder)
    report, expected = report_in(folder), logits_in(tuned("zero_shot"))
    heat = report.resolved["initial_temperature"]
    for name, logits in logits_in(folder).items():
        if kind == "vrf":
            expected[name] = np.log(softmax(expected[name] / heat))
        assert np.allclose(logits, expected[name], atol=1e-4), name
    assert report.summary.id_accuracy == report_in(tuned("zero_shot")).summary.id_accuracy
    assert report.model["sha256"] not in (report.model["start_sha256"], "")
    with pytest.raises(CheckpointError, match=f"is of {kind}: two models"):
        load_finished(folder)
    with pytest.raises(CheckpointError, match="two models"):
        go(make("wise_ft", method={"run": str(folder)}), tmp_path / "again")


@given(st.lists(st.integers(0, 200), min_size=1, max_size=21), st.integers(200, 5000))
def test_one_standard_error__is_the_smallest_that_validation_cannot_tell_from_the_best(right, n):
    accuracies = [r / n for r in right]
    alphas = [i / max(1, len(right) - 1) for i in range(len(right))]
    chosen = alphas.index(one_standard_error(alphas, accuracies, n))
    best = max(accuracies)
    slack = (best * (1 - best) / n) ** 0.5
    assert accuracies[chosen] >= best - slack
    assert all(a < best - slack for a in accuracies[:chosen])
    assert one_standard_error(alphas, [best] * len(alphas), n) == 0


def test_wise_ft__chosen_by_one_standard_error_says_what_it_saw(make, tuned, tmp_path):
    run, folder = tuned("flyp"), tmp_path / "wise"
    go(make("wise_ft", method={"run": str(run), "choose": "one_se", "sweep": []}), folder)
    report = report_in(folder)
    seen = report.resolved["val_accuracies"]
    n = report.data["parts"]["validation"]
    assert report.resolved["alpha"] == one_standard_error(ONE_SE_PATH, seen, n)
    assert report.resolved["chosen_on"] == "id_val"
    assert report.frontier is not None
    assert [p.alpha for p in report.frontier] == [report.resolved["alpha"]]


def test_wise_ft__numbers_of_the_path_are_those_of_the_whole_set(make, tuned, tmp_path):
    run, folder = tuned("finetune"), tmp_path / "wise"
    # Batches of 7 do not divide any set.
    evaluation = {"n_resamples": 20, "batch_size": 7, "n_bins": 4, "scheme": "equal_width"}
    spec = make("wise_ft", method={"run": str(run), "alpha": 0.5}, evaluation=evaluation)
    go(spec, folder)
    report = report_in(folder)
    assert len(report.frontier) == 11
    point = report.frontier[5]
    stored = read_predictions(folder / "predictions" / "art.parquet")
    probs = softmax(stored.logits)
    art = next(s for s in point.datasets if s.dataset == "art")
    assert art.accuracy == pytest.approx(accuracy(score_probs(probs, stored.labels)))
    assert art.nll == pytest.approx(nll(score_probs(probs, stored.labels)))
    whole = ece(score_probs(probs, stored.labels), Binning(n_bins=4, scheme="equal_width"))
    assert art.ece == pytest.approx(whole)
    assert point.ood_accuracy == art.accuracy  # shifts alone where there are any
    assert summarise(report.evaluations, None).ood_accuracy == art.accuracy


def test_wise_ft__decodes_each_image_once_for_the_whole_path(make, tuned, tmp_path, monkeypatch):
    from calift_core.data.images import ImageSet

    run = tuned("flyp")
    seen = {}
    read = ImageSet.image

    def counted(self, index):
        seen[self.name] = seen.get(self.name, 0) + 1
        return read(self, index)

    monkeypatch.setattr(ImageSet, "image", counted)
    counts = []
    for name, sweep in (("short", [0.25]), ("long", [0.0, 0.25, 0.5, 0.75, 1.0])):
        seen.clear()
        go(make("wise_ft", method={"run": str(run), "sweep": sweep}), tmp_path / name)
        counts.append(seen["art"])
    assert counts[0] == counts[1]


def test_model_stock__of_runs_that_differ(make, tuned, tmp_path):
    runs = [str(tuned("flyp", lr=lr)) for lr in (1e-3, 3e-3)]
    spec = make("model_stock", method={"runs": runs})
    go(spec, tmp_path / "stock")
    report = report_in(tmp_path / "stock")
    assert report.frontier is None
    assert (
        0 < report.resolved["t_min"] <= report.resolved["t_mean"] <= report.resolved["t_max"] <= 1
    )
    assert [i["run"] for i in report.resolved["inputs"]] == runs
    assert report.resolved["head"] == "prompts"
    start = load_clip(spec.model.name, None, generator=torch.Generator().manual_seed(0))
    states = [load_finished(Path(run))[0].net.state_dict() for run in runs]
    expected, ratios = model_stock(start.net.state_dict(), states)
    kept, _, _ = load_finished(tmp_path / "stock")
    assert same_bits(dict(kept.net.state_dict()), expected)
    assert report.resolved["t_mean"] == pytest.approx(np.mean(list(ratios.values())))


def test_model_stock__learned_scales_are_folded_into_the_heads(make, tmp_path):
    method = {"head_scale": "learned"}
    go(make("finetune", method=method, train={"epochs": 1}), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    go(make("model_stock", method={"runs": runs}), tmp_path / "stock")
    for name, logits in logits_in(tmp_path / "a").items():
        np.testing.assert_allclose(
            logits_in(tmp_path / "stock")[name], logits, rtol=1e-4, atol=1e-4
        )


def test_model_stock__prompts_and_heads_do_not_mix(make, tuned, tmp_path):
    runs = [str(tuned(kind)) for kind in ("finetune", "flyp")]
    with pytest.raises(SpecError, match=r"one kind.*\(finetune\).*\(flyp\)"):
        go(make("model_stock", method={"runs": runs}), tmp_path / "stock")


def test_merge__a_merged_run_can_be_merged_again(make, tuned, tmp_path):
    run = tuned("finetune")
    half = tmp_path / "half"
    for name, of, alpha in (("half", run, 0.5), ("quarter", half, 0.5), ("direct", run, 0.25)):
        method = {"run": str(of), "alpha": alpha, "sweep": []}
        go(make("wise_ft", method=method), tmp_path / name)
    direct = logits_in(tmp_path / "direct")
    for name, logits in logits_in(tmp_path / "quarter").items():
        np.testing.assert_allclose(logits, direct[name], rtol=1e-3, atol=1e-3)


def test_merge__inputs_by_name_are_found_in_the_folders_given(make, tuned, tmp_path):
    spec = make("wise_ft", method={"run": "0123abcd", "sweep": []})
    with pytest.raises(CheckpointError, match="'0123abcd' holds no finished run"):
        go(spec, tmp_path / "lost")
    go(spec, tmp_path / "found", inputs={"0123abcd": tuned("flyp")})
    assert report_in(tmp_path / "found").spec["method"]["run"] == "0123abcd"


def test_merge__another_start_is_refused_with_both_hashes(make, tmp_path):
    go(make("flyp", train={"epochs": 1, "seed": 3}), tmp_path / "tuned")
    theirs = report_in(tmp_path / "tuned").model["start_sha256"]
    with pytest.raises(ModelError, match=theirs[:12]) as caught:
        go(make("wise_ft", method={"run": str(tmp_path / "tuned")}), tmp_path / "wise")
    assert "train.seed" in caught.value.hint
    with pytest.raises(ModelError, match="started from others"):
        go(make("wise_ft", tower="resnet", method={"run": str(tmp_path / "tuned")}),
           tmp_path / "other")  # fmt: skip


def test_merge__other_classes_are_refused(make, tuned, tmp_path):
    other = write_classes(tmp_path / "animals", ("cat", "dog"), n=20)
    spec = make("wise_ft", suite={"id": f"folder:{other}"}, method={"run": str(tuned("flyp"))})
    with pytest.raises(DataError, match="cat"):
        go(spec, tmp_path / "wise")


def test_merge__a_damaged_input_is_named(make, tuned, tmp_path):
    run = shutil.copytree(tuned("flyp"), tmp_path / "copy")
    spec = make("wise_ft", method={"run": str(run), "sweep": []})
    report = json.loads((run / "report.json").read_text())
    model = report["model"]
    for number, change in enumerate(({"model": model | {"sha256": "0" * 64}}, {"model": {}})):
        (run / "report.json").write_text(json.dumps(report | change))
        with pytest.raises(CheckpointError, match="they are others|is damaged"):
            go(spec, tmp_path / f"wise-{number}")
    (run / "report.json").unlink()
    with pytest.raises(CheckpointError, match=r"no report\.json"):
        go(spec, tmp_path / "wise-without")
