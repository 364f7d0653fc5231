"""Which convolutions of a step are not done by the library alone: those that gain by one of our methods."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cifarflow.compute import taps, whole_maps, winograd
from cifarflow.compute.filter_gradients import convolve
from cifarflow.compute.sides import pair
from cifarflow.compute.winograd import Tiling

PRODUCTS_SAVED = 100
"""Per number combined at the two ends, from which on Winograd's method pays: measured on layers of this project, on a
processor with AVX2 (docs/experiments.md, 25 November 2026)."""
SMALL_MAP = 9
"""Pixels of a map of outputs, up to which filters gain by a gradient tap by tap, ..."""
WIDE_FILTERS = 128 * 128
"""... and the pairs of channels from which on: measured on a processor with AVX-512 (26 November 2026)."""


def by_winograd(images: Tensor, filters: Tensor, padding: int) -> Tensor | None:
    """Their convolution, or None where the library's is as fast."""
    if images.dtype != torch.float32 or not winograd_pays(images.shape, filters.shape, padding=padding):
        return None
    return winograd.convolve(images, filters, padding=padding)


def by_taps(images: Tensor, filters: Tensor, padding: int) -> Tensor | None:
    """Their convolution, or None where the library's is as fast."""
    if not taps_pay(images.shape, filters.shape, padding=padding):
        return None
    if padding == 1 and tuple(images.shape[2:]) == (whole_maps.SIDE, whole_maps.SIDE):
        return whole_maps.convolve(images, filters)
    return convolve(images, filters, padding=padding, filter_gradient=taps.filter_gradient)


def by_pairs(images: Tensor, filters: Tensor, padding: int) -> Tensor | None:
    """Their convolution, or None where the loops for pairs of bfloat16 numbers are not for it."""
    from cifarflow.compute.kernels import pairs  # here: other methods need not have what compiles them

    if tuple(images.shape[2:]) == (whole_maps.SIDE, whole_maps.SIDE):
        outputs = by_taps(images, filters, padding)
        if outputs is not None:
            return outputs
    if _dtype(images) != torch.bfloat16 or not pairs.can_sum(images, filters):
        return None
    return convolve(images, filters, padding=padding, filter_gradient=pairs.filter_gradient)


METHODS: dict[str, Callable[[Tensor, Tensor, int], Tensor | None]] = {
    "winograd": by_winograd,
    "taps": by_taps,
    "pairs": by_pairs,
}


def convolution_by(method: str) -> Callable[..., Tensor | None]:
    """`torch.conv2d` by one of METHODS; what it makes returns None for what the library does as fast."""
    convolve = METHODS[method]

    def convolution(*args: Any, **kwargs: Any) -> Tensor | None:
        operands = _plain(*args, **kwargs)
        return convolve(*operands) if operands is not None else None

    return convolution


def winograd_pays(images: Sequence[int], filters: Sequence[int], *, padding: int) -> bool:
    """Whether the products saved outweigh the numbers combined, for shapes `[N, C, H, W]` and `[D, C, 3, 3]`."""
    tiling = Tiling.of(images, filters, padding)
    width_out, width_in = filters[:2]
    saved = (9 * tiling.height * tiling.width - tiling.products) * width_in * width_out
    return saved >= PRODUCTS_SAVED * tiling.products * (width_in + width_out)


def taps_pay(images: Sequence[int], filters: Sequence[int], *, padding: int) -> bool:
    """Whether the maps are small and the filters many, for shapes `[N, C, H, W]` and `[D, C, 3, 3]`."""
    height, width = images[2] + 2 * padding - 2, images[3] + 2 * padding - 2
    return 0 < height * width <= SMALL_MAP and filters[0] * filters[1] >= WIDE_FILTERS


def _plain(  # noqa: PLR0913 - the arguments are torch.conv2d's
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, int] | None:
    """Images, filters and padding of a call of `torch.conv2d` that our methods can do, else None."""
    if bias is not None or groups != 1 or pair(stride) != (1, 1) or pair(dilation) != (1, 1):
        return None
    if input.device.type != "cpu" or input.dim() != 4 or not weight.requires_grad:
        return None
    if weight.shape[2:] != (3, 3) or isinstance(padding, str) or len(set(pair(padding))) != 1:
        return None
    return input, weight, pair(padding)[0]


def _dtype(images: Tensor) -> torch.dtype:
    """That a convolution has them in."""
    autocast = torch.is_autocast_enabled(images.device.type)
    return torch.get_autocast_dtype(images.device.type) if autocast else images.dtype
