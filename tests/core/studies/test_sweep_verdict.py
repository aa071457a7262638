"""The verdict of a sweep: on the same seeds and images, at own rates and at equal ID accuracy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from calift_core.calibration import SampleScores, accuracy, ece, paired_difference, score_probs
from calift_core.calibration.squared import SquaredError
from calift_core.errors import UnpairedError
from calift_core.schema.wire.sweeps import SweepVerdict, VerdictSet
from calift_core.sweeps.verdict import Contender, ScoredRun, ScoredSet, compare_contenders

N, CLASSES = 400, 4
_RNG = np.random.default_rng(0)
LABELS = _RNG.integers(CLASSES, size=N)
#: What makes an image hard for every model alike.
HARD = _RNG.normal(size=(N, CLASSES))


def scores(skill: float, seed: int, noise: float = 0.3) -> SampleScores:
    """Of a model that is right more often the higher its skill."""
    logits = HARD + noise * np.random.default_rng(seed).normal(size=(N, CLASSES))
    logits[np.arange(N), LABELS] += skill
    probs = np.exp(logits)
    return score_probs(probs / probs.sum(axis=1, keepdims=True), LABELS)


def evaluated(run_id, seed, sets, names="image"):
    units = np.array([f"{names} {i:04d}" for i in range(N)])

    def opened(of):
        return lambda: (units, of)

    return ScoredRun(
        run_id,
        seed,
        {
            name: ScoredSet(name, role, ece=float(ece(of)), floor=0.01, open=opened(of))
            for name, (role, of) in sets.items()
        },
    )


def run(name: str, seed: int, skill: float, ood: float, **more: Any) -> ScoredRun:
    """A run with an ID test set, one shift and one corruption that is not looked at."""
    return evaluated(
        f"{name}-{seed}-{skill:g}",
        seed,
        {
            "id": ("id", scores(skill, seed)),
            "art": ("shift", scores(ood, seed + 50)),
            "noise_1": ("corruption", scores(0, seed + 70)),
        },
        **more,
    )


def contender(label, skill, ood, seeds=(0, 1, 2), ladder=(), every=False):
    on = seeds if every else (100,)
    return Contender(
        label,
        "carot",
        1e-3 if ladder else None,
        "",
        [run(label, seed, skill, ood) for seed in seeds],
        {lr: [run(f"{label} {lr:g}", s, x, y) for s in on] for lr, x, y in ladder},
    )


def verdict(*contenders: Contender, seeds: Sequence[int] = (0, 1, 2)) -> SweepVerdict:
    return compare_contenders(contenders, sweep_id="s", name="s", seeds=seeds, complete=True)


def of(sets: Sequence[VerdictSet], metric: str) -> VerdictSet:
    return next(one for one in sets if one.metric == metric)


def test_verdict__values_are_the_means_of_the_runs_on_the_shifts_alone():
    found = verdict(contender("a", 1.5, 1.0))
    (row,) = found.rows
    assert (found.evaluated_on, found.datasets) == ("shifts", ["art"])
    ood = [scores(1.0, seed + 50) for seed in (0, 1, 2)]
    assert row.ood_accuracy.mean == pytest.approx(np.mean([accuracy(s) for s in ood]))
    assert row.ood_nll.mean == pytest.approx(np.mean([s.nll.mean() for s in ood]))
    assert row.ood_squared.mean == pytest.approx(np.mean([SquaredError(s).value for s in ood]))
    assert row.ood_ece.mean == pytest.approx(np.mean([ece(s) for s in ood]))
    assert row.ood_accuracy.sd == pytest.approx(np.std([accuracy(s) for s in ood], ddof=1))
    assert row.ood_accuracy.n == 3
    assert row.ood_accuracy.se == pytest.approx((row.ood_accuracy.sd or 0) / np.sqrt(3))
    assert "nothing to compare" in found.sentence


def test_verdict__tells_a_better_method_and_keeps_two_that_are_the_same():
    found = verdict(contender("a", 1.5, 1.5), contender("b", 1.5, 0.5))
    for metric in ("accuracy", "nll"):
        one = of(found.sets, metric)
        assert (one.best, one.members, one.excluded) == ("a", ["a"], ["b"])
        (difference,) = one.differences
        assert difference.distinguishable
        assert (difference.label, difference.against) == ("b", "a")
    same = verdict(contender("a", 1.5, 1.0), contender("again", 1.5, 1.0))
    for one in same.sets:
        assert sorted(one.members) == ["a", "again"]
        assert one.differences[0].difference == pytest.approx(0, abs=1e-12)
        assert not one.differences[0].distinguishable
    assert "No single method" in same.sentence


def test_verdict__of_one_seed_agrees_with_the_paired_difference_of_the_library():
    a, b = (contender(x, 1.5, ood, seeds=[0]) for x, ood in (("a", 1.0), ("b", 0.8)))
    found = verdict(a, b, seeds=[0])
    (difference,) = of(found.sets, "accuracy").differences
    expected = paired_difference(
        scores(0.8, 50), scores(1.0, 50), metric="accuracy", n_resamples=2000
    )
    assert difference.difference == pytest.approx(expected.difference)
    assert difference.interval == pytest.approx((expected.low, expected.high), abs=0.012)
    assert any("one seed" in note for note in found.notes)


def test_verdict__refuses_runs_that_were_evaluated_on_other_images():
    a = contender("a", 1.5, 1.0)
    b = Contender("b", "flyp", None, "", [run("b", s, 1, 1, names="other") for s in (0, 1, 2)])
    with pytest.raises(UnpairedError, match="evaluated on other images of art"):
        verdict(a, b)


LADDER = [(1e-4, 0.5, 0.3), (1e-3, 1.0, 0.8), (1e-2, 1.5, 1.3)]


@pytest.mark.parametrize("every", [False, True])
def test_equal__a_method_that_was_only_trained_harder_is_no_better(every):
    """Both go along one curve; one was stopped a rate earlier, and at its own rate it is worse."""
    harder = contender("harder", 1.5, 1.3, ladder=LADDER, every=every)
    softer = contender("softer", 1.0, 0.8, ladder=LADDER[:2], every=every)
    found = verdict(harder, softer)
    assert of(found.sets, "accuracy").members == ["harder"]
    equal = found.equal
    assert equal.covers == ("seeds and images" if every else "images")
    assert {row.label for row in equal.rows} == {"harder", "softer"}
    on = (0, 1, 2) if every else (100,)
    top = np.mean([accuracy(scores(1.0, s)) for s in on])
    assert equal.id_accuracy == pytest.approx(top)
    for row in equal.rows:  # at the accuracy of a rate the curve is read at that rate
        expected = np.mean([accuracy(scores(0.8, s + 50)) for s in on])
        assert row.ood_accuracy == pytest.approx(expected)
    assert sorted(of(equal.sets, "accuracy").members) == ["harder", "softer"]


def test_equal__is_read_between_two_rates_and_tells_a_better_curve():
    good = contender("good", 1.5, 1.8, ladder=[(lr, x, y + 0.9) for lr, x, y in LADDER])
    plain = contender("plain", 1.2, 0.9, ladder=[(1e-4, 0.4, 0.2), (1e-3, 1.2, 0.9)])
    found = verdict(good, plain).equal
    rows = {row.label: row for row in found.rows}
    row = rows["good"]
    assert (row.lr_low, row.lr_high) == (1e-3, 1e-2)
    low, high = (accuracy(scores(x, 100)) for x in (1.0, 1.5))
    assert found.id_accuracy == pytest.approx(accuracy(scores(1.2, 100)))
    assert low + row.share * (high - low) == pytest.approx(found.id_accuracy)
    ends = [accuracy(scores(y, 150)) for y in (1.7, 2.2)]
    assert row.ood_accuracy == pytest.approx(ends[0] + row.share * (ends[1] - ends[0]))
    assert of(found.sets, "accuracy").members == ["good"]


def test_equal__says_who_cannot_be_read_there_and_why():
    high = [(1e-4, 1.4, 1.0), (1e-3, 1.8, 1.2)]
    low = [(1e-4, 0.1, 0.1), (1e-3, 0.4, 0.2)]
    found = verdict(
        contender("first", 1.8, 1.2, ladder=high),
        contender("second", 1.8, 1.2, ladder=high),
        contender("weak", 0.4, 0.2, ladder=low),
        contender("falls", 0.4, 0.2, ladder=[(1e-4, 1.8, 1.0), (1e-3, 0.2, 0.2)]),
        contender("none", 0.4, 0.2),
    ).equal
    assert {row.label for row in found.rows} == {"first", "second"}
    why = {one.label: one.why for one in found.left_out}
    assert "at most on its ladder" in why["weak"]
    assert "highest at its lowest rate" in why["falls"]
    assert "no ladder" in why["none"]
    apart = verdict(
        contender("strong", 1.8, 1.2, ladder=high), contender("weak", 0.4, 0.2, ladder=low)
    )
    assert (apart.equal.id_accuracy, apart.equal.rows) == (None, [])
    assert "No two of them reach a common ID accuracy" in apart.sentence


def test_equal__intervals_cover_the_truth_as_often_as_they_say():
    """Two methods on one curve, each read between rates, on fresh images each time."""
    rng = np.random.default_rng(5)
    n, times, missed = 300, 40, 0
    units = np.array([f"{i:04d}" for i in range(n)])

    def curve(x):
        sets = {}
        for name, role, p in (("id", "id", x), ("art", "shift", 0.8 * x)):
            correct = rng.uniform(size=n) < p
            probs = np.where(correct[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
            of_set = score_probs(probs, np.zeros(n, dtype=np.int64))
            sets[name] = ScoredSet(name, role, 0.0, 0.0, lambda s=of_set: (units, s))
        return ScoredRun(f"{x}-{rng.integers(2**60)}", 0, sets)

    for _ in range(times):
        pair = [
            Contender(name, "carot", 1e-2, "", [curve(0.8)],
                      {lr: [curve(x)] for lr, x in zip((1e-3, 1e-2), ends, strict=True)})
            for name, ends in (("a", (0.5, 0.8)), ("b", (0.55, 0.7)))
        ]  # fmt: skip
        equal = verdict(*pair, seeds=[0]).equal
        (difference,) = of(equal.sets, "accuracy").differences
        low, high = difference.interval
        missed += not low <= 0 <= high
    assert missed <= 6  # of 40 at 95 %: more than six come once in 300
