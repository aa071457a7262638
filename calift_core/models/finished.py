"""Models that calift saved itself, read back as they were made: of a run, or exported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from calift_core.data.preprocess import Preprocess
from calift_core.errors import CheckpointError, ModelError
from calift_core.models.clip import Clip, ModelConfig
from calift_core.models.hub import FOLDER_PREFIX
from calift_core.models.loading import construct, load_weights, model_config_from, tokenizer_of
from calift_core.untrusted import parse_json

#: In an exported folder: what open_clip reads, and what calift adds to it.
EXPORT_NAME = "calift.json"
EXPORTED_HEAD = "classifier.safetensors"
EXPORTED_WEIGHTS = "open_clip_model.safetensors"


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported model, not a run."""
    return (folder / EXPORT_NAME).is_file() and not (folder / "checkpoint").is_dir()


def weights_of(folder: Path) -> Path:
    """The file that holds a finished model's weights."""
    if is_exported(folder):
        return folder / EXPORTED_WEIGHTS
    return folder / "checkpoint" / "model.safetensors"


def read_finished(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What goes with the weights of a finished model, without building it.

    Args:
        folder: the run's folder, which holds `checkpoint/model.json`, or an exported one.

    Returns:
        Its classifier's tensors (`weights` (C, D), perhaps `bias` (C,)) and `model.json`.

    Raises:
        CheckpointError: there is no finished model, it is damaged, or it is two models.
    """
    exported, checkpoint = is_exported(folder), folder / "checkpoint"
    try:
        if exported:
            described = parse_json((folder / EXPORT_NAME).read_text(encoding="utf-8"))
            description = described["model"]
            tensors = load_file(folder / EXPORTED_HEAD)
        else:
            description = parse_json((checkpoint / "model.json").read_text(encoding="utf-8"))
            tensors = load_file(checkpoint / "classifier.safetensors")
        for key in ("config", "name", "pretrained", "activation", "preprocess"):
            description[key]
    except FileNotFoundError:
        raise CheckpointError(f"{str(folder)!r} holds no finished run") from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"the model in {str(folder)!r} is damaged: {error}") from None
    if "mixture" in description:
        raise CheckpointError(
            f"the run in {str(folder)!r} is of {description['mixture']}: two models that answer "
            "together, and what it keeps is one of them",
            hint="Its predictions can be looked at; judge, merge or export the run it was made of.",
        )
    return tensors, description


def model_config_of(description: Mapping[str, Any]) -> ModelConfig:
    """How the model of a `model.json` is built.

    Raises:
        CheckpointError: what it says does not go together.
    """
    try:
        config = ModelConfig(description["config"], Preprocess.of(description["preprocess"]))
        activation, size = config.activation, model_config_from(config.config, {}).preprocess.size
    except (ModelError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"the description of the model is damaged: {error}") from None
    if (activation, size) != (description["activation"], config.preprocess.size):
        raise CheckpointError(
            f"the model must be one of {description['activation']} and {config.preprocess.size} "
            f"pixels, its config is one of {activation} and {size} pixels"
        )
    return config


def load_finished(folder: Path) -> tuple[Clip, dict[str, Tensor], dict[str, Any]]:
    """The model of a finished run, built as it was when it was trained.

    Args:
        folder: the run's folder, which holds `checkpoint/model.json`, or an exported one.

    Returns:
        The model, its classifier's tensors (`weights` (C, D), perhaps `bias` (C,)) and
        `model.json`.

    Raises:
        CheckpointError: there is no finished model, or it is damaged.
    """
    tensors, description = read_finished(folder)
    config, name = model_config_of(description), description["name"]
    net = construct(config, None)
    try:
        load_weights(net, weights_of(folder))
    except ModelError as error:
        raise CheckpointError(f"the model in {str(folder)!r} is damaged: {error}") from None
    clip = Clip(
        net,
        tokenizer_of(f"{FOLDER_PREFIX}{folder}" if is_exported(folder) else name, config),
        model_config=config,
        name=name,
        pretrained=description["pretrained"],
    )
    return clip, tensors, description


_NAMES = {"gelu": "GELU", "quick_gelu": "QuickGELU"}


def differences(one: ModelConfig, other: ModelConfig) -> str:
    """In what two models are made differently, for people: `GELU and QuickGELU`, ….

    The architecture apart from the activation is not looked at: weights fit only one.
    """
    parts = []
    if one.activation != other.activation:
        parts.append(f"activation ({_NAMES[one.activation]} and {_NAMES[other.activation]})")
    mine, theirs = one.preprocess.described(), other.preprocess.described()
    for key, value in mine.items():
        if value != theirs[key]:
            parts.append(f"{key.replace('_', ' ')} ({value} and {theirs[key]})")
    return ", ".join(parts)
