"""Gradients of filters from pairs of bfloat16 numbers: against float64, over all shapes of tiles and maps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from cifarflow.compute import processor, whole_maps
from cifarflow.compute.operations import OwnOperations

can_be = processor.capabilities().get("avx512_bf16") and processor.numba_has_openmp()
if not can_be:
    pytest.skip(
        "needs a processor with AVX512_BF16 and the system's OpenMP (libgomp)", allow_module_level=True
    )

from cifarflow.compute.kernels import pairs  # noqa: E402 - compiled for such a processor

ROUNDING = 2e-6  # of sums in float32, relative to the norm; measured: 8e-7 at most
LAYOUT = torch.channels_last


def maps(*shape: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(shape).bfloat16().contiguous(memory_format=LAYOUT)


def operands(
    count: int, width_in: int, width_out: int, sides: tuple[int, int], size: int, padding: int
) -> tuple[Tensor, Tensor]:
    """Pictures, and a gradient of what a convolution makes of them."""
    height, width = (side + 2 * padding - size + 1 for side in sides)
    return maps(count, width_in, *sides, seed=0), maps(count, width_out, height, width, seed=1)


def exact(images: Tensor, outputs: Tensor, size: int, padding: int) -> Tensor:
    shape = (outputs.shape[1], images.shape[1], size, size)
    return conv2d_weight(images.double(), shape, outputs.double(), padding=padding)


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape and found.dtype == torch.float32
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("width_in", "width_out"),
    [(32, 8), (48, 8), (8, 48), (24, 48), (64, 40), (40, 64), (96, 96), (128, 128), (16, 144)],
)
@pytest.mark.parametrize(("count", "sides"), [(1, (5, 4)), (2, (3, 8)), (7, (6, 6)), (40, (3, 3))])
def test_sums_are_those_of_exact_arithmetic(
    count: int, sides: tuple[int, int], width_in: int, width_out: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    images, outputs = operands(count, width_in, width_out, sides, 3, 1)
    found = pairs.filter_gradient(images, outputs, (3, 3), padding=1)
    assert error(found, exact(images, outputs, 3, 1)) < ROUNDING


@pytest.mark.parametrize(
    ("sides", "size", "padding"),
    [
        ((1, 1), 3, 1),
        ((1, 4), 3, 1),
        ((2, 2), 3, 1),
        ((3, 3), 3, 0),
        ((6, 5), 3, 2),
        ((9, 7), 5, 2),
        ((4, 4), 1, 0),
    ],
)
def test_filters_and_maps_may_be_of_any_size(sides: tuple[int, int], size: int, padding: int) -> None:
    images, outputs = operands(9, 16, 32, sides, size, padding)
    found = pairs.filter_gradient(images, outputs, (size, size), padding=padding)
    assert error(found, exact(images, outputs, size, padding)) < ROUNDING


@pytest.mark.parametrize("cached", [1, 40_000, 1 << 30])
def test_however_many_pictures_are_in_the_cache(monkeypatch: pytest.MonkeyPatch, cached: int) -> None:
    """One pair at a time, some with fewer at the end, or all of them."""
    monkeypatch.setattr(pairs, "CACHED_BYTES", cached)
    monkeypatch.setattr(pairs, "PIXELS", 1 << 20)
    images, outputs = operands(27, 32, 48, (6, 6), 3, 1)
    found = pairs.filter_gradient(images, outputs, (3, 3), padding=1)
    assert error(found, exact(images, outputs, 3, 1)) < ROUNDING


def test_what_is_not_a_number_stays_none() -> None:
    images, outputs = operands(4, 32, 32, (4, 4), 3, 1)
    outputs[3, 5, 2, 1] = torch.nan
    found = pairs.filter_gradient(images, outputs, (3, 3), padding=1)
    assert found[5].isnan().all() and found[6:].isfinite().all()


def test_a_second_time_gives_the_same_bits() -> None:
    """Exact resume lives on it, whatever lies in memory."""
    images, outputs = operands(50, 64, 96, (7, 7), 3, 1)
    once = partial(pairs.filter_gradient, images, outputs, (3, 3), padding=1)
    first, _between, second = once(), [torch.full((size, 1000), torch.nan) for size in range(1, 400)], once()
    assert torch.equal(first, second)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Widths of the layers whose filters got their gradient by the loops."""
    widths: list[tuple[int, ...]] = []
    inner: Callable[..., Tensor] = pairs.filter_gradient

    def noted(images: Tensor, outputs: Tensor, *others: Any, **more: Any) -> Tensor:
        widths.append((images.shape[1], outputs.shape[1]))
        return inner(images, outputs, *others, **more)

    monkeypatch.setattr(pairs, "filter_gradient", noted)
    return widths


def gradient_of(layer: nn.Conv2d, images: Tensor, *, method: str | None = None) -> Tensor:
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        if method is None:
            outputs = layer(images)
        else:
            with OwnOperations(method):
                outputs = layer(images)
    (outputs.float() * torch.linspace(-1, 1, outputs.numel()).view_as(outputs)).sum().backward()
    assert layer.weight.grad is not None
    return layer.weight.grad.clone()


def test_a_layer_learns_the_same_with_it(taken: list[tuple[int, ...]]) -> None:
    """float32 pictures, as behind preprocessing, are what autocast makes of them."""
    torch.manual_seed(2)
    layer = nn.Conv2d(24, 48, 3, padding=1, bias=False)
    images = torch.randn(20, 24, 9, 9).contiguous(memory_format=LAYOUT)
    library, ours = gradient_of(layer, images), gradient_of(layer, images, method="pairs")
    assert taken == [(24, 48)]
    assert ((ours - library).norm() / library.norm()).item() < 0.01


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"in_channels": 12, "out_channels": 20}, "tiles do not fill so many channels"),
        ({"bias": True}, "a bias has a gradient too"),
        ({"stride": 2}, "taps meet other pixels"),
        ({"kernel_size": 5}, "not measured"),
    ],
)
def test_other_layers_are_the_librarys(
    taken: list[tuple[int, ...]], changes: dict[str, Any], why: str
) -> None:
    layer = nn.Conv2d(
        **{"in_channels": 32, "out_channels": 32, "kernel_size": 3, "padding": 1, "bias": False, **changes}
    )
    images = torch.randn(4, layer.in_channels, 8, 8).contiguous(memory_format=LAYOUT)
    gradient_of(layer, images, method="pairs")
    assert taken == [], why


def test_in_float32_and_in_the_other_memory_format_it_is_the_librarys(taken: list[tuple[int, ...]]) -> None:
    filters = torch.randn(32, 32, 3, 3, requires_grad=True)
    images = torch.randn(4, 32, 8, 8)
    with OwnOperations("pairs"):
        F.conv2d(images.contiguous(memory_format=LAYOUT), filters).sum().backward()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = F.conv2d(images, filters)
    outputs.float().sum().backward()
    assert taken == []


def test_wide_maps_of_2x2_are_one_product_as_before(
    monkeypatch: pytest.MonkeyPatch, taken: list[tuple[int, ...]]
) -> None:
    called: list[torch.Size] = []
    inner = whole_maps.convolve

    def noted(images: Tensor, filters: Tensor) -> Tensor:
        called.append(filters.shape)
        return inner(images, filters)

    monkeypatch.setattr(whole_maps, "convolve", noted)
    layer = nn.Conv2d(128, 128, 3, padding=1, bias=False)
    gradient_of(layer, torch.randn(4, 128, 2, 2).contiguous(memory_format=LAYOUT), method="pairs")
    assert called == [(128, 128, 3, 3)] and taken == []
