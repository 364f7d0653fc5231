"""Batch norm, a shortcut and GELU as one differentiable operation, by the loops of `normalising.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from cifarflow.compute.kernels.normalising import follow, gradients_of, outputs_of
from cifarflow.compute.kernels.tensors import LAYOUT, empty_like, row, suits


def batch_norm_gelu(
    input: Tensor, norm: nn.BatchNorm2d, shortcut: Tensor | None = None, *, sizes: Sequence[int] = ()
) -> Tensor | None:
    """`activation.batch_norm_gelu`, or None where the loops are not for it.

    The batch is of micro-batches of `sizes` pictures, one behind the other, and each is normalised by statistics of its
    own, with the running statistics of one after the other. Raises RuntimeError if the sizes are not the batch's.
    """
    trains_weight = norm.weight is not None and norm.weight.requires_grad
    if not suits(input) or not norm.training or norm.momentum is None or trains_weight:
        return None
    if shortcut is not None and (shortcut.shape != input.shape or not suits(shortcut, input.dtype)):
        return None
    ends = [0, *accumulate(sizes or [len(input)])]
    if ends[-1] != len(input):
        raise RuntimeError(f"{len(input)} pictures do not split into micro-batches of {list(sizes)}")
    starts = np.array(ends) * math.prod(input.shape[2:])
    outputs, statistics = _Activation.apply(input, shortcut, norm.weight, norm.bias, norm.eps, starts)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if norm.running_mean is not None and norm.running_var is not None:
        running = norm.running_mean.numpy(), norm.running_var.numpy()
        follow(statistics.numpy(), starts, norm.momentum, *running)
    return cast(Tensor, outputs)


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - autograd passes them by place
        ctx: Any,
        inputs: Tensor,
        shortcut: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        starts: Any,
    ) -> tuple[Tensor, Tensor]:
        channels = inputs.shape[1]
        weight = torch.ones(channels) if weight is None else weight
        bias = torch.zeros(channels) if bias is None else bias
        outputs, slopes = empty_like(inputs), empty_like(inputs)
        statistics = torch.empty(3, len(starts) - 1, channels)
        added = row(inputs)[:0] if shortcut is None else row(shortcut)
        constants = weight.detach().numpy(), bias.detach().numpy(), starts, eps
        outputs_of(row(inputs), added, *constants, row(outputs), row(slopes), statistics.numpy())
        ctx.save_for_backward(inputs, slopes, weight, statistics)
        ctx.starts = starts
        ctx.mark_non_differentiable(statistics)
        return outputs, statistics

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, slopes, weight, statistics = ctx.saved_tensors
        of_shortcut = empty_like(inputs) if ctx.needs_input_grad[1] else None
        of_inputs, of_bias = empty_like(inputs), torch.empty_like(statistics[0])
        gradients_of(
            row(gradients[0].contiguous(memory_format=LAYOUT)),
            row(inputs),
            row(slopes),
            weight.detach().numpy(),
            ctx.starts,
            statistics.numpy(),
            row(inputs)[:0] if of_shortcut is None else row(of_shortcut),
            row(of_inputs),
            of_bias.numpy(),
        )
        of_whole_bias = of_bias.sum(0) if ctx.needs_input_grad[3] else None
        return of_inputs, of_shortcut, None, of_whole_bias, None, None
