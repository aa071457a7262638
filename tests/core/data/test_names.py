"""Names in one block: they read as the tuple that they were made of."""

import json
import pickle
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from calift_core.data.loader import Steps, _Keys
from calift_core.data.names import Names, taken
from calift_core.data.ranks import ALONE, Ranks
from tests.core.conftest import environment, python

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=12)


@given(texts, st.data())
def test_names__are_a_sequence_like_the_one_they_were_made_of(names, data):
    packed = Names.of(iter(names))
    assert packed == names
    assert packed == tuple(names)
    assert list(packed) == names
    assert [packed[i] for i in range(-len(names), len(names))] == names * 2
    assert packed[1:4] == names[1:4]
    assert packed != [*names, "more"]
    positions = np.array(data.draw(st.permutations(range(len(names)))), dtype=np.int64)
    assert packed.take(positions) == taken(names, positions)
    assert packed.below("train/") == [f"train/{name}" for name in names]
    assert pickle.loads(pickle.dumps(packed)) == names


def test_names__that_are_no_utf_8_come_back_as_the_file_system_gave_them():
    strange = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert Names.of([strange])[0] == strange


def test_steps__of_a_large_set_hold_one_epoch_in_four_bytes_an_image():
    steps = Steps(n=100_000, seed=1, batch_size=512, start=190, stop=400)  # over an epoch's end
    seen = list(steps)
    assert [epoch for epoch, _ in seen] == [0] * 5 + [1] * 195 + [2] * 10
    whole = np.concatenate([rows for epoch, rows in seen if epoch == 1])
    assert len(set(whole.tolist())) == len(whole) == 195 * 512
    assert {rows.dtype for _, rows in seen} == {np.dtype(np.int32)}
    assert seen[7][1].base is seen[8][1].base  # one array, not a copy of it for each step
    shares = [list(_Keys(steps, Ranks(rank, 3))) for rank in range(3)]
    together = [a + b + c for a, b, c in zip(*shares, strict=True)]
    assert together == list(_Keys(steps, ALONE))


def test_a_large_set__takes_little_memory_and_the_same_through_an_epoch(tmp_path):
    """A small one of `benchmarks/imagenet_size.py`, whose figures are in docs/gpus.md."""
    script = Path(__file__).parents[3] / "benchmarks" / "imagenet_size.py"
    sizes = ["--images", "3000", "--classes", "10", "--epochs", "40", "--batch-size", "100"]
    env = environment(tmp_path, PYTHONPATH=str(script.parents[1]))
    result = json.loads(python(script, *sizes, "--json", env=env)[0].splitlines()[-1])
    assert result["images"] > 2900
    low, high = result["resident_while_sampling_mib"]
    assert high - low < 2  # a list of the keys of 120,000 draws would take 12
