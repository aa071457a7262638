"""Fine-tuning a few tensors of a model whose other weights stay: LoRA, or the last layers alone.

The low-rank terms are parametrisations of torch (`torch.nn.utils.parametrize`), not `peft`: its
wrapper of `nn.MultiheadAttention` adds the product to the packed matrix before each pass and
subtracts it afterwards, so that frozen weights drift by rounding, and it knows no projection that
is a bare parameter (`visual.proj`). Here what is frozen stays bit for bit, and whoever asks for a
matrix gets the adapted one.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from calift_core.errors import CheckpointError, ModelError
from calift_core.models.loading import weights_sha256

#: Projections that open_clip keeps as bare parameters of a tower.
_BARE = ("proj", "text_projection")


class LowRank(nn.Module):
    """W ↦ W + (α/r)·BA, with B = 0 at the start. Hu et al. 2022, section 4.1.

    Args:
        weight: W, (rows, columns).
        rank: r; never more than W has.
        generator: A is drawn from it, uniformly within ±1/√columns.
    """

    def __init__(
        self, weight: Tensor, *, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        rows, columns = weight.shape
        rank = min(rank, rows, columns)
        bound = 1 / math.sqrt(columns)
        down = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(weight.device))  # A
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))  # B
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted matrix, in the precision of W under autocast too."""
        with torch.autocast(weight.device.type, enabled=False):
            return torch.addmm(weight, self.up, self.down, alpha=self.scale)


class Adapter(nn.Module):
    """All that is trained of a model whose weights stay, and what merges it into them.

    Args:
        factors: low-rank terms, by the name of the matrix that each belongs to.
        weights: parameters that are trained as they are, by name.

    Attributes:
        frozen: the SHA-256 of the model at the start. A checkpoint holds the adapter alone, and is
            worth nothing with other weights below it.
    """

    frozen: Tensor

    def __init__(
        self, net: nn.Module, factors: Mapping[str, LowRank], weights: Mapping[str, nn.Parameter]
    ) -> None:
        super().__init__()
        digest = bytearray.fromhex(weights_sha256(net))
        self._net = [net]  # not a part of it: its weights are not trained
        self.factors = nn.ModuleDict({_key(name): factor for name, factor in factors.items()})
        self.weights = nn.ParameterDict({_key(name): p for name, p in weights.items()})
        self.register_buffer("frozen", torch.frombuffer(digest, dtype=torch.uint8).clone())
        net.requires_grad_(False)
        for name, factor in factors.items():
            module, leaf = _place(net, name)
            parametrize.register_parametrization(module, leaf, factor, unsafe=True)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Take a checkpoint's tensors.

        Raises:
            CheckpointError: it was made on another model.
        """
        before = state_dict.get("frozen")
        if before is not None and not torch.equal(before.cpu(), self.frozen.cpu()):
            raise CheckpointError(
                "the checkpoint holds an adapter of other weights than the model has today",
                hint="Bring back the weights that the run began with, or start it anew.",
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    @torch.no_grad()
    def merge(self) -> None:
        """Make the adapted matrices the model's own: names and shapes are as before it was made."""
        net = self._net[0]
        for key in self.factors:
            module, leaf = _place(net, _name(key))
            parametrize.remove_parametrizations(module, leaf, leave_parametrized=True)
        self.factors = nn.ModuleDict()


def low_rank(
    net: nn.Module, tower: nn.Module, *, rank: int, alpha: float, generator: torch.Generator
) -> dict[str, LowRank]:
    """A low-rank term for every linear map of a tower, attention's packed ones among them.

    Embeddings, convolutions, norms and biases have none.

    Raises:
        ModelError: there is no linear map.
    """
    inside = {id(module) for module in tower.modules()}
    factors = {
        name: LowRank(weight, rank=rank, alpha=alpha, generator=generator)
        for owner, module in net.named_modules()
        if id(module) in inside
        for name, weight in _linear_maps(owner, module)
    }
    if not factors:
        raise ModelError(
            "train.adapt: lora needs linear maps, and this tower has none",
            hint="Take train.adapt: full.",
        )
    return factors


def _linear_maps(owner: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a module's own matrices."""
    names: tuple[str, ...] = _BARE
    if isinstance(module, nn.Linear):
        names = ("weight",)
    elif isinstance(module, nn.MultiheadAttention):
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    for name in names:
        weight = module._parameters.get(name)
        if weight is not None and weight.ndim == 2:
            yield f"{owner}.{name}" if owner else name, weight


def parameter_of(net: nn.Module, tensor: Tensor) -> tuple[str, nn.Parameter]:
    """Name and parameter that a projection, transposed perhaps, is a view of."""
    return next(
        (name, p) for name, p in net.named_parameters() if p.data_ptr() == tensor.data_ptr()
    )


def plain_tensors(net: nn.Module, like: nn.Module) -> list[Tensor]:
    """The parameters of a model, adapted perhaps, by the names of one that is not."""
    return [getattr(*_place(net, name)) for name, _ in like.named_parameters()]


def _place(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return net.get_submodule(owner), leaf


def _key(name: str) -> str:
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
