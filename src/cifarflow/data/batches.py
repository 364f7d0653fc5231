"""The order of training pictures: batches of an epoch, and the cutting of a batch."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from cifarflow.data.randomness import generator


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """Which pictures each optimizer step sees, as a function of (seed, epoch, step) alone.

    Every picture comes once an epoch. The batches of an epoch are spread evenly (they differ by one picture at most),
    so no epoch ends in a tiny batch that batch normalisation cannot use.
    """

    count: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def batches(self, epoch: int) -> tuple[Tensor, ...]:
        """int64 index tensors, one a step of this epoch."""
        order = torch.randperm(self.count, generator=generator("shuffle", self.seed, epoch))
        return order.tensor_split(self.steps_per_epoch)


def even_slices(count: int, at_most: int) -> list[slice]:
    """Slices that cover `count` things in order, as few and as even as can be with `at_most` in each."""
    parts = math.ceil(count / at_most)
    bounds = [count * part // parts for part in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(bounds)]
