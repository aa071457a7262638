"""Per-sample predictions in memory: all logits of a sample, or the largest k of them."""

import hashlib
import math
import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from calift_core import __version__
from calift_core.calibration import SampleScores, softmax
from calift_core.calibration.bins import Doubles, Floats, check_labels, check_logits, rank_of_label
from calift_core.errors import PredictionsError, UnknownNameError

FORMAT_VERSION = 2
MAX_TEXT = 1024  # characters of an id
KEY = b"calift"
CELLS_PER_GROUP = 4_000_000
CELLS_AT_ONCE = 1_000_000
#: As in `calibration.scores`: keeps the NLL finite where a probability rounds to zero.
_LARGEST_NLL = -math.log(float(np.finfo(np.float32).tiny))
Storage = Literal["full", "top_k"]
Role = Literal["id", "shift", "corruption", "calibration", "validation", "far"]
Strings = npt.NDArray[np.str_]


@dataclass(frozen=True)
class PredictionsMetadata:
    """What a predictions file says about itself.

    Attributes:
        dataset: name of the data set, such as `imagenet-c/jpeg_compression/3`.
        role: `id` (ID test), `shift`, `corruption`, the ID parts `calibration` and `validation`, or
            `far`: of none of the classes, so that its labels (0) mean nothing.
        class_names: C names, in the order of the logits.
        logit_scale: s; the stored logits are s · ⟨I, T⟩, so they already contain it.
        temperature: at which the evaluation reported its numbers; the logits are not divided by it.
        templates: prompts that made the classifier, each with `{}`.
        source_dataset: what a corruption was made from, else None.
        provenance: how the logits came about when no run of calift made them, else empty.
        storage: `full` keeps all C logits of a sample, `top_k` the k largest.
        k: how many `top_k` keeps, None for `full`.
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
        """Part of the data set that was predicted: calibration, validation, far or test."""
        return self.role if self.role in ("calibration", "validation", "far") else "test"

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
        clusters: (N,) name of each sample's source image, or None when samples are independent.
        features: (N, D) float16 L2-normalised image features that the logits were made of, or None
            where they are not stored.
    """

    ids: Strings
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    metadata: PredictionsMetadata
    clusters: Strings | None = None
    features: npt.NDArray[np.float16] | None = None

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
        if self.features is not None:
            features = np.ascontiguousarray(self.features, dtype=np.float16)
            if features.ndim != 2 or len(features) != n or not features.size:
                raise PredictionsError(
                    f"features must be a row for each of the {n} samples, got shape "
                    f"{features.shape}"
                )
            if not np.isfinite(features).all():
                raise PredictionsError("features must be finite, got a value that is not")
            object.__setattr__(self, "features", features)

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
    rows = max(1, CELLS_AT_ONCE // n_classes)
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


def check_unique(ids: Strings) -> None:
    """Make sure that no id occurs twice.

    Raises:
        PredictionsError: one does.
    """
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
    written = f"{first}/{last}" if joint else plain
    if written != dataset or not plain[0].isalnum() or len(plain) > 200 or _HASHED.search(plain):
        digest = hashlib.sha256(dataset.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        start = "" if plain[0].isalnum() else "d"
        plain = f"{start}{plain[:180]}-{digest}"
    return f"predictions/{plain}.parquet"


_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._+=@-]")
_HASHED = re.compile(r"-[0-9a-f]{12}$")
