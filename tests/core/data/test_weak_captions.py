"""Captions that say less than the class."""

from collections import Counter

import numpy as np
import pytest

from calift_core.data.images import ImageSet
from calift_core.data.loader import TrainView
from calift_core.data.preprocess import Preprocess
from calift_core.data.sources import ArraySource
from calift_core.data.weak_captions import WeakCaptions
from calift_core.errors import SpecError

CLASSES = ("a", "A", "1")
COARSE = {"a": "letter a", "A": "letter a"}


def make(*, vague: float = 0.0, coarse: float = 0.0, wrong: float = 0.0) -> WeakCaptions:
    return WeakCaptions.make(
        CLASSES, ("small a", "capital a", "one"), COARSE, ("letter", "character"),
        vague=vague, coarse=coarse, wrong=wrong,
    )  # fmt: skip


def drawn(captions: WeakCaptions, label: int, n: int = 4000) -> Counter[str]:
    rng = np.random.default_rng(0)
    return Counter(captions.names[captions.name_of(label, rng)] for _ in range(n))


def test_weak_captions__each_share_is_of_the_captions_that_it_says():
    found = drawn(make(vague=0.2, coarse=0.5, wrong=0.1), 0)
    n = found.total()
    vague = found["letter"] + found["character"]
    assert vague / n == pytest.approx(0.2, abs=0.02)
    assert found["letter"] / vague == pytest.approx(0.5, abs=0.05)
    others = n - vague  # a wrong class is A or 1; A's coarse name is a's own
    assert found["one"] / others == pytest.approx(0.05, abs=0.02)
    assert found["capital a"] / others == pytest.approx(0.025, abs=0.015)
    assert found["letter a"] / others == pytest.approx(0.475, abs=0.03)


def test_weak_captions__a_class_that_is_not_there_is_refused():
    with pytest.raises(SpecError, match=r"must name classes of the suite.*got \['b'\]"):
        WeakCaptions.make(CLASSES, CLASSES, {"b": "letter"}, ("x",), vague=0, coarse=0, wrong=0)
    with pytest.raises(SpecError, match="coarse_captions needs coarse_names"):
        WeakCaptions.make(CLASSES, CLASSES, {}, ("x",), vague=0, coarse=0.5, wrong=0)


def test_train_view__captions_are_name_times_template():
    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    images = ImageSet(
        "pretrain", ArraySource(pixels, "0"), ("x", "y", "z"), np.arange(3), np.arange(3)
    )
    view = TrainView(images, Preprocess(8), 2, 0, (1.0, 1.0), flip=False, captions=make(coarse=1.0))
    names = [view[(0, i)][2] // 2 for i in range(3)]
    assert names == [3, 3, 2]
