"""How a named model is made and loaded: architecture, weights, tokenizer.

A model is named in four ways: an open_clip architecture with a pretrained tag, `hf-hub:org/model`,
`local-dir:FOLDER` with the same files, or an open_clip config JSON with a weights file
(safetensors, or a plain state dict read with `weights_only=True`: nothing is ever unpickled).

What decides a model's outputs beside its weights is resolved first (`resolve`): the activation and
the preprocessing come from the weights' own configuration, as open_clip publishes it. open_clip
builds the network from that, and only warns where activation and weights do not belong together;
here the weights decide, and what was decided is stored with every model and checkpoint.
"""

import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import load_file
from torch import Tensor, nn

from calift_core.data.preprocess import Preprocess
from calift_core.errors import ModelError, ModelUnavailableError, UnknownNameError, reason_of
from calift_core.files import sha256_file
from calift_core.home import models_dir
from calift_core.installed import pip_install
from calift_core.models.clip import Clip, ModelConfig, Tokenizer
from calift_core.models.hub import (
    CONFIG_NAME,
    FOLDER_PREFIX,
    HUB_PREFIX,
    config_file,
    fetch_weights,
    is_folder,
    quietly,
    unavailable,
    weights_of,
)
from calift_core.packaged import packaged
from calift_core.schema.places import expanded
from calift_core.untrusted import parse_json

TINY = "calift-tiny"
TINY_CONFIG = Path(__file__).with_name("calift_tiny.json")


def load_clip(
    name: str,
    pretrained: str | None,
    *,
    generator: torch.Generator | None = None,
    models: Path | None = None,
    weights: bool = True,
) -> Clip:
    """Build a model and load its weights, on the CPU in float32.

    Args:
        name: open_clip architecture, `hf-hub:org/model`, `local-dir:FOLDER`, a config JSON path, or
            `calift-tiny`.
        pretrained: open_clip tag, a weights path, for `calift-tiny` the name of its pre-training
            suite; None for random weights. What is in a hub repository or a folder brings its own.
        generator: source of random weights; only used where none are loaded.
        models: folder of weights that calift made itself (default: `CALIFT_HOME/models`).
        weights: false to build what the weights belong to with random ones in their place.

    Raises:
        UnknownNameError: the architecture or the tag does not exist.
        ModelUnavailableError: the weights are neither here nor reachable.
        ModelError: the config or the weights file cannot be used.
    """
    config = resolve(name, pretrained)
    if weights and is_folder(name):
        net = _from_folder(name, generator)
    elif weights and pretrained is not None:
        tag = open_clip.get_pretrained_cfg(name, pretrained)
        # Found before the network is built, which takes a while.
        if name == TINY:
            file = tiny_weights(pretrained, models=models)
        else:
            file = fetch_weights(name, pretrained, tag) if tag else Path(pretrained)
        comes_along = packaged(pretrained) if name == TINY else None
        # Tokens that no caption of its pre-training has start from the same rows in every run.
        net = construct(config, torch.Generator().manual_seed(0) if comes_along else generator)
        if comes_along:
            load_shipped(net, file)
        elif tag:
            _load_published(net, file, weights_of(name, pretrained))
        else:
            load_weights(net, file)
    else:
        net = construct(config, generator)
    found = Preprocess.of(open_clip.get_model_preprocess_cfg(net))
    if found != config.preprocess:
        raise ModelError(
            f"{name} must be preprocessed by {config.preprocess}, open_clip has made it for {found}"
        )
    return Clip(
        net, tokenizer_of(name, config), model_config=config, name=name, pretrained=pretrained
    )


def resolve(name: str, pretrained: str | None) -> ModelConfig:
    """How a model is built and what its images go through, without building it.

    A tag's own configuration decides activation, mean, deviation, interpolation and resize mode;
    so does that of a hub repository, a folder and a config JSON. Weights in a file under the name
    of an architecture say nothing: there it is the architecture's activation and open_clip's
    defaults, with a note where published weights of that name need something else.

    Args:
        name: as for `load_clip`.
        pretrained: as for `load_clip`.

    Raises:
        UnknownNameError, ModelUnavailableError, ModelError: as for `load_clip`.
    """
    if name == TINY:
        return model_config_from(*_read_config(TINY_CONFIG))
    if name.endswith(".json"):
        config, preprocess = _read_config(Path(name))
        unknown = [key for key in preprocess if key not in _PREPROCESS_KEYS]
        if unknown:
            raise ModelError(
                f"preprocess_cfg in {name!r} must have keys among {', '.join(_PREPROCESS_KEYS)}, "
                f"got {', '.join(map(repr, unknown))}"
            )
        return model_config_from(config, preprocess)
    if is_folder(name):
        if pretrained is not None:
            raise ModelError(
                f"{name} brings its own weights: model.pretrained must be null, got {pretrained!r}"
            )
        return model_config_from(*_read_config(config_file(name)))
    return _registered(name, pretrained)


_PREPROCESS_KEYS = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")


def model_config_from(
    config: Mapping[str, Any], preprocess: Mapping[str, Any], note: str = ""
) -> ModelConfig:
    """How a model is made of a configuration of open_clip and its preprocessing."""
    # open_clip takes the size from the network that it has built.
    vision = config["vision_cfg"]
    size = vision.get("image_size", 224) if isinstance(vision, dict) else 224
    return ModelConfig(config, Preprocess.of({**preprocess, "size": size}), note)


def _registered(name: str, pretrained: str | None) -> ModelConfig:
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        raise UnknownNameError(
            "model",
            name,
            [TINY, *open_clip.list_models()],
            hint="A model is an open_clip name, hf-hub:org/model, local-dir:FOLDER or a config "
            "JSON path.",
        )
    if pretrained is None:
        return model_config_from(config, {})
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag:
        if not Path(pretrained).is_file():
            if Path(pretrained).suffix:
                raise ModelUnavailableError(f"no weights file at {pretrained!r}")
            known = open_clip.list_pretrained_tags_by_model(name)
            raise UnknownNameError(f"weights of {name}", pretrained, known)
        return model_config_from(config, {}, _note_on_file(name, config))
    # A tag that says nothing has the activation of its architecture.
    if tag.get("quick_gelu", config.get("quick_gelu", False)):
        config["quick_gelu"] = True
    elif config.get("quick_gelu"):
        raise ModelError(
            f"the weights {pretrained} were trained with GELU, and {name} is built with QuickGELU",
            hint="Name the architecture without -quickgelu.",
        )
    return model_config_from(config, tag)


def _note_on_file(name: str, config: Mapping[str, Any]) -> str:
    """What a file under an architecture's name leaves open, by that name's published weights."""
    own, plain = bool(config.get("quick_gelu")), Preprocess(1)
    other_activation, other_images = [], []
    for tag in open_clip.list_pretrained_tags_by_model(name):
        published = open_clip.get_pretrained_cfg(name, tag)
        if bool(published.get("quick_gelu", own)) != own:
            other_activation.append(tag)
        if Preprocess.of({**published, "size": 1}) != plain:
            other_images.append(tag)
    if not other_activation and not other_images:
        return ""
    parts = []
    if other_activation:
        other = f"{name}-quickgelu"
        named = f" (name it {other})" if other in open_clip.list_models() else ""
        parts.append(f"QuickGELU{named} is what {', '.join(other_activation)} need")
    if other_images:
        parts.append(f"another preprocessing is what {', '.join(other_images)} need")
    return (
        f"Weights in a file do not say how they were trained: {name} is built with "
        f"{'QuickGELU' if own else 'GELU'} and open_clip's default preprocessing. "
        f"{'; '.join(parts)}. A folder that holds the weights and {CONFIG_NAME} says it by "
        f"itself: local-dir:FOLDER."
    )


def tiny_weights(pretrained: str, *, models: Path | None = None) -> Path:
    """Weights of `calift-tiny`: those that come along, else the newest that were made here.

    Raises:
        ModelUnavailableError: there are none; the hint says how.
        ModelError: what came along is no longer what it was.
    """
    if pretrained.endswith((".safetensors", ".pt", ".pth", ".bin")):
        return Path(pretrained)
    comes_along = packaged(pretrained)
    if comes_along is not None:
        if not comes_along.file.is_file() or sha256_file(comes_along.file) != comes_along.sha256:
            raise ModelError(
                f"{str(comes_along.file)!r} must have the SHA-256 {comes_along.sha256}, it has not",
                hint="Install calift anew.",
            )
        return comes_along.file
    index = (models or models_dir()) / TINY / f"{pretrained}.json"
    try:
        folder = str(json.loads(index.read_text())["folder"])
    except (OSError, ValueError, KeyError):
        folder = ""
    weights = index.parent / folder / "model.safetensors"
    if not folder or not weights.is_file():
        raise ModelUnavailableError(
            f"calift-tiny has not been pre-trained on {pretrained!r} here yet.",
            hint="A run that names it pre-trains it first; it takes 2 minutes on 2 cores.",
        )
    return weights


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`model_cfg` and `preprocess_cfg` of an open_clip config; the former may stand alone."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelUnavailableError(
            f"cannot read the model config {str(path)!r}: {error}"
        ) from None
    except ValueError as error:
        raise ModelError(f"the model config {str(path)!r} is not JSON: {error}") from None
    whole = content if isinstance(content, dict) else {}
    preprocess = whole.pop("preprocess_cfg", None) or {}
    config = whole.get("model_cfg", whole)
    needed = {"embed_dim", "vision_cfg", "text_cfg"}
    if not isinstance(config, dict) or not needed <= set(config):
        raise ModelError(
            f"an open_clip config holds embed_dim, vision_cfg and text_cfg, {str(path)!r} does not"
        )
    if not isinstance(preprocess, dict):
        raise ModelError(f"preprocess_cfg in {str(path)!r} must be a mapping, got {preprocess!r}")
    return dict(config), preprocess


@contextmanager
def _seeded(generator: torch.Generator | None) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        if generator is not None:
            torch.manual_seed(generator.initial_seed())
        yield


def construct(config: ModelConfig, generator: torch.Generator | None) -> nn.Module:
    """The network that open_clip builds, with random weights."""
    described = {"model_cfg": dict(config.config), "preprocess_cfg": config.preprocess.described()}
    with tempfile.TemporaryDirectory() as folder, _seeded(generator), quietly():
        (Path(folder) / CONFIG_NAME).write_text(json.dumps(described), encoding="utf-8")
        try:
            net: nn.Module = open_clip.create_model(
                f"{FOLDER_PREFIX}{folder}", load_weights=False, pretrained_text=False
            )
        except Exception as error:  # a config of any content: open_clip and timm raise what comes
            raise ModelError(f"open_clip cannot build this config: {reason_of(error)}") from error
    return net


def _from_folder(name: str, generator: torch.Generator | None) -> nn.Module:
    if name.startswith(HUB_PREFIX):
        try:
            download_pretrained_from_hf(name.removeprefix(HUB_PREFIX))
        except Exception as error:  # hub, network and file errors come as a dozen types
            raise unavailable(name, None, error) from error
    else:
        name = f"{FOLDER_PREFIX}{expanded(name.removeprefix(FOLDER_PREFIX))}"
    with _seeded(generator), quietly():
        try:
            net: nn.Module = open_clip.create_model(name, require_pretrained=True)
        except Exception as error:  # a damaged file makes decoders raise a dozen types
            raise ModelError(
                f"open_clip cannot load the model in {name}: {reason_of(error)}"
            ) from error
    return net


def _load_published(net: nn.Module, path: Path, what: str) -> None:
    """Load weights by open_clip's own function, which knows the forms that they come in."""
    with quietly():
        try:
            open_clip.load_checkpoint(net, str(path))
        except Exception as error:  # a damaged file makes decoders raise a dozen types
            raise ModelError(
                f"the {what} in {str(path)!r} cannot be loaded: {reason_of(error)}"
            ) from error


def tokenizer_of(name: str, config: ModelConfig) -> Callable[[], Tokenizer]:
    """Makes a model's tokenizer, by open_clip's own function where it knows the name."""
    text = config.config["text_cfg"]
    fetched = text.get("hf_tokenizer_name", "")
    listed = name in open_clip.list_models()

    def make() -> Tokenizer:
        try:
            if (fetched and (listed or is_folder(name))) or (listed and "siglip" in name.lower()):
                found: Tokenizer = open_clip.get_tokenizer(name)
                return found
            length, more = text.get("context_length", 77), dict(text.get("tokenizer_kwargs", {}))
            if not fetched:
                plain: Tokenizer = open_clip.SimpleTokenizer(context_length=length, **more)
                return plain
            mode = text.get("tokenizer_mode")
            own: Tokenizer = HFTokenizer(
                fetched, context_length=length, tokenizer_mode=mode, **more
            )
            return own
        except ImportError as error:
            raise ModelUnavailableError(
                f"the tokenizer of {name} ({fetched}) needs a package that is not installed "
                f"({error}).",
                hint=pip_install("transformers>=5"),
            ) from error
        except Exception as error:  # hub, network and file errors come as a dozen types
            raise ModelUnavailableError(
                f"the tokenizer of {name} ({fetched or 'by its name'}) is not on this machine and "
                f"could not be downloaded ({type(error).__name__}: {reason_of(error)}).",
                hint="It is kept in the hub's cache, as the weights are.",
            ) from error

    return make


def load_shipped(net: nn.Module, path: Path) -> None:
    """Load weights that come with the package; token rows that they lack stay as they are.

    Raises:
        ModelError: they belong to another model.
    """
    stored = load_file(path)
    try:
        rows = net.state_dict()["token_embedding.weight"].clone()
        rows[stored.pop("token_ids").long()] = stored["token_embedding.weight"].float()
        state = {name: tensor.float() for name, tensor in stored.items()}
        net.load_state_dict(state | {"token_embedding.weight": rows})
    except (RuntimeError, KeyError) as error:
        raise ModelError(f"{str(path)!r} are weights of another model: {error}") from None


def shrunk(net: nn.Module, token_ids: Tensor) -> dict[str, Tensor]:
    """What `load_shipped` reads: float16, and the rows of the token embedding that are used.

    Args:
        token_ids: (R,) tokens of all captions, each once.
    """
    state = {name: tensor.detach().half().contiguous() for name, tensor in net.state_dict().items()}
    ids = token_ids.to(torch.int32)
    rows = state["token_embedding.weight"][ids.long()].contiguous()
    return state | {"token_embedding.weight": rows, "token_ids": ids}


def load_weights(net: nn.Module, path: Path) -> None:
    """Load a state dict from a file into a model, every tensor of it and no other.

    Args:
        path: safetensors, or a file that `torch.load(weights_only=True)` reads as a mapping of
            tensors (or one such mapping under `state_dict`).

    Raises:
        ModelUnavailableError: there is no such file.
        ModelError: the file is damaged, holds more than tensors, or belongs to another model.
    """
    if not path.is_file():
        raise ModelUnavailableError(f"no weights file at {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes decoders raise a dozen types
        raise ModelError(
            f"{str(path)!r} cannot be read as plain weights: {reason_of(error)}",
            hint="Only tensors are loaded, never pickled objects: save a state dict, best as "
            ".safetensors.",
        ) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{str(path)!r} must hold a mapping of names to tensors")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    expected = net.state_dict()
    wrong = [
        f"{key} is {tuple(state[key].shape)} and should be {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    if wrong or missing or extra:
        parts = [
            f"{len(items)} {label} ({'; '.join(items[:3])})"
            for label, items in (
                ("missing", missing),
                ("unknown", extra),
                ("of another shape", wrong),
            )
            if items
        ]
        raise ModelError(f"{str(path)!r} are weights of another model: {', '.join(parts)}")
    net.load_state_dict(state)


def weights_sha256(net: nn.Module) -> str:
    """SHA-256 (hex) of a model's tensors in name order: equal for equal weights."""
    return tensors_sha256(net.state_dict())


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of tensors in name order, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{array.dtype}:{tuple(array.shape)};".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
