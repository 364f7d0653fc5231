"""Numbers as tensors store them, and the normal distribution, for compiled loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

from cifarflow.compute.kernels.compiling import part

BFLOAT16 = types.uint16  # its bits: numpy has no name for it
FACTOR_OF_E = np.float32(1 / math.log(2))
ROOT_HALF = np.float32(math.sqrt(0.5))
PEAK = np.float32(1 / math.sqrt(2 * math.pi))
HALF, ONE = np.float32(0.5), np.float32(1)
FARTHEST = np.float32(-87)  # e to that power is about the smallest that float32 holds in full


def number(stored: Any) -> Any:
    """float32 of a number as it is stored: float32, or bfloat16 as its 16 bits."""


def stored(value: Any, like: Any) -> Any:
    """A float32 as that number is stored: the nearest, of two equally near the larger one."""


@overload(number, strict=False)
def _number(stored: Any) -> Callable[..., Any]:
    if stored == BFLOAT16:
        return lambda stored: np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)
    return lambda stored: stored


@overload(stored, strict=False)
def _stored(value: Any, like: Any) -> Callable[..., Any]:
    if like != BFLOAT16:
        return lambda value, like: value

    def rounded(value: Any, like: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        return np.uint16((bits + np.uint32(0x8000)) >> np.uint32(16))

    return rounded


@part
def normal(value: Any) -> Any:
    """The standard normal distribution's part below a value, and its density there, with errors below 3e-7.

    Abramowitz and Stegun, "Handbook of Mathematical Functions" (1964), formula 7.1.26.
    """
    bell = _exponential(max(FARTHEST, -HALF * value * value))
    near = ONE / (ONE + np.float32(0.3275911) * (abs(value) * ROOT_HALF))
    series = np.float32(1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = series * near + np.float32(coefficient)
    tail = HALF * series * near * bell
    return (tail if value < 0 else ONE - tail), bell * PEAK


@part
def _exponential(power: Any) -> Any:
    """e to a power of -87 to 0: 2 to a whole power by its bits, the rest by a polynomial."""
    twos = power * FACTOR_OF_E
    whole = np.int32(twos - HALF)
    rest = twos - np.float32(whole)
    series = np.float32(1.3333558e-3)
    for coefficient in (9.6181291e-3, 5.5504109e-2, 0.24022651, 0.69314718, 1.0):
        series = series * rest + np.float32(coefficient)
    return series * np.int32((whole + np.int32(127)) << np.int32(23)).view(np.float32)
