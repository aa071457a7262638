"""Load CLIP-like models, encode with them, find their projections. Nothing else knows open_clip.

A model is named in four ways: an open_clip architecture with a pretrained tag, `hf-hub:org/model`,
`local-dir:FOLDER` with the same files, or an open_clip config JSON with a weights file
(safetensors, or a plain state dict read with `weights_only=True`: nothing is ever unpickled).

What decides a model's outputs beside its weights is resolved first (`resolve`): the activation and
the preprocessing come from the weights' own configuration, as open_clip publishes it. open_clip
builds the network from that, and only warns where activation and weights do not belong together;
here the weights decide, and what was decided is stored with every model and checkpoint.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import open_clip
import torch
from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from open_clip.modified_resnet import ModifiedResNet
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import TextTransformer, VisionTransformer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from calift_core.errors import (
    CheckpointError,
    ModelError,
    ModelUnavailableError,
    SpecError,
    UnknownNameError,
    reason_of,
)
from calift_core.errors import UnsupportedTowerError as Unsupported
from calift_core.home import models_dir
from calift_core.installed import pip_install
from calift_core.preprocess import Preprocess

TINY = "calift-tiny"
TINY_CONFIG = Path(__file__).parent / "configs" / "calift_tiny.json"

Tokenizer = Callable[[Sequence[str]], Tensor]
Activation = Literal["gelu", "quick_gelu"]


@dataclass(frozen=True)
class Made:
    """What decides a model's outputs beside its weights.

    Attributes:
        config: open_clip's `model_cfg`, enough to build the architecture again.
        preprocess: how images become its input.
        note: a sentence for people where the weights do not say all of it, else empty.
    """

    config: Mapping[str, Any]
    preprocess: Preprocess
    note: str = field(default="", compare=False)

    @property
    def activation(self) -> Activation:
        """Of the towers that open_clip builds itself; timm's have their own."""
        return "quick_gelu" if self.config.get("quick_gelu") else "gelu"

    def described(self) -> dict[str, Any]:
        """As JSON, for checkpoints and reports."""
        return {"activation": self.activation, "preprocess": self.preprocess.described()}


class Clip(nn.Module):
    """An image tower, a text tower and a logit scale.

    Args:
        net: the open_clip model.
        tokenizer: makes the tokenizer when it is first asked for: a finished model is judged
            without one, and that of some models has to be fetched.
        made: how the network is built and what its images go through.
        name: as a RunSpec names it.
        pretrained: as a RunSpec names it.
    """

    def __init__(
        self,
        net: nn.Module,
        tokenizer: Callable[[], Tokenizer],
        *,
        made: Made,
        name: str,
        pretrained: str | None,
    ) -> None:
        super().__init__()
        self.net: Any = net
        self._make_tokenizer = tokenizer
        self.made = made
        self.name = name
        self.pretrained = pretrained
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
            lambda: self.tokenizer,
            made=self.made,
            name=self.name,
            pretrained=self.pretrained,
        )
        clone.train(self.training)
        if self.compiled_with is not None:
            clone._compile(self.compiled_with)
        return clone

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Captions → token ids (B, L).

        Raises:
            ModelUnavailableError: its files or its package are not here.
        """
        return self._make_tokenizer()

    @property
    def config(self) -> Mapping[str, Any]:
        """open_clip's `model_cfg`."""
        return self.made.config

    @property
    def preprocess(self) -> Preprocess:
        """How images become the model's input."""
        return self.made.preprocess

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.preprocess.size

    @property
    def mean(self) -> tuple[float, ...]:
        """Per-channel mean that inputs are normalised with."""
        return self.preprocess.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per-channel standard deviation that inputs are normalised with."""
        return self.preprocess.std

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
    weights: bool = True,
    legacy: bool = False,
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
        legacy: build it as calift did before checkpoints said how, see `resolve`.

    Raises:
        UnknownNameError: the architecture or the tag does not exist.
        ModelUnavailableError: the weights are neither here nor reachable.
        ModelError: the config or the weights file cannot be used.
    """
    made = resolve(name, pretrained, legacy=legacy)
    if _is_folder(name):
        pretrained = None
    if weights and _is_folder(name):
        net = _from_folder(name, generator)
    elif weights and pretrained is not None:
        tag = open_clip.get_pretrained_cfg(name, pretrained)
        # Found before the network is built, which takes a while.
        if name == TINY:
            file = tiny_weights(pretrained, models=models)
        else:
            file = _fetched(name, pretrained, tag) if tag else Path(pretrained)
        net = _construct(made, generator)
        if tag:
            _load_published(net, file, _weights_of(name, pretrained))
        else:
            load_weights(net, file)
    else:
        net = _construct(made, generator)
    found = Preprocess.of(open_clip.get_model_preprocess_cfg(net))
    if found != made.preprocess and not legacy:
        raise ModelError(
            f"{name} must be preprocessed by {made.preprocess}, open_clip has made it for {found}"
        )
    return Clip(net, _tokenizer_of(name, made), made=made, name=name, pretrained=pretrained)


def resolve(name: str, pretrained: str | None, *, legacy: bool = False) -> Made:
    """How a model is built and what its images go through, without building it.

    A tag's own configuration decides activation, mean, deviation, interpolation and resize mode;
    so does that of a hub repository, a folder and a config JSON. Weights in a file under the name
    of an architecture say nothing: there it is the architecture's activation and open_clip's
    defaults, with a note where published weights of that name need something else.

    Args:
        name: as for `load_clip`.
        pretrained: as for `load_clip`.
        legacy: as calift did before checkpoints said how. Tags had the architecture's activation;
            all was resized to the shorter side and bicubic; `preprocess_cfg` of a config JSON was
            not read.

    Raises:
        UnknownNameError, ModelUnavailableError, ModelError: as for `load_clip`.
    """
    if name == TINY:
        return _made(*_read_config(TINY_CONFIG))
    if name.endswith(".json"):
        config, preprocess = _read_config(Path(name))
        unknown = [key for key in preprocess if key not in _PREPROCESS_KEYS]
        if unknown:
            raise ModelError(
                f"preprocess_cfg in {name!r} must have keys among {', '.join(_PREPROCESS_KEYS)}, "
                f"got {', '.join(map(repr, unknown))}"
            )
        return _made(config, {} if legacy else preprocess)
    if _is_folder(name):
        if pretrained not in (None, _UNSAID):
            raise ModelError(
                f"{name} brings its own weights: model.pretrained must be null, got {pretrained!r}"
            )
        made = _made(*_read_config(_config_file(name)))
        return replace(made, preprocess=_as_before(made.preprocess)) if legacy else made
    return _registered(name, pretrained, legacy)


#: What specs of earlier versions say of weights where nothing was said.
_UNSAID = "fashion-mnist"
_PREPROCESS_KEYS = (
    "size",
    "mode",
    "mean",
    "std",
    "interpolation",
    "resize_mode",
    "fill_color",
)
_CONFIG_NAME = "open_clip_config.json"
_HUB, _FOLDER = "hf-hub:", "local-dir:"


def _is_folder(name: str) -> bool:
    """Whether a name stands for a folder that holds config and weights, here or on the hub."""
    return name.startswith((_HUB, _FOLDER))


def _made(config: Mapping[str, Any], preprocess: Mapping[str, Any], note: str = "") -> Made:
    # open_clip takes the size from the network that it has built.
    vision = config["vision_cfg"]
    size = vision.get("image_size", 224) if isinstance(vision, dict) else 224
    return Made(config, Preprocess.of({**preprocess, "size": size}), note)


def _as_before(preprocess: Preprocess) -> Preprocess:
    return replace(preprocess, interpolation="bicubic", resize_mode="shortest", fill_color=0)


def _registered(name: str, pretrained: str | None, legacy: bool) -> Made:
    """A model of open_clip's own list."""
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
        return _made(config, {})
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag:
        if not Path(pretrained).is_file():
            if Path(pretrained).suffix:
                raise ModelUnavailableError(f"no weights file at {pretrained!r}")
            known = open_clip.list_pretrained_tags_by_model(name)
            raise UnknownNameError(f"weights of {name}", pretrained, known)
        return _made(config, {}, "" if legacy else _note_on_file(name, config))
    if legacy:
        made = _made(config, tag)
        return replace(made, preprocess=_as_before(made.preprocess))
    # A tag that says nothing has the activation of its architecture.
    if tag.get("quick_gelu", config.get("quick_gelu", False)):
        config["quick_gelu"] = True
    elif config.get("quick_gelu"):
        raise ModelError(
            f"the weights {pretrained} were trained with GELU, and {name} is built with QuickGELU",
            hint="Name the architecture without -quickgelu.",
        )
    return _made(config, tag)


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
        f"{'; '.join(parts)}. A folder that holds the weights and {_CONFIG_NAME} says it by "
        f"itself: local-dir:FOLDER."
    )


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


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`model_cfg` and `preprocess_cfg` of an open_clip config; the former may stand alone."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
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


def _config_file(name: str) -> Path:
    """The config of a folder, or of a hub repository: fetched if need be."""
    if name.startswith(_FOLDER):
        return Path(name.removeprefix(_FOLDER)).expanduser() / _CONFIG_NAME
    _demand_hub(name, None)
    repository = name.removeprefix(_HUB)
    try:
        return Path(download_pretrained_from_hf(repository, filename=_CONFIG_NAME))
    except Exception as error:  # hub, network and file errors come as a dozen types
        raise _unavailable(name, None, error) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what open_clip tells the root logger to itself: the caller says it in its own words."""

    def not_open_clip(record: logging.LogRecord) -> bool:
        return "open_clip" not in Path(record.pathname).parts

    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)  # or its first words would set up a handler of their own
    root.addFilter(not_open_clip)
    try:
        with warnings.catch_warnings():
            # A tag that is silent about the activation has its architecture's.
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            yield
    finally:
        root.removeFilter(not_open_clip)
        root.removeHandler(silent)


@contextmanager
def _seeded(generator: torch.Generator | None) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        if generator is not None:
            torch.manual_seed(generator.initial_seed())
        yield


def _construct(made: Made, generator: torch.Generator | None) -> nn.Module:
    """The network that open_clip builds, with random weights."""
    described = {"model_cfg": dict(made.config), "preprocess_cfg": made.preprocess.described()}
    with tempfile.TemporaryDirectory() as folder, _seeded(generator), _quietly():
        (Path(folder) / _CONFIG_NAME).write_text(json.dumps(described), encoding="utf-8")
        try:
            net: nn.Module = open_clip.create_model(
                f"{_FOLDER}{folder}", load_weights=False, pretrained_text=False
            )
        except Exception as error:  # a config of any content: open_clip and timm raise what comes
            raise ModelError(f"open_clip cannot build this config: {reason_of(error)}") from error
    return net


def _from_folder(name: str, generator: torch.Generator | None) -> nn.Module:
    """The model in a folder, or in a hub repository."""
    if name.startswith(_HUB):
        try:
            download_pretrained_from_hf(name.removeprefix(_HUB))
        except Exception as error:  # hub, network and file errors come as a dozen types
            raise _unavailable(name, None, error) from error
    else:
        name = f"{_FOLDER}{Path(name.removeprefix(_FOLDER)).expanduser()}"
    with _seeded(generator), _quietly():
        try:
            net: nn.Module = open_clip.create_model(name, require_pretrained=True)
        except Exception as error:  # a damaged file makes decoders raise a dozen types
            raise ModelError(
                f"open_clip cannot load the model in {name}: {reason_of(error)}"
            ) from error
    return net


def _fetched(name: str, pretrained: str, tag: Mapping[str, Any]) -> Path:
    """The file of published weights, from the cache or the hub."""
    _demand_hub(name, pretrained)
    with _quietly():
        try:
            return Path(open_clip.download_pretrained(dict(tag)))
        except Exception as error:  # hub, network and file errors come as a dozen types
            raise _unavailable(name, pretrained, error) from error


def _load_published(net: nn.Module, path: Path, what: str) -> None:
    """Load weights by open_clip's own function, which knows the forms that they come in."""
    with _quietly():
        try:
            open_clip.load_checkpoint(net, str(path))
        except Exception as error:  # a damaged file makes decoders raise a dozen types
            raise ModelError(
                f"the {what} in {str(path)!r} cannot be loaded: {reason_of(error)}"
            ) from error


def _unavailable(name: str, pretrained: str | None, error: Exception) -> ModelUnavailableError:
    return ModelUnavailableError(
        f"the {_weights_of(name, pretrained)} are not on this machine and could not be "
        f"downloaded ({type(error).__name__}: {reason_of(error)}).",
        hint=_NO_WEIGHTS_HINT,
    )


def _tokenizer_of(name: str, made: Made) -> Callable[[], Tokenizer]:
    """Makes a model's tokenizer, by open_clip's own function where it knows the name."""
    text = made.config["text_cfg"]
    fetched = text.get("hf_tokenizer_name", "")
    listed = name in open_clip.list_models()

    def make() -> Tokenizer:
        try:
            if (fetched and (listed or _is_folder(name))) or (listed and "siglip" in name.lower()):
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


_NO_WEIGHTS_HINT = (
    "With a network they are fetched by themselves; without, copy the repository's files "
    "(open_clip_config.json and a .safetensors) into a folder and name it local-dir:FOLDER, with "
    "`pretrained: null`."
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
    if not repository or in_hub_cache(repository):
        return
    if getproxies() and not constants.HF_HUB_OFFLINE:
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
        Its classifier's tensors (`weights` (C, D), perhaps `bias` (C,)) and `model.json`, that of
        an earlier version as the present one writes it.

    Raises:
        CheckpointError: there is no finished model, or it is damaged.
    """
    checkpoint = folder / "checkpoint"
    try:
        description = json.loads((checkpoint / "model.json").read_text(encoding="utf-8"))
        tensors = load_file(checkpoint / "classifier.safetensors")
        if description["format"] == 1:
            description = _from_format_1(description)
        for key in ("config", "name", "pretrained", "activation", "preprocess"):
            description[key]
    except FileNotFoundError:
        raise CheckpointError(f"{str(folder)!r} holds no finished run") from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"the model in {str(folder)!r} is damaged: {error}") from None
    return tensors, description


def _from_format_1(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description without a preprocessing: what the version that wrote it did.

    Whatever its weights needed, the model was trained with the activation of its config, and on
    images that were resized to the shorter side by bicubic interpolation.
    """
    config, past = description["config"], dict(description)
    said = {"size": past.pop("image_size"), "mean": past.pop("mean"), "std": past.pop("std")}
    if config is None:  # of a hub model, whose own config was not kept; it was followed
        config = dict(resolve(description["name"], None).config)
    return {
        **past,
        "config": config,
        "activation": "quick_gelu" if config.get("quick_gelu") else "gelu",
        "preprocess": Preprocess.of(said).described(),
    }


def made_of(description: Mapping[str, Any]) -> Made:
    """How the model of a `model.json` is built.

    Raises:
        CheckpointError: what it says does not go together.
    """
    try:
        made = Made(description["config"], Preprocess.of(description["preprocess"]))
        activation, size = made.activation, _made(made.config, {}).preprocess.size
    except (ModelError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"the description of the model is damaged: {error}") from None
    if (activation, size) != (description["activation"], made.preprocess.size):
        raise CheckpointError(
            f"the model must be one of {description['activation']} and {made.preprocess.size} "
            f"pixels, its config is one of {activation} and {size} pixels"
        )
    return made


def load_finished(folder: Path) -> tuple[Clip, dict[str, Tensor], dict[str, Any]]:
    """The model of a finished run, built as it was when it was trained.

    Args:
        folder: the run's folder, which holds `checkpoint/model.json`.

    Returns:
        The model, its classifier's tensors (`weights` (C, D), perhaps `bias` (C,)) and
        `model.json`.

    Raises:
        CheckpointError: there is no finished model, or it is damaged.
    """
    tensors, description = read_finished(folder)
    made, name = made_of(description), description["name"]
    net = _construct(made, None)
    try:
        load_weights(net, folder / "checkpoint" / "model.safetensors")
    except ModelError as error:
        raise CheckpointError(f"the model in {str(folder)!r} is damaged: {error}") from None
    clip = Clip(
        net,
        _tokenizer_of(name, made),
        made=made,
        name=name,
        pretrained=description["pretrained"],
    )
    return clip, tensors, description


def outdated(name: str, pretrained: str | None, made: Made) -> str:
    """Say in what a model differs from what its name stands for today.

    Args:
        name: of the model, as its RunSpec has it.
        pretrained: as its RunSpec has it.
        made: how it was made.

    Returns:
        A sentence, of models that an earlier version made; empty where nothing differs, or where
        what the model started from is not here any more.
    """
    try:
        differs = differences(made, resolve(name, pretrained))
    except (ModelError, SpecError):
        return ""
    if not differs:
        return ""
    what = f"{name} with the weights {pretrained}" if pretrained else name
    return (
        f"This model was made by an earlier version of calift, otherwise than {what} is made "
        f"today: {differs}. It is gone on with and judged as it was made; train it anew for what "
        "the weights need."
    )


_NAMES = {"gelu": "GELU", "quick_gelu": "QuickGELU"}


def differences(one: Made, other: Made) -> str:
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
