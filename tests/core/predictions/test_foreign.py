"""Import and export: what goes out comes back, and a file that breaks the contract is named."""

import csv
import functools
import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from calift_core.analysis.imported import import_into_folder
from calift_core.errors import PredictionsError, SpecError, StorageError
from calift_core.predictions.export import export_predictions
from calift_core.predictions.foreign.load import load_predictions
from calift_core.predictions.read import read_predictions, read_top_k
from calift_core.predictions.types import Predictions, TopKPredictions, predictions_name, top_k
from calift_core.predictions.write import write_predictions
from calift_core.schema.report import Report
from tests.core.predictions.test_types import make, same

Writer = Callable[[Path, dict[str, Any]], Path]


def loaded(path: Path, **options: Any) -> Predictions:
    found = load_predictions(path, **options)
    assert isinstance(found, Predictions)
    return found


def arrays(n: int = 12, n_classes: int = 3, seed: int = 0) -> dict[str, Any]:
    """What people have: labels and probabilities in float64."""
    rng = np.random.default_rng(seed)
    return {
        "labels": rng.integers(n_classes, size=n),
        "probs": rng.dirichlet(np.ones(n_classes), size=n),
    }


def npz(path: Path, content: dict[str, Any]) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), **content)
    return path.with_suffix(".npz")


def columns_of(content: dict[str, Any], *, numbered: bool) -> dict[str, Any]:
    columns = {}
    for name, value in content.items():
        array = np.asarray(value)
        if array.ndim == 1:
            columns[name] = array
        elif numbered:
            columns |= {f"{name}_{index}": array[:, index] for index in range(array.shape[1])}
        else:
            columns[name] = list(array)
    return columns


def parquet(path: Path, content: dict[str, Any], numbered: bool = False) -> Path:
    target = path.with_suffix(".parquet")
    pq.write_table(pa.table(columns_of(content, numbered=numbered)), target)
    return target


parquet_lists, parquet_numbered = parquet, functools.partial(parquet, numbered=True)


def csv_numbered(path: Path, content: dict[str, Any]) -> Path:
    columns = columns_of(content, numbered=True)
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    return path.with_suffix(".csv")


WRITERS: list[Writer] = [npz, parquet_lists, parquet_numbered, csv_numbered]


# There and back


@settings(max_examples=12)
@given(
    n=st.integers(1, 30),
    n_classes=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
    clustered=st.booleans(),
    suffix=st.sampled_from(["parquet", "csv", "npz"]),
    prefix=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8),
)
def test_export__then_import_gives_back_the_same(
    tmp_path_factory, n, n_classes, seed, clustered, suffix, prefix
):
    folder = tmp_path_factory.mktemp("there")
    written = make(n, n_classes, seed, clustered=clustered)
    written = replace(written, ids=np.array([f"{prefix}{i}" for i in range(n)]))
    write_predictions(folder / "x.parquet", written)
    export_predictions(folder / "x.parquet", folder / f"out.{suffix}")
    assert same(loaded(folder / f"out.{suffix}"), written)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "npz"])
@pytest.mark.parametrize("role", ["shift", "calibration"])
def test_export__keeps_role_classes_and_extreme_logits(tmp_path, suffix, role):
    written = make(4)
    logits = np.array(
        [[-3.4e38, 3.4e38, 0], [1e-45, -0.0, 1.1754944e-38], [16777216, 0.1, -87.33655], [1, 2, 3]],
        np.float32,
    )
    names = ("t-shirt/top", 'a "quoted", name', "crème brûlée")
    metadata = replace(written.metadata, role=role, class_names=names, temperature=1.5)
    written = replace(written, logits=logits, metadata=metadata)
    write_predictions(tmp_path / "x.parquet", written)
    export_predictions(tmp_path / "x.parquet", tmp_path / f"y.{suffix}")
    assert same(loaded(tmp_path / f"y.{suffix}"), written)


def test_export__as_csv_holds_no_formula(tmp_path):
    """A spreadsheet runs a cell that begins like one, and ids are whatever files were called."""
    written = make(7, 2, clustered=True)
    texts = ["=1+1", "+1", "-x", "@a", "\tb", "\rc", "'=d"]
    metadata = replace(written.metadata, class_names=('a,=1+1", "b', "@c"))
    written = replace(written, ids=np.array(texts), clusters=np.array(texts), metadata=metadata)
    write_predictions(tmp_path / "x.parquet", written)
    export_predictions(tmp_path / "x.parquet", tmp_path / "y.csv")
    with (tmp_path / "y.csv").open(newline="") as file:
        first, _, *rows = csv.reader(file)
    assert not [cell for cell in first if cell.startswith(tuple("=+-@\t\r"))]
    for row in rows:
        for cell in (row[0], row[2]):
            assert cell.startswith("'")
    assert same(loaded(tmp_path / "y.csv"), written)


def test_export__largest_logits_go_to_parquet_alone(tmp_path):
    kept = top_k(make(20, 8), 3)
    write_predictions(tmp_path / "x.parquet", kept)
    export_predictions(tmp_path / "x.parquet", tmp_path / "y.parquet")
    found = load_predictions(tmp_path / "y.parquet")
    assert isinstance(found, TopKPredictions)
    assert np.array_equal(found.logits, kept.logits)
    with pytest.raises(SpecError, match="3 largest of 8 logits is exported as Parquet"):
        export_predictions(tmp_path / "x.parquet", tmp_path / "y.csv")
    with pytest.raises(SpecError, match="must end in .*got 'y.xlsx'"):
        export_predictions(tmp_path / "x.parquet", tmp_path / "y.xlsx")


# What people have


@settings(max_examples=15)
@given(
    n=st.integers(1, 40),
    n_classes=st.integers(2, 6),
    seed=st.integers(0, 2**32 - 1),
    writer=st.sampled_from(WRITERS),
)
def test_import__softmax_of_the_logits_is_what_was_given(
    tmp_path_factory, n, n_classes, seed, writer
):
    content = arrays(n, n_classes, seed)
    content["probs"][0] = np.eye(n_classes)[0]  # exact zeros and a one
    found = loaded(writer(tmp_path_factory.mktemp("have") / "digits", content))
    assert found.labels.tolist() == content["labels"].tolist()
    np.testing.assert_allclose(found.probs(), content["probs"], rtol=2e-5, atol=1e-37)
    assert found.ids.tolist() == [str(i) for i in range(n)]
    assert found.metadata.class_names == tuple(f"class {c}" for c in range(n_classes))
    assert (found.metadata.dataset, found.metadata.role) == ("digits", "id")
    assert (found.metadata.logit_scale, found.metadata.temperature) == (1.0, 1.0)
    assert "probabilities imported" in found.metadata.provenance


@pytest.mark.parametrize("writer", WRITERS)
def test_import__logits_ids_and_clusters_are_taken_as_they_are(tmp_path, writer):
    content = {
        "labels": np.array([0, 1, 1]),
        "logits": np.array([[1.5, -2.0], [0.25, 100.0], [0.0, 0.0]], np.float32),
        "ids": np.array(["b", "a", 'ü,"x']),
        "clusters": np.array(["s", "s", "t"]),
    }
    found = loaded(writer(tmp_path / "x", content), dataset="photos", role="shift")
    assert np.array_equal(found.logits, content["logits"])
    assert found.ids.tolist() == content["ids"].tolist()
    assert found.clusters.tolist() == ["s", "s", "t"]
    assert (found.metadata.dataset, found.metadata.role) == ("photos", "shift")
    assert "logits imported" in found.metadata.provenance


def test_import__class_names_come_from_the_file_or_the_caller_and_ids_may_be_integers(tmp_path):
    path = npz(tmp_path / "x", arrays() | {"class_names": np.array(["cat", "dog", "fox"])})
    assert loaded(path).metadata.class_names == ("cat", "dog", "fox")
    assert loaded(path, class_names=["a", "b", "c"]).metadata.class_names == ("a", "b", "c")
    with pytest.raises(PredictionsError, match=r"one column per class name \(2\), got 3"):
        load_predictions(path, class_names=["a", "b"])
    content = arrays() | {"ids": np.arange(12) + 100}
    content["probs"] = np.asfortranarray(content["probs"])
    found = loaded(npz(tmp_path / "x", content))
    assert found.ids[0] == "100"
    np.testing.assert_allclose(found.probs(), content["probs"], rtol=2e-5)


# What is refused


def refused(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(PredictionsError, match=message):
        load_predictions(path, **options)


def changed(**changes: Any) -> dict[str, Any]:
    content = arrays() | changes
    return {name: value for name, value in content.items() if value is not None}


def spoiled(value: float) -> npt.NDArray[np.float64]:
    probs = np.array(arrays()["probs"])
    probs[3, 1] = value
    return probs


#: Each with one format, so that each format has two or three.
BROKEN = [
    ({"probs": spoiled(float("nan"))}, "probs must be finite, got NaN"),
    ({"probs": spoiled(0.9)}, "each row of probs must sum to 1"),
    ({"probs": spoiled(-0.2)}, "probs must not be negative"),
    ({"labels": np.arange(12)}, r"labels must lie in \[0, 2\], got 0 to 11"),
    ({"labels": None}, "labels"),
    ({"labels": np.full(12, -1)}, r"labels must lie in \[0, 2\], got -1"),
    ({"probs": None}, "must hold probs or logits, got labels"),
    ({"logits": arrays()["probs"]}, "either probs or logits, got both"),
    ({"ids": np.array(["a"] * 12)}, "ids must be unique, got 'a' 12 times"),
    ({"probs": None, "logits": spoiled(float("inf"))}, "logits must be finite"),
]


@pytest.mark.parametrize(
    ("writer", "broken"), [(WRITERS[at % len(WRITERS)], one) for at, one in enumerate(BROKEN)]
)
def test_import__content_that_breaks_the_contract_is_named_in_every_format(
    tmp_path, writer, broken
):
    changes, message = broken
    refused(writer(tmp_path / "x", changed(**changes)), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.arange(12.0)}, "labels must be integers of shape"),
        ({"labels": np.zeros(5, int)}, r"as many as the samples \(12\), got 5"),
        ({"labels": np.zeros((12, 1), int)}, r"got int64 of shape \(12, 1\)"),
        ({"probs": np.full(12, 0.5)}, r"labels must lie in \[0, 1\]"),  # a binary one
        ({"probs": np.full(12, 1.5)}, r"one column must lie in \[0, 1\]"),
        ({"probs": np.zeros((12, 3, 1))}, r"shape \(N, C\), got \(12, 3, 1\)"),
        ({"probs": np.ones((12, 1), int)}, r"floats of shape \(N, C\), got int64"),
        ({"probs": np.zeros((0, 3))}, "must not be empty"),
        ({"ids": np.array(["a", "b"])}, "ids must be 12 strings or integers"),
        ({"ids": np.array(list("abcdefghijkl"), object)}, "unpickled"),
        ({"class_names": np.array([1, 2, 3])}, "class_names must be strings"),
        ({"class_names": np.array(["a", "b\x1b[31m", "c"])}, "printable"),
        ({"ids": np.array(["x" * 2000] + list("bcdefghijkl"))}, "at most 1024 characters"),
    ],
)
def test_import__npz_arrays_of_the_wrong_kind_are_named(tmp_path, changes, message):
    refused(npz(tmp_path / "x", changed(**changes)), message)


def test_import__a_member_whose_name_is_no_text_is_named(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **{"labels": np.zeros(3, int), "probs": np.full((3, 2), 0.5)})
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x03\x04")
    data[at + 7] |= 0x08  # its name is UTF-8, it says
    data[at + 30] = 0xFF
    path.write_bytes(data)
    with pytest.raises(PredictionsError, match=r"labels must be a NumPy array, got: 'utf-8' codec"):
        load_predictions(path)


def test_import__a_pickle_in_an_npz_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    path = tmp_path / "x.npz"
    labels = np.empty(1, object)
    labels[0] = Evil()
    np.savez(path, labels=labels, probs=np.ones((1, 1)))
    refused(path, "labels must be numbers or strings, got object")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR", r"begins with b'\\x89PNG"),
        (b"\x93NUMPY\x01\x00", "a single array"),
        (b"PK\x03\x04" + b"\x00" * 60, "readable NPZ file"),
        (b"PAR1" + b"\x00" * 60, "readable Parquet file"),
        (b"hello world", "must hold probs or logits, got hello world"),
        (b"labels,probs_0,probs_1\n", "at least one sample"),
        (b"labels,probs_0,probs_1\n0,0.5\n", "must have 3 columns, row 1 has 2"),
        (b"labels,probs_0,probs_1\n0,0.5,0.5,1\n", "must have 3 columns, row 1 has 4"),
        (b"labels,probs_0,probs_1\n0,0.5,half\n", "half"),
        (b"labels,probs_0,probs_1\n0,0.5,\n", "a number in every row, row 1 has ''"),
        (b"labels,probs_0,probs_1\n0.5,0.5,0.5\n", "the names of the classes, got '0.5'"),
        (b"labels,probs_0,probs_2\n0,0.5,0.5\n", "probs_0 to probs_2, got no probs_1"),
        (b"labels,labels,probs_0\n0,0,1\n", "each column once, got 'labels' twice"),
        (b"# calift [1]\nlabels,probs_0\n0,1\n", "must be an object, got list"),
        (b"# calift {\nlabels,probs_0\n0,1\n", "must be JSON"),
        (b'# calift {"role": "train"}\nlabels,probs_0\n0,1.0\n', "unknown role 'train'"),
        (b"labels,probs_0\n0,1\n\xff\xfe,1\n", "another kind of file"),
        (b"labels,probs_0\n" + b"0,1\n" * 200 + b"\xff,1\n", "must be UTF-8|must be a CSV table"),
    ],
)  # fmt: skip
def test_import__files_of_another_kind_are_named(tmp_path, content, message):
    path = tmp_path / "x.npz"  # the content counts, not the name
    path.write_bytes(content)
    refused(path, message)


def test_import__a_missing_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot read"):
        load_predictions(tmp_path / "absent.npz")


@pytest.mark.parametrize(("writer", "keep"), [(npz, 0.6), (parquet_lists, 0.98)])
def test_import__truncated_files_are_named(tmp_path, writer, keep):
    path = writer(tmp_path / "x", arrays(300))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    refused(path, "must be a readable")


@settings(max_examples=40)
@given(data=st.data(), writer=st.sampled_from([npz, parquet_lists, csv_numbered]))
def test_import__a_damaged_file_is_refused_or_read_as_something_valid(
    tmp_path_factory, data, writer
):
    path = writer(tmp_path_factory.mktemp("damaged") / "x", arrays(6))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        found = loaded(path)
    except PredictionsError:
        return
    assert np.isfinite(found.probs()).all()
    assert len(found) == len(set(found.ids.tolist()))


# Sizes are declared before they are believed


def npy_header(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def test_import__zeros_that_unpack_to_gigabytes_are_refused_before_unpacking(tmp_path):
    path = tmp_path / "bomb.npz"
    rows = 1 << 28
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("labels.npy", npy_header((rows,), "|i1") + b"")
    # The directory alone is rewritten: what it declares is all that is looked at.
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02")
    struct.pack_into("<I", raw, at + 24, 0x7FFFFFFF)
    path.write_bytes(raw)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("probs.npy", npy_header((1, 1)) + b"\0" * 8)
    refused(path, "must unpack to at most 1,073,741,824 bytes, it declares 2,147,4")


def test_import__a_member_that_is_longer_than_it_declares_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    content = npy_header((4, 2)) + np.full((4, 2), 0.5).tobytes()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", npy_header((4,), "<i8") + bytes(32))
        archive.writestr("probs.npy", content + bytes(1 << 20))
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02")  # probs.npy in the directory
    struct.pack_into("<I", raw, at + 24, len(content))
    path.write_bytes(raw)
    refused(path, "must be a readable NPZ file")


@pytest.mark.parametrize("shape", [(10**12, 3), (-4, -2), (4, 1)])
def test_import__a_header_that_promises_other_sizes_is_refused(tmp_path, shape):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labels.npy", npy_header((4,), "<i8") + bytes(32))
        archive.writestr("probs.npy", npy_header(shape) + bytes(64))
    refused(path, "must hold the .* bytes of its shape")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_import__a_member_named_twice_is_refused(tmp_path):
    path = npz(tmp_path / "x", arrays())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.npy", npy_header((12,), "<i8") + bytes(96))
    refused(path, "each array once, got 'labels' twice")


def test_import__repeated_values_in_a_parquet_file_count_as_what_they_become(tmp_path):
    path = tmp_path / "x.parquet"
    rows = 200_000
    half = pa.array(np.full(rows, 0.5)).dictionary_encode()
    pq.write_table(
        pa.table({"labels": np.zeros(rows, np.int8), "probs_0": half, "probs_1": half}), path
    )
    assert path.stat().st_size < 20_000
    refused(path, "must unpack to at most 1,000,000 bytes", max_bytes=1_000_000)


def test_import__parquet_columns_of_the_wrong_kind_are_named(tmp_path):
    path = tmp_path / "x.parquet"
    good = {"labels": [0, 1], "probs": [[0.5, 0.5], [0.25, 0.75]]}
    for changes, message in (
        ({"probs": [[0.5, 0.5], [1.0]]}, "same length ≥ 1, got 1, 2"),
        ({"probs": [[0.5, None], [0.5, 0.5]]}, "got nulls"),
        ({"probs": [None, [0.5, 0.5]]}, "got nulls"),
        ({"probs": [[1, 0], [0, 1]]}, "lists of floats, got list"),
        ({"probs": [1, 0]}, "lists of floats, got int64"),
        ({"labels": [0.0, 1.0]}, "must hold strings or integers, got double"),
        ({"labels": [0, None]}, "got nulls"),
        ({"ids": [b"a", b"b"]}, "strings or integers, got binary"),
    ):
        pq.write_table(pa.table(good | changes), path)
        refused(path, message)


# Folders like those of finished runs


def test_import_into_folder__has_the_report_of_a_finished_run_and_grows(tmp_path):
    folder = tmp_path / "theirs"
    written = make(400, 4)
    report = import_into_folder(written, folder, name="their model")
    assert Report.model_validate_json((folder / "report.json").read_bytes()) == report
    assert (report.name, report.spec["method"]["kind"]) == ("their model", "imported")
    only = report.evaluations[0]
    assert only.accuracy == (written.logits.argmax(1) == written.labels).mean()
    assert report.summary.id_ece == only.ece.value
    file = folder / predictions_name(written.metadata.dataset)
    assert same(read_predictions(file), written)
    shifted = replace(
        make(300, 4, 1), metadata=replace(written.metadata, dataset="sketch", role="shift")
    )
    grown = import_into_folder(shifted, folder)
    assert [e.dataset for e in grown.evaluations] == [written.metadata.dataset, "sketch"]
    assert grown.summary.ood_accuracy == grown.evaluations[1].accuracy
    with pytest.raises(SpecError, match="has predictions of 'sketch' already"):
        import_into_folder(shifted, folder)
    part = replace(
        make(50, 4, 2), metadata=replace(written.metadata, dataset="val", role="validation")
    )
    assert len(import_into_folder(part, folder).evaluations) == 2
    with pytest.raises(SpecError, match="added to an imported run"):
        import_into_folder(part, tmp_path / "other")


def test_import_into_folder__the_largest_logits_give_the_same_numbers(tmp_path):
    written = make(400, 12)
    # Confidences that float32 can tell apart: among ties the two ways of summing differ in order.
    written = replace(written, logits=written.logits / 20)
    whole = import_into_folder(written, tmp_path / "whole").evaluations[0].model_dump()
    part = import_into_folder(top_k(written, 2), tmp_path / "part").evaluations[0].model_dump()
    for name in ("accuracy", "nll", "brier", "mean_confidence", "top5_accuracy", "aurc"):
        assert part[name] == pytest.approx(whole[name], rel=1e-5), name
    assert part["ece"]["value"] == pytest.approx(whole["ece"]["value"], rel=1e-4)
    assert (whole["classwise_ece"] is None, part["classwise_ece"]) == (False, None)
    kept = import_into_folder(written, tmp_path / "kept", keep=2)
    assert kept.evaluations[0].classwise_ece == whole["classwise_ece"]
    assert read_top_k(tmp_path / "kept" / "predictions/pacs_photo.parquet").metadata.k == 2


def test_import_into_folder__another_run_is_left_alone(tmp_path):
    report = import_into_folder(make(50), tmp_path).model_dump(mode="json")
    report["spec"]["method"] = {"kind": "carot"}
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(SpecError, match="must be empty or an imported run"):
        import_into_folder(make(50), tmp_path)


_NAMES = st.text(min_size=1, max_size=12) | st.text("ab/_-", min_size=1, max_size=5)


@given(a=_NAMES, b=_NAMES)
@example("photo/test", "photo_test")
@example("photo_test", predictions_name("photo_test").split("/")[1].removesuffix(".parquet"))
@example("é", predictions_name("é").split("/")[1].removesuffix(".parquet"))
def test_predictions_name__is_plain_and_different_for_different_sets(a, b):
    from backend.storage.artifacts import check_name

    assert check_name(predictions_name(a)) == predictions_name(a)
    assert (predictions_name(a) == predictions_name(b)) == (a == b)
