"""What follows a convolution, as one function, so that a step can have it as one operation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary


def batch_norm_gelu(input: Tensor, norm: nn.BatchNorm2d, shortcut: Tensor | None = None) -> Tensor:
    """GELU of the normalised `input` `[N, C, H, W]`, plus `shortcut` of that shape."""
    if has_torch_function_unary(input):  # as torch's own functions ask: a mode may have an operation for it
        return handle_torch_function(batch_norm_gelu, (input,), input, norm, shortcut)
    return one_by_one(input, norm, shortcut)


def one_by_one(input: Tensor, norm: nn.BatchNorm2d, shortcut: Tensor | None = None) -> Tensor:
    """The same by the library's operations."""
    normalised = norm(input)
    return F.gelu(normalised if shortcut is None else normalised + shortcut)
