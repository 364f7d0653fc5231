"""The gradient of a convolution's filters tap by tap, as one matrix product each: for maps of few pixels.

On a map of 2x2 pixels more than half of the products of a padded 3x3 convolution are with the padding. torch's library
leaves those out of the outputs and of the gradient of the pictures, where it reaches the rate of a matrix product or
more, and not out of the gradient of the filters, where it reaches a third of that (docs/experiments.md, 26 November
2026). Here each tap of the filters takes just the pixels that it meets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def filter_gradient(images: Tensor, outputs: Tensor, size: Sequence[int], *, padding: int) -> Tensor:
    """That of filters `[D, C, K, L]` with K and L in `size`, float32, from that of `outputs` `[N, D, H', W']`."""
    images, outputs = images.permute(0, 2, 3, 1), outputs.permute(0, 2, 3, 1)
    width_in, width_out = images.shape[3], outputs.shape[3]
    gradient = images.new_zeros(width_out, *size, width_in, dtype=torch.float32)
    for row in range(size[0]):
        rows_in, rows_out = met(row - padding, images.shape[1], outputs.shape[1])
        for column in range(size[1]):
            columns_in, columns_out = met(column - padding, images.shape[2], outputs.shape[2])
            inputs = images[:, rows_in, columns_in].reshape(-1, width_in)
            given = outputs[:, rows_out, columns_out].reshape(-1, width_out)
            gradient[:, row, column] = given.T @ inputs
    return gradient.permute(0, 3, 1, 2)


def met(offset: int, inputs: int, outputs: int) -> tuple[slice, slice]:
    """Along one side: the inputs that a tap meets, which lies `offset` beside each output, and those outputs."""
    first, end = max(0, -offset), min(outputs, inputs - offset)
    end = max(first, end)
    return slice(first + offset, end + offset), slice(first, end)
