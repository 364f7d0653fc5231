"""Batch normalisation of several micro-batches that go through a network together, each by statistics of its own.

Ghost batch normalisation of Hoffer, Hubara and Soudry, "Train longer, generalize better" (arXiv:1705.08741, algorithm
1), with the running statistics of one micro-batch after the other. All else of a network treats every picture alone, so
convolutions get large batches, which they do faster, and the result is that of small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor


def batch_norm_of(sizes: Sequence[int]) -> Callable[..., Tensor | None]:
    """`torch.nn.functional.batch_norm` of micro-batches of so many pictures, one behind the other in a batch."""

    def batch_norm(  # noqa: PLR0913 - the arguments are those of torch.nn.functional.batch_norm
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        """None where no statistics are taken: then all micro-batches have the same."""
        if not training:
            return None
        running = running_mean, running_var
        return cast(Tensor, _BatchNorm.apply(input, weight, bias, running, (momentum, eps), sizes))

    return batch_norm


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - autograd passes them by place
        ctx: Any,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor | None, Tensor | None],
        numbers: tuple[float, float],
        sizes: Sequence[int],
    ) -> Tensor:
        outputs = torch.empty_like(inputs)
        ctx.sizes, (momentum, ctx.eps) = sizes, numbers
        statistics: list[Tensor] = []
        for part, target in zip(inputs.split(sizes), outputs.split(sizes), strict=True):
            own = torch.empty(2, inputs.shape[1]).unbind()  # mean, and one over the standard deviation
            arguments = (part, weight, bias, *running, True, momentum, ctx.eps)
            torch.ops.aten.native_batch_norm.out(*arguments, out=target, save_mean=own[0], save_invstd=own[1])
            statistics += own
        ctx.save_for_backward(inputs, weight, *statistics)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, *statistics = ctx.saved_tensors
        asked = ctx.needs_input_grad[:3]
        of_inputs = torch.empty_like(inputs)
        of_weights: list[tuple[Tensor | None, Tensor | None]] = []
        parts = (tensor.split(ctx.sizes) for tensor in (gradients[0], inputs, of_inputs))
        for given, part, target, mean, spread in zip(*parts, statistics[::2], statistics[1::2], strict=True):
            found, *rest = torch.ops.aten.native_batch_norm_backward(
                given, part, weight, None, None, mean, spread, True, ctx.eps, asked
            )
            if asked[0]:
                target.copy_(found)
            of_weights.append((rest[0], rest[1]))
        totals = (
            sum(cast(list[Tensor], column)) if is_asked else None
            for column, is_asked in zip(zip(*of_weights, strict=True), asked[1:], strict=True)
        )
        return (of_inputs if asked[0] else None, *totals, None, None, None)  # pyright: ignore[reportReturnType]
