"""Every error that calift raises on purpose.

::

    CaliftError                    code              meaning
    ├── SpecError                  INVALID_SPEC      a RunSpec or an argument is wrong
    │   └── UnknownNameError       UNKNOWN_NAME      a name that no registry holds
    ├── DataError                  DATA_INVALID      a data set is there but not usable
    │   ├── DataUnavailableError   DATA_UNAVAILABLE  a data set is not on this machine
    │   └── UnreadableImageError   IMAGE_UNREADABLE  a file is not an image we can decode
    ├── ModelError                 MODEL_INVALID     a model cannot be built or used
    │   ├── ModelUnavailableError  MODEL_UNAVAILABLE weights are not here and cannot be fetched
    │   └── UnsupportedTowerError  TOWER_UNSUPPORTED no projection layer is known for this tower
    ├── CheckpointError            CHECKPOINT_CORRUPT a checkpoint fails its checksum or its spec
    ├── PredictionsError           PREDICTIONS_INVALID a predictions file breaks its own contract
    │   └── UnpairedError          NOT_PAIRED        two files are not of the same samples
    ├── LeakageError               LEAKAGE           fitted on the data it is evaluated by
    ├── TrainingError              TRAINING_FAILED   training cannot go on
    │   ├── NanLossError           NAN_LOSS          the loss is not finite
    │   └── OutOfMemoryError       OOM               the device has no memory left
    ├── StorageError               STORAGE_FAILED    a file cannot be written or read
    │   └── DiskFullError          DISK_FULL         no space is left
    ├── InterruptedRunError        INTERRUPTED       stopped on request; a checkpoint is saved
    ├── RankLostError              RANK_LOST         a process of a run on several is gone
    ├── NotFoundError              NOT_FOUND         no such run, evaluation or file
    └── ServiceError               SERVICE_ERROR     the API answered with an error
        └── ServiceUnavailableError SERVICE_UNAVAILABLE no API answers

`code` is for machines and stays stable; `str(error)` is a sentence for people that says what was
expected and what came; `hint` says what to do next and may be empty.
"""

import difflib
from collections.abc import Iterable

#: Longer lists of known names are cut to those near the one that was given.
_MOST_NAMES = 25


class CaliftError(Exception):
    """Base of every deliberate error."""

    code = "CALIFT_ERROR"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class NotFoundError(CaliftError):
    """No such run, evaluation or file."""

    code = "NOT_FOUND"


class SpecError(CaliftError):
    """A RunSpec, an option or an argument is wrong."""

    code = "INVALID_SPEC"


class UnknownNameError(SpecError):
    """A name that the registry it was looked up in does not hold."""

    code = "UNKNOWN_NAME"

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1)
        guess = f" Did you mean {close[0]!r}?" if close else ""
        if len(names) > _MOST_NAMES:  # a screenful of names hides the one that was meant
            near = difflib.get_close_matches(name, names, n=8, cutoff=0.3)
            listed = f"{len(names)} names, the nearest are {', '.join(near or names[:8])}"
        else:
            listed = ", ".join(names) or "none"
        self.kind, self.name = kind, name
        super().__init__(f"unknown {kind} {name!r}.{guess} Known: {listed}.", hint=hint)


class DataError(CaliftError):
    """A data set is present but cannot be used as it is."""

    code = "DATA_INVALID"


class DataUnavailableError(DataError):
    """A data set is not on this machine; the hint says how to get it."""

    code = "DATA_UNAVAILABLE"


class UnreadableImageError(DataError):
    """A file that should be an image cannot be decoded."""

    code = "IMAGE_UNREADABLE"


class ModelError(CaliftError):
    """A model cannot be built or used."""

    code = "MODEL_INVALID"


class ModelUnavailableError(ModelError):
    """Weights are neither on this machine nor reachable."""

    code = "MODEL_UNAVAILABLE"


class UnsupportedTowerError(ModelError):
    """No projection layer W_v or W_t is known for a tower."""

    code = "TOWER_UNSUPPORTED"


class CheckpointError(CaliftError):
    """A checkpoint fails its checksum, its format or belongs to another spec."""

    code = "CHECKPOINT_CORRUPT"


class PredictionsError(CaliftError):
    """A predictions file breaks the contract of the format."""

    code = "PREDICTIONS_INVALID"


class UnpairedError(PredictionsError):
    """Two predictions files cannot be compared sample by sample."""

    code = "NOT_PAIRED"


class LeakageError(CaliftError):
    """Something would be fitted or chosen on data that it is evaluated by."""

    code = "LEAKAGE"


class TrainingError(CaliftError):
    """Training cannot go on."""

    code = "TRAINING_FAILED"


class NanLossError(TrainingError):
    """The loss is not finite."""

    code = "NAN_LOSS"


class OutOfMemoryError(TrainingError):
    """The device ran out of memory."""

    code = "OOM"


class StorageError(CaliftError):
    """A file cannot be written or read."""

    code = "STORAGE_FAILED"


class DiskFullError(StorageError):
    """No space is left on the device that a file was being written to."""

    code = "DISK_FULL"


class InterruptedRunError(CaliftError):
    """The run was asked to stop and did, after it saved a checkpoint."""

    code = "INTERRUPTED"


class RankLostError(CaliftError):
    """A process of a run on several is gone: the others cannot go on, another attempt can."""

    code = "RANK_LOST"


class ServiceError(CaliftError):
    """The API answered with an error.

    Attributes:
        status: HTTP status, 0 when there was no answer.
        problem: the `problem+json` body as a dict, empty when there was none.
    """

    code = "SERVICE_ERROR"

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        problem: dict[str, object] | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.problem = problem or {}


class ServiceUnavailableError(ServiceError):
    """No API answers at the address, or not in time."""

    code = "SERVICE_UNAVAILABLE"


def reason_of(error: BaseException, limit: int = 200) -> str:
    """The first line of a foreign error's text, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__
