"""Convolutions by the library, but for the gradient of the filters, which another function gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

FilterGradient = Callable[..., Tensor]
"""Takes the images `[N, C, H, W]`, the gradient of the outputs `[N, D, H', W']`, both channels last and of one dtype,
the height and width of a filter, and `padding`; gives the gradient of the filters `[D, C, K, L]`, float32."""


def convolve(
    images: Tensor,
    filters: Tensor,
    *,
    padding: int,
    filter_gradient: FilterGradient,
) -> Tensor:
    """`torch.nn.functional.conv2d` of `[N, C, H, W]` and `[D, C, K, L]`, channels last, differentiable.

    Both have one dtype, or autocast is on and gives them one; gradients have that of what they are the gradient of.
    """
    if torch.is_autocast_enabled(images.device.type):
        images = images.to(torch.get_autocast_dtype(images.device.type))
    return cast(Tensor, _Convolution.apply(images, filters, padding, filter_gradient))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, filters: Tensor, padding: int, filter_gradient: FilterGradient
    ) -> Tensor:
        as_used = filters.to(images.dtype)
        ctx.padding, ctx.filter_gradient = padding, filter_gradient
        ctx.save_for_backward(images, as_used)
        return torch.conv2d(images, as_used, padding=padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, filters = ctx.saved_tensors
        outputs = gradients[0].contiguous(memory_format=torch.channels_last)
        of_images = None
        if ctx.needs_input_grad[0]:
            of_images = conv2d_input(list(images.shape), filters, outputs, padding=ctx.padding)
        of_filters = ctx.filter_gradient(images, outputs, filters.shape[2:], padding=ctx.padding)
        return of_images, of_filters, None, None
