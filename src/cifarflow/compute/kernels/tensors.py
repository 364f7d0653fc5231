"""A step's maps as the compiled loops take them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float32)
LAYOUT = torch.channels_last


def suits(maps: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether they are a processor's `[N, C, H, W]`, channels last, of a dtype that the loops know (or that one)."""
    is_known = maps.dtype in DTYPES if dtype is None else maps.dtype == dtype
    return (
        is_known
        and maps.device.type == "cpu"
        and maps.dim() == 4
        and maps.is_contiguous(memory_format=LAYOUT)
    )


def empty_like(maps: Tensor) -> Tensor:
    return torch.empty_like(maps, memory_format=LAYOUT)


def pixels(maps: Tensor) -> Any:
    """numpy's `[N, H, W, C]` of the same memory; of bfloat16 the bits."""
    seen = maps.detach().permute(0, 2, 3, 1)
    return (seen.view(torch.uint16) if maps.dtype == torch.bfloat16 else seen).numpy()


def row(maps: Tensor) -> Any:
    """numpy's `[N H W C]` of the same memory; of bfloat16 the bits."""
    seen = maps.detach().permute(0, 2, 3, 1).view(-1)
    return (seen.view(torch.uint16) if maps.dtype == torch.bfloat16 else seen).numpy()
