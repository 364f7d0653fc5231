"""Micro-batches that go through a network together are normalised as if each came alone."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarflow.compute.operations import OwnOperations
from tests.support.networks import network

SIZES = (5, 4, 5)
LIBRARY = "direct"  # convolutions: so that normalisation alone is ours


def pictures(*shape: int, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    torch.manual_seed(0)
    return (3 * torch.randn(shape) + 1).to(dtype).contiguous(memory_format=layout).requires_grad_()


def layer_of(channels: int, *, momentum: float = 0.3, **changes: Any) -> nn.BatchNorm2d:
    torch.manual_seed(1)
    layer = nn.BatchNorm2d(channels, momentum=momentum, **changes)
    if layer.affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [1, 7])
def test_outputs_gradients_and_statistics_are_those_of_one_after_the_other(
    side: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    images = pictures(sum(SIZES), 12, side, side, dtype=dtype, layout=layout)
    alone, together = layer_of(12), layer_of(12)
    expected = torch.cat([alone(part) for part in images.split(SIZES)])
    with OwnOperations(LIBRARY, sizes=SIZES):
        found = together(images)
    assert torch.equal(found, expected) and found.dtype == dtype
    assert found.is_contiguous(memory_format=layout)
    given = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, images, given, retain_graph=True)
    (gradient,) = torch.autograd.grad(found, images, given, retain_graph=True)
    assert torch.equal(gradient, wanted)
    for layer, outputs in ((alone, expected), (together, found)):
        outputs.backward(given, inputs=[layer.weight, layer.bias])
    for name, weight in alone.named_parameters():
        torch.testing.assert_close(together.get_parameter(name).grad, weight.grad)
    for name in ("running_mean", "running_var"):
        assert torch.equal(together.get_buffer(name), alone.get_buffer(name))


@pytest.mark.parametrize(
    "changes", [{"affine": False}, {"track_running_stats": False}, {"affine": False, "eps": 0.5}]
)
def test_layers_without_weights_or_statistics(changes: dict[str, Any]) -> None:
    images = pictures(sum(SIZES), 6, 4, 4, dtype=torch.float32, layout=torch.channels_last)
    layer = layer_of(6, **changes)
    expected = torch.cat([layer(part) for part in images.split(SIZES)])
    with OwnOperations(LIBRARY, sizes=SIZES):
        found = layer(images)
    given = torch.randn_like(expected)
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(outputs, images, given)[0] for outputs in (found, expected)]
    assert torch.equal(*gradients)


def test_it_needs_no_gradient_of_what_comes_in() -> None:
    images = pictures(sum(SIZES), 6, 4, 4, dtype=torch.float32, layout=torch.channels_last).detach()
    layer = layer_of(6)
    with OwnOperations(LIBRARY, sizes=SIZES):
        layer(images).square().sum().backward()
    found = layer.weight.grad, layer.bias.grad
    layer.zero_grad()
    sum(layer(part).square().sum() for part in images.split(SIZES)).backward()  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(found, (layer.weight.grad, layer.bias.grad))


def test_in_evaluation_and_without_gradients_it_is_the_librarys() -> None:
    images = pictures(sum(SIZES), 6, 4, 4, dtype=torch.float32, layout=torch.channels_last)
    layer, other = layer_of(6).eval(), layer_of(6)
    with OwnOperations(LIBRARY, sizes=SIZES):
        assert torch.equal(layer(images), F.batch_norm(images, *layer_statistics(layer)))
        with torch.no_grad():
            whole = other(images)
    assert torch.equal(whole, layer_of(6)(images))


def layer_statistics(layer: nn.BatchNorm2d) -> tuple[Any, ...]:
    return layer.running_mean, layer.running_var, layer.weight, layer.bias


def test_another_number_of_pictures_is_refused() -> None:
    images = pictures(sum(SIZES) + 1, 6, 4, 4, dtype=torch.float32, layout=torch.channels_last)
    with OwnOperations(LIBRARY, sizes=SIZES), pytest.raises(RuntimeError, match="split"):
        layer_of(6)(images)


@pytest.mark.parametrize(
    "build",
    [
        partial(network, "speednet", widths=(8, 16, 16), depth=3),
        partial(network, "resnet18"),
        partial(network, "tudui", batch_norm=True),
    ],
)
def test_a_network_learns_from_them_as_from_one_after_the_other(build: Any) -> None:
    torch.manual_seed(1)
    alone = build().to(memory_format=torch.channels_last).train()
    together = build().to(memory_format=torch.channels_last).train()
    together.load_state_dict(alone.state_dict())
    images, labels = torch.randn(sum(SIZES), 3, 32, 32), torch.randint(0, 10, (sum(SIZES),))
    images = images.contiguous(memory_format=torch.channels_last)
    for part, answers in zip(images.split(SIZES), labels.split(SIZES), strict=True):
        F.cross_entropy(alone(part), answers, reduction="sum").backward()
    with OwnOperations(LIBRARY, sizes=SIZES):
        outputs = together(images)
    F.cross_entropy(outputs, labels, reduction="sum").backward()
    for (name, weight), other in zip(alone.named_parameters(), together.parameters(), strict=True):
        if weight.grad is not None:
            torch.testing.assert_close(other.grad, weight.grad, atol=1e-4, rtol=1e-3, msg=name)
    for name, buffer in alone.named_buffers():
        if "num_batches" not in name:
            torch.testing.assert_close(together.get_buffer(name), buffer)
