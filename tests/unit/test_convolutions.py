"""Our convolutions give what the library's do, and are taken only where they should be."""

import contextlib
import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarflow.compute import convolutions, taps, whole_maps, winograd
from cifarflow.compute.convolutions import taps_pay, winograd_pays
from cifarflow.compute.filter_gradients import convolve
from cifarflow.compute.operations import OwnOperations
from cifarflow.compute.winograd import Tiling, Transforms
from tests.support.networks import network

ROUNDING = 2e-5  # of float32, relative to the largest value; measured: 3e-6 at most


by_taps = partial(convolve, filter_gradient=taps.filter_gradient)
CONVOLVE = {"winograd": winograd.convolve, "taps": by_taps}
METHODS = list(CONVOLVE)  # `pairs` is for bfloat16 alone: test_pairs.py


def operands(
    count: int, width_in: int, width_out: int, height: int, width: int, *, padding: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, filters, and a gradient of what comes out of them."""
    torch.manual_seed(0)
    images = torch.randn(count, width_in, height, width).contiguous(memory_format=torch.channels_last)
    filters = torch.randn(width_out, width_in, 3, 3).contiguous(memory_format=torch.channels_last)
    outputs = torch.randn(count, width_out, height + 2 * padding - 2, width + 2 * padding - 2)
    return images, filters, outputs.contiguous(memory_format=torch.channels_last)


def error(found: Tensor | None, expected: Tensor | None) -> float:
    assert found is not None and expected is not None and found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("tile", winograd.TILES)
def test_transforms_convolve_one_tile_exactly(tile: int) -> None:
    """The identity of the method in one dimension: A^T [(G g) * (B^T d)] is the correlation of d with g."""
    transforms = Transforms.of(tile)
    taps, patch = torch.randn(3, dtype=torch.float64).numpy(), torch.randn(tile + 2).double().numpy()
    products = (transforms.filters @ taps) * (transforms.inputs @ patch)
    expected = [sum(patch[at + tap] * taps[tap] for tap in range(3)) for at in range(tile)]
    assert (transforms.outputs @ products).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(
    ("height", "width"), [(3, 3), (4, 4), (5, 8), (7, 6), (8, 8), (11, 9), (16, 13), (3, 20)]
)
def test_outputs_and_both_gradients_are_those_of_a_convolution(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, padding: int, method: str
) -> None:
    monkeypatch.setattr(winograd, "CHUNK_BYTES", 8 << 10)  # several chunks, the last of them smaller
    assert_right(CONVOLVE[method], operands(7, 6, 10, height, width, padding=padding), padding=padding)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (2, 2), (2, 3)])
def test_tap_by_tap_maps_may_be_smaller_than_the_filters(height: int, width: int) -> None:
    assert_right(by_taps, operands(7, 6, 10, height, width, padding=1), padding=1)


def on_whole_maps(images: Tensor, filters: Tensor, *, padding: int) -> Tensor:
    assert padding == 1
    return whole_maps.convolve(images, filters)


def test_a_whole_map_of_2x2_may_be_one_product() -> None:
    assert_right(on_whole_maps, operands(7, 6, 10, 2, 2, padding=1), padding=1)


def assert_right(convolve: Any, tensors: tuple[Tensor, Tensor, Tensor], *, padding: int) -> None:
    images, filters, gradient = tensors
    ours = (images.clone().requires_grad_(), filters.clone().requires_grad_())
    exact = (images.double().requires_grad_(), filters.double().requires_grad_())
    outputs, expected = convolve(*ours, padding=padding), F.conv2d(*exact, padding=padding)
    outputs.backward(gradient)
    expected.backward(gradient.double())
    assert error(outputs.detach(), expected.detach()) < ROUNDING
    for operand, reference in zip(ours, exact, strict=True):
        assert operand.grad is not None
        assert operand.grad.is_contiguous(memory_format=torch.channels_last)
        assert error(operand.grad, reference.grad) < ROUNDING


@pytest.mark.parametrize(("own", "side"), [(by_taps, 2), (by_taps, 3), (on_whole_maps, 2)])
def test_in_bf16_our_gradients_of_filters_are_as_near_to_the_exact_one_as_the_librarys(
    own: Any, side: int
) -> None:
    images, filters, gradient = operands(125, 64, 96, side, side, padding=1)

    def of_filters(convolve: Any, dtype: torch.dtype) -> Tensor:
        weight = filters.to(torch.promote_types(dtype, torch.float32), copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            outputs = convolve(images.to(dtype), weight, padding=1)
        assert outputs.dtype == dtype
        outputs.backward(gradient.to(dtype))
        assert weight.grad is not None and weight.grad.dtype == weight.dtype
        return weight.grad.double()

    exact = of_filters(F.conv2d, torch.float64)
    ours, library = (of_filters(convolve, torch.bfloat16) for convolve in (own, F.conv2d))
    assert (ours - exact).norm() < 1.1 * (library - exact).norm() < 0.01 * exact.norm()


def test_the_shapes_above_meet_every_tile_and_chunks_of_unequal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "CHUNK_BYTES", 8 << 10)
    tilings = [Tiling.of((7, 6, side, side), (10, 6, 3, 3), 0) for side in (3, 4, 5, 7, 8, 11, 16)]
    assert {tiling.tile for tiling in tilings} == set(winograd.TILES)
    assert {tiling.whole for tiling in tilings} == {True, False}
    assert any(1 < tiling.pictures < 7 and 7 % tiling.pictures for tiling in tilings)


@pytest.mark.parametrize("method", METHODS)
def test_a_second_time_gives_the_same_bits(method: str) -> None:
    """Exact resume lives on it, whatever lies in memory: the buffers are not those of the first time."""
    images, filters, gradient = operands(50, 64, 256, 10, 10, padding=0)

    def once() -> tuple[Tensor, ...]:
        inputs = (images.clone().requires_grad_(), filters.clone().requires_grad_())
        outputs = CONVOLVE[method](*inputs, padding=0)
        return (outputs.detach(), *torch.autograd.grad(outputs, inputs, gradient))

    first, _between, second = once(), [torch.full((size, 1000), torch.nan) for size in range(1, 400)], once()
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_pictures_that_need_no_gradient_get_none(method: str) -> None:
    images, filters, gradient = operands(2, 3, 4, 8, 8, padding=1)
    filters.requires_grad_()
    CONVOLVE[method](images, filters, padding=1).backward(gradient)
    assert filters.grad is not None and images.grad is None


@pytest.mark.parametrize(
    ("pays", "width_in", "width_out", "side", "padding", "expected"),
    [
        (winograd_pays, 64, 256, 10, 0, True),
        (winograd_pays, 256, 256, 8, 0, True),
        (winograd_pays, 512, 512, 4, 1, True),
        (winograd_pays, 64, 64, 32, 1, False),
        (winograd_pays, 3, 64, 32, 1, False),
        (taps_pay, 256, 256, 2, 1, True),
        (taps_pay, 256, 256, 3, 1, True),
        (taps_pay, 128, 128, 3, 1, True),
        (taps_pay, 256, 256, 5, 0, True),
        (taps_pay, 256, 256, 4, 1, False),
        (taps_pay, 256, 256, 2, 0, False),
        (taps_pay, 64, 64, 2, 1, False),
    ],
)
def test_winograds_pays_for_wide_layers_and_taps_for_small_maps_of_many_channels(
    pays: Any, width_in: int, width_out: int, side: int, padding: int, expected: bool
) -> None:
    assert pays((125, width_in, side, side), (width_out, width_in, 3, 3), padding=padding) is expected


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the filters that one of our methods was used with."""
    shapes: list[tuple[int, ...]] = []

    def noted(convolve: Any, images: Tensor, filters: Tensor, **others: Any) -> Tensor:
        shapes.append(tuple(filters.shape))
        return convolve(images, filters, **others)

    monkeypatch.setattr(winograd, "convolve", partial(noted, winograd.convolve))
    monkeypatch.setattr(convolutions, "convolve", partial(noted, convolve))
    yield shapes


def wide(**changes: Any) -> nn.Conv2d:
    return nn.Conv2d(**{"in_channels": 256, "out_channels": 256, "kernel_size": 3, "bias": False, **changes})


SIDES = {"winograd": 8, "taps": 3}  # of a map on which the layer above gains


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_gains_is_taken_however_it_is_called(taken: list[tuple[int, ...]], method: str) -> None:
    side = SIDES[method]
    images, filters = torch.randn(2, 256, side, side), torch.randn(256, 256, 3, 3, requires_grad=True)
    with OwnOperations(method):
        wide(padding=1)(images)
        F.conv2d(images, filters)
        F.conv2d(images, filters, padding=1)
        F.conv2d(input=images, weight=filters, stride=(1, 1), padding=(1, 1))
    assert taken == [(256, 256, 3, 3)] * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": True},
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"kernel_size": 5},
        {"kernel_size": (3, 1)},
        {"padding": "same"},
        {"padding": (0, 1)},
    ],
)
@pytest.mark.parametrize(("method", "side"), [("winograd", 8), ("taps", 5)])
def test_other_convolutions_are_the_librarys(
    taken: list[tuple[int, ...]], method: str, side: int, changes: dict[str, Any]
) -> None:
    layer, images = wide(**changes), torch.randn(2, 256, side, side)
    with OwnOperations(method):
        outputs = layer(images)
    assert taken == [] and torch.equal(outputs, layer(images))


def test_winograds_is_for_float32_alone(taken: list[tuple[int, ...]]) -> None:
    with OwnOperations("winograd"):
        wide(dtype=torch.bfloat16)(torch.randn(2, 256, 8, 8, dtype=torch.bfloat16))
    assert taken == []


@pytest.mark.parametrize("method", METHODS)
def test_without_gradients_and_afterwards_they_are_the_librarys(
    taken: list[tuple[int, ...]], method: str
) -> None:
    layer, images = wide(padding=1), torch.randn(2, 256, SIDES[method], SIDES[method])
    with OwnOperations(method), torch.no_grad():
        layer(images)
    with OwnOperations(method):
        layer.requires_grad_(False)(images)
    layer.requires_grad_()(images)
    assert taken == []


def gradients(
    model: nn.Module, images: Tensor, labels: Tensor, *, method: str | None = None
) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    with OwnOperations(method) if method else contextlib.nullcontext():
        outputs = model(images)
    F.cross_entropy(outputs, labels).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(
    ("method", "build", "layers"),
    [
        ("winograd", partial(network, "speednet", widths=(64, 256, 256), depth=2), 4),
        ("winograd", partial(network, "resnet18"), 9),
        ("taps", partial(network, "speednet", widths=(64, 256, 256), depth=3), 2),
    ],
)
def test_a_network_learns_the_same_with_it(
    taken: list[tuple[int, ...]], method: str, build: Any, layers: int
) -> None:
    """The gradient of all weights is as near to that of float64 as the library's, within a factor."""
    torch.manual_seed(1)
    model = build().to(memory_format=torch.channels_last).train()
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
    exact = gradients(copy.deepcopy(model).double(), images.double(), labels)
    library = gradients(model, images, labels)
    assert taken == []
    ours = gradients(model, images, labels, method=method)
    assert len(taken) == layers
    distances = [
        torch.stack([(found[name] - exact[name]).square().sum() for name in exact]).sum().sqrt().item()
        for found in (library, ours)
    ]
    length = torch.stack([gradient.square().sum() for gradient in exact.values()]).sum().sqrt().item()
    assert distances[1] < 10 * distances[0]
    assert distances[1] < 0.01 * length
