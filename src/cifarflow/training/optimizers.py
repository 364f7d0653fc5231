"""Optimizers by name, and the one rule that sorts a network's parameters for those that treat them differently.

Each group carries `peak_lr`, which the schedule multiplies, and may carry `trained_until`, the progress in (0, 1] at
which its schedule ends and its parameters are frozen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cifarflow.registry import Registry
from cifarflow.training.muon import Muon

OptimizerBuilder = Callable[..., list[torch.optim.Optimizer]]
OPTIMIZERS: Registry[OptimizerBuilder] = Registry("optimizer")


def build_optimizers(name: str, model: nn.Module, **options: Any) -> list[torch.optim.Optimizer]:
    """The optimizers that together train every parameter of `model` that asks for gradients."""
    return OPTIMIZERS.get(name, where="params.yaml: train.optimizer.name")(model, **options)


@OPTIMIZERS.register("sgd")
def sgd(
    model: nn.Module, *, learning_rate: float, momentum: float, nesterov: bool, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Stochastic gradient descent with momentum; nesterov only has a meaning with momentum."""
    group = {"params": _trained(model), "peak_lr": learning_rate}
    return [
        torch.optim.SGD(
            [group],
            lr=learning_rate,
            momentum=momentum,
            nesterov=nesterov and momentum > 0,
            weight_decay=weight_decay,
            fused=_on_gpu(model),
        )
    ]


@OPTIMIZERS.register("adamw")
def adamw(
    model: nn.Module, *, learning_rate: float, beta1: float, beta2: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    group = {"params": _trained(model), "peak_lr": learning_rate}
    fused = _on_gpu(model)
    return [
        torch.optim.AdamW(
            [group],
            lr=learning_rate,
            betas=(beta1, beta2),
            weight_decay=weight_decay,
            fused=fused,
            capturable=bool(fused),
        )
    ]


@OPTIMIZERS.register("muon")
def muon(  # noqa: PLR0913 - one argument for each key of train.optimizer.muon
    model: nn.Module,
    *,
    filter_learning_rate: float,
    filter_momentum: float,
    norm_learning_rate: float,
    head_learning_rate: float,
    input_bias_until: float,
    momentum: float,
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """Muon for convolution filters, nesterov SGD for the last linear layer and for all other parameters.

    `weight_decay` is what one step takes off a weight at the peak learning rate, whatever that rate is.
    """
    roles = split_by_role(model)
    groups = [
        {
            "params": parameters,
            "lr": rate,
            "peak_lr": rate,
            "weight_decay": weight_decay / rate,
            "trained_until": until,
        }
        for parameters, rate, until in (
            (roles.norms, norm_learning_rate, 1.0),
            (roles.input_bias, norm_learning_rate, input_bias_until),
            (roles.head, head_learning_rate, 1.0),
        )
        if parameters
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if roles.filters:
        group = {"params": roles.filters, "peak_lr": filter_learning_rate}
        optimizers.append(Muon([group], lr=filter_learning_rate, momentum=filter_momentum))
    if groups:
        optimizers.append(
            torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=_on_gpu(model))
        )
    return optimizers


@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    """Every trained parameter of a network, in one list each."""

    filters: list[nn.Parameter]
    """Convolution filters `[out, in, height, width]`."""
    head: list[nn.Parameter]
    """The last linear layer."""
    input_bias: list[nn.Parameter]
    """Biases of convolutions whose filters are fixed, such as a whitening layer. Training them asks for the gradient
    at the pictures, the dearest one of all, and early in training they have found their place."""
    norms: list[nn.Parameter]
    """All others: normalisation, biases, hidden linear layers."""


def split_by_role(model: nn.Module) -> Roles:
    """Sort the trained parameters of any network by what they are."""
    trained = _trained(model)
    modules = list(model.modules())
    last_linear = [module for module in modules if isinstance(module, nn.Linear)][-1:]
    fixed = [
        m for m in modules if isinstance(m, nn.Conv2d) and m.bias is not None and not m.weight.requires_grad
    ]
    head_ids = {id(parameter) for module in last_linear for parameter in module.parameters()}
    input_ids = {id(module.bias) for module in fixed}
    filter_ids = {id(parameter) for parameter in trained if parameter.ndim == 4}
    special = head_ids | input_ids | filter_ids
    return Roles(
        filters=[parameter for parameter in trained if id(parameter) in filter_ids],
        head=[parameter for parameter in trained if id(parameter) in head_ids],
        input_bias=[parameter for parameter in trained if id(parameter) in input_ids],
        norms=[parameter for parameter in trained if id(parameter) not in special],
    )


def schedule_groups(
    optimizers: list[torch.optim.Optimizer], *, progress: float, factor: Callable[[float], float]
) -> None:
    """Set every group's learning rate for `progress` in [0, 1]; freeze the groups whose time is over.

    `factor` maps the progress of a group to the part of its peak rate. A pure function of progress, so a resumed run
    needs nothing but the step.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            until = group.get("trained_until", 1.0)
            active = progress < until
            rate = group["peak_lr"] * factor(progress / until) if active else 0.0
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
            for parameter in group["params"]:
                parameter.requires_grad_(active)
                if not active:
                    parameter.grad = None


def keep_rates_on(device: torch.device, optimizers: list[torch.optim.Optimizer]) -> None:
    """Make every learning rate a tensor there, so that a step that is recorded once reads it at each replay."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)


def compile_filters(optimizers: list[torch.optim.Optimizer], compiled: Callable[..., Any]) -> None:
    """Let Muon move filters by what `compiled` makes of its function: its kernels are many and small."""
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            optimizer.move = compiled(optimizer.move, reorders_loops=False)


def _on_gpu(model: nn.Module) -> bool | None:
    """For `fused`: one kernel for many parameters on a GPU, torch's own choice elsewhere."""
    return next(model.parameters()).is_cuda or None


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
