"""GELU of Hendrycks and Gimpel, "Gaussian Error Linear Units" (arXiv:1606.08415), section 2."""

from __future__ import annotations

from typing import Any, cast

import torch
from numba import prange
from torch import Tensor

from cifarflow.compute.kernels.compiling import kernel
from cifarflow.compute.kernels.numbers import normal, number, stored
from cifarflow.compute.kernels.tensors import LAYOUT, empty_like, row, suits


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor | None:
    """`torch.nn.functional.gelu`, or None where the loops are not for it."""
    return cast(Tensor, _Gelu.apply(input)) if approximate == "none" and suits(input) else None


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        outputs = empty_like(inputs)
        outputs_of(row(inputs), row(outputs))
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (inputs,) = ctx.saved_tensors
        found = empty_like(inputs)
        gradients_of(row(gradients[0].contiguous(memory_format=LAYOUT)), row(inputs), row(found))
        return found


@kernel
def outputs_of(inputs: Any, outputs: Any) -> None:
    for i in prange(len(inputs)):
        value = number(inputs[i])
        outputs[i] = stored(value * normal(value)[0], inputs[i])


@kernel
def gradients_of(given: Any, inputs: Any, outputs: Any) -> None:
    for i in prange(len(inputs)):
        value = number(inputs[i])
        below, density = normal(value)
        outputs[i] = stored(number(given[i]) * (below + value * density), inputs[i])
