"""A CLIP-like model: two towers, how it was made, and how it encodes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calift_core.data.preprocess import Preprocess
from calift_core.errors import ModelError, reason_of
from calift_core.errors import UnsupportedTowerError as Unsupported
from calift_core.models.projections import find_image_projection, find_text_projection

Tokenizer = Callable[[Sequence[str]], Tensor]
Activation = Literal["gelu", "quick_gelu"]


@dataclass(frozen=True)
class ModelConfig:
    """What decides a model's outputs beside its weights.

    Attributes:
        config: open_clip's `model_cfg`, enough to build the architecture again.
        note: a sentence for people where the weights do not say all of it, else empty.
    """

    config: Mapping[str, Any]
    preprocess: Preprocess
    note: str = field(default="", compare=False)

    @property
    def activation(self) -> Activation:
        """The activation in towers that open_clip builds itself; a timm tower has its own."""
        return "quick_gelu" if self.config.get("quick_gelu") else "gelu"

    def described(self) -> dict[str, Any]:
        """As JSON, for checkpoints and reports."""
        return {"activation": self.activation, "preprocess": self.preprocess.described()}


class Clip(nn.Module):
    """An image tower, a text tower and a logit scale.

    Args:
        tokenizer: makes the tokenizer when it is first asked for: a finished model is evaluated
            without one, and that of some models has to be fetched.
        made: how the network is built and what its images go through.
    """

    def __init__(
        self,
        net: nn.Module,
        tokenizer: Callable[[], Tokenizer],
        *,
        model_config: ModelConfig,
        name: str,
        pretrained: str | None,
    ) -> None:
        super().__init__()
        self.net: Any = net
        self._make_tokenizer = tokenizer
        self.model_config = model_config
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
            model_config=self.model_config,
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
        return self.model_config.config

    @property
    def preprocess(self) -> Preprocess:
        """How images become the model's input."""
        return self.model_config.preprocess

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

    def checkpoint_activations(self) -> None:
        """Let both towers forget their activations and compute them again in the backward pass.

        Raises:
            ModelError: the image tower knows no such thing (a ModifiedResNet).
        """
        if self.is_convolutional and not hasattr(self.net.visual, "trunk"):
            raise ModelError(
                f"{self.name} has a ModifiedResNet, whose activations cannot be computed again",
                hint="Set train.activation_checkpointing to false; train.accumulation_steps saves "
                "memory too.",
            )
        self.net.set_grad_checkpointing(True)

    def compile_towers(self, *, backend: str = "inductor") -> None:
        """Compile both towers in place: names and values of the weights stay as they are.

        Copies made later are compiled as well. The work is done when a tower is first run.

        Args:
            backend: of `torch.compile`.

        Raises:
            ModelError: nothing can be compiled on this machine.
        """
        _require_compiler(self.net.logit_scale.device, backend)
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

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """What the text tower makes of token ids before anything else: (…, width).

        Raises:
            UnsupportedTowerError: the tower is none of open_clip's causal ones.
        """
        self._require_causal()
        found: Tensor = self.net.token_embedding(tokens)
        return found.detach()

    def encode_words(self, words: Tensor, tokens: Tensor) -> Tensor:
        """`encode_text` of vectors in the place of tokens, through which gradients flow.

        Args:
            words: (B, L, width), of `embed_tokens` or learned.
            tokens: (B, L), where each text ends: the highest id.

        Returns:
            (B, D), L2-normalised, float32.

        Raises:
            UnsupportedTowerError: the tower is none of open_clip's causal ones.
        """
        self._require_causal()
        features = _encode_words(self.net, words.to(self.net.transformer.get_cast_dtype()), tokens)
        return F.normalize(features.float(), dim=-1)

    def _require_causal(self) -> None:
        if not _is_causal(self.net):
            raise Unsupported(
                f"the text tower of {self.name} takes no vectors in the place of words: it is not "
                "one of open_clip's causal ones that end at the end token"
            )

    def image_projection(self) -> Tensor:
        """W_v, the last linear map of the image tower, oriented so that features = h @ W_v.

        Returns:
            (width, D), so that the Gram W_vᵀW_v is (D, D) for every kind of tower.

        Raises:
            UnsupportedTowerError: the tower ends in something else than a linear map.
        """
        return find_image_projection(self.net.visual)

    def text_projection(self) -> Tensor:
        """W_t, the last linear map of the text tower: (width, D).

        Raises:
            UnsupportedTowerError: the tower ends in something else than a linear map.
        """
        return find_text_projection(self.net)


def _is_convolutional(net: Any) -> bool:
    """Whether the image tower is made of convolutions, beyond the one that cuts patches."""
    return sum(isinstance(m, nn.Conv2d) for m in net.visual.modules()) > 1


def _require_compiler(device: torch.device, backend: str) -> None:
    """Compile something small."""
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


def _is_causal(net: nn.Module) -> bool:
    """Whether what stands behind a text's end token cannot reach it, and is not looked at."""
    if not isinstance(net, open_clip.CLIP) or getattr(net, "attn_mask", None) is None:
        return False
    return bool(net.text_pool_type == "argmax")


def _longest_caption(net: nn.Module, tokens: Tensor) -> int | None:
    """Tokens needed for the longest caption, or None where the tower must see the full context."""
    if not _is_causal(net):
        return None
    return int(tokens.argmax(dim=-1).max()) + 1


def _encode_text_short(net: Any, tokens: Tensor) -> Tensor:
    """`open_clip.CLIP.encode_text` for fewer positions than the context length."""
    words: Tensor = net.token_embedding(tokens).to(net.transformer.get_cast_dtype())
    return _encode_words(net, words, tokens)


def _encode_words(net: Any, words: Tensor, tokens: Tensor) -> Tensor:
    """The same from embedded tokens (B, L, width) on."""
    length, dtype = tokens.shape[1], words.dtype
    x: Tensor = words + net.positional_embedding[:length].to(dtype)
    x = net.ln_final(net.transformer(x, attn_mask=net.attn_mask[:length, :length]))
    x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]  # (B, width)
    projection = net.text_projection
    if projection is not None:
        x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    return x
