"""What copies are worth, likely label errors, and the manifest that corrects them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from calift.commands import data
from calift_core.analysis.label_errors import label_error_candidates
from calift_core.calibration import softmax
from calift_core.data.images import ImageSet
from calift_core.data.relabel import Correction, relabel
from calift_core.data.suites.load import load_suite
from calift_core.errors import DataError, SpecError
from calift_core.predictions.types import Predictions, PredictionsMetadata
from calift_core.predictions.write import write_predictions
from calift_core.schema.suite import SuiteSpec
from tests.core.conftest import CLASSES, write_classes


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "things"
    for seed, part in enumerate(("train", "validation", "calibration", "test")):
        write_classes(root / part, n=6, seed=seed)
    return root


def write_run(run: Path, images: ImageSet, role: str, says: np.ndarray) -> None:
    """A run's predictions of a set: it says these classes (N,), surely."""
    logits = 6.0 * np.eye(len(CLASSES))[says]
    words = tuple(name.replace("_", " ") for name in CLASSES)  # as a run says them
    about = PredictionsMetadata(f"things/{images.name}", role, words, 1.0)
    predictions = Predictions(np.array(images.ids), images.labels, logits, about)
    (run / "predictions").mkdir(parents=True, exist_ok=True)
    write_predictions(run / "predictions" / f"{images.name}.parquet", predictions)
    (run / "report.json").touch()


def invoke(*arguments: str) -> str:
    answer = CliRunner().invoke(data.app, list(arguments))
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def test_inspect__copies_are_worth_what_the_run_says_without_them(tree, tmp_path, home):
    for name in ("000.png", "001.png"):
        shutil.copy(tree / "train" / CLASSES[0] / name, tree / "test" / CLASSES[0] / f"copy{name}")
    test = load_suite(SuiteSpec(id=f"folder:{tree}")).part("test")
    copies = [i for i, name in enumerate(test.ids) if "copy" in name]
    says = test.labels.copy()
    others = [i for i in range(len(test)) if i not in copies]
    says[others[:6]] = (says[others[:6]] + 1) % 3  # right on both copies, wrong on 6 of 18
    write_run(tmp_path / "run", test, "id", says)
    found = json.loads(invoke("inspect", str(tree), "--run", str(tmp_path / "run"), "--json"))
    (of_test,) = [o for o in found["overlaps"] if (o["set"], o["in"]) == ("test", "train")]
    assert of_test["worth"] == {
        "n": 20, "copies": 2, "accuracy": 0.7, "without": pytest.approx(12 / 18), "on_copies": 1.0
    }  # fmt: skip
    assert "2 of the 20 test images" in of_test["sentence"]
    assert "without them accuracy is 66.7 %, not 70.0" in of_test["sentence"]
    write_run(tmp_path / "other", test.take([others[0]], "test"), "id", says[:1])
    answer = CliRunner().invoke(data.app, ["inspect", str(tree), "--run", str(tmp_path / "other")])
    assert isinstance(answer.exception, DataError)
    assert "the run was evaluated on other data" in answer.exception.message
    answer = CliRunner().invoke(data.app, ["inspect", str(tree), "--run", str(tmp_path)])
    assert "has no report and predictions: expected the folder of a finished" in str(
        answer.exception
    )


def test_suspects__are_cleanlabs_in_the_same_order():
    filters = pytest.importorskip("cleanlab.filter")
    for seed in range(12):
        rng = np.random.default_rng(seed)
        n, n_classes = int(rng.integers(20, 200)), int(rng.integers(2, 8))
        right = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])
        logits = rng.normal(size=(n, n_classes))
        logits[np.arange(n), right] += rng.uniform(0, 3)
        labels = np.where(rng.random(n) < 0.2, rng.integers(0, n_classes, n), right)
        labels[:n_classes] = np.arange(n_classes)
        probs = softmax(2 * logits)
        theirs = filters.find_label_issues(
            labels, probs, filter_by="confident_learning", n_jobs=1,
            return_indices_ranked_by="self_confidence",
        )  # fmt: skip
        assert label_error_candidates(probs, labels)[0].tolist() == list(theirs)


def test_doubtful_to_relabel__from_a_run_to_a_manifest_that_loads(tree, tmp_path):
    suite = load_suite(SuiteSpec(id=f"folder:{tree}"))
    for part, role in (("validation", "validation"), ("test", "id")):
        images = suite.part(part)
        says = images.labels.copy()
        says[4] = 2  # one image of each set looks like another class
        write_run(tmp_path / "run", images, role, says)
    listed = tmp_path / "list.csv"
    found = json.loads(invoke("doubtful", str(tmp_path / "run"), "--out", str(listed), "--json"))
    named = [(s["label"], s["suggested"]) for s in found["items"]]
    assert named == [(CLASSES[0].replace("_", " "), CLASSES[2].replace("_", " "))] * 2
    assert found["agrees"] == pytest.approx(34 / 36)
    rows = list(csv.DictReader(listed.read_text().splitlines()))
    rows[1]["suggested"] = ""  # no picture of any class, somebody says
    with listed.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    out = tree / "corrected.csv"
    invoke("relabel", str(tree), str(listed), "--out", str(out))
    again = load_suite(SuiteSpec(id=f"manifest:{out}"))
    assert {p: len(s) for p, s in again.parts.items()} == {
        p: len(s) - (p in rows[1]["dataset"]) for p, s in suite.parts.items()
    }
    moved = again.part("test" if "test" in rows[0]["dataset"] else "validation")
    at = list(moved.ids).index(rows[0]["sample"])
    assert again.classes[moved.labels[at]] == CLASSES[2]
    # Of a manifest, too; the list is for the labels that were.
    with pytest.raises(DataError, match=r"it was made for other data, or .* corrected already"):
        relabel(f"manifest:{out}", [Correction(rows[0]["sample"], *CLASSES[:2])], tree / "b.csv")
    assert relabel(f"manifest:{out}", [], tree / "same.csv") == (0, 0)
    assert (tree / "same.csv").read_text().count("\n") == out.read_text().count("\n")


@pytest.mark.parametrize(
    ("sample", "suggested", "out", "sentence"),
    [
        ("nobody.png", CLASSES[0], "a.csv", "1 of the 1 corrections are of no image"),
        ("test/{}/000.png", "dragon", "a.csv", "cannot be 'dragon': the classes are"),
        ("test/{}/000.png", CLASSES[1], "a.parquet", "ends in .csv, got 'a.parquet'"),
        ("test/{}/000.png", CLASSES[1], "train/a.csv", "a manifest lies in a folder that all"),
    ],
)
def test_relabel__what_is_wrong_is_a_sentence(tree, sample, suggested, out, sentence):
    one = Correction(sample.format(CLASSES[0]), "", suggested)
    with pytest.raises((DataError, SpecError), match=sentence):
        relabel(f"folder:{tree}", [one], tree / out)
    assert not (tree / out).exists()
