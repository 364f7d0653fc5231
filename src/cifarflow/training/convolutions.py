"""Which convolutions of a step are done by Winograd's method in place of the library's: those that gain by it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cifarflow.training.winograd import Tiling, convolve

PRODUCTS_SAVED = 100
"""Per number combined at the two ends, from which on it pays: measured on layers of this project, on a processor with
AVX2 (docs/experiments.md, 25 November 2026)."""


class WinogradConvolutions(TorchFunctionMode):
    """While it is on, convolutions whose filters are trained are Winograd's where that is faster.

    Models need not know of it, and whoever evaluates or exports them, with no gradients, gets the library's.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and torch.is_grad_enabled():
            outputs = _faster(*args, **kwargs)
            if outputs is not None:
                return outputs
        return func(*args, **kwargs)


def pays(images: Sequence[int], filters: Sequence[int], *, padding: int) -> bool:
    """Whether the products saved outweigh the numbers combined, for shapes `[N, C, H, W]` and `[D, C, 3, 3]`."""
    tiling = Tiling.of(images, filters, padding)
    width_out, width_in = filters[:2]
    saved = (9 * tiling.height * tiling.width - tiling.products) * width_in * width_out
    return saved >= PRODUCTS_SAVED * tiling.products * (width_in + width_out)


def _faster(  # noqa: PLR0913 - the arguments are torch.conv2d's
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor | None:
    """`torch.conv2d` with these arguments, or None where the library's own is as fast or the method does not apply."""
    if bias is not None or groups != 1 or _pair(stride) != (1, 1) or _pair(dilation) != (1, 1):
        return None
    if input.dtype != torch.float32 or input.device.type != "cpu" or input.dim() != 4:
        return None
    if isinstance(padding, str) or len(set(_pair(padding))) != 1:
        return None
    pad = _pair(padding)[0]
    if (
        weight.shape[2:] != (3, 3)
        or not weight.requires_grad
        or not pays(input.shape, weight.shape, padding=pad)
    ):
        return None
    return convolve(input, weight, padding=pad)


def _pair(sides: int | Sequence[int]) -> tuple[int, ...]:
    return (sides, sides) if isinstance(sides, int) else tuple(sides)
