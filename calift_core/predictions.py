"""Stored per-sample predictions: logits once, every metric from them.

One Parquet file per model and data set, readable by any Parquet reader. Columns, in stored order of
the samples: `id` (string, unique), `label` (int32), `logits` (fixed-size list of C float32) and,
where samples share a source, `cluster` (string). The schema metadata holds one JSON object under
the key `calift`, the fields of `PredictionsMetadata`. Pages carry checksums and are verified.

Format 2 has a second storage, `top_k`, for sets whose N · C logits would be too many: `classes` and
`logits` (fixed-size lists of k int32 and k float32) hold the k largest logits, the largest first,
and `label_logit` (float32), `label_rank` (int32), `log_sum_exp` and `sum_squares` (float64) what
the scores of a sample need of all C. It is read by `read_top_k`, and by `read_scores` and
`read_index` like any other. Files of format 1 are read too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, BinaryIO, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from calift_core import __version__
from calift_core.calibration import SampleScores, score_samples, softmax
from calift_core.calibration.bins import (
    Doubles,
    Floats,
    check_labels,
    check_logits,
    check_temperature,
    rank_of_label,
)
from calift_core.errors import PredictionsError, SpecError, UnknownNameError, UnpairedError
from calift_core.files import atomic_path, sha256_file, storage_error

FORMAT_VERSION = 2
#: With `keep="auto"` all logits of a set are stored up to this many (400 MB before compression):
#: ImageNet's 50,000 × 1,000 stay whole. Beyond, the `AUTO_K` largest of each sample.
FULL_CELLS = 100_000_000
AUTO_K = 20
MAX_TEXT = 1024  # characters of an id
_KEY = b"calift"
_CELLS_PER_GROUP = 4_000_000
_CELLS_AT_ONCE = 1_000_000
#: As in `calibration.scores`: keeps the NLL finite where a probability rounds to zero.
_LARGEST_NLL = -math.log(float(np.finfo(np.float32).tiny))

Keep = Literal["auto", "full"] | int
Storage = Literal["full", "top_k"]
Role = Literal["id", "shift", "corruption", "calibration", "validation"]
Strings = npt.NDArray[np.str_]


@dataclass(frozen=True)
class PredictionsMetadata:
    """What a predictions file says about itself.

    Attributes:
        dataset: name of the data set, such as `imagenet-c/jpeg_compression/3`.
        role: `id` (ID test), `shift`, `corruption`, or the ID parts `calibration`, `validation`.
        class_names: C names, in the order of the logits.
        logit_scale: s; the stored logits are s · ⟨I, T⟩, so they already contain it.
        temperature: at which the evaluation reported its numbers; the logits are not divided by it.
        templates: prompts that made the classifier, each with `{}`.
        source_dataset: what a corruption was made from, else None.
        model_sha256: of the weights that predicted, where known.
        dataset_sha256: of the list of samples, where known.
        created_by: program and version that wrote the file.
        provenance: how the logits came about when no run of calift made them, else empty.
        storage: `full` keeps all C logits of a sample, `top_k` the k largest.
        k: how many `top_k` keeps, None for `full`.
        format_version: of the file.
    """

    dataset: str
    role: Role
    class_names: tuple[str, ...]
    logit_scale: float
    temperature: float = 1.0
    templates: tuple[str, ...] = ()
    source_dataset: str | None = None
    model_sha256: str | None = None
    dataset_sha256: str | None = None
    created_by: str = field(default_factory=lambda: f"calift {__version__}")
    provenance: str = ""
    storage: Storage = "full"
    k: int | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Check types and ranges, and turn lists into tuples.

        Raises:
            UnknownNameError: the role is not known.
            PredictionsError: any other field is not valid.
        """
        if self.role not in get_args(Role):
            raise UnknownNameError("role", str(self.role), get_args(Role))
        for name in ("dataset", "created_by"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise PredictionsError(
                    f"{name} must be a non-empty string, got {getattr(self, name)!r}"
                )
        for name in ("source_dataset", "model_sha256", "dataset_sha256"):
            if not isinstance(getattr(self, name), str | None):
                raise PredictionsError(f"{name} must be a string, got {getattr(self, name)!r}")
        for name in ("class_names", "templates"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not all(isinstance(x, str) for x in value):
                raise PredictionsError(f"{name} must be a list of strings, got {value!r:.80}")
            object.__setattr__(self, name, tuple(value))
        if not self.class_names:
            raise PredictionsError("class_names must hold at least one name, got none")
        for name in ("logit_scale", "temperature"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise PredictionsError(f"{name} must be a number, got {value!r}")
            if not (math.isfinite(value) and value > 0):
                raise PredictionsError(f"{name} must be positive and finite, got {value!r}")
            object.__setattr__(self, name, float(value))
        if not isinstance(self.provenance, str):
            raise PredictionsError(f"provenance must be a string, got {self.provenance!r}")
        if self.storage not in get_args(Storage):
            raise UnknownNameError("storage", str(self.storage), get_args(Storage))
        if self.storage == "full" and self.k is not None:
            raise PredictionsError(f"k must be None where all logits are stored, got {self.k!r}")
        if self.storage == "top_k" and (
            not isinstance(self.k, int) or not 1 <= self.k <= len(self.class_names)
        ):
            raise PredictionsError(
                f"k must lie in [1, {len(self.class_names)}], the number of classes, got {self.k!r}"
            )

    @property
    def split(self) -> str:
        """Part of the data set that was predicted: calibration, validation or test."""
        return self.role if self.role in ("calibration", "validation") else "test"

    @property
    def in_distribution(self) -> bool:
        """Whether the samples come from the ID data."""
        return self.role in ("id", "calibration", "validation")


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits of one model on one data set, in stored order; N samples, C classes.

    Attributes:
        ids: (N,) unique names of the samples, the same for every model on this data set.
        labels: (N,) int64 in [0, C).
        logits: (N, C) float32, natural-log scale, logit scale included; wider floats are narrowed.
        metadata: what the file says about itself.
        clusters: (N,) name of each sample's source image, or None when samples are independent.
    """

    ids: Strings
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    metadata: PredictionsMetadata
    clusters: Strings | None = None

    def __post_init__(self) -> None:
        """Check shapes and values, and settle the types of the arrays.

        Raises:
            PredictionsError: the arrays do not fit each other or the class names.
        """
        if self.metadata.storage != "full":
            raise PredictionsError(
                f"Predictions hold all logits, got metadata of storage {self.metadata.storage!r}"
            )
        logits = np.ascontiguousarray(check_logits(self.logits), dtype=np.float32)
        n, n_classes = logits.shape
        if not np.isfinite(logits).all():
            raise PredictionsError("logits must fit float32, got a value beyond its range")
        if n_classes != len(self.metadata.class_names):
            raise PredictionsError(
                f"logits must have one column per class name ({len(self.metadata.class_names)}), "
                f"got {n_classes}"
            )
        object.__setattr__(self, "logits", logits)
        object.__setattr__(self, "labels", check_labels(self.labels, n, n_classes))
        object.__setattr__(self, "ids", _strings("ids", self.ids, n))
        if self.clusters is not None:
            object.__setattr__(self, "clusters", _strings("clusters", self.clusters, n))

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    def probs(self, temperature: float = 1.0) -> Floats:
        """Return softmax(logits / temperature), (N, C) float32.

        Raises:
            SpecError: the temperature is not a positive finite number.
        """
        return softmax(self.logits, temperature)


@dataclass(frozen=True, eq=False)
class TopKPredictions:
    """What a `top_k` file keeps of N samples: k of C logits each, and what their scores need.

    At temperature 1 the scores are those of all C logits; other temperatures, calibrators and
    class-wise measures need the logits that are not here.

    Attributes:
        ids: (N,) unique names of the samples.
        labels: (N,) int64 in [0, C).
        classes: (N, k) int32, by descending logit; of tied ones the lower class first.
        logits: (N, k) float32 logits of those classes.
        label_logits: (N,) float32.
        label_ranks: (N,) int64 number of classes before the label's; of tied ones as above.
        log_sum_exps: (N,) float64 log Σ_c exp(logit), over all C.
        sum_squares: (N,) float64 Σ_c p_c², over all C.
        metadata: what the file says about itself.
        clusters: (N,) name of each sample's source image, or None when samples are independent.
    """

    ids: Strings
    labels: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int32]
    logits: npt.NDArray[np.float32]
    label_logits: npt.NDArray[np.float32]
    label_ranks: npt.NDArray[np.int64]
    log_sum_exps: Doubles
    sum_squares: Doubles
    metadata: PredictionsMetadata
    clusters: Strings | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit each other.

        Raises:
            PredictionsError: they do not.
        """
        k, n_classes = self.metadata.k, len(self.metadata.class_names)
        n = len(self.ids)
        object.__setattr__(self, "labels", check_labels(self.labels, n, n_classes))
        object.__setattr__(self, "ids", _strings("ids", self.ids, n))
        if self.clusters is not None:
            object.__setattr__(self, "clusters", _strings("clusters", self.clusters, n))
        for name, value, shape in (
            ("logits", check_logits(self.logits), (n, k)),
            ("classes", self.classes, (n, k)),
            ("label_logits", self.label_logits, (n,)),
            ("label_ranks", self.label_ranks, (n,)),
            ("log_sum_exps", self.log_sum_exps, (n,)),
            ("sum_squares", self.sum_squares, (n,)),
        ):
            if value.shape != shape:
                raise PredictionsError(f"{name} must have shape {shape}, got {value.shape}")
            if not np.isfinite(value).all():
                raise PredictionsError(f"{name} must be finite, got NaN or infinity")
        if self.classes.min() < 0 or self.classes.max() >= n_classes:
            raise PredictionsError(
                f"classes must lie in [0, {n_classes - 1}], got {self.classes.min()} to "
                f"{self.classes.max()}"
            )
        if (np.diff(self.logits, axis=1) > 0).any():
            raise PredictionsError("the kept logits must not rise, got one above the one before it")
        # Within what float32 leaves of the sum; a file that claims otherwise is made up.
        if (self.log_sum_exps < self.logits[:, 0] - 1e-3).any() or (
            self.log_sum_exps < self.label_logits - 1e-3
        ).any():
            raise PredictionsError("log_sum_exp must be at least each logit, got less")
        if (self.label_ranks < 0).any() or (self.label_ranks >= n_classes).any():
            raise PredictionsError(f"label_rank must lie in [0, {n_classes - 1}]")
        if ((self.classes[:, 0] == self.labels) & (self.label_ranks > 0)).any():
            raise PredictionsError("label_rank must be 0 where the label is the first class")
        if (self.sum_squares < 0).any() or (self.sum_squares > 1 + 1e-3).any():
            raise PredictionsError("sum_squares must lie in [0, 1]")

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    def scores(self) -> SampleScores:
        """Score the samples as all C logits would, to the rounding of float32."""
        predicted = self.classes[:, 0].astype(np.int64)
        own = np.minimum(self.label_logits - self.log_sum_exps, 0.0)
        return SampleScores(
            labels=self.labels,
            predicted=predicted,
            confidences=np.exp(np.minimum(self.logits[:, 0] - self.log_sum_exps, 0.0)),
            correct=predicted == self.labels,
            nll=np.minimum(-own, _LARGEST_NLL),
            brier=self.sum_squares - 2 * np.exp(own) + 1,
            rank=self.label_ranks,
        )


def top_k(predictions: Predictions, k: int) -> TopKPredictions:
    """Keep the k largest logits of each sample, and what its scores need of the others.

    Raises:
        PredictionsError: k is not in [1, C].
    """
    n, n_classes = predictions.logits.shape
    metadata = replace(predictions.metadata, storage="top_k", k=k)
    at = np.arange(n)
    classes = np.empty((n, k), np.int32)
    log_sum_exps, sum_squares = np.empty(n), np.empty(n)
    ranks = np.empty(n, np.int64)
    own_logits = predictions.logits[at, predictions.labels]
    rows = max(1, _CELLS_AT_ONCE // n_classes)
    for start in range(0, n, rows):
        here = slice(start, start + rows)
        z = predictions.logits[here]
        # A stable sort puts the lower class first among ties, as argmax does.
        classes[here] = np.argsort(-z, axis=1, kind="stable")[:, :k]
        ranks[here] = rank_of_label(z, predictions.labels[here])
        top = z.max(axis=1, keepdims=True)
        exps = np.exp((z - top).astype(np.float64))
        total = exps.sum(axis=1)
        log_sum_exps[here] = np.log(total) + top[:, 0]
        sum_squares[here] = np.square(exps / total[:, None]).sum(axis=1)
    return TopKPredictions(
        ids=predictions.ids,
        labels=predictions.labels,
        classes=classes,
        logits=np.take_along_axis(predictions.logits, classes, axis=1),
        label_logits=own_logits,
        label_ranks=ranks,
        log_sum_exps=log_sum_exps,
        sum_squares=sum_squares,
        metadata=metadata,
        clusters=predictions.clusters,
    )


def _strings(name: str, values: Any, n: int) -> Strings:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "UO" or len(array) != n:
        raise PredictionsError(
            f"{name} must be {n} strings, got {array.dtype} of shape {array.shape}"
        )
    if array.dtype.kind == "O" and not all(isinstance(value, str) for value in array):
        raise PredictionsError(f"{name} must be {n} strings, got other objects among them")
    return array.astype(np.str_)


def _check_unique(ids: Strings) -> None:
    distinct, counts = np.unique(ids, return_counts=True)
    if len(distinct) < len(ids):
        raise PredictionsError(
            f"ids must be unique, got {str(distinct[counts.argmax()])!r} {counts.max()} times"
        )


def predictions_name(dataset: str) -> str:
    """Where a data set's predictions lie in a run: `predictions/NAME.parquet`, plain characters.

    Different sets have different files. The last `_` of a name stands for the set's `/`
    (`photo/test` is `photo_test.parquet`); a set that could not be told from its name by that rule,
    such as a shift called `photo_test`, has a hash behind its name.
    """
    plain = _NOT_PLAIN.sub("_", dataset)
    first, joint, last = plain.rpartition("_")
    told = f"{first}/{last}" if joint else plain
    if told != dataset or not plain[0].isalnum() or len(plain) > 200 or _HASHED.search(plain):
        digest = hashlib.sha256(dataset.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        start = "" if plain[0].isalnum() else "d"
        plain = f"{start}{plain[:180]}-{digest}"
    return f"predictions/{plain}.parquet"


_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._+=@-]")
_HASHED = re.compile(r"-[0-9a-f]{12}$")


def write_predictions(
    path: str | os.PathLike[str],
    predictions: Predictions | TopKPredictions,
    *,
    keep: Keep = "auto",
) -> str:
    """Write a predictions file durably: the old file or the new one, never a part.

    Args:
        path: final name, by custom ending in `.parquet`.
        predictions: N samples.
        keep: `full` stores all logits, a number k the k largest of each sample; `auto` is `full` up
            to `FULL_CELLS` logits and `AUTO_K` beyond. What holds k logits already keeps them.

    Returns:
        SHA-256 of the file, 64 hex digits.

    Raises:
        PredictionsError: ids are not unique, or k < 1.
        DiskFullError: no space is left; a former file at `path` is intact.
        StorageError: the file system refuses otherwise.
    """
    _check_unique(predictions.ids)
    if keep == "auto":
        keep = "full" if predictions.logits.size <= FULL_CELLS else AUTO_K
    return write_chunks(path, [predictions], keep=keep)


def write_chunks(
    path: str | os.PathLike[str],
    chunks: Iterable[Predictions | TopKPredictions],
    *,
    keep: Literal["full"] | int = "full",
) -> str:
    """Write a predictions file from pieces that need not be in memory together.

    Args:
        path: final name, by custom ending in `.parquet`.
        chunks: pieces of one set, in order, that agree in their metadata.
        keep: `full` stores all logits, a number k the k largest of each sample.

    Returns:
        SHA-256 of the file, 64 hex digits.

    Raises:
        PredictionsError: there is no chunk, their metadata differ, ids are not unique, or k < 1.
        DiskFullError: no space is left; a former file at `path` is intact.
        StorageError: the file system refuses otherwise.
    """
    if keep != "full" and keep < 1:
        raise PredictionsError(f"keep must be ≥ 1, got {keep}")
    ids: list[Strings] = []
    writer: pq.ParquetWriter | None = None
    described: PredictionsMetadata | None = None
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            for chunk in chunks:
                given = chunk.metadata
                if (
                    isinstance(chunk, Predictions)
                    and keep != "full"
                    and keep < len(given.class_names)
                ):
                    chunk = top_k(chunk, keep)
                if described is not None and given != described:
                    raise PredictionsError(
                        "chunks must agree in their metadata, got two that differ"
                    )
                described = given
                ids.append(chunk.ids)
                table = _table(chunk)
                if writer is None:
                    writer = _writer(file, table.schema)
                elif table.schema != writer.schema:
                    raise PredictionsError(
                        "either all chunks have clusters or none has, got both kinds"
                    )
                writer.write_table(
                    table, row_group_size=max(1, _CELLS_PER_GROUP // chunk.logits.shape[1])
                )
        finally:
            if writer is not None:
                writer.close()
        if not ids:
            raise PredictionsError("predictions must hold at least one sample, got none")
        if len(ids) > 1:
            _check_unique(np.concatenate(ids))
        file.flush()
        return sha256_file(temporary)


def _table(predictions: Predictions | TopKPredictions) -> pa.Table:
    def lists(values: npt.NDArray[Any]) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

    columns: dict[str, pa.Array] = {
        "id": pa.array(predictions.ids.tolist(), pa.string()),
        "label": pa.array(predictions.labels.astype(np.int32)),
        "logits": lists(predictions.logits),
    }
    if isinstance(predictions, TopKPredictions):
        columns |= {
            "classes": lists(predictions.classes),
            "label_logit": pa.array(predictions.label_logits),
            "label_rank": pa.array(predictions.label_ranks.astype(np.int32)),
            "log_sum_exp": pa.array(predictions.log_sum_exps),
            "sum_squares": pa.array(predictions.sum_squares),
        }
    if predictions.clusters is not None:
        columns["cluster"] = pa.array(predictions.clusters.tolist(), pa.string())
    metadata = asdict(replace(predictions.metadata, format_version=FORMAT_VERSION))
    described = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    return pa.table(columns).replace_schema_metadata({_KEY: described.encode()})


def _writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=["cluster"],
        # Grouping the bytes of floats by significance is what lets them compress.
        use_byte_stream_split=["logits.list.element"],
        write_page_checksum=True,
    )


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[pq.ParquetFile, PredictionsMetadata]]:
    """Open a predictions file and name whatever goes wrong while it is read."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - only failures to open are storage errors
    except OSError as error:
        raise storage_error(error, path, "read") from error
    with file:
        try:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            yield parquet, _metadata(parquet)
        except MemoryError:  # pyarrow's own is one of its exceptions too
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise storage_error(error, path, "read") from error
            raise PredictionsError(
                f"{os.fspath(path)} must be a readable Parquet file, got: {error}",
                hint="It is damaged, cut short or of another kind; evaluate or export it again.",
            ) from error


def _metadata(parquet: pq.ParquetFile) -> PredictionsMetadata:
    schema = parquet.schema_arrow
    raw = (schema.metadata or {}).get(_KEY)
    if raw is None:
        raise PredictionsError(
            "a predictions file must carry calift metadata in its schema, got a Parquet file "
            f"without it (columns {', '.join(schema.names[:8])})"
        )
    try:
        stored = json.loads(raw)
    except ValueError as error:
        raise PredictionsError(f"calift metadata must be JSON, got: {error}") from error
    if not isinstance(stored, dict):
        raise PredictionsError(f"calift metadata must be an object, got {type(stored).__name__}")
    version = stored.get("format_version")
    if version not in (1, FORMAT_VERSION):
        raise PredictionsError(
            f"format_version must be 1 or {FORMAT_VERSION}, got {version!r}.",
            hint="A newer calift wrote this file; update to read it.",
        )
    if version == 1:  # knew one storage
        stored |= {"storage": "full", "k": None}
    known = {item.name for item in fields(PredictionsMetadata)}
    try:
        metadata = PredictionsMetadata(**{k: v for k, v in stored.items() if k in known})
    except (TypeError, UnknownNameError) as error:
        raise PredictionsError(f"calift metadata must be complete, got: {error}") from error
    expected = {
        "id": pa.string(),
        "label": pa.int32(),
        "logits": pa.list_(pa.float32(), metadata.k or len(metadata.class_names)),
    }
    if metadata.storage == "top_k":
        expected |= {
            "classes": pa.list_(pa.int32(), metadata.k),
            "label_logit": pa.float32(),
            "label_rank": pa.int32(),
            "log_sum_exp": pa.float64(),
            "sum_squares": pa.float64(),
        }
    if "cluster" in schema.names:
        expected["cluster"] = pa.string()
    for name, kind in expected.items():
        got = schema.field(name).type if name in schema.names else "no such column"
        # Names of list items differ between writers and mean nothing.
        same = got.equals(kind) if isinstance(got, pa.DataType) else False
        if not same:
            raise PredictionsError(f"column {name} must be {kind}, got {got}")
    return metadata


def read_metadata(path: str | os.PathLike[str]) -> PredictionsMetadata:
    """Read what a predictions file says about itself, without its samples.

    Raises:
        PredictionsError: the file is damaged, cut short, foreign or of a newer format.
        StorageError: the file cannot be opened.
    """
    with _opened(path) as (_, metadata):
        return metadata


def iter_chunks(path: str | os.PathLike[str], rows: int) -> Iterator[Predictions]:
    """Read a predictions file in order, at most `rows` samples at a time.

    Raises:
        PredictionsError: the file is damaged, cut short, foreign, of a newer format or keeps only
            the largest logits, or `rows` < 1. Chunks before the damage have been yielded by then.
        StorageError: the file cannot be opened.
    """
    if rows < 1:
        raise PredictionsError(f"rows must be ≥ 1, got {rows}")
    with _opened(path) as (parquet, metadata):
        if metadata.storage == "top_k":
            raise PredictionsError(
                f"{os.fspath(path)} must hold all logits for this, got the {metadata.k} largest of "
                f"{len(metadata.class_names):,} of each sample.",
                hint="read_scores and read_top_k read such a file; for all logits, write it anew "
                'with keep="full".',
            )
        names = ["id", "label", "logits", "cluster"]
        for batch in _batches(parquet, names, rows):
            yield Predictions(
                ids=_as_strings("id", batch.column("id")),
                labels=batch.column("label").to_numpy().astype(np.int64),
                logits=_as_matrix(batch.column("logits")),
                metadata=metadata,
                clusters=_clusters(batch),
            )


def _iter_top_k(path: str | os.PathLike[str], rows: int) -> Iterator[TopKPredictions]:
    with _opened(path) as (parquet, metadata):
        if metadata.storage != "top_k":
            raise PredictionsError(
                f"{os.fspath(path)} must keep the largest logits alone, got all of them.",
                hint="read_predictions reads such a file.",
            )
        for batch in _batches(parquet, parquet.schema_arrow.names, rows):
            yield TopKPredictions(
                ids=_as_strings("id", batch.column("id")),
                labels=batch.column("label").to_numpy().astype(np.int64),
                classes=_as_matrix(batch.column("classes")),
                logits=_as_matrix(batch.column("logits")),
                label_logits=batch.column("label_logit").to_numpy(),
                label_ranks=batch.column("label_rank").to_numpy().astype(np.int64),
                log_sum_exps=batch.column("log_sum_exp").to_numpy(),
                sum_squares=batch.column("sum_squares").to_numpy(),
                metadata=metadata,
                clusters=_clusters(batch),
            )


def _batches(parquet: pq.ParquetFile, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    columns = [name for name in names if name in parquet.schema_arrow.names]
    for batch in parquet.iter_batches(batch_size=rows, columns=columns):
        for name in columns:
            _check_complete(name, batch.column(name))
        yield batch


def _check_complete(name: str, column: pa.Array | pa.ChunkedArray) -> None:
    inner = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    if column.null_count or inner.null_count:
        raise PredictionsError(f"column {name} must have a value in every row, got nulls")


def _as_matrix(column: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    # `flatten` and not `values`: it keeps to the rows of a slice.
    matrix: npt.NDArray[Any] = column.flatten().to_numpy().reshape(len(column), -1)
    return matrix


def _as_strings(name: str, column: pa.Array | pa.ChunkedArray) -> Strings:
    # NumPy gives every string the room of the longest: one long id could take all memory.
    longest = pc.max(pc.utf8_length(column)).as_py() or 0
    if longest > MAX_TEXT:
        raise PredictionsError(
            f"column {name} must hold at most {MAX_TEXT} characters a row, got {longest}"
        )
    return np.array(column.to_pylist(), dtype=np.str_)


def _clusters(batch: pa.RecordBatch) -> Strings | None:
    if "cluster" not in batch.schema.names:
        return None
    return _as_strings("cluster", batch.column("cluster"))


def _empty(path: str | os.PathLike[str]) -> PredictionsError:
    return PredictionsError(f"{os.fspath(path)} must hold at least one sample, got none")


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Read and check a whole predictions file.

    Raises:
        PredictionsError: the file is damaged, cut short, foreign, empty, of a newer format or keeps
            only the largest logits.
        StorageError: the file cannot be opened.
    """
    metadata = read_metadata(path)
    rows = max(1, _CELLS_PER_GROUP // len(metadata.class_names))
    chunks = list(iter_chunks(path, rows))
    if not chunks:
        raise _empty(path)
    predictions = Predictions(
        ids=np.concatenate([chunk.ids for chunk in chunks]),
        labels=np.concatenate([chunk.labels for chunk in chunks]),
        logits=np.concatenate([chunk.logits for chunk in chunks]),
        metadata=metadata,
        clusters=_joined([chunk.clusters for chunk in chunks]),
    )
    _check_unique(predictions.ids)
    return predictions


def _joined(parts: Sequence[Strings | None]) -> Strings | None:
    given = [part for part in parts if part is not None]
    return np.concatenate(given) if given else None


def read_top_k(path: str | os.PathLike[str]) -> TopKPredictions:
    """Read and check a whole file that keeps the k largest logits of each sample.

    Raises:
        PredictionsError: the file is damaged, cut short, foreign, empty, of a newer format or holds
            all logits.
        StorageError: the file cannot be opened.
    """
    metadata = read_metadata(path)
    chunks = list(_iter_top_k(path, max(1, _CELLS_PER_GROUP // (metadata.k or 1))))
    if not chunks:
        raise _empty(path)
    arrays = {
        item.name: np.concatenate([getattr(chunk, item.name) for chunk in chunks])
        for item in fields(TopKPredictions)
        if item.name not in ("metadata", "clusters")
    }
    clusters = _joined([chunk.clusters for chunk in chunks])
    predictions = TopKPredictions(**arrays, metadata=metadata, clusters=clusters)
    _check_unique(predictions.ids)
    return predictions


def read_index(
    path: str | os.PathLike[str],
) -> tuple[Strings, npt.NDArray[np.int64], Strings | None]:
    """Read whose predictions a file holds, without the predictions.

    Returns:
        ids (N,), labels (N,) int64 and clusters (N,), or None when samples are independent; in
        stored order.

    Raises:
        PredictionsError: the file is damaged, cut short, foreign, empty or of a newer format.
        StorageError: the file cannot be opened.
    """
    ids: list[Strings] = []
    labels: list[npt.NDArray[np.int64]] = []
    clusters: list[Strings | None] = []
    with _opened(path) as (parquet, metadata):
        for batch in _batches(parquet, ["id", "label", "cluster"], _CELLS_AT_ONCE):
            ids.append(_as_strings("id", batch.column("id")))
            labels.append(batch.column("label").to_numpy().astype(np.int64))
            clusters.append(_clusters(batch))
    if not ids:
        raise _empty(path)
    names = np.concatenate(ids)
    _check_unique(names)
    classes = check_labels(np.concatenate(labels), len(names), len(metadata.class_names))
    return names, classes, _joined(clusters)


def read_scores(path: str | os.PathLike[str], temperature: float = 1.0) -> SampleScores:
    """Score a predictions file in one pass, holding a few rows of logits at a time.

    Args:
        path: N samples.
        temperature: positive divisor of the stored logits.

    Returns:
        Seven numbers a sample, in stored order; see `SampleScores`.

    Raises:
        SpecError: the temperature is not a positive finite number, or it is not 1 and the file
            keeps only the largest logits.
        PredictionsError: the file is damaged, cut short, foreign, empty or of a newer format.
        StorageError: the file cannot be opened.
    """
    check_temperature(temperature)
    metadata = read_metadata(path)
    if metadata.storage == "top_k":
        if temperature != 1.0:
            raise SpecError(
                f"temperature must be 1 for {metadata.dataset}, whose file keeps the {metadata.k} "
                f"largest of {len(metadata.class_names):,} logits of each sample, got "
                f"{temperature:g}.",
                hint="Another temperature needs all logits: write or import the predictions with "
                "all of them.",
            )
        return read_top_k(path).scores()
    rows = max(1, _CELLS_AT_ONCE // len(metadata.class_names))
    parts = [
        score_samples(chunk.logits, chunk.labels, temperature) for chunk in iter_chunks(path, rows)
    ]
    if not parts:
        raise _empty(path)
    return SampleScores.concatenate(parts)


class Indexed(Protocol):
    """What tells whose predictions these are: those themselves, or a file's index."""

    @property
    def metadata(self) -> PredictionsMetadata:
        """What the file says about itself."""

    @property
    def ids(self) -> Strings:
        """(N,) unique names of the samples."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) true classes."""

    def __len__(self) -> int:
        """Return N."""


def shared_samples(a: Indexed, b: Indexed) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the samples that two models were both evaluated on, for a paired comparison.

    Returns:
        Indices (M,) into `a` and (M,) into `b` of the same samples, in the order of `a`.

    Raises:
        UnpairedError: the class names differ, no sample is shared, or a shared sample carries
            two labels.
    """
    if a.metadata.class_names != b.metadata.class_names:
        raise UnpairedError(
            "paired predictions must have the same class names, got "
            f"{len(a.metadata.class_names)} and {len(b.metadata.class_names)} that differ"
        )
    shared, in_a, in_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    if not len(shared):
        raise UnpairedError(
            f"paired predictions must share samples, got {len(a)} and {len(b)} with no common id",
            hint="Compare evaluations of the same data set, made from the same files.",
        )
    order = np.argsort(in_a)
    in_a, in_b = in_a[order].astype(np.int64), in_b[order].astype(np.int64)
    clash = np.flatnonzero(a.labels[in_a] != b.labels[in_b])
    if len(clash):
        raise UnpairedError(
            f"sample {str(a.ids[in_a[clash[0]]])!r} must have one label, got "
            f"{a.labels[in_a[clash[0]]]} and {b.labels[in_b[clash[0]]]}"
        )
    return in_a, in_b
