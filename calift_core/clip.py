"""Load CLIP-like models, encode with them, find their projections. Nothing else knows open_clip.

A model is named in three ways: an open_clip architecture with a pretrained tag,
`hf-hub:org/model`, or an open_clip config JSON with a weights file (safetensors, or a plain state
dict read with `weights_only=True`: nothing is ever unpickled).
"""

from __future__ import annotations

import copy
import hashlib
import json
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import open_clip
import torch
from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from calift_core.errors import (
    CheckpointError,
    ModelError,
    ModelUnavailableError,
    UnknownNameError,
    reason_of,
)
from calift_core.errors import UnsupportedTowerError as Unsupported
from calift_core.home import models_dir

TINY = "calift-tiny"
TINY_CONFIG = Path(__file__).parent / "configs" / "calift_tiny.json"

Tokenizer = Callable[[Sequence[str]], Tensor]


class Clip(nn.Module):
    """An image tower, a text tower and a logit scale.

    Attributes:
        net: the open_clip model.
        tokenizer: captions → token ids (B, L).
        image_size: side of the square input in pixels.
        mean: per-channel mean that inputs are normalised with.
        std: per-channel standard deviation.
        config: the open_clip config, enough to build the architecture again; null for hub models.
    """

    def __init__(
        self,
        net: nn.Module,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        name: str,
        pretrained: str | None,
        config: Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        self.net: Any = net
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.name = name
        self.pretrained = pretrained
        self.config = dict(config) if config is not None else None
        self.compiled_with: str | None = None
        #: Convolutions are up to twice as fast on images whose channels lie together. A ViT has
        #: one, which does not matter; MPS is left alone.
        self.channels_last = _is_convolutional(net) and not torch.backends.mps.is_available()
        if self.channels_last:
            self.net.visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __deepcopy__(self, memo: dict[int, Any]) -> Clip:
        """A copy with its own weights; the tokenizer, which has no state, is shared."""
        clone = Clip(
            copy.deepcopy(self.net, memo),
            self.tokenizer,
            image_size=self.image_size,
            mean=self.mean,
            std=self.std,
            name=self.name,
            pretrained=self.pretrained,
            config=self.config,
        )
        clone.train(self.training)
        if self.compiled_with is not None:
            clone._compile(self.compiled_with)
        return clone

    def compile_towers(self, *, backend: str = "inductor") -> None:
        """Compile both towers in place: names and values of the weights stay as they are.

        Copies made later are compiled as well. The work is done when a tower is first run.

        Args:
            backend: of `torch.compile`.

        Raises:
            ModelError: nothing can be compiled on this machine.
        """
        _demand_compiler(self.net.logit_scale.device, backend)
        self._compile(backend)

    def _compile(self, backend: str) -> None:
        self.net.visual.compile(backend=backend)
        # A batch's distinct captions and the longest of them change from step to step.
        text = getattr(self.net, "transformer", None) or self.net.text
        text.compile(backend=backend, dynamic=True)
        self.compiled_with = backend

    @property
    def logit_scale(self) -> Tensor:
        """`s`, the factor on cosine similarities: exp of the learned parameter, a scalar."""
        scale: Tensor = self.net.logit_scale.exp()
        return scale.squeeze()

    @property
    def is_sigmoid(self) -> bool:
        """Whether the model was made for a pairwise sigmoid loss (it then has a logit bias)."""
        return getattr(self.net, "logit_bias", None) is not None

    @property
    def is_convolutional(self) -> bool:
        """Whether the image tower is made of convolutions, beyond the one that cuts patches."""
        return _is_convolutional(self.net)

    @property
    def embed_dim(self) -> int:
        """D, the width of the shared space."""
        try:
            return int(self.text_projection().shape[1])
        except Unsupported:  # a text tower that ends without a linear map
            was_training = self.training
            with torch.no_grad():
                width = self.eval().encode_text(self.tokenizer(["a"])).shape[1]
            self.train(was_training)
            return int(width)

    def encode_image(self, images: Tensor) -> Tensor:
        """L2-normalised image embeddings, float32.

        Args:
            images: (B, 3, S, S), normalised.

        Returns:
            (B, D).
        """
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.net.encode_image(images)
        return F.normalize(features.float(), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """L2-normalised text embeddings, float32.

        Causal towers are run on the longest caption only: what stands behind a caption's end token
        cannot reach it, so the result is the same as over the full context.

        Args:
            tokens: (B, L) token ids as the tokenizer gives them, best on the CPU: the longest is
                then found without waiting for the device.

        Returns:
            (B, D).
        """
        length = _longest_caption(self.net, tokens)
        tokens = tokens[:, :length].to(self.net.logit_scale.device, non_blocking=True)
        if length is None:
            features: Tensor = self.net.encode_text(tokens)
        else:
            features = _encode_text_short(self.net, tokens)
        return F.normalize(features.float(), dim=-1)

    def image_projection(self) -> Tensor:
        """W_v, the last linear map of the image tower, oriented so that features = h @ W_v.

        Returns:
            (width, D), so that the Gram W_vᵀW_v is (D, D) for every kind of tower.

        Raises:
            UnsupportedTowerError: the tower ends in something else than a linear map.
        """
        return _image_projection(self.net.visual)

    def text_projection(self) -> Tensor:
        """W_t, the last linear map of the text tower: (width, D).

        Raises:
            UnsupportedTowerError: the tower ends in something else than a linear map.
        """
        return _text_projection(self.net)


def _is_convolutional(net: Any) -> bool:
    """Whether the image tower is made of convolutions, beyond the one that cuts patches."""
    return sum(isinstance(m, nn.Conv2d) for m in net.visual.modules()) > 1


def _demand_compiler(device: torch.device, backend: str) -> None:
    """Compile something small.

    Raises:
        ModelError: that failed; says why.
    """
    try:
        small = torch.compile(lambda x: (x + 1).square(), backend=backend)
        small(torch.zeros(64, device=device))
    except Exception as error:  # the compiler's own, the C++ compiler's, Triton's: a dozen types
        raise ModelError(
            f"the towers cannot be compiled for {device} on this machine: "
            f"{type(error).__name__}: {reason_of(error)}",
            hint="torch.compile needs a C++ compiler (g++), on a GPU Triton too; without them set "
            "train.compile to false.",
        ) from error


def _longest_caption(net: nn.Module, tokens: Tensor) -> int | None:
    """Tokens needed for the longest caption, or None where the tower must see the full context."""
    causal = isinstance(net, open_clip.CLIP) and getattr(net, "attn_mask", None) is not None
    if not causal or net.text_pool_type != "argmax":
        return None
    return int(tokens.argmax(dim=-1).max()) + 1


def _encode_text_short(net: Any, tokens: Tensor) -> Tensor:
    """`open_clip.CLIP.encode_text` for fewer positions than the context length."""
    length = tokens.shape[1]
    dtype = net.transformer.get_cast_dtype()
    x: Tensor = net.token_embedding(tokens).to(dtype)  # (B, L, width)
    x = x + net.positional_embedding[:length].to(dtype)
    x = net.ln_final(net.transformer(x, attn_mask=net.attn_mask[:length, :length]))
    x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]  # (B, width)
    projection = net.text_projection
    if projection is not None:
        x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    return x


def _last_linear(module: nn.Module) -> nn.Linear | None:
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return linears[-1] if linears else None


def _image_projection(visual: nn.Module) -> Tensor:
    if isinstance(visual, VisionTransformer):
        if visual.proj is None:
            raise Unsupported("this VisionTransformer has no projection (visual.proj is None)")
        projection: Tensor = visual.proj
        return projection
    if isinstance(visual, ModifiedResNet):
        stored: Tensor = visual.attnpool.c_proj.weight  # (D, width)
        return stored.T
    if isinstance(visual, TimmModel):
        linear = _last_linear(visual.head)
        if linear is None and hasattr(visual.trunk, "get_classifier"):
            classifier = visual.trunk.get_classifier()
            linear = classifier if isinstance(classifier, nn.Linear) else None
        if linear is None:
            raise Unsupported(
                "this timm image tower ends without a linear projection (visual.head and the "
                "trunk's classifier hold none), so W_v is not defined"
            )
        return linear.weight.T
    raise Unsupported(
        f"no projection W_v is known for an image tower of type {type(visual).__name__}; known: "
        "VisionTransformer, ModifiedResNet, TimmModel"
    )


def _text_projection(net: Any) -> Tensor:
    text = net if isinstance(net, open_clip.CLIP) else getattr(net, "text", None)
    if isinstance(text, open_clip.CLIP | TextTransformer):
        projection: nn.Module | Tensor | None = text.text_projection
    elif text is not None and hasattr(text, "proj"):  # HFTextEncoder
        projection = text.proj
    else:
        raise Unsupported(f"no projection W_t is known for a text tower of {type(net).__name__}")
    if isinstance(projection, Tensor):
        return projection
    linear = None if projection is None else _last_linear(projection)
    if linear is None:
        raise Unsupported(f"the text tower {type(text).__name__} ends without a linear projection")
    return linear.weight.T


# ---------------------------------------------------------------------------------- loading


def load_clip(
    name: str,
    pretrained: str | None,
    *,
    generator: torch.Generator | None = None,
    models: Path | None = None,
) -> Clip:
    """Build a model and load its weights, on the CPU in float32.

    Args:
        name: open_clip architecture, `hf-hub:org/model`, a config JSON path, or `calift-tiny`.
        pretrained: open_clip tag, a weights path, for `calift-tiny` the name of its pre-training
            suite; None for random weights.
        generator: source of random weights; only used when `pretrained` is None.
        models: folder of weights that calift made itself (default: `CALIFT_HOME/models`).

    Raises:
        UnknownNameError: the architecture or the tag does not exist.
        ModelUnavailableError: the weights are neither here nor reachable.
        ModelError: the config or the weights file cannot be used.
    """
    if name == TINY:
        weights = None if pretrained is None else str(tiny_weights(pretrained, models=models))
        clip = _from_config(TINY_CONFIG, weights, generator)
        clip.name, clip.pretrained = name, pretrained
        return clip
    if name.endswith(".json"):
        return _from_config(Path(name), pretrained, generator)
    return _from_registry(name, pretrained, generator)


def tiny_weights(pretrained: str, *, models: Path | None = None) -> Path:
    """The newest weights of `calift-tiny` that were pre-trained here on a suite.

    Raises:
        ModelUnavailableError: none were; the hint says how.
    """
    if pretrained.endswith((".safetensors", ".pt", ".pth", ".bin")):
        return Path(pretrained)
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


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelUnavailableError(
            f"cannot read the model config {str(path)!r}: {error}"
        ) from None
    except ValueError as error:
        raise ModelError(f"the model config {str(path)!r} is not JSON: {error}") from None
    config = config.get("model_cfg", config) if isinstance(config, dict) else config
    needed = {"embed_dim", "vision_cfg", "text_cfg"}
    if not isinstance(config, dict) or not needed <= set(config):
        raise ModelError(
            f"an open_clip config holds embed_dim, vision_cfg and text_cfg, {str(path)!r} does not"
        )
    return dict(config)


def _build(config: Mapping[str, Any], generator: torch.Generator | None) -> nn.Module:
    body = {key: value for key, value in config.items() if key != "custom_text"}
    custom = config.get("custom_text") or "hf_model_name" in config["text_cfg"]
    constructor = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    with torch.random.fork_rng(devices=[]):
        if generator is not None:
            torch.manual_seed(generator.initial_seed())
        try:
            net: nn.Module = constructor(**copy.deepcopy(body))
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ModelError(f"open_clip cannot build this config: {error}") from error
    return net


def _tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    text = config["text_cfg"]
    length = text.get("context_length", 77)
    name = text.get("hf_tokenizer_name")
    tokenizer: Tokenizer = (
        open_clip.HFTokenizer(name, context_length=length)
        if name
        else open_clip.SimpleTokenizer(context_length=length)
    )
    return tokenizer


def _from_config(path: Path, weights: str | None, generator: torch.Generator | None) -> Clip:
    config = _read_config(path)
    net = _build(config, generator)
    if weights is not None:
        load_weights(net, Path(weights))
    size = config["vision_cfg"].get("image_size", 224)
    return Clip(
        net,
        _tokenizer(config),
        image_size=size if isinstance(size, int) else int(size[0]),
        mean=open_clip.OPENAI_DATASET_MEAN,
        std=open_clip.OPENAI_DATASET_STD,
        name=str(path),
        pretrained=weights,
        config=config,
    )


def _from_registry(name: str, pretrained: str | None, generator: torch.Generator | None) -> Clip:
    is_hub = name.startswith("hf-hub:")
    weights_file: Path | None = None
    if not is_hub:
        if name not in open_clip.list_models():
            raise UnknownNameError(
                "model",
                name,
                [TINY, *open_clip.list_models()],
                hint="A model is an open_clip name, hf-hub:org/model or a config JSON path.",
            )
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained is not None and pretrained not in tags:
            weights_file = Path(pretrained)
            if not weights_file.is_file():
                if weights_file.suffix:
                    raise ModelUnavailableError(f"no weights file at {pretrained!r}")
                raise UnknownNameError(f"weights of {name}", pretrained, tags)
    if weights_file is None and (is_hub or pretrained is not None):
        _demand_hub(name, pretrained)
    with torch.random.fork_rng(devices=[]):
        if generator is not None:
            torch.manual_seed(generator.initial_seed())
        try:
            net = open_clip.create_model(
                name, pretrained=None if weights_file or is_hub else pretrained
            )
        except Exception as error:  # hub, network and file errors come as a dozen types
            raise ModelUnavailableError(
                f"the {_weights_of(name, pretrained)} are not on this machine and could not be "
                f"downloaded ({type(error).__name__}: {reason_of(error)}).",
                hint=_NO_WEIGHTS_HINT,
            ) from error
    if weights_file is not None:
        load_weights(net, weights_file)
    preprocess = open_clip.get_model_preprocess_cfg(net)
    size = preprocess.get("size", 224)
    return Clip(
        net,
        open_clip.get_tokenizer(name),
        image_size=size if isinstance(size, int) else int(size[0]),
        mean=preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN,
        std=preprocess.get("std") or open_clip.OPENAI_DATASET_STD,
        name=name,
        pretrained=pretrained,
        config=None if is_hub else open_clip.get_model_config(name),
    )


_NO_WEIGHTS_HINT = (
    "With a network they are fetched by themselves; without, give `pretrained` the path of a "
    ".safetensors file."
)


def _weights_of(name: str, pretrained: str | None) -> str:
    return f"weights {pretrained} of {name}" if pretrained else f"weights of {name}"


def hub_repository(name: str, pretrained: str | None) -> str:
    """The hub repository that a model's weights come from, empty when it is another place."""
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:").split("@")[0]
    config = open_clip.get_pretrained_cfg(name, pretrained) or {}
    return str(config.get("hf_hub") or "").rstrip("/")


def in_hub_cache(repository: str) -> bool:
    """Whether a hub repository with more than a config in it is in the local cache."""
    try:
        return any(
            r.repo_id == repository and r.size_on_disk > 2**20 for r in scan_cache_dir().repos
        )
    except CacheNotFound:
        return False


def _demand_hub(name: str, pretrained: str | None) -> None:
    """Fail at once where a download would retry for a minute: no cache, no network, no proxy.

    Raises:
        ModelUnavailableError: the weights cannot be had.
    """
    repository = hub_repository(name, pretrained)
    if not repository or in_hub_cache(repository) or getproxies():
        return
    host = urlsplit(constants.ENDPOINT).hostname or ""
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        socket.create_connection((host, 443), timeout=10).close()
    except OSError as error:
        raise ModelUnavailableError(
            f"the {_weights_of(name, pretrained)} are not on this machine, and {host} cannot be "
            f"reached to download them ({error}).",
            hint=_NO_WEIGHTS_HINT,
        ) from None


def load_weights(net: nn.Module, path: Path) -> None:
    """Load a state dict from a file into a model, every tensor of it and no other.

    Args:
        net: the model.
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


def read_finished(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What goes with the weights of a finished run, without building the model.

    Args:
        folder: the run's folder, which holds `checkpoint/model.json`.

    Returns:
        Its classifier's tensors (`weights` (C, D), perhaps `bias` (C,)) and `model.json`.

    Raises:
        CheckpointError: there is no finished model, or it is damaged.
    """
    checkpoint = folder / "checkpoint"
    try:
        description = json.loads((checkpoint / "model.json").read_text(encoding="utf-8"))
        tensors = load_file(checkpoint / "classifier.safetensors")
        for key in ("config", "name", "image_size", "mean", "std", "pretrained"):
            description[key]
    except FileNotFoundError:
        raise CheckpointError(f"{str(folder)!r} holds no finished run") from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"the model in {str(folder)!r} is damaged: {error}") from None
    return tensors, description


def load_finished(folder: Path) -> tuple[Clip, dict[str, Tensor], dict[str, Any]]:
    """The model of a finished run.

    Args:
        folder: the run's folder, which holds `checkpoint/model.json`.

    Returns:
        The model, its classifier's tensors (`weights` (C, D), perhaps `bias` (C,)) and
        `model.json`.

    Raises:
        CheckpointError: there is no finished model, or it is damaged.
    """
    tensors, description = read_finished(folder)
    config, name = description["config"], description["name"]
    described = {key: description[key] for key in ("image_size", "mean", "std", "pretrained")}
    if config is not None:
        net, tokenizer = _build(config, None), _tokenizer(config)
    else:
        hub = load_clip(name, None)
        net, tokenizer = hub.net, hub.tokenizer
    try:
        load_weights(net, folder / "checkpoint" / "model.safetensors")
    except ModelError as error:
        raise CheckpointError(f"the model in {str(folder)!r} is damaged: {error}") from None
    return Clip(net, tokenizer, name=name, config=config, **described), tensors, description


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


@dataclass(frozen=True)
class Captions:
    """A finite set of captions, class × template, tokenised once.

    Attributes:
        class_names: C names.
        templates: P sentences with one `{}`.
        tokens: (C·P, L); caption `c * P + p` is template p with class c.
        cache: folder that keeps the classifiers made of these captions, None to keep none.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    tokens: Tensor = field(repr=False)
    cache: Path | None = None

    @classmethod
    def make(
        cls,
        class_names: Sequence[str],
        templates: Sequence[str],
        tokenizer: Tokenizer,
        *,
        cache: Path | None = None,
    ) -> Captions:
        """Tokenise every template with every class name."""
        texts = [template.format(name) for name in class_names for template in templates]
        tokens = torch.cat([tokenizer(texts[i : i + 1024]) for i in range(0, len(texts), 1024)])
        return cls(tuple(class_names), tuple(templates), tokens, cache)

    def __len__(self) -> int:
        return len(self.tokens)
