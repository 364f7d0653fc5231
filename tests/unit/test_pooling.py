"""Our max-pooling gives the library's bits, and is taken only where it gains."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarflow.compute.kernels import pooling
from cifarflow.compute.operations import OwnOperations
from cifarflow.compute.processor import numba_has_openmp
from tests.support.networks import network

LIBRARY = "direct"  # convolutions: so that pooling alone is ours
pytestmark = pytest.mark.skipif(not numba_has_openmp(), reason="needs the system's OpenMP (libgomp)")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what our pooling was given, in order."""
    shapes: list[torch.Size] = []
    apply = pooling._Halving.apply  # pyright: ignore[reportPrivateUsage]

    def noted(images: Tensor) -> Any:
        shapes.append(images.shape)
        return apply(images)

    monkeypatch.setattr(pooling._Halving, "apply", noted)  # pyright: ignore[reportPrivateUsage]
    return shapes


def pictures(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of few values, so that many a window has its maximum twice."""
    torch.manual_seed(0)
    images = torch.randint(-3, 4, shape).to(dtype).contiguous(memory_format=torch.channels_last)
    return images.requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [2, (2, 2)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 7), (16, 31), (6, 6)])
def test_outputs_and_gradients_are_the_librarys_bits(
    taken: list[torch.Size], height: int, width: int, window: int | tuple[int, int], dtype: torch.dtype
) -> None:
    images = pictures(5, 12, height, width, dtype=dtype)
    expected = F.max_pool2d(images, window)
    with OwnOperations(LIBRARY, fused=True):
        found = F.max_pool2d(images, window)
    assert taken == [images.shape] and torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    outputs = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, images, outputs)
    for given in (outputs, outputs.contiguous()):
        (gradient,) = torch.autograd.grad(found, images, given, retain_graph=True)
        assert torch.equal(gradient, wanted)
        assert gradient.dtype == dtype and gradient.is_contiguous(memory_format=torch.channels_last)


def test_a_number_that_is_none_is_the_maximum_and_has_the_gradient() -> None:
    images = pictures(1, 4, 4, 4)
    with torch.no_grad():
        images[0, 2, 1, 0] = torch.nan
    with OwnOperations(LIBRARY, fused=True):
        found = F.max_pool2d(images, 2)
    found.nan_to_num().sum().backward()
    assert images.grad is not None and found[0, 2, 0, 0].isnan()
    (wanted,) = torch.autograd.grad(F.max_pool2d(images, 2).nan_to_num().sum(), images)
    assert torch.equal(images.grad, wanted)


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d((2, 2), stride=(2, 2)),
        partial(F.max_pool2d, kernel_size=2),
        partial(F.max_pool2d, kernel_size=2, stride=2, padding=0),
    ],
)
def test_it_is_taken_however_it_is_called(taken: list[torch.Size], layer: Any) -> None:
    with OwnOperations(LIBRARY, fused=True):
        layer(pictures(2, 8, 8, 8))
    assert taken == [(2, 8, 8, 8)]


@pytest.mark.parametrize(
    "changes",
    [
        {"stride": 1},
        {"stride": (2, 1)},
        {"padding": 1},
        {"dilation": 2},
        {"ceil_mode": True},
        {"return_indices": True},
        {"kernel_size": 9},
        {"kernel_size": 3},
        {"kernel_size": (2, 3)},
    ],
)
def test_other_windows_are_the_librarys(taken: list[torch.Size], changes: dict[str, Any]) -> None:
    layer, images = nn.MaxPool2d(**{"kernel_size": 2, **changes}), pictures(2, 8, 9, 9)
    with OwnOperations(LIBRARY, fused=True):
        found = layer(images)
    expected = layer(images)
    pairs = zip(found, expected, strict=True) if changes.get("return_indices") else [(found, expected)]
    assert taken == [] and all(torch.equal(one, other) for one, other in pairs)


def test_without_gradients_and_in_another_layout_it_is_the_librarys(taken: list[torch.Size]) -> None:
    images = pictures(2, 8, 8, 8)
    with OwnOperations(LIBRARY, fused=True):
        with torch.no_grad():
            F.max_pool2d(images, 2)
        F.max_pool2d(images.detach().contiguous().requires_grad_(), 2)
        F.max_pool2d(images.double(), 2)
    assert taken == []


def test_a_network_learns_the_same_bits_with_it(taken: list[torch.Size]) -> None:
    torch.manual_seed(1)
    model = network("tudui").train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
    images = images.contiguous(memory_format=torch.channels_last)

    def gradients() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(images)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        return list(torch.autograd.grad(F.cross_entropy(outputs.float(), labels), trained))

    expected = gradients()
    assert taken == []
    with OwnOperations(LIBRARY, fused=True):
        found = gradients()
    assert len(taken) == 3
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
