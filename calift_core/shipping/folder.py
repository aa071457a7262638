"""The folder of an exported model.

open_clip_config.json, open_clip_model.safetensors    what open_clip loads: local-dir:FOLDER
classifier.safetensors                                the head: weights (C, D), perhaps bias (C,)
calift.json                                           all the rest, and the hash of every file
README.md, reliability.png                            the model card
initial/                                              the initial model, of two towers alone
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from calift_core.analysis.choosing import Choice
from calift_core.calibration import Calibrator
from calift_core.errors import CheckpointError
from calift_core.files import sha256_file
from calift_core.models.finished import EXPORT_NAME, EXPORTED_HEAD, EXPORTED_WEIGHTS
from calift_core.shipping.initial_model import CONFIG_NAME
from calift_core.shipping.none_of_these import NoneOfThese
from calift_core.shipping.promises import Promises
from calift_core.untrusted import parse_json

CARD_NAME = "README.md"
PICTURE_NAME = "reliability.png"
ONNX_NAME = "model.onnx"
REFERENCE_NAME = "reference.safetensors"


class Provenance(BaseModel, frozen=True):
    """Where an exported model comes from; no path of the machine that made it.

    `base_model` names the weights that its run started from, `base_repository` is their address at
    the hub where they have one, `license` the model's own, `unknown` where nobody said.
    """

    calift_version: str
    run_id: str
    name: str
    base_model: str = "not recorded"
    base_repository: str | None = None
    license: str = "unknown"
    method_title: str
    method: dict[str, Any]
    suite: str
    train: dict[str, Any]
    spec_sha256: str
    environment: dict[str, Any] = Field(default_factory=dict)


class KnownAccuracy(BaseModel, frozen=True):
    """A set with labels: its accuracy, and what estimators that see no labels say. Fractions."""

    name: str
    accuracy: float
    estimates: dict[str, float]


class ReferenceSet(BaseModel, frozen=True):
    """What new answers are compared with: those on the ID validation part.

    `known` is that part and then the run's shifts.
    """

    dataset: str
    n: int
    known: list[KnownAccuracy]


class Exported(BaseModel, frozen=True):
    """The whole `calift.json`.

    Attributes:
        model: how the model is built, what its classes are called, and the logit scale.
        templates: the prompts that its head was made of.
        choice: its calibrator and why; None where none was chosen.
        reference: what images without labels are compared with; None where the run had no ID
            validation part.
        promises: thresholds and prediction sets, and what they gave; None without that part.
        none_of_these: thresholds for images unlike the ID data; None without an ID part.
        files: name → SHA-256 of every other file that answers depend on.
    """

    format: Literal[1] = 1
    model: dict[str, Any]
    templates: list[str]
    choice: Choice | None
    reference: ReferenceSet | None = None
    promises: Promises | None = None
    none_of_these: NoneOfThese | None = None
    provenance: Provenance
    files: dict[str, str]

    def fitted(self) -> Calibrator | None:
        """The calibrator, ready to use."""
        return None if self.choice is None else self.choice.fitted()


def read_exported(folder: Path) -> Exported:
    """Read an exported folder's `calift.json`.

    Raises:
        CheckpointError: it is no exported folder, or a file is not the one that was exported.
    """
    path = folder / EXPORT_NAME
    try:
        exported = Exported.model_validate(parse_json(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(f"{str(folder)!r} holds no exported model ({EXPORT_NAME})") from None
    except (OSError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from None
    for name, sha256 in exported.files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{str(folder)!r} must hold {name}, it does not")
        if sha256_file(file) != sha256:
            raise CheckpointError(
                f"{str(file)!r} is not the file that was exported: its content has changed",
                hint="Copy the folder again, or export the run anew.",
            )
    return exported


__all__ = [
    "CARD_NAME",
    "CONFIG_NAME",
    "EXPORTED_HEAD",
    "EXPORTED_WEIGHTS",
    "EXPORT_NAME",
    "ONNX_NAME",
    "PICTURE_NAME",
    "REFERENCE_NAME",
    "Exported",
    "KnownAccuracy",
    "Provenance",
    "ReferenceSet",
    "read_exported",
]
