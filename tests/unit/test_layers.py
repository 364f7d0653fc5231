"""The benchmark of where a step's time goes: operations counted as torch's own counter counts them, no time lost."""

import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import layers
from benchmarks.layers import Cost
from cifarflow.compute.operations import OwnOperations


def test_operations_are_counted_and_all_time_has_an_owner() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 2), nn.GELU(), nn.Conv2d(8, 16, 3, padding=1), nn.GELU())
    images = torch.randn(64, 3, 33, 33)

    def step() -> None:
        network(images).sum().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    counted = counter.get_flop_counts()["Global"]
    start = time.perf_counter()
    costs = layers.costs_of(step)
    seconds = time.perf_counter() - start

    forward = [cost.flops for name, cost in costs.items() if name.endswith("forward")]
    backward = [cost.flops for name, cost in costs.items() if name.endswith("backward") and cost.flops]
    assert sum(forward) == counted[torch.ops.aten.convolution]
    assert sum(backward) == counted[torch.ops.aten.convolution_backward]
    assert {name for name, cost in costs.items() if cost.flops} == {
        f"convolution {filters}, {way}"
        for filters in ([8, 3, 2, 2], [16, 8, 3, 3])
        for way in ("forward", "backward")
    }
    assert costs["gelu"].seconds > 0
    assert 0 < sum(cost.seconds for cost in costs.values()) < seconds


@pytest.mark.parametrize(
    ("method", "side", "of_images"),
    [("taps", 3, True), ("taps", 3, False), ("taps", 2, True), ("winograd", 8, True)],
)
def test_our_convolutions_count_as_the_layers(method: str, side: int, of_images: bool) -> None:
    layer = nn.Conv2d(256, 256, 3, padding=1, bias=False)
    images = torch.randn(8, 256, side, side, requires_grad=of_images)

    def step() -> None:
        with OwnOperations(method):
            outputs = layer(images)
        outputs.sum().backward()

    costs = layers.costs_of(step)
    forward, backward = (costs[f"convolution [256, 256, 3, 3], {way}"] for way in ("forward", "backward"))
    assert forward.flops == 2 * 8 * side**2 * 9 * 256**2 and forward.seconds > 0
    assert backward.flops == (2 if of_images else 1) * forward.flops and backward.seconds > 0
    assert not {"mm", "matmul", layers.OWN_BACKWARD} & costs.keys()


def test_the_table_names_what_costs_most_first_and_the_rate_of_convolutions() -> None:
    costs = {
        "gelu": Cost(seconds=1.0),
        "convolution [8, 8, 3, 3], forward": Cost(seconds=3.0, flops=150e9),
        "fill_": Cost(seconds=0.001),
    }
    head, *_, first, second, last = layers.table(costs, product_rate=100.0)
    assert head == "4 s of a training, by the profiler; a matrix product runs at 100 GFLOP/s"
    assert first == "| convolution [8, 8, 3, 3], forward | 75.0% | 50 | 0.50 |"
    assert second == "| gelu | 25.0% |  |  |"
    assert "75.0% of the time, at 0.50 of the product's rate" in last
    assert last.endswith("if all ran at that rate: 0.37 of the time")
