"""A judgement says what the measures say, of arrays and of files alike."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted

import calift
from calift_core.calibration import ece_report, nll, score_probs, softmax
from calift_core.errors import PredictionsError, SpecError, UnknownNameError
from calift_core.judging.judgement import judge
from calift_core.predictions.foreign.load import load_predictions

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, size=(1500, 5))
TRUE = softmax(LOGITS)
#: Labels that TRUE is calibrated for.
LABELS = (TRUE.cumsum(axis=1) < RNG.random((1500, 1))).sum(axis=1)
SURE = softmax(LOGITS * 1.8)
NAMES = ["ant", "bee", "cat", "dog", "eel"]


def test_judge__sees_over_confidence_and_what_a_temperature_gives():
    found = judge(SURE, LABELS)
    first, _, third = found.sentences
    own = ece_report(score_probs(SURE, LABELS), n_resamples=200, seed=0)
    assert found.sets[0].numbers["ece"] == pytest.approx(own["value"])
    assert found.sets[0].is_miscalibrated
    assert "over-confident" in first
    assert "more than chance" in first
    assert "A temperature of 1." in third
    calibrated = judge(TRUE, LABELS)
    assert not calibrated.sets[0].is_miscalibrated
    assert "chance can explain" in calibrated.sentences[0]
    assert "would not help" in calibrated.sentences[2]
    assert repr(found) == "\n".join(found.sentences)


def test_judge__names_the_worst_shift_and_the_better_model():
    noise = RNG.permutation(LABELS)
    found = judge(
        TRUE, LABELS, shifts={"near": (TRUE, LABELS), "far": (SURE, noise)}, against=SURE,
        other="rival",
    )  # fmt: skip
    assert "Of 2 shifts far costs most" in found.sentences[1]
    assert found.sentences[2].startswith("Against rival, on the same samples: accuracy cannot be")
    assert "NLL is" in found.sentences[2]
    assert "calibration is better (ECE " in found.sentences[2]
    assert "lower" in found.sentences[2]
    assert "better" in found.sentences[2]
    back = judge(SURE, LABELS, against=TRUE)
    ours, theirs = (one.sets[0].against["nll"].difference for one in (found, back))
    assert ours == pytest.approx(-theirs)


def test_page__stands_alone_and_holds_strange_names_as_text():
    page = judge(TRUE, LABELS, name="<b>mine</b>", shifts={"a&b": (TRUE, LABELS)}).to_html()
    assert "<b>mine" not in page
    assert "&lt;b&gt;mine" in page
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page


def test_judge__one_column_is_the_second_class_and_other_classes_are_refused():
    second = RNG.random(400)
    labels = (RNG.random(400) < second).astype(int)
    one, two = (judge(p, labels) for p in (second, np.stack([1 - second, second], axis=1)))
    assert one.to_dict() == two.to_dict()
    with pytest.raises(PredictionsError, match=r"must lie in \[0, 1\]"):
        judge(second * 3, labels)
    with pytest.raises(PredictionsError, match="must have 5 classes"):
        judge(TRUE, LABELS, shifts={"other": (TRUE[:, :4] / TRUE[:, :4].sum(1)[:, None], LABELS)})


def test_calibrate__is_cross_fitted_and_keeps_scikit_learns_manners():
    fitted = calift.calibrate(SURE, LABELS)
    assert fitted.temperature == pytest.approx(1.8, abs=0.15)
    assert fitted.predict_proba(SURE) == pytest.approx(TRUE, abs=0.03)
    assert (fitted.predict(SURE) == SURE.argmax(axis=1)).all()
    rounded = fitted.cross_fitted_.astype(np.float64)
    rounded /= rounded.sum(axis=1, keepdims=True)
    held_out = log_loss(LABELS, rounded, labels=range(5))
    assert held_out == pytest.approx(nll(score_probs(fitted.cross_fitted_, LABELS)), abs=1e-5)
    assert held_out < log_loss(LABELS, SURE, labels=range(5))
    # A calibrator with many parameters does better on what it has seen than on what it has not.
    loose = calift.calibrate(TRUE, RNG.permutation(LABELS), kind="isotonic")
    seen = loose.predict_proba(TRUE)
    assert not np.allclose(seen, loose.cross_fitted_)
    with pytest.raises(UnknownNameError):
        calift.calibrate(TRUE, LABELS, kind="magic")
    with pytest.raises(PredictionsError, match="at least 5 samples"):
        calift.calibrate(TRUE[:3], LABELS[:3])
    with pytest.raises(SpecError, match="must be fitted first"):
        type(fitted)().predict_proba(TRUE)


def test_calibrate__knows_classes_by_name_and_by_order():
    by_index = calift.calibrate(SURE, LABELS)
    for labels, classes in ((np.array(NAMES)[LABELS], None), (LABELS + 10, np.arange(10, 15))):
        found = calift.calibrate(SURE, labels, classes=classes)
        assert found.temperature == by_index.temperature
        assert (found.predict(SURE) == np.sort(np.unique(labels))[SURE.argmax(axis=1)]).all()
    turned = calift.calibrate(SURE[:, ::-1], np.array(NAMES)[LABELS], classes=NAMES[::-1])
    assert turned.temperature == pytest.approx(by_index.temperature, rel=1e-5)
    found = judge(SURE, np.array(NAMES)[LABELS], shifts={"few": (SURE[:1], ["eel"])})
    assert found.sets[0].numbers == judge(SURE, LABELS).sets[0].numbers
    with pytest.raises(PredictionsError, match="5 different classes, one a column, got 4"):
        calift.calibrate(SURE, np.array(NAMES)[LABELS % 4])
    with pytest.raises(PredictionsError, match="must be among the 5 classes, got 'fox'"):
        judge(SURE, np.array(NAMES)[LABELS], shifts={"new": (SURE[:1], ["fox"])})


def test_calibrator__is_an_estimator_and_finds_scikit_learns_temperature():
    """Binary: a temperature is a logistic regression on the log-odds without an intercept."""
    sure = SURE[:, :2] / SURE[:, :2].sum(axis=1, keepdims=True)
    labels = (RNG.random(1500) < (TRUE[:, 1] / TRUE[:, :2].sum(axis=1))).astype(int)
    pipe = make_pipeline(FunctionTransformer(lambda x: x[:, 1]), calift.ProbabilityCalibrator())
    fitted = clone(pipe).fit(sure, labels)
    check_is_fitted(fitted)
    assert is_classifier(fitted)
    assert list(fitted.classes_) == [0, 1]
    odds = np.log(sure[:, 1:] / sure[:, :1])
    other = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(odds, labels)
    assert fitted[-1].temperature == pytest.approx(1 / other.coef_[0, 0], rel=1e-3)
    assert fitted.predict_proba(sure) == pytest.approx(other.predict_proba(odds), abs=1e-4)
    assert cross_val_score(pipe, sure, labels, scoring="neg_log_loss", cv=3).mean() == (
        pytest.approx(-log_loss(labels, fitted.predict_proba(sure)), abs=0.01)
    )
    search = GridSearchCV(
        calift.ProbabilityCalibrator(), {"kind": ["temperature", "ets"]}, scoring="neg_log_loss"
    )
    assert search.fit(sure, labels).best_params_["kind"] in ("temperature", "ets")


def test_calibrator__of_several_classes_is_scikit_learns_temperature():
    class Model(ClassifierMixin, BaseEstimator):
        """Its probabilities are its inputs."""

        def fit(self, x, y):
            self.classes_ = np.arange(5)
            return self

        def decision_function(self, x):
            return np.log(x)

        def predict(self, x):
            return x.argmax(axis=1)

    given = FrozenEstimator(Model().fit(SURE, LABELS))
    other = CalibratedClassifierCV(given, method="temperature").fit(SURE, LABELS)
    own = calift.calibrate(SURE, LABELS)
    assert own.predict_proba(SURE) == pytest.approx(other.predict_proba(SURE), abs=1e-3)


def _files(folder: Path) -> dict[str, Path]:
    """The same predictions in every form that is read."""
    probs, labels = SURE[:200], LABELS[:200]
    rows = [
        {"label": NAMES[y], "probs": dict(zip(NAMES, map(float, p), strict=True))}
        for p, y in zip(probs, labels, strict=True)
    ]
    np.savez(folder / "a.npz", labels=np.array(NAMES)[labels], probs=probs, class_names=NAMES)
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    head = "label," + ",".join(f"probs_{name}" for name in NAMES)
    lines = [
        f"{NAMES[y]}," + ",".join(f"{v:.17g}" for v in p)
        for p, y in zip(probs, labels, strict=True)
    ]
    (folder / "a.csv").write_text("\n".join([head, *lines]))
    return {path.suffix: path for path in folder.iterdir()}


def test_files__of_every_form_with_class_names_as_labels_say_the_same(tmp_path):
    found = {kind: load_predictions(path) for kind, path in _files(tmp_path).items()}
    for one in found.values():
        assert list(one.metadata.class_names) == NAMES
        assert (one.labels == LABELS[:200]).all()
        assert softmax(one.logits) == pytest.approx(SURE[:200], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"label": 0, "probs": [0.5, 0.5]}\n{"probs": [0.5, 0.5]}', "sample 2 has none"),
        ('{"label": 0, "probs": [0.5, 0.5]}\n{"label": 1, "probs": [1.0]}', "as many in every"),
        ('{"label": 0, "probs": [0.5, 0.5]}\n[1]', "line 2 of .* must be a JSON object"),
        ('{"label": 0, "probs": [0.5, 0.5]}\n{"label"', "line 2 of .* must be JSON"),
        ('{"label": "cat", "probs": [0.5, 0.5]}', "need the names of the classes"),
        ('{"label": "cow", "probs": {"cat": 0.5, "dog": 0.5}}', "got 'cow'"),
        ('{"probs": [0.5, 0.5]}', "must have a label"),
    ],
)
def test_jsonl__what_is_wrong_is_reported(text, said, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(PredictionsError, match=said):
        load_predictions(path)


def test_command__prints_the_answer_and_writes_the_page(tmp_path, capsys):
    from calift.commands.main import main

    files = _files(tmp_path)
    page = tmp_path / "page.html"

    def call(*words):
        try:
            main(["judge", *map(str, words), "--out", str(page)])
        except SystemExit as ended:
            read = capsys.readouterr()
            return int(ended.code or 0), read.out + read.err
        raise AssertionError

    status, output = call(files[".csv"], files[".npz"], "--against", files[".jsonl"])
    assert status == 0
    assert "On a it is right on" in output.replace("\n", " ")
    assert "cannot be told apart" in output.replace("\n", " ")
    assert page.read_text().startswith("<!doctype html>")
    status, output = call(files[".csv"], "--json")
    assert len(json.loads(output)["sentences"]) == 3
    shuffled = tmp_path / "shuffled.npz"
    np.savez(shuffled, labels=LABELS[:200][::-1], probs=SURE[:200])
    status, output = call(files[".csv"], "--against", shuffled)
    assert status == 1
    assert "in the same order" in output.replace("\n", " ")
