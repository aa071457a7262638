"""Processes that train one model together: which rows are whose, and how they are put together.

One process is one *rank*, on one GPU or on a share of the CPU's cores. Every rank makes the same
plan from the same spec, so all of them call these functions in the same order; a rank that calls
alone waits for the others. Ranks that are not there (`ALONE`) cost nothing: each function returns
what it was given.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

from calift_core.errors import InterruptedRunError, RankLostError, SpecError, reason_of

T = TypeVar("T")

#: A rank that died is seen at once; one that waits for another to load or to report is not dead.
_PATIENCE = timedelta(hours=12)
#: Gradients travel in pieces of about so many bytes: few calls, and little memory beside them.
_PIECE_BYTES = 25 * 2**20


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a run.

    Attributes:
        rank: its number, from 0; rank 0 alone writes what the run leaves.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Whether this rank writes and speaks for all."""
        return self.rank == 0

    def bounds(self, total: int, rank: int | None = None) -> tuple[int, int]:
        """First row, and the row after the last one, of a rank's share of `total` rows."""
        rank = self.rank if rank is None else rank
        return total * rank // self.world, total * (rank + 1) // self.world

    def share(self, rows: Sequence[Any] | NDArray[Any] | Tensor) -> Any:
        """This rank's part of a sequence, an array or a tensor: a slice of it.

        Raises:
            SpecError: there are fewer rows than ranks.
        """
        if len(rows) < self.world:
            raise SpecError(
                f"{len(rows)} images cannot be shared among {self.world} processes",
                hint="Lower resources.gpus (or resources.cpu_processes).",
            )
        start, stop = self.bounds(len(rows))
        return rows[start:stop]

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """The rows of all ranks, in the order of ranks; without gradient.

        Args:
            rows: this rank's share of `total` rows; on its device, or on the CPU.
        """
        if self.world == 1:
            return rows
        sizes = [stop - start for start, stop in (self.bounds(total, r) for r in range(self.world))]
        longest = max(sizes)
        mine = rows.detach().contiguous()
        if len(mine) < longest:
            mine = torch.cat([mine, mine.new_zeros(longest - len(mine), *mine.shape[1:])])
        parts = [torch.empty_like(mine) for _ in sizes]
        with _together():
            dist.all_gather(parts, mine)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def all_gather(self, value: T) -> list[T]:
        """The value that each rank has, in the order of ranks. Small things only."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        with _together():
            dist.all_gather_object(found, value)
        return found

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        if self.world == 1:
            return flag
        raised = torch.tensor([int(flag)])
        with _together():
            dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised)

    def wait(self) -> None:
        """Until all ranks are here."""
        self.any(False)

    def from_first(self, value: T) -> T:
        """What rank 0 has. Small things only."""
        if self.world == 1:
            return value
        box: list[Any] = [value]
        with _together():
            dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Let tensors be those of rank 0, in place."""
        if self.world == 1:
            return
        for tensor in tensors:
            with _together():
                dist.broadcast(tensor.data if tensor.requires_grad else tensor, src=0)

    @torch.no_grad()
    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Let each tensor be its sum over the ranks, in place; the same bits on all of them."""
        if self.world == 1:
            return
        for piece in _pieces(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in piece])
            with _together():
                dist.all_reduce(flat)
            at = 0
            for tensor in piece:
                tensor.copy_(flat[at : at + tensor.numel()].view(tensor.shape))
                at += tensor.numel()

    def stop_together(self, work: Callable[[], T]) -> T:
        """Do a share that may be stopped, and stop on all ranks if any was.

        Raises:
            InterruptedRunError: this rank or another was stopped.
        """
        result: T | None = None
        stopped: InterruptedRunError | None = None
        try:
            result = work()
        except InterruptedRunError as error:
            if self.world == 1:
                raise
            stopped = error
        self.agree(stopped)
        return result  # type: ignore[return-value]

    def agree(self, stopped: InterruptedRunError | None) -> None:
        """Wait for the shares of all ranks, and stop if any of them was stopped.

        Raises:
            InterruptedRunError: this rank or another was stopped.
        """
        if self.any(stopped is not None):
            raise stopped or InterruptedRunError("stopped, as another process of this run was")

    def device(self, device: torch.device) -> torch.device:
        """The device of this rank, where the spec names a kind of it.

        Raises:
            SpecError: this host has fewer GPUs than ranks, or the kind cannot be shared.
        """
        if self.world == 1 or device.type == "cpu":
            return device
        if device.type != "cuda":
            raise SpecError(
                f"a run on several processes needs CUDA devices or the CPU, got {device}"
            )
        if torch.cuda.device_count() < self.local_world:
            raise SpecError(
                f"this host has {torch.cuda.device_count()} GPUs that may be used, the run asks "
                f"for {self.local_world} here",
                hint="Lower resources.gpus, or look at CUDA_VISIBLE_DEVICES.",
            )
        mine = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(mine)
        return mine


#: One process that shares nothing.
ALONE = Ranks()


def _pieces(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one kind together, in their order, about `_PIECE_BYTES` at a time."""
    piece: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if piece and (tensor.dtype != piece[0].dtype or size >= _PIECE_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if piece:
        yield piece


@contextmanager
def _together() -> Iterator[None]:
    """What all ranks do at once."""
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's own
        raise RankLostError(f"another process of this run is gone: {reason_of(error)}") from None


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes that `torchrun` started, as its environment says; else be alone.

    Tensors on the CPU travel by gloo, those on GPUs by NCCL.

    Raises:
        RankLostError: the others are not there.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _together():
        dist.init_process_group(backend, timeout=_PATIENCE)
    yield Ranks(
        rank=int(os.environ["RANK"]),
        world=world,
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_world=int(os.environ["LOCAL_WORLD_SIZE"]),
    )
    dist.destroy_process_group()  # after an error it could wait for a rank that is gone
