"""Which operations of a step are not left to the library: those that gain by one of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cifarflow.compute.activation import batch_norm_gelu, one_by_one
from cifarflow.compute.convolutions import METHODS, convolution_by
from cifarflow.compute.normalisation import batch_norm_of

Own = Callable[..., Tensor | None]
"""Takes what the library's function takes; None where that is as fast."""


class OwnOperations(TorchFunctionMode):
    """While it is on, convolutions with trained filters and what stands between them are ours where that is faster.

    Models need not know of it, and whoever evaluates or exports them, with no gradients, gets the library's.
    `convolution` is one of METHODS; any other leaves convolutions to the library, and without `fused` so is all else. A
    batch is of micro-batches of `sizes` pictures, one behind the other, and batch normalisation takes the statistics of
    each.
    """

    def __init__(self, convolution: str, *, fused: bool = False, sizes: Sequence[int] = ()) -> None:
        super().__init__()
        self.own: dict[Any, Own] = {batch_norm_gelu: partial(self._by_own_operations, one_by_one)}
        if len(sizes) > 1:
            self.own[F.batch_norm] = batch_norm_of(sizes)
        if convolution in METHODS:
            self.own[torch.conv2d] = convolution_by(convolution)
        if fused:
            self._fuse(sizes)

    def _fuse(self, sizes: Sequence[int]) -> None:
        # Here: what compiles the loops need not be there for a GPU.
        from cifarflow.compute.kernels import batch_norm_gelu as fused
        from cifarflow.compute.kernels import gelu, pooling

        def activation(*operands: Any) -> Tensor:
            outputs = fused.batch_norm_gelu(*operands, sizes=sizes)
            return self._by_own_operations(one_by_one, *operands) if outputs is None else outputs

        self.own |= {batch_norm_gelu: activation, F.gelu: gelu.gelu, F.max_pool2d: pooling.max_pool2d}

    def _by_own_operations(self, function: Callable[..., Tensor], *operands: Any) -> Tensor:
        """What is of several operations, each of which may be ours: torch takes a mode out while it is asked."""
        with self:
            return function(*operands)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        own = self.own.get(func) if torch.is_grad_enabled() else None
        outputs = own(*args, **kwargs) if own is not None else None
        return func(*args, **kwargs) if outputs is None else outputs
