"""Where the time of a training goes: each layer's convolution, forward and backward, and every other operation.

    uv run python -m benchmarks.layers
    uv run python -m benchmarks.layers --recipe tudui

Steps of every kind that the recipe takes run under torch's profiler, over random pictures, and count as often as the
recipe takes them. Beside a convolution stands how fast it computes, and what part that is of a 2048^3 matrix product's
rate: which layers arithmetic limits, and what the rest costs. Products with padding are counted here, though the
library leaves most of them out, so that layers on small maps may come out above the product's rate.
"""

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.arithmetic import GIGA, matrix_products
from benchmarks.command import new_parser, positive
from benchmarks.pairs import seconds_of
from benchmarks.random_task import new_fit, random_task
from benchmarks.recipe_time import our_schedule, our_steps
from benchmarks.setting import recipe_on_cpu
from cifarflow import errors
from cifarflow.allocator import keep_freed_memory

FORWARD, BACKWARD = "aten::convolution", "aten::convolution_backward"
OWN_FORWARD, OWN_BACKWARD = "_Convolution", "_ConvolutionBackward"
"""Of compute/: around some of the library's, or in their place."""
CONVOLUTIONS = (FORWARD, BACKWARD, OWN_FORWARD, OWN_BACKWARD)
SHOWN_SHARE = 0.005
WARM_UP_STEPS = 3
"""Until then a step is the first to touch some of its memory, and its faults would count as its operations' time."""


@dataclass(slots=True)
class Cost:
    seconds: float = 0.0
    flops: float = 0.0


Costs = dict[str, Cost]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--recipe", default="cifar94", help="(default cifar94)")
    parser.add_argument("--rounds", type=positive, default=3, help="steps of each kind (default 3)")
    arguments = parser.parse_args()
    keep_freed_memory()  # as stages/start.py does
    config = recipe_on_cpu(arguments.recipe)
    task = random_task(config)
    schedule = our_schedule(task, config)
    whole: Costs = defaultdict(Cost)
    rates = []
    product = matrix_products(torch.bfloat16 if task.compute.precision == "bf16" else torch.float32)
    for kind, step in our_steps(new_fit(task, config), config).items():
        for _ in range(WARM_UP_STEPS):
            step()
        for _ in range(arguments.rounds):
            rates.append(product.flops / seconds_of(product.action) / GIGA)
            for name, cost in costs_of(step).items():
                whole[name].seconds += cost.seconds * schedule[kind] / arguments.rounds
                whole[name].flops += cost.flops * schedule[kind] / arguments.rounds
    print(f"{task.compute.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("\n".join(table(whole, product_rate=statistics.median(rates))))


def costs_of(step: Callable[[], None]) -> Costs:
    """Of one call: seconds of each operation's own, and the floating-point operations of convolutions."""
    costs: Costs = defaultdict(Cost)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        step()
    events = profiler.events() or ()
    forwards = {event.sequence_nr: event for event in events if event.name == OWN_FORWARD}
    for event in events:
        owner = next((one for one in with_parents(event) if one.name in CONVOLUTIONS), event)
        costs[name_of(owner, forwards)].seconds += event.self_cpu_time_total / 1e6
        if event.name in CONVOLUTIONS:
            costs[name_of(event, forwards)].flops += flops_of(event, forwards)
    return costs


def with_parents(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """The operation, what called it, and so on."""
    one: FunctionEvent | None = event
    while one is not None:
        yield one
        one = one.cpu_parent


def name_of(event: FunctionEvent, forwards: Mapping[int, FunctionEvent]) -> str:
    if event.name not in CONVOLUTIONS:
        return event.name.removeprefix("aten::")
    way = "forward" if event.name in (FORWARD, OWN_FORWARD) else "backward"
    return f"convolution {filters_of(event, forwards)}, {way}"


def filters_of(event: FunctionEvent, forwards: Mapping[int, FunctionEvent]) -> list[int]:
    """`[out, in, height, width]` of a convolution, forward or backward."""
    if event.name == OWN_BACKWARD:  # it is not given them; its forward pass has its number
        event = forwards[event.sequence_nr]
    shapes: Any = event.input_shapes
    return shapes[2 if event.name == BACKWARD else 1]


def flops_of(event: FunctionEvent, forwards: Mapping[int, FunctionEvent]) -> int:
    """Of a convolution, forward or backward, without those of the library's inside it, which count themselves."""
    given: Any = event.concrete_inputs
    shapes: Any = event.input_shapes
    if event.name == BACKWARD:
        of_images, of_filters = given[-1][:2]
        return (of_images + of_filters) * 2 * math.prod(shapes[0]) * math.prod(shapes[2][1:])
    if event.name == FORWARD:
        return forward_flops(shapes[0], shapes[1], *given[3:6])
    forward = event if event.name == OWN_FORWARD else forwards[event.sequence_nr]
    by_library = any(child.name == "aten::conv2d" for child in forward.cpu_children)
    shapes, given = forward.input_shapes, forward.concrete_inputs
    padding = given[2] if len(given) > 2 else 1  # on whole maps it is 1
    whole = forward_flops(shapes[0], shapes[1], (1, 1), (padding, padding), (1, 1))
    if event is forward:
        return 0 if by_library else whole
    return whole if by_library else 2 * whole  # where the library is not asked, both gradients are ours


def forward_flops(images: Sequence[int], filters: Sequence[int], *sides: Sequence[int]) -> int:
    """Two for each multiply-add of each output, for images `[N, C, H, W]`; `sides`: strides, paddings, dilations."""
    outputs = (
        (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        for size, taps, stride, padding, dilation in zip(images[2:], filters[2:], *sides, strict=True)
    )
    return 2 * images[0] * math.prod(outputs) * math.prod(filters)


def table(costs: Costs, *, product_rate: float) -> Iterator[str]:
    total = sum(cost.seconds for cost in costs.values())
    yield f"{total:.0f} s of a training, by the profiler; a matrix product runs at {product_rate:.0f} GFLOP/s"
    yield "| operation | share | GFLOP/s | of the product's rate |"
    yield "|---|---|---|---|"
    for name, cost in sorted(costs.items(), key=lambda item: -item[1].seconds):
        if cost.seconds < SHOWN_SHARE * total:
            continue
        rate = cost.flops / cost.seconds / GIGA
        cells = (f"{rate:.0f}", f"{rate / product_rate:.2f}") if cost.flops else ("", "")
        yield f"| {name} | {cost.seconds / total:.1%} | {cells[0]} | {cells[1]} |"
    convolving = [cost for name, cost in costs.items() if name.startswith("convolution ")]
    seconds, flops = sum(one.seconds for one in convolving), sum(one.flops for one in convolving)
    yield (
        f"convolutions together: {seconds / total:.1%} of the time, at {flops / seconds / GIGA / product_rate:.2f} of "
        f"the product's rate; if all ran at that rate: {flops / GIGA / product_rate / total:.2f} of the time"
    )


if __name__ == "__main__":
    sys.exit(errors.run(main))
