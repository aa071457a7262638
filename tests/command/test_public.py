"""`import calift`, as a notebook uses it."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import calift
from calift_core.calibration import ece_report, score_probs, softmax
from calift_core.errors import PredictionsError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(300, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, size=300)


def test_names__are_all_there_and_load_nothing_at_import():
    for name in calift.__all__:
        assert getattr(calift, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = calift.nothing_like_that
    code = (
        "import sys, calift; print([m for m in ('numpy', 'torch', 'plotly') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_ece__takes_arrays_lists_and_tensors_alike():
    probs = softmax(LOGITS)
    want = ece_report(score_probs(probs, LABELS))
    requested = [
        (probs, LABELS),
        (probs.tolist(), LABELS.tolist()),
        (torch.tensor(probs, requires_grad=True), torch.tensor(LABELS)),
    ]
    for given in requested:
        found = calift.ece(*given)
        assert found.value == pytest.approx(want["value"], abs=1e-7)
        assert found.interval == pytest.approx(want["interval"], abs=1e-6)
        assert 0 < found.null_mean < found.null_q95


def test_evaluate__of_any_callable_is_a_report_like_a_runs():
    class_of = torch.tensor(LOGITS)
    batches = [(torch.arange(i, min(i + 64, 300)), LABELS[i : i + 64]) for i in range(0, 300, 64)]
    found = calift.evaluate(lambda rows: class_of[rows], batches, classes=list("abcd"))
    assert (found.n, found.n_classes) == (300, 4)
    assert found.ece.value == pytest.approx(calift.ece(softmax(LOGITS), LABELS).value, abs=1e-6)
    with pytest.raises(PredictionsError, match=r"\(B, 3\)"):
        calift.evaluate(lambda rows: class_of[rows], batches, classes=list("abc"))
    with pytest.raises(PredictionsError, match="at least one batch"):
        calift.evaluate(lambda rows: rows, [], classes=["a"])


def test_diagram__says_n_error_and_floor():
    figure = calift.reliability_diagram(
        softmax(LOGITS), LABELS, title="mine", n_bins=5, smooth=True
    )
    assert "$" not in figure.to_json()  # a notebook does not know the dashboard's percent sign
    output = str(figure.layout.title.text)
    assert "mine" in output
    assert "300" in output
    assert "floor" in output
