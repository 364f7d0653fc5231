"""The loops of batch norm, a shortcut and GELU, forward and backward.

Numbers are a row of pixels with their channels last, of all pictures. One group of pixels, which has statistics of its
own, comes after the other, so that what one loop has read is in the cache for the next. A group is cut into parts for
the threads, always alike, so no result depends on their number. Inner loops take blocks of some pixels, to which what
there is of each channel is repeated: loops over few channels would cost more than they do. Batch norm is that of Ioffe
and Szegedy (arXiv:1502.03167), algorithm 1 and, backward, section 3.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from cifarflow.compute.kernels.compiling import kernel, part
from cifarflow.compute.kernels.numbers import normal, number, stored

BLOCK, PART = 512, 1 << 14
"""Numbers, at most (but a pixel at least)."""


@kernel
def outputs_of(  # noqa: PLR0913 - compiled code takes no structures
    inputs: Any,
    shortcut: Any,
    weight: Any,
    bias: Any,
    starts: Any,
    eps: Any,
    outputs: Any,
    slopes: Any,
    statistics: Any,
) -> None:
    """GELU of the normalised inputs plus the shortcut (or none, if that is empty), and its slopes there.

    Group g is of the pixels from `starts[g]` on to `starts[g + 1]`; of each, means, variances and one over the standard
    deviations go to `statistics` `[3, G, C]`.
    """
    channels = len(bias)
    line = np.empty((2, _whole_pixels(BLOCK, channels)), np.float32)
    for group in range(len(starts) - 1):
        cuts = _cuts(starts[group] * channels, starts[group + 1] * channels, channels)
        middle = inputs[cuts[0] : cuts[0] + channels]
        sums = np.empty((len(cuts) - 1, 2, channels), np.float32)
        for i in prange(len(sums)):
            _sum(inputs[cuts[i] : cuts[i + 1]], middle, sums[i])
        _weigh(sums, starts[group + 1] - starts[group], middle, eps, statistics[:, group])
        _set_line(statistics[:, group], weight, bias, line)
        for i in prange(len(sums)):
            first, last = cuts[i], cuts[i + 1]
            _activate(inputs[first:last], shortcut[first:last], line, outputs[first:last], slopes[first:last])


@kernel
def gradients_of(  # noqa: PLR0913
    given: Any,
    inputs: Any,
    slopes: Any,
    weight: Any,
    starts: Any,
    statistics: Any,
    of_shortcut: Any,
    of_inputs: Any,
    of_bias: Any,
) -> None:
    """Of the shortcut (or not, if that is empty), of the inputs, and of the bias by groups, `[G, C]`."""
    channels = len(weight)
    line = np.empty((3, _whole_pixels(BLOCK, channels)), np.float32)
    for group in range(len(starts) - 1):
        cuts = _cuts(starts[group] * channels, starts[group + 1] * channels, channels)
        middle = inputs[cuts[0] : cuts[0] + channels]
        sums = np.empty((len(cuts) - 1, 2, channels), np.float32)
        for i in prange(len(sums)):
            first, last = cuts[i], cuts[i + 1]
            _sum_gradients(
                given[first:last],
                inputs[first:last],
                slopes[first:last],
                middle,
                of_shortcut[first:last],
                sums[i],
            )
        total = _total(sums)
        of_bias[group] = total[0]
        total /= starts[group + 1] - starts[group]
        _set_gradient_line(total, middle, weight, statistics[:, group], line)
        for i in prange(len(sums)):
            first, last = cuts[i], cuts[i + 1]
            _combine(given[first:last], inputs[first:last], slopes[first:last], line, of_inputs[first:last])


@kernel
def follow(statistics: Any, starts: Any, momentum: Any, running_mean: Any, running_variance: Any) -> None:
    """Move the running statistics `[C]` towards those of one group after the other: of a variance the unbiased one."""
    for channel in prange(len(running_mean)):
        for group in range(len(starts) - 1):
            pixels = starts[group + 1] - starts[group]
            mean = statistics[0, group, channel]
            variance = statistics[1, group, channel] * pixels / max(1, pixels - 1)
            running_mean[channel] += momentum * (mean - running_mean[channel])
            running_variance[channel] += momentum * (variance - running_variance[channel])


@part
def _whole_pixels(numbers: Any, channels: Any) -> Any:
    """As many of so many numbers as make whole pixels, or one."""
    return max(1, numbers // channels) * channels


@part
def _cuts(first: Any, last: Any, channels: Any) -> Any:
    """Where a group's numbers are cut into parts, with both ends."""
    length = _whole_pixels(PART, channels)
    cuts = np.arange(first, last + length, length)
    cuts[-1] = last
    return cuts


@part
def _sum(numbers: Any, middle: Any, sums: Any) -> None:
    """Of each channel the numbers less its middle, and their squares: `[2, C]`.

    The middle is the group's first pixel, so that a mean far from zero takes no digits from the variance.
    """
    middles = _repeated(middle)
    total, squares = np.zeros_like(middles), np.zeros_like(middles)
    for start in range(0, len(numbers), len(middles)):
        row = numbers[start : start + len(middles)]
        for i in range(len(row)):
            value = number(row[i]) - middles[i]
            total[i] += value
            squares[i] += value * value
    _fold(total, sums[0])
    _fold(squares, sums[1])


@part
def _weigh(sums: Any, pixels: Any, middle: Any, eps: Any, statistics: Any) -> None:
    """Mean, variance and one over the standard deviation of each channel."""
    means = _total(sums) / pixels
    for channel in range(len(middle)):
        variance = max(0.0, means[1, channel] - means[0, channel] ** 2)
        statistics[0, channel] = means[0, channel] + number(middle[channel])
        statistics[1, channel] = variance
        statistics[2, channel] = 1 / math.sqrt(variance + eps)


@part
def _set_line(statistics: Any, weight: Any, bias: Any, line: Any) -> None:
    """What normalisation takes a number times, and what it adds."""
    for i in range(line.shape[1]):
        channel = i % len(bias)
        line[0, i] = statistics[2, channel] * weight[channel]
        line[1, i] = bias[channel] - statistics[0, channel] * line[0, i]


@part
def _activate(numbers: Any, shortcut: Any, line: Any, outputs: Any, slopes: Any) -> None:
    scale, shift, sums = line[0], line[1], np.empty(line.shape[1], np.float32)
    for start in range(0, len(numbers), len(scale)):
        end = start + len(scale)
        row, target, slope = numbers[start:end], outputs[start:end], slopes[start:end]
        for i in range(len(row)):
            sums[i] = number(row[i]) * scale[i] + shift[i]
        if len(shortcut):
            added = shortcut[start:end]
            for i in range(len(row)):
                sums[i] += number(added[i])
        for i in range(len(row)):
            below, density = normal(sums[i])
            target[i] = stored(sums[i] * below, row[i])
            slope[i] = stored(below + sums[i] * density, row[i])


@part
def _sum_gradients(given: Any, numbers: Any, slopes: Any, middle: Any, of_shortcut: Any, sums: Any) -> None:
    """The gradient of what GELU was taken of; of each channel its sum, and that of it times the inputs: `[2, C]`.

    Inputs are taken less their middle, as in `_sum`.
    """
    middles = _repeated(middle)
    total, products, found = np.zeros_like(middles), np.zeros_like(middles), np.empty_like(middles)
    for start in range(0, len(numbers), len(middles)):
        end = start + len(middles)
        row, one, slope = numbers[start:end], given[start:end], slopes[start:end]
        for i in range(len(row)):
            found[i] = number(one[i]) * number(slope[i])
            total[i] += found[i]
        for i in range(len(row)):
            products[i] += found[i] * (number(row[i]) - middles[i])
        if len(of_shortcut):
            target = of_shortcut[start:end]
            for i in range(len(row)):
                target[i] = stored(found[i], row[i])
    _fold(total, sums[0])
    _fold(products, sums[1])


@part
def _set_gradient_line(means: Any, middle: Any, weight: Any, statistics: Any, line: Any) -> None:
    """What `_combine` takes a gradient times, what it takes its input times, and what it adds."""
    for i in range(line.shape[1]):
        channel = i % len(middle)
        mean, spread = statistics[0, channel], statistics[2, channel]
        # The mean of the gradient times the normalised inputs.
        product = spread * (means[1, channel] - (mean - number(middle[channel])) * means[0, channel])
        line[0, i] = spread * weight[channel]
        line[1, i] = -line[0, i] * spread * product
        line[2, i] = -line[0, i] * means[0, channel] - line[1, i] * mean


@part
def _combine(given: Any, numbers: Any, slopes: Any, line: Any, outputs: Any) -> None:
    """The gradient of the inputs: directly, and by way of the mean and the variance that they are a part of."""
    scale, inclination, shift = line[0], line[1], line[2]
    for start in range(0, len(numbers), len(scale)):
        end = start + len(scale)
        row, one, slope, target = numbers[start:end], given[start:end], slopes[start:end], outputs[start:end]
        for i in range(len(row)):
            through = number(one[i]) * number(slope[i]) * scale[i]
            target[i] = stored(through + number(row[i]) * inclination[i] + shift[i], row[i])


@part
def _repeated(pixel: Any) -> Any:
    """A pixel again and again, to a block."""
    block = np.empty(_whole_pixels(BLOCK, len(pixel)), np.float32)
    for start in range(0, len(block), len(pixel)):
        for i in range(len(pixel)):
            block[start + i] = number(pixel[i])
    return block


@part
def _fold(block: Any, channels: Any) -> None:
    """Add up what a block has of each channel."""
    channels[:] = 0
    for start in range(0, len(block), len(channels)):
        pixel = block[start : start + len(channels)]
        for i in range(len(channels)):
            channels[i] += pixel[i]


@part
def _total(sums: Any) -> Any:
    """Over all parts: float64 `[2, C]`."""
    total = np.zeros(sums.shape[1:], np.float64)
    for i in range(len(sums)):
        for which in range(2):
            of_part, of_all = sums[i, which], total[which]
            for channel in range(len(of_all)):
                of_all[channel] += of_part[channel]
    return total
