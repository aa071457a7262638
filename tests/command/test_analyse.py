"""`calift analyse` on files, without a service: it says what the functions behind it compute."""

import json
from pathlib import Path

import numpy as np
import pytest

from calift.commands.main import main
from calift_core import calibration
from calift_core.analysis import calibrators, chunks, measures, reliability
from calift_core.analysis import draws as analysis_draws
from calift_core.analysis.report import evaluation_report
from calift_core.calibration import score_samples
from calift_core.predictions.write import write_predictions
from calift_core.schema.report import Report, Summary
from calift_core.schema.spec import EvaluationSpec
from tests.conftest import example_predictions

SETS = (
    ("suite/calibration", "calibration", 50),
    ("suite/test", "id", 0),
    ("sketch", "shift", 1),
    ("noise/3", "corruption", 2),
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A folder like a finished run's."""
    folder = tmp_path_factory.mktemp("run")
    for dataset, role, seed in SETS:
        name = dataset.replace("/", "_")
        write_predictions(
            folder / "predictions" / f"{name}.parquet",
            example_predictions(seed, n=400, dataset=dataset, role=role),
        )
    return folder


@pytest.fixture
def analyse(capsys, home, monkeypatch):
    """Run `calift analyse …` with no service to ask: its status and all it said."""
    monkeypatch.setenv("CALIFT_API_URL", "http://127.0.0.1:9")

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["analyse", *(str(a) for a in arguments)])
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out + output.err

    return run


@pytest.fixture
def ask(analyse):
    """The same with `--json`, read."""

    def run(*arguments):
        status, output = analyse(*arguments, "--json")
        assert status == 0, output
        return json.loads(output)

    return run


def file_of(folder: Path, name: str) -> Path:
    return folder / "predictions" / f"{name}.parquet"


def test_metrics__are_those_of_the_file(ask, run_folder):
    found = ask("metrics", file_of(run_folder, "sketch"), "--bins", 7, "--temperature", 2)
    by_name = {m["name"]: m for m in found["measures"]}
    predictions = example_predictions(1, n=400, dataset="sketch", role="shift")
    probs, binning = predictions.probs(2), calibration.Binning(n_bins=7)
    scores = calibration.score_probs(probs, predictions.labels)
    expected = {
        "accuracy": calibration.accuracy(scores),
        "ece": calibration.ece(scores, binning),
        "classwise_ece_equal_mass": calibration.classwise_ece(probs, predictions.labels, binning),
    }
    for name, value in expected.items():
        assert by_name[name]["value"] == pytest.approx(value, abs=1e-6), name
    assert found["source"]["dataset"] == "sketch"
    assert found["source"]["evaluation_id"] is None


def test_slices__of_a_file_and_of_a_folder(ask, run_folder):
    where = "confidence >= 0.8 and not correct"
    one = ask("slices", file_of(run_folder, "sketch"), "--by", "all", "--where", where)
    every = ask("slices", run_folder, "--where", where)
    assert [s["key"] for s in every["items"]] == ["suite/test", "sketch", "noise/3"]
    assert every["items"][1]["n"] == one["items"][0]["n"] == one["n_matching"]
    requested = ("--bins", 4, "--scheme", "equal_width", "--norm", "max")
    one = ask("slices", file_of(run_folder, "sketch"), "--by", "all", *requested)
    every = ask("slices", run_folder, *requested)
    assert every["items"][1]["ece"] == one["items"][0]["ece"]
    assert every["items"][1]["n_bins"] == 4


def test_calibrators__find_the_calibration_split_beside_the_file(ask, analyse, run_folder):
    sketch, test = file_of(run_folder, "sketch"), file_of(run_folder, "suite_test")
    effect = ask("calibrators", sketch)
    assert effect["calibrator"]["fitted_on"]["dataset"] == "suite/calibration"
    assert not effect["calibrator"]["oracle"]
    assert effect["after"]["nll"] < effect["before"]["nll"]
    named = ask("calibrators", sketch, "--fit-on", file_of(run_folder, "suite_calibration"))
    assert named == effect
    status, output = analyse("calibrators", sketch, "--fit-on", test)
    assert status == 1
    assert "--oracle" in output
    elsewhere = ask("calibrators", sketch, "--fit-on", test, "--oracle")
    assert elsewhere["calibrator"]["oracle"]
    assert not elsewhere["after"]["in_sample"]
    own = ("calibrators", sketch, "--fit-on", sketch, "--oracle", "--kind", "isotonic")
    assert ask(*own)["after"]["in_sample"]
    _, output = analyse(*own)
    assert "in-sample: fitted on the very samples" in output
    assert "Taken off by it: NLL" in output
    status, output = analyse("calibrators", sketch, "--kind", "tsp")
    assert status == 1
    assert "perturbed copies" in output


def test_transfer__equals_the_calibrators_one_by_one(ask, run_folder):
    matrix = ask("transfer", run_folder, "--kind", "isotonic")
    assert [c["dataset"] for c in matrix["rows"][0]["cells"]] == ["suite/test", "sketch"]
    effect = ask("calibrators", file_of(run_folder, "sketch"), "--kind", "isotonic")
    honest = matrix["rows"][1]
    assert not honest["calibrator"]["oracle"]
    assert honest["cells"][1]["ece"] == pytest.approx(effect["after"]["ece"])
    cells = [row["cells"][1] for row in matrix["rows"]]
    assert [cell["in_sample"] for cell in cells] == [False, False, False, True]
    for cell in cells:
        assert cell["nll_gain"] == pytest.approx(cells[0]["nll"] - cell["nll"])
    named = ask("transfer", run_folder, "--dataset", "noise/3")
    assert [len(row["cells"]) for row in named["rows"]] == [1, 1, 1]


def test_budget__against_itself_there_is_nothing_to_see(ask, run_folder):
    test = file_of(run_folder, "suite_test")
    found = ask("budget", test, "--difference", 0.01, "--against", test)
    assert found["observed"] == 0
    assert found["needed"] == 150  # no promise is made for less


@pytest.mark.parametrize("command", ["metrics", "audit", "slices", "calibrators"])
def test_tables__are_written_for_people(analyse, run_folder, command):
    status, output = analyse(command, file_of(run_folder, "sketch"))
    assert status == 0, output
    assert "floor" in output.lower()
    assert "sketch" in output or "calibration" in output


def test_targets__that_are_not_there(analyse):
    assert analyse("metrics", "nowhere/x.parquet") == (
        1, "error: there is no file 'nowhere/x.parquet'.\n  An id of the service has no '/'.\n",
    )  # fmt: skip
    status, output = analyse("metrics", "0123456789ab-01234567")  # an id: the service is asked
    assert status == 1
    assert "no calift service answers" in output


def test_analyse__asks_as_evaluated_unless_told_otherwise(ask, tmp_path):
    made = example_predictions(1, n=400, dataset="sketch", role="shift")
    write_predictions(tmp_path / "predictions" / "sketch.parquet", made)
    own = EvaluationSpec(n_bins=6, scheme="equal_width", n_resamples=40, seed=3)
    evaluation = evaluation_report(made, own).model_copy(update={"temperature": 1.5})
    report = Report(
        run_id="x", name="a run", spec={}, spec_sha256="", resolved={}, summary=Summary(),
        evaluations=[evaluation], spectrum=None, selection={}, model={}, data={}, timings_s={},
        environment={},
    )  # fmt: skip
    (tmp_path / "report.json").write_text(report.model_dump_json())
    file = tmp_path / "predictions" / "sketch.parquet"
    explicit = ("--bins", 6, "--scheme", "equal_width", "--temperature", 1.5)
    for command in (("metrics", file), ("slices", file), ("slices", tmp_path)):
        assert ask(*command) == ask(*command, *explicit)
        assert ask(*command)["temperature"] == 1.5
        assert ask(*command, "--bins", 9) != ask(*command)
    assert ask("audit", file) == ask("audit", file, "--temperature", 1.5)
    assert ask("metrics", file)["n_resamples"] == 40
    assert ask("metrics", file)["seed"] == 3
    on_itself = ("calibrators", file, "--fit-on", file, "--oracle")
    assert ask(*on_itself)["before"]["n_bins"] == 6
    matrix = ask("transfer", tmp_path)
    assert (matrix["n_bins"], matrix["scheme"]) == (6, "equal_width")


@pytest.mark.parametrize("scheme", ["equal_mass", "equal_width"])
@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_reliability__numbers_are_those_of_the_report_and_of_the_curve(scheme, norm):
    rng = np.random.default_rng(3)
    confidences = np.round(rng.beta(4, 2, 900), 3)  # with ties
    scores = score_samples(
        example_predictions(4, n=900).logits, example_predictions(4, n=900).labels
    )
    scores = type(scores)(
        labels=scores.labels, predicted=scores.predicted, confidences=confidences,
        correct=rng.random(900) < confidences, nll=scores.nll, brier=scores.brier,
        rank=scores.rank,
    )  # fmt: skip
    binning, draws = calibration.Binning(9, scheme, norm), analysis_draws.Draws(30, seed=5)
    found = reliability.reliability_numbers(scores, binning, draws)
    report = calibration.ece_report(
        calibration.TopLabel(confidences, scores.correct), binning, n_resamples=30, seed=5
    )
    for name in ("value", "null_mean", "null_q95", "interval", "debiased"):
        assert found["ece" if name == "value" else name] == pytest.approx(report[name]), name
    curve = calibration.reliability_curve(
        calibration.TopLabel(confidences, scores.correct), binning, n_resamples=30, seed=5
    )
    filled = curve.count > 0
    for name in ("lower", "upper", "count", "accuracy", "interval_high", "band_low", "band_high"):
        assert [b[name] for b in found["bins"]] == pytest.approx(getattr(curve, name)[filled])


@pytest.mark.parametrize("size", measures.BATCH_SIZES)
def test_audit__batch_averaged_equals_the_definition(size):
    rng = np.random.default_rng(size)
    confidences = rng.beta(4, 2, 1000)
    for _ in range(3):
        correct = rng.random(1000) < confidences
        label = calibration.TopLabel(confidences, correct)
        expected = calibration.ece_batch_averaged(label, batch_size=size)
        assert measures._batch_averaged(confidences, size)(label) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scheme", "norm"), [("equal_mass", "l1"), ("equal_width", "l2"), ("equal_mass", "max")]
)
def test_classwise__equals_the_definition_and_its_floor_is_that_of_drawn_labels(scheme, norm):
    rng = np.random.default_rng(0)
    predictions = example_predictions(7, n=500, n_classes=6)
    probs = predictions.probs()
    drawn = measures._draw_labels(probs, 40, rng)
    binning = calibration.Binning(8, scheme, norm)
    errors = measures._classwise_errors(
        probs, np.concatenate([predictions.labels[None], drawn]), binning
    )
    expected = [
        calibration.classwise_ece(probs, labels, binning)
        for labels in [predictions.labels, *drawn[:3]]
    ]
    assert errors[:4] == pytest.approx(expected, abs=1e-7)
    # Labels come from the rows' own probabilities.
    share = (drawn[:, :, None] == np.arange(6)).mean(axis=(0, 1))
    assert share == pytest.approx(probs.mean(axis=0), abs=0.02)
    assert errors[1:].mean() < errors[0]  # this model is not calibrated


def test_read_to_fit__a_large_file_is_thinned_at_equal_distances(tmp_path, monkeypatch):
    whole = example_predictions(3, n=300)
    path = tmp_path / "x.parquet"
    write_predictions(path, whole)
    assert (calibrators.read_to_fit(path).logits == whole.logits).all()
    monkeypatch.setattr(calibrators, "FIT_CELLS", 5 * 60)
    monkeypatch.setattr(chunks, "CELLS_AT_ONCE", 5 * 70)  # several chunks
    kept = calibrators.read_to_fit(path)
    at = [int(name.split()[1]) for name in kept.ids]
    assert (len(at), at[0], at[-1]) == (60, 0, 299)
    assert set(np.diff(at)) <= {5, 6}
    assert (kept.logits == whole.logits[at]).all()
    assert (kept.labels == whole.labels[at]).all()
    assert len(calibrators.read_to_fit(path, n_files=3)) == 20
    probs, labels = measures._probabilities(path, 2.0)
    assert (labels == whole.labels).all()
    assert probs == pytest.approx(whole.probs(2.0))
