"""The demo's sentences follow from its numbers, and say where a claim does not show."""

import numpy as np

from calift.commands.demo_story import DemoModel, difference, mean_difference, sentences
from calift_core.calibration import score_probs

FAMILIES, EACH = 12, 40


def model(name: str, right: float, sure: float, sigma_min: float = 1e-4) -> DemoModel:
    """A model of two classes with this accuracy and confidence on ID data and two shifts."""
    rng = np.random.default_rng(0)  # the same images are hard for all
    sets, families = {}, {}
    for index, dataset in enumerate(("id", "serif", "pixel")):
        n = FAMILIES * EACH
        hit = rng.random(n) < right - 0.1 * index
        labels = rng.integers(2, size=n)
        probs = np.full((n, 2), 1 - sure)
        probs[np.arange(n), np.where(hit, labels, 1 - labels)] = sure
        sets[dataset] = score_probs(probs, labels)
        families[dataset] = np.repeat(np.arange(FAMILIES), EACH)
    return DemoModel(name, sets, families, sigma_min)


def test_mean_difference__its_interval_covers_with_few_clusters():
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(8), 20)
    covered = 0
    for _ in range(400):
        parts = [
            (0.5 + rng.normal(size=8)[clusters] + rng.normal(size=160), clusters) for _ in range(3)
        ]
        found = mean_difference(parts)
        covered += found.low <= 0.5 <= found.high
    assert 0.92 <= covered / 400 <= 0.98  # standard error of the simulation: 0.011


def test_difference__of_a_model_with_itself_is_nothing():
    one = model("a", 0.8, 0.8)
    for metric in ("accuracy", "nll", "squared_ece"):
        found = difference(one, one, metric, one.shifts)
        assert (found.value, found.sign) == (0, 0)


def test_sentences__say_what_the_numbers_show_and_what_they_do_not():
    zero, tuned = model("Zero-shot", 0.6, 0.6), model("FLYP", 0.8, 0.95)
    carot, recipe = model("CaRot", 0.8, 0.75, 5e-4), model("Both", 0.8, 0.75)
    gain, confidence, remedies = sentences([zero, tuned, carot, recipe])
    assert gain.startswith("Fine-tuning pays")
    assert "it gains as well" in gain
    assert confidence.startswith("But its confidence lies")
    assert "CaRot's calibration error under shift is lower" in remedies
    assert " instead of " in remedies
    assert "the Both has an NLL under shift of" in remedies
    assert "lower than FLYP's" in remedies

    gain, confidence, remedies = sentences([tuned, tuned, tuned, tuned])
    assert "pays does not show here" in gain
    assert "no difference can be told" in gain
    assert "does not show here" in confidence
    assert "is lower does not show here" in remedies
    assert "not told apart from" in remedies

    gain, confidence, remedies = sentences([tuned, zero, tuned, tuned])
    assert gain.startswith("Fine-tuning costs accuracy here")
    assert "it loses" in gain
    assert confidence.startswith("Its confidence under shift is better")
    assert "higher here" in remedies
