"""Data-parallel training: each process computes its part of every batch, and all apply the gradient of the whole.

    torchrun --nproc-per-node=2 -m invdiff train prior=NAME

A process weighs its items' losses as the whole batch does, so that the gradients of the processes add up to the gradient of one
process, to rounding. The sum, the losses of the items, and whether a process failed or was interrupted travel in one flat
vector by one all-reduce, so that all stop at the same step, whichever of them has to. Process 0 writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import Parameter

from ..core.errors import ConfigError, InvdiffError

__all__ = ["Team", "processes"]

T = TypeVar("T")


@contextmanager
def processes(device: str) -> Iterator[str]:
    """Join the processes that torchrun started, if it did, and leave them at the end; yields the device of this process.

    They talk by NCCL where the device is a GPU, of which each process takes its own, and by gloo elsewhere.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"train: WORLD_SIZE is set, but not {', '.join(missing)}: start several processes by torchrun")
    cuda = torch.device(device).type == "cuda"
    if cuda and torch.device(device).index is None:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Team:
    """The processes of a run; one, where torch.distributed is not in use."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls, device: torch.device) -> Team:
        """The processes of the group that this one belongs to; they exchange tensors on the device."""
        alone = not (dist.is_available() and dist.is_initialized())
        return cls(device) if alone else cls(device, dist.get_rank(), dist.get_world_size())

    @property
    def writes(self) -> bool:
        """Whether this process writes the files and the bar."""
        return self.rank == 0

    def share(self, parameters: Sequence[Tensor]) -> None:
        """Give the others process 0's values."""
        if self.size > 1:
            for parameter in parameters:
                flat = parameter.detach().contiguous()
                dist.broadcast(flat, 0)
                parameter.detach().copy_(flat)

    def agree(self, value: int) -> bool:
        """Whether all processes say the same number."""
        if self.size == 1:
            return True
        ends = torch.tensor([value, -value], device=self.device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        return bool(ends.sum() == 0)

    def together(self, work: Callable[[], T]) -> T:
        """Do something that may fail in some processes: then all raise. Also a barrier."""
        if self.size == 1:
            return work()
        failure = None
        try:
            result = work()
        except BaseException as error:
            failure = error
        flags = _flags(failure, torch.zeros(0, device=self.device))
        dist.all_reduce(flags)
        _stop(failure, flags)
        return result

    def add(self, parameters: Sequence[Parameter], losses: Tensor, failure: BaseException | None) -> None:
        """Replace gradients and losses by their sums over the processes, or raise in all if one of them failed.

        Args:
            losses: (n,), of the items of the whole batch; zero where another process computes them.
            failure: what this process could not go on for.
        """
        if self.size == 1:
            if failure is not None:
                raise failure
            return
        nothing = failure is not None
        gradients = [torch.zeros_like(p) if nothing or p.grad is None else p.grad for p in parameters]
        own = torch.zeros_like(losses) if nothing else losses
        flat = torch.cat([*(g.flatten() for g in gradients), own, _flags(failure, own)])
        dist.all_reduce(flat)
        *sums, total, flags = flat.split([*(g.numel() for g in gradients), len(losses), 2])
        _stop(failure, flags)
        losses.copy_(total)
        for parameter, gradient, part in zip(parameters, gradients, sums, strict=True):
            parameter.grad = gradient.copy_(part.view(gradient.shape))


def _flags(failure: BaseException | None, like: Tensor) -> Tensor:
    interrupted = isinstance(failure, KeyboardInterrupt)
    return like.new_tensor([float(interrupted), float(failure is not None and not interrupted)])


def _stop(failure: BaseException | None, flags: Tensor) -> None:
    """Raise this process's own failure, or that of another."""
    if failure is not None:
        raise failure
    interrupted, failed = flags.tolist()
    if failed:
        raise InvdiffError("fit: another process failed: its own message says why")
    if interrupted:
        raise KeyboardInterrupt
