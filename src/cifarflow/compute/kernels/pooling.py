"""Max-pooling over windows of 2x2, which remembers a place in 8 bits where the library takes 64.

Windows that do not overlap send one gradient or none to a pixel, so each is written once and nothing is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numba import prange
from torch import Tensor

from cifarflow.compute.kernels.compiling import kernel, part
from cifarflow.compute.kernels.numbers import number, stored
from cifarflow.compute.kernels.tensors import LAYOUT, pixels, suits
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
    """`torch.nn.functional.max_pool2d`, the same bits, or None for other windows and where the loops are not for it."""
    window = pair(kernel_size)
    other = ceil_mode or return_indices or pair(padding) != (0, 0) or pair(dilation) != (1, 1)
    if other or window != (2, 2) or (stride is not None and pair(stride) != window):
        return None
    return cast(Tensor, _Halving.apply(input)) if suits(input) and min(input.shape[2:]) >= 2 else None


class _Halving(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        count, channels, height, width = ctx.shape = images.shape
        sides = height // 2, width // 2
        outputs = torch.empty(count, channels, *sides, dtype=images.dtype, memory_format=LAYOUT)
        places = torch.empty(count, *sides, channels, dtype=torch.uint8)
        halve(pixels(images), pixels(outputs), places.numpy())
        ctx.save_for_backward(places)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (places,) = ctx.saved_tensors
        given = gradients[0].contiguous(memory_format=LAYOUT)
        found = torch.empty(ctx.shape, dtype=given.dtype, memory_format=LAYOUT)
        put_back(pixels(given), places.numpy(), pixels(found))
        return found


@kernel
def halve(maps: Any, outputs: Any, places: Any) -> None:
    """The largest of each 2x2 window, `[N, H, W, C]`, and which of the four it is; maps may have one row more."""
    for picture in prange(len(maps)):
        _halve(maps[picture], outputs[picture], places[picture])


@kernel
def put_back(given: Any, places: Any, outputs: Any) -> None:
    """Each number `[N, H, W, C]` to its place among the four of its window, and zeros to all others."""
    for picture in prange(len(given)):
        _put_back(given[picture], places[picture], outputs[picture])


@part
def _halve(maps: Any, outputs: Any, places: Any) -> None:
    for y in range(outputs.shape[0]):
        for x in range(outputs.shape[1]):
            a, b, c, d = (
                maps[2 * y, 2 * x],
                maps[2 * y, 2 * x + 1],
                maps[2 * y + 1, 2 * x],
                maps[2 * y + 1, 2 * x + 1],
            )
            target, place = outputs[y, x], places[y, x]
            for i in range(len(target)):
                largest, which = number(a[i]), np.uint8(0)
                largest, which = _larger(largest, which, number(b[i]), np.uint8(1))
                largest, which = _larger(largest, which, number(c[i]), np.uint8(2))
                largest, which = _larger(largest, which, number(d[i]), np.uint8(3))
                target[i], place[i] = stored(largest, a[i]), which


@part
def _larger(largest: Any, which: Any, other: Any, its: Any) -> Any:
    """As in torch: of equals the first, and what is not a number is larger than any."""
    is_larger = (other > largest) | (other != other)
    return (other if is_larger else largest), (its if is_larger else which)


@part
def _put_back(given: Any, places: Any, outputs: Any) -> None:
    height, width = given.shape[0], given.shape[1]
    outputs[2 * height :] = 0
    outputs[:, 2 * width :] = 0
    for y in range(height):
        for x in range(width):
            one, place = given[y, x], places[y, x]
            for which in range(4):
                target = outputs[2 * y + which // 2, 2 * x + which % 2]
                zero, its = stored(np.float32(0), one[0]), np.uint8(which)
                for i in range(len(one)):
                    target[i] = one[i] if place[i] == its else zero
