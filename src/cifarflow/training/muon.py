"""Muon: momentum whose direction is made orthogonal before each step, for convolution filters.

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon,
2024); the use on flattened filters with normalised weights is that of github.com/KellerJordan/cifar10-airbench.
`torch.optim.Muon` takes matrices only, hence this class.
"""

# pyright: reportPrivateImportUsage=false
# (the `_foreach` operations are those that torch builds its own optimizers of)

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

QUINTIC_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Steepest at zero while singular values stay near 1 (Jordan et al. 2024)."""
NEWTON_SCHULZ_STEPS = 3
"""As in cifar10-airbench; the article takes five for language models."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised updates for parameters [out, in, height, width].

    A step turns the update into a near-orthogonal matrix [out, in * height * width], so `lr` is a length relative to
    filters of norm 1 and does not depend on the size of the loss. Before it each parameter is scaled to a mean filter
    norm of 1 (root mean square), which replaces weight decay under batch norm.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
    ) -> None:
        if lr < 0:
            raise ValueError(f"Muon: lr={lr} is negative")
        if not 0 <= momentum < 1:
            raise ValueError(f"Muon: momentum={momentum} is not in [0, 1)")
        super().__init__(params, {"lr": lr, "momentum": momentum})
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.ndim != 4:
                raise ValueError(f"Muon takes 4-D convolution filters, got shape {tuple(parameter.shape)}")
        self.move = move

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient; `closure` is as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if parameters := [one for one in group["params"] if one.grad is not None]:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        velocities = [self._velocity(parameter) for parameter in parameters]
        self.move(parameters, gradients, velocities, momentum=group["momentum"], rate=group["lr"])

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(cast(Tensor, parameter.grad))
        return state["momentum_buffer"]


def move(
    parameters: list[Tensor],
    gradients: list[Tensor],
    velocities: list[Tensor],
    *,
    momentum: float,
    rate: float | Tensor,
) -> None:
    """Take a step in place, with all filters at once: on a GPU the work for one is done sooner than asked for."""
    torch._foreach_mul_(velocities, momentum)
    torch._foreach_add_(velocities, gradients)
    ahead = torch._foreach_add(gradients, velocities, alpha=momentum)
    directions = orthogonalise([one.flatten(1) for one in ahead], steps=NEWTON_SCHULZ_STEPS)
    directions = [one.view(like.shape) for one, like in zip(directions, parameters, strict=True)]
    _normalise(parameters)
    if isinstance(rate, Tensor):  # on a GPU, where a recorded step reads it
        torch._foreach_sub_(parameters, torch._foreach_mul(directions, rate))
    else:
        torch._foreach_add_(parameters, directions, alpha=-rate)


def _normalise(parameters: list[Tensor]) -> None:
    """Scale each to a root mean square of 1 over the norms of its filters."""
    factors = torch._foreach_norm(parameters)
    torch._foreach_clamp_min_(factors, 1e-7)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, [len(parameter) ** 0.5 for parameter in parameters])
    torch._foreach_mul_(parameters, factors)


def orthogonalise(matrices: list[Tensor], *, steps: int, eps: float = 1e-7) -> list[Tensor]:
    """Move the singular values of each matrix [rows, columns] near 1 by Newton-Schulz iterations, in float32.

    A few steps leave them roughly within 0.5 and 1.5, which serves as well as an exact polar factor (Jordan et al.); so
    do products in bf16, which is what autocast makes of them.
    """
    wide = [(one.T if _is_tall(one) else one).float() for one in matrices]
    lengths = torch._foreach_norm(wide)
    torch._foreach_add_(lengths, eps)
    wide = list(torch._foreach_div(wide, lengths))
    found = (_moved_as_one if wide[0].is_cuda else _moved_by_size)(wide, steps=steps)
    return [
        (one.T if _is_tall(matrix) else one).to(matrix.dtype)
        for one, matrix in zip(found, matrices, strict=True)
    ]


def _is_tall(matrix: Tensor) -> bool:
    return matrix.shape[0] > matrix.shape[1]


def _moved_as_one(wide: list[Tensor], *, steps: int) -> list[Tensor]:
    """All matrices in one product after the other, with zeros around the smaller ones, which stay zeros.

    A GPU has such a product of all of them as soon as one of a single matrix, which leaves it idle.
    """
    rows, columns = max(len(one) for one in wide), max(one.shape[1] for one in wide)
    stack = torch.stack([F.pad(one, (0, columns - one.shape[1], 0, rows - len(one))) for one in wide])
    moved = _polar_factor(stack @ stack.mT, steps=steps) @ stack
    return [one[: len(like), : like.shape[1]] for one, like in zip(moved.unbind(), wide, strict=True)]


def _moved_by_size(wide: list[Tensor], *, steps: int) -> list[Tensor]:
    """Each matrix in products of its own, but for the square ones between: those of one size are worked on together."""
    grams = [one @ one.T for one in wide]
    moved = list(wide)
    for size in sorted({len(gram) for gram in grams}):
        chosen = [number for number, gram in enumerate(grams) if len(gram) == size]
        factors = _polar_factor(torch.stack([grams[number] for number in chosen]), steps=steps)
        for number, factor in zip(chosen, factors.unbind(), strict=True):
            moved[number] = factor @ wide[number]
    return moved


def _polar_factor(gram: Tensor, *, steps: int) -> Tensor:
    """For each g = x x^T what x must be multiplied with: [matrices, size, size], both.

    x becomes (a + b g + c g^2) x, again and again. All factors are polynomials of the first g, so they commute: the
    wide x is needed only before the first and after the last, and all between is square and small.
    """
    a, b, c = QUINTIC_COEFFICIENTS
    diagonal = torch.eye(gram.shape[1], dtype=torch.bool, device=gram.device)
    product = diagonal.to(gram.dtype).expand_as(gram)
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor = torch.where(diagonal, factor + a, factor)  # not in place: no compiler takes that here
        product = factor @ product if step else factor
        if step + 1 < steps:
            gram = factor @ (factor @ gram)
    return product
