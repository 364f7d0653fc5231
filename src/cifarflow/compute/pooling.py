"""Max-pooling whose gradients are put in their places, where torch's own backward pass adds each to what is there.

Windows that do not overlap send at most one gradient to a pixel, so there is nothing to add, and the same bits come out
in half the time or less (docs/experiments.md, 27 November 2026).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from cifarflow.compute.sides import pair


def max_pool2d(  # noqa: PLR0913 - the arguments are those of torch.nn.functional.max_pool2d
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """`torch.nn.functional.max_pool2d`, or None for other windows and where the library is as fast."""
    window = pair(kernel_size)
    other = ceil_mode or return_indices or pair(padding) != (0, 0) or pair(dilation) != (1, 1)
    if other or (stride is not None and pair(stride) != window):
        return None
    if not _gains(input) or input.shape[2] < 2 * window[0] or input.shape[3] < 2 * window[1]:
        return None
    return cast(Tensor, _MaxPool.apply(input, window))


def _gains(images: Tensor) -> bool:
    return (
        images.device.type == "cpu"
        and images.requires_grad
        and images.dim() == 4
        and images.is_contiguous(memory_format=torch.channels_last)
        # torch refuses to unpool where it may not choose between equal places; here no two are equal.
        and not torch.are_deterministic_algorithms_enabled()
    )


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, window: tuple[int, int]) -> Tensor:
        outputs, places = torch.ops.aten.max_pool2d_with_indices(images, window)
        ctx.sides = images.shape[2:]
        ctx.save_for_backward(places)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        outputs = gradients[0].contiguous(memory_format=torch.channels_last)
        return torch.ops.aten.max_unpool2d(outputs, places, ctx.sides), None
