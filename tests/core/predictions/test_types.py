"""Predictions files: what was written is what is read, and nothing else is believed."""

import json
import sys
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calift_core.calibration import SampleScores, score_samples
from calift_core.errors import PredictionsError, SpecError, StorageError
from calift_core.files import sha256_file
from calift_core.predictions.read import (
    iter_chunks,
    read_index,
    read_metadata,
    read_predictions,
    read_scores,
    read_top_k,
)
from calift_core.predictions.shared import shared_samples
from calift_core.predictions.types import FORMAT_VERSION, Predictions, PredictionsMetadata, top_k
from calift_core.predictions.write import write_chunks, write_predictions
from tests.conftest import example_predictions
from tests.core.conftest import python

FIELDS = [field.name for field in fields(SampleScores)]


def metadata(n_classes: int = 3, **changes: object) -> PredictionsMetadata:
    values = {
        "dataset": "pacs/photo", "role": "id", "logit_scale": 100.0,
        "class_names": [f"class {index}" for index in range(n_classes)],
        "templates": ["a photo of a {}."], "model_sha256": "ab" * 32,
    }  # fmt: skip
    return PredictionsMetadata(**{**values, **changes})


def make(n: int = 7, n_classes: int = 3, seed: int = 0, *, clustered: bool = False) -> Predictions:
    rng = np.random.default_rng(seed)
    return Predictions(
        ids=np.array([f"dog/{index}.jpg" for index in range(n)]),
        labels=rng.integers(n_classes, size=n),
        logits=(rng.normal(size=(n, n_classes)) * 20).astype(np.float32),
        metadata=metadata(n_classes),
        clusters=np.array([f"source {index // 2}" for index in range(n)]) if clustered else None,
    )


def same(a: Predictions, b: Predictions) -> bool:
    return (
        a.metadata == b.metadata
        and a.ids.tolist() == b.ids.tolist()
        and a.labels.tolist() == b.labels.tolist()
        and a.logits.dtype == b.logits.dtype == np.float32
        and np.array_equal(a.logits, b.logits)
        and (a.clusters is None) == (b.clusters is None)
        and (a.clusters is None or b.clusters is None or a.clusters.tolist() == b.clusters.tolist())
    )


# Round trip


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 40),
    n_classes=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    clustered=st.booleans(),
    rows=st.integers(1, 50),
)
def test_predictions__read_back_bit_for_bit_whole_and_in_chunks(
    tmp_path_factory, n, n_classes, seed, clustered, rows
):
    path = tmp_path_factory.mktemp("predictions") / "x.parquet"
    written = make(n, n_classes, seed, clustered=clustered)
    digest = write_predictions(path, written)
    assert digest == sha256_file(path)
    assert same(read_predictions(path), written)
    assert read_metadata(path) == written.metadata
    chunks = list(iter_chunks(path, rows))
    assert all(len(chunk) <= rows for chunk in chunks)
    assert np.array_equal(np.concatenate([c.logits for c in chunks]), written.logits)
    assert np.concatenate([c.ids for c in chunks]).tolist() == written.ids.tolist()


def test_predictions__equal_content_makes_equal_files_and_overwrites_whole(tmp_path):
    first = write_predictions(tmp_path / "a.parquet", make())
    write_predictions(tmp_path / "b.parquet", make(40, 5))
    assert write_predictions(tmp_path / "b.parquet", make()) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_predictions__several_row_groups_read_back_in_order(tmp_path):
    written = make(9000, 500, clustered=True)
    write_predictions(tmp_path / "x.parquet", written)
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups > 1
    assert same(read_predictions(tmp_path / "x.parquet"), written)
    found = read_scores(tmp_path / "x.parquet")
    assert np.array_equal(found.nll, score_samples(written.logits, written.labels).nll)
    assert np.array_equal(read_index(tmp_path / "x.parquet")[1], written.labels)


def test_predictions__any_parquet_reader_sees_plain_columns(tmp_path):
    written = make(clustered=True)
    write_predictions(tmp_path / "x.parquet", written)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.schema.names == ["id", "label", "logits", "cluster"]
    assert table.column("label").to_pylist() == written.labels.tolist()
    assert table.column("logits")[0].as_py() == written.logits[0].tolist()
    stored = json.loads(table.schema.metadata[b"calift"])
    assert stored["format_version"] == FORMAT_VERSION
    assert stored["created_by"].startswith("calift ")


def test_metadata__names_the_split_behind_a_role():
    for role in ("id", "calibration", "validation", "shift", "corruption"):
        found = metadata(role=role)
        assert found.split == (role if role in ("calibration", "validation") else "test")
        assert found.in_distribution == (role not in ("shift", "corruption"))


# Scores and index without the logits in memory


@settings(deadline=None, max_examples=20)
@given(
    n=st.integers(1, 40),
    n_classes=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.05, 20),
    clustered=st.booleans(),
)
def test_read_scores__are_those_of_the_logits_and_the_index_is_theirs(
    tmp_path_factory, n, n_classes, seed, temperature, clustered
):
    path = tmp_path_factory.mktemp("scores") / "x.parquet"
    written = make(n, n_classes, seed, clustered=clustered)
    write_predictions(path, written)
    found = read_scores(path, temperature)
    expected = score_samples(written.logits, written.labels, temperature)
    assert all(np.array_equal(getattr(found, f), getattr(expected, f)) for f in FIELDS)
    ids, labels, clusters = read_index(path)
    assert ids.tolist() == written.ids.tolist()
    assert labels.tolist() == written.labels.tolist()
    assert (clusters is None) == (written.clusters is None)
    assert clusters is None or clusters.tolist() == written.clusters.tolist()


def test_read_scores__from_kept_logits_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("calift_core.predictions.read._WORTH_KEEPING", 1)
    monkeypatch.setattr("calift_core.predictions.read.CELLS_AT_ONCE", 500)
    path, place = tmp_path / "x.parquet", tmp_path / "kept" / "x.npy"
    write_predictions(path, example_predictions(0))
    known, fresh = read_scores(path), read_scores(path, 1.5)

    def again():
        found = read_scores(path, 1.5, known=known, decoded=place)
        return [getattr(found, field.name) for field in fields(found)]

    expected = [getattr(fresh, field.name) for field in fields(fresh)]
    np.testing.assert_equal(again(), expected)
    assert place.exists()
    np.testing.assert_equal(again(), expected)
    place.write_bytes(place.read_bytes()[:-100])  # cut short
    np.testing.assert_equal(again(), expected)
    np.testing.assert_equal(again(), expected)
    place.unlink()
    place.parent.rmdir()
    place.parent.write_text("in the way")
    np.testing.assert_equal(again(), expected)
    with pytest.raises(PredictionsError, match="samples, got"):
        read_scores(path, 1.5, known=known.part(slice(0, 299)), decoded=place)


def test_read_scores__bad_files_and_temperatures_are_named(tmp_path):
    path = tmp_path / "x.parquet"
    write_predictions(path, make())
    with pytest.raises(SpecError, match="temperature must be positive"):
        read_scores(path, 0.0)
    table, described = table_of(make(2)), asdict(metadata())
    store(path, table.slice(0, 0), described)
    for read in (read_scores, read_index):
        with pytest.raises(PredictionsError, match="at least one sample, got none"):
            read(path)
    store(path, table.set_column(0, "id", [["a", "a"]]), described)
    with pytest.raises(PredictionsError, match="ids must be unique"):
        read_index(path)
    store(path, table.set_column(0, "id", [["a", "b" * 2000]]), described)
    with pytest.raises(PredictionsError, match="at most 1024 characters a row, got 2000"):
        read_index(path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's peak of memory")
def test_read_scores__fifty_thousand_by_a_thousand_stay_far_below_a_gigabyte(tmp_path):
    n, n_classes, at_once = 50_000, 1000, 5000
    described = metadata(n_classes, role="shift")
    # Few distinct logits compress to little, so that writing them takes no time here.
    rng = np.random.default_rng(0)
    block = rng.normal(size=(100, n_classes)).astype(np.float32).repeat(at_once // 100, axis=0)

    def chunks():
        for start in range(0, n, at_once):
            ids = np.array([f"val/{i}" for i in range(start, start + at_once)])
            yield Predictions(ids, rng.integers(n_classes, size=at_once), block, described)

    path = tmp_path / "x.parquet"
    write_chunks(path, chunks())
    script = (
        "import re, sys\n"
        "from calift_core.predictions.read import read_index, read_scores\n"
        "scores, index = read_scores(sys.argv[1]), read_index(sys.argv[1])\n"
        "assert len(scores) == len(index[0]) == 50_000\n"
        # Not getrusage: its peak is that of the parent before the exec, if that was higher.
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    assert int(python("-c", script, path)[0]) * 1024 < 512 << 20


# The largest logits alone


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 30),
    n_classes=st.integers(2, 12),
    k=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([0.0, 1.0]),
)
def test_top_k__scores_at_temperature_one_are_those_of_all_logits(
    tmp_path_factory, n, n_classes, k, seed, levels
):
    k = min(k, n_classes)
    path = tmp_path_factory.mktemp("top") / "x.parquet"
    written = make(n, n_classes, seed)
    if levels:  # whole numbers tie
        written = replace(written, logits=np.round(written.logits / 10))
    write_predictions(path, top_k(written, k))
    found, expected = read_scores(path), score_samples(written.logits, written.labels)
    for name in ("labels", "predicted", "correct", "rank"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    for name in ("confidences", "nll", "brier"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6, err_msg=name
        )
    back = read_top_k(path)
    ordered = -np.sort(-written.logits, axis=1)[:, :k]
    assert np.array_equal(back.logits, ordered)
    assert np.array_equal(np.take_along_axis(written.logits, back.classes, axis=1), ordered)
    assert (back.metadata.storage, back.metadata.k) == ("top_k", k)
    assert read_index(path)[0].tolist() == written.ids.tolist()


def test_top_k__what_needs_all_logits_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "x.parquet"
    write_predictions(path, make(20, 9), keep=4)
    with pytest.raises(SpecError, match="temperature must be 1 .* 4 largest of 9 logits.*got 2"):
        read_scores(path, 2.0)
    for read in (read_predictions, lambda p: list(iter_chunks(p, 3))):
        with pytest.raises(PredictionsError, match="the 4 largest of 9 of each.*read_scores"):
            read(path)
    write_predictions(path, make(20, 9), keep="full")
    with pytest.raises(PredictionsError, match="read_predictions reads such a file"):
        read_top_k(path)


def test_write_predictions__keeps_all_logits_unless_asked_or_too_many(tmp_path, monkeypatch):
    from calift_core.predictions import write

    path = tmp_path / "x.parquet"
    assert write.FULL_CELLS >= 50_000 * 1000
    written = make(10, 40)
    write_predictions(path, written)
    assert read_metadata(path).storage == "full"
    write_predictions(path, written, keep=40)  # all there are
    assert read_metadata(path).storage == "full"
    monkeypatch.setattr(write, "FULL_CELLS", 400)
    write_predictions(path, written, copies=2)  # a plan's sets count together
    assert read_metadata(path).k == write.AUTO_K
    monkeypatch.setattr(write, "FULL_CELLS", 399)
    write_predictions(path, written)
    assert read_metadata(path).k == write.AUTO_K
    write_predictions(path, written, keep="full")
    assert same(read_predictions(path), written)
    with pytest.raises(PredictionsError, match="keep must be ≥ 1, got 0"):
        write_predictions(path, written, keep=0)


def test_write_chunks__are_the_file_that_the_whole_makes(tmp_path):
    written = make(100, 5, clustered=True)
    write_predictions(tmp_path / "x.parquet", written)
    write_chunks(tmp_path / "y.parquet", iter_chunks(tmp_path / "x.parquet", 30))
    assert same(read_predictions(tmp_path / "y.parquet"), written)
    with pytest.raises(PredictionsError, match="ids must be unique, got .* 2 times"):
        write_chunks(tmp_path / "z.parquet", [written, written])
    with pytest.raises(PredictionsError, match="all chunks have clusters or none has"):
        write_chunks(tmp_path / "z.parquet", [written, make(3, 5)])
    with pytest.raises(PredictionsError, match="chunks must agree in their metadata"):
        write_chunks(tmp_path / "z.parquet", [make(3, 5), make(3, 4)])
    with pytest.raises(PredictionsError, match="at least one sample"):
        write_chunks(tmp_path / "z.parquet", [])
    assert not (tmp_path / "z.parquet").exists()


def test_read_top_k__numbers_that_contradict_each_other_are_named():
    good = top_k(make(6, 5), 2)
    for changes, message in (
        ({"logits": good.logits[:, ::-1]}, "must not rise"),
        ({"logits": good.logits[:, :1]}, r"logits must have shape \(6, 2\), got \(6, 1\)"),
        ({"classes": good.classes + 5}, r"classes must lie in \[0, 4\]"),
        ({"log_sum_exps": good.log_sum_exps - 100}, "log_sum_exp must be at least each logit"),
        ({"log_sum_exps": good.log_sum_exps * np.nan}, "log_sum_exps must be finite"),
        ({"sum_squares": good.sum_squares + 2}, r"sum_squares must lie in \[0, 1\]"),
        ({"label_ranks": good.label_ranks + 5}, r"label_rank must lie in \[0, 4\]"),
    ):
        with pytest.raises(PredictionsError, match=message):
            replace(good, **changes)
    with pytest.raises(PredictionsError, match=r"k must lie in \[1, 5\]"):
        top_k(make(6, 5), 6)
    with pytest.raises(PredictionsError, match="Predictions hold all logits"):
        replace(make(), metadata=metadata(storage="top_k", k=2))


# Damage


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_read_predictions__a_flipped_bit_is_found_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "x.parquet"
    written = make(50, 4)
    write_predictions(path, written)
    raw = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    # The footer has no checksum: text in it may change, the samples may not.
    with suppress(PredictionsError):
        found = read_predictions(path)
        assert np.array_equal(found.logits, written.logits)
        assert found.labels.tolist() == written.labels.tolist()
        assert found.ids.tolist() == written.ids.tolist()


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_read_predictions__a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "x.parquet"
    write_predictions(path, make(200))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    for read in (read_predictions, read_metadata, lambda p: list(iter_chunks(p, 10))):
        with pytest.raises(PredictionsError, match=r"x\.parquet must be a readable Parquet file"):
            read(path)


def test_read_predictions__foreign_files_are_named(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_text("id,label\n1,2\n" * 50)
    with pytest.raises(PredictionsError, match="readable Parquet file"):
        read_predictions(path)
    pq.write_table(pa.table({"speed": [1.0]}), path)
    with pytest.raises(PredictionsError, match=r"without it \(columns speed\)"):
        read_predictions(path)
    for absent in (tmp_path / "absent.parquet", tmp_path):
        with pytest.raises(StorageError, match="cannot read"):
            read_predictions(absent)


def store(path: Path, table: pa.Table, described: dict[str, object]) -> None:
    """Write a table as if another program had made a predictions file of it."""
    pq.write_table(table.replace_schema_metadata({b"calift": json.dumps(described)}), path)


def table_of(predictions: Predictions) -> pa.Table:
    n_classes = predictions.logits.shape[1]
    logits = pa.FixedSizeListArray.from_arrays(pa.array(predictions.logits.reshape(-1)), n_classes)
    return pa.table(
        {
            "id": predictions.ids.tolist(),
            "label": pa.array(predictions.labels, pa.int32()),
            "logits": logits,
        }
    )


def test_read_predictions__another_writer_is_welcome(tmp_path):
    written = make()
    store(tmp_path / "x.parquet", table_of(written), {**asdict(written.metadata), "extra": 1})
    assert same(read_predictions(tmp_path / "x.parquet"), written)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "format_version must be 2, got 3"),
        ({"format_version": None}, "format_version must be 2, got None"),
        ({"role": "train"}, "unknown role 'train'"),
        ({"logit_scale": -1}, "logit_scale must be positive and finite, got -1"),
        ({"logit_scale": "100"}, "logit_scale must be a number, got '100'"),
        ({"class_names": []}, "at least one name"),
        ({"class_names": "abc"}, "class_names must be a list of strings"),
        ({"class_names": ["a", "b"]}, "column logits must be .*2.*got"),
        ({"dataset": ""}, "dataset must be a non-empty string"),
        ({"model_sha256": 5}, "model_sha256 must be a string, got 5"),
    ],
)
def test_read_metadata__fields_that_break_the_contract_are_named(tmp_path, changes, message):
    written = make()
    store(tmp_path / "x.parquet", table_of(written), {**asdict(written.metadata), **changes})
    with pytest.raises(PredictionsError, match=message):
        read_metadata(tmp_path / "x.parquet")


def test_read_predictions__columns_that_break_the_contract_are_named(tmp_path):
    written = make(3)
    table, described = table_of(written), asdict(written.metadata)
    path = tmp_path / "x.parquet"

    def labels(*values):
        return table.set_column(1, "label", pa.array(values, pa.int32()))

    broken = {
        "column label must be int32, got no such column": table.drop_columns(["label"]),
        "column label must be int32, got string": table.set_column(1, "label", [["a", "b", "c"]]),
        "column label must have a value in every row": labels(0, None, 1),
        r"labels must lie in \[0, 2\], got 0 to 9": labels(0, 9, 1),
        "ids must be unique, got 'a' 2 times": table.set_column(0, "id", [["a", "a", "b"]]),
        "at least one sample, got none": table.slice(0, 0),
    }
    for message, changed in broken.items():
        store(path, changed, described)
        with pytest.raises(PredictionsError, match=message):
            read_predictions(path)


# What may be made at all


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_predictions__arrays_that_do_not_fit_are_named():
    good = make(4)
    for changes, message in (
        ({"ids": good.ids[:3]}, "ids must be 4 strings"),
        ({"ids": np.arange(4)}, "ids must be 4 strings"),
        ({"clusters": np.array(["a"])}, "clusters must be 4 strings"),
        ({"logits": good.logits[:, :2]}, r"one column per class name \(3\), got 2"),
        ({"logits": np.full((4, 3), np.nan, dtype=np.float32)}, "logits must be finite"),
        ({"logits": np.full((4, 3), 1e300)}, "fit float32"),
        ({"labels": np.full(4, 3)}, r"lie in \[0, 2\], got 3 to 3"),
    ):
        with pytest.raises(PredictionsError, match=message):
            replace(good, **changes)


# Pairs


def test_shared_samples__match_by_id_in_the_order_of_the_first_or_say_why_not():
    a = make(6)
    order = np.array([4, 2, 5, 0])
    b = replace(a, ids=a.ids[order], labels=a.labels[order], logits=a.logits[order])
    in_a, in_b = shared_samples(a, b)
    assert in_a.tolist() == [0, 2, 4, 5]
    assert b.ids[in_b].tolist() == a.ids[in_a].tolist()
    a = make(3)
    with pytest.raises(PredictionsError, match="same class names"):
        shared_samples(a, make(3, 4))
    with pytest.raises(PredictionsError, match="no common id"):
        shared_samples(a, replace(a, ids=np.array(["x", "y", "z"])))
    with pytest.raises(PredictionsError, match="must have one label"):
        shared_samples(a, replace(a, labels=(a.labels + 1) % 3))
