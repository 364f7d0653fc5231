"""Which operations of a step are not left to the library: those that gain by one of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cifarflow.compute.convolutions import METHODS, convolution_by
from cifarflow.compute.normalisation import batch_norm_of
from cifarflow.compute.pooling import max_pool2d

Own = Callable[..., Tensor | None]
"""Takes what the library's function takes; None where that is as fast."""


class OwnOperations(TorchFunctionMode):
    """While it is on, max-pooling and convolutions with trained filters are ours where that is faster.

    Models need not know of it, and whoever evaluates or exports them, with no gradients, gets the library's.
    `convolution` is one of METHODS; any other leaves convolutions to the library. A batch is of micro-batches of
    `sizes` pictures, one behind the other, and batch normalisation takes the statistics of each.
    """

    def __init__(self, convolution: str, *, sizes: Sequence[int] = ()) -> None:
        super().__init__()
        self.own: dict[Any, Own] = {F.max_pool2d: max_pool2d}
        if len(sizes) > 1:
            self.own[F.batch_norm] = batch_norm_of(sizes)
        if convolution in METHODS:
            self.own[torch.conv2d] = convolution_by(convolution)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        own = self.own.get(func) if torch.is_grad_enabled() else None
        outputs = own(*args, **kwargs) if own is not None else None
        return func(*args, **kwargs) if outputs is None else outputs
