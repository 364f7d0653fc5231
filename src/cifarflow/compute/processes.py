"""Several processes that train one network, each on its share of every batch (torchrun starts them).

A batch is cut into the same micro-batches however many processes there are; each computes some of them, and what they
found is added up. So the number of processes changes nothing but the order of additions.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of one training; alone unless torchrun started it."""

    rank: int = 0
    count: int = 1
    local_count: int = 1
    """How many of them share this machine."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes, tracks and talks."""
        return self.rank == 0

    def bounds(self, count: int) -> tuple[int, int]:
        """Start and end of this process' share of `count` things in order; shares differ by one at most."""
        return count * self.rank // self.count, count * (self.rank + 1) // self.count

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        start, end = self.bounds(len(items))
        return items[start:end]

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether one process at least says so: all get the same answer."""
        if self.count == 1:
            return flag
        return bool(self.add_up(torch.tensor(float(flag), device=device)))

    def agree(self, model: nn.Module) -> None:
        """Give every process the weights of the main one."""
        if self.count > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started, connected while the context is open; one alone without torchrun."""
    if "RANK" not in os.environ:
        yield Processes()
        return
    local_rank, local_count = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    # gloo carries CPU tensors, nccl those of GPUs; which of them a training needs is its params' choice.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend)
    try:
        yield Processes(rank=dist.get_rank(), count=dist.get_world_size(), local_count=local_count)
    finally:
        dist.destroy_process_group()


class Combination:
    """What the processes do apart in one step and add up at its end, in a single exchange.

    Gradients add up as they are. The running statistics of batch norm are moving averages over micro-batches in order:
    k micro-batches take r to keep**k * r + s, so each process tells its own s, weighted down by the micro-batches of
    the processes behind it, and the sum is what one process alone would have.
    """

    def __init__(self, processes: Processes, model: nn.Module, *, micro_batches: int) -> None:
        self._processes = processes
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._counters = [cast(Tensor, layer.num_batches_tracked) for layer in layers]
        self._statistics = [
            cast(Tensor, buffer) for layer in layers for buffer in (layer.running_mean, layer.running_var)
        ]
        self._keep = [1 - cast(float, layer.momentum) for layer in layers for _ in range(2)]
        self._before = [buffer.clone() for buffer in self._statistics]
        start, end = processes.bounds(micro_batches)
        self._own, self._later, self._all = end - start, micro_batches - end, micro_batches

    @torch.no_grad()
    def add_up(self, totals: Tensor) -> None:
        """Make gradients, running statistics and `totals` (float32 of any shape) those of the whole batch."""
        gradients = [cast(Tensor, parameter.grad) for parameter in self._parameters]
        found = [
            keep**self._later * (buffer - keep**self._own * before)
            for buffer, before, keep in zip(self._statistics, self._before, self._keep, strict=True)
        ]
        tensors = [*gradients, *found, totals]
        everything = self._processes.add_up(torch.cat([tensor.flatten().float() for tensor in tensors]))
        sums = [
            part.view_as(tensor)
            for part, tensor in zip(everything.split([t.numel() for t in tensors]), tensors, strict=True)
        ]
        for tensor, total in zip((*gradients, totals), (*sums[: len(gradients)], sums[-1]), strict=True):
            tensor.copy_(total)
        of_all = sums[len(gradients) : -1]
        for buffer, before, keep, total in zip(
            self._statistics, self._before, self._keep, of_all, strict=True
        ):
            buffer.copy_(keep**self._all * before + total)
        for counter in self._counters:
            counter += self._all - self._own
