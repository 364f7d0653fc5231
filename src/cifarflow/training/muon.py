"""Muon: momentum whose direction is made orthogonal before each step, for convolution filters.

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon,
2024); the use on flattened filters with normalised weights is that of github.com/KellerJordan/cifar10-airbench.
`torch.optim.Muon` takes matrices only, hence this class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

QUINTIC_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Steepest at zero while singular values stay near 1 (Jordan et al. 2024)."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised updates for parameters [out, in, height, width].

    A step turns the update into a near-orthogonal matrix [out, in * height * width], so `lr` is a length relative to
    filters of norm 1 and does not depend on the size of the loss. With `normalise_filters`, each parameter is first
    scaled to mean filter norm 1 (root mean square), which replaces weight decay under batch norm.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 0.24,
        momentum: float = 0.6,
        newton_schulz_steps: int = 3,
        normalise_filters: bool = True,
    ) -> None:
        if lr < 0:
            raise ValueError(f"Muon: lr={lr} is negative")
        if not 0 <= momentum < 1:
            raise ValueError(f"Muon: momentum={momentum} is not in [0, 1)")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "newton_schulz_steps": newton_schulz_steps,
            "normalise_filters": normalise_filters,
        }
        super().__init__(params, defaults)
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.ndim != 4:
                raise ValueError(f"Muon takes 4-D convolution filters, got shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient; `closure` is as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = cast(Tensor, parameter.grad)
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        velocity = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        ahead = gradient.add(velocity, alpha=group["momentum"])
        direction = orthogonalise(ahead.flatten(1), steps=group["newton_schulz_steps"])
        if group["normalise_filters"]:
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp_min(1e-7))
        if isinstance(rate := group["lr"], Tensor):  # on a GPU, where a recorded step reads it
            parameter.sub_(direction.view(parameter.shape) * rate)
        else:
            parameter.add_(direction.view(parameter.shape), alpha=-rate)


def orthogonalise(matrix: Tensor, *, steps: int, eps: float = 1e-7) -> Tensor:
    """Move the singular values of `matrix` [rows, columns] near 1 by Newton-Schulz iterations, in float32.

    A few steps leave them roughly within 0.5 and 1.5, which serves as well as an exact polar factor (Jordan et al.).
    """
    a, b, c = QUINTIC_COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).float()
    x = x / (x.norm() + eps)
    # x becomes (a + b g + c g^2) x with g = x x^T, again and again. All factors are polynomials of the first g, so they
    # commute: the wide x is needed only before the first and after the last, and all between is square and small.
    gram = x @ x.T
    product = torch.eye(len(x), dtype=x.dtype, device=x.device)
    for step in range(steps):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor @ product if step else factor
        if step + 1 < steps:
            gram = factor @ (factor @ gram)
    x = product @ x
    return (x.T if is_tall else x).to(matrix.dtype)
