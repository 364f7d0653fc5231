"""Convolutions on maps of 2x2 pixels as one matrix product: every output meets every input by one tap of the filter.

A padded 3x3 convolution there has 36 products for each pair of channels, 20 of them with the padding. One matrix
[4 D, 4 C], in which each entry is a tap, has the other 16, at the rate of a matrix product (docs/experiments.md,
27 November 2026).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

SIDE = 2
"""Pixels of the maps, in and out: 3x3 filters with a padding of 1."""
PLACES = [(row, column) for row in range(SIDE) for column in range(SIDE)]


def convolve(images: Tensor, filters: Tensor) -> Tensor:
    """`conv2d(images, filters, padding=1)` of `[N, C, 2, 2]`, channels last, and `[D, C, 3, 3]`, differentiable.

    Both have one dtype, or autocast is on and gives them one; gradients have that of what they are the gradient of.
    """
    if torch.is_autocast_enabled(images.device.type):
        images = images.to(torch.get_autocast_dtype(images.device.type))
    return cast(Tensor, _Convolution.apply(images, filters))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, filters: Tensor) -> Tensor:
        rows, matrix = _rows(images), _matrix(filters.to(images.dtype))
        ctx.save_for_backward(rows, matrix)
        return _maps(rows @ matrix.T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        rows, matrix = ctx.saved_tensors
        given = _rows(gradients[0])
        of_images = _maps(given @ matrix) if ctx.needs_input_grad[0] else None
        return of_images, _of_filters(given.T @ rows)


def _rows(maps: Tensor) -> Tensor:
    """`[N, C, 2, 2]` as `[N, 4 C]`: in the channels_last format a view."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1)


def _maps(rows: Tensor) -> Tensor:
    return rows.view(len(rows), SIDE, SIDE, -1).permute(0, 3, 1, 2)


def _matrix(filters: Tensor) -> Tensor:
    """`[D, C, 3, 3]` as `[4 D, 4 C]`: what each output pixel takes of each input pixel."""
    width_out, width_in = filters.shape[:2]
    matrix = filters.new_empty(SIDE, SIDE, width_out, SIDE, SIDE, width_in)
    for y, x in PLACES:
        for row, column in PLACES:
            matrix[y, x, :, row, column] = filters[:, :, row - y + 1, column - x + 1]
    return matrix.view(SIDE**2 * width_out, SIDE**2 * width_in)


def _of_filters(gradient: Tensor) -> Tensor:
    """The gradient of the filters, float32 `[D, C, 3, 3]`, from that of the matrix: of each tap all its entries'."""
    width_out, width_in = (size // SIDE**2 for size in gradient.shape)
    parts = gradient.view(SIDE, SIDE, width_out, SIDE, SIDE, width_in)
    taps = gradient.new_zeros(width_out, 3, 3, width_in, dtype=torch.float32)
    for y, x in PLACES:
        for row, column in PLACES:
            taps[:, row - y + 1, column - x + 1] += parts[y, x, :, row, column]
    return taps.permute(0, 3, 1, 2)
