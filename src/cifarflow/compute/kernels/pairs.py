"""The gradient of a convolution's filters, tap by tap, from pairs of pictures: bfloat16 numbers in, float32 sums out.

A processor's instruction for bfloat16 multiplies pairs of numbers. Here a pair are those of two pictures at one pixel
and channel, so whichever way a tap moves the pixels, the pairs stay the same. Some pictures at a time are brought into
that form, few enough for the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from cifarflow.compute.kernels.bf16_tiles import BYTES, LANES, ROWS, add_tile_of_2, add_tile_of_3
from cifarflow.compute.kernels.compiling import kernel, part
from cifarflow.compute.kernels.tensors import pixels, suits
from cifarflow.compute.taps import met

PIXELS = 256
"""A tile stays in the registers over the pixels of so many pairs of pictures, at least, ..."""
CACHED_BYTES = 1 << 19
"""... but for what would not stay in a processor's cache of 1 MiB."""


def can_sum(images: Tensor, filters: Tensor) -> bool:
    """Whether pictures `[N, C, H, W]` and filters `[D, C, K, L]` are what the loops are for."""
    return suits(images) and _outputs_are_left(*filters.shape[:2]) is not None


def filter_gradient(images: Tensor, outputs: Tensor, size: Sequence[int], *, padding: int) -> Tensor:
    """The gradient of filters, float32 `[D, C, K, L]` with K and L in `size`, from that of `outputs` `[N, D, H', W']`.

    Both are bfloat16, channels last.
    """
    outputs_are_left = _outputs_are_left(outputs.shape[1], images.shape[1])
    both = (outputs, images) if outputs_are_left else (images, outputs)
    left, right = pixels(both[0]), pixels(both[1])
    rows, columns = left.shape[3], right.shape[3]
    width = _columns_of_tile(columns)
    taps = _taps(tuple(images.shape[2:]), tuple(outputs.shape[2:]), tuple(size), padding)
    sums = np.empty((torch.get_num_threads(), len(taps), columns // width, rows, width), np.float32)
    gradient = torch.empty(rows, *size, columns)
    seen = gradient.numpy().reshape(rows, len(taps), columns)
    sum_products(
        left, right, taps if outputs_are_left else taps[:, [1, 0, 2]], _at_once(left, right), sums, seen
    )
    return gradient.permute(0, 3, 1, 2) if outputs_are_left else gradient.permute(3, 0, 1, 2)


def _outputs_are_left(width_out: int, width_in: int) -> bool | None:
    """Which side of the products has the rows of tiles; None if neither way tiles fill the matrix."""
    for outputs_are_left, (rows, columns) in ((True, (width_out, width_in)), (False, (width_in, width_out))):
        if rows % ROWS == 0 and _columns_of_tile(columns):
            return outputs_are_left
    return None


def _columns_of_tile(columns: int) -> int:
    """0 if tiles do not fill so many columns."""
    return next((LANES * vectors for vectors in (3, 2) if columns % (LANES * vectors) == 0), 0)


@lru_cache
def _taps(images: tuple[int, ...], outputs: tuple[int, ...], size: tuple[int, ...], padding: int) -> Any:
    """int64 `[taps, 3, 2]`: rows and columns of the first output and of the first input that meet, and of how many."""
    found = []
    for place in np.ndindex(*size):
        sides = [met(tap - padding, *lengths) for tap, *lengths in zip(place, images, outputs, strict=True)]
        found.append([(out.start, of_in.start, out.stop - out.start) for of_in, out in sides])
    return np.array(found).transpose(0, 2, 1)


def _at_once(left: Any, right: Any) -> int:
    """Pairs of pictures."""
    numbers = left[0].size + right[0].size
    smaller = min(left[0, :, :, 0].size, right[0, :, :, 0].size)
    return max(1, min(-(-PIXELS // smaller), CACHED_BYTES // (BYTES * numbers)))


@kernel
def sum_products(left: Any, right: Any, taps: Any, at_once: Any, sums: Any, total: Any) -> None:
    """For each tap the products of all rows with all columns: `total` `[rows, taps, columns]`, by way of `sums`."""
    each = 2 * ((len(left) + 2 * len(sums) - 1) // (2 * len(sums)))
    for one in prange(len(sums)):
        _sum(
            left[one * each : (one + 1) * each],
            right[one * each : (one + 1) * each],
            taps,
            at_once,
            sums[one],
        )
    width = sums.shape[4]
    for row in prange(len(total)):
        for tap in range(sums.shape[1]):
            for tile in range(sums.shape[2]):
                target = total[row, tap, tile * width : (tile + 1) * width]
                target[:] = sums[0, tap, tile, row]
                for one in range(1, len(sums)):
                    target += sums[one, tap, tile, row]


@part
def _sum(left: Any, right: Any, taps: Any, at_once: Any, sums: Any) -> None:
    sums[:] = 0
    lefts = np.empty((at_once, left.shape[1], left.shape[2], left.shape[3]), np.uint32)
    rights = np.empty((at_once, right.shape[1], right.shape[2], right.shape[3]), np.uint32)
    for first in range(0, len(left), 2 * at_once):
        pairs = min(at_once, (len(left) - first + 1) // 2)
        for one in range(pairs):
            _pair(left, first + 2 * one, lefts[one])
            _pair(right, first + 2 * one, rights[one])
        for tap in range(len(taps)):
            if taps[tap, 2].min() > 0:
                _add_tap(lefts, rights, pairs, taps[tap], sums[tap])


@part
def _pair(pictures: Any, first: Any, target: Any) -> None:
    """Two pictures as one of pairs; behind the last there is none, whose numbers are zeros."""
    low, pairs = pictures[first].reshape(-1), target.reshape(-1)
    if first + 1 < len(pictures):
        high = pictures[first + 1].reshape(-1)
        for at in range(len(pairs)):
            pairs[at] = np.uint32(low[at]) | (np.uint32(high[at]) << np.uint32(16))
    else:
        for at in range(len(pairs)):
            pairs[at] = np.uint32(low[at])


@part
def _add_tap(lefts: Any, rights: Any, pairs: Any, tap: Any, sums: Any) -> None:
    """`sums` `[tiles, rows, columns]`, a tile after the other, so that its right side stays in the nearest cache."""
    rows, columns, width = lefts.shape[3], rights.shape[3], sums.shape[2]
    of_pixels = tap[2, 1], BYTES * rows, BYTES * columns
    of_rows = tap[2, 0], of_pixels[1] * lefts.shape[2], of_pixels[2] * rights.shape[2]
    of_maps = pairs, of_rows[1] * lefts.shape[1], of_rows[2] * rights.shape[1]
    left = lefts.ctypes.data + tap[0, 0] * of_rows[1] + tap[0, 1] * of_pixels[1]
    right = rights.ctypes.data + tap[1, 0] * of_rows[2] + tap[1, 1] * of_pixels[2]
    for tile in range(len(sums)):
        for row in range(0, rows, ROWS):
            place = sums.ctypes.data + BYTES * width * (tile * rows + row)
            a, b = left + BYTES * row, right + BYTES * width * tile
            if width == 3 * LANES:
                add_tile_of_3(a, b, place, of_maps, of_rows, of_pixels)  # pyright: ignore[reportCallIssue]
            else:
                add_tile_of_2(a, b, place, of_maps, of_rows, of_pixels)  # pyright: ignore[reportCallIssue]
