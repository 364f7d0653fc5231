"""Arithmetic rate of training over that of a large matrix product, in the precision that training uses here.

The operations of a step are counted, not estimated (`torch.utils.flop_counter`: convolutions and matrix products,
forward and backward, each multiply-add as two), at each size of pictures of the default recipe. Products with padding
are not counted, since the library leaves most of them out; of Winograd's convolutions the fewer products that are left
are. The wall time holds everything else as well: augmentation, norms, activations, pooling, the optimizer. The
product's turns lie between the steps. One convolution alone, the network's largest, shows how much of the product's
rate the library's convolutions can reach here.

    uv run python -m benchmarks.arithmetic
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import command
from benchmarks.command import Effort
from benchmarks.pairs import Turn, alternate, second_of_two
from benchmarks.random_task import new_fit, random_task
from benchmarks.recipe_time import (
    Kind,
    freeze_as_in,
    our_schedule,
    our_steps,
    seconds_a_round,
    training_seconds,
)
from benchmarks.result import Result, Spread
from benchmarks.setting import recipe_on_cpu
from cifarflow.training.fit import Fit

GOAL = 0.5
SIDE = 2048
PRODUCTS_A_TURN, CONVOLUTIONS_A_TURN = 10, 20
GIGA = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """An action and the floating-point operations that it takes."""

    action: Callable[[], object]
    flops: int

    def rates(self, seconds: Iterable[float]) -> list[float]:
        """GFLOP/s of each measurement."""
        return [self.flops / time / GIGA for time in seconds]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A convolution: input `[N, C, H, W]`, filters `[D, C, height, width]`; `flops` are those of its forward pass."""

    input: tuple[int, ...]
    filters: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    flops: int


def measure(effort: Effort) -> Result:
    config = recipe_on_cpu("cifar94")
    task = random_task(config)
    fit = new_fit(task, config)
    schedule = our_schedule(task, config)
    dtype = torch.bfloat16 if task.compute.precision == "bf16" else torch.float32
    steps = {
        kind: Work(action=step, flops=step_flops(fit, kind)) for kind, step in our_steps(fit, config).items()
    }
    product = matrix_products(dtype)
    layer = max(convolutions(fit), key=lambda layer: (layer.flops, layer.filters))
    convolution = convolution_alone(layer, dtype, fit.task.compute.memory_format)

    # A product before each kind of step: the rate that the machine has at that time.
    turns: dict[tuple[str, Kind | None], Turn] = {}
    for kind, step in steps.items():
        turns["product", kind] = second_of_two(product.action)
        turns["step", kind] = second_of_two(step.action)
    turns["convolution", None] = second_of_two(convolution.action)
    seconds = alternate(turns, rounds=effort.rounds)

    print(f"{task.compute.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    return result(
        steps,
        {kind: seconds["step", kind] for kind in steps},
        schedule,
        product_rates=[product.rates(seconds["product", kind]) for kind in steps],
        convolution_rates=convolution.rates(seconds["convolution", None]),
        layer=layer,
    )


def step_flops(fit: Fit, kind: Kind) -> int:
    """Counted operations of the forward and backward pass of one step; the optimizers' own are not counted as work.

    Every picture takes the same, so one micro-batch is counted.
    """
    task = fit.task
    freeze_as_in(kind, fit)
    count = min(task.compute.micro_batch_size, task.config.batch_size)
    counted = "taps" if task.compute.convolution == "pairs" else task.compute.convolution
    compute = replace(task.compute, convolution=counted)  # as many products, and torch can count them
    step = replace(fit.step, optimizers=[], compute=compute)
    step.clear_gradients()
    with FlopCounterMode(display=False, custom_mapping=COUNTED_HERE) as counter:
        step(task.train.images[:count], task.train.labels[:count], task.preprocess(kind.pixels))
    return counter.get_total_flops() * kind.pictures // count


def added_products(total: Sequence[int], left: Sequence[int], right: Sequence[int], **_: object) -> int:
    """Operations of `baddbmm_`, in which Winograd's convolutions gather gradients; the counter does not know it."""
    batch, rows, inner = left
    return 2 * batch * rows * inner * right[2]


def convolution_products(images: Sequence[int], filters: Sequence[int], *rest: Any, **_: object) -> int:
    """Operations of `aten.convolution` on `[N, C, H, W]` by `[D, C, height, width]`, without those with padding."""
    _, stride, padding, dilation = rest[:4]
    sides = zip(images[2:], filters[2:], stride, padding, dilation, strict=True)
    pairs = math.prod(pairs_of_side(*side) for side in sides)
    return 2 * images[0] * filters[0] * filters[1] * pairs


def pairs_of_side(size: int, taps: int, stride: int, padding: int, dilation: int) -> int:
    """Along one side: how many (output, tap) meet a pixel and not the padding."""
    outputs = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    met = (output * stride - padding + tap * dilation for output in range(outputs) for tap in range(taps))
    return sum(0 <= position < size for position in met)


def gradient_products(
    _: Sequence[int], images: Sequence[int], filters: Sequence[int], *rest: Any, **__: object
) -> int:
    """Operations of `aten.convolution_backward`: as many as forward for each of the two gradients that is asked for."""
    of_images, of_filters = rest[-1][:2]
    return (of_images + of_filters) * convolution_products(images, filters, *rest)


COUNTED_HERE = {
    torch.ops.aten.baddbmm_: added_products,
    torch.ops.aten.convolution: convolution_products,
    torch.ops.aten.convolution_backward: gradient_products,
}


class ConvolutionLog(TorchDispatchMode):
    """Notes the shapes of every convolution that is computed while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Layer] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            inputs, filters, _, stride, padding = args[:5]
            self.layers.append(
                Layer(
                    input=tuple(inputs.shape),
                    filters=tuple(filters.shape),
                    stride=tuple(stride),
                    padding=tuple(padding),
                    flops=convolution_products(inputs.shape, filters.shape, *args[2:]),
                )
            )
        return output


def convolutions(fit: Fit) -> list[Layer]:
    """Those of the network, for as many full-sized pictures as go through it at once."""
    task = fit.task
    at_once = task.compute.micro_batch_size * task.compute.micro_batches_at_once
    images = task.train.images[: min(at_once, task.config.batch_size)]
    with torch.no_grad(), ConvolutionLog() as log:
        fit.state.model(task.preprocess(task.dataset.image_size)(images))
    return log.layers


def matrix_products(dtype: torch.dtype) -> Work:
    a, b = torch.randn(2, SIDE, SIDE).to(dtype)
    out = torch.empty_like(a)

    def products() -> None:
        for _ in range(PRODUCTS_A_TURN):
            torch.mm(a, b, out=out)

    return Work(action=products, flops=PRODUCTS_A_TURN * 2 * SIDE**3)


def convolution_alone(layer: Layer, dtype: torch.dtype, layout: torch.memory_format) -> Work:
    """One layer's convolution, forward and backward to its input and its filters: three times the forward's work."""
    inputs = torch.randn(layer.input).to(dtype).contiguous(memory_format=layout).requires_grad_()
    filters = torch.randn(layer.filters).to(dtype).contiguous(memory_format=layout).requires_grad_()
    gradient: Tensor | None = None

    def convolve() -> None:
        nonlocal gradient
        for _ in range(CONVOLUTIONS_A_TURN):
            output = F.conv2d(inputs, filters, stride=layer.stride, padding=layer.padding)
            gradient = torch.ones_like(output) if gradient is None else gradient
            torch.autograd.grad(output, (inputs, filters), gradient)

    return Work(action=convolve, flops=CONVOLUTIONS_A_TURN * 3 * layer.flops)


def result(
    steps: Mapping[Kind, Work],
    seconds: Mapping[Kind, list[float]],
    schedule: Counter[Kind],
    *,
    product_rates: list[list[float]],
    convolution_rates: list[float],
    layer: Layer,
) -> Result:
    """The table, and the rate of a whole training over the product's; `product_rates` are by kind, then by round."""
    work = sum(schedule[kind] * step.flops for kind, step in steps.items()) / GIGA
    product = Spread.of(rate for rates in product_rates for rate in rates)
    alone = Spread.of(convolution_rates)
    print("| what | pixels | pictures | first bias | GFLOP | GFLOP/s: median (min to max) |")
    print("|---|---|---|---|---|---|")
    for kind, step in steps.items():
        bias = "yes" if kind.first_bias else "no"
        cells = (kind.pixels, kind.pictures, bias, f"{step.flops / GIGA:.1f}")
        print("| step |", " | ".join(map(str, cells)), f"| {Spread.of(step.rates(seconds[kind]))} |")
    print(f"| matrix product {SIDE}^3 | | | | {2 * SIDE**3 / GIGA:.1f} | {product} |")
    shape = f"{list(layer.filters)} on {list(layer.input)}"
    print(f"| convolution {shape} alone | | | | {3 * layer.flops / GIGA:.1f} | {alone} |")
    print(
        f"a training: {work / 1000:.0f} TFLOP, {training_seconds(seconds, schedule):.0f} s as it is, "
        f"{work / product.median:.0f} s if all of it ran at the rate of the matrix product"
    )
    products = [sum(rates) / len(rates) for rates in zip(*product_rates, strict=True)]
    rounds = zip(seconds_a_round(seconds, schedule), products, strict=True)
    spread = Spread.of(work / time / rate for time, rate in rounds)
    return Result(
        name="arithmetic rate of training",
        against=f"a {SIDE}^3 matrix product in the same precision",
        goal=GOAL,
        at_least=True,
        unit="x",
        value=work / training_seconds(seconds, schedule) / product.median,
        low=spread.low,
        high=spread.high,
        rounds=len(products),
        note=f"the network's largest convolution alone reaches {alone.median / product.median:.2f}",
    )


if __name__ == "__main__":
    command.run(measure, description=__doc__, rounds=7, quick_rounds=1)
