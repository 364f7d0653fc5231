"""Convolutions whose filters get their gradient tap by tap, as one matrix product each: for maps of few pixels.

On a map of 2x2 pixels more than half of the products of a padded 3x3 convolution are with the padding. torch's library
leaves those out of the outputs and of the gradient of the pictures, where it reaches the rate of a matrix product or
more, and not out of the gradient of the filters, where it reaches a third of that (docs/experiments.md, 26 November
2026). Here each tap of the filters takes just the pixels that it meets.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input


def convolve(images: Tensor, filters: Tensor, *, padding: int) -> Tensor:
    """`torch.nn.functional.conv2d` of `[N, C, H, W]` and `[D, C, K, L]`, channels last, differentiable.

    Both have one dtype, or autocast is on and gives them one; gradients have that of what they are the gradient of.
    """
    if torch.is_autocast_enabled(images.device.type):
        images = images.to(torch.get_autocast_dtype(images.device.type))
    return cast(Tensor, _Convolution.apply(images, filters, padding))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, filters: Tensor, padding: int) -> Tensor:
        as_used = filters.to(images.dtype)
        ctx.padding = padding
        ctx.save_for_backward(images, as_used)
        return torch.conv2d(images, as_used, padding=padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None]:
        images, filters = ctx.saved_tensors
        outputs = gradients[0].contiguous(memory_format=torch.channels_last)
        of_images = None
        if ctx.needs_input_grad[0]:
            of_images = conv2d_input(list(images.shape), filters, outputs, padding=ctx.padding)
        return of_images, _of_filters(images, outputs, filters, padding=ctx.padding), None


def _of_filters(images: Tensor, outputs: Tensor, filters: Tensor, *, padding: int) -> Tensor:
    """The gradient of `filters` `[D, C, K, L]`, float32, from that of `outputs` `[N, D, H', W']`."""
    width_out, width_in, height, width = filters.shape
    images, outputs = images.permute(0, 2, 3, 1), outputs.permute(0, 2, 3, 1)
    gradient = images.new_zeros(width_out, height, width, width_in, dtype=torch.float32)
    for row in range(height):
        rows_in, rows_out = _met(row - padding, images.shape[1], outputs.shape[1])
        for column in range(width):
            columns_in, columns_out = _met(column - padding, images.shape[2], outputs.shape[2])
            met = images[:, rows_in, columns_in].reshape(-1, width_in)
            given = outputs[:, rows_out, columns_out].reshape(-1, width_out)
            gradient[:, row, column] = given.T @ met
    return gradient.permute(0, 3, 1, 2)


def _met(offset: int, inputs: int, outputs: int) -> tuple[slice, slice]:
    """Along one side: the inputs that a tap meets, which lies `offset` beside each output, and those outputs."""
    first, end = max(0, -offset), min(outputs, inputs - offset)
    end = max(first, end)
    return slice(first + offset, end + offset), slice(first, end)
